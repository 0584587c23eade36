"""Dask's callbacks: what its progress bars, profilers and caches hear while a graph runs.

The engine runs the graph as ever and tells of tasks that have ended. Which ones run in the meantime is worked out from
their order and the number of workers, so the times that a profiler shows are about right, not exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

from dask._task_spec import DataNode, convert_legacy_graph
from dask.callbacks import unpack_callbacks
from dask.typing import Key

from rustdask import _core
from rustdask._client import Client
from rustdask._core import Handle, Input
from rustdask._dask_graph import Plan
from rustdask._dask_order import orders
from rustdask._future import Future

Callbacks = Sequence[tuple[Callable[..., Any] | None, ...]]


def get_observed(client: Client, graph: dict[Key, Any], wanted: list[Key], callbacks: Callbacks) -> list[Any]:
    """Compute keys of a graph as `get` does, and call callbacks back.

    Parameters
    ----------
    client : Client
    graph : dict
    wanted : list of keys
    callbacks : sequence of tuple
        Five functions each, or None: called at the start, with the first state, before a task, after it, in the end.

    Returns
    -------
    list
        A result for each wanted key.
    """
    dsk = convert_legacy_graph(graph)
    started: list[Callable[..., Any]] = []
    state: dict[str, Any] = {}
    succeeded = False
    try:
        for start, *_, finish in callbacks:
            if start:
                # Dask's cache puts results that it has into the graph here.
                start(dsk)
            if finish:
                started.append(finish)
        run = _Run(client, convert_legacy_graph(dsk), wanted, callbacks)
        state = run.state
        values = run.values()
        succeeded = True
        return values
    finally:
        for finish in started:
            finish(dsk, state, not succeeded)


class _Run:
    """A graph that runs, and its state as Dask's own schedulers describe it."""

    def __init__(self, client: Client, dsk: dict[Key, Any], wanted: list[Key], callbacks: Callbacks) -> None:
        self._client = client
        self._dsk = dsk
        self._wanted = wanted
        self._callbacks = callbacks
        _, _, self._before, self._after, _ = unpack_callbacks(callbacks)
        self._plan = plan = Plan(dsk, wanted, fuse=False)
        self._ranks: Sequence[int] = orders(plan.needs) or range(len(plan.tasks))
        self._at = {key: at for at, key in enumerate(plan.keys)}
        self._kept = {result.task for key in wanted if type(result := plan.result_of(key)) is Input}
        self._idle = list(range(client.n_workers * client.threads_per_worker))
        self._places: dict[Key, int] = {}
        self.state = self._first_state()

    def _first_state(self) -> dict[str, Any]:
        keys = self._plan.keys
        dependencies = {key: {keys[need] for need in needs} for key, needs in zip(keys, self._plan.needs, strict=True)}
        dependents: dict[Key, set[Key]] = {key: set() for key in keys}
        for key, needs in dependencies.items():
            for need in needs:
                dependents[need].add(key)
        ready = [(self._ranks[at], at) for at, needs in enumerate(self._plan.needs) if not needs]
        heapify(ready)
        self._ready = ready
        return {
            "dependencies": dependencies,
            "dependents": dependents,
            "waiting": {key: set(needs) for key, needs in dependencies.items() if needs},
            "waiting_data": {key: set(needed) for key, needed in dependents.items()},
            "cache": {key: node.value for key, node in self._dsk.items() if isinstance(node, DataNode)},
            "ready": dict.fromkeys(keys[at] for _, at in ready),
            "running": set(),
            "finished": set(),
            "released": set(),
        }

    def values(self) -> list[Any]:
        plan = self._plan
        for _, start_state, *_ in self._callbacks:
            if start_state:
                start_state(self._dsk, self.state)
        handles = self._client._session.submit(Future, plan.tasks, orders=self._ranks, keys=plan.keys)
        try:
            self._begin_tasks()
            self._follow(handles)
            results = [plan.result_of(key) for key in self._wanted]
            results = [handles[result.task] if type(result) is Input else result for result in results]
            return [result.result() if isinstance(result, Future) else result for result in results]
        except BaseException:
            self._client._session.cancel(handles)
            raise
        finally:
            for handle in handles:
                handle.release()

    def _follow(self, handles: list[Future]) -> None:
        watch = _core.Watch()
        watch.add(handles)
        at = {handle.id: at for at, handle in enumerate(handles)}
        left = len(handles)
        while left:
            for handle in watch.next():
                self._ended(at[handle.id], handle)
                left -= 1

    def _ended(self, at: int, handle: Handle) -> None:
        key = self._plan.keys[at]
        if key not in self.state["running"]:
            # It was begun earlier than expected.
            self._begin(key)
        value = handle.result()  # type: ignore[attr-defined]
        self._finish(key, value)
        if at not in self._kept:
            handle.release()
        for after in self._after:
            after(key, value, self._dsk, self.state, self._places.get(key))
        self._begin_tasks()

    def _begin_tasks(self) -> None:
        while self._idle and self._ready:
            key = self._plan.keys[heappop(self._ready)[1]]
            if key in self.state["ready"]:
                self._begin(key)

    def _begin(self, key: Key) -> None:
        state = self.state
        state["ready"].pop(key, None)
        state["waiting"].pop(key, None)
        state["running"].add(key)
        if self._idle:
            self._places[key] = self._idle.pop()
        for before in self._before:
            before(key, self._dsk, state)

    def _finish(self, key: Key, value: Any) -> None:
        state = self.state
        state["running"].discard(key)
        state["finished"].add(key)
        state["cache"][key] = value
        if key in self._places:
            self._idle.append(self._places[key])
        for dependent in state["dependents"][key]:
            waiting = state["waiting"].get(dependent)
            if waiting is not None:
                waiting.discard(key)
                if not waiting:
                    del state["waiting"][dependent]
                    at = self._at[dependent]
                    heappush(self._ready, (self._ranks[at], at))
                    state["ready"][dependent] = None
        for need in state["dependencies"][key]:
            state["waiting_data"][need].discard(key)
            if not state["waiting_data"][need] and self._at[need] not in self._kept:
                state["released"].add(need)
                state["cache"].pop(need, None)
