"""The rows of graphs: Dask's scheduler functions, and its collections, on one machine.

The set from `set_merge` to `set_bag` is that of Böhm and Beránek, "Runtime vs Scheduler: Analyzing Dask's Overheads"
(WORKS 2020), scaled to two cores. Its merges come as plain graphs: what Dask's own optimization of a task with many
inputs takes grows with their square, and is not what is measured here.
"""

from __future__ import annotations

import math
import operator
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.clients import PROCESSES, THREADS, Doors
from benchmarks.futures import increment
from benchmarks.memory import own_peak_rss_mb, reset_own_peak, settled_rss_mb
from benchmarks.row import Figure, Goal, Row, seconds_of

SET_PEERS = ("dask.threaded", "distributed", "frisky")
OURS = (THREADS, PROCESSES)


def get_independent(doors: Doors, scale: float) -> float:
    n = int(5000 * scale)
    keys = [("x", i) for i in range(n)]
    return us_per_task(doors, {key: (increment, key[1]) for key in keys}, keys)


def get_chain(doors: Doors, scale: float) -> float:
    n = int(2000 * scale)
    graph: dict[Any, Any] = {("x", i): (increment, ("x", i - 1)) for i in range(1, n)}
    return us_per_task(doors, graph | {("x", 0): (increment, 0)}, ("x", n - 1))


def us_per_task(doors: Doors, graph: dict[Any, Any], keys: Any) -> float:
    return seconds_of(lambda: doors.get(graph, keys)) / len(graph) * 1e6


def array_graph(doors: Doors, scale: float) -> float:
    """Seconds for 10,000 chunks: as many tasks to make them, twice to add to them, and those of the sum."""
    import dask.array as da

    side = max(5, round(100 * math.sqrt(scale)))
    start = time.perf_counter()
    x = da.zeros((20 * side, 20 * side), chunks=(20, 20))
    result = doors.compute((x + 1 + 1).sum())
    elapsed = time.perf_counter() - start
    assert result == 2 * (20 * side) ** 2
    return elapsed * (100 / side) ** 2


def merge_graph(function: Callable[[Any], Any], arguments: Iterable[Any]) -> dict[Any, Any]:
    graph: dict[Any, Any] = {("x", i): (function, argument) for i, argument in enumerate(arguments)}
    return graph | {"merged": (sum, list(graph))}


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def set_merge(doors: Doors, scale: float) -> float:
    n = int(10_000 * scale)
    graph = merge_graph(increment, range(n))
    start = time.perf_counter()
    assert doors.get(graph, "merged") == n * (n + 1) // 2
    return time.perf_counter() - start


def set_merge_slow(doors: Doors, scale: float) -> float:
    graph = merge_graph(sleep, [0.01] * int(500 * scale))
    return seconds_of(lambda: doors.get(graph, "merged"))


def set_tree(doors: Doors, scale: float) -> float:
    from dask import delayed

    add = delayed(operator.add)
    n = 2 ** round(13 + math.log2(scale))
    start = time.perf_counter()
    level = list(range(n))
    while len(level) > 1:
        level = [add(*pair) for pair in zip(level[::2], level[1::2], strict=True)]
    assert doors.compute(level[0]) == n * (n - 1) // 2
    return time.perf_counter() - start


def set_numpy(chunks_a_side: int) -> Callable[[Doors, float], float]:
    def run(doors: Doors, scale: float) -> float:
        import dask.array as da

        size = int(6000 * math.sqrt(scale))
        x = da.random.default_rng(0).random((size, size), chunks=size // chunks_a_side)
        y = (x + x.T)[::2, size // 2 :].mean(axis=1).sum()
        return seconds_of(lambda: doors.compute(y))

    return run


def timeseries(days: int, freq: str, partition_freq: str) -> Any:
    import dask

    end = f"2020-01-{1 + days:02d}"
    return dask.datasets.timeseries("2020-01-01", end, freq=freq, partition_freq=partition_freq, seed=0)


def set_groupby(freq: str, partition_freq: str) -> Callable[[Doors, float], float]:
    def run(doors: Doors, scale: float) -> float:
        table = timeseries(max(2, int(30 * scale)), freq, partition_freq)
        return seconds_of(lambda: doors.compute(table.groupby("name")["x"].mean()))

    return run


def set_join(doors: Doors, scale: float) -> float:
    """Each row beside the total of all rows of its name."""
    table = timeseries(1, "10s", "1h")
    totals = table.groupby("name")["x"].sum().to_frame("total").reset_index()
    return seconds_of(lambda: doors.compute(table.merge(totals, on="name")["total"].sum()))


def people(seed: int, n: int) -> list[dict[str, Any]]:
    """Return records such as the documentation of Dask's bags has."""
    numbers = random.Random(seed)
    return [{"age": numbers.randrange(18, 90), "occupation": f"job {numbers.randrange(500)}"} for _ in range(n)]


def set_bag(doors: Doors, scale: float) -> float:
    """How many have the ten most frequent occupations."""
    import dask.bag as db

    records = db.from_sequence(range(20), npartitions=20).map(people, int(2000 * scale)).flatten()
    grown_up = records.filter(lambda record: record["age"] > 30)
    frequencies = grown_up.map(operator.itemgetter("occupation")).frequencies(sort=True)
    return seconds_of(lambda: doors.compute(frequencies.topk(10, key=1).pluck(1).sum()))


def million_graph(doors: Doors, scale: float) -> dict[str, float]:
    """A tree of a million tasks in one graph."""
    doors.get(*sum_tree(1000))
    before = settled_rss_mb()
    graph, key = sum_tree(int(500_000 * scale))
    return in_memory(before, len(graph), lambda: doors.get(graph, key), graph.clear)


def sum_tree(n_leaves: int) -> tuple[dict[Any, Any], Any]:
    """Return a graph that adds up increments two by two, and its last key."""
    graph: dict[Any, Any] = {("leaf", i): (increment, i) for i in range(n_leaves)}
    level: list[Any] = list(graph)
    while len(level) > 1:
        pairs = list(zip(level[::2], level[1::2], strict=False))
        odd = level[2 * len(pairs) :]
        level = [("sum", len(graph) + i) for i in range(len(pairs))]
        graph.update((key, (operator.add, *pair)) for key, pair in zip(level, pairs, strict=True))
        level += odd
    return graph, level[0]


def million_map(doors: Doors, scale: float) -> dict[str, float]:
    """A million futures, all held until the last has its result."""
    n = int(1_000_000 * scale)
    futures = doors.map(increment, range(1000))
    doors.gather(futures)
    del futures
    held: list[Any] = []

    def submit_and_wait() -> None:
        held.extend(doors.map(increment, range(n)))
        assert doors.gather(held)[-1] == n

    return in_memory(settled_rss_mb(), n, submit_and_wait, held.clear)


def in_memory(before_mb: float, n_tasks: int, work: Callable[[], Any], forget: Callable[[], None]) -> dict[str, float]:
    """Return what the work of `n_tasks` tasks takes of time, and of memory of this process.

    The peak counts what the work adds to the memory as it was at its start; what stays is compared with `before_mb`.
    """
    start_mb = settled_rss_mb()
    reset_own_peak()
    seconds = seconds_of(work)
    peak_mb = own_peak_rss_mb()
    forget()
    after_mb = settled_rss_mb()
    return {
        "value": seconds / n_tasks * 1e6,
        "bytes_per_task": max(0.0, peak_mb - start_mb) * 1e6 / n_tasks,
        "after": after_mb / before_mb,
        "rss_before_mb": before_mb,
        "rss_after_mb": after_mb,
    }


def set_row(key: str, title: str, run: Callable[[Doors, float], float]) -> Row:
    return Row(
        f"set_{key}",
        title,
        "s",
        run,
        (*SET_PEERS, *OURS),
        (Goal(THREADS, 1, "dask.threaded"), Goal(PROCESSES, 1, "frisky")),
        repeat=2,
        warm_up=0.1,
        group="graphs",
    )


def million_row(key: str, title: str, run: Callable[[Doors, float], Any], peers: dict[str, float]) -> Row:
    return Row(
        f"million_{key}",
        title,
        "µs per task",
        run,
        (*peers, *OURS),
        small_for=tuple(peers.items()),
        figures=(
            Figure(
                "bytes_per_task",
                f"{title}: memory of the client at the peak",
                "bytes per task",
                tuple(Goal(ours, plus=1000) for ours in OURS),
            ),
            Figure(
                "after",
                f"{title}: memory of the client afterwards",
                "× before",
                tuple(Goal(ours, plus=1.1) for ours in OURS),
            ),
        ),
        fresh=True,
        repeat=1,
        warm_up=0,
        group="graphs",
    )


GRAPH_ROWS = [
    Row(
        "get_independent",
        "`get` of 5,000 independent tasks",
        "µs per task",
        get_independent,
        ("dask.get_sync", "dask.threaded", "distributed", "frisky in-process", "frisky", *OURS),
        (Goal(THREADS, plus=15),),
        (("distributed", 0.1),),
        repeat=3,
        group="graphs",
    ),
    Row(
        "get_chain",
        "`get` of a chain of 2,000 tasks",
        "µs per task",
        get_chain,
        ("dask.get_sync", "dask.threaded", "distributed", "frisky in-process", "frisky", *OURS),
        (Goal(THREADS, plus=15),),
        (("distributed", 0.1),),
        repeat=3,
        group="graphs",
    ),
    Row(
        "array_graph",
        "dask array graph, 30,000 tasks",
        "s",
        array_graph,
        ("dask.get_sync", "dask.threaded", "distributed", "frisky in-process", "frisky", *OURS),
        (Goal(PROCESSES, plus=1.5), Goal(THREADS, 1, "dask.threaded")),
        (("distributed", 0.1),),
        repeat=2,
        warm_up=0.1,
        group="graphs",
    ),
    set_row("merge", "merge of 10,000 tasks", set_merge),
    set_row("merge_slow", "merge of 500 tasks of 10 ms", set_merge_slow),
    set_row("tree", "tree of 8,191 `delayed` additions", set_tree),
    set_row("numpy_10", "array + its transpose, 6,000², 10 × 10 chunks", set_numpy(10)),
    set_row("numpy_40", "array + its transpose, 6,000², 40 × 40 chunks", set_numpy(40)),
    set_row("groupby_large", "groupby, 90 partitions of 28,800 rows", set_groupby("1s", "8h")),
    set_row("groupby_small", "groupby, 720 partitions of 60 rows", set_groupby("60s", "1h")),
    set_row("join", "join, 24 partitions", set_join),
    set_row("bag", "bag of 20 × 2,000 records", set_bag),
    million_row(
        "graph",
        "`get` of 1,000,000 tasks",
        million_graph,
        {"dask.threaded": 0.2, "frisky": 0.05, "distributed": 0.005},
    ),
    million_row(
        "map", "map of 1,000,000 no-ops, all futures held", million_map, {"frisky": 0.05, "distributed": 0.005}
    ),
]
