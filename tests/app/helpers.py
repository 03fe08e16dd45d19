"""What the tests of the server do again and again."""

import contextlib
import io
import os
import re
import subprocess
import sys
import time

import httpx
import numpy as np
import soundfile

QUICK = {"prompt": "calm piano", "num_inference_steps": 2, "audio_length_in_s": 0.32, "seed": 3}
FINISHED = ("done", "failed", "cancelled")


def ended(client, job: dict, within_s: float = 120.0) -> dict:
    """The state of ``job`` when it has ended."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        state = client.get(f"/v1/jobs/{job['id']}").json()
        if state["status"] in FINISHED:
            return state
        time.sleep(0.02)
    raise AssertionError(f"the job has not ended: {state}")


def made(client, **fields) -> dict:
    """The job of new music, done."""
    answer = client.post("/v1/generations", json=QUICK | fields)
    assert answer.status_code == 202, answer.text
    state = ended(client, answer.json())
    assert state["status"] == "done", state
    return state


def samples(client, identity: str) -> np.ndarray:
    """The samples of a result."""
    return soundfile.read(io.BytesIO(client.get(f"/v1/results/{identity}/audio").content), dtype="int16")[0]


def wav(seconds: float = 1.0, rate: int = 8000, channels: int = 1) -> bytes:
    """A recording: a tone in noise."""
    time_s = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal((len(time_s), channels))
    encoded = io.BytesIO()
    sound = 0.2 * np.sin(2 * np.pi * 440 * time_s)[:, None] + 0.02 * noise
    soundfile.write(encoded, sound, rate, format="WAV", subtype="PCM_16")
    return encoded.getvalue()


@contextlib.contextmanager
def process(out, model, *options):
    """A server in a process of its own: the process, and a client of it."""
    command = [sys.executable, "-m", "musicldm", "app", "--out", out, "--model", model, "--port", "0"]
    command += ["--no-browser", *options]
    log = (out.parent / f"{out.name}.log").open("w+")
    running = subprocess.Popen([str(part) for part in command], stderr=log, env=os.environ | {"DISPLAY": ""})
    try:
        until, url = time.monotonic() + 120, None
        while url is None and time.monotonic() < until and running.poll() is None:
            time.sleep(0.1)
            log.seek(0)
            url = re.search(r"http://\S+/", log.read())
        assert url is not None, (log.seek(0), log.read())
        with httpx.Client(base_url=url[0], timeout=60) as client:
            yield running, client
    finally:
        running.kill()
        running.wait()
        log.close()
