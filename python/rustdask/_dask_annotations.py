"""What `dask.annotate` says about the tasks of a graph: priorities, retries, resources, workers.

The engine takes these for a whole submission. So a graph whose tasks differ in them is submitted in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dask.typing import Key

from rustdask._client import Client
from rustdask._client import engine_options as task_options
from rustdask._core import Input
from rustdask._dask_graph import EngineTask, Plan
from rustdask._dask_order import orders
from rustdask._future import Future

Group = tuple[tuple[str, Any], ...]

_NAMES = ("priority", "resources", "retries", "workers")
# What a scheduler may leave aside that has only one kind of workers.
_ABOUT_PLACES = ("resources", "workers")


def groups(annotations: Mapping[str, Mapping[Key, Any]], everything: bool) -> dict[Key, Group]:
    """Return what is said about each task that anything is said about.

    Parameters
    ----------
    annotations : mapping
        From names of annotations to mappings from keys to values.
    everything : bool
        Heed what is said about where tasks run.
    """
    found: dict[Key, Group] = {}
    allowed = annotations.get("allow_other_workers", {})
    for name in _NAMES:
        if everything or name not in _ABOUT_PLACES:
            for key, value in annotations.get(name, {}).items():
                if name != "workers" or not allowed.get(key):
                    found[key] = (*found.get(key, ()), (name, _frozen(value)))
    return found


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(sorted(value.items()))
    return tuple(value) if isinstance(value, (list, set, tuple)) else value


def submit_groups(
    client: Client, plan: Plan, wanted: list[int], group_of: Mapping[Key, Group], options: Mapping[str, Any]
) -> list[Future]:
    """Submit a graph in parts of equal options, and return futures for the wanted tasks."""
    parts = _parts(plan.needs, [group_of.get(key, ()) for key in plan.keys])
    ends = set(wanted)
    for members, _ in parts:
        inside = set(members)
        ends.update(need for at in members for need in plan.needs[at] if need not in inside)
    futures: dict[int, Future] = {}
    ranks = orders(plan.needs) or range(len(plan.tasks))
    for members, group in parts:
        kept = [at for at in members if at in ends]
        made = client._session.submit(
            Future,
            _tasks_of(plan, members, futures),
            wanted=[members.index(at) for at in kept] if len(kept) < len(members) else None,
            orders=_ranked([ranks[at] for at in members]),
            keys=[plan.keys[at] for at in kept],
            **{**options, **_options_of(group)},
        )
        futures.update(zip(kept, made, strict=True))
    return [futures[at] for at in wanted]


def _options_of(group: Group) -> dict[str, Any]:
    said = dict(group)
    resources = said.get("resources")
    return task_options(
        int(said.get("priority", 0)),
        int(said.get("retries", 0)),
        None if resources is None else dict(resources),
        said.get("workers"),
    )


def _parts(needs: Sequence[Sequence[int]], group_of: list[Group]) -> list[tuple[list[int], Group]]:
    """Divide tasks into parts of one group each, so that each part needs only itself and those before it."""
    level: list[int] = []
    parts: dict[tuple[int, Group], list[int]] = {}
    for at, ahead in enumerate(needs):
        group = group_of[at]
        level.append(max((level[need] + (group_of[need] != group) for need in ahead), default=0))
        parts.setdefault((level[at], group), []).append(at)
    return [(members, group) for (_, group), members in sorted(parts.items(), key=lambda part: part[0][0])]


def _tasks_of(plan: Plan, members: list[int], futures: Mapping[int, Future]) -> list[EngineTask]:
    place = {at: place for place, at in enumerate(members)}

    def result(given: Input) -> Any:
        at = given.task
        return Input(place[at]) if at in place else futures[at]

    tasks = []
    for at in members:
        function, args, kwargs = plan.tasks[at]
        tasks.append((function, _replaced(args, result), None if kwargs is None else _replaced(kwargs, result)))
    return tasks


def _replaced(value: Any, result: Callable[[Input], Any]) -> Any:
    cls = type(value)
    if cls is Input:
        return result(value)
    if cls in (list, tuple, set):
        return cls([_replaced(item, result) for item in value])
    if cls is dict:
        return {_replaced(key, result): _replaced(item, result) for key, item in value.items()}
    return value


def _ranked(ranks: list[int]) -> list[int]:
    """Number tasks by the order of their ranks."""
    sequence = sorted(range(len(ranks)), key=ranks.__getitem__)
    places = [0] * len(ranks)
    for place, at in enumerate(sequence):
        places[at] = place
    return places
