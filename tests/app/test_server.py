"""The HTTP interface on a tiny model: jobs, results, refusals."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

from musicldm.app import Options, create_app
from musicldm.audio import read_recipe
from musicldm.audio.marks import NEW, read_mark

QUICK = {"num_inference_steps": 2, "audio_length_in_s": 0.32, "seed": 3}


@pytest.fixture(scope="module")
def server(tiny_folder, tmp_path_factory):
    """A client of a server with the tiny model."""
    options = Options(out=tmp_path_factory.mktemp("app"), models=(str(tiny_folder),), device="cpu")
    with TestClient(create_app(options), base_url="http://127.0.0.1:7860") as client:
        client.out = options.out
        yield client


def ended(client, job: dict, within_s: float = 60.0) -> dict:
    """The state of ``job`` when it has ended."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        state = client.get(f"/v1/jobs/{job['id']}").json()
        if state["status"] in ("done", "failed", "cancelled"):
            return state
        time.sleep(0.02)
    raise AssertionError(f"the job has not ended: {state}")


def made(client, **fields) -> dict:
    answer = client.post("/v1/generations", json={"prompt": "calm piano"} | QUICK | fields)
    assert answer.status_code == 202, answer.text
    return ended(client, answer.json())


def test_a_request_becomes_a_job_and_a_file(server):
    answer = server.post("/v1/generations", json={"prompt": "slow waltz"} | QUICK)
    assert answer.status_code == 202
    job = answer.json()
    assert set(job) == {"id", "status", "position", "step", "steps", "seconds_left", "results", "error"}
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    state = ended(server, job)
    assert state["status"] == "done"
    assert state["results"] == [job["id"]]
    assert state["step"] == state["steps"] == 2
    audio = server.get(f"/v1/results/{job['id']}/audio")
    assert audio.headers["content-type"] == "audio/wav"
    samples, rate = soundfile.read(io.BytesIO(audio.content))
    assert (len(samples), rate) == (2560, 8000)
    about = server.get(f"/v1/results/{job['id']}").json()
    path = server.out / about["file"]
    assert path.name == "slow-waltz_seed3.wav"
    assert read_recipe(path) == server.get(f"/v1/results/{job['id']}/recipe").json()
    assert read_mark(path) == NEW
    assert server.get(f"/v1/results/{job['id']}/figure").headers["content-type"] == "image/png"
