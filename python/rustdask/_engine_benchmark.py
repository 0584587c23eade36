"""The engine without joblib: one task for each item, so that its own cost can be measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rustdask import _core
from rustdask._joblib import _load, cores, launch
from rustdask._payload import Settings


def map_tasks(function: Callable[[Any], Any], items: Sequence[Any], *, mode: str, n_workers: int) -> list[Any]:
    """Apply a function to items, each as a task of its own.

    Parameters
    ----------
    function : callable
    items : sequence
    mode : {"threads", "processes"}
    n_workers : int
        Most tasks that run at once.

    Returns
    -------
    list
        The results, in the order of the items.

    Raises
    ------
    RuntimeError
        If a task failed.

    Examples
    --------
    >>> from rustdask._engine_benchmark import map_tasks
    >>> map_tasks(abs, [-1, 2], mode="threads", n_workers=2)
    [1, 2]
    """
    results: list[Any] = [None] * len(items)
    failures: list[str] = []

    def on_done(position: int, kind: str, value: Any, index: int) -> bool:
        if kind != "results":
            failures.append(f"task {index}: {kind}: {value!r}")
            return True
        results[position] = value[0]
        return False

    call = _open(mode, n_workers, on_done)
    try:
        for position, item in enumerate(items):
            call.submit([(function, (item,), {})], position)
        call.wait()
    finally:
        call.close()
    if failures:
        raise RuntimeError(failures[0])
    return results


def _open(mode: str, n_workers: int, on_done: Callable[[int, str, Any, int], bool]) -> _core.Call:
    if mode == "threads":
        return _core.Call.threads(
            cap=n_workers,
            core_budget=cores().count,
            on_done=on_done,
            divisible=True,
            helper=True,
            nested=False,
            background=False,
            context=None,
            enter=None,
        )
    from rustdask._serialize import CallSerializer

    return _core.Call.processes(
        cap=n_workers,
        core_budget=cores().count,
        on_done=on_done,
        divisible=True,
        background=False,
        launch=launch,
        dump=CallSerializer(Settings()).dump,
        load=_load,
        crash_retries=0,
        access="c",
        max_nbytes=None,
    )
