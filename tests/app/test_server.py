"""The HTTP interface: requests become jobs, jobs become files; what is sent back, and what survives a restart."""

import io
import json
import sqlite3

import numpy as np
import pytest
import soundfile

from musicldm.app import Client
from musicldm.audio import read_recipe
from musicldm.audio.marks import EDITED, NEW, read_mark
from musicldm.generate import Request, Session
from tests.app.helpers import QUICK, ended, made, samples, wav


@pytest.fixture(scope="module")
def out(server):
    """The folder of the shared server's results."""
    return server.app.state.server.options.out


def test_a_request_becomes_a_job_and_a_file(server, out):
    answer = server.post("/v1/generations", json=QUICK | {"prompt": "slow waltz"})
    assert answer.status_code == 202
    job = answer.json()
    assert set(job) == {"id", "status", "position", "step", "steps", "seconds_left", "results", "error"}
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    state = ended(server, job)
    assert (state["status"], state["results"], state["error"]) == ("done", [job["id"]], None)
    assert state["step"] == state["steps"] == 2
    audio = server.get(f"/v1/results/{job['id']}/audio")
    assert audio.headers["content-type"] == "audio/wav"
    about = server.get(f"/v1/results/{job['id']}").json()
    path = out / about["file"]
    assert path.name == "slow-waltz_seed3.wav"
    assert path.read_bytes() == audio.content
    assert read_recipe(path) == server.get(f"/v1/results/{job['id']}/recipe").json() == about["recipe"]
    assert read_mark(path) == NEW
    assert (about["seconds"], about["sampling_rate"], about["channels"]) == (0.32, 8000, 1)
    assert server.get(f"/v1/results/{job['id']}/figure").content == path.with_suffix(".png").read_bytes()


def test_the_music_is_that_of_a_session(server, tiny_folder):
    here = samples(server, made(server, seed=11)["id"])
    piece = Session(str(tiny_folder), device="cpu").run(Request("calm piano", seconds=0.32, steps=2, seed=11))
    assert np.abs(here - np.round(piece.waveform * 32768)).max() <= 1


def test_jobs_that_wait_together_are_the_same_as_alone(server, options, run):
    alone = [samples(server, made(server, seed=seed)["id"]) for seed in (21, 22, 23)]
    with run(options()) as other:
        first = other.post("/v1/generations", json=QUICK | {"num_inference_steps": 20, "seed": 1}).json()
        jobs = [other.post("/v1/generations", json=QUICK | {"seed": seed}).json() for seed in (21, 22, 23)]
        assert ended(other, first)["status"] == "done"
        together = [samples(other, ended(other, job)["id"]) for job in jobs]
    for one, same in zip(alone, together, strict=True):
        assert np.abs(one.astype(int) - same).max() <= 2


def test_several_results_have_seeds_in_turn(server):
    state = made(server, num_waveforms_per_prompt=3, seed=5)
    assert state["results"] == [state["id"], f"{state['id']}-2", f"{state['id']}-3"]
    recipes = [server.get(f"/v1/results/{name}/recipe").json() for name in state["results"]]
    assert [recipe["seed"] for recipe in recipes] == [5, 6, 7]
    alone = samples(server, made(server, seed=6)["id"]).astype(int)
    assert np.abs(samples(server, state["results"][1]) - alone).max() <= 2


@pytest.mark.parametrize("format", ["flac", "mp3", "ogg", "opus"])
def test_results_come_in_other_formats_marked_as_they_are(server, tmp_path, format):
    identity = made(server)["id"]
    answer = server.get(f"/v1/results/{identity}/audio", params={"format": format, "download": True})
    assert answer.status_code == 200
    assert f".{format}" in answer.headers["content-disposition"]
    path = tmp_path / f"a.{format}"
    path.write_bytes(answer.content)
    assert read_mark(path) == NEW
    back, rate = soundfile.read(path)
    assert len(back) / rate == pytest.approx(0.32, abs=0.1)
    if format == "flac":
        assert np.array_equal(soundfile.read(path, dtype="int16")[0], samples(server, identity))


def test_parts_of_a_file_can_be_asked_for(server):
    identity = made(server)["id"]
    answer = server.get(f"/v1/results/{identity}/audio", headers={"Range": "bytes=0-3"})
    assert (answer.status_code, answer.content) == (206, b"RIFF")


def test_events_tell_of_each_change_until_the_end(server):
    job = server.post("/v1/generations", json=QUICK | {"num_inference_steps": 5}).json()
    with server.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert told[-1]["status"] == "done"
    steps = [one["step"] for one in told]
    assert steps == sorted(steps)


def test_a_waiting_job_is_cancelled_at_once_and_says_so(server):
    long = server.post("/v1/generations", json=QUICK | {"num_inference_steps": 200}).json()
    waiting = server.post("/v1/generations", json=QUICK | {"num_inference_steps": 3}).json()
    assert server.delete(f"/v1/jobs/{waiting['id']}").json()["status"] == "cancelled"
    running = server.delete(f"/v1/jobs/{long['id']}").json()
    assert running["status"] == "cancelled"
    assert running["step"] < 200
    for job in (waiting, long):
        assert server.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled"
    assert made(server)["status"] == "done"


def test_places_in_the_queue_are_told(server):
    long = server.post("/v1/generations", json=QUICK | {"num_inference_steps": 200}).json()
    second = server.post("/v1/generations", json=QUICK | {"num_inference_steps": 3}).json()
    third = server.post("/v1/generations", json=QUICK | {"num_inference_steps": 4}).json()
    places = [server.get(f"/v1/jobs/{job['id']}").json()["position"] for job in (second, third)]
    assert places in ([1, 2], [2, 3])  # the long one may wait too
    listed = [job["id"] for job in server.get("/v1/jobs").json()]
    assert listed == [long["id"], second["id"], third["id"]]
    for job in (long, second, third):
        server.delete(f"/v1/jobs/{job['id']}")
    assert server.get("/v1/jobs").json() == []


def test_edits_of_results_and_of_files(server, out, tmp_path):
    source = made(server, audio_length_in_s=1.0)["id"]
    fields = {"num_inference_steps": 2, "seed": 1, "prompt": "drums", "snap": "none"}
    region = {"mask_start_seconds": [0.3], "mask_end_seconds": [0.6]}
    job = server.post("/v1/edits", json={"kind": "inpaint", "source": source} | fields | region).json()
    state = ended(server, job)
    assert state["status"] == "done", state
    before, after = samples(server, source), samples(server, job["id"])
    assert np.array_equal(before[:2400], after[:2400])
    assert np.array_equal(before[4800:], after[4800:])
    assert not np.array_equal(before, after)
    about = server.get(f"/v1/results/{job['id']}").json()
    assert (about["kind"], about["parent"]) == ("inpaint", source)
    family = server.get(f"/v1/results/{job['id']}/family").json()
    assert [one["id"] for one in family] == [source, job["id"]]
    form = {name: str(value) for name, value in fields.items()} | {"kind": "extend", "after_s": "0.5"}
    answer = server.post("/v1/edits", data=form, files={"audio": ("take.wav", wav())})
    assert answer.status_code == 202, answer.text
    state = ended(server, answer.json())
    assert state["status"] == "done", state
    extended = samples(server, state["id"])
    assert np.array_equal(extended[:8000], soundfile.read(io.BytesIO(wav()), dtype="int16")[0])
    assert len(extended) == 12_000
    assert read_mark(out / server.get(f"/v1/results/{state['id']}").json()["file"]) == EDITED


def test_a_recording_is_kept_and_one_of_our_own_brings_its_recipe(server, out):
    answer = server.post("/v1/recordings", files={"audio": ("My take.wav", wav(channels=2))})
    assert answer.status_code == 201, answer.text
    about = answer.json()
    assert (about["name"], about["kind"], about["channels"]) == ("My take", "recording", 2)
    original = made(server)
    own = server.get(f"/v1/results/{original['id']}/audio").content
    again = server.post("/v1/recordings", files={"audio": ("x.wav", own)}).json()
    assert again["recipe"] == server.get(f"/v1/results/{original['id']}/recipe").json()
    assert again["kind"] == "generate"
    assert read_recipe(out / again["file"]) == again["recipe"]
    assert read_mark(out / again["file"]) == NEW
    retaken = server.post("/v1/edits", json={"kind": "retake", "source": again["id"], "seed": 4})
    assert ended(server, retaken.json())["status"] == "done"


def test_beats_are_measured(server):
    time_s = np.arange(12 * 8000) / 8000
    clicks = np.sin(2 * np.pi * 1000 * time_s) * np.exp(-60 * (time_s % 0.5))
    encoded = io.BytesIO()
    soundfile.write(encoded, 0.5 * clicks, 8000, format="WAV")
    about = server.post("/v1/recordings", files={"audio": ("click.wav", encoded.getvalue())}).json()
    beats = server.get(f"/v1/results/{about['id']}/beats").json()
    assert beats["tempo_bpm"] == pytest.approx(120, rel=0.03)
    assert server.get(f"/v1/results/{about['id']}/beats").json() == beats


def test_results_are_named_starred_deleted_and_found(server):
    identity = made(server, prompt="a very rare nyckelharpa")["id"]
    path = f"/v1/results/{identity}"
    assert [one["id"] for one in server.get("/v1/results", params={"q": "rare nyckel"}).json()] == [identity]
    assert server.get("/v1/results", params={"q": "nyckel%harpa"}).json() == []
    assert server.patch(path, json={"name": "Keyed fiddle", "starred": True}).json()["name"] == "Keyed fiddle"
    starred = server.get("/v1/results", params={"q": "keyed", "starred": True}).json()
    assert [one["id"] for one in starred] == [identity]
    server.patch(path, json={"deleted": True})
    assert server.get("/v1/results", params={"q": "keyed"}).json() == []
    assert server.get(path).status_code == 200  # its file stays
    server.patch(path, json={"deleted": False})
    assert len(server.get("/v1/results", params={"q": "keyed"}).json()) == 1


def test_what_was_left_is_done_after_a_restart_to_the_same_music(options, run, server):
    wanted = options()
    with run(wanted) as first:
        finished = made(first, seed=41)
        database = sqlite3.connect(wanted.out / ".musicldm" / "app.sqlite3")
        job = first.post("/v1/generations", json=QUICK | {"seed": 42}).json()
        ended(first, job)
        before = samples(first, job["id"])
        with database:  # as if the process had ended while it was running
            database.execute("UPDATE jobs SET status = 'running' WHERE id = ?", (job["id"],))
        database.close()
    files = sorted(path.name for path in wanted.out.iterdir())
    with run(wanted) as second:
        assert ended(second, job)["status"] == "done"
        assert np.array_equal(samples(second, job["id"]), before)
        assert second.get(f"/v1/jobs/{finished['id']}").json()["status"] == "done"
        assert len(second.get("/v1/results").json()) == 2
    assert sorted(path.name for path in wanted.out.iterdir()) == files


def test_the_index_is_made_again_of_the_files(options, run):
    wanted = options()
    with run(wanted) as first:
        made(first, prompt="lost and found")
    for left in (wanted.out / ".musicldm").glob("app.sqlite3*"):
        left.unlink()
    (wanted.out / "notes.txt").write_text("somebody else's")
    (wanted.out / "other.wav").write_bytes(wav())
    with run(wanted) as second:
        (found,) = second.get("/v1/results").json()
        assert found["prompt"] == "lost and found"
        assert second.get(f"/v1/results/{found['id']}/audio").status_code == 200


def test_ace_steps_documented_requests_are_taken(server):
    answer = server.post(
        "/v1/generations", json={"prompt": "upbeat pop song", "lyrics": "Hello world", "inference_steps": 2}
    )
    assert answer.status_code == 202, answer.text
    assert answer.headers["ignored-fields"] == "lyrics"
    assert ended(server, answer.json())["steps"] == 2
    fields = {
        "caption": "jazz piano trio",
        "audioDuration": 0.5,
        "inference_steps": 2,
        "batch_size": 2,
        "keyscale": "C major",
        "use_random_seed": False,
        "seed": 9,
        "thinking": True,
        "metas": {"duration": 0.32},
    }
    answer = server.post("/v1/generations", json=fields)
    assert answer.headers["ignored-fields"] == "thinking"
    state = ended(server, answer.json())
    recipes = [server.get(f"/v1/results/{name}/recipe").json() for name in state["results"]]
    assert [recipe["seed"] for recipe in recipes] == [9, 10]
    assert recipes[0]["prompt"] == "jazz piano trio, in C major"
    form = {"prompt": "remix this song", "task_type": "repaint", "repainting_start": "0.2", "repainting_end": "0.5"}
    answer = server.post("/v1/edits", data=form | {"inference_steps": "2"}, files={"src_audio": ("song.wav", wav())})
    assert answer.status_code == 202, answer.text
    state = ended(server, answer.json())
    assert state["status"] == "done", state
    assert server.get(f"/v1/results/{state['id']}").json()["kind"] == "inpaint"


def test_models_health_defaults_metrics_and_the_description(server, tiny_folder):
    (model,) = server.get("/v1/models").json()
    assert (model["name"], model["sampling_rate"], model["default"]) == (str(tiny_folder), 8000, True)
    assert server.get("/health").json()["status"] == "ok"
    assert server.get("/v1/defaults").json()["scheduler"] in server.get("/v1/defaults").json()["schedulers"]
    made(server)
    counts = server.get("/metrics").text
    assert 'musicldm_jobs{status="done"}' in counts
    paths = set(server.get("/openapi.json").json()["paths"])
    assert {"/v1/generations", "/v1/edits", "/v1/jobs/{identity}", "/v1/results/{identity}/audio"} <= paths
    page = server.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_the_client_does_all_of_it(server, tmp_path):
    client = Client()
    client._http = server  # the same interface, without a network
    job = client.generate(**QUICK)
    assert client.wait(job["id"])["results"] == [job["id"]]
    client.download(job["id"], tmp_path / "a.flac")
    assert read_mark(tmp_path / "a.flac") == NEW
    (tmp_path / "take.wav").write_bytes(wav())
    fields = {"prompt": "bass", "mask_start_seconds": [0.2], "mask_end_seconds": [0.5], "num_inference_steps": 2}
    edit = client.edit("inpaint", tmp_path / "take.wav", snap="none", **fields)
    assert client.wait(edit["id"])["status"] == "done"
    assert client.results("bass")[0]["id"] == edit["id"]
    assert client.cancel(job["id"])["status"] == "done"  # it has ended already
