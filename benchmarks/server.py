"""What the server of ``musicldm app`` costs beside calling the pipeline in a loop.

    python -m benchmarks.server --out server.json

One server process and one model; clients on threads ask for short music one request after another. Measured: the time
until the server can be used and until the first sound, requests a second and waits with 1, 8 and 32 clients against a
`Session` that makes the same music one piece after another and in batches in this process, and the server's memory over
many requests. Ratios are of one run.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from benchmarks.results import keep
from musicldm.app import Client

CLIENTS = (1, 8, 32)
WARM_UP = 50  # requests before memory is compared
TOKENS = [secrets.token_hex(8) for _ in range(max(CLIENTS))]  # of each client: the server limits how many jobs one has


@contextmanager
def server(folder: Path, model: str) -> Iterator[tuple[psutil.Process, str, float]]:
    """A running server: its process, its address, and the seconds until it could be used."""
    log = (folder / "server.log").open("w+")
    command = [sys.executable, "-m", "musicldm", "app", "--out", str(folder / "music"), "--model", model]
    began = time.perf_counter()
    tokens = os.environ | {"MUSICLDM_TOKENS": " ".join(TOKENS)}
    running = subprocess.Popen([*command, "--port", "0", "--no-browser"], stderr=log, env=tokens)
    try:
        found = None
        while found is None:
            if running.poll() is not None:
                raise RuntimeError(f"the server has ended: {(folder / 'server.log').read_text()}")
            time.sleep(0.02)
            found = re.search(r"http://\S+/", (folder / "server.log").read_text())
        yield psutil.Process(running.pid), found[0], time.perf_counter() - began
    finally:
        running.terminate()
        running.wait()
        log.close()


def asked(arguments: argparse.Namespace, seed: int) -> dict:
    return {
        "prompt": "a calm piano",
        "audio_length_in_s": arguments.seconds,
        "num_inference_steps": arguments.steps,
        "seed": seed,
    }


def under_load(url: str, arguments: argparse.Namespace, n_clients: int) -> dict:
    """Requests a second and waits, with each client asking again as soon as it has its music."""
    waits: list[float] = []
    seeds = iter(range(10**6))
    lock, left = threading.Lock(), [max(arguments.requests, n_clients)]

    def work(token: str) -> None:
        with Client(url, token=token) as client:
            while True:
                with lock:
                    if left[0] == 0:
                        return
                    left[0] -= 1
                    seed = next(seeds)
                began = time.perf_counter()
                client.wait(client.generate(**asked(arguments, seed))["id"])
                with lock:
                    waits.append(time.perf_counter() - began)

    threads = [threading.Thread(target=work, args=(token,)) for token in TOKENS[:n_clients]]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if len(waits) < max(arguments.requests, n_clients):
        raise RuntimeError(f"of {n_clients} clients some have failed: {len(waits)} requests were served")
    return {
        "clients": n_clients,
        "requests": len(waits),
        "requests_a_second": len(waits) / took,
        "median_wait_s": statistics.median(waits),
        "wait_s_99_percent": float(np.percentile(waits, 99)),
    }


def in_a_loop(arguments: argparse.Namespace) -> dict[str, float]:
    """Requests a second of a session in this process: one after another, and all of them at once."""
    from musicldm.generate import Request, Session

    session = Session(arguments.model)
    requests = [
        Request("a calm piano", seconds=arguments.seconds, steps=arguments.steps, seed=seed)
        for seed in range(arguments.requests)
    ]
    session.run(requests[0])
    began = time.perf_counter()
    for request in requests:
        session.run(request)
    alone = len(requests) / (time.perf_counter() - began)
    began = time.perf_counter()
    list(session.run_many(requests))
    return {"one_by_one": alone, "in_batches": len(requests) / (time.perf_counter() - began)}


def memory_over(process: psutil.Process, url: str, arguments: argparse.Namespace) -> dict[str, float]:
    """MiB of the server after the first requests and after many."""
    sizes = []
    with Client(url, token=TOKENS[0]) as client:
        for i in range(arguments.memory_requests):
            client.wait(client.generate(**asked(arguments, i) | {"num_inference_steps": 2})["id"])
            sizes.append(process.memory_info().rss / 2**20)
    return {
        "requests": len(sizes),
        "after_warm_up_mib": sizes[min(WARM_UP, len(sizes)) - 1],
        "after_all_mib": sizes[-1],
        "most_mib": max(sizes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=float, default=5.12)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--requests", type=int, default=32, help="for each number of clients")
    parser.add_argument("--memory-requests", type=int, default=500)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    report: dict = {"settings": {key: str(value) for key, value in vars(arguments).items()}}
    report["loop_requests_a_second"] = in_a_loop(arguments)
    with tempfile.TemporaryDirectory() as folder, server(Path(folder), arguments.model) as (process, url, ready_s):
        report["seconds_until_usable"] = ready_s
        began = time.perf_counter()
        with Client(url, token=TOKENS[0]) as client:
            client.audio(client.wait(client.generate(**asked(arguments, 0))["id"])["results"][0])
        report["seconds_from_click_to_first_sound"] = time.perf_counter() - began
        report["load"] = [under_load(url, arguments, clients) for clients in CLIENTS]
        for row in report["load"]:
            row["throughput_by_loop"] = row["requests_a_second"] / report["loop_requests_a_second"]["one_by_one"]
            print(row)
        report["memory"] = memory_over(process, url, arguments)
    print(report)
    if arguments.out:
        keep(arguments.out, report)


if __name__ == "__main__":
    main()
