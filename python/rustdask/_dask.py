"""Dask's collections on rustdask: a scheduler function, and `compute` and `persist` of the client.

This module and those it has to itself (``_dask_*``) are the only ones that import dask, which rustdask does not depend
on; so they are imported when Dask is there already, and worker processes need none of them.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dask import config
from dask._expr import CompositeExpr, Expr, FinalizeCompute, _ExprSequence
from dask._task_spec import DataNode
from dask.base import (
    _rebuild_composite_collection,
    collections_to_expr,
    is_dask_collection,
    unpack_collections,
)
from dask.callbacks import Callback, local_callbacks
from dask.core import flatten
from dask.delayed import delayed
from dask.highlevelgraph import HighLevelGraph
from dask.sizeof import sizeof
from dask.typing import Key
from dask.utils import ensure_dict

from rustdask import _core
from rustdask._client import Client, default_client, get_client
from rustdask._client import engine_options as task_options
from rustdask._core import Input
from rustdask._dask_graph import Plan
from rustdask._dask_order import orders
from rustdask._future import Future

# What several tasks take, and is larger, is sent to worker processes once.
_MAX_REPEATED_BYTES = 16 << 10
# In these the engine looks for futures; where they are longer, once for all tasks.
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
_MAX_SEARCHED_LENGTH = 1000


def get(
    dsk: Any,
    keys: Any,
    *,
    client: Client | None = None,
    num_workers: int | None = None,
    pool: Any = None,
    cache: Mapping[Key, Any] | None = None,
    callbacks: Any = None,
    **kwargs: Any,
) -> Any:
    """Compute keys of a Dask graph; see `rustdask.get`."""
    annotated = client is not None
    if client is None:
        client = _client(num_workers, pool)
    if callbacks is None and not Callback.active:
        return _get(client, dsk, keys, cache, annotated)
    # As with Dask's own schedulers, those that tasks call in their turn call back to nobody.
    with local_callbacks(callbacks) as active:
        if not active:
            return _get(client, dsk, keys, cache, annotated)
        from rustdask._dask_callbacks import get_observed

        values = get_observed(client, graph_of(dsk, cache), _flat(keys), list(active))
        return _nested(keys, iter(values))


def compute(
    client: Client,
    collections: Any,
    *,
    sync: bool = False,
    optimize_graph: bool = True,
    traverse: bool = True,
    **options: Any,
) -> Any:
    """Compute collections in the background; see `Client.compute`."""
    several = isinstance(collections, (list, tuple, set, frozenset))
    items = [_as_collection(item, traverse) for item in (collections if several else [collections])]
    found = [item for item in items if is_dask_collection(item)]
    futures: Iterator[Future] = iter(_compute(client, found, optimize_graph, options) if found else ())
    made = [next(futures) if is_dask_collection(item) else item for item in items]
    if sync:
        return client.gather(made if several else made[0])
    return made if several else made[0]


def persist(
    client: Client, collections: Any, *, optimize_graph: bool = True, traverse: bool = True, **options: Any
) -> Any:
    """Compute collections in the background and return collections of the results; see `Client.persist`."""
    several = isinstance(collections, (list, tuple, set, frozenset))
    found, repack = unpack_collections(*(collections if several else [collections]), traverse=traverse)
    made = repack(_persist(client, found, optimize_graph, options)) if found else tuple(collections)
    return list(made) if several else made[0]


# The parts of these


def _get(client: Client, dsk: Any, keys: Any, cache: Mapping[Key, Any] | None, annotated: bool) -> Any:
    wanted = _flat(keys)
    submission = Submission(client, dsk, wanted, cache=cache, annotated=annotated)
    try:
        return _nested(keys, iter(submission.values()))
    except BaseException:
        submission.give_up()
        raise


def _compute(client: Client, collections: list[Any], optimize_graph: bool, options: Mapping[str, Any]) -> list[Future]:
    places = _in_groups(collections)
    expr = FinalizeCompute(collections_to_expr([collections[at] for at in places], optimize_graph)).optimize()
    wanted = list(flatten(expr.__dask_keys__()))
    futures = Submission(client, expr, wanted, options=options).futures()
    return _put_back(futures, places)


def _persist(client: Client, collections: list[Any], optimize_graph: bool, options: Mapping[str, Any]) -> list[Any]:
    places = _in_groups(collections)
    collections = [collections[at] for at in places]
    expr, parts = _optimized(collections, optimize_graph)
    keys = [list(flatten(part)) for part in expr.__dask_keys__()]
    wanted = [key for part in keys for key in part]
    futures = Submission(client, expr, wanted, options=options).futures()
    nodes = {key: _Kept(key, future) for key, future in zip(wanted, futures, strict=True)}
    made = []
    for collection, part, wanted in zip(collections, parts, keys, strict=True):
        if isinstance(part, CompositeExpr):
            made.append(_rebuild_composite_collection(collection, part, nodes, cull_to_child_keys=True))
        else:
            rebuild, state = collection.__dask_postpersist__()
            made.append(rebuild({key: nodes[key] for key in wanted}, *state))
    return _put_back(made, places)


def _in_groups(collections: list[Any]) -> list[int]:
    """Return the places of collections, those with the same optimization together.

    Dask puts them together and returns their keys in that order, whatever the order that it was given.
    """
    groups: dict[Any, list[int]] = {}
    for at, collection in enumerate(collections):
        by_expr = isinstance(getattr(collection, "expr", None), Expr)
        groups.setdefault(None if by_expr else getattr(collection, "__dask_optimize__", None), []).append(at)
    return [at for places in groups.values() for at in places]


def _put_back(items: list[Any], places: list[int]) -> list[Any]:
    by_place = dict(zip(places, items, strict=True))
    return [by_place[at] for at in range(len(items))]


def _optimized(collections: list[Any], optimize_graph: bool) -> tuple[Expr, list[Expr | None]]:
    """Return what all collections are together, and for those that are made of others (xarray's) what each is."""
    expr = collections_to_expr(collections, optimize_graph)
    composite = any(isinstance(part, CompositeExpr) for part in expr.operands)
    expr = expr.optimize()
    if composite and isinstance(expr, _ExprSequence) and len(expr.operands) == len(collections):
        return expr, list(expr.operands)
    return expr, [None] * len(collections)


def _as_collection(item: Any, traverse: bool) -> Any:
    """Make one collection of a list or the like that holds some."""
    if traverse and isinstance(item, (list, tuple, set, dict, Iterator)) and unpack_collections(item)[0]:
        return delayed(item)
    return item


class _Kept(DataNode):
    """The result of a task as part of the graph of a collection.

    For rustdask it is the future. Other schedulers of Dask get the result by calling it.
    """

    __slots__ = ()

    def __call__(self, values: Any = ()) -> Any:
        return self.value.result()

    def copy(self) -> _Kept:
        return _Kept(self.key, self.value)

    def substitute(self, subs: Any, key: Any = None) -> DataNode:
        return self if key is None or key == self.key else _Kept(key, self.value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, (self.key, self.value)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return "rustdask.Future", self.value.id, id(self.value.session)


class Submission:
    """A graph on its way through the engine.

    Parameters
    ----------
    client : Client
    dsk : mapping or Expr
        A Dask graph, or what has one.
    wanted : list of keys
    cache : mapping, optional
        Results that are there already, by key.
    options : mapping, optional
        For all tasks, as `Client.submit` takes them: priority, retries, resources, workers.
    annotated : bool
        Heed resources and workers in the graph's annotations.
    """

    def __init__(
        self,
        client: Client,
        dsk: Any,
        wanted: list[Key],
        *,
        cache: Mapping[Key, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        annotated: bool = True,
    ) -> None:
        self._client = client
        with _no_garbage_collection():
            groups = _groups(dsk, annotated)
            plan = Plan(graph_of(dsk, cache), wanted, keep=self._keep, group_of=groups)
            results = [self._result(plan, key) for key in wanted]
            places = list(dict.fromkeys([result.task for result in results if type(result) is Input]))
            self._made = self._submit(plan, places, groups, _options(**options or {}))
            by_place = dict(zip(places, self._made, strict=True))
            self._results = [by_place[result.task] if type(result) is Input else result for result in results]

    def values(self) -> list[Any]:
        """Wait for all results and return them, or raise what the first task that failed has raised."""
        handles = [result for result in self._results if isinstance(result, Future)]
        values = _core.results(handles)
        if not isinstance(values, tuple):
            values.result()
            raise AssertionError(f"{values} has failed, so it has no result")
        if len(handles) == len(self._results):
            return list(values)
        taken = iter(values)
        return [next(taken) if isinstance(result, Future) else result for result in self._results]

    def futures(self) -> list[Future]:
        """Return a future for each wanted key."""
        scatter = self._client._session.scatter
        return [result if isinstance(result, Future) else scatter(Future, result) for result in self._results]

    def give_up(self) -> None:
        """End what is not done, and let go of what is, which the traceback of an error may keep alive."""
        self._client._session.cancel(self._made)
        for future in self._made:
            future.release()

    def _submit(
        self, plan: Plan, wanted: list[int], groups: Mapping[Key, Any], options: dict[str, Any]
    ) -> list[Future]:
        if groups:
            from rustdask._dask_annotations import submit_groups

            return submit_groups(self._client, plan, wanted, groups, options)
        if not plan.tasks:
            return []
        keys = [plan.keys[at] for at in wanted]
        return self._client._session.submit(
            Future, plan.tasks, wanted=wanted, orders=orders(plan.needs), keys=keys, **options
        )

    @staticmethod
    def _result(plan: Plan, key: Key) -> Any:
        result = plan.result_of(key)
        if type(result) in _CONTAINERS and _holds_futures(result):
            return plan.add_value(key, result)
        return result

    def _keep(self, value: Any, uses: int) -> Any:
        """Return what stands for data of the graph in the arguments of tasks."""
        session = self._client._session
        if isinstance(value, Future):
            return value if value.session == session else value.result()
        if uses > 1 and self._is_large(value):
            return session.scatter(Future, value)
        return value

    def _is_large(self, value: Any) -> bool:
        if type(value) in _CONTAINERS and len(value) > _MAX_SEARCHED_LENGTH:
            return True
        return self._client.processes and sizeof(value) > _MAX_REPEATED_BYTES


def _holds_futures(value: Any) -> bool:
    if type(value) is dict:
        return any(map(_holds_futures, value)) or any(map(_holds_futures, value.values()))
    return any(map(_holds_futures, value)) if type(value) in _CONTAINERS else isinstance(value, Future)


def _options(
    *,
    priority: int = 0,
    retries: int = 0,
    resources: Mapping[str, float] | None = None,
    workers: Iterable[int] | int | None = None,
    allow_other_workers: bool = False,
) -> dict[str, Any]:
    return task_options(priority, retries, resources, None if allow_other_workers else workers)


def _groups(dsk: Any, everything: bool) -> Mapping[Key, Any]:
    """Return the options that the graph's annotations give to tasks, by key, in a form that can be compared."""
    annotations = _annotations(dsk)
    if not annotations:
        return {}
    from rustdask._dask_annotations import groups

    return groups(annotations, everything)


def _annotations(dsk: Any) -> Mapping[str, Mapping[Key, Any]]:
    if isinstance(dsk, Expr):
        said: Mapping[str, Mapping[Key, Any]] = dsk.__dask_annotations__()
        return said
    annotations: dict[str, dict[Key, Any]] = {}
    if isinstance(dsk, HighLevelGraph):
        for layer in dsk.layers.values():
            for name, value in (layer.annotations or {}).items():
                annotations.setdefault(name, {}).update(
                    {key: value(key) if callable(value) else value for key in layer}
                )
    return annotations


def graph_of(dsk: Any, cache: Mapping[Key, Any] | None) -> dict[Key, Any]:
    """Return a graph as a dict, with what is in the cache as data."""
    if not isinstance(dsk, Mapping):
        dsk = dsk.__dask_graph__()
    graph: dict[Key, Any] = ensure_dict(dsk)
    if cache:
        graph = graph | {key: DataNode(key, value) for key, value in cache.items()}
    return graph


def _flat(keys: Any) -> list[Key]:
    return list(flatten(keys)) if isinstance(keys, list) else [keys]


def _nested(keys: Any, values: Iterator[Any]) -> Any:
    if not isinstance(keys, list):
        return next(values)
    return tuple([_nested(key, values) for key in keys])


# Clients


def _client(num_workers: int | None, pool: Any) -> Client:
    pool = pool or config.get("pool", None)
    num_workers = num_workers or config.get("num_workers", None) or _size_of(pool)
    if num_workers is None:
        return default_client()
    try:
        return get_client()
    except ValueError:
        return _client_of_size(int(num_workers))


def _size_of(pool: Any) -> int | None:
    """Return how many tasks an executor, or a pool of multiprocessing, runs at a time."""
    return getattr(pool, "_max_workers", None) or getattr(pool, "_processes", None)


_clients: dict[int, Client] = {}
_clients_lock = threading.Lock()


def _client_of_size(n_workers: int) -> Client:
    with _clients_lock:
        client = _clients.get(n_workers)
        if client is None or client.closed or not client._session.is_ours:
            client = _clients[n_workers] = Client(n_workers, processes=False, set_as_default=False)
        return client


_pauses = 0
_pauses_lock = threading.Lock()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Make many objects at once without a search for garbage each time that their number has grown.

    None of them is garbage before they all are. It would take half of the time.
    """
    global _pauses
    with _pauses_lock:
        if not _pauses and not gc.isenabled():
            paused = False
        else:
            paused = True
            _pauses += 1
            gc.disable()
    try:
        yield
    finally:
        if paused:
            with _pauses_lock:
                _pauses -= 1
                if not _pauses:
                    gc.enable()
