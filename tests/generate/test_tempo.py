"""Music at a tempo: which candidate is taken, what becomes of it, and that it can be made again."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from musicldm import MusicLDMPipeline
from musicldm.audio import write_audio
from musicldm.audio.loop_chunks import Loop
from musicldm.editing.tempo import is_tempo
from musicldm.generate import Edit, Request, Session
from musicldm.generate.metre import bars_s
from musicldm.generate.recipe import complete, compose
from musicldm.generate.tempo import PULSES, TempoError, in_tempo, loop_of, stated
from musicldm.models.clap import clap_feature_extractor
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.novelty import CopyError
from musicldm.novelty.build import build_index
from musicldm.sampling import LeaningGenerator
from tests.helpers.melodies import RATE as MELODY_RATE
from tests.helpers.melodies import melody
from tests.helpers.rhythm import drum_track

RATE = 8_000  # of the tiny model
REQUESTS = [
    Request("a waltz", 1, bpm=120.0, seconds=2.0, steps=2, force=True, candidates=5),
    Request("a waltz", 1, bpm=120.0, bars=1, loop=True, steps=2, force=True, candidates=1),
    Request("a waltz", 1, loop=True, seconds=1.03, steps=2),
]
OPENED = {"model": "mini", "dtype": "float32", "fast": True}
SIX_SECONDS = Request("a waltz", 10, bpm=120.0, seconds=6.0, candidates=8)


@pytest.fixture(autouse=True)
def _librosa(monkeypatch):
    """Librosa tracks the beats, which is always there."""
    monkeypatch.setitem(sys.modules, "madmom", None)


pytestmark = pytest.mark.filterwarnings("ignore:madmom is not installed")


@pytest.fixture(scope="module")
def session(tiny_folder):
    return Session(tiny_folder, "cpu", fast=False)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Drummer:
    """Makes drum tracks of the given tempos, one after another, and notes what it was asked for."""

    def __init__(self, *tempos):
        self.tempos, self.rounds = list(tempos), []

    def __call__(self, requests, noise):
        self.rounds.append((requests, noise(0)))
        made = [self.tempos.pop(0) for _ in requests]
        return [
            bpm if bpm is None else (drums(bpm, request), None) for bpm, request in zip(made, requests, strict=True)
        ]


def drums(bpm, request):
    n_samples = round(request.seconds * RATE)
    if not bpm:
        return np.zeros(n_samples, np.float32)
    waveform, _, _ = drum_track(bpm, 4, start_s=0.1, rate=RATE)
    return np.resize(waveform, n_samples)


def make(request, drummer, pipeline):
    return in_tempo(request, pipeline, drummer, seeded)


def test_the_nearest_candidate_is_taken_and_stretched(tiny_pipeline):
    drummer = Drummer(158, 101, 126, 137)
    made = make(SIX_SECONDS, drummer, tiny_pipeline)
    assert (made.take.seed, made.take.place, made.take.tried, made.take.pulse) == (10, 2, 4, 0)
    assert made.take.speed == pytest.approx(120 / 126, abs=0.02)
    assert made.waveform.shape == (6 * RATE,)
    tempo = made.found["tempo"]
    assert tempo["asked_bpm"] == 120
    assert tempo["measured_bpm"] == pytest.approx(126, rel=0.02)
    assert tempo["stretched"] == pytest.approx(1 / made.take.speed, abs=1e-5)
    assert is_tempo(120, tempo["result_bpm"])
    ((asked, noise),) = drummer.rounds
    assert [one.seed for one in asked] == [10, 11, 12, 13]
    assert {one.prompt for one in asked} == {"a waltz at 120 BPM"}
    assert all(one.bpm is None and one.seconds > 6 * 1.08 for one in asked)
    assert not isinstance(noise, LeaningGenerator)


def test_where_none_is_near_the_next_ones_have_a_pulse(tiny_pipeline):
    drummer = Drummer(145, 100, None, 0, 120, 145, 145, 145)
    made = make(SIX_SECONDS, drummer, tiny_pipeline)
    assert (made.take.seed, made.take.place, made.take.tried, made.take.pulse) == (14, 0, 8, PULSES[1])
    asked, noise = drummer.rounds[1]
    assert [one.seed for one in asked] == [14, 15, 16, 17]
    assert isinstance(noise, LeaningGenerator)
    assert noise.lean.std() == pytest.approx(PULSES[1], rel=1e-3)
    # it swells every half second: a latent frame lasts 0.04 s
    course = noise.lean.square().sum(dim=(0, 2)).numpy()
    spectrum = np.abs(np.fft.rfft(course - course.mean()))
    cycles = spectrum[1:].argmax() + 1
    assert cycles / (len(course) * 0.04) == pytest.approx(2, abs=0.2) or cycles % 2 == 0


def test_what_fits_the_prompt_much_less_is_taken_last(exact_pipeline, monkeypatch):
    scores = iter([0.5, 0.4, 0.5, 0.4, 0.1, 0.2, 0.0, 0.1, 0.35, 0.1, 0.1, 0.1])
    monkeypatch.setattr(exact_pipeline, "similarity", lambda audios, embedding: torch.tensor([[next(scores)]]))
    made = make(replace(SIX_SECONDS, candidates=12), Drummer(*[145] * 4, *[120] * 8), exact_pipeline)
    assert (made.take.seed, made.take.place, made.found["score"]) == (18, 0, 0.35)
    scores = iter([0.5, 0.4, 0.5, 0.4, 0.1, 0.2, 0.0, 0.1])
    made = make(SIX_SECONDS, Drummer(*[145] * 4, *[120] * 4), exact_pipeline)
    assert (made.take.seed, made.take.place, made.found["score"]) == (14, 1, 0.2)


def test_a_candidate_at_half_the_tempo_is_at_the_tempo(tiny_pipeline):
    made = make(replace(SIX_SECONDS, bpm=160.0, candidates=1), Drummer(80), tiny_pipeline)
    assert made.found["tempo"]["measured_bpm"] == pytest.approx(80, rel=0.02)
    assert made.take.speed == pytest.approx(1, abs=0.02)


def test_what_no_candidate_reaches_is_refused_unless_forced(tiny_pipeline):
    request = replace(SIX_SECONDS, candidates=3)
    with pytest.raises(TempoError, match=r"none of 3 candidates of 'a waltz' comes near 120 BPM: .* 10[0-9]\.\d BPM"):
        make(request, Drummer(158, 104, 152), tiny_pipeline)
    made = make(replace(request, force=True), Drummer(158, 104, 152), tiny_pipeline)
    assert (made.take.place, made.take.tried) == (1, 3)
    assert made.take.speed == pytest.approx(1.08)
    assert made.waveform.shape == (6 * RATE,)
    with pytest.raises(TempoError, match="has a beat"):
        make(replace(request, candidates=1), Drummer(0), tiny_pipeline)
    silent = make(replace(request, candidates=1, force=True), Drummer(0), tiny_pipeline)
    assert not silent.waveform.any()
    with pytest.raises(CopyError, match="all candidates"):
        make(request, Drummer(None, None, None), tiny_pipeline)


def test_a_take_is_made_again_without_choosing(tiny_pipeline):
    made = make(SIX_SECONDS, Drummer(158, 101, 126, 137), tiny_pipeline)
    drummer = Drummer(158, 101, 126, 137)
    again = make(replace(SIX_SECONDS, take=made.take), drummer, tiny_pipeline)
    assert np.array_equal(again.waveform, made.waveform)
    assert (again.take, again.found) == (made.take, made.found)
    assert [one.seed for one in drummer.rounds[0][0]] == [10, 11, 12, 13]  # a batch is made as it was


def test_a_loop_is_turned_to_a_downbeat(tiny_pipeline):
    request = Request("a waltz", 1, bpm=126.0, bars=3, loop=True, candidates=1)
    n_samples = round(3 * 4 * 60 / 126 * RATE)

    def loop(requests, noise):
        (one,) = requests
        assert one.loop
        quantum = 320
        length = round(one.seconds * RATE)
        assert length % quantum == 0
        assert abs(length - n_samples) <= quantum / 2
        bar, _, _ = drum_track(60 * 12 / (length / RATE), 4, start_s=0.0, rate=RATE)
        return [(np.roll(bar[:length], 3_210), None)]

    made = in_tempo(request, tiny_pipeline, loop, seeded)
    assert made.waveform.shape == (n_samples,)
    assert is_tempo(126, made.found["tempo"]["result_bpm"])
    assert 0 <= made.found["seam_quantile"] <= 1
    # kicks, which are low, come on the first of the bars
    low = np.fft.irfft(np.fft.rfft(made.waveform) * (np.fft.rfftfreq(n_samples, 1 / RATE) < 150), n_samples)
    for bar in range(3):
        beats = np.roll(low, 200)[round(bar * n_samples / 3) :][: n_samples // 3]
        loudest = np.abs(beats).argmax() - 200
        assert -160 <= loudest <= 640


def test_a_session_makes_the_same_again(session):
    for request, piece in zip(REQUESTS, session.run_many(REQUESTS), strict=True):
        recipe = json.loads(json.dumps(piece.recipe))
        again = session.run(Request.from_recipe(recipe))
        assert np.array_equal(piece.waveform, again.waveform)
        assert again.recipe == piece.recipe
        assert piece.waveform.shape == (round(request.seconds * RATE),)
        assert ("tempo" in recipe) == (request.bpm is not None)
        assert ("seam_quantile" in recipe) == request.loop


@pytest.mark.parametrize("request_", REQUESTS[:2], ids=["line", "loop"])
def test_a_retake_of_nothing_is_the_same_piece(session, tmp_path, request_):
    session.run(request_).save(tmp_path / "piece.wav")
    session.run(Edit("retake", str(tmp_path / "piece.wav"), amount=0.0, seed=9)).save(tmp_path / "again.wav")
    piece, again = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("piece.wav", "again.wav"))
    assert np.array_equal(piece, again)
    assert piece.std() > 10


def test_the_guard_judges_candidates(tiny_parts, tmp_path):
    front_end = clap_feature_extractor(16_000, 5, hop_length=640, n_mels=16, f_max=8000.0)
    MusicLDMPipeline(**tiny_parts | {"feature_extractor": front_end}).save_pretrained(tmp_path / "model")
    session = Session(tmp_path / "model", "cpu", fast=False)
    (tmp_path / "data").mkdir()
    for i in range(4):
        write_audio(tmp_path / "data" / f"{i}.wav", melody(i), MELODY_RATE)
    clap = session.pipeline(SIX_SECONDS)
    embedder = ClapEmbedder(clap.text_encoder, clap.feature_extractor, clap.sampling_rate)
    build_index(tmp_path / "data", tmp_path / "index", embedder, progress=False)
    told = Request("a waltz", 1, steps=1, bpm=120.0, seconds=2.5, force=True, candidates=2, novelty="report")
    told = replace(told, index=tmp_path / "index")
    piece = session.run(told)
    assert piece.novelty == piece.recipe["nearest_training_clips"]
    assert piece.novelty is not None
    with pytest.raises(CopyError, match="all candidates of 'a waltz'") as error:
        session.run(replace(told, novelty="avoid", max_similarity=-0.99))
    assert error.value.refused == (0,)


def test_pieces_out_of_tempo_are_told_after_the_others(session):
    plain = Request("a waltz", 1, seconds=0.4, steps=1)
    silent = Request("a waltz", 1, bpm=120.0, seconds=1.0, steps=1, candidates=1)
    pieces = session.run_many([silent, plain])
    given = [next(pieces)]
    with pytest.raises(TempoError, match="120 BPM"):
        next(pieces)
    assert [piece.recipe["seconds"] for piece in given] == [0.4]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("calm piano", "calm piano at 96 BPM"),
        ("Calm piano. ", "Calm piano at 96 BPM"),
        ("techno at 128 BPM", "techno at 128 BPM"),
        ("a reel, 100 beats per minute", "a reel, 100 beats per minute"),
        ("bpm", "bpm at 96 BPM"),
    ],
)
def test_prompts_name_the_tempo(prompt, text):
    assert stated(prompt, 96.2) == text


def test_what_a_file_says_of_its_loop():
    request = Request("a waltz", 1, bpm=93.5, bars=3, meter="7/8", loop=True)
    assert loop_of(compose(request, OPENED, {})) == Loop(21, 7, 8, 93.5)
    assert loop_of({"loop": True}) == Loop()
    assert loop_of({"prompt": "a waltz"}) is None


@pytest.mark.parametrize(
    ("meter", "seconds"), [(None, 8.0), ("3/4", 6.0), ("6/8", 12.0), ("7/8", 14.0), ("1/4", 2.0), ("12/16", 24.0)]
)
def test_bars_are_as_long_as_their_beats(meter, seconds):
    assert bars_s(120, 4, meter) == seconds
    request = Request("a waltz", bpm=120, bars=4, meter=meter, loop=True)
    assert request.seconds == seconds
    assert request.meter == (meter or "4/4")
    assert request.candidates == 16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bpm": 0}, "from 20 to 300"),
        ({"bpm": -120.0}, "from 20 to 300"),
        ({"bpm": 301}, "from 20 to 300"),
        ({"bpm": float("nan")}, "finite"),
        ({"bpm": "fast"}, "number"),
        ({"bpm": True}, "number"),
        ({"bars": 4, "loop": True}, "no tempo for bars=4"),
        ({"meter": "3/4"}, "no tempo for meter='3/4'"),
        ({"force": True}, "no tempo for force=True"),
        ({"force": 1}, "force must be"),
        ({"bpm": 120, "loop": True}, "counted in bars"),
        ({"bpm": 120, "bars": 4}, "counted in bars"),
        ({"bpm": 120, "bars": 0, "loop": True}, "bars must be a whole number"),
        ({"bpm": 120, "bars": 1.5, "loop": True}, "bars must be a whole number"),
        ({"bpm": 300, "bars": 1, "loop": True}, "last 0.80 s; a loop lasts 1 s"),
        ({"bpm": 120, "bars": 1, "loop": True, "seconds": 3.0}, "leave seconds=3.0 out"),
        ({"bpm": 120, "bars": 1, "loop": True, "meter": "0/4"}, "meter must be"),
        ({"bpm": 120, "bars": 1, "loop": True, "meter": "4/5"}, "meter must be"),
        ({"bpm": 120, "bars": 1, "loop": True, "meter": "waltz"}, "meter must be"),
        ({"bpm": 120, "bars": 1, "loop": True, "meter": 4}, "meter must be"),
        ({"bpm": 120, "take": {"seed": 1}}, "take has no made_samples, place, size"),
        ({"bpm": 120, "take": {"seed": 1, "size": 1, "place": 1, "made_samples": 9}}, "take's place"),
        ({"bpm": 120, "take": {"seed": 1, "size": 1, "place": 0, "made_samples": 9, "speed": 2}}, "take's speed"),
        ({"bpm": 120, "take": {"seed": 1, "size": 1, "place": 0, "made_samples": 9, "x": 2}}, "unknown fields x"),
        ({"bpm": 120, "take": 3}, "take must be"),
        ({"bpm": 120, "sections": (("a", 2.0),)}, "sections cannot"),
    ],
)
def test_bad_tempos_and_bars_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Request("a waltz", 1, **given)


def test_recipes_of_before_are_valid():
    old = {"prompt": "a waltz", "seed": 3, "model": "mini", "seconds": 10.24, "steps": 25, "guidance": 4.0}
    old |= {"negative": "", "candidates": 2, "scheduler": "dpm++", "dtype": "float32"}
    assert "bpm" not in complete(old)
    request = Request.from_recipe(old)
    assert (request.bpm, request.loop, request.candidates) == (None, False, 2)
    assert not {"bpm", "bars", "meter", "force", "take", "loop"} & set(compose(request, OPENED, {}))
