"""What is written: whole or not at all, under free names, into folders that have one owner and one writer."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from musicldm.audio import output
from musicldm.audio.output import (
    LOCK_FILE,
    check_mark,
    free_name,
    full_disk_named,
    output_folder,
    read_mark,
    remove_own,
    sole_writer,
    whole_file,
    write_whole,
)
from tests.helpers.disk import full_disk


def test_a_full_disk_leaves_what_was_there_and_is_named(tmp_path):
    path = tmp_path / "a"
    write_whole(path, b"before")
    with full_disk(5000), pytest.raises(OSError, match="File too large") as error:
        write_whole(path, bytes(10_000))
    assert error.value.filename == str(path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a", b"before")]


def test_somebody_elses_part_files_stay(tmp_path):
    (tmp_path / f".a.{os.getpid()}.part").write_text("mine")
    write_whole(tmp_path / "a", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".a.{os.getpid()}.part", "a"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("1000 requested and 12 written"),  # NumPy
        RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
    ],
)
def test_every_librarys_word_for_a_full_disk(error, tmp_path):
    with pytest.raises(OSError, match=r"(?s)out.*full.*make room.*--out"), full_disk_named(tmp_path / "out"):
        raise error
    with pytest.raises(KeyError, match="a"), full_disk_named(tmp_path):
        raise KeyError("a")


@pytest.mark.parametrize("stem", ["n" * 300, "音" * 120, "a"])
def test_names_fit_the_file_system(stem, tmp_path):
    for _ in range(12):
        name = free_name(tmp_path, stem, (".beats", ".png"))
        for suffix in (".beats", ".png"):
            write_whole(name.with_name(name.name + suffix), b"")
    assert len(list(tmp_path.iterdir())) == 24


def test_a_folder_without_its_mark_is_refused_if_anything_is_in_the_way(tmp_path):
    assert not check_mark(tmp_path / "new", "mark.json", ("a*",), "x")
    (tmp_path / "other").write_text("mine")
    assert not check_mark(tmp_path, "mark.json", ("a*",), "x")
    (tmp_path / f".{'0' * 16}.part").touch()
    (tmp_path / "a-empty").mkdir()
    assert not check_mark(tmp_path, "mark.json", ("a*", ".*"), "x")  # what a killed run leaves
    (tmp_path / "a1").write_text("mine")
    with pytest.raises(FileExistsError, match=r"a1.*musicldm x.*--out"):
        check_mark(tmp_path, "mark.json", ("a*",), "x")
    (tmp_path / "mark.json").write_text('{"steps": 3}')
    assert check_mark(tmp_path, "mark.json", ("a*",), "x")
    assert read_mark(tmp_path / "mark.json", "x", "steps") == {"steps": 3}
    for content in ("[1]", "{}", "no JSON"):
        (tmp_path / "mark.json").write_text(content)
        with pytest.raises(FileExistsError, match="was not written by `musicldm x`"):
            read_mark(tmp_path / "mark.json", "x", "steps")


@pytest.mark.parametrize("missing", ["", "new/er"])
def test_a_read_only_folder_is_named_with_a_way_out(missing, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if os.access(locked, os.W_OK):  # root may write anywhere but where the system keeps its own
        locked = Path("/proc/self")
    told = rf"^cannot write to the output folder {locked / missing} \(.*\); give another one with --out$"
    for opened in (output_folder(locked / missing), sole_writer(locked / missing, "x")):
        with pytest.raises(OSError, match=told), opened:
            raise AssertionError("a folder that takes no files was given")
        assert not (locked / "new").exists()
    if locked.parent == tmp_path:
        assert list(locked.iterdir()) == []


def test_only_own_files_are_removed(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "0.tar").touch()
    (folder / "mine.wav").touch()
    with pytest.raises(FileExistsError, match=r"mine\.wav"):
        remove_own(folder, "*.tar")
    assert len(list(folder.iterdir())) == 2
    (folder / "mine.wav").unlink()
    remove_own(folder, "*.tar")
    assert not folder.exists()


def test_one_writer_at_a_time(tmp_path):
    folder = tmp_path / "run"
    with sole_writer(folder, "train vae"):
        told = rf"run .*process {os.getpid()} on .*musicldm train vae.*--out"
        with pytest.raises(BlockingIOError, match=told), sole_writer(folder, "render"):
            pass
        (folder / "made").touch()
    assert [path.name for path in folder.iterdir()] == ["made"]
    with sole_writer(folder, "render"):
        pass
    with sole_writer(tmp_path / "nothing", "x"):
        pass
    assert not (tmp_path / "nothing").exists()


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    """Even if processes that it has forked live on."""
    script = (
        "import os, sys, time; from pathlib import Path; from musicldm.audio.output import sole_writer\n"
        f"with sole_writer(Path({str(tmp_path)!r}), 'x'):\n"
        "    child = os.fork()\n"
        "    print(child, flush=True) if child else None\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(BlockingIOError, match=f"process {process.pid} "), sole_writer(tmp_path, "y"):
            pass
        process.kill()
        process.wait()
        assert (tmp_path / LOCK_FILE).exists()
        until = time.monotonic() + 10
        while True:  # the child may not have come to close its copy
            try:
                with sole_writer(tmp_path, "y"):
                    break
            except BlockingIOError:
                assert time.monotonic() < until
    finally:
        os.kill(child, signal.SIGKILL)
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=r"No locks available.*second run"), sole_writer(tmp_path / "a", "x"):
        (tmp_path / "a" / "made").touch()
    assert output.LOCK_FILE not in os.listdir(tmp_path / "a")


def test_a_file_written_in_pieces_is_whole_or_not_there(tmp_path):
    with whole_file(tmp_path / "a") as file:
        file.write(b"one ")
        file.write(b"two")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"one two"
    with pytest.raises(KeyError), whole_file(tmp_path / "a") as file:  # noqa: PT012
        file.write(b"three")
        raise KeyError
    assert (tmp_path / "a").read_bytes() == b"one two"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
