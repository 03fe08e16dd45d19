"""A stereo model at 24 kHz, from training to files: nothing outside a configuration assumes one channel or 16 kHz."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from diffusers import AutoencoderKL

from musicldm.audio import read_audio, read_recipe, write_audio
from musicldm.generate import Request, Session
from musicldm.kernels import tiled_decoding as tiles
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.train import run
from musicldm.train.diffusion.mixtures import hear_latents
from tests.helpers.commands import succeeds
from vocoder import MelConfig, mel_config, spectrogram_planes

pytestmark = pytest.mark.slow

MEL = MelConfig(
    24_000, n_fft=512, hop_length=120, n_mels=32, f_max=12_000.0, clip_s=0.64, audio_channels=2, bands_per_row=2
)
STAGES = {
    "vae": ["segment_s=0.32", "adversarial_from=2", "texture_weight=0.1"],
    "vocoder": [
        "segment_samples=2400",
        "upsample_rates=[5,4,3,2]",
        "upsample_kernel_sizes=[9,8,7,6]",
        "match_passes=1",
    ],
    "clap": [],
    "diffusion": ["mixup=plain"],
}


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Eight recordings with captions, each with a place between left and right; two are held out, one is mono."""
    folder, rng = tmp_path_factory.mktemp("collection"), np.random.default_rng(0)
    time_s = np.arange(round(MEL.clip_s * 44_100)) / 44_100
    rows = []
    for i in range(8):
        tone = 0.3 * np.sin(2 * np.pi * 220 * 2 ** (i / 3) * time_s) + rng.normal(0, 0.02, len(time_s))
        place = i / 7
        sound = tone if i == 3 else np.stack([(1 - place) * tone, place * tone], axis=1)
        soundfile.write(folder / f"{i}.flac", sound, 44_100)
        text = f"a {'low' if i < 4 else 'high'} tone on the {'left' if place < 0.5 else 'right'}"
        rows.append({"file_name": f"{i}.flac", "text": text, "split": "validation" if i > 5 else "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def runs(collection, tmp_path_factory):
    """Run folders of all four stages, of three steps each."""
    root = tmp_path_factory.mktemp("runs")
    mel = [f"mel.{name}={getattr(MEL, name)}" for name in MEL.__dataclass_fields__]
    short = ["steps=3", "batch_size=2", "save_every=3", "validate_every=3", "validation_batches=1"]
    for stage, overrides in STAGES.items():
        parts = [f"{part}={root / part / 'final'}" for part in ("vae", "vocoder", "clap") if stage == "diffusion"]
        run(stage, "tiny", collection, root / stage, overrides=[*mel, *short, *overrides, *parts])
    return root


@pytest.fixture(scope="module")
def pipeline(runs):
    pipeline = MusicLDMPipeline.from_pretrained(runs / "diffusion" / "final")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def side_level_db(waveform):
    """Of the first channel over the second."""
    left, right = np.square(waveform).mean(axis=1) + 1e-10
    return 10 * np.log10(left / right)


def test_the_parts_are_stereo(runs, pipeline):
    assert mel_config(pipeline.vocoder) == MEL
    vae = AutoencoderKL.from_pretrained(runs / "vae" / "final")
    assert (vae.config.in_channels, vae.config.out_channels) == (6, 6)  # mid, side and balance, two bands in a row
    assert pipeline.sampling_rate == 24_000
    for stage in ("vocoder", "diffusion"):
        heard = [read_audio(path, channels=2)[0] for path in sorted((runs / stage / "examples").rglob("*.wav"))]
        assert heard
        assert all(not np.array_equal(*waveform) for waveform in heard)


def test_generated_files_are_stereo(runs, tmp_path, capsys):
    model = runs / "diffusion" / "final"
    options = ["--model", model, "--seconds", 0.7, "--steps", 3, "--seed", 5, "--candidates", 2]
    (record,) = succeeds(capsys, "generate", "a low tone", *options, "--out", tmp_path / "a")
    (again,) = succeeds(capsys, "generate", "a low tone", *options, "--out", tmp_path / "b", "--format", "flac")
    info = soundfile.info(record["file"])
    assert (info.samplerate, info.channels, info.frames) == (24_000, 2, 16_800)
    recipe = read_recipe(record["file"])
    assert (recipe["sampling_rate"], recipe["seconds"], recipe["seed"]) == (24_000, 0.7, 5)
    (left, right), (left_again, right_again) = (read_audio(one["file"], channels=2)[0] for one in (record, again))
    assert not np.array_equal(left, right)
    assert np.array_equal(left, left_again)
    assert np.array_equal(right, right_again)


def test_the_mono_sum_is_the_vocoded_mid(pipeline):
    torch.manual_seed(0)
    options = {"audio_length_in_s": 0.64, "num_inference_steps": 2, "seed": 0}
    waveform = pipeline(["a tone", "a low tone"], **options, output_type="pt").audios
    assert waveform.shape == (2, 2, 15_360)
    latents = pipeline(["a tone", "a low tone"], **options, output_type="latent").audios
    planes = pipeline.decode_latents(latents)
    assert planes.shape == (2, 3, 128, 32)
    with torch.no_grad():
        mid = pipeline.vocoder(planes[:, 0])[:, :15_360]
    torch.testing.assert_close(waveform.mean(dim=1), mid, atol=1e-4, rtol=0)


def test_long_pieces_are_decoded_in_parts(pipeline, monkeypatch):
    options = {"audio_length_in_s": 1.5, "num_inference_steps": 1, "seed": 0}
    whole = pipeline("a tone", **options).audios
    monkeypatch.setattr(tiles, "LONGEST_WHOLE", 128)
    monkeypatch.setattr(tiles, "MEL_FRAMES", 64)
    assert whole.shape == (1, 2, 36_000)
    np.testing.assert_allclose(pipeline("a tone", **options).audios, whole, atol=1e-4)


def test_recordings_of_any_rate_and_channels_become_latents(pipeline):
    rng = np.random.default_rng(0)
    stereo = rng.normal(0, 0.1, (2, 24_000)).astype(np.float32)
    latents = pipeline.encode_audio(stereo[None], 24_000)
    assert latents.shape == (1, 4, 100, 8)
    mono = pipeline.encode_audio(stereo[0], 24_000)
    torch.testing.assert_close(mono, pipeline.encode_audio(np.stack([stereo[0]] * 2)[None], 24_000))
    assert not torch.allclose(mono, latents)
    assert pipeline.encode_audio(stereo[None], 48_000).shape == (1, 4, 50, 8)


@pytest.mark.parametrize("side", [0, 1])
def test_a_recording_on_one_side_comes_back_there(runs, tmp_path, capsys, side):
    """By the trained vocoder; the autoencoder of three steps knows nothing yet, but stereo comes back of it too."""
    rng = np.random.default_rng(0)
    time_s = np.arange(24_000) / 24_000
    stereo = np.zeros((2, 24_000))
    stereo[side] = 0.3 * np.sin(2 * np.pi * 440 * time_s) + rng.normal(0, 0.01, 24_000)
    write_audio(tmp_path / "a.wav", stereo.T, 24_000)
    options = ["--model", runs / "diffusion" / "final", "--out", tmp_path, "--no-figure"]
    (record,) = succeeds(capsys, "reconstruct", tmp_path / "a.wav", "--mel-only", *options)
    waveform, rate = read_audio(record["audio"], channels=2)
    assert (rate, waveform.shape) == (24_000, (2, 24_000))
    level = side_level_db(waveform)
    assert level > 30 if side == 0 else level < -30
    (record,) = succeeds(capsys, "reconstruct", tmp_path / "a.wav", *options)
    assert read_audio(record["audio"], channels=2)[0].shape == (2, 24_000)


@torch.no_grad()
def test_mixed_latents_are_heard_in_stereo(pipeline):
    latents = torch.randn(2, 4, 64, 8, generator=torch.Generator().manual_seed(0))
    planes, waveform = hear_latents(pipeline.vae, pipeline.vocoder, latents, 15_400)
    assert planes.shape == (2, 3, 128, 32)
    assert waveform.shape == (2, 2, 15_400)
    _, cut = hear_latents(pipeline.vae, pipeline.vocoder, latents, 15_400, as_authors=True)
    assert cut.shape == (2, 2, 15_400)
    assert not cut[..., 13_860:].any()


def test_a_concept_is_learned_from_stereo(runs, collection, tmp_path):
    model = runs / "diffusion" / "final"
    short = ["steps=1", "word_steps=1", "warmup_steps=0", "batch_size=2", "save_every=1", "validate_every=1"]
    made = run(
        "concept", None, collection, tmp_path / "run", overrides=[f"init={model}", "name=<place>", "device=cpu", *short]
    )
    piece = Session(model, "cpu").run(Request("<place>", seconds=0.64, steps=1, seed=0, concept=(f"{made}:1",)))
    assert piece.waveform.shape == (2, 15_360)
    assert piece.sampling_rate == 24_000


def test_planes_do_not_depend_on_the_channels_of_a_mono_recording():
    mono = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)) / 10
    planes = spectrogram_planes(torch.stack([mono, mono], dim=1), MEL)
    torch.testing.assert_close(planes[:, :1], spectrogram_planes(mono, replace(MEL, audio_channels=1)))
    assert not planes[:, 2].any()
