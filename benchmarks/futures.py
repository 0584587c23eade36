"""The rows of futures: small tasks, and arrays, to two worker processes and back."""

from __future__ import annotations

import functools
import math
import operator
import time

import numpy as np

from benchmarks.clients import PROCESSES, Doors
from benchmarks.row import Figure, Goal, Row, percentile, seconds_of

PEERS = ("distributed", "frisky")


def increment(x: int) -> int:
    return x + 1


def total(array: np.ndarray) -> float:
    return float(array.sum())


def round_trip(doors: Doors, scale: float) -> dict[str, float]:
    """One task after the other, in ms."""
    times = [seconds_of(lambda i=i: doors.submit(increment, i).result()) * 1e3 for i in range(int(300 * scale))]
    return {"value": percentile(times, 0.5), "p99": percentile(times, 0.99)}


def map_noops(doors: Doors, scale: float) -> float:
    n = int(20_000 * scale)
    start = time.perf_counter()
    results = doors.gather(doors.map(increment, range(n)))
    elapsed = time.perf_counter() - start
    assert results[-1] == n
    return elapsed / n * 1e6


def tree_reduction(doors: Doors, scale: float) -> float:
    """Increments, added up two by two; each task is submitted on its own."""
    n = 2 ** round(12 + math.log2(scale))
    start = time.perf_counter()
    level = doors.map(increment, range(n))
    while len(level) > 1:
        level = [doors.submit(operator.add, *pair) for pair in zip(level[::2], level[1::2], strict=True)]
    (result,) = doors.gather(level)
    elapsed = time.perf_counter() - start
    assert result == n * (n + 1) // 2
    return elapsed / (2 * n - 1) * 1e6


@functools.cache
def array_of_100_mb() -> np.ndarray:
    return np.ones(12_500_000)


def send_array(doors: Doors, scale: float) -> float:
    """Gigabytes a second, with what the worker takes to sum them up."""
    array = array_of_100_mb()
    times = []
    for i in range(1 + max(3, int(5 * scale))):
        # Changed, so that nobody is paid for remembering the last one.
        array[0] = i
        times.append(seconds_of(lambda: doors.submit(total, array).result()))
    return array.nbytes / 1e9 / percentile(times[1:], 0.5)


FUTURES_ROWS = [
    Row(
        "future_roundtrip",
        "submit → result of one future, p50",
        "ms",
        round_trip,
        ("concurrent.futures", *PEERS, PROCESSES),
        (Goal(PROCESSES, plus=0.08),),
        figures=(Figure("p99", "submit → result of one future, p99", "ms"),),
        repeat=3,
        group="futures",
    ),
    Row(
        "future_map",
        "map of 20,000 no-ops",
        "µs per task",
        map_noops,
        ("concurrent.futures", *PEERS, PROCESSES),
        (Goal(PROCESSES, plus=8),),
        (("distributed", 0.1),),
        repeat=3,
        group="futures",
    ),
    Row(
        "future_tree",
        "tree reduction, 8,191 tasks",
        "µs per task",
        tree_reduction,
        (*PEERS, PROCESSES),
        (Goal(PROCESSES, plus=15),),
        (("distributed", 0.125),),
        repeat=3,
        group="futures",
    ),
    Row(
        "future_array",
        "100 MB array to a worker, and its sum back, warm",
        "GB/s",
        send_array,
        ("concurrent.futures", *PEERS, PROCESSES),
        (Goal(PROCESSES, plus=8, least=True),),
        repeat=3,
        group="futures",
    ),
]
