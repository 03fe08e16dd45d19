"""The diffusion trainer on mixtures: what it sees, that it is reproducible, and how it continues."""

import io
import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import SpeechT5HifiGan

from augment.mixup import block_loudness
from musicldm.config import DiffusionConfig, load_config
from musicldm.data.analysis import ANALYSIS_FILE, FROM_SCORE, analyse_collection
from musicldm.data.items import Item
from musicldm.data.mixup import MixupSettings
from musicldm.data.prepare.index import IndexWriter
from musicldm.data.shards import INDEX_FILE, ShardWriter
from musicldm.models.clap import clap_feature_extractor, embed_audio
from musicldm.train import run
from musicldm.train.diffusion import mixtures
from tests.helpers.tiny import MEL
from vocoder import make_generator

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[2] / "configs" / "tiny" / "diffusion.yaml"
LONGER = replace(MEL, clip_s=1.28)  # holds five beats at 240 BPM
RATE = LONGER.sample_rate


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """Twelve recordings of 2.4 s at 240 BPM in 3/4, a tone on every beat, analysed; two are held out."""
    folder = tmp_path_factory.mktemp("collection")
    rng = np.random.default_rng(0)
    time_s = np.arange(round(2.4 * RATE)) / RATE
    metadata, analysis = [], []
    for i in range(12):
        tone = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 2000) * time_s) * np.exp(-6 * (4 * time_s % 1))
        name, beats = f"{i:02d}.wav", np.arange(10) * 0.25
        soundfile.write(folder / name, tone, RATE)
        split = "validation" if i >= 10 else "train"
        metadata.append({"file_name": name, "text": "a low cello, slow", "split": split})
        analysis.append(
            {
                "file_name": name,
                "bytes": (folder / name).stat().st_size,
                "digest": name,
                "group": name,
                "duration_s": 2.4,
                "tracker": "madmom",
                "beats_s": beats.tolist(),
                "downbeats_s": beats[::3].tolist(),
                "beats_per_bar": 3,
                "tempo_bpm": 240.0,
                "confidence": 0.9,
                "key": None,
                "loudness_lufs": block_loudness(tone, RATE).tolist(),
            }
        )
    for file, rows in (("metadata.jsonl", metadata), (ANALYSIS_FILE, analysis)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def parts(tiny_parts, tmp_path_factory) -> list[str]:
    """Overrides that name a vocoder, VAE and CLAP."""
    root = tmp_path_factory.mktemp("parts")
    tiny_parts["vae"].save_pretrained(root / "vae")
    torch.manual_seed(0)
    make_generator(LONGER, 16, (5, 4, 4), (9, 8, 8)).save_pretrained(root / "vocoder")
    for name in ("text_encoder", "tokenizer", "feature_extractor"):
        tiny_parts[name].save_pretrained(root / "clap" / name)
    front_end = [f"mel.{key}={getattr(LONGER, key)}" for key in vars(LONGER)]
    return [f"{name}={root / name}" for name in ("vae", "vocoder", "clap")] + front_end


def train(collection, parts, out, *overrides, resume=False) -> dict[str, torch.Tensor]:
    """Weights of the UNet after a few steps."""
    settings = [*parts, "steps=6", "save_every=3", "log_every=6", "validate_every=6", "validation_batches=1"]
    final = run("diffusion", CONFIG, collection, out, overrides=[*settings, *overrides], resume=resume)
    return load_file(final / "unet" / "diffusion_pytorch_model.safetensors")


def differ(one, other) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in one)


def differ_arrays(one: Path, other: Path, name: str) -> bool:
    return not np.array_equal(np.load(one / f"{name}.npy"), np.load(other / f"{name}.npy"))


@pytest.fixture(scope="module")
def plain_weights(collection, parts, tmp_path_factory):
    return train(collection, parts, tmp_path_factory.mktemp("run") / "none", "mixup=none")


@pytest.mark.parametrize("kind", ["plain", "audio", "latent"])
def test_every_kind_trains_and_repeats(collection, parts, plain_weights, tmp_path, kind):
    once = train(collection, parts, tmp_path / "a", f"mixup={kind}", "mixup_fresh=true")
    again = train(collection, parts, tmp_path / "b", f"mixup={kind}", "mixup_fresh=true")
    assert not differ(once, again)
    assert differ(once, plain_weights)
    folder = tmp_path / "a" / "cache" / f"mixup-{kind}" / "mixtures-1"
    # six steps of eight go beyond two epochs of twenty
    assert not differ_arrays(folder, folder.with_name("mixtures-2"), "made")
    assert differ_arrays(folder, folder.with_name("mixtures-2"), "moments")
    made = np.load(folder / "made.npy")
    assert made.tolist() == [2] * 20  # two clips of each recording; all found a partner, all have captions
    norms = np.linalg.norm(np.load(folder / "audio.npy"), axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-4)


def in_shards(collection: Path, shards: Path) -> Path:
    """``collection`` as `musicldm prepare` would leave it in the folder ``shards``."""
    analysed = (collection / ANALYSIS_FILE).read_text().splitlines()
    with ShardWriter(shards / "shards", 50_000) as writer, IndexWriter(shards / INDEX_FILE) as index:
        for line, known in zip(analysed, (collection / "metadata.jsonl").read_text().splitlines(), strict=True):
            row = json.loads(line) | json.loads(known)
            samples, rate = soundfile.read(collection / row["file_name"], dtype="int16")
            flac = io.BytesIO()
            soundfile.write(flac, samples, rate, "PCM_16", format="FLAC")
            shard, key = writer.next_name(len(flac.getvalue()))
            writer.write(key, {"flac": flac.getvalue()})
            row |= {"shard": shard, "member": f"{key}.flac", "texts": [row["text"]], "loudness_lufs": None}
            index.write({"part": 0} | row | {"block_loudness_lufs": json.loads(line)["loudness_lufs"]})
    return shards


class Opened:
    """Paths of the files that are opened while ``names`` is a list; what is added to Python cannot be taken off."""

    def __init__(self):
        self.names: list[str] | None = None
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple) -> None:
        if self.names is not None and event == "open" and isinstance(arguments[0], str | os.PathLike):
            self.names.append(os.fspath(arguments[0]))


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened()


@pytest.fixture(scope="module")
def indexing(parts, tmp_path_factory) -> list[str]:
    """Overrides for a run with mixtures and an index, by a CLAP that hears 2.4 s, enough for an index."""
    folder = tmp_path_factory.mktemp("clap")
    source = Path(next(part for part in parts if part.startswith("clap=")).removeprefix("clap="))
    shutil.copytree(source, folder, dirs_exist_ok=True)
    front_end = clap_feature_extractor(16_000, 2.4, hop_length=640, n_mels=16, f_max=8000.0)
    front_end.save_pretrained(folder / "feature_extractor")
    return [f"clap={folder}", "mixup=audio", "index=true", "steps=1", "save_every=1"]


def test_a_run_reads_the_metadata_once(collection, parts, indexing, tmp_path, opened):
    """For clips, mixtures, novelty index and card alike."""
    folder = tmp_path / "collection"
    shutil.copytree(collection, folder)
    opened.names = []
    train(folder, parts, tmp_path / "run", *indexing)
    names, opened.names = opened.names, None
    for name in ("metadata.jsonl", ANALYSIS_FILE):
        assert names.count(str(folder / name)) == 1
    final = tmp_path / "run" / "final"
    assert (final / "novelty_index" / "index.json").is_file()
    assert "clips of 10 recordings" in (final / "README.md").read_text()


def test_a_run_reads_each_column_of_an_index_once(collection, parts, indexing, tmp_path, monkeypatch):
    columns = Counter()

    def spy(self, *arguments, columns_read=columns, original=pq.ParquetFile.iter_batches, **options):
        columns_read.update(options["columns"])
        return original(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    shards = in_shards(collection, tmp_path / "shards")
    train(shards, parts, tmp_path / "run", *indexing)
    assert {"texts", "split", "licence", "beats_s", "block_loudness_lufs"} <= columns.keys()
    assert {name for name, count in columns.items() if count > 1} == {"shard", "member"}  # where a recording is


def test_shards_train_like_the_folder_that_they_hold(collection, parts, tmp_path):
    """The same recordings and analysis, as `musicldm prepare` leaves them, give the same weights."""
    shards = in_shards(collection, tmp_path / "shards")
    assert len(list((shards / "shards").glob("*.tar"))) > 1
    for kind in ("none", "latent"):
        expected = train(collection, parts, tmp_path / f"{kind}-folder", f"mixup={kind}", "steps=3")
        assert not differ(train(shards, parts, tmp_path / f"{kind}-shards", f"mixup={kind}", "steps=3"), expected)


@pytest.mark.parametrize(("precision", "tolerance"), [("no", 0.1), ("bf16", 0.5)])
def test_the_condition_of_a_latent_mixture_is_what_it_sounds_like(
    collection, parts, tiny_parts, tmp_path, monkeypatch, precision, tolerance
):
    """The stored target is drawn once; decoded, vocoded and heard by CLAP it gives the stored condition."""
    monkeypatch.setattr(mixtures, "computes_bfloat16", lambda: True)
    train(collection, parts, tmp_path / "run", "mixup=latent", "steps=1", f"mixed_precision={precision}")
    for part, lowered in (("vae", "decoder.conv_in.weight"), ("vocoder", "resblocks.3.convs1.0.weight")):
        saved = load_file(next((tmp_path / "run" / "final" / part).glob("*.safetensors")))
        assert saved[lowered].dtype == torch.float32
        assert (saved[lowered] != saved[lowered].bfloat16()).any()
    folder = tmp_path / "run" / "cache" / "mixup-latent" / "mixtures-0"
    latents, log_variance = torch.from_numpy(np.load(folder / "moments.npy")).float().chunk(2, dim=1)
    assert (log_variance == mixtures.CERTAIN).all()
    vocoder = SpeechT5HifiGan.from_pretrained(next(part for part in parts if "vocoder=" in part).split("=")[1])
    _, waveform = mixtures.hear_latents(tiny_parts["vae"], vocoder.eval(), latents, LONGER.clip_samples)
    heard = embed_audio(tiny_parts["text_encoder"], tiny_parts["feature_extractor"], waveform, RATE)
    stored = torch.from_numpy(np.load(folder / "audio.npy"))
    spread = (stored - stored.mean(dim=0)).norm(dim=1).mean()
    assert (heard - stored).norm(dim=1).max() < tolerance * spread  # the targets are kept in 16 bits
    lowered = mixtures.sixteen_bits(precision, torch.device("cpu")) is not None
    assert lowered == ((heard - stored).norm(dim=1).max() > 0.02 * spread)


def test_mixtures_made_ahead_are_continued_and_not_made_again(collection, parts, tmp_path, monkeypatch):
    """A run stopped while it made them ends like a straight one; a resumed one finds them there."""
    straight = train(collection, parts, tmp_path / "straight", "mixup=audio")
    made = []
    original = mixtures.Maker.moments_and_condition

    def counted(self, dataset, items, drawn):
        if len(made) == stop_after:
            raise KeyboardInterrupt
        made.append(len(items))
        return original(self, dataset, items, drawn)

    monkeypatch.setattr(mixtures.Maker, "moments_and_condition", counted)
    monkeypatch.setattr("musicldm.train.diffusion.cache.BLOCK", 8)
    stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        train(collection, parts, tmp_path / "run", "mixup=audio")
    stop_after = None
    resumed = train(collection, parts, tmp_path / "run", "mixup=audio", resume=True)
    assert made == [8, 8, 4]
    assert not differ(straight, resumed)
    shutil.rmtree(tmp_path / "run" / "final")
    train(collection, parts, tmp_path / "run", "mixup=audio", resume=True)
    assert made == [8, 8, 4]


def test_items_are_mixed_with_the_given_probability(collection, parts, tmp_path):
    """An item is a mixture or not, whichever epoch it belongs to; without a partner it is the clip itself."""
    from musicldm.train.diffusion.cache import Cache
    from musicldm.train.diffusion.latents import CachedLatents

    config = load_config(DiffusionConfig, CONFIG, ["mixup=audio", "mixup_probability=0.3"])
    n = 400
    zeros, ones = np.zeros((n, 2, 1, 1), np.float16), np.ones((n, 2, 1, 1), np.float16)
    ones[:, 1] = zeros[:, 1] = -30  # log variance
    cache = Cache(zeros, np.zeros((n, 3), np.float32), np.empty((0, 3), np.float32), np.zeros(n + 1, int))

    class Rounds(mixtures.MixtureRounds):
        def __init__(self, dataset):
            self.dataset = dataset

        def of(self, epoch):
            made = np.arange(n) % 2  # every other clip has a partner
            return mixtures.Mixtures(ones, np.ones((n, 3), np.float32), np.ones((n, 3), np.float32), made)

    class Dataset:
        settings = MixupSettings(per_clip=1)

    examples = [CachedLatents(cache, list(range(n)), config, Rounds(Dataset()))[Item(0, i)] for i in range(n)]
    mixed = np.array([float(example.latents.mean()) > 0.5 for example in examples])
    assert not mixed[::2].any()
    assert 0.2 < mixed[1::2].mean() < 0.4
    heard = np.array([bool(example.embedding.any()) for example in examples])
    np.testing.assert_array_equal(heard, mixed)


def test_a_collection_without_pairs_is_refused(collection, parts, tmp_path):
    """Twelve versions of one piece."""
    folder = tmp_path / "collection"
    shutil.copytree(collection, folder)
    for file in (folder / "metadata.jsonl", folder / ANALYSIS_FILE):
        rows = [json.loads(line) | {"piece_id": "x", "group": "x"} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="none of the 20 clips has a partner"):
        train(folder, parts, tmp_path / "run", "mixup=audio")


def test_fresh_mixtures_need_one_process(collection, parts, tmp_path):
    with pytest.raises(ValueError, match="mixup_fresh makes new mixtures in the one process that trains"):
        train(collection, parts, tmp_path / "run", "mixup=audio", "mixup_fresh=true", "workers=1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mixup=beats", "mixup must be one of none, plain, audio, latent, got 'beats'"),
        ("mixup_mode=authors", "mixup_mode must be one of paper, synchronous"),
        ("mixup_stretch=0.2", "mixup_stretch must be from 0 to 0.04"),
        ("mixup_probability=2", "mixup_probability is a share"),
    ],
)
def test_wrong_settings_are_refused(override, message):
    with pytest.raises(ValueError, match=message):
        load_config(DiffusionConfig, CONFIG, [override])


def test_runs_share_a_cache_and_mixtures_of_a_seed_of_their_own(collection, parts, tmp_path):
    """Another seed trains on the same mixtures, which it does not make again, in another order."""
    shared = [f"cache={tmp_path / 'kept'}", "mixup=audio", "mixup_seed=7", "steps=2"]
    first = train(collection, parts, tmp_path / "a", *shared, "seed=0")
    stamps = [path.stat().st_mtime_ns for path in sorted((tmp_path / "kept").rglob("*.npy"))]
    second = train(collection, parts, tmp_path / "b", *shared, "seed=1")
    assert stamps == [path.stat().st_mtime_ns for path in sorted((tmp_path / "kept").rglob("*.npy"))]
    assert len(stamps) == 10  # moments, audio and text, text and made of mixtures, and what is filled of each
    assert not (tmp_path / "b" / "cache").exists()
    assert differ(first, second)
    assert not differ(train(collection, parts, tmp_path / "own", *shared[1:], "seed=0"), first)


def test_beats_of_the_score_are_never_tracked_again(collection, tmp_path):
    folder = tmp_path / "scores"
    shutil.copytree(collection, folder)
    rows = [json.loads(line) for line in (folder / ANALYSIS_FILE).read_text().splitlines()]
    known = [row | {"tracker": FROM_SCORE, "tempo_bpm": 77.0} for row in rows]
    (folder / ANALYSIS_FILE).write_text("".join(json.dumps(row) + "\n" for row in known))
    for tracker in ("madmom", "librosa"):
        assert {one.recording.tempo_bpm for one in analyse_collection(folder, tracker)} == {77.0}
