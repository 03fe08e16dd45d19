"""Applies a function to many items on all machines of a Ray cluster.

    items  ->  Ray Data, one actor per processor  ->  (index, value), in the order in which they are done

Ray: Moritz et al. (2018), https://arxiv.org/abs/1712.05889.
"""

from __future__ import annotations

import logging
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

BLOCKS_PER_ACTOR = 64  # with small blocks all actors finish at about the same time; large ones have less overhead
CONNECT_S = 5.0


def map_on_cluster(
    function: Callable[[Any], Any], items: Sequence, address: str = "auto", most: int | None = None, gpus: float = 0
) -> Iterator[tuple[int, Any]]:
    """``(i, function(items[i]))`` in the order in which they are done, as `musicldm.audio.workers.Workers.map`.

    Every actor gets one copy of ``function``, which may keep expensive objects, such as a model, as attributes. The
    function, the items and the values must be picklable. An exception on any machine is raised here.

    Args:
        address: HOST:PORT of the cluster's head, or ``auto`` for one that runs on this machine.
        most: limit of actors at once; by default all processors.
        gpus: number of GPUs for each actor; a fraction shares one.

    Raises:
        ImportError: if Ray is not installed.
        ConnectionError: if there is no cluster at ``address``.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("a cluster needs Ray: run `pip install 'musicldm[ray]'`") from error
    if not items:
        return iter(())
    joined = not ray.is_initialized()
    if joined:
        _check_address(address)
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except ConnectionError as error:
            raise ConnectionError(
                f"no Ray cluster at {address}: start one with `ray start --head`, or give HOST:PORT of its head"
            ) from error
    return _results(function, items, most, gpus, joined)


def _results(
    function: Callable[[Any], Any], items: Sequence, most: int | None, gpus: float, joined: bool
) -> Iterator[tuple[int, Any]]:
    import ray
    import ray.data

    try:
        resources = ray.cluster_resources()
        places = int(resources.get("GPU", 0) / gpus if gpus else resources.get("CPU", 0))
        actors = min(most or places, places, len(items))
        if not actors:
            raise ConnectionError(f"the Ray cluster has no free {'GPU' if gpus else 'processor'}; add a machine to it")
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"index": i, "item": pickle.dumps(item)} for i, item in enumerate(items)]
        blocks = min(len(rows), BLOCKS_PER_ACTOR * actors)
        results = ray.data.from_items(rows, override_num_blocks=blocks).map(
            _Call,
            fn_constructor_args=(function,),
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            num_gpus=gpus,
        )
        for row in results.iter_rows():
            value, error = pickle.loads(row["answer"])
            if error is not None:
                raise error
            yield row["index"], value
    finally:
        if joined:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Raise ConnectionError unless something listens at ``address``; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        if address == "auto":
            return
        raise ConnectionError(f"the address of a cluster must be HOST:PORT or auto, got {address!r}")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(f"no Ray cluster at {address} ({error})") from error


class _Call:
    """The function of an actor: applies ``function`` to a block of items."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function

    def __call__(self, row: dict) -> dict:
        try:
            answer = self.function(pickle.loads(row["item"])), None
        except Exception as error:  # raised again where it can be told, without Ray's own account of it
            answer = None, error
        return {"index": row["index"], "answer": pickle.dumps(answer)}
