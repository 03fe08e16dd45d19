"""From the authors' checkpoint to a model of one's own: it is converted, and every stage trains on from it."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import soundfile
import torch
import yaml
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import ClapConfig, ClapModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

from musicldm import MusicLDMPipeline
from musicldm.cli import main
from musicldm.models.original import config_map
from musicldm.models.original.key_map import clap_names
from musicldm.train import run
from tests.helpers import originals
from vocoder import mel_config

pytestmark = pytest.mark.slow

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
        "unet": UNet2DConditionModel(**config_map.unet_config(config)),
        "vae": AutoencoderKL(**config_map.vae_config(config, 0.75)),
        "vocoder": SpeechT5HifiGan(
            SpeechT5HifiGanConfig(**config_map.vocoder_config(originals.VOCODER_CONFIG, config))
        ),
        "clap": ClapModel(ClapConfig(**config_map.clap_config(CLAP))),
        "scheduler": DDIMScheduler(**config_map.scheduler_config(config)),
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_clap_with_feature_fusion_trains_on_and_conditions(model, tiny_folder, collection, tmp_path):
    """LAION's layout -> `convert` -> the CLAP stage -> a diffusion model that hears it -> music."""
    torch.manual_seed(0)
    config = {key: value for key, value in CLAP.items() if key != "enable_fusion"}
    config["audio_cfg"] = config["audio_cfg"] | {"clip_samples": 4000}  # 0.5 s, so that a clip of 1.28 s is longer
    clap = ClapModel(ClapConfig(**config_map.clap_config(config, fused=True)))
    state = originals.to_original(clap, clap_names(clap.config.audio_config.depths), "module.")
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "clap.pt")
    (tmp_path / "clap.json").write_text(json.dumps(config))
    call = ["convert", tmp_path / "clap.pt", "--clap-config", tmp_path / "clap.json", "--out", tmp_path / "clap"]
    assert main([*map(str, call), "--tokenizer", str(tiny_folder / "tokenizer")]) == 0

    mel = asdict(mel_config(MusicLDMPipeline.from_pretrained(model).vocoder))
    common = [*SHORT, *(f"mel.{name}={value}" for name, value in mel.items()), f"mel.clip_s={CLIP_S}"]
    on = run("clap", "tiny", collection, tmp_path / "on", overrides=[*common, f"init={tmp_path / 'clap'}"])
    trained = ClapModel.from_pretrained(on / "text_encoder")
    before, after = (dict(each.audio_model.named_parameters()) for each in (clap, trained))
    for name in ("mel_conv2d.weight", "fusion_model.local_att.0.weight"):
        change = (after[f"audio_encoder.patch_embed.{name}"] - before[f"audio_encoder.patch_embed.{name}"]).abs().max()
        assert 0 < change < 0.1

    schedule = ["train_timesteps=500", "beta_start=0.001", "beta_end=0.02"]
    overrides = [*common[:-1], *schedule, f"init={model}", f"clap={on}"]
    pipeline = MusicLDMPipeline.from_pretrained(
        run("diffusion", "tiny", collection, tmp_path / "music", overrides=overrides)
    )
    assert pipeline.text_encoder.config.audio_config.enable_fusion
    made = pipeline("tone 3", num_inference_steps=2, audio_length_in_s=1.0, num_waveforms_per_prompt=2)
    assert made.audios.shape == (2, 8000)
    assert made.scores.shape == (1, 2)  # ranked by the fused tower, which hears all of the second
