"""The rows of the joblib backends, and of the engine below them.

`run` is called in the contestant's own process, again and again, and returns one measurement in the row's unit.
Work that is cheap is repeated inside, and its median returned. Inputs are made once per process.
"""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from benchmarks.row import Goal, Row, median_ms, seconds_of

THREADS = "rustdask threads"
PROCESSES = "rustdask processes"
PEERS = ("sequential", "threading", "loky", "dask")
OURS = (THREADS, PROCESSES)
ALL = (*PEERS, *OURS)
ENGINE_PEERS = ("multiprocessing.Pool", "ProcessPoolExecutor", "ThreadPoolExecutor", "loky executor")


def noop(i: int) -> int:
    return i


def python_loop(n: int) -> int:
    total = 0
    for i in range(n):
        total += i * i
    return total


def strided_sum(array: np.ndarray, i: int) -> float:
    return float(array[i::64].sum())


def filled(i: int) -> np.ndarray:
    return np.full((2_000_000,), float(i))


def timed_sleep(seconds: float) -> float:
    start = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - start


def small_call(_: Any, scale: float) -> float:
    return median_ms(lambda: Parallel()(delayed(noop)(i) for i in range(4)), max(5, int(50 * scale)))


def us_per_task(n_tasks: int, scale: float, **options: Any) -> float:
    n = max(100, int(n_tasks * scale))
    start = time.perf_counter()
    results = Parallel(**options)(delayed(noop)(i) for i in range(n))
    elapsed = time.perf_counter() - start
    assert len(results) == n and results[-1] == n - 1
    return elapsed / n * 1e6


def tiny_batch1(_: Any, scale: float) -> float:
    return us_per_task(20_000, scale, batch_size=1, pre_dispatch="all")


def tiny_auto(_: Any, scale: float) -> float:
    return us_per_task(200_000, scale)


@functools.cache
def big_array(scale: float) -> np.ndarray:
    return np.random.default_rng(0).random(int(25_000_000 * scale))


def big_argument(_: Any, scale: float) -> float:
    array = big_array(scale)
    # Changed between passes, so that nobody is paid for remembering the last one.
    array[0] += 1
    return seconds_of(lambda: Parallel()(delayed(strided_sum)(array, i) for i in range(64))) * 1e3


def big_results(_: Any, scale: float) -> float:
    def call() -> Any:
        return Parallel()(delayed(filled)(i) for i in range(max(4, int(32 * scale))))

    # The other contestants have had their turns since, which takes longer than anyone keeps memory.
    for _ in range(3):
        call()
    return seconds_of(call) * 1e3


@functools.cache
def classification() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import make_classification

    return make_classification(4000, 20, random_state=0)


def forest(n_trees: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_trees, random_state=0)


@functools.cache
def fitted_forest() -> Any:
    return forest(100).fit(*classification())


def forest_predict(_: Any, scale: float) -> float:
    model, (X, _y) = fitted_forest(), classification()
    return median_ms(lambda: model.predict(X[:1]), max(5, int(20 * scale)))


def forest_fit(_: Any, scale: float) -> float:
    model, (X, y) = forest(max(4, int(100 * scale))), classification()
    return seconds_of(lambda: model.fit(X, y)) * 1e3


def grid_search(_: Any, scale: float) -> float:
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    X, y = classification()
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10, 100], "gamma": [0.01, 0.1, 1]}, cv=5)
    return seconds_of(lambda: search.fit(X[:600], y[:600])) * 1e3


def python_loops(_: Any, scale: float) -> float:
    n = int(300_000 * scale)
    return seconds_of(lambda: Parallel()(delayed(python_loop)(n) for _ in range(64))) * 1e3


def stragglers(order: str) -> Callable[[Any, float], float]:
    """2,000 tasks of 1 ms and 8 of 0.5 s; the time they took over the time that two workers need at least."""

    def run(_: Any, scale: float) -> float:
        fast, slow = [0.001] * int(2000 * scale), [0.5 * scale] * 8
        durations = slow + fast if order == "first" else fast + slow
        if order == "random":
            random.Random(0).shuffle(durations)
        start = time.perf_counter()
        slept = Parallel()(delayed(timed_sleep)(seconds) for seconds in durations)
        return (time.perf_counter() - start) / (sum(slept) / 2)

    return run


def million(_: Any, scale: float) -> dict[str, Any]:
    """Time per task in each tenth of one call of a million no-ops, and the memory before and after it, in MB."""
    from benchmarks.memory import settled_rss_mb

    slice_tasks = int(100_000 * scale)
    ticks: list[float] = []

    def tasks() -> Any:
        for i in range(10 * slice_tasks):
            if i % slice_tasks == 0:
                ticks.append(time.perf_counter())
            yield delayed(noop)(i)

    Parallel()(delayed(noop)(i) for i in range(slice_tasks))
    before = settled_rss_mb()
    Parallel()(tasks())
    ticks.append(time.perf_counter())
    slices = [(b - a) / slice_tasks * 1e6 for a, b in zip(ticks, ticks[1:], strict=False)]
    return {
        "value": statistics.mean(slices),
        "slices_us": slices,
        "rss_before_mb": before,
        "rss_after_mb": settled_rss_mb(),
    }


def engine(map_tasks: Any, scale: float) -> float:
    n = int(20_000 * scale)
    start = time.perf_counter()
    results = map_tasks(noop, range(n))
    elapsed = time.perf_counter() - start
    assert len(results) == n and results[-1] == n - 1
    return elapsed / n * 1e6


def measured_by_parent(_: Any, scale: float) -> float:
    raise NotImplementedError("the whole process is timed from outside")


def straggler_row(order: str) -> Row:
    return Row(
        f"stragglers_{order}",
        f"stragglers, slow ones {order}",
        "× ideal",
        stragglers(order),
        ("threading", "loky", *OURS),
        tuple(Goal(ours, plus=1.25) for ours in OURS),
        repeat=3,
        warm_up=0.1,
    )


JOBLIB_ROWS = [
    Row(
        "first_result",
        "import + first result, whole process",
        "s",
        measured_by_parent,
        ALL,
        goals=tuple(Goal(ours, 1.2, "sequential") for ours in OURS),
        kind="process",
    ),
    Row(
        "small_call",
        "`Parallel()` of 4 no-ops, warm",
        "ms",
        small_call,
        (*PEERS, "floor", *OURS),
        (Goal(THREADS, plus=0.2), Goal(PROCESSES, plus=0.35)),
    ),
    Row(
        "tiny_batch1",
        "20,000 no-ops, batch_size=1",
        "µs per task",
        tiny_batch1,
        (*PEERS, "floor", *OURS),
        (Goal(THREADS, 1, "floor", 5), Goal(PROCESSES, 1, "floor", 15)),
        (("dask", 0.1),),
    ),
    Row(
        "tiny_auto",
        "200,000 no-ops, auto batch",
        "µs per task",
        tiny_auto,
        (*PEERS, "floor", *OURS),
        (Goal(THREADS, 1.2, "floor"), Goal(PROCESSES, 1.6, "floor")),
        (("dask", 0.25), ("threading", 0.25)),
    ),
    Row(
        "big_argument",
        "200 MB array to 64 tasks",
        "ms",
        big_argument,
        ALL,
        goals=(Goal(PROCESSES, 1.3, "threading"),),
    ),
    Row(
        "big_results",
        "32 results of 16 MB, warm",
        "ms",
        big_results,
        ALL,
        goals=(Goal(PROCESSES, 0.6, "threading"),),
    ),
    Row(
        "forest_predict",
        "RandomForest(100).predict, 1 row",
        "ms",
        forest_predict,
        ALL,
        goals=tuple(Goal(ours, 1.2, "sequential") for ours in OURS),
    ),
    Row(
        "forest_fit",
        "RandomForest(100).fit, 4000×20",
        "ms",
        forest_fit,
        ALL,
        goals=tuple(Goal(ours, 0.95, "threading") for ours in OURS),
    ),
    Row(
        "grid_search",
        "GridSearchCV, 60 SVC fits",
        "ms",
        grid_search,
        ALL,
        goals=(Goal(PROCESSES, 0.55, "sequential"),),
    ),
    Row(
        "python_loops",
        "64 pure Python loops",
        "ms",
        python_loops,
        ALL,
        goals=(Goal(PROCESSES, 0.52, "sequential"),),
    ),
    *(straggler_row(order) for order in ("last", "random", "first")),
    Row(
        "memory_rss",
        "200 MB array to 64 tasks: peak RSS of the process tree",
        "MB",
        big_argument,
        ("threading", "loky", *OURS),
        (Goal(PROCESSES, 1.3, "threading"),),
        kind="memory",
        fresh=True,
        repeat=3,
    ),
    Row(
        "million",
        "1,000,000 no-ops in one call",
        "µs per task",
        million,
        ("threading", *OURS),
        small_for=(("threading", 0.25),),
        fresh=True,
        repeat=1,
        # A tenth of it runs first in any case.
        warm_up=0,
    ),
    Row(
        "engine",
        "20,000 no-ops, one at a time, without joblib",
        "µs per task",
        engine,
        (*ENGINE_PEERS, "engine threads", "engine processes"),
        (Goal("engine threads", 1, "ThreadPoolExecutor"), Goal("engine processes", 1, "multiprocessing.Pool")),
        group="engine",
    ),
]
