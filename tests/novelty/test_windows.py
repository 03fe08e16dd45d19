"""Windows of 2 s: planted ones are found with their place, and an index does without them where they were left out."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from musicldm.analysis.key import pitch_bands
from musicldm.audio import read_audio, write_audio
from musicldm.cli import main
from musicldm.cli.novelty import load_embedder
from musicldm.novelty.build import build_index
from musicldm.novelty.check import check, judge, nearest_window, record
from musicldm.novelty.index import VERSION, NoveltyIndex, make_faiss
from musicldm.novelty.windows import cut_windows, embed_windows
from tests.helpers.melodies import RATE, melody

BASE_RATE = {"similarity_99": 0.9, "score_95": 0.5, "score_99": 0.6, "window_similarity_99": 0.8}


class Pitches:
    """An embedding that tells music apart by the notes in it, in place of a CLAP that does."""

    name, clip_s, size = "pitches", 10.0, 60
    feature_extractor = SimpleNamespace(sampling_rate=RATE)

    def __call__(self, waveforms, sample_rate):
        rows = np.stack([pitch_bands(waveform.numpy(), sample_rate).mean(axis=0) for waveform in waveforms])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("melodies")
    for seed in range(8):
        write_audio(folder / f"{seed}.wav", melody(seed), RATE)
    return folder


@pytest.fixture(scope="module")
def index(data, tmp_path_factory):
    return build_index(data, tmp_path_factory.mktemp("index") / "index", Pitches(), progress=False)


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    return build_index(data, tmp_path_factory.mktemp("plain") / "index", Pitches(), progress=False, windows=False)


@pytest.fixture(scope="module")
def planted(data):
    """6 s of other music that hold the seconds from 2 to 4 of melody 5 from 3 to 5."""
    new = melody(100, 6)
    new[3 * RATE : 5 * RATE] = read_audio(data / "5.wav", RATE)[0][2 * RATE : 4 * RATE]
    return new


def test_windows_cover_what_sounds():
    waveform = melody(0)
    waveform[: 3 * RATE] = 0
    starts_s, windows = cut_windows(waveform, RATE, 2.0)
    assert starts_s == [2.0, 3.0]  # from 0 there is silence; the last one ends where the music does
    assert np.array_equal(windows, [waveform[2 * RATE : 4 * RATE], waveform[3 * RATE :]])
    assert cut_windows(waveform[: 2 * RATE - 1], RATE, 2.0) == ([], [])
    assert embed_windows([], RATE, Pitches()).shape == (0, 60)


def test_a_window_inside_new_music_is_found_with_its_place(index, planted):
    found = check(planted, RATE, index, Pitches())
    told = record("new.wav", found, index)["window"]
    assert told["similarity"] == pytest.approx(1.0, abs=1e-4)
    assert told["similarity"] > told["threshold"]
    assert found.similarity < 0.99  # the clip as a whole hides it
    place = [told[key] for key in ("recording", "start_s", "query_start_s", "duration_s", "title")]
    assert place == ["5.wav", 2.0, 3.0, 2.0, None]
    assert found.verdict != "new"


def test_places_are_those_of_long_recordings(tmp_path):
    (tmp_path / "data").mkdir()
    for seed in range(3):
        write_audio(tmp_path / "data" / f"{seed}.wav", melody(seed, 25), RATE)
    index = build_index(tmp_path / "data", tmp_path / "index", Pitches(), progress=False)
    assert index.about["windows"] == 3 * (5 + 5 + 3)  # the last 5 s are a clip of their own
    new = melody(100, 14)
    new[int(11.5 * RATE) : int(13.5 * RATE)] = melody(1, 25)[16 * RATE : 18 * RATE]
    window, query_start_s = nearest_window(new, RATE, index, Pitches())
    assert (window.recording["file"], window.start_s, query_start_s) == ("1.wav", 16.0, 11.5)


@pytest.mark.parametrize(
    ("similarity", "score", "window", "verdict"),
    [
        (0.89, 0.49, 0.79, "new"),
        (0.89, 0.49, 0.81, "close"),
        (1.00, 0.49, 1.00, "close"),  # no embedding alone makes a copy
        (0.89, 0.51, -1.0, "close"),
        (0.10, 0.61, -1.0, "copy"),
    ],
)
def test_windows_raise_a_verdict_to_close_at_most(similarity, score, window, verdict):
    assert judge(similarity, score, window, BASE_RATE) == verdict
    without = {name: value for name, value in BASE_RATE.items() if not name.startswith("window")}
    assert judge(similarity, score, -1.0, without) == judge(similarity, score, -1.0, BASE_RATE)


def test_the_base_rate_is_that_of_what_a_check_does(index, data):
    nearest = []
    for seed in range(8):
        starts_s, windows = cut_windows(melody(seed), RATE, 0.5)
        assert len(starts_s) == 7
        similarities, numbers = index.search_windows(embed_windows(windows, RATE, Pitches()), index.windows.ntotal)
        others = index.recording_of[index.clip_of_window[numbers]] != seed
        nearest.append(similarities[others].max())
    assert index.window_threshold >= max(nearest) - 1e-4  # eight clips do not tell one in a hundred
    assert index.about["base_rate"]["window_similarity_50"] == pytest.approx(np.median(nearest), abs=1e-4)


def test_an_index_without_windows_works_and_says_so(plain, index, data, planted, tmp_path, capsys, monkeypatch):
    assert index.about["windows"] == 8 * 3
    assert plain.about["windows"] == 0
    assert plain.windows is None
    assert not (plain.folder / "windows.faiss").exists()
    found = check(planted, RATE, plain, Pitches())
    assert found.window is None
    told = record("new.wav", found, plain)
    assert (told["window"], told["base_rate"]["window_similarity_99"]) == (None, None)
    with_windows = record("new.wav", check(planted, RATE, index, Pitches()), index)
    assert told["nearest"] == with_windows["nearest"]
    assert told["passage"] == with_windows["passage"]
    with pytest.raises(ValueError, match="without windows"):
        plain.search_windows(np.ones((1, 60)))

    monkeypatch.setattr("musicldm.cli.novelty.load_embedder", lambda model, device: Pitches())
    write_audio(tmp_path / "new.wav", planted, RATE)
    for options, built, checked in (
        ([], "24 windows of 2 s", "nearest window of 2 s 3.0 s as 5.wav at 2.0 s, similarity 1.000"),
        (["--no-windows"], "no windows of 2 s", "no windows of 2 s were compared"),
    ):
        out = str(tmp_path / f"index{len(options)}")
        assert main(["novelty", "index", str(data), "--out", out, *options]) == 0
        assert built in capsys.readouterr().out
        assert main(["novelty", "check", str(tmp_path / "new.wav"), "--index", out]) == 0
        assert checked in capsys.readouterr().out


def test_parts_without_windows_are_not_taken_for_an_index_with_them(data, tmp_path, monkeypatch):
    monkeypatch.setattr("musicldm.novelty.build.CLIPS_A_PART", 4)
    heard = []

    class Stops(Pitches):
        def __call__(self, waveforms, sample_rate):
            heard.append(len(waveforms))
            if sum(heard) > most:
                raise KeyboardInterrupt
            return super().__call__(waveforms, sample_rate)

    most = 6  # clips: one part, and half of the next
    with pytest.raises(KeyboardInterrupt):
        build_index(data, tmp_path / "index", Stops(), progress=False, windows=False)
    assert len(list((tmp_path / "index.partial").glob("part-*"))) == 1
    heard.clear()
    most = 1000
    made = build_index(data, tmp_path / "index", Stops(), progress=False)
    assert sum(heard) == 8 * (1 + 3) + 8 * 7  # everything again, and the windows of the base rate
    assert made.about["windows"] == 8 * 3


def test_older_indexes_and_wrong_vectors_are_refused(index, tmp_path):
    with pytest.raises(ValueError, match="60 dimensions"):
        index.search_windows(np.ones((1, 3)))
    with pytest.raises(ValueError, match="NaN"):
        index.search_windows(np.full((1, 60), np.nan))
    about = json.loads((index.folder / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(about | {"version": 2}))
    with pytest.raises(ValueError, match=f"index of version 2, but version {VERSION} is needed; build it again"):
        NoveltyIndex(tmp_path)


def test_eight_bits_keep_similarities_near_1_apart(tmp_path):
    import faiss

    rng = np.random.default_rng(0)  # a CLAP that tells little apart: all within 0.99 of each other, pairs within 0.9999
    embeddings = 1 + 0.1 * rng.normal(size=(20_500, 128)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    queries = embeddings[:50] + 0.001 * rng.normal(size=(50, 128)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    index = make_faiss(embeddings.astype(np.float16), small=True)
    squares, numbers = index.search(queries, 1)
    assert (numbers[:, 0] == np.arange(50)).all()
    np.testing.assert_allclose(1 - squares[:, 0] / 2, (queries * embeddings[:50]).sum(axis=1), atol=5e-6)
    faiss.write_index(index, str(tmp_path / "windows.faiss"))
    cells = 4 * 128 * index.nlist
    assert (tmp_path / "windows.faiss").stat().st_size - cells < 20_500 * (128 + 9)


def test_mini_finds_a_planted_window(data, planted, tmp_path):
    embedder = load_embedder("mini", "cpu")
    index = build_index(data, tmp_path / "index", embedder, progress=False)
    window, query_start_s = nearest_window(planted, RATE, index, embedder)
    assert (window.recording["file"], window.start_s, query_start_s) == ("5.wav", 2.0, 3.0)
    assert window.similarity == pytest.approx(1.0, abs=1e-4)


def test_windows_below_silence_are_not_compared(index):
    faint = np.zeros(6 * RATE, np.float32)
    faint[5] = 2e-4  # heard at its own rate, and no longer after resampling
    assert nearest_window(faint, 2 * RATE, index, Pitches()) is None
