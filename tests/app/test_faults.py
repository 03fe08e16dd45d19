"""A server that is killed, whose disk is full, or whose clients go away: nothing is lost, and it goes on."""

import itertools
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from musicldm.app import Client
from tests.app.helpers import QUICK, ended, made, process, samples, wav
from tests.app.test_refusals import ROWS, ask

pytestmark = pytest.mark.slow


def test_a_killed_server_goes_on_where_it_was(tmp_path, tiny_folder):
    out = tmp_path / "app"
    asked = QUICK | {"num_inference_steps": 60, "seed": 8}
    with process(out, tiny_folder) as (running, client):
        done = made(client, seed=7)
        whole = samples(client, done["id"])
        job = client.post("/v1/generations", json=asked).json()
        waiting = client.post("/v1/generations", json=QUICK | {"seed": 9}).json()
        until = time.monotonic() + 60
        while client.get(f"/v1/jobs/{job['id']}").json()["step"] < 3 and time.monotonic() < until:
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.wait()
    with process(out, tiny_folder) as (_, client):
        assert client.get(f"/v1/jobs/{done['id']}").json()["status"] == "done"
        assert np.array_equal(samples(client, done["id"]), whole)
        assert ended(client, job)["status"] == ended(client, waiting)["status"] == "done"
        again = made(client, **asked)
        assert np.array_equal(samples(client, job["id"]), samples(client, again["id"]))


def test_interrupting_the_server_ends_it_soon_and_loses_nothing(tmp_path, tiny_folder):
    out = tmp_path / "app"
    with process(out, tiny_folder) as (running, client):
        job = client.post("/v1/generations", json=QUICK | {"num_inference_steps": 60}).json()
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) is not None
    with process(out, tiny_folder) as (_, client):
        assert ended(client, job)["status"] == "done"


def test_clients_that_go_away_cost_nothing(server):
    state = server.app.state.server
    before = sorted(state.uploads.iterdir()) if state.uploads.is_dir() else []

    def broken():
        yield b'--x\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\n' + wav()[:2000]

    answer = server.post("/v1/edits", content=broken(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code in (400, 422)
    assert (sorted(state.uploads.iterdir()) if state.uploads.is_dir() else []) == before
    assert made(server)["status"] == "done"


def test_a_connection_that_breaks_in_the_middle_of_an_upload(tmp_path, tiny_folder):
    with process(tmp_path / "app", tiny_folder) as (_, client):
        port = client.base_url.port
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                head = "POST /v1/edits HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n"
                head += "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
                connection.sendall(head.encode())
        for _ in range(100):
            assert client.get("/health").status_code == 200
            assert client.post("/v1/generations", content=b"\x00" * 50).status_code == 422
        assert made(client)["status"] == "done"
        with Client(str(client.base_url)) as other:
            assert other.results()


def test_a_thousand_small_and_a_hundred_broken_requests_leave_it_serving(options, run):
    broken = itertools.islice(itertools.cycle(row for row in ROWS if "SOURCE" not in "".join(map(str, row))), 100)
    small = ["/v1/jobs", "/v1/results", "/v1/defaults", "/health", "/metrics"]
    with run(options()) as server:
        jobs = []

        def ask_little(number: int) -> int:
            if number % 10:
                return server.get(small[number % len(small)]).status_code
            answer = server.post("/v1/generations", json=QUICK | {"seed": number})
            if answer.status_code == 202:
                jobs.append(answer.json())
            return answer.status_code

        with ThreadPoolExecutor(8) as pool:
            wrong = [pool.submit(ask, server, *row[:3], "") for row in broken]
            answers = list(pool.map(ask_little, range(1000)))
        assert set(answers) <= {200, 202, 429}  # 429: of one client more than 20 jobs wait
        assert len(jobs) >= 20
        assert {one.result().status_code for one in wrong} <= {400, 401, 404, 422}
        assert {ended(server, job)["status"] for job in jobs} == {"done"}
        assert made(server)["status"] == "done"
        assert list(server.app.state.server.uploads.glob("*")) == []


def test_a_full_disk_fails_the_job_and_not_the_server(server, monkeypatch):
    import errno

    from musicldm.generate import Piece

    def full(piece, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Piece, "save", full)
        job = server.post("/v1/generations", json=QUICK).json()
        state = ended(server, job)
    assert state["status"] == "failed"
    assert "No space left" in state["error"]
    assert server.get(f"/v1/results/{job['id']}").status_code == 404
    assert made(server)["status"] == "done"
