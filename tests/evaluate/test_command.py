"""`musicldm evaluate`: a tiny model judged whole, resumed, and compared."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicldm.audio import write_audio
from musicldm.cli import main
from musicldm.evaluate.collect import Clip, asked, begin, measure_clips
from musicldm.evaluate.compare import compare, incomparable
from musicldm.evaluate.intervals import share
from musicldm.evaluate.report import page
from musicldm.evaluate.run import EvaluationConfig, Judges
from musicldm.evaluate.summary import MEANING, Evidence, summarize
from musicldm.generate import Session, Settings

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden_data"
PROMPTS = ["fast drums, 140 BPM, in C minor", "a waltz without drums", "drums and bass in Eb major", "a calm flute"]


@pytest.fixture(scope="module")
def evaluated(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS * 2) + "\n")
    reference = folder / "reference"
    reference.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        write_audio(reference / f"{i}.wav", rng.uniform(-0.3, 0.3, size=8000), 8000)
    arguments = ["--model", tiny_folder, "--prompts", folder / "prompts.txt", "--reference", reference, "--seconds", 1]
    arguments = ["evaluate", *arguments, "--steps", 2, "--no-tempo", "--out", folder / "out"]
    arguments = [str(argument) for argument in arguments]
    assert main(arguments) == 0
    return folder, arguments


def test_all_measures_come_with_intervals(evaluated):
    folder, _ = evaluated
    made = json.loads((folder / "out" / "metrics.json").read_text())
    expected = {"text_audio_similarity", "vendi_score", "kernel_distance_clap", "frechet_distance_log_mel", "drums_auc"}
    assert expected <= set(made["metrics"])
    for name, metric in made["metrics"].items():
        assert metric["low"] <= metric["value"] <= metric["high"], name
    values = made["single"]["text_audio_similarity"]
    assert made["metrics"]["text_audio_similarity"]["value"] == pytest.approx(np.mean(values))
    assert [clip["seed"] for clip in made["clips"]] == list(range(8))
    assert any("covariance" in note for note in made["notes"])


def test_page_holds_everything_itself(evaluated):
    folder, _ = evaluated
    page = (folder / "out" / "report.html").read_text()
    sources = re.findall(r'src="([^"]{0,30})', page)
    kinds = [source.removeprefix("data:").partition(";")[0] for source in sources]
    assert kinds == ["image/png"] + 8 * ["image/png", "audio/mpeg"]  # a plot; a spectrogram above each player
    assert PROMPTS[0] in page
    assert "| Measure |" in (folder / "out" / "report.md").read_text()


def test_a_run_goes_on_and_gives_the_same(evaluated, capsys):
    folder, arguments = evaluated
    out = folder / "out"
    before = json.loads((out / "metrics.json").read_text())
    kept = out / "audio" / "00000.wav"
    stamp = kept.stat().st_mtime_ns
    (out / "audio" / "00006.wav").unlink()
    (out / "metrics.json").unlink()
    lines = (out / "measured.jsonl").read_text().splitlines(keepends=True)
    (out / "measured.jsonl").write_text("".join(lines[:3]) + lines[3][:10])
    assert main(arguments) == 0
    after = json.loads((out / "metrics.json").read_text())
    assert kept.stat().st_mtime_ns == stamp
    for name, metric in before["metrics"].items():
        assert after["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-3, abs=1e-5), name
    assert after["sources"]["reference"].startswith("reference-")
    capsys.readouterr()
    assert main([*arguments, "--seed", "5"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_evaluations_begun_before_sessions_go_on(tiny_folder, tmp_path):
    before = json.loads((GOLDEN / "evaluations_before" / "settings.json").read_text())
    session = Session(tiny_folder, "cpu", fast=False)
    session.model, session.revision = before["model"], before["revision"]
    settings = {name: before[name] for name in ("seconds", "steps", "guidance", "guidance_interval")}
    config = EvaluationConfig(
        before["prompts"],
        most=before["most"],
        seed=before["seed"],
        settings=Settings(**settings),
        judges=Judges(tempo=before["tempo"]),
    )
    assert config.plan(session) == before
    begin(tmp_path, before)
    begin(tmp_path, config.plan(session))  # not refused as another evaluation
    assert [request.seed for request in config.requests()] == [4, 5]


@pytest.mark.parametrize("name", ["audio/00000.wav", "metrics.json", "measured.jsonl", "report.html", "settings.json"])
def test_files_of_others_are_neither_judged_nor_replaced(name, tmp_path):
    kept = tmp_path / name
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(FileExistsError, match="--out"):
        begin(tmp_path, {"audio": None, "prompts": ["a"]})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]
    assert kept.read_text() == "mine"


def test_recordings_are_judged_and_compared(evaluated, tiny_folder, tmp_path, capsys):
    folder, _ = evaluated
    audio, out = str(folder / "reference"), tmp_path / "out"
    options = ["--model", str(tiny_folder), "--no-tempo", "--reference", audio]
    assert main(["evaluate", "--audio", audio, "--out", str(out), *options]) == 0
    capsys.readouterr()
    made = json.loads((out / "metrics.json").read_text())
    assert made["metrics"]["frechet_distance_log_mel"]["value"] == pytest.approx(0.0, abs=1e-6)
    files = [str(folder / "out" / "metrics.json"), str(out / "metrics.json")]
    assert main(["evaluate", "--compare", *files, "--json"]) == 0
    rows = {row["measure"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["frechet_distance_log_mel"]["larger_than_chance"]
    assert main(["evaluate", "--compare", files[0], files[0]]) == 0
    assert "LARGER" not in capsys.readouterr().out


def test_captions_of_recordings_pair_clips_with_them_and_a_probe_judges(tiny_folder, tmp_path, capsys):
    solos, rng = tmp_path / "solos", np.random.default_rng(1)
    solos.mkdir()
    rows = []
    for i in range(8):
        noise = rng.normal(size=8000) * 0.1
        write_audio(solos / f"{i}.wav", noise if i % 2 else 0.5 * np.sin(np.cumsum(noise)), 8000)
        family = ("organ", "drums")[i % 2]
        rows.append({"file_name": f"{i}.wav", "text": f"solo {family}", "orchestration": family})
    (solos / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model", tiny_folder, "--prompts", solos, "--probe", solos, "--seconds", 1, "--steps", 1]
    arguments += ["--no-tempo", "--cache", tmp_path / "cache", "--out", tmp_path / "out"]
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert {"inception_score", "paired_kl_divergence", "family_probe", "family_zero_shot"} <= set(made["metrics"])
    assert 1 <= made["metrics"]["inception_score"]["value"] <= 2
    assert any("2 instrument families" in note and "solos" in note for note in made["notes"])
    kept = sorted((tmp_path / "cache").glob("*.npz"))
    assert len(kept) == 3  # what the probe learned from; the prompts' recordings, heard by the probe and by CLAP
    stamps = [path.stat().st_mtime_ns for path in kept]
    (tmp_path / "out" / "metrics.json").unlink()
    assert main(["evaluate", *map(str, arguments)]) == 0
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "cache").glob("*.npz"))] == stamps


def test_a_shift_of_every_prompt_is_larger_than_chance_and_noise_is_not():
    rng = np.random.default_rng(0)
    clap, log_mel, values = rng.normal(size=(40, 8)), rng.normal(size=(40, 8)), rng.normal(size=40)

    def side(similarity):
        prompts = [f"prompt {i}" for i in range(40)]
        evidence = Evidence(clap, log_mel, prompts, [{"percussive_share": 0.1}] * 40, text_similarity=similarity)
        metrics, single = summarize(evidence)
        return {"metrics": metrics, "single": single, "prompts": prompts}

    shifted = compare(side(values), side(values + 0.2 + 0.1 * rng.normal(size=40)))["text_audio_similarity"]
    assert shifted["in_pairs"]
    assert shifted["larger_than_chance"]
    assert shifted["low"] < 0.2 < shifted["high"]
    noise = compare(side(values), side(values + 0.1 * rng.normal(size=40)))["text_audio_similarity"]
    assert not noise["larger_than_chance"]


def test_the_novelty_of_clips_is_counted_against_thresholds_and_base_rate():
    verdicts = [{"similarity": value, "verdict": "new"} for value in (0.5, 0.91, 0.94, 0.96)]
    verdicts[1]["verdict"] = "copy"
    rng = np.random.default_rng(0)
    prompts, measured = ["music"] * 4, [{"percussive_share": 0.0}] * 4
    arrays, base_rate = (rng.normal(size=(4, 3)), rng.normal(size=(4, 3))), {"similarity_99": 0.93}
    found = summarize(Evidence(*arrays, prompts, measured, verdicts=verdicts, base_rate=base_rate))[0]
    expected = {"sim_aa_90": 0.75, "sim_aa_95": 0.25, "above_base_rate": 0.5, "copies": 0.25}
    assert {name: found[name]["value"] for name in expected} == expected
    assert found["nearest_training_similarity"]["value"] == pytest.approx(0.8275)


def test_tempo_key_and_drums_are_judged_where_they_were_asked_for():
    prompts = ["drums at 100 BPM in C major", "120 BPM, in C major", "60 BPM with drums", "a song"]
    measured = [
        {"percussive_share": share, "tempo_bpm": tempo, "key": key}
        for share, tempo, key in ((0.9, 100.0, "C major"), (0.2, 60.0, "G major"), (0.8, 62.0, None), (0.5, None, None))
    ]
    del measured[3]["tempo_bpm"]
    rng = np.random.default_rng(0)
    found = summarize(Evidence(rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), prompts, measured))[0]
    values = {"tempo_within_2_percent": 1 / 3, "tempo_within_5_percent": 2 / 3, "tempo_octave_errors": 1 / 3}
    values |= {"key_score": 0.75, "drums_auc": 1.0}
    assert {name: found[name]["value"] for name in values} == pytest.approx(values)


def test_the_error_of_an_area_under_the_curve_is_hanley_and_mcneils():
    """Ten clips asked for drums, of which each has more of them than 16 of 20 others; by hand."""
    measured = [{"percussive_share": share} for share in [0.155] * 10 + [i / 100 for i in range(20)]]
    numbers = np.random.default_rng(0).normal(size=(30, 3))
    found = summarize(Evidence(numbers, numbers, ["drums"] * 10 + ["a song"] * 20, measured))[0]["drums_auc"]
    assert found["value"] == pytest.approx(0.8)
    assert found["error"] == pytest.approx(1.7511**0.5 / 200**0.5, abs=1e-4)


def test_measures_by_other_judges_are_not_compared():
    def side(**sources):
        metrics = {
            name: {"value": 0.5, "low": 0.4, "high": 0.6, "error": 0.05}
            for name in ("sim_aa_90", "inception_score", "frechet_distance_log_mel", "drums_auc")
        }
        sources = {"CLAP": "a", "reference": "r", "index": "i", "classifier": "c"} | sources
        return {"metrics": metrics, "single": {}, "prompts": [None], "sources": sources}

    assert set(compare(side(), side())) == set(side()["metrics"])
    assert set(incomparable(side(), side(CLAP="b"))) == {"sim_aa_90"}
    assert incomparable(side(), side(classifier="d", index="j")) == {
        "sim_aa_90": "another index",
        "inception_score": "another classifier",
    }
    assert set(compare(side(), side(reference="s"))) == {"sim_aa_90", "inception_score", "drums_auc"}


def test_recordings_that_change_are_measured_again(tmp_path):
    rng, tone = np.random.default_rng(0), np.sin(np.arange(16_000) / 5)
    write_audio(tmp_path / "b.wav", 0.3 * tone, 16_000)
    clips = [Clip(tmp_path / "b.wav", "a song in C major")]
    (steady,) = measure_clips(clips, tmp_path, False)
    clicks = np.where(rng.random(16_000) < 0.0005, 0.9, 0.0)
    write_audio(tmp_path / "a.wav", clicks, 16_000)
    clips = [Clip(tmp_path / "a.wav", None), *clips]
    struck, same = measure_clips(clips, tmp_path, False)
    assert same == steady
    assert struck["percussive_share"] > steady["percussive_share"]
    write_audio(tmp_path / "b.wav", clicks[:12_000], 16_000)
    assert measure_clips(clips[1:], tmp_path, False)[0] != steady


def test_each_row_of_the_report_says_what_it_measures():
    meanings = [meaning for meaning, _ in MEANING.values()]
    assert len(set(meanings)) == len(meanings)
    assert not [meaning for meaning in meanings if re.search(r"\bthe same\b|\bditto\b", meaning)]


def test_a_page_plays_recordings_at_any_rate(tmp_path):
    write_audio(tmp_path / "a.wav", 0.1 * np.sin(np.arange(9600) / 5), 96_000)
    clips = [{"file": "a.wav", "prompt": None}]
    report = {"title": "", "about": "", "notes": [], "metrics": {}, "single": {}, "base_rate": None, "clips": clips}
    (encoded,) = re.findall(r'"data:audio/mpeg;base64,([^"]+)"', page(report, tmp_path))
    waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)))
    assert rate == 48_000
    assert abs(np.abs(np.fft.rfft(waveform, rate)).argmax() - 96_000 / 5 / (2 * np.pi)) < 5  # Hz


def test_intervals_of_shares_are_wilsons():
    estimate = share(np.arange(20) < 3)
    assert (estimate.value, *estimate[1:3]) == pytest.approx((0.15, 0.0524, 0.3604), abs=1e-4)
    none = share(np.zeros(10))
    assert (none.low, none.high) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_what_prompts_ask_for():
    assert asked("drums at 96 beats per minute in F# minor") == {"tempo_bpm": 96.0, "key": "F# minor", "drums": True}
    assert asked("a piano in B flat major, no drums") == {"tempo_bpm": None, "key": "Bb major", "drums": False}
    for prompt in ("without any drums", "no bass or drums", "drumless ambient"):
        assert asked(prompt)["drums"] is False
    assert asked("no vocals, drums and bass")["drums"] is True
    keys = {"E-flat major": "Eb major", "C-sharp minor": "C# minor", "a waltz in c minor": "C minor"}
    keys |= {"Cb major": "B major", "in a minor key": None, "E# minor": "F minor"}
    assert {prompt: asked(prompt)["key"] for prompt in keys} == keys
    tempi = {"1200 BPM": None, "120.5 BPM": 120.5, "00 BPM": None, "at 64 bpm": 64.0}
    assert {prompt: asked(prompt)["tempo_bpm"] for prompt in tempi} == tempi
    assert asked(None) == {"tempo_bpm": None, "key": None, "drums": None}


def test_bad_input_is_one_line(tiny_folder, tmp_path, capsys):
    (tmp_path / "none.txt").write_text("\n\n")
    (tmp_path / "one.txt").write_text("a waltz\n")
    silent = tmp_path / "silent"
    silent.mkdir()
    write_audio(silent / "0.wav", np.zeros(8000), 8000)
    (tmp_path / "broken.json").write_text("{")
    model = ["--model", tiny_folder]
    common = ["--out", tmp_path / "out", *model, "--seconds", 1, "--steps", 1]
    (tmp_path / "many.txt").write_text("a waltz\n" * 4)
    other = tmp_path / "other"
    other.mkdir()
    write_audio(other / "0.wav", np.random.default_rng(0).normal(size=8000) * 0.1, 8000)
    for arguments, message in (
        (["--prompts", other, *common], "no prompts"),
        (["--audio", other, "--probe", other, *model, "--out", tmp_path / "out3"], "render"),
        (["--audio", other, "--index", other, *model, "--out", tmp_path / "out4"], "no novelty index"),
        (["--audio", tmp_path / "nothing", *model, "--out", tmp_path / "out5"], "no recordings"),
        (["--audio", other, *common], "does not use --seconds"),
        (["--compare", tmp_path / "broken.json", tmp_path / "broken.json", "--index", other], "does not use --index"),
        (["--card", tmp_path / "broken.json", "--steps", 3], "does not use --steps"),
        (["--prompts", tmp_path / "many.txt", *common, "--reference", tmp_path / "nothing"], "no recordings"),
        (["--prompts", tmp_path / "many.txt", *common, "--probe", tmp_path / "nothing"], "no recordings"),
        (["--prompts", tmp_path / "many.txt", *common, "--reference", other], "four clips or more"),
        (["--prompts", tmp_path / "none.txt", *common], "no prompts"),
        (["--prompts", tmp_path / "one.txt", *common], "two or more clips"),
        (["--audio", silent, *model, "--out", tmp_path / "out2"], "silent"),
        (["--prompts", tmp_path / "one.txt"], "--out"),
        (["--compare", tmp_path / "broken.json", tmp_path / "broken.json"], "not a metrics.json"),
    ):
        assert main(["evaluate", *map(str, arguments)]) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert message in err
    assert not list((tmp_path / "out" / "audio").glob("*.wav"))[2:]  # mistakes are found before music is made
