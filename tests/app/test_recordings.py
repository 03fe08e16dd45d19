"""Recordings that clients send: kept while a job or a result needs them, and named as the client names them."""

import hashlib

import numpy as np
import pytest

from musicldm.app.options import Options
from musicldm.audio import read_recipe, write_audio
from musicldm.audio.marks import NEW as MADE
from musicldm.generate import Session
from musicldm.novelty import CopyError
from tests.app.helpers import QUICK, ended, made, samples, wav

NEW, EDIT = "/v1/generations", "/v1/edits"
ASKED = {name: value for name, value in QUICK.items() if name != "audio_length_in_s"}
EXTEND = {"kind": "extend", "prompt": "drums", "after_s": "0.3", "num_inference_steps": "2"}
SONG = wav(0.5)
ONE, OTHER = ({"Authorization": f"Bearer {token}"} for token in ("first-token", "second-token"))


@pytest.fixture
def with_contexts(options, context_folder):
    """Options of a server with a model that goes along with recordings, in a new folder."""
    return options(models=(str(context_folder),))


def left(options: Options) -> list[str]:
    """What is left of uploads."""
    return sorted(path.suffix for path in (options.out / ".musicldm" / "uploads").glob("*"))


def along(server, headers=None, **fields) -> str:
    """The id of music that was made along with `SONG`."""
    answer = server.post(NEW, data=ASKED | fields, files={"along": ("My song.wav", SONG)}, headers=headers)
    assert answer.status_code == 202, answer.text
    server.headers.update(headers or {})
    state = ended(server, answer.json())
    assert state["status"] == "done", state
    return state["id"]


def retake(server, source: str) -> dict:
    """The job of a retake, ended."""
    answer = server.post(EDIT, json={"kind": "retake", "source": source, "seed": 9})
    assert answer.status_code == 202, answer.text
    return ended(server, answer.json())


def test_an_edited_recording_is_kept_until_the_job_has_ended(options, run):
    wanted = options()
    with run(wanted) as server:
        long = server.post(NEW, json=QUICK | {"num_inference_steps": 300}).json()
        jobs = [server.post(EDIT, data=EXTEND, files={"audio": ("My take.wav", SONG)}).json() for _ in range(2)]
        assert left(wanted) == [".json", ".json", ".wav", ".wav"]
        server.delete(f"/v1/jobs/{jobs[0]['id']}")
        assert left(wanted) == [".json", ".wav"]
        server.delete(f"/v1/jobs/{long['id']}")
        assert ended(server, jobs[1])["status"] == "done"
        made(server)  # after which the job before has been put away
        assert left(wanted) == []
        recipe = server.get(f"/v1/results/{jobs[1]['id']}/recipe").json()
        own = hashlib.sha256(SONG).hexdigest()
        assert (recipe["source"], recipe["source_sha256"]) == ("My take.wav", own)


def test_what_goes_along_is_kept_for_retakes_over_restarts(with_contexts, run):
    with run(with_contexts) as server:
        first = along(server)
        recipe = server.get(f"/v1/results/{first}/recipe").json()
        assert (recipe["along"], recipe["along_sha256"]) == ("My song.wav", hashlib.sha256(SONG).hexdigest())
        server.patch(f"/v1/results/{first}", json={"deleted": True})
    with run(with_contexts) as server:
        assert left(with_contexts) == [".json", ".wav"]
        server.patch(f"/v1/results/{first}", json={"deleted": False})
        second = retake(server, first)
        assert second["status"] == "done", second
        recipe = server.get(f"/v1/results/{second['id']}/recipe").json()
        assert (recipe["along"], recipe["along_sha256"]) == ("My song.wav", hashlib.sha256(SONG).hexdigest())
        assert recipe["context_kinds"] == ["along"]
        assert retake(server, second["id"])["status"] == "done"
    for path in with_contexts.out.glob("*.wav"):
        path.unlink()
    (with_contexts.out / ".musicldm" / "uploads" / "0.upload").write_bytes(b"half of a file")
    with run(with_contexts):
        assert left(with_contexts) == []


def test_a_retake_along_with_an_earlier_result(with_contexts, run):
    with run(with_contexts) as server:
        (first,) = made(server, audio_length_in_s=0.5)["results"]
        job = ended(server, server.post(NEW, json=ASKED | {"along": first}).json())
        file = server.get(f"/v1/results/{first}").json()["file"]
        assert server.get(f"/v1/results/{job['id']}/recipe").json()["along"] == file
        assert retake(server, job["id"])["status"] == "done"


def test_a_job_that_waits_keeps_its_recording_over_a_restart(with_contexts, run):
    with run(with_contexts) as server:
        server.post(NEW, json=QUICK | {"num_inference_steps": 300})
        job = server.post(NEW, data=ASKED, files={"along": ("song.wav", SONG)}).json()
    assert left(with_contexts) == [".json", ".wav"]
    with run(with_contexts) as server:
        for other in server.get("/v1/jobs").json():
            if other["id"] != job["id"]:
                server.delete(f"/v1/jobs/{other['id']}")
        assert ended(server, job)["status"] == "done"


def test_recipes_of_uploads_open_no_files(with_contexts, run, tmp_path):
    (tmp_path / "private.wav").write_bytes(SONG)
    with run(with_contexts) as server:
        piece = made(server, audio_length_in_s=0.5)["id"]
        path = with_contexts.out / server.get(f"/v1/results/{piece}").json()["file"]
        recipe = read_recipe(path)
        private = {"along": str(tmp_path / "private.wav")}
        cases = [
            ("is not here", private),
            ("is not here", private | {"along_sha256": hashlib.sha256(SONG).hexdigest()}),
            ("(lora)", {"lora": [str(tmp_path)]}),
        ]
        for message, changes in cases:
            write_audio(tmp_path / "made.wav", np.zeros(4000, np.float32) + 0.1, 8000, recipe | changes, MADE)
            content = (tmp_path / "made.wav").read_bytes()
            answer = server.post(EDIT, data={"kind": "retake"}, files={"audio": ("made.wav", content)})
            assert answer.status_code == 422, answer.text
            assert message in answer.json()["detail"]
        assert left(with_contexts) == []


def test_nobody_goes_along_with_the_recording_of_another(options, run, context_folder):
    wanted = options(models=(str(context_folder),), tokens=("first-token", "second-token"))
    with run(wanted) as server:
        first = along(server, ONE)
        content = server.get(f"/v1/results/{first}/audio").content
        answer = server.post(EDIT, data={"kind": "retake"}, files={"audio": ("a.wav", content)}, headers=OTHER)
        assert answer.status_code == 422
        assert "'My song.wav', is not here" in answer.json()["detail"]
        assert server.post(EDIT, data={"kind": "retake"}, files={"audio": ("a.wav", content)}).status_code == 202


def test_pictures_are_there_whenever_they_are_asked_for(options, run):
    wanted = options()
    with run(wanted) as server:
        identity = made(server)["id"]
        picture = server.get(f"/v1/results/{identity}/figure").content
        path = (wanted.out / server.get(f"/v1/results/{identity}").json()["file"]).with_suffix(".png")
        assert path.read_bytes() == picture
        path.unlink()  # as if the process had ended before it was drawn
    with run(wanted) as server:
        assert server.get(f"/v1/results/{identity}/figure").content[:4] == b"\x89PNG"
        assert path.is_file()
        sent = server.post("/v1/recordings", files={"audio": ("take.wav", SONG)}).json()
        assert server.get(f"/v1/results/{sent['id']}/figure").status_code == 200


def test_music_of_which_a_part_was_refused_goes_to_those_who_asked(options, run, monkeypatch):
    whole = Session.run_many

    def without_the_first(session, requests, *others):
        pieces = list(whole(session, requests, *others))
        yield from pieces[1:]
        raise CopyError("too near", refused=(0,))

    with run(options()) as server:
        alone = samples(server, made(server, seed=6)["id"])
        with monkeypatch.context() as patch:
            patch.setattr(Session, "run_many", without_the_first)
            job = server.post(NEW, json=QUICK | {"seed": 5, "num_waveforms_per_prompt": 2}).json()
            state = ended(server, job)
        assert (state["status"], state["error"]) == ("done", "too near")
        assert state["results"] == [f"{job['id']}-2"]
        assert np.abs(samples(server, state["results"][0]).astype(int) - alone).max() <= 2
