"""Turns Dask graphs into calls for the engine.

Guarantees: only what the wanted keys need is translated; what cannot be computed (a key that is not there, a cycle) is
refused by name before anything runs; tasks come out in an order in which each stands after those it needs. What Dask
would do while a task runs (look up arguments, run tasks within tasks) is done here, once, so that most tasks are a
plain call of the user's function.

Assumes that nodes do not change. Graphs of the old form, tuples of a function and its arguments, are read as
`dask._task_spec.convert_legacy_graph` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any

from dask._task_spec import (
    Alias,
    DataNode,
    Dict,
    GraphNode,
    List,
    NestedContainer,
    Set,
    Task,
    TaskRef,
    Tuple,
    _execute_subgraph,
    convert_legacy_task,
)
from dask.typing import Key

from rustdask import _steps
from rustdask._core import Input
from rustdask._steps import Step, Steps

EngineTask = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any] | None]


class _Kind(IntEnum):
    LITERAL = 0
    REFERENCE = 1
    ALIAS = 2
    DATA = 3
    TASK = 4
    CONTAINER = 5
    OTHER_NODE = 6


# Plain numbers, for comparisons in the loops that every argument goes through.
_LITERAL, _REFERENCE, _ALIAS, _DATA, _TASK, _CONTAINER, _OTHER_NODE = map(int, _Kind)


class _Kinds(dict[type, int]):
    """What an object is, by its class."""

    def __missing__(self, cls: type) -> int:
        kind = self[cls] = int(_kind_of(cls))
        return kind


def _kind_of(cls: type) -> _Kind:
    if issubclass(cls, TaskRef):
        return _Kind.REFERENCE
    if issubclass(cls, Alias):
        return _Kind.ALIAS
    if issubclass(cls, DataNode):
        return _Kind.DATA
    if cls in (List, Tuple, Set, Dict, _Items):
        return _Kind.CONTAINER
    if issubclass(cls, NestedContainer):
        return _Kind.OTHER_NODE
    if cls is _Call or issubclass(cls, Task) and cls.__call__ is Task.__call__:
        return _Kind.TASK
    return _Kind.OTHER_NODE if issubclass(cls, GraphNode) else _Kind.LITERAL


class _Call:
    """A task of the old form, in the shape of a `Task`, which is dearer to make."""

    __slots__ = ("args", "dependencies", "func")

    kwargs: Mapping[str, Any] = {}

    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...], dependencies: Iterable[Key]) -> None:
        self.func = func
        self.args = args
        self.dependencies = dependencies


class _Items:
    """A list or the like that holds references, in the shape of a `List`."""

    __slots__ = ("args", "klass")

    def __init__(self, klass: type, args: list[Any]) -> None:
        self.klass = klass
        self.args = args


_kinds = _Kinds()


class Plan:
    """What the engine is to do for some keys of a graph.

    Parameters
    ----------
    graph : dict
        From keys to `GraphNode` objects, tasks of the old form, or data.
    wanted : list of keys
        Without lists within it.
    fuse : bool
        Join tasks that follow each other and concern nobody else into one.
    keep : callable, optional
        Told a value that the graph holds as data, and how many tasks take it; returns what they get in its place.
    group_of : mapping, optional
        From keys to what must be equal for two tasks to be joined.

    Attributes
    ----------
    tasks : list of (function, args, kwargs)
        With `Input` objects, as `_core.Session.submit` takes them.
    keys : list
        Key of each; for several that were joined, the last one's.
    needs : list of sequence of int
        The tasks that each task needs.

    Raises
    ------
    KeyError
        If a wanted key is not in the graph.
    ValueError
        If something depends on a key that is not in the graph.
    RuntimeError
        If keys depend on each other in a circle.
    """

    def __init__(
        self,
        graph: dict[Key, Any],
        wanted: Iterable[Key],
        *,
        fuse: bool = True,
        keep: Callable[[Any, int], Any] | None = None,
        group_of: Mapping[Key, Any] | None = None,
    ) -> None:
        self.tasks: list[EngineTask] = []
        self.keys: list[Key] = []
        self.needs: list[Sequence[int]] = []
        wanted = list(wanted)
        reached = _Reached(graph, wanted)
        joined = _joined(reached, wanted, group_of or {}) if fuse else frozenset()
        self._place = reached.place
        self._data = reached.data
        if keep is not None:
            self._data = {key: keep(value, reached.uses.get(key, 0)) for key, value in reached.data.items()}
        # In the place of each task that was reached: what stands for its result in the arguments of others.
        self._results: list[Any] = []
        self._forms: dict[Any, Steps] = {}
        for at, node in enumerate(reached.nodes):
            needs = reached.needs[at]
            if at in joined:
                self._results.append(self._begin(node, needs))
            else:
                self._results.append(self._add(reached.keys[at], node, needs))
        self._wanted = {key: self.value_of(key) for key in wanted}
        # Not needed any more, and as large as all the rest.
        self._place, self._data, self._results, self._forms = {}, {}, [], {}

    def result_of(self, key: Key) -> Any:
        """Return what stands for the result of a wanted key: an `Input`, or its value itself."""
        return self._wanted[key]

    def add_value(self, key: Key, value: Any) -> Input:
        """Add a task whose result is a value with futures in it, in whose places the engine puts their results."""
        return self._append(key, (_steps.same, (value,), None), [])

    # One task

    def _begin(self, node: Any, needs: Sequence[int]) -> _Chain:
        """Translate a task that its only dependent will go on with."""
        chain = self._chain_before(needs) or _Chain(self._needs_of(needs))
        chain.go_on(node, self)
        return chain

    def _add(self, key: Key, node: Any, needs: Sequence[int]) -> Input:
        chain = self._chain_before(needs)
        if chain is None:
            try:
                task = self._plain(node)
            except _HoldsCalls:
                chain = _Chain(self._needs_of(needs))
        if chain is not None:
            chain.go_on(node, self)
            return self._append(key, chain.task(self._forms), chain.needs)
        return self._append(key, task, self._needs_of(needs))

    def _append(self, key: Key, task: EngineTask, needs: Sequence[int]) -> Input:
        result = Input(len(self.tasks))
        self.tasks.append(task)
        self.keys.append(key)
        self.needs.append(needs)
        return result

    def _chain_before(self, needs: Sequence[int]) -> _Chain | None:
        if len(needs) == 1 and type(chain := self._results[needs[0]]) is _Chain:
            return chain
        return None

    def _needs_of(self, needs: Sequence[int]) -> Sequence[int]:
        return [self._results[at].task for at in needs] if needs else ()

    def _plain(self, node: Any) -> EngineTask:
        kind = _kinds[type(node)]
        if kind == _TASK:
            if node.func is _execute_subgraph:
                raise _HoldsCalls
            kwargs = node.kwargs
            if kwargs:
                kwargs = dict(zip(kwargs, self._values(kwargs.values()), strict=True))
            return node.func, tuple(self._values(node.args)), kwargs or None
        if kind == _CONTAINER:
            return _steps.same, (self.container(node),), None
        keys = tuple(node.dependencies)
        return _steps.run_node, (node, keys, *map(self.value_of, keys)), None

    def _values(self, args: Iterable[Any]) -> list[Any]:
        place = self._place
        results = self._results
        values = []
        for arg in args:
            kind = _kinds[type(arg)]
            if kind == _LITERAL:
                values.append(arg)
            elif kind == _REFERENCE:
                at = place[arg.key]
                values.append(results[at] if at >= 0 else self._data[arg.key])
            elif kind == _CONTAINER:
                values.append(self.container(arg))
            elif kind == _ALIAS:
                values.append(self.value_of(arg.target))
            elif kind == _DATA:
                values.append(arg.value)
            else:
                raise _HoldsCalls
        return values

    def container(self, node: Any) -> Any:
        items = self._values(node.args)
        if node.klass is dict:
            return dict(zip(items[::2], items[1::2], strict=True))
        return items if node.klass is list else node.klass(items)

    def value_of(self, key: Key) -> Any:
        """Return what stands for the result of a key in the arguments of others."""
        at = self._place[key]
        return self._results[at] if at >= 0 else self._data[key]


class _HoldsCalls(Exception):
    """A task holds tasks, so that it takes several steps."""


class _Chain:
    """Calls that are to be steps of one task."""

    def __init__(self, needs: Sequence[int]) -> None:
        self.needs = needs
        self._inputs: list[Any] = []
        self._steps: list[Step] = []
        self._result = 0
        self._begun = False

    def go_on(self, node: Any, plan: Plan) -> None:
        """Add what a task of the plan does."""
        self._result = self._call(node, plan, None)
        self._begun = True

    def task(self, forms: dict[Any, Steps]) -> EngineTask:
        """Return the whole. Those of equal form have the same function."""
        if self._result >= 0 or self._result != -len(self._steps):
            self._step(_steps.same, [self._result])
        steps = self._steps
        n_inputs = len(self._inputs)
        form = (n_inputs, *[(id(function), places, names) for function, places, names in steps])
        function = forms.get(form)
        if function is None:
            # It keeps the functions, and so their ids.
            function = forms[form] = Steps(tuple(steps), n_inputs)
        return function, tuple(self._inputs), None

    def _call(self, node: Any, plan: Plan, inner: _Inner | None) -> int:
        """Add what a node does, and return the place of its result."""
        kind = _kinds[type(node)]
        if kind == _TASK:
            if node.func is _execute_subgraph:
                return self._call_graph(node.args, plan, inner)
            places = [self._place_of(arg, plan, inner) for arg in node.args]
            if node.kwargs:
                places += [self._place_of(arg, plan, inner) for arg in node.kwargs.values()]
            return self._step(node.func, places, tuple(node.kwargs))
        if kind == _CONTAINER:
            return self._step(_MAKERS[node.klass], [self._place_of(arg, plan, inner) for arg in node.args])
        keys = tuple(node.dependencies)
        places = [self._input(node), self._input(keys), *[self._place_of_key(key, plan, inner) for key in keys]]
        return self._step(_steps.run_node, places)

    def _call_graph(self, args: tuple[Any, ...], plan: Plan, outer: _Inner | None) -> int:
        """Add the tasks of a graph within a task, which is what Dask makes of tasks that it joins."""
        graph, wanted, given_keys, *given = args
        inner = _Inner(graph, dict(zip(given_keys, given, strict=True)), outer)
        if len(graph) > _MANY:
            # One after the other, since Python allows only so many calls within calls.
            for key in _in_order(graph, wanted, inner.given):
                self._place_of_key(key, plan, inner)
        return self._place_of_key(wanted, plan, inner)

    def _step(self, function: Callable[..., Any], places: list[int], names: tuple[str, ...] = ()) -> int:
        self._steps.append((function, tuple(places), names))
        return -len(self._steps)

    def _input(self, value: Any) -> int:
        self._inputs.append(value)
        return len(self._inputs) - 1

    def _place_of(self, arg: Any, plan: Plan, inner: _Inner | None) -> int:
        kind = _kinds[type(arg)]
        if kind == _LITERAL:
            return self._input(arg)
        if kind == _REFERENCE:
            return self._place_of_key(arg.key, plan, inner)
        if kind == _ALIAS:
            return self._place_of_key(arg.target, plan, inner)
        if kind == _DATA:
            return self._input(arg.value)
        if kind == _CONTAINER and inner is None and not self._begun:
            # The engine puts it together, unless a result of these steps is to be in it.
            try:
                value = plan.container(arg)
            except _HoldsCalls:
                pass
            else:
                return self._input(value)
        return self._call(arg, plan, inner)

    def _place_of_key(self, key: Key, plan: Plan, inner: _Inner | None) -> int:
        if inner is None:
            value = plan.value_of(key)
            return self._result if value is self else self._input(value)
        place = inner.places.get(key)
        if place is None:
            if key in inner.given:
                place = self._place_of(inner.given[key], plan, inner.outer)
            elif key in inner.graph:
                place = self._place_of(inner.graph[key], plan, inner)
            else:
                raise missing(key, [wanted for wanted, node in inner.graph.items() if key in node.dependencies])
            inner.places[key] = place
        return place


class _Inner:
    """A graph within a task: keys that nobody else knows."""

    __slots__ = ("given", "graph", "outer", "places")

    def __init__(self, graph: Mapping[Key, Any], given: dict[Key, Any], outer: _Inner | None) -> None:
        self.graph = graph
        self.given = given
        self.outer = outer
        self.places: dict[Key, int] = {}


_MANY = 50
_MAKERS = {list: _steps.list_of, tuple: _steps.tuple_of, set: _steps.set_of, dict: _steps.dict_of}


def _in_order(graph: Mapping[Key, Any], wanted: Key, given: Mapping[Key, Any]) -> list[Key]:
    order: dict[Key, None] = {}
    waiting = [wanted]
    while waiting:
        key = waiting[-1]
        node = None if key in order or key in given else graph.get(key)
        ahead = [] if node is None else [need for need in node.dependencies if need not in order and need in graph]
        if ahead:
            waiting += ahead
        else:
            order[waiting.pop()] = None
    return list(order)


class _Reached:
    """The part of a graph that some keys need, each task after those that it needs.

    Attributes
    ----------
    keys, nodes : list
        The tasks.
    needs : list of sequence of int
        The tasks that each task needs, by their numbers.
    place : dict
        Number of the task that makes the result of a key, or -1 if it is data.
    data : dict
        From keys to values that need no task.
    uses : dict
        How many tasks take each of these, if any.
    """

    def __init__(self, graph: dict[Key, Any], wanted: list[Key]) -> None:
        self.keys: list[Key] = []
        self.nodes: list[Any] = []
        self.needs: list[Sequence[int]] = []
        self.place: dict[Key, int] = {}
        self.data: dict[Key, Any] = {}
        self.uses: dict[Key, int] = {}
        self._graph = graph
        for key in wanted:
            if key not in graph:
                raise KeyError(f"{key!r} is asked for, but is not a key of the graph")
        self._walk(wanted)

    def _walk(self, wanted: list[Key]) -> None:
        graph, place = self._graph, self.place
        begun: dict[Key, Any] = {}
        waiting = wanted[::-1]
        while waiting:
            key = waiting[-1]
            if key in place:
                waiting.pop()
                continue
            node = begun.get(key)
            if node is None:
                node = _read(key, graph)
                ahead = [need for need in node.dependencies if need not in place]
                if ahead:
                    begun[key] = node
                    self._check(ahead, key, begun)
                    waiting += ahead if len(ahead) == 1 else _as_they_stand(node, ahead)
                    continue
            waiting.pop()
            self._add(key, node)

    def _add(self, key: Key, node: Any) -> None:
        place = self.place
        kind = _kinds[type(node)]
        if kind == _DATA:
            self.data[key] = node.value
            place[key] = -1
        elif kind == _ALIAS:
            at = place[key] = place[node.target]
            if at < 0:
                self.data[key] = self.data[node.target]
        else:
            needs: Sequence[int] = [at for need in node.dependencies if (at := place[need]) >= 0]
            if len(needs) < len(node.dependencies):
                for need in node.dependencies:
                    if place[need] < 0:
                        self.uses[need] = self.uses.get(need, 0) + 1
            # Aliases can make one of two. In a large graph, a million empty lists count.
            self.needs.append(list(set(needs)) if len(needs) > 1 else needs or ())
            place[key] = len(self.nodes)
            self.nodes.append(node)
            self.keys.append(key)

    def _check(self, ahead: list[Key], key: Key, begun: dict[Key, Any]) -> None:
        for need in ahead:
            if need in begun:
                raise _circle(need, [key for key in begun if key not in self.place])
            if need not in self._graph:
                raise missing(need, [key])


def _as_they_stand(node: Any, ahead: list[Key]) -> list[Key]:
    """Sort what a task needs as its arguments have it, last one first."""
    keys = dict.fromkeys(reversed(list(_references(node))))
    if len(keys) == len(ahead):
        return list(keys)
    missing = set(ahead)
    return [key for key in keys if key in missing]


def _references(node: Any) -> Iterator[Key]:
    kind = _kinds[type(node)]
    if kind == _TASK and node.func is not _execute_subgraph:
        yield from _references_among(node.args)
        yield from _references_among(node.kwargs.values())
    elif kind == _CONTAINER:
        yield from _references_among(node.args)
    else:
        # These are in the order of their hashes, which is another one in each process.
        yield from sorted(node.dependencies, key=str)


def _references_among(args: Iterable[Any]) -> Iterator[Key]:
    for arg in args:
        kind = _kinds[type(arg)]
        if kind == _REFERENCE:
            yield arg.key
        elif kind >= _TASK:
            yield from _references(arg)
        elif kind == _ALIAS:
            yield arg.target


def _joined(reached: _Reached, wanted: list[Key], group_of: Mapping[Key, Any]) -> set[int]:
    """Return the tasks that need not end by themselves: the only dependent of each needs nothing else."""
    dependents = [0] * len(reached.nodes)
    for needs in reached.needs:
        for at in needs:
            dependents[at] += 1
    for key in wanted:
        if (at := reached.place[key]) >= 0:
            dependents[at] += 1
    joined = {needs[0] for needs in reached.needs if len(needs) == 1 and dependents[needs[0]] == 1}
    if group_of:
        keys = reached.keys
        for at, needs in enumerate(reached.needs):
            if len(needs) == 1 and group_of.get(keys[at]) != group_of.get(keys[needs[0]]):
                joined.discard(needs[0])
    return joined


# Errors


def missing(key: Key, dependents: Iterable[Key]) -> ValueError:
    """Return the error that a graph lacks a key."""
    return ValueError(f"Missing dependency {key!r} for dependents {{{', '.join(map(repr, dependents))}}}")


def _circle(first: Key, path: list[Key]) -> RuntimeError:
    # What stands before it leads to the circle, and is not in it.
    keys = path[path.index(first) :]
    return RuntimeError("Cycle detected between the following keys:\n  -> " + "\n  -> ".join(map(str, [*keys, first])))


# Nodes


def _read(key: Key, graph: Mapping[Key, Any]) -> Any:
    """Return the node of a key, in the new form."""
    node = graph[key]
    kind = _kinds[type(node)]
    if kind == _LITERAL:
        return _read_old(key, node, graph)
    return node if kind != _REFERENCE else Alias(key, node)


def _read_old(key: Key, task: Any, graph: Mapping[Key, Any]) -> Any:
    if type(task) is tuple and task and callable(task[0]):
        needs: list[Key] = []
        args = tuple([_read_argument(arg, graph, needs) for arg in task[1:]])
        return _Call(task[0], args, needs or ())
    node = convert_legacy_task(key, task, graph)
    return node if isinstance(node, GraphNode) else DataNode(key, node)


_PLAIN = frozenset({str, int, float})
# Whatever may be a key or hold one, by the rules of the old form.
_SPEAKING = (int, float, str, tuple, list, set, frozenset, dict)


def _read_argument(arg: Any, graph: Mapping[Key, Any], needs: list[Key]) -> Any:
    cls = type(arg)
    if cls in _PLAIN or cls is tuple and _is_key(arg, graph):
        if arg not in graph:
            return arg
        needs.append(arg)
        return TaskRef(arg)
    if cls is list:
        return _read_list(arg, graph, needs)
    if _kinds[cls] == _LITERAL and not isinstance(arg, _SPEAKING) and not getattr(arg, "__dask_future__", False):
        return arg
    node = Dict(arg) if isinstance(arg, dict) else convert_legacy_task(None, arg, graph)
    if isinstance(node, GraphNode):
        needs += node.dependencies
    return node


def _is_key(value: tuple[Any, ...], graph: Mapping[Key, Any]) -> bool:
    try:
        return value in graph
    except TypeError:
        return False


def _read_list(items: list[Any], graph: Mapping[Key, Any], needs: list[Key]) -> Any:
    before = len(needs)
    read = [_read_argument(item, graph, needs) for item in items]
    # A list of data alone stays the object that it is, unless something within it had to be read in another way.
    if len(needs) == before and all(new is old for new, old in zip(read, items, strict=True)):
        return items
    return _Items(list, read)
