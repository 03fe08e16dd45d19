"""Collections: decoding, copies, captions, shards, and that a run that was killed ends like a straight one."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr
import torch
import webdataset

from musicldm.cli import main
from musicldm.config import VAEConfig
from musicldm.data.analysis import analyse_collection
from musicldm.data.clips import SegmentDataset, read_clip
from musicldm.data.collection import load_clips
from musicldm.data.items import batch_items
from musicldm.data.prepare import Job, Measure, PrepareConfig, Prepared, prepare
from musicldm.data.prepare.captions import metadata_of, write_caption
from musicldm.data.prepare.duplicates import find_duplicates, fingerprint, group_of_each
from musicldm.data.prepare.measure import decode, find_key
from musicldm.data.shards import open_recording, read_recording
from musicldm.train.card import training_card
from tests.helpers.commands import fails
from tests.helpers.disk import full_disk
from tests.helpers.rhythm import needs_madmom

pytestmark = pytest.mark.slow

RATE = 44_100


def music(seed, seconds=7.0, rate=RATE, bpm=None):
    """A melody with overtones over a kick on each beat, of its own for every seed: (L,), about -0.7 to 0.7."""
    rng = np.random.default_rng(seed)
    beat_s = 60 / (bpm or rng.uniform(90, 150))
    waveform = rng.normal(0, 1e-3, round(seconds * rate))
    t = np.arange(round(0.4 * rate)) / rate
    for k in range(int((seconds - 0.5) / (beat_s / 2))):
        at = round(k * beat_s / 2 * rate)
        hz = 220 * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 11, 12, 14]) / 12)
        note = sum(np.sin(2 * np.pi * n * hz * t) / n for n in (1, 2, 3, 4)) * np.exp(-6 * t)
        waveform[at : at + len(t)] += 0.15 * note
        if k % 2 == 0:
            kick = np.sin(2 * np.pi * (50 * t - 0.4 * np.exp(-t / 0.02))) * np.exp(-t / 0.04)
            waveform[at : at + len(t)] += (0.5 if k % 8 else 0.7) * kick
    return (0.7 * waveform / np.abs(waveform).max()).astype(np.float32)


def write_m4a(path, waveform):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        frame.rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


GOOD = ("a.wav", "b.flac", "c.mp3", "d.ogg", "e.m4a", "sub/f.wav")
COPIES = {"quiet.flac": "a.wav", "sub/later.mp3": "b.flac", "sub/same.wav": "sub/f.wav"}
BAD = {
    "empty.wav": "is empty",
    "eight.wav": "8 channels",
    "loop.wav": "symbolic links",
    "nan.wav": "not finite at 0.5",
    "nothing.wav": "0.00 s of sound",
    "slow.wav": "rate of 1000 Hz",
    "text.mp3": "cannot be decoded",
    "truncated.flac": "",
    "truncated.wav": "ends after",
    "x.wav": "is a folder",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six recordings in five formats, three copies of them, and ten files that cannot be used."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "sub").mkdir()
    waves = {name: music(seed) for seed, name in enumerate(GOOD)}
    for name, waveform in waves.items():
        if name.endswith(".m4a"):
            write_m4a(folder / name, waveform)
        else:
            channels = np.stack([waveform, 0.8 * waveform], axis=1) if name == "a.wav" else waveform
            soundfile.write(folder / name, channels, RATE)
    soundfile.write(folder / "quiet.flac", 0.2 * soxr.resample(waves["a.wav"], RATE, 22_050), 22_050)
    soundfile.write(folder / "sub" / "later.mp3", waves["b.flac"][round(1.73 * RATE) :], RATE)
    (folder / "sub" / "same.wav").write_bytes((folder / "sub" / "f.wav").read_bytes())
    (folder / "a.txt").write_text("A melody over a kick.\n")
    (folder / "b.json").write_text(json.dumps({"caption": "Another one", "tags": ["electronic"]}))
    rows = [{"file_name": "c.mp3", "texts": ["one", "two"]}, {"file_name": "d.ogg", "genre": "folk"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    (folder / "empty.wav").touch()
    soundfile.write(folder / "eight.wav", np.zeros((RATE, 8)), RATE)
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    nan = waves["a.wav"].copy()
    nan[RATE // 2] = np.nan
    soundfile.write(folder / "nan.wav", nan, RATE, subtype="FLOAT")
    soundfile.write(folder / "nothing.wav", np.zeros(0), RATE)
    soundfile.write(folder / "slow.wav", np.zeros(5000), 1000)
    (folder / "text.mp3").write_text("not music at all\n" * 100)
    for suffix, source in ((".flac", "b.flac"), (".wav", "sub/f.wav")):
        content = (folder / source).read_bytes()
        (folder / f"truncated{suffix}").write_bytes(content[: len(content) // 2])
    (folder / "x.wav").mkdir()
    return folder


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    """What one process makes of it."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    return out, prepare(folder, out, PrepareConfig(shard_bytes=400_000))


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def index_of(out: Path) -> dict[str, dict]:
    return {row["file_name"]: row for row in pq.read_table(out / "index.parquet").to_pylist()}


@needs_madmom
def test_good_files_are_listed_and_bad_ones_named(folder, prepared):
    out, made = prepared
    rows = index_of(out)
    assert list(rows) == sorted([*GOOD, *COPIES])
    assert {name: row["duplicate_of"] for name, row in rows.items() if row["duplicate_of"]} == COPIES
    assert made == Prepared(6, 3, len(BAD), pytest.approx(42, abs=0.5))
    errors = {row["file_name"]: row["error"] for row in map(json.loads, (out / "errors.jsonl").open())}
    assert errors.keys() == BAD.keys()
    for name, reason in BAD.items():
        assert reason in errors[name], (name, errors[name])
    for name in GOOD:
        assert rows[name]["duration_s"] == pytest.approx(7, abs=0.1)
        assert rows[name]["beats_per_bar"] in (3, 4)
        assert rows[name]["shard"] is not None
    assert rows["a.wav"]["source_channels"] == 2
    assert rows["quiet.flac"]["source_sample_rate_hz"] == 22_050
    gain_db = 20 * np.log10(0.2 / 0.9)  # against the mean of both channels
    assert rows["quiet.flac"]["loudness_lufs"] - rows["a.wav"]["loudness_lufs"] == pytest.approx(gain_db, abs=0.1)
    assert len({row["shard"] for row in rows.values()} - {None}) > 1


@needs_madmom
def test_captions_are_kept_and_missing_ones_written(prepared):
    rows = index_of(prepared[0])
    assert rows["a.wav"]["texts"] == ["A melody over a kick."]
    assert rows["b.flac"]["texts"] == ["Another one"]
    assert rows["b.flac"]["tags"] == ["electronic"]
    assert rows["c.mp3"]["texts"] == ["one", "two"]
    (written,) = rows["d.ogg"]["texts"]
    assert "folk" in written
    assert len(rows["e.m4a"]["texts"]) == 1


def test_stereo_is_kept_when_asked_for(tmp_path, capsys):
    """As it is, of a mono file twice the same; measured is the mean. Folders of mono are marked as they were."""
    folder, out = tmp_path / "folder", tmp_path / "out"
    folder.mkdir()
    left, right = music(1, seconds=3.0), 0.5 * music(2, seconds=3.0)
    soundfile.write(folder / "a.wav", np.stack([left, right], axis=1), RATE)
    soundfile.write(folder / "b.wav", music(3, seconds=3.0), RATE)
    options = ["prepare", str(folder), "--sample-rate", str(RATE), "--tracker", "librosa", "--workers", "1"]
    assert main([*options, "--channels", "2", "--out", str(out)]) == 0
    rows = index_of(out)
    assert [row["source_channels"] for row in rows.values()] == [2, 1]
    stereo, twice = (read_recording(clip.path, RATE, channels=2) for clip in load_clips(out, 3.0))
    np.testing.assert_allclose(stereo, [left, right], atol=2**-15)
    np.testing.assert_array_equal(twice[0], twice[1])
    config = PrepareConfig(RATE, "librosa")
    prepare(folder, tmp_path / "mono", config)
    of_mono = index_of(tmp_path / "mono")
    for name, row in rows.items():
        assert row["loudness_lufs"] == pytest.approx(of_mono[name]["loudness_lufs"], abs=0.05)
    assert "channels" not in json.loads((tmp_path / "mono" / "prepared.json").read_text())["settings"]
    assert prepare(folder, out, replace(config, channels=2)).recordings == 2  # it is there already
    with pytest.raises(ValueError, match="with other settings"):
        prepare(folder, out, config)
    with pytest.raises(ValueError, match="channels must be 1 or 2, got 3"):
        replace(config, channels=3)


@needs_madmom
def test_workers_and_kills_change_nothing(folder, prepared, tmp_path):
    """Killed twice while two processes work, then continued by one: every file is equal, byte for byte."""
    config, out = PrepareConfig(shard_bytes=400_000), tmp_path / "out"
    script = tmp_path / "run.py"
    script.write_text(
        "from pathlib import Path\nfrom musicldm.data.prepare import PrepareConfig, prepare\n"
        f"if __name__ == '__main__':\n    prepare(Path({str(folder)!r}), Path({str(out)!r}), {config!r}, 2)\n"
    )
    for least in (4, 13):
        process = subprocess.Popen([sys.executable, script], start_new_session=True, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while len(list((out / ".work").glob("*.json"))) < least:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (out / "index.parquet").exists()
    assert prepare(folder, out, config) == prepared[1]
    assert contents(out) == contents(prepared[0])


@needs_madmom
def test_shards_are_read_like_a_folder(prepared):
    out, _ = prepared
    clips = load_clips(out, 2.0)
    assert len(clips) == 6 * 4  # 7 s: the last one from half a clip on
    rows = index_of(out)
    first = clips[0]
    whole = read_recording(first.path, 16_000)
    assert len(whole) == pytest.approx(rows["a.wav"]["duration_s"] * 16_000, abs=1)
    second = read_clip(clips[1], 16_000, 32_000)
    np.testing.assert_allclose(second, whole[32_000:64_000], atol=1e-6)
    analysed = {one.path: one for one in analyse_collection(out)}
    assert analysed[first.path].recording.beats_s.tolist() == rows["a.wav"]["beats_s"]
    with pytest.raises(FileNotFoundError, match="no recording at"):
        open_recording(first.path.with_name("99999999.flac"))
    assert not (out / "analysis.jsonl").exists()
    tars = sorted((out / "shards").iterdir())
    samples = [sample for tar in tars for sample in webdataset.WebDataset(str(tar), shardshuffle=False)]
    assert [json.loads(sample["json"])["file_name"] for sample in samples] == [
        name for name, row in rows.items() if row["shard"]
    ]
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(samples[0]["flac"]), dtype="float32")[0], whole)


@needs_madmom
@pytest.mark.parametrize("workers", [0, 2])
def test_every_clip_comes_once_in_an_epoch(prepared, workers):
    """In the order of the seed, whatever the number of processes that read."""
    clips = load_clips(prepared[0], 2.0)
    dataset = SegmentDataset(clips, 16_000, 16_000, seed=0, random_start=False)
    items = [batch_items(len(dataset), 4, 0, step) for step in range(len(dataset) // 4)]
    assert sorted(item.index for batch in items for item in batch) == list(range(24))
    read = torch.cat(list(torch.utils.data.DataLoader(dataset, batch_sampler=items, num_workers=workers)))
    expected = torch.stack([dataset[item] for batch in items for item in batch])
    assert torch.equal(read, expected)
    assert len({tuple(row[:200].tolist()) for row in read}) == 24


@needs_madmom
def test_a_finished_folder_is_left_alone_unless_it_would_differ(folder, prepared):
    out, made = prepared
    before = contents(out)
    assert prepare(folder, out, PrepareConfig(shard_bytes=400_000)) == made
    assert contents(out) == before
    with pytest.raises(ValueError, match="other files or with other settings"):
        prepare(folder, out, PrepareConfig(shard_bytes=400_000, captions="none"))
    (folder / "e.txt").write_text("A caption that came later.")
    with pytest.raises(ValueError, match="other files or with other settings"):
        prepare(folder, out, PrepareConfig(shard_bytes=400_000))
    (folder / "e.txt").unlink()


@needs_madmom
def test_long_recordings_become_parts_that_stay_together(tmp_path):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "long.flac", music(1, 7.0), RATE)
    soundfile.write(tmp_path / "in" / "other.flac", music(2, 3.5), RATE)
    made = prepare(tmp_path / "in", tmp_path / "out", PrepareConfig(captions="none", part_s=3.0))
    rows = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    assert [(row["file_name"], row["part"], row["duration_s"]) for row in rows] == [
        ("long.flac", 0, 3.0),
        ("long.flac", 1, 3.0),
        ("long.flac", 2, 1.0),
        ("other.flac", 0, 3.0),
        ("other.flac", 1, 0.5),
    ]
    assert made.recordings == 5
    assert {row["group"] for row in rows} == {"long.flac", "other.flac"}
    assert len({(row["group"], row["split"]) for row in rows}) == 2
    assert all(row["texts"] == [] for row in rows)
    stored = np.concatenate([read_recording(clip.path, 16_000) for clip in load_clips(tmp_path / "out", 3.0)[:3]])
    decoded = np.concatenate(list(decode(tmp_path / "in" / "long.flac", 16_000)))
    np.testing.assert_allclose(stored, decoded, atol=1e-4)


def test_what_cannot_be_prepared_is_refused(tmp_path, capsys):
    assert "no folder of recordings" in fails(capsys, "prepare", tmp_path / "nowhere", "--out", tmp_path / "out")
    (tmp_path / "in").mkdir()
    assert "no recordings in" in fails(capsys, "prepare", tmp_path / "in", "--out", tmp_path / "out")
    soundfile.write(tmp_path / "in" / "a.wav", music(0, 1.0), RATE)
    run = ("prepare", tmp_path / "in", "--out", tmp_path / "out")
    assert "MODULE:FUNCTION" in fails(capsys, *run, "--caption-function", "nowhere:to_be_found")
    assert "from 8000 to 48000 Hz, got 100" in fails(capsys, *run, "--sample-rate", "100")
    (tmp_path / "in" / "metadata.jsonl").write_text("{")
    assert "line 1, is not JSON" in fails(capsys, *run)
    assert not (tmp_path / "out").exists()


def speak(row):
    """A caption function: says what it was given."""
    assert soundfile.info(row["path"]).duration == pytest.approx(row["duration_s"], abs=0.01)
    return "not a list" if row["file_name"] == "spoken.flac" else [f"{row['file_name']} of {row['tempo_bpm']:.0f} BPM"]


def test_odd_names_and_places(tmp_path):
    """The result inside the folder, a name that is no text, metadata of what is not there or no text."""
    soundfile.write(tmp_path / "a.flac", music(0, 3.0), RATE)
    soundfile.write(tmp_path / "b.flac", music(1, 1.0), RATE)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")).write_bytes((tmp_path / "b.flac").read_bytes())
    (tmp_path / "b.json").write_text('{"text": ["a"]}')
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.wav", "text": "was here"}\n')
    out = tmp_path / "prepared"
    config = PrepareConfig(tracker="librosa", caption_function="tests.data.test_prepare:speak")
    (out / ".work").mkdir(parents=True)
    (out / ".work" / "settings.json").write_text(json.dumps(config.settings()))  # of a run that was stopped
    soundfile.write(out / ".work" / "left.flac", music(2, 1.0), RATE)
    (out / ".work" / "settings.json").write_text(json.dumps(config.settings()))
    assert prepare(tmp_path, out, config)[:3] == (1, 0, 3)
    errors = {row["file_name"]: row["error"] for row in map(json.loads, (out / "errors.jsonl").open())}
    assert errors == {
        "b.flac": "its captions and tags must be strings, got ['a']",
        "caf\udce9.wav": "has a name that is not UTF-8",
        "gone.wav": "is named in the metadata, and not there",
    }
    assert index_of(out)["a.flac"]["texts"][0].startswith("a.flac of ")


def test_licences_and_splits_come_with_the_recordings(tmp_path):
    """To the card of a run; an index from before there were licences is read too."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    rows = [
        {"file_name": "a.flac", "licence": "CC0", "piece_id": "one"},
        {"file_name": "b.flac", "license": "CC BY 4.0", "piece_id": "one", "split": "test"},
        {"file_name": "c.flac", "split": "dev"},
    ]
    for i, row in enumerate(rows):
        soundfile.write(folder / row["file_name"], music(i, 3.0), RATE)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(folder, out, PrepareConfig(tracker="librosa"))
    index = index_of(out)
    assert [index[name]["licence"] for name in sorted(index)] == ["CC0", "CC BY 4.0", None]
    assert [index[name]["split"] for name in sorted(index)] == ["test", "test", "validation"]  # one for a piece
    clips = load_clips(out, 3.0)
    card = training_card(VAEConfig(), clips, out, tmp_path, {})
    assert "| CC0 | 1 |\n| CC BY 4.0 | 1 |\n| not stated | 1 |" in card
    pq.write_table(pq.read_table(out / "index.parquet").drop_columns("licence"), out / "index.parquet")
    assert load_clips(out, 3.0) == clips
    assert "licences are not recorded" in training_card(VAEConfig(), clips, out, tmp_path, {})
    (folder / "metadata.jsonl").write_text('{"file_name": "a.flac", "split": "holdout"}')
    with pytest.raises(ValueError, match=r"split of a\.flac is 'holdout'"):
        prepare(folder, tmp_path / "other", PrepareConfig(tracker="librosa"))


def test_a_machine_that_does_not_see_the_files_says_so(tmp_path):
    measure = Measure(tmp_path / "recordings", tmp_path, PrepareConfig(tracker="librosa"))
    with pytest.raises(FileNotFoundError, match=f"does not see {tmp_path / 'recordings'}: all machines of a cluster"):
        measure(Job("a.wav", tmp_path / "a.json"))
    assert not (tmp_path / "a.json").exists()


def test_a_full_disk_is_no_fault_of_the_file(tmp_path):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "spoken.flac", music(0, 3.0), RATE)
    config = PrepareConfig(tracker="librosa")
    with full_disk(20_000), pytest.raises(OSError, match="File too large"):
        prepare(tmp_path / "in", tmp_path / "out", config)
    assert prepare(tmp_path / "in", tmp_path / "out", config)[:3] == (1, 0, 0)
    speaking = PrepareConfig(tracker="librosa", caption_function="tests.data.test_prepare:speak")
    with pytest.raises(ValueError, match=r"a list of strings, got 'not a list' for spoken\.flac"):
        prepare(tmp_path / "in", tmp_path / "spoken", speaking)


def test_copies_are_found_at_any_gain_rate_and_start():
    prints, expected = [], []
    for seed in range(12):
        original = music(seed, 8.0, 16_000)
        prints.append(fingerprint(original, 16_000))
        copy = 0.1 * soxr.resample(soxr.resample(original, 16_000, 11_025), 11_025, 16_000)
        copy = copy[round((0.1 + 0.213 * seed) * 16_000) :]
        if seed % 2:
            expected.append((len(prints) - 1, len(prints)))
            prints.append(fingerprint(copy.astype(np.float32), 16_000))
    assert find_duplicates(prints) == expected
    assert find_duplicates([fingerprint(np.zeros(80_000), 16_000)] * 2) == []
    assert find_duplicates([]) == []
    assert group_of_each(5, [(1, 3), (3, 4)]) == [0, 1, 2, 1, 1]


def test_fingerprints_of_long_recordings_come_in_pieces():
    long = np.tile(music(3, 10.0, 8000), 9)  # 90 s, more than is looked at at once
    words = fingerprint(long, 8000)
    assert len(words) == pytest.approx((90 - 0.37) / 0.032, abs=2)
    np.testing.assert_array_equal(words[1500:], fingerprint(long[1500 * 256 :], 8000)[: len(words) - 1500])


def test_keys_of_known_chords():
    t = np.arange(4 * 16_000) / 16_000
    for tonic, third, name in ((60, 4, "C major"), (69, 3, "A minor"), (66, 4, "Gb major")):
        scale = (0, 2, third, 5, 7, 8 if third == 3 else 9, 11 if third == 4 else 10)
        weights = (3, 1, 2, 1, 2, 1, 1)
        waveform = sum(
            weight * np.sin(2 * np.pi * 440 * 2 ** ((tonic + step - 69) / 12) * t)
            for step, weight in zip(scale, weights, strict=True)
        )
        assert find_key(waveform / 20, 16_000)[0] == name
    assert find_key(np.zeros(16_000), 16_000) == (None, 0.0)


def test_captions_say_what_is_sure_and_nothing_else(tmp_path):
    row = {"digest": "x", "tags": ["jazz"], "tempo_bpm": 90.2, "confidence": 0.8, "beats_per_bar": 3,
           "key": "F major", "key_clarity": 0.2}  # fmt: skip
    text = write_caption(row)
    assert all(word in text for word in ("jazz", "in 3/4", "90 BPM", "F major"))
    assert write_caption(row) == text
    unsure = write_caption(row | {"confidence": 0.1, "key_clarity": 0.0})
    assert not any(word in unsure for word in ("BPM", "3/4", "F major"))
    assert metadata_of(tmp_path / "a.wav", {"tags": "rock, pop", "text": " x "})["tags"] == ["rock", "pop"]
    (tmp_path / "a.json").write_text("[1")
    with pytest.raises(ValueError, match=r"a\.json beside it is not a JSON object"):
        metadata_of(tmp_path / "a.wav", None)


@pytest.mark.parametrize("name", ["shards/mine.wav", "index.parquet", "errors.jsonl", ".work/mine", "prepared.json"])
def test_files_of_others_in_the_folder_are_kept(name, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    soundfile.write(folder / "a.wav", music(1, 1.0), RATE)
    kept = folder / name
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(FileExistsError, match="--out"):
        prepare(folder, folder, PrepareConfig(tracker="librosa"))
    assert kept.read_text() == "mine"
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted([kept, folder / "a.wav"])


def test_a_folder_may_hold_what_is_made_of_it(tmp_path):
    """Twice, and with a run of it that was stopped: nothing of its own is taken for a recording."""
    soundfile.write(tmp_path / "a.wav", music(1, 1.0), RATE)
    config = PrepareConfig(tracker="librosa")
    made = prepare(tmp_path, tmp_path, config)
    assert made[:3] == (1, 0, 0)
    assert prepare(tmp_path, tmp_path, config) == made
    (tmp_path / "prepared.json").unlink()
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "settings.json").write_text(json.dumps(config.settings()))
    (tmp_path / ".work" / "part-0.flac").write_bytes((tmp_path / "a.wav").read_bytes())
    assert prepare(tmp_path, tmp_path, config) == made
    assert (tmp_path / "a.wav").exists()
