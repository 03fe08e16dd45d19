"""Collections of recordings: what a clip is, who is held out, and in which order they come."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from musicldm.data.clips import Clip, SegmentDataset, read_clip
from musicldm.data.collection import Collection, load_clips, split_clips
from musicldm.data.items import Item, batch_items, item_rng

RATE = 8000


def write(path, seconds, rate=RATE, channels=1):
    ramp = np.linspace(-0.5, 0.5, round(seconds * rate), dtype=np.float32)
    soundfile.write(path, np.repeat(ramp[:, None], channels, axis=1), rate, subtype="PCM_16")


def test_long_recordings_are_cut_and_short_ones_kept(tmp_path):
    write(tmp_path / "short.wav", 0.4)
    write(tmp_path / "long.wav", 3.6)
    write(tmp_path / "even.wav", 2.0)
    clips = {clip.path.stem: [] for clip in load_clips(tmp_path, 1.0)}
    for clip in load_clips(tmp_path, 1.0):
        clips[clip.path.stem].append((clip.start_s, round(clip.duration_s, 3)))
    assert clips["short"] == [(0.0, 0.4)]
    assert clips["even"] == [(0.0, 1.0), (1.0, 1.0)]
    assert clips["long"] == [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (3.0, 0.6)]


def test_metadata_gives_captions_and_split(tmp_path):
    for name in ("a.wav", "b.wav"):
        write(tmp_path / name, 1.0)
    rows = [
        {"file_name": "a.wav", "text": "one", "texts": ["one", "two"], "split": "validation"},
        {"file_name": "b.wav", "split": "train"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    a, b = load_clips(tmp_path, 1.0)
    assert (a.texts, b.texts) == (("one", "two"), ())
    assert split_clips([a, b]) == ([b], [a])


def test_a_smaller_share_is_part_of_a_larger_one():
    clips = [Clip(Path(f"{i}.wav"), k, 1.0, (), "train") for i in range(50) for k in (0.0, 1.0)]
    clips += [Clip(Path("last.wav"), 0.0, 1.0, (), "validation")]
    few, some, most = (split_clips(clips, share) for share in (0.001, 0.1, 1.0))
    assert [len(training) for training, _ in (few, some, most)] == [2, 10, 100]  # two clips of each recording
    assert set(few[0]) < set(some[0]) < set(most[0])
    assert few[1] == some[1] == most[1] == clips[-1:]


def test_a_share_does_not_depend_on_the_order_of_a_set():
    """Recordings of one name in several folders, in processes that hash strings differently."""
    script = (
        "from pathlib import Path\nfrom musicldm.data.clips import Clip\n"
        "from musicldm.data.collection import split_clips\n"
        "clips = [Clip(Path(f'{i}/take.wav'), 0.0, 1.0, (), 'train' if i else 'validation') for i in range(40)]\n"
        "print([str(clip.path) for clip in split_clips(clips, 0.5)[0]])\n"
    )
    chosen = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(chosen) == 1


def test_recordings_to_test_with_are_not_trained_on(tmp_path):
    """And the other names of the validation are known."""
    names = {"train": "train", "Test": "test"} | dict.fromkeys(("val", "valid", "dev", "eval"), "validation")
    rows = [{"file_name": f"{i}.wav", "split": said} for i, said in enumerate(names)]
    for row in rows:
        write(tmp_path / row["file_name"], 1.0)
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    clips = load_clips(tmp_path, 1.0)
    assert [clip.split for clip in clips] == list(names.values())
    training, validation = split_clips(clips)
    assert {clip.split for clip in training} == {"train"}
    assert {clip.split for clip in validation} == {"validation"}
    with pytest.raises(ValueError, match="found only recordings of the split test"):
        split_clips([clip for clip in clips if clip.split == "test"])
    (tmp_path / "metadata.jsonl").write_text(json.dumps(rows[0] | {"split": "holdout"}))
    with pytest.raises(
        ValueError, match=r"split of 0\.wav is 'holdout'.*train, test, validation, val, valid, dev, eval"
    ):
        load_clips(tmp_path, 1.0)


def test_versions_of_one_piece_are_never_split(tmp_path):
    rows = []
    for i in range(60):
        write(tmp_path / f"{i}.wav", 0.2)
        rows.append({"file_name": f"{i}.wav", "piece_id": f"p{i % 20}"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    clips = load_clips(tmp_path, 1.0)
    for i in range(20):
        assert len({clips[j].split for j in range(i, 60, 20)}) == 1


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_table_is_metadata_too(tmp_path, separator):
    for name in ("a.wav", "b.wav"):
        write(tmp_path / name, 1.0)
    header, row = (
        separator.join(["file_name", "text", "split"]),
        separator.join(["a.wav", '"slow, with ""flute"""', ""]),
    )
    (tmp_path / "metadata.csv").write_text(
        f"\ufeff{header}\r\n{row}\r\n{separator.join(['b.wav', '', 'validation'])}\r\n"
    )
    a, b = load_clips(tmp_path, 1.0)
    assert (a.texts, b.texts, b.split) == (('slow, with "flute"',), (), "validation")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"file_name,text\na.wav,slow, sad\n", "line 2.*double quotes"),
        (b"file,text\na.wav,slow\n", "line 2, has no file_name"),
        (b"file_name,text\na.wav,caf\xe9\n", "UTF-8"),
        (b"file_name,text\n", "no recordings"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path, table, message):
    write(tmp_path / "a.wav", 1.0)
    (tmp_path / "metadata.csv").write_bytes(table)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_clips(tmp_path, 1.0)


@pytest.mark.parametrize(("line", "message"), [("{", "line 1"), ('{"text": "a"}', "file_name"), ("[1]", "file_name")])
def test_bad_metadata_names_the_line(tmp_path, line, message):
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        load_clips(tmp_path, 1.0)


def test_missing_recordings_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recordings"):
        load_clips(tmp_path, 1.0)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.wav"}')
    with pytest.raises(FileNotFoundError, match=r"gone\.wav"):
        load_clips(tmp_path, 1.0)


def test_one_recording_cannot_be_held_out(tmp_path):
    write(tmp_path / "only.wav", 5.0)
    with pytest.raises(ValueError, match="two recordings"):
        split_clips(load_clips(tmp_path, 1.0))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 50), batch=st.integers(1, 60), seed=st.integers(0, 9))
def test_every_clip_comes_once_in_an_epoch(n, batch, seed):
    steps = -(-2 * n // batch)
    items = [item for step in range(steps) for item in batch_items(n, batch, seed, step)][: 2 * n]
    assert Counter(items) == Counter(Item(epoch, index) for epoch in range(2) for index in range(n))


def test_an_items_randomness_depends_on_nothing_else():
    first = item_rng(1, Item(2, 3), "start").random(4)
    item_rng(1, Item(2, 4), "start").random(4)
    assert (item_rng(1, Item(2, 3), "start").random(4) == first).all()
    assert (item_rng(1, Item(2, 3), "caption").random(4) != first).all()


def test_segments_come_from_where_they_should(tmp_path):
    write(tmp_path / "a.wav", 4.0, rate=16_000, channels=2)
    clip = load_clips(tmp_path, 2.0)[1]
    waveform = read_clip(clip, RATE, 2 * RATE, offset_s=0.5)
    assert waveform.shape == (2 * RATE,)
    np.testing.assert_allclose(waveform[RATE // 2], -0.5 + 3.0 / 4.0, atol=1e-3)  # the ramp at 2.0 + 0.5 + 0.5 s
    assert (waveform[round(1.6 * RATE) :] == 0).all()  # beyond the recording
    dataset = SegmentDataset(load_clips(tmp_path, 2.0), RATE, RATE, seed=0)
    assert dataset[Item(0, 0)].shape == (RATE,)
    assert not np.array_equal(dataset[Item(0, 0)], dataset[Item(1, 0)])
    assert np.array_equal(dataset[Item(1, 0)], dataset[Item(1, 0)])


@pytest.mark.parametrize("rate", [RATE, 2 * RATE])
def test_segments_of_stereo_have_the_same_place_and_both_channels(tmp_path, rate):
    ramp = np.linspace(0, 0.5, 4 * rate, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([ramp, -0.5 * ramp], axis=1), rate, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", ramp, rate, subtype="FLOAT")
    mono, stereo = (SegmentDataset(load_clips(tmp_path, 4.0), RATE, RATE, 0, channels=n) for n in (1, 2))
    for index, right in ((0, -0.5), (1, 1.0)):
        segment = stereo[Item(3, index)]
        assert segment.shape == (2, RATE)
        inside = segment[:, 100:-100].numpy()
        np.testing.assert_allclose(inside[1], right * inside[0], atol=1e-4)
        np.testing.assert_allclose(inside.mean(axis=0), mono[Item(3, index)][100:-100], atol=1e-4)


def test_a_table_without_captions_is_refused_and_a_folder_without_a_table_is_not(tmp_path, capsys):
    tone = (0.1 * np.sin(np.arange(16_000) / 9)).astype(np.float32)
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", tone, 16_000)
    Collection(tmp_path).check_captions(wanted=True)
    assert "has no captions" in capsys.readouterr().err
    (tmp_path / "metadata.csv").write_text("file_name,description\n0.wav,solo piano\n1.wav,strings\n2.wav,drums\n")
    with pytest.raises(ValueError, match=r"columns file_name, description.*captions=none"):
        Collection(tmp_path).check_captions()
    (tmp_path / "metadata.csv").write_text("File_Name , TEXT\n0.wav, solo piano\n1.wav,strings\n2.wav,drums\n")
    Collection(tmp_path).check_captions()
