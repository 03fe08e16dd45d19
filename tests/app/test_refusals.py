"""Requests that are wrong: a status, one sentence that names what is wrong, and a server that goes on."""

import json

import pytest

from tests.app.helpers import QUICK, ended, made, wav

PROMPT = {"prompt": "calm piano"}
NEW = "/v1/generations"
EDIT = "/v1/edits"
REGION = {"mask_start_seconds": [0.2], "mask_end_seconds": [0.5]}
DRUMS = {"prompt": "drums", "num_inference_steps": 2}

# what is sent to which path -> status, and what the sentence says
BODIES = {
    "no prompt": (NEW, {}, 422, "the field 'prompt' is missing"),
    "empty prompt": (NEW, {"prompt": "  "}, 422, "is empty"),
    "prompt of another type": (NEW, {"prompt": 5}, 422, "prompt: input should be a valid string, got '5'"),
    "prompts in a list": (NEW, {"prompt": ["a", "b"]}, 422, "prompt"),
    "lone surrogate": (NEW, {"prompt": "\ud800"}, 422, "surrogate"),
    "unknown field": (NEW, PROMPT | {"promt": 1}, 422, "there is no field 'promt'"),
    "field under two names": (NEW, PROMPT | {"caption": "b"}, 422, "given under two names"),
    "unknown model": (NEW, PROMPT | {"model": "gpt"}, 422, "there is no model 'gpt' here; choose one of"),
    "a path as model": (NEW, PROMPT | {"model": "../../etc"}, 422, "there is no model"),
    "length of 0": (NEW, PROMPT | {"audio_length_in_s": 0}, 422, "audio_length_in_s"),
    "negative length": (NEW, PROMPT | {"audio_length_in_s": -3}, 422, "audio_length_in_s"),
    "length beyond memory": (NEW, PROMPT | {"audio_length_in_s": 1e9}, 422, "GiB of memory"),
    "infinite length": (NEW, PROMPT | {"audio_length_in_s": "inf"}, 422, "audio_length_in_s|seconds"),
    "length below a frame": (NEW, PROMPT | {"audio_length_in_s": 1e-6}, 422, "at least one frame"),
    "no steps": (NEW, PROMPT | {"num_inference_steps": 0}, 422, "num_inference_steps"),
    "too many steps": (NEW, PROMPT | {"num_inference_steps": 10**6}, 422, "num_inference_steps"),
    "steps in words": (NEW, PROMPT | {"num_inference_steps": "many"}, 422, "num_inference_steps"),
    "negative guidance": (NEW, PROMPT | {"guidance_scale": -1}, 422, "guidance_scale"),
    "interval upside down": (NEW, PROMPT | {"guidance_interval": [0.9, 0.1]}, 422, "guidance_interval"),
    "unknown sampler": (NEW, PROMPT | {"scheduler": "magic"}, 422, "unknown scheduler 'magic'"),
    "negative seed": (NEW, PROMPT | {"seed": -7}, 422, "seed"),
    "seed of a fraction": (NEW, PROMPT | {"seed": 1.5}, 422, "seed"),
    "no results": (NEW, PROMPT | {"num_waveforms_per_prompt": 0}, 422, "num_waveforms_per_prompt"),
    "too many results": (NEW, PROMPT | {"num_waveforms_per_prompt": 1000}, 422, "num_waveforms_per_prompt"),
    "tempo of 0": (NEW, PROMPT | {"bpm": 0}, 422, "bpm"),
    "tempo that is none": (NEW, PROMPT | {"bpm": "fast"}, 422, "bpm"),
    "meter that is none": (NEW, PROMPT | {"bpm": 120, "loop": True, "bars": 2, "meter": "x"}, 422, "meter"),
    "novelty without an index": (NEW, PROMPT | {"novelty": "shout"}, 422, "novelty"),
    "an edit as a task": (NEW, PROMPT | {"task_type": "repaint"}, 422, "changes a recording"),
    "another task": (NEW, PROMPT | {"task_type": "lego"}, 422, "task_type"),
    "no kind of edit": (EDIT, DRUMS | REGION | {"source": "x"}, 422, "the field 'kind' is missing"),
    "unknown kind of edit": (EDIT, DRUMS | {"kind": "paint", "source": "x"}, 422, "kind"),
    "edit of nothing": (EDIT, DRUMS | REGION | {"kind": "inpaint"}, 422, "give either the id of a result"),
    "edit of an unknown result": (
        EDIT,
        DRUMS | REGION | {"kind": "inpaint", "source": "nope"},
        404,
        "no result 'nope'",
    ),
    "edit of a path": (EDIT, DRUMS | REGION | {"kind": "inpaint", "source": "/etc/passwd"}, 404, "no result"),
    "inpaint without region": (EDIT, DRUMS | {"kind": "inpaint", "source": "SOURCE"}, 422, "needs a region"),
    "region outside": (
        EDIT,
        DRUMS | {"kind": "inpaint", "source": "SOURCE", "mask_start_seconds": [50], "mask_end_seconds": [60]},
        422,
        "outside",
    ),
    "region reversed": (
        EDIT,
        DRUMS | {"kind": "inpaint", "source": "SOURCE", "mask_start_seconds": [0.5], "mask_end_seconds": [0.2]},
        422,
        "ends before it begins",
    ),
    "more starts than ends": (
        EDIT,
        DRUMS
        | {"kind": "inpaint", "source": "SOURCE", "mask_start_seconds": [0.1, 0.3, 0.5], "mask_end_seconds": [0.2]},
        422,
        "3 mask_start_seconds and 1 mask_end_seconds",
    ),
    "extend by nothing": (EDIT, DRUMS | {"kind": "extend", "source": "SOURCE"}, 422, "extend needs seconds"),
    "amount above 1": (EDIT, DRUMS | {"kind": "vary", "source": "SOURCE", "amount": 2}, 422, "amount"),
}


@pytest.fixture(scope="module")
def source(server):
    return made(server, audio_length_in_s=1.0)["id"]


@pytest.mark.parametrize("case", BODIES)
def test_a_wrong_body_is_refused_in_one_sentence(server, source, case):
    path, body, status, said = BODIES[case]
    body = {name: source if value == "SOURCE" else value for name, value in body.items()}
    before = len(server.get("/v1/jobs").json())
    answer = server.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    sentence = answer.json()["detail"]
    assert any(one in sentence for one in said.split("|")), sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    assert len(server.get("/v1/jobs").json()) == before


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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"nothing that is audio" * 50, "cannot be"),
        (wav(0.001), "short"),
        (b"RIFF\xff\xff\xff\x7fWAVEfmt ", "cannot be"),
    ],
    ids=["empty", "text", "too short", "cut off"],
)
def test_files_that_are_no_audio_are_refused(server, content, said):
    form = {"kind": "inpaint", "prompt": "drums", "mask_start_seconds": "[0.1]", "mask_end_seconds": "[0.2]"}
    answer = server.post(EDIT, data=form, files={"audio": ("a.wav", content)})
    assert answer.status_code == 422, answer.text
    assert "\n" not in answer.json()["detail"]
    assert str(server.app.state.server.options.out) not in answer.json()["detail"]
    assert list(server.app.state.server.uploads.glob("*.upload")) == []


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
