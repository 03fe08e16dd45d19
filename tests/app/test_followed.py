"""Chords, MIDI files, melodies and recordings that clients send to be followed."""

import hashlib
import io

import mido
import numpy as np
import pytest

from musicldm.scores import Sketch
from musicldm.scores.packing import unpack
from tests.app.helpers import QUICK, ended, made, samples, wav
from tests.helpers.scores import write_score

ASKED = {name: value for name, value in QUICK.items() if name != "audio_length_in_s"}
NEW = "/v1/generations"
RATE = 8_000


@pytest.fixture(scope="module")
def server(options, run, context_folder, tiny_folder):
    """A client of a server with a model that takes contexts, and one that does not."""
    with run(options(models=(str(context_folder), str(tiny_folder)))) as client:
        yield client


@pytest.fixture
def tune(tmp_path):
    """A MIDI file of two tracks, 1 s long."""
    write_score(tmp_path / "tune.mid", [(0.0, 1.0, 60, 0), (1.0, 1.0, 64, 0), (0.0, 2.0, 43, 1)])
    return (tmp_path / "tune.mid").read_bytes()


def left(server) -> list[str]:
    """Names of uploads that are still there."""
    folder = server.app.state.server.uploads
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_page_can_ask_what_a_model_follows(server):
    able, unable = server.get("/v1/models").json()
    assert able["context_kinds"] == ["notes", "melody", "chords", "bass", "drums", "click", "along", "hole"]
    assert unable["context_kinds"] == []


def test_chords_are_followed_and_their_score_can_be_had(server):
    answer = server.post(NEW, json=ASKED | {"chords": "Am F", "meter": "3/4", "rhythm": "comp"})
    assert answer.status_code == 202, answer.text
    (identity,) = ended(server, answer.json())["results"]
    assert len(samples(server, identity)) == 3 * RATE
    recipe = server.get(f"/v1/results/{identity}/recipe").json()
    expected = Sketch.from_chords("Am F", 120, "3/4", "comp")
    assert np.array_equal(unpack(recipe["context"]).notes, expected.notes)
    score = server.get(f"/v1/results/{identity}/midi")
    assert score.headers["content-type"] == "audio/midi"
    assert mido.MidiFile(file=io.BytesIO(score.content)).length == pytest.approx(3.0, abs=1e-3)
    (listed,) = [one for one in server.get("/v1/results").json() if one["id"] == identity]
    assert "context" not in listed["recipe"]  # which may be long
    assert listed["recipe"]["context_kinds"] == ["chords"]
    (plain,) = made(server, audio_length_in_s=0.32)["results"]
    assert server.get(f"/v1/results/{plain}/midi").status_code == 404


def test_files_of_a_form_are_followed_together(server, tune):
    files = {"midi": ("tune.mid", tune), "along": ("song.wav", wav(1.0))}
    answer = server.post(NEW, data=ASKED | {"tracks": "1", "context_guidance_scale": 2}, files=files)
    assert answer.status_code == 202, answer.text
    (identity,) = ended(server, answer.json())["results"]
    recipe = server.get(f"/v1/results/{identity}/recipe").json()
    assert recipe["context_kinds"] == ["notes", "along"]
    assert recipe["context_guidance"] == 2
    assert unpack(recipe["context"]).notes["pitch"].tolist() == [60, 64]
    assert (recipe["along"], recipe["along_sha256"]) == ("song.wav", hashlib.sha256(wav(1.0)).hexdigest())


def test_music_goes_along_with_an_earlier_result(server):
    (first,) = made(server, audio_length_in_s=0.5)["results"]
    answer = server.post(NEW, json=ASKED | {"along": first})
    (identity,) = ended(server, answer.json())["results"]
    assert len(samples(server, identity)) == RATE // 2
    assert server.get(f"/v1/results/{identity}").json()["parent"] == first


def test_edits_follow_chords(server):
    (first,) = made(server, audio_length_in_s=1.0)["results"]
    asked = {"kind": "extend", "source": first, "after_s": 1.0, "num_inference_steps": 2, "prompt": "a harp"}
    answer = server.post("/v1/edits", json=asked | {"chords": "C", "bpm": 240})
    assert answer.status_code == 202, answer.text
    (identity,) = ended(server, answer.json())["results"]
    assert server.get(f"/v1/results/{identity}/recipe").json()["context_kinds"] == ["chords"]
    assert server.get(f"/v1/results/{identity}/midi").status_code == 200


@pytest.mark.parametrize(
    ("fields", "files", "status", "message"),
    [
        ({"chords": "Am Foo"}, {}, 422, "'Foo' is no chord that is known"),
        ({"rhythm": "comp"}, {}, 422, "rhythm (--rhythm) needs chords"),
        ({"chords": "C", "rhythm": "swing"}, {}, 422, "rhythm"),
        ({"chords": "C", "meter": "x"}, {}, 422, "meter must be"),
        ({"chords": "C", "context_guidance_scale": -1}, {}, 422, "context_guidance_scale"),
        ({"context_guidance_scale": 2}, {}, 422, "there is nothing to follow"),
        ({"along": "nope"}, {}, 404, "no result 'nope'"),
        ({"along": "/etc/passwd"}, {}, 404, "no result"),
        ({"tracks": "3"}, {"midi": "TUNE"}, 422, "tune.mid has 2 channels with notes, counted from 1; there is no 3"),
        ({}, {"midi": b"no MIDI"}, 422, "tune.mid is not a readable MIDI file"),
        ({}, {"melody": b"no audio"}, 422, "the upload cannot be used"),
        ({}, {"along": b"no audio"}, 422, "the upload cannot be used"),
        ({}, {"score": "TUNE"}, 422, "there is no file 'score'"),
        ({"model": "PLAIN", "chords": "C"}, {}, 422, "has no channels for a context"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_sentence(server, tune, tiny_folder, fields, files, status, message):
    fields = {name: str(tiny_folder) if value == "PLAIN" else value for name, value in fields.items()}
    sent = {name: ("tune.mid", tune if content == "TUNE" else content) for name, content in files.items()}
    before = left(server)
    asked = {"files": sent, "data": ASKED | fields} if sent else {"json": ASKED | fields}
    answer = server.post(NEW, **asked)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]
    assert ".upload" not in answer.json()["detail"]
    assert left(server) == before
