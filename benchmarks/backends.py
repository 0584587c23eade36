"""The contestants of the rows of joblib, and of the engine below it.

Those of joblib are entered as `parallel_config`, so that the work of a
row is the same code for all of them; those of `ENGINES` yield a function `map(function, items) -> list` that moves one
task at a time.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

N_JOBS = 2

Map = Callable[[Callable[[int], int], Iterable[int]], list[int]]


@contextlib.contextmanager
def joblib_backend(name: str, n_jobs: int = N_JOBS, **params: Any) -> Iterator[None]:
    from joblib import parallel_config

    with parallel_config(name, n_jobs=n_jobs, **params):
        yield


@contextlib.contextmanager
def rustdask_backend(mode: str) -> Iterator[None]:
    import rustdask

    with joblib_backend("rustdask", mode=mode):
        yield
    rustdask.shutdown()


@contextlib.contextmanager
def dask_backend() -> Iterator[None]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=N_JOBS, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster),
        joblib_backend("dask"),
    ):
        yield


@contextlib.contextmanager
def floor_backend() -> Iterator[None]:
    """joblib's front end alone: what no backend can go below."""
    from joblib.parallel import BACKENDS

    BACKENDS["floor"] = floor_backend_class()
    with joblib_backend("floor"):
        yield


def floor_backend_class() -> type:
    from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase

    class FloorBackend(AutoBatchingMixin, ParallelBackendBase):
        """Runs each batch at once, in the thread that dispatched it.

        A callback dispatches the next batch, so batches are queued: running them on the spot would recurse.
        """

        supports_retrieve_callback = True
        supports_sharedmem = True
        uses_threads = True

        def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
            self.parallel = parallel
            self.queue: deque[tuple[Any, Any]] = deque()
            self.draining = False
            return n_jobs

        def effective_n_jobs(self, n_jobs: int) -> int:
            return n_jobs

        def submit(self, func: Any, callback: Any = None) -> None:
            self.queue.append((func, callback))
            if self.draining:
                return
            self.draining = True
            while self.queue:
                func, callback = self.queue.popleft()
                callback(func())
            self.draining = False

        apply_async = submit

        def retrieve_result_callback(self, out: Any) -> Any:
            return out

    return FloorBackend


@contextlib.contextmanager
def pool_engine() -> Iterator[Map]:
    from multiprocessing import Pool

    with Pool(N_JOBS) as pool:
        yield lambda function, items: pool.map(function, items, chunksize=1)


@contextlib.contextmanager
def process_executor_engine() -> Iterator[Map]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(N_JOBS) as executor:
        yield lambda function, items: list(executor.map(function, items))


@contextlib.contextmanager
def thread_executor_engine() -> Iterator[Map]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(N_JOBS) as executor:
        yield lambda function, items: list(executor.map(function, items))


@contextlib.contextmanager
def loky_engine() -> Iterator[Map]:
    from joblib.externals.loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=N_JOBS)
    yield lambda function, items: list(executor.map(function, items))
    executor.shutdown()


@contextlib.contextmanager
def rustdask_engine(mode: str) -> Iterator[Map]:
    """rustdask below its joblib front end; `_engine_benchmark.map_tasks` sends each item as a task of its own."""
    import rustdask
    from rustdask._engine_benchmark import map_tasks

    yield lambda function, items: map_tasks(function, items, mode=mode, n_workers=N_JOBS)
    rustdask.shutdown()


Contestant = Callable[[], contextlib.AbstractContextManager[Any]]

JOBLIB: dict[str, Contestant] = {
    "sequential": lambda: joblib_backend("sequential", n_jobs=1),
    "threading": lambda: joblib_backend("threading"),
    "loky": lambda: joblib_backend("loky"),
    "dask": dask_backend,
    "floor": floor_backend,
    "rustdask threads": lambda: rustdask_backend("threads"),
    "rustdask processes": lambda: rustdask_backend("processes"),
}

ENGINES: dict[str, Contestant] = {
    "multiprocessing.Pool": pool_engine,
    "ProcessPoolExecutor": process_executor_engine,
    "ThreadPoolExecutor": thread_executor_engine,
    "loky executor": loky_engine,
    "engine threads": lambda: rustdask_engine("threads"),
    "engine processes": lambda: rustdask_engine("processes"),
}

NEEDS = {
    "dask": "distributed",
    "rustdask threads": "rustdask",
    "rustdask processes": "rustdask",
    "engine threads": "rustdask._engine_benchmark",
    "engine processes": "rustdask._engine_benchmark",
}
