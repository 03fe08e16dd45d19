"""``musicldm generate`` on a tiny real model: what it writes, that it repeats, and that bad input leaves nothing."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from musicldm import MusicLDMPipeline
from musicldm.audio import read_audio, read_recipe, write_audio
from musicldm.cli import main
from musicldm.generate.recipe import DEFAULTS
from musicldm.sampling.schedulers import SCHEDULERS, make_scheduler
from tests.helpers.disk import full_disk

STEP = 1 / 2**15  # of 16-bit samples


@pytest.fixture
def generate(tiny_folder, tmp_path, capsys):
    """Run the command with few steps, into tmp_path/out; gives one record for each file."""

    def call(*arguments, model=tiny_folder, steps=("--steps", "2")):
        model = ("--model", str(model)) if model else ()
        given = ["generate", *map(str, arguments), *model, *steps, "--out", str(tmp_path / "out"), "--json"]
        code = main(given)
        out, err = capsys.readouterr()
        assert code == 0, err
        return [json.loads(line) for line in out.splitlines()]

    return call


def written(tmp_path):
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def test_files_and_recipe(generate, tmp_path, tiny_folder, tiny_pipeline):
    (record,) = generate("Calm piano, at night", "--seed", 7, "--negative", "drums")
    assert written(tmp_path) == ["calm-piano-at-night_seed7.png", "calm-piano-at-night_seed7.wav"]
    recipe = read_recipe(record["file"])
    assert {key: value for key, value in record.items() if key not in ("file", "figure")} == recipe
    assert recipe["prompt"] == "Calm piano, at night"
    assert (recipe["seed"], recipe["steps"], recipe["negative"]) == (7, 2, "drums")
    assert recipe["model"] == str(tiny_folder)
    assert "AI" in recipe["generated_by"]
    assert recipe["versions"]["torch"]
    assert recipe["dtype"] == "float32"
    info = soundfile.info(record["file"])
    assert info.samplerate == recipe["sampling_rate"]
    trained_on = len(tiny_pipeline("a", num_inference_steps=1).audios[0]) / tiny_pipeline.sampling_rate
    assert info.duration == recipe["seconds"] == trained_on


def test_it_is_what_the_pipeline_makes(generate, tiny_folder):
    options = "--guidance", 3.5, "--guidance-interval", 0.6, 1, "--seconds", 0.3, "--scheduler", "euler", "--no-fast"
    (record,) = generate("calm piano", "--seed", 3, *options)
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    pipeline.scheduler = make_scheduler("euler", pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline("calm piano", 0.3, 2, 3.5, seed=3, guidance_interval=(0.6, 1.0)).audios[0]
    waveform, _ = read_audio(record["file"])
    assert len(waveform) == 0.3 * record["sampling_rate"]
    assert np.abs(waveform - expected).max() < 1.5 * STEP
    assert np.abs(waveform).max() > 20 * STEP  # or nothing was compared


def test_seeds_of_several_prompts_and_the_batch_do_not_matter(generate, tmp_path):
    """In float32; bfloat16 may round a batch of three otherwise than one of one."""
    (tmp_path / "prompts.txt").write_text("\ufefffast drums\n\n  a flute \n", encoding="utf-8")
    together = generate("calm piano", "--file", tmp_path / "prompts.txt", "--seed", 10, "--no-fast")
    assert [(r["prompt"], r["seed"]) for r in together] == [("calm piano", 10), ("fast drums", 11), ("a flute", 12)]
    alone = [generate(record["prompt"], "--seed", record["seed"], "--no-fast")[0] for record in together]
    for one, other in zip(together, alone, strict=True):
        assert one["seed"] == other["seed"]
        difference = read_audio(one["file"])[0] - read_audio(other["file"])[0]
        assert np.abs(difference).max() < 1e-4 + STEP
    assert np.abs(read_audio(alone[0]["file"])[0] - read_audio(alone[1]["file"])[0]).max() > 20 * STEP


def test_best_of_several_candidates(generate, tiny_folder):
    (record,) = generate("calm piano", "--candidates", 3, "--seed", 1, "--no-figure", "--no-fast")
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    pipeline.scheduler = make_scheduler("dpm++", pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "guidance_scale": DEFAULTS["guidance"]}
    options["guidance_interval"] = DEFAULTS["guidance_interval"]
    output = pipeline("calm piano", num_waveforms_per_prompt=3, seed=1, **options)
    assert record["score"] == pytest.approx(output.scores.max(), abs=1e-5)
    assert np.abs(read_audio(record["file"])[0] - output.audios[0]).max() < 1e-4 + STEP
    assert [r["seed"] for r in generate("a", "b", "--candidates", 3, "--seed", 1)] == [1, 4]


def test_same_music_again(generate, tmp_path):
    (first,) = generate("calm piano", "--candidates", 2, "--negative", "drums", "--scheduler", "ddim", "--seconds", 0.2)
    (again,) = generate("--from", first["file"], "--format", "flac", model=None, steps=())
    assert again["file"].endswith(f"calm-piano_seed{first['seed']}_2.flac")
    assert np.array_equal(read_audio(first["file"])[0], read_audio(again["file"])[0])
    differing = {key for key in first if first[key] != again[key]}
    assert differing == {"file", "figure"}


def test_a_recipe_without_an_interval_of_guidance_was_guided_everywhere(generate, tmp_path):
    (first,) = generate("calm piano", "--guidance-interval", 0, 1, "--no-figure")
    waveform, rate = read_audio(first["file"])
    early = {name: value for name, value in read_recipe(first["file"]).items() if name != "guidance_interval"}
    write_audio(tmp_path / "early.wav", waveform, rate, early)
    (again,) = generate("--from", tmp_path / "early.wav", model=None, steps=())
    assert again["guidance_interval"] == [0, 1]
    assert np.array_equal(read_audio(again["file"])[0], waveform)


def test_options_given_beside_a_recipe_win(generate):
    (first,) = generate("calm piano", "--seed", 5, "--seconds", 0.2)
    (longer,) = generate("--from", first["file"], "--seconds", 0.4, model=None, steps=())
    assert (longer["prompt"], longer["seed"], longer["steps"], longer["seconds"]) == ("calm piano", 5, 2, 0.4)
    (other,) = generate("fast drums", "--from", first["file"], "--seed", 6, model=None, steps=())
    assert (other["prompt"], other["seed"], other["seconds"]) == ("fast drums", 6, 0.2)


def test_a_changed_model_is_noticed(tiny_folder, tmp_path, capsys):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    out = ["--out", str(tmp_path / "out"), "--no-figure"]
    assert main(["generate", "calm piano", "--model", str(model), "--steps", "1", *out]) == 0
    made = capsys.readouterr().out.strip()
    scheduler = model / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("0.0195", "0.02"))
    assert main(["generate", "--from", made, *out]) == 0
    err = capsys.readouterr().err
    assert err.startswith("musicldm: warning: the recipe was made with revision")
    assert err.count("\n") == 1


def test_existing_files_are_kept(generate, tmp_path):
    (first,) = generate("a", "--seed", 1, "--no-figure")
    content = (tmp_path / "out" / "a_seed1.wav").read_bytes()
    (second,) = generate("a", "--seed", 1, "--steps", 1, "--format", "flac")
    assert written(tmp_path) == ["a_seed1.wav", "a_seed1_2.flac", "a_seed1_2.png"]
    assert (tmp_path / "out" / "a_seed1.wav").read_bytes() == content
    assert (first["figure"], second["figure"]) == (None, str(tmp_path / "out" / "a_seed1_2.png"))


def test_random_seeds_are_recorded(generate):
    seeds = {generate("a", "--no-figure")[0]["seed"] for _ in range(2)}
    assert len(seeds) > 1


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_makes_music(name, generate):
    (record,) = generate("a", "--scheduler", name, "--no-figure", steps=("--steps", "5"))
    assert record["scheduler"] == name
    assert np.abs(read_audio(record["file"])[0]).max() > 20 * STEP


def test_half_precision(generate):
    (record,) = generate("a", "--dtype", "bfloat16", "--no-figure")
    assert record["dtype"] == "bfloat16"


@pytest.mark.slow
def test_command_in_a_process_of_its_own(tiny_folder, tmp_path):
    """Paths on stdout, nothing of the libraries' chatter on stderr."""
    command = [sys.executable, "-m", "musicldm", "generate", "calm piano", "--model", tiny_folder, "--steps", "2"]
    result = subprocess.run([*command, "--seed", "4"], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "calm-piano_seed4.wav\n", "")
    assert (tmp_path / "calm-piano_seed4.png").exists()


def truncated(folder):
    weights = next(folder.glob("unet/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])


def without_vocoder(folder):
    shutil.rmtree(folder / "vocoder")


def without_index(folder):
    (folder / "model_index.json").unlink()


BAD_INPUT = [
    (["", "--steps", "2"], "''"),
    ([" \t "], "empty"),
    (["fine", ""], "''"),
    ([], "no prompt"),
    (["a", "--scheduler", "magic"], "'magic'; choose one of ddim, "),
    (["a", "--seconds", "0.0001"], "0.0001"),
    (["a", "--seconds", "1e9"], "GiB of memory"),
    (["a", "--candidates", "1000", "--seconds", "10000"], "GiB of memory"),
    (["a", "--steps", "1001"], "1001"),
    (["a", "--device", "abacus"], "'abacus'"),
    (["a", "--model", "maxi"], "'maxi'"),
    (["a", "--model", "./maxi"], "'./maxi'"),
    (["a", "--model", "nobody/has-this"], "'nobody/has-this'"),
    (["--file", "none.txt"], "none.txt"),
    (["--from", "none.wav"], "none.wav"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT)
def test_bad_input(arguments, message, tiny_folder, tmp_path, capsys):
    model = [] if "--model" in arguments else ["--model", str(tiny_folder)]
    assert main(["generate", *arguments, *model, "--out", str(tmp_path / "a" / "b")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("musicldm: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [(truncated, "unet"), (without_vocoder, "'vocoder'"), (without_index, "model_index.json")],
)
def test_damaged_models(damage, message, tiny_folder, tmp_path, capsys):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    damage(model)
    assert main(["generate", "a", "--model", str(model), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xff\xfe\x00\x01"])
def test_bad_prompt_files(content, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_bytes(content)
    assert main(["generate", "--file", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out")]) == 2
    assert "prompts.txt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_foreign_recipe(generate, tmp_path, capsys):
    (record,) = generate("a", "--no-figure")
    recipe = read_recipe(record["file"])
    shutil.rmtree(tmp_path / "out")
    for name, changed in (("prompt", {"title": "not ours"}), ("candidates", recipe | {"candidates": "3"})):
        write_audio(tmp_path / "a.wav", np.zeros(100), 8000, changed)
        refused_recipe(name, tmp_path, capsys)


def refused_recipe(name, tmp_path, capsys):
    assert main(["generate", "--from", str(tmp_path / "a.wav"), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "a.wav" in err
    assert f"{name} must be" in err or f"its {name} is" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/musicldm"])
def test_output_that_cannot_be_written_is_found_first(where, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("musicldm.cli.generate.generate", lambda *_: pytest.fail("went on without a place to write to"))
    assert main(["generate", "a", "--out", str(tmp_path / where)]) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / where) in err
    assert "--out" in err
    assert err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "in the way"


def test_interrupt_leaves_nothing(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("musicldm.cli.generate.write", lambda *_: signal.raise_signal(signal.SIGINT))
    out = tmp_path / "out"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
    try:
        assert main(["generate", "a", "--model", str(tiny_folder), "--steps", "1", "--out", str(out)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "musicldm: interrupted\n"
    assert not out.exists()


@pytest.mark.parametrize("limit", [4_000, 30_000])  # the WAV file does not fit, or the picture does not
def test_full_disk(limit, tiny_folder, tmp_path, capsys):
    with full_disk(limit):
        code = main(
            ["generate", "a", "--model", str(tiny_folder), "--steps", "1", "--seed", "1", "--out", str(tmp_path)]
        )
    assert code == 2
    assert "File too large" in capsys.readouterr().err
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ([] if limit == 4_000 else ["a_seed1.wav"])
    assert all(read_audio(tmp_path / name)[0].size for name in names)
