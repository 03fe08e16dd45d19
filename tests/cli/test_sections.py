"""``musicldm generate --sections``: one long piece of a file's lines, made again, and bad files."""

import numpy as np
import pytest
import soundfile

from musicldm.audio import read_recipe
from tests.helpers.commands import fails, succeeds

TEXT = "# a piece\n0.5 calm piano\n\n1 bar fast drums\n"


@pytest.fixture
def file(tmp_path):
    (tmp_path / "sections.txt").write_text(TEXT)
    return tmp_path / "sections.txt"


def test_sections_become_one_piece_that_is_made_again(file, tiny_folder, tmp_path, capsys):
    options = "--model", tiny_folder, "--steps", 2, "--no-fast", "--out", tmp_path / "out"
    (record,) = succeeds(capsys, "generate", "--sections", file, "--bpm", 240, "--seed", 3, *options)
    assert (record["prompt"], record["seed"]) == ("calm piano; fast drums", 3)
    assert record["sections"] == [["calm piano", 0.5], ["fast drums", 1.0]]
    assert record["seconds"] == soundfile.info(record["file"]).duration == 1.5
    assert "bpm" not in record
    (again,) = succeeds(capsys, "generate", "--from", record["file"], "--out", tmp_path / "out")
    samples = [soundfile.read(one["file"], dtype="int16")[0] for one in (record, again)]
    assert np.array_equal(*samples)
    assert read_recipe(again["file"]) == read_recipe(record["file"])
    (other,) = succeeds(capsys, "generate", "--from", record["file"], "--seed", 4, "--out", tmp_path / "out")
    assert not np.array_equal(samples[0], soundfile.read(other["file"], dtype="int16")[0])


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (TEXT, (), "line 4 of"),
        (TEXT, ("--bpm", 0), "bpm must be from 20"),
        (TEXT, ("--bpm", 240, "a waltz"), "leave the others out"),
        (TEXT, ("--bpm", 240, "--seconds", 3), "leave --seconds out"),
        ("", (), "lists no sections"),
        ("calm piano\n", (), "line 1 of"),
        ("0.00001 calm piano\n", (), "at least one frame"),
        ("1e9 calm piano\n", (), "GiB of memory"),
        ("nan calm piano\n", (), "finite number"),
    ],
)
def test_bad_files_are_one_line_and_leave_nothing(text, options, message, file, tiny_folder, tmp_path, capsys):
    file.write_text(text)
    given = "--model", tiny_folder, "--steps", 1, "--out", tmp_path / "a" / "b"
    assert message in fails(capsys, "generate", "--sections", file, *options, *given)
    assert [path.name for path in tmp_path.iterdir()] == ["sections.txt"]


def test_a_file_that_is_not_there(tmp_path, tiny_folder, capsys):
    assert "none.txt" in fails(capsys, "generate", "--sections", tmp_path / "none.txt", "--model", tiny_folder)
