"""The folder of a run: its mark, its one writer, the data that it was trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicldm.audio.output import sole_writer
from musicldm.cli import main
from musicldm.train import run
from musicldm.train.data import DATA_FILE
from musicldm.train.diffusion.cache import KeptArrays
from musicldm.train.run_folder import checkpoints

CONFIG = Path(__file__).parents[2] / "configs" / "tiny" / "vae.yaml"
RATE = 16_000
SHORT = ["steps=1", "save_every=1", "trackers=[]", "validation_batches=1"]


def recordings(folder: Path, first: int, last: int) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(first, last):
        noise = np.random.default_rng(i).standard_normal(RATE).cumsum()
        soundfile.write(folder / f"{i}.wav", 0.5 * noise / np.abs(noise).max(), RATE)
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    return recordings(tmp_path / "data", 0, 4)


@pytest.mark.parametrize("name", ["checkpoint-5/state.pt", "final/config.json", "metrics.jsonl", "examples/a.wav"])
def test_files_of_others_are_in_nobodys_way(name, data, tmp_path):
    kept = tmp_path / "out" / name
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=rf"out holds {name.split('/')[0]}.*musicldm train.*--out"):
            run("vae", CONFIG, data, tmp_path / "out", resume, SHORT)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [kept]
    assert kept.read_text() == "mine"


def test_what_a_run_does_not_write_may_lie_beside_it(data, tmp_path):
    """Also in its checkpoints' folders, and under names like theirs."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    run("vae", CONFIG, data, out, overrides=SHORT)
    (out / "checkpoint-1" / "notes.txt").write_text("mine")
    (out / "checkpoint-old").mkdir()
    run("vae", CONFIG, data, out, True, ["steps=3", *SHORT[1:], "keep_checkpoints=1"])
    assert [path.name for path in checkpoints(out)] == ["checkpoint-3"]
    kept = sorted(path.relative_to(out).as_posix() for path in out.rglob("notes.txt"))
    assert kept == ["checkpoint-1/notes.txt", "notes.txt"]


def test_a_second_run_in_the_folder_is_refused(data, tmp_path, capsys):
    out = tmp_path / "out"
    with sole_writer(out, "train vae"):
        assert main(["train", "vae", "--config", "tiny", f"data={data}", "--out", str(out), *SHORT]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"{out} is being written by process" in error
        assert list(out.iterdir()) == [out / ".musicldm.lock"]


def data_of_run(out: Path) -> list[tuple]:
    lines = map(json.loads, (out / DATA_FILE).read_text().splitlines())
    return [(line["from_step"], line["recordings"], line["licences"]) for line in lines]


def test_other_data_are_said_and_told_in_the_card(data, tmp_path):
    out = tmp_path / "out"
    (data / "metadata.csv").write_text("file_name,license\n" + "".join(f"{i}.wav,CC0\n" for i in range(4)))
    run("vae", CONFIG, data, out, overrides=SHORT)
    assert data_of_run(out) == [(0, 3, {"CC0": 3})]  # and one held out
    other = recordings(tmp_path / "other", 10, 16)
    with pytest.warns(UserWarning, match=r"other data.*of 3 recordings.*until step 1, and now .*of 5 recordings"):
        run("vae", CONFIG, other, out, True, ["steps=2", *SHORT[1:]])
    assert data_of_run(out) == [(0, 3, {"CC0": 3}), (1, 5, {"not stated": 5})]
    card = (out / "final" / "README.md").read_text()
    assert "From step 0: 3 clips of 3 recordings" in card
    assert "| CC0 | 3 |" in card
    assert "From step 1: 5 clips of 5 recordings" in card


@pytest.mark.slow
def test_one_recording_changed_or_more_is_said_and_a_copy_of_the_folder_is_not(data, tmp_path, recwarn):
    out = tmp_path / "out"
    run("vae", CONFIG, data, out, overrides=SHORT)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in data.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    run("vae", CONFIG, copy, out, True, ["steps=2", *SHORT[1:]])
    assert not [warning for warning in recwarn if "other data" in str(warning.message)]
    assert len(data_of_run(out)) == 1
    noise = np.random.default_rng(99).standard_normal(RATE)
    for i in range(4):  # one of them is held out
        soundfile.write(copy / f"{i}.wav", 0.1 * noise, RATE)  # of the same length
        with pytest.warns(UserWarning, match="or changed ones"):
            run("vae", CONFIG, copy, out, True, [f"steps={3 + i}", *SHORT[1:]])
    recordings(copy, 4, 5)
    with pytest.warns(UserWarning, match=r"now .*of 4 recordings"):
        run("vae", CONFIG, copy, out, True, ["steps=7", *SHORT[1:]])
    assert [line[0] for line in data_of_run(out)] == [0, 2, 3, 4, 5, 6]


def test_a_run_of_an_earlier_version_goes_on(data, tmp_path, recwarn):
    out = tmp_path / "out"
    run("vae", CONFIG, data, out, overrides=SHORT)
    (out / DATA_FILE).unlink()
    run("vae", CONFIG, data, out, True, ["steps=2", *SHORT[1:]])
    assert not [warning for warning in recwarn if "other data" in str(warning.message)]
    assert "3 clips of 3 recordings" in (out / "final" / "README.md").read_text()


def kept(folder: Path, key: str) -> KeptArrays:
    return KeptArrays(folder, key, 3, {"rows": ((3, 2), np.float32)})


def test_a_cache_of_another_version_is_begun_anew(tmp_path):
    """Its key is a digest of other things, or of more; what is of no version stays."""
    folder = tmp_path / "latents"
    arrays = kept(folder, "a" * 64)
    assert list(arrays.batches("rows", "row")) == [(0, 3)]
    arrays.arrays["rows"][:] = 1
    (folder / "notes.txt").write_text("mine")
    assert list(kept(folder, "a" * 64).batches("rows", "row")) == []
    for other in ("b" * 64, "b" * 128, f"{'b' * 128} 7"):
        again = kept(folder, other)
        assert (folder / "key.txt").read_text() == other
        assert not again.arrays["rows"].any()
        assert list(again.batches("rows", "row")) == [(0, 3)]
    (folder / "key.txt").write_text("")  # a run that was killed while it made the arrays
    assert list(kept(folder, "a" * 64).batches("rows", "row")) == [(0, 3)]
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["my password", "a" * 63, "a" * 64 + " b", "schlüssel", "{}"])
def test_a_key_of_others_is_no_mark_of_a_cache(content, tmp_path):
    (tmp_path / "key.txt").write_text(content, encoding="utf-8")
    (tmp_path / "rows.npy").write_text("mine")
    with pytest.raises(FileExistsError, match=r"key\.txt was not written by `musicldm train`.*cache=FOLDER"):
        kept(tmp_path, "a" * 64)
    assert (tmp_path / "key.txt").read_text(encoding="utf-8") == content
    assert (tmp_path / "rows.npy").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2
