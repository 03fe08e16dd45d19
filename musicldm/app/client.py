"""A client of the HTTP interface.

with Client("http://127.0.0.1:7860") as client:
    job = client.generate("calm piano", audio_length_in_s=5)
    client.wait(job["id"])
    client.download(job["id"], "piano.wav")
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from musicldm.audio.output import write_whole

FINISHED = ("done", "failed", "cancelled")


class ServerError(RuntimeError):
    """What the server answered with in place of what was asked for.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Client:
    """A connection to a server of ``musicldm app``; close it, or use it as a context.

    Args:
        url: of the server.
        token: one of the server's, if it asks for one.
        timeout_s: for each answer; music is made meanwhile, so that answers come at once.
    """

    def __init__(self, url: str = "http://127.0.0.1:7860", token: str | None = None, timeout_s: float = 60.0):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        answer = self._http.request(method, path, **options)
        if answer.is_error:
            raise ServerError(answer.status_code, _sentence(answer))
        return answer

    def generate(self, prompt: str, files: dict[str, str | Path] | None = None, **fields: Any) -> dict:
        """Ask for new music; ``fields`` are those of ``POST /v1/generations``. Returns the job.

        ``files`` are to be followed: midi, melody, or along, a recording that the music goes with.
        """
        asked = {"prompt": prompt} | fields
        if not files:
            return self._ask("POST", "/v1/generations", json=asked).json()
        return self._send("/v1/generations", asked, files)

    def _send(self, path: str, fields: dict[str, Any], files: dict[str, str | Path]) -> dict:
        """The answer to a form of ``fields`` and ``files``."""
        form = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
        with ExitStack() as stack:
            opened = {name: (Path(one).name, stack.enter_context(Path(one).open("rb"))) for name, one in files.items()}
            return self._ask("POST", path, data=form, files=opened).json()

    def edit(self, kind: str, audio: str | Path | None = None, **fields: Any) -> dict:
        """Ask for a change of the file ``audio``, or of the result ``source=ID``. Returns the job."""
        if audio is None:
            return self._ask("POST", "/v1/edits", json={"kind": kind} | fields).json()
        return self._send("/v1/edits", {"kind": kind} | fields, {"audio": audio})

    def job(self, identity: str) -> dict:
        """Where a job is."""
        return self._ask("GET", f"/v1/jobs/{identity}").json()

    def events(self, identity: str) -> Iterator[dict]:
        """The job each time that it changes, until it has ended."""
        with self._http.stream("GET", f"/v1/jobs/{identity}/events", timeout=None) as answer:
            if answer.is_error:
                answer.read()
                raise ServerError(answer.status_code, _sentence(answer))
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line[len("data: ") :])

    def wait(self, identity: str) -> dict:
        """The job when it is done.

        Raises:
            ServerError: if it failed or was cancelled.
        """
        job = self.job(identity)
        if job["status"] not in FINISHED:
            *_, job = self.events(identity)
        if job["status"] != "done":
            raise ServerError(200, job["error"] or f"the job was {job['status']}")
        return job

    def cancel(self, identity: str) -> dict:
        """End a job. Returns it."""
        return self._ask("DELETE", f"/v1/jobs/{identity}").json()

    def results(self, words: str = "") -> list[dict]:
        """Results, newest first, with all ``words`` in name or prompt."""
        return self._ask("GET", "/v1/results", params={"q": words}).json()

    def result(self, identity: str) -> dict:
        """What is known of a result."""
        return self._ask("GET", f"/v1/results/{identity}").json()

    def audio(self, identity: str, format: str = "wav") -> bytes:
        """The audio file of a result."""
        return self._ask("GET", f"/v1/results/{identity}/audio", params={"format": format}).content

    def download(self, identity: str, path: str | Path) -> None:
        """Write the audio of a result to ``path``, whose suffix names the format."""
        write_whole(path, self.audio(identity, Path(path).suffix[1:].lower()))

    def models(self) -> list[dict]:
        """The models that may be asked for."""
        return self._ask("GET", "/v1/models").json()


def _sentence(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):  # not this server's own
        return f"{answer.status_code} {answer.reason_phrase}"
