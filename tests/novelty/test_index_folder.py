"""The folder where an index grows belongs to its own runs: files of others under its names stay as they are."""

import json

import pytest

from musicldm.audio import write_audio
from musicldm.novelty.build import build_index
from tests.helpers.melodies import RATE, melody
from tests.novelty.test_windows import Pitches


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    for seed in range(2):
        write_audio(tmp_path / "data" / f"{seed}.wav", melody(seed, 4), RATE)
    return tmp_path / "data"


@pytest.mark.parametrize("plan", ['{"steps": 3}', '"of my own"', "[1, 2]", "no JSON", "", f'"{"G" * 64}"'])
def test_a_plan_of_others_is_refused_and_kept(plan, data, tmp_path):
    partial = tmp_path / "index.partial"
    (partial / "index").mkdir(parents=True)
    kept = {"plan.json": plan, "part-00000000.npz": "mine", "index/notes.txt": "mine too"}
    for name, content in kept.items():
        (partial / name).write_text(content)
    with pytest.raises(FileExistsError, match=r"plan\.json was not written by `musicldm novelty index`.*--out"):
        build_index(data, tmp_path / "index", Pitches(), progress=False, windows=False)
    found = {path.relative_to(partial).as_posix(): path.read_text() for path in partial.rglob("*") if path.is_file()}
    assert found == kept
    assert not (tmp_path / "index").exists()


def test_a_plan_of_its_own_for_other_recordings_is_begun_anew(data, tmp_path):
    partial = tmp_path / "index.partial"
    partial.mkdir()
    (partial / "plan.json").write_text(json.dumps("0123456789abcdef" * 4))
    (partial / "part-00000000.npz").write_text("of recordings that have changed")
    index = build_index(data, tmp_path / "index", Pitches(), progress=False, windows=False)
    assert len(index) == 2
    assert not partial.exists()
