"""The command line itself: parsing, errors on one line, exit codes, imports, and the commands that need no model."""

import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicldm import __version__
from musicldm.audio import write_audio
from musicldm.audio.output import free_name, output_folder, slug
from musicldm.cli import COMMANDS, build_parser, main, parse

HEAVY = {"torch", "diffusers", "transformers", "librosa", "matplotlib", "numpy", "soundfile"}


def run(*arguments, **options):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "musicldm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def fails(capsys, *arguments, code=2) -> str:
    """The one line that a call leaves on stderr; nothing is on stdout."""
    assert main([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("musicldm: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("musicldm: error: ")


def test_help_imports_nothing_heavy():
    check = (
        f"import sys; from musicldm.cli import main; code = main(['--help']); print({HEAVY} & set(sys.modules), code)"
    )
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "set() 0"
    for command, summary in COMMANDS.items():
        assert command in result.stdout
        assert summary.split()[0] in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: musicldm {command}")
    assert "--json" in out or command == "app"
    assert err == ""
    assert "None" not in out
    assert "==SUPPRESS==" not in out


def test_parsing_imports_no_torch():
    for command in COMMANDS:
        check = (
            f"import sys; from musicldm.cli import main; main([{command!r}, '--help']); print('torch' in sys.modules)"
        )
        result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
        assert result.stdout.splitlines()[-1] == "False", command


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"musicldm {__version__}\n"


def test_command_and_module_are_the_same():
    script = Path(sys.executable).with_name("musicldm")
    if script.exists():  # installed
        assert subprocess.run([script, "--version"], capture_output=True, text=True).stdout == run("--version").stdout
    assert run("--version").stdout == f"musicldm {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["sing"], "'sing'"),
        (["generate", "a", "--stepz", "3"], "--stepz"),
        (["generate", "a", "--cand", "3"], "--cand"),  # no abbreviations: a new option would change what they mean
        (["generate", "a", "--steps", "0"], "'0'"),
        (["generate", "a", "--steps", "2.5"], "'2.5'"),
        (["generate", "a", "--guidance", "-2"], "'-2'"),
        (["generate", "a", "--guidance", "nan"], "'nan'"),
        (["generate", "a", "--guidance-interval", "0", "2"], "'2'"),
        (["generate", "a", "--guidance-interval", "0.5"], "expected 2 arguments"),
        (["generate", "a", "--seconds", "-3"], "'-3'"),
        (["generate", "a", "--seconds", "inf"], "'inf'"),
        (["generate", "a", "--seconds", "long"], "'long'"),
        (["generate", "a", "--seed", "-1"], "'-1'"),
        (["generate", "a", "--seed", str(2**63)], str(2**63)),
        (["generate", "a", "--candidates", "1000000000"], "up to 1000"),
        (["generate", "a", "--format", "mp3"], "'mp3'"),
        (["generate", "a", "--dtype", "int8"], "'int8'"),
        (["reconstruct"], "AUDIO"),
        (["convert", "a.ckpt"], "--out"),
        (["train", "all", "--out", "x"], "'all'"),
        (["render", "a.mid", "--out", "x", "--clip-s", "short"], "'short'"),
        (["info", "--color"], "--color"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    assert message in fails(capsys, *arguments)


def test_arguments_may_be_interleaved():
    args = parse(["generate", "a", "--steps", "5", "b", "--json", "c"])
    assert args.prompts == ["a", "b", "c"]
    assert (args.steps, args.json) == (5, True)
    args = parse(["train", "vae", "--config", "c.yaml", "data=x", "--out", "o", "steps=3", "--resume", "seed=1"])
    assert args.overrides == ["data=x", "steps=3", "seed=1"]


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("musicldm.cli.info.run", lambda args: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        main(["info"])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("two\n  lines"), 2, "two lines"),
        (OSError(28, "No space left on device", "a.wav"), 2, "a.wav: No space left on device"),
        (OSError("plain words"), 2, "plain words"),
        (ImportError("needs x: pip install x"), 2, "needs x: pip install x"),
        (MemoryError(), 1, "MemoryError"),
        (FloatingPointError("the loss is nan"), 1, "the loss is nan"),
    ],
)
def test_errors_become_one_line(error, code, line, monkeypatch, capsys):
    def fail(args):
        raise error

    monkeypatch.setattr("musicldm.cli.info.run", fail)
    assert fails(capsys, "info", code=code) == line + "\n"


def test_interrupt_is_130(tmp_path):
    """Ctrl-C in the middle of a command, while it reads its prompts from a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "prompts")
    command = [sys.executable, "-m", "musicldm", "generate", "--file", tmp_path / "prompts", "--out", tmp_path / "out"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job inherits that it is ignored
    )
    with (tmp_path / "prompts").open("wb"):  # opens as soon as the command reads
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "musicldm: interrupted\n")
    assert not (tmp_path / "out").exists()


def test_a_reader_that_leaves_is_no_error(tmp_path):
    write_audio(tmp_path / "a.wav", np.zeros(10), 8000, {"seed": 3})
    command = f"{sys.executable} -m musicldm info {tmp_path}/a.wav | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("1\n", "")


def test_our_warnings_show_and_those_of_others_do_not(monkeypatch, capsys):
    def warn(args):
        warnings.warn_explicit("ours\nin two lines", UserWarning, "musicldm/clap.py", 1, module="musicldm.models.clap")
        warnings.warn_explicit("theirs", FutureWarning, "x.py", 1, module="diffusers.x")
        warnings.warn_explicit("theirs", DeprecationWarning, "y.py", 1, module="musicldmx")

    monkeypatch.setattr("musicldm.cli.info.run", warn)
    shown = warnings.showwarning
    assert main(["info"]) == 0
    assert capsys.readouterr().err == "musicldm: warning: ours in two lines\n"
    assert warnings.showwarning is shown


def test_output_folder_is_made_and_unmade(tmp_path):
    with output_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    with output_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("kept")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]
    with pytest.raises(ZeroDivisionError), output_folder(tmp_path / "c"):
        raise ZeroDivisionError
    assert not (tmp_path / "c").exists()
    (tmp_path / "empty").mkdir()
    with output_folder(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()  # it was there before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Calm piano, 90 BPM!", "calm-piano-90-bpm"),
        ("../../etc/passwd", "etc-passwd"),
        ("  a_b\tc\n", "a-b-c"),
        ("Übung für Flöte", "übung-für-flöte"),
        ("静かなピアノ", "静かなピアノ"),
        ("?!", "music"),
    ],
)
def test_slug(text, expected):
    assert slug(text) == expected


@pytest.mark.parametrize("text", ["word " * 100, "音" * 300, "a" * 300])
def test_slug_fits_into_a_file_name(text, tmp_path):
    name = slug(text)
    assert len(name.encode()) <= 180
    assert not name.endswith("-")
    (tmp_path / f"{name}_seed1234567890_12.flac").write_text("fits")


def test_free_name_counts_up(tmp_path):
    assert free_name(tmp_path, "a", (".wav", ".png")).name == "a"
    (tmp_path / "a.png").touch()
    assert free_name(tmp_path, "a", (".wav", ".png")).name == "a_2"
    (tmp_path / "a_2.wav").touch()
    assert free_name(tmp_path, "a", (".wav", ".png")).name == "a_3"


def test_info_says_what_is_at_work(capsys):
    import torch

    assert main(["info", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (
        about["versions"]["torch"] == torch.__version__.split("+")[0] or about["versions"]["torch"] == torch.__version__
    )
    assert about["versions"]["musicldm"] == __version__
    assert any(device.startswith("cpu") for device in about["devices"])
    assert "scaled_dot_product_attention" in about["attention"]
    assert "madmom" in about["beat_tracker"]
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in about)


def test_info_shows_recipes(tmp_path, capsys):
    recipe = {"prompt": "ein „Walzer“ 🎵", "seed": 3}
    for name in ("a.wav", "b.flac"):
        write_audio(tmp_path / name, np.zeros(10), 8000, recipe)
    assert main(["info", str(tmp_path / "a.wav"), str(tmp_path / "b.flac"), "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records == [{"file": str(tmp_path / name), **recipe} for name in ("a.wav", "b.flac")]
    assert main(["info", str(tmp_path / "a.wav")]) == 0
    assert recipe["prompt"] in capsys.readouterr().out


def test_info_of_other_files(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.zeros(10), 8000)
    assert "a.wav carries no recipe" in fails(capsys, "info", tmp_path / "a.wav")
    assert "none.wav: No such file" in fails(capsys, "info", tmp_path / "none.wav")


def test_every_setting_of_rendering_is_an_option():
    from musicldm.cli.render import HELP
    from musicldm.scores.rendering import RenderConfig

    assert set(HELP) | {"soundfonts"} == {field.name for field in fields(RenderConfig)}
    plain = parse(["render", "a.mid", "--out", "x"])
    assert {name: getattr(plain, name) for name in HELP} == {name: getattr(RenderConfig(), name) for name in HELP}
    args = parse(["render", "a.mid", "--out", "x", "--clip-s", "none", "--transpose-range", "-2", "3", "--seed", "4"])
    assert (args.clip_s, args.transpose_range, args.seed) == (None, [-2, 3], 4)


def test_render_refuses(tmp_path, capsys):
    out = tmp_path / "out"
    assert "none.mid" in fails(capsys, "render", tmp_path / "none.mid", "--out", out)
    (tmp_path / "a.mid").write_bytes(b"MThd")
    assert "none.sf2" in fails(capsys, "render", tmp_path / "a.mid", "--out", out, "--soundfont", tmp_path / "none.sf2")
    assert "'kazoo'" in fails(capsys, "render", tmp_path / "a.mid", "--out", out, "--orchestrate", "kazoo")
    assert not out.exists()


def test_train_refuses(tmp_path, capsys):
    out = tmp_path / "out"
    assert "data=FOLDER" in fails(capsys, "train", "vae", "--out", out, "steps=3")
    assert "data=FOLDER" in fails(capsys, "train", "vae", "--out", out, "data=")
    assert "'stepz'" in fails(capsys, "train", "vae", f"data={tmp_path}", "--out", out, "stepz=3")
    assert "none.yaml" in fails(capsys, "train", "vae", f"data={tmp_path}", "--out", out, "--config", "none.yaml")
    assert "none" in fails(capsys, "train", "vae", f"data={tmp_path / 'none'}", "--out", out)
    assert not out.exists()


def test_only_the_command_at_hand_is_built():
    assert build_parser("info").parse_args(["info"]).files == []
