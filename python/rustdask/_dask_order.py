"""The order in which the tasks of a graph are best run, so that few results have to be kept at a time."""

from __future__ import annotations

from collections.abc import Sequence

from dask._task_spec import Task
from dask.order import order
from dask.typing import Key

# Graphs of fewer tasks are done before an order pays.
_MIN_TASKS = 16
# So many results that several tasks need can be kept, whatever the order.
_MAX_SHARED = 16


def orders(needs: Sequence[Sequence[int]]) -> list[int] | None:
    """Return the place of each task in the order to run.

    Parameters
    ----------
    needs : sequence of sequence of int
        The tasks that each task needs, all of them earlier in the list; as a walk from the results down finds them.

    Returns
    -------
    list of int or None
        None if they are to be run as listed. That is as good as any order where next to no result has several
        dependents: each is used up before another one is begun. `dask.order.order` costs more than all else.
    """
    if len(needs) < _MIN_TASKS or _shared(needs) <= _MAX_SHARED:
        return None
    # Equal tasks go in the order of their names as text, so all names have the same length.
    first = 10 ** len(str(len(needs)))
    graph: dict[Key, _Task] = {}
    for at, ahead in enumerate(needs, first):
        task = graph[at] = _Task.__new__(_Task)
        task.dependencies = frozenset([first + need for need in ahead])  # type: ignore[misc]
    place = order(graph)
    return [place[at] for at in range(first, first + len(needs))]


class _Task(Task):
    """As much of a task as has to do with its order."""

    __slots__ = ("dependencies",)


def _shared(needs: Sequence[Sequence[int]]) -> int:
    dependents = [0] * len(needs)
    for ahead in needs:
        for at in ahead:
            dependents[at] += 1
    return sum(count > 1 for count in dependents)
