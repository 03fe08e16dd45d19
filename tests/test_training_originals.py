"""From the authors' checkpoint to a model of one's own: it is converted, and every stage trains on from it."""

import json
from dataclasses import asdict

import numpy as np
import originals
import pytest
import soundfile
import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import ClapConfig, ClapModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

from musicldm import MusicLDMPipeline
from musicldm.checkpoints import sizes
from musicldm.cli import main
from musicldm.train import run
from vocoder import mel_config

RATE, CLIP_S = 8000, 1.28
CLAP = originals.CLAP_CONFIG | {
    "roberta": originals.CLAP_CONFIG["roberta"] | {"vocab_size": 300, "max_position_embeddings": 130}
}
SHORT = ["trackers=[]", "steps=2", "batch_size=2", "validation_batches=1", "mixed_precision=no"]


@pytest.fixture(scope="module")
def model(tiny_folder, tmp_path_factory):
    """The folder that `musicldm convert` makes of a checkpoint of freshly initialised parts."""
    folder = tmp_path_factory.mktemp("original")
    torch.manual_seed(0)
    config = originals.config_of()
    parts = {
        "unet": UNet2DConditionModel(**sizes.unet_config(config)),
        "vae": AutoencoderKL(**sizes.vae_config(config, 0.75)),
        "vocoder": SpeechT5HifiGan(SpeechT5HifiGanConfig(**sizes.vocoder_config(originals.VOCODER_CONFIG, config))),
        "clap": ClapModel(ClapConfig(**sizes.clap_config(CLAP))),
        "scheduler": DDIMScheduler(**sizes.scheduler_config(config)),
    }
    torch.save({"state_dict": originals.full_checkpoint(parts)}, folder / "musicldm.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "vocoder.json").write_text(json.dumps(originals.VOCODER_CONFIG))
    (folder / "clap.json").write_text(json.dumps(CLAP))
    options = {"--config": "config.yaml", "--vocoder-config": "vocoder.json", "--clap-config": "clap.json"}
    call = ["convert", str(folder / "musicldm.ckpt"), "--raw-weights", "--out", str(folder / "model")]
    call += [word for option, name in options.items() for word in (option, str(folder / name))]
    assert main([*call, "--tokenizer", str(tiny_folder / "tokenizer")]) == 0
    return folder / "model"


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Sixteen captioned tones."""
    folder = tmp_path_factory.mktemp("collection")
    time_s = np.arange(round(CLIP_S * RATE)) / RATE
    rows = []
    for i in range(16):
        soundfile.write(folder / f"{i}.wav", 0.4 * np.sin(2 * np.pi * (300 + 50 * i) * time_s), RATE)
        rows.append({"file_name": f"{i}.wav", "text": f"tone {i}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("stage", ["vae", "vocoder", "clap", "diffusion"])
def test_every_stage_trains_on_from_the_authors_checkpoint(model, collection, tmp_path, stage):
    before = MusicLDMPipeline.from_pretrained(model)
    mel = asdict(mel_config(before.vocoder))
    overrides = [*SHORT, f"init={model}", *(f"mel.{name}={value}" for name, value in mel.items())]
    if stage == "vae":
        overrides += ["channels=[32,64]"]  # of which the factor must be the model's
    if stage == "clap":
        overrides += ["audio_s=0.5"]
    if stage == "diffusion":
        with pytest.raises(ValueError, match="train_timesteps=500"):
            run(stage, "tiny", collection, tmp_path / "run", overrides=overrides)
        overrides += ["train_timesteps=500", "beta_start=0.001", "beta_end=0.02"]
    final = run(stage, "tiny", collection, tmp_path / "run", overrides=overrides)
    if stage == "diffusion":
        after = MusicLDMPipeline.from_pretrained(final)
        assert after("tone 3", num_inference_steps=2, audio_length_in_s=0.5).audios.shape == (1, 4000)
        assert after.scheduler.config.beta_end == before.scheduler.config.beta_end
        new, old = after.unet, before.unet
    else:
        part = {"vae": before.vae, "vocoder": before.vocoder, "clap": before.text_encoder}[stage]
        new, old = type(part).from_pretrained(final / "text_encoder" if stage == "clap" else final), part
    change = [(a - b).abs().max() for a, b in zip(new.parameters(), old.parameters(), strict=True)]
    assert 0 < max(change) < 0.1  # two steps further
