"""The contestants of the rows of futures and graphs: clients, and the schedulers that Dask has itself.

Each is a factory of context managers that yield `Doors`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.backends import N_JOBS


@dataclass(frozen=True)
class Doors:
    """What a contestant can do; None is what it cannot.

    `submit(function, *arguments)` returns a future, `map(function, items)` a list of them, and `gather(futures)` their
    results. `get(graph, keys)` is a Dask scheduler function, and `compute(collection)` does what its users write.
    """

    submit: Callable[..., Any] | None = None
    map: Callable[..., list[Any]] | None = None
    gather: Callable[[list[Any]], list[Any]] | None = None
    get: Callable[[Any, Any], Any] | None = None
    compute: Callable[[Any], Any] | None = None


def scheduler(get: Callable[[Any, Any], Any]) -> Doors:
    return Doors(get=get, compute=lambda collection: collection.compute(scheduler=get))


@contextlib.contextmanager
def dask_sync() -> Iterator[Doors]:
    import dask

    yield scheduler(dask.get)


@contextlib.contextmanager
def dask_threads() -> Iterator[Doors]:
    import functools
    from concurrent.futures import ThreadPoolExecutor

    import dask.threaded

    with ThreadPoolExecutor(N_JOBS) as pool:
        yield scheduler(functools.partial(dask.threaded.get, pool=pool))


@contextlib.contextmanager
def distributed_client() -> Iterator[Doors]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(N_JOBS, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.ERROR) as cluster,
        Client(cluster) as client,
    ):
        yield Doors(
            submit=lambda function, *arguments: client.submit(function, *arguments, pure=False),
            map=lambda function, items: client.map(function, items, pure=False),
            gather=client.gather,
            get=client.get,
            compute=lambda collection: collection.compute(),
        )


@contextlib.contextmanager
def frisky_client(processes: bool) -> Iterator[Doors]:
    import frisky

    with tempfile.TemporaryDirectory() as folder:
        os.environ["FRISKY_DEATH_DUMP_DIR"] = folder
        with quiet_children():
            cluster = frisky.LocalCluster(
                n_workers=N_JOBS, threads_per_worker=1, processes=processes, silence_summary=True
            )
        with cluster, cluster.get_client() as client:
            yield Doors(client.submit, client.map, client.gather, client.get, lambda collection: collection.compute())


@contextlib.contextmanager
def quiet_children() -> Iterator[None]:
    """Let processes that start now write their errors nowhere: frisky's workers print all they know when they end."""
    own, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)
        os.close(nowhere)


@contextlib.contextmanager
def executor() -> Iterator[Doors]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(N_JOBS) as pool:
        yield Doors(
            submit=pool.submit,
            map=lambda function, items: [pool.submit(function, item) for item in items],
            gather=lambda futures: [future.result() for future in futures],
        )


@contextlib.contextmanager
def rustdask_client(processes: bool) -> Iterator[Doors]:
    import rustdask

    with rustdask.Client(n_workers=N_JOBS, processes=processes) as client:
        yield Doors(
            client.submit,
            client.map,
            client.gather,
            client.get,
            lambda collection: collection.compute(scheduler=client.get),
        )


THREADS = "client threads"
PROCESSES = "client processes"

CLIENTS: dict[str, Callable[[], contextlib.AbstractContextManager[Doors]]] = {
    "dask.get_sync": dask_sync,
    "dask.threaded": dask_threads,
    "concurrent.futures": executor,
    "distributed": distributed_client,
    "frisky in-process": lambda: frisky_client(processes=False),
    "frisky": lambda: frisky_client(processes=True),
    THREADS: lambda: rustdask_client(processes=False),
    PROCESSES: lambda: rustdask_client(processes=True),
}

NEEDS = {
    "dask.get_sync": "dask",
    "dask.threaded": "dask",
    "distributed": "distributed",
    "frisky in-process": "frisky",
    "frisky": "frisky",
    THREADS: "rustdask._client",
    PROCESSES: "rustdask._client",
}
