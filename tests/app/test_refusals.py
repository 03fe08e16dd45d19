"""Requests that are wrong: a status, one sentence that names what is wrong, and a server that goes on.

The table of them is the one in docs/app.md.
"""

import json
import re
from pathlib import Path

import pytest

from tests.app.helpers import QUICK, ended, made, wav

NEW, EDIT = "/v1/generations", "/v1/edits"
GUIDE = Path(__file__).parents[2] / "docs" / "app.md"
ROW = re.compile(r"\| `(GET|POST|PATCH|DELETE) (/\S*)`(?: `(.*)`)? \| (\d{3}) \| (.+) \|")
ROWS = [match.groups() for line in GUIDE.read_text(encoding="utf-8").splitlines() if (match := ROW.fullmatch(line))]
FILES = {  # that the table names
    "empty.wav": b"",
    "text.wav": b"nothing that is audio" * 50,
    "text.mid": b"no MIDI",
    "short.wav": wav(0.001),
    "tone.wav": wav(1.0),
}


@pytest.fixture(scope="module")
def source(server):
    """The id of a result of 1 s."""
    return made(server, audio_length_in_s=1.0)["id"]


def ask(server, method: str, path: str, body: str | None, source: str):
    """The answer to a request of the table; values of ``body`` that begin with @ are files of a form."""
    path = path.replace("SOURCE", source)
    if body is None:
        return server.request(method, path)
    body = body.replace("SOURCE", source)
    if '"@' not in body:
        return server.request(method, path, content=body, headers={"Content-Type": "application/json"})
    fields = json.loads(body)
    files = {name: (value[1:], FILES[value[1:]]) for name, value in fields.items() if value.startswith("@")}
    return server.request(method, path, data={k: v for k, v in fields.items() if k not in files}, files=files)


def test_the_table_is_read_from_the_guide():
    assert len(ROWS) >= 40
    assert len({row[:3] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[1]} {row[2]}"[:80])
def test_a_wrong_request_gets_what_the_guide_says(server, source, row):
    method, path, body, status, sentence = row
    state = server.app.state.server
    jobs, results = server.get("/v1/jobs").json(), server.get("/v1/results").json()
    answer = ask(server, method, path, body, source)
    assert answer.status_code == int(status), answer.text
    said = answer.json()["detail"]
    assert re.fullmatch(".+".join(map(re.escape, sentence.split("…"))), said), said
    assert str(state.options.out) not in said
    assert (server.get("/v1/jobs").json(), server.get("/v1/results").json()) == (jobs, results)
    assert not state.uploads.is_dir() or list(state.uploads.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "kind", "status", "said"),
    [
        (b"{not json", "application/json", 422, "no JSON"),
        (b"[1, 2]", "application/json", 422, "must be a JSON object"),
        (b"\xff\xfe", "application/json", 422, "no JSON"),
        (b"", "application/json", 422, "no JSON"),
        (b"[" * 100_000, "application/json", 422, "no JSON"),
        (b'{"prompt": "' + b"a" * 2**21 + b'"}', "application/json", 413, "at most"),
        (b"prompt=a", "text/plain", 422, "no JSON"),
        (b"garbage", "multipart/form-data; boundary=x", 400, ""),
        (b"garbage", "multipart/form-data", 400, ""),
    ],
)
def test_a_body_that_is_none_is_refused(server, content, kind, status, said):
    answer = server.post(NEW, content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert said in answer.json()["detail"]


def test_a_file_that_is_cut_off_is_refused(server):
    form = {"kind": "vary", "prompt": "drums"}
    answer = server.post(EDIT, data=form, files={"audio": ("a.wav", b"RIFF\xff\xff\xff\x7fWAVEfmt ")})
    assert answer.status_code == 422, answer.text
    assert "the upload cannot be used: it cannot be" in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]
    assert list(server.app.state.server.uploads.iterdir()) == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs/x",
        "/v1/jobs/x/events",
        "/v1/results/x",
        "/v1/results/x/audio",
        "/v1/results/..%2f..%2fsetup.cfg",
        "/static/../server.py",
        "/v1/nothing",
    ],
)
def test_what_is_not_there_is_not_found(server, path):
    assert server.get(path).status_code == 404


def test_too_many_jobs_and_uploads_too_large_or_too_long_are_refused(options, run):
    with run(options(jobs_a_client=2, upload_bytes=20_000, upload_s=0.5)) as server:
        for _ in range(2):
            long = server.post(NEW, json=QUICK | {"num_inference_steps": 500})
            assert long.status_code == 202
        answer = server.post(NEW, json=QUICK)
        assert answer.status_code == 429
        assert "2 jobs of yours" in answer.json()["detail"]
        for job in server.get("/v1/jobs").json():
            server.delete(f"/v1/jobs/{job['id']}")
        form = {"kind": "vary", "prompt": "drums"}
        large = server.post(EDIT, data=form, files={"audio": ("a.wav", wav(2.0, channels=2))})
        assert large.status_code == 413
        long = server.post(EDIT, data=form, files={"audio": ("a.wav", wav(1.0))})
        assert long.status_code == 422
        assert "0.5 s are taken" in long.json()["detail"]
        state = server.app.state.server
        assert list(state.uploads.iterdir()) == []
        assert made(server)["status"] == "done"


def test_a_job_that_fails_says_why_and_the_next_one_runs(options, run, tiny_folder, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    with run(options(models=(str(tiny_folder), str(folder)), models_open=1)) as server:
        long = server.post(NEW, json=QUICK | {"num_inference_steps": 300}).json()
        job = server.post(NEW, json=QUICK | {"model": str(folder)})
        assert job.status_code == 202
        server.post(NEW, json=QUICK)  # opens the first model again, which closes the second
        shutil.rmtree(folder)
        server.delete(f"/v1/jobs/{long['id']}")
        state = ended(server, job.json())
        assert state["status"] == "failed"
        assert state["error"]
        assert "\n" not in state["error"]
        assert made(server)["status"] == "done"
