"""The graphs behind `delayed`: their nodes, and how they become tasks of the engine.

Guarantees: nothing here recurses along a graph, however deep it is. In one plan, each node becomes one task, and so do
equal calls that are pure, and nodes of the same key.

Assumes that the arguments of pure calls are not changed before they run.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rustdask import _core
from rustdask._steps import name_of
from rustdask._tokenize import tokenize

__all__ = [
    "Nest",
    "Node",
    "Plan",
    "Proxy",
    "call",
    "filled",
    "key_of",
    "label_of",
    "ordered",
    "packed",
    "unpacked",
    "value",
]


_RANDOM_BYTES = 16


class Node:
    """A call to be made, or, without a function, the value ``args[0]``.

    Among the arguments, a `Node` stands for its result, and a `Nest` for a container of such. `needs` are all these
    nodes, in order. `key`: its name, None while nobody has asked. `named`: somebody chose the key.
    """

    __slots__ = ("__weakref__", "args", "function", "key", "kwargs", "named", "needs", "pure")

    def __init__(
        self,
        function: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        needs: Sequence[Node],
        pure: bool,
        key: Any = None,
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.needs = needs
        self.pure = pure
        self.key = key
        self.named = key is not None


class Proxy:
    """What users hold of a node."""

    __slots__ = ("_node",)

    _node: Node


class Nest:
    """A container as it was when the call was written down: `make` makes it of its items, with results among them."""

    __slots__ = ("items", "make")

    def __init__(self, make: Callable[[list[Any]], Any], items: list[Any]) -> None:
        self.make = make
        self.items = items


class _Place:
    """Stands for a node in a pickle: where in the list of which pack it is, the pickle's own if None."""

    __slots__ = ("at", "pack")

    def __init__(self, pack: Any, at: int) -> None:
        self.pack = pack
        self.at = at


# Writing calls down


def call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None, pure: bool, key: Any = None
) -> Node:
    """Return a node for a call, with proxies among its arguments or in containers there."""
    needs: list[Node] = []
    if args:
        args = tuple([unpacked(arg, needs) for arg in args])
    if kwargs:
        kwargs = {name: unpacked(arg, needs) for name, arg in kwargs.items()}
    return Node(function, args, kwargs or None, needs, pure, key)


def value(held: Any, pure: bool = False, key: Any = None) -> Node:
    """Return a node for a value, which may be a future."""
    return Node(None, (held,), None, (), pure, key)


def unpacked(held: Any, needs: list[Node]) -> Any:
    """Return a value with nodes and nests for proxies, futures and their containers, and add the nodes to `needs`.

    What holds none of them is returned as it is.
    """
    cls: Any = type(held)
    unpack = _unpacker(cls)
    return held if unpack is None else unpack(held, needs)


@functools.lru_cache(maxsize=4096)
def _unpacker(cls: Any) -> Callable[[Any, list[Node]], Any] | None:
    if issubclass(cls, Proxy):
        return _unpack_proxy
    if issubclass(cls, _core.Handle):
        return _unpack_future
    if cls in _UNPACK:
        return _UNPACK[cls]
    if dataclasses.is_dataclass(cls):
        return _unpack_dataclass
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return _unpack_named_tuple
    return None


def _unpack_proxy(held: Proxy, needs: list[Node]) -> Node:
    node = held._node
    needs.append(node)
    return node


def _unpack_future(held: _core.Handle, needs: list[Node]) -> Node:
    node = value(held)
    needs.append(node)
    return node


def _unpack_list(held: list[Any], needs: list[Node]) -> Any:
    return _nest(list, held, needs) or held


def _unpack_tuple(held: tuple[Any, ...], needs: list[Node]) -> Any:
    return _nest(tuple, held, needs) or held


def _unpack_set(held: set[Any], needs: list[Node]) -> Any:
    return _nest(set, held, needs) or held


def _unpack_frozenset(held: frozenset[Any], needs: list[Node]) -> Any:
    return _nest(frozenset, held, needs) or held


def _unpack_dict(held: dict[Any, Any], needs: list[Node]) -> Any:
    return _nest(_dict_of, [part for pair in held.items() for part in pair], needs) or held


def _unpack_iterator(held: Iterator[Any], needs: list[Node]) -> Any:
    return _unpack_list(list(held), needs)


def _unpack_slice(held: slice, needs: list[Node]) -> Any:
    return _built(slice, (held.start, held.stop, held.step), {}, needs) or held


def _unpack_named_tuple(held: Any, needs: list[Node]) -> Any:
    return _built(type(held), tuple(held), {}, needs) or held


def _unpack_dataclass(held: Any, needs: list[Node]) -> Any:
    fields = dataclasses.fields(held)
    # One that is not made with the object may not be there yet.
    present = {field.name: getattr(held, field.name) for field in fields if hasattr(held, field.name)}
    built = _built(type(held), (), present, needs)
    if built is None:
        return held
    _check_makes(held, fields)
    return built


def _nest(make: Callable[[Any], Any], items: Iterable[Any], needs: list[Node]) -> Nest | None:
    before = len(needs)
    inside = [unpacked(item, needs) for item in items]
    return None if len(needs) == before else Nest(make, inside)


def _built(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any], needs: list[Node]) -> Node | None:
    """Return a node that makes an object: the engine looks into containers, not into objects of classes."""
    node = call(cls, args, kwargs, pure=True)
    if not node.needs:
        return None
    needs.append(node)
    return node


def _check_makes(held: Any, fields: Sequence[dataclasses.Field[Any]]) -> None:
    cls = type(held)
    for field in fields:
        if not field.init:
            raise ValueError(
                f"a {cls.__qualname__} with lazy values in it cannot be made anew: {field.name!r} has init=False"
            )
    if not cls.__dataclass_params__.init:
        raise TypeError(f"a {cls.__qualname__} with lazy values in it cannot be made anew: its __init__ is its own")


def _dict_of(parts: Sequence[Any]) -> dict[Any, Any]:
    return dict(zip(parts[::2], parts[1::2], strict=True))


_UNPACK: dict[type, Callable[[Any, list[Node]], Any]] = {
    list: _unpack_list,
    tuple: _unpack_tuple,
    set: _unpack_set,
    frozenset: _unpack_frozenset,
    dict: _unpack_dict,
    slice: _unpack_slice,
    type(iter([])): _unpack_iterator,
    type(iter(())): _unpack_iterator,
    type(iter(set())): _unpack_iterator,
}


def filled(held: Any, values: Mapping[Node, Any]) -> Any:
    """Return what was unpacked, with the values of nodes in their place."""
    cls = type(held)
    if cls is Node:
        return values[held]
    if cls is Nest:
        return held.make([filled(item, values) for item in held.items])
    return held


# Walking


def ordered(outputs: Iterable[Node], known: Container[Node] | None = None) -> Iterator[Node]:
    """Yield nodes, each after what it needs and as late as that allows: depth first, so that few results wait.

    Nodes in `known`, and what only they need, are left out. The caller enters there what was yielded.
    """
    seen: Any = set() if known is None else known
    open_ = list(outputs)[::-1]
    while open_:
        node = open_[-1]
        if node not in seen:
            missing = [need for need in node.needs if need not in seen]
            if missing:
                missing.reverse()
                open_ += missing
                continue
            yield node
            if known is None:
                seen.add(node)
        open_.pop()


class Plan:
    """The tasks that the engine is to run for some outputs.

    Parameters
    ----------
    outputs : sequence of Node
    share : callable, optional
        Returns a future for a value that several tasks take. By default, each of them gets the value itself.

    Attributes
    ----------
    tasks : list of (function, args, kwargs)
    places : dict of Node
        What stands for the result of a node: the number of its task as an `Input`, a value, or a future.
    """

    def __init__(self, outputs: Sequence[Node], share: Callable[[Any], Any] | None = None) -> None:
        self.tasks: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any] | None]] = []
        self.places: dict[Node, Any] = {}
        self._share = share
        self._often: set[Node] = set() if share is None else _values_needed_often(outputs)
        self._known: dict[Any, Any] = {}
        places = self.places
        for node in ordered(outputs, places):
            if node.function is None:
                places[node] = self._value(node)
            elif node.pure or node.named:
                places[node] = self._once(node)
            else:
                places[node] = self._added(node)

    def _added(self, node: Node) -> _core.Input:
        tasks, args, kwargs = self.tasks, node.args, node.kwargs
        if node.needs:
            places = self.places
            args = tuple([places[arg] if type(arg) is Node else filled(arg, places) for arg in args])
            if kwargs is not None:
                kwargs = {name: filled(arg, places) for name, arg in kwargs.items()}
        tasks.append((node.function, args, kwargs))  # type: ignore[arg-type]
        return _core.Input(len(tasks) - 1)

    def _once(self, node: Node) -> _core.Input:
        signature = ("key", node.key) if node.named else self._signature(node)
        known = self._known.get(signature)
        if known is None:
            known = self._known[signature] = self._added(node)
        return known

    def _value(self, node: Node) -> Any:
        held = node.args[0]
        return self._share(held) if self._share is not None and node in self._often else held

    def _signature(self, node: Node) -> Any:
        """What two pure calls have in common if they are the same. Cheaper than a key."""
        kwargs = node.kwargs and tuple((name, self._mark(arg)) for name, arg in node.kwargs.items())
        return _function_mark(node.function), tuple([self._mark(arg) for arg in node.args]), kwargs

    def _mark(self, arg: Any) -> Any:
        cls = type(arg)
        if cls is Node:
            place = self.places[arg]
            if type(place) is _core.Input:
                return "task", place.task
            return ("value", tokenize(arg.args[0])) if arg.pure else ("node", id(arg))
        if cls is Nest:
            return arg.make, tuple([self._mark(item) for item in arg.items])
        if cls is float:
            # Some that differ are equal, but not in this form.
            return cls, arg.hex()
        return (cls, arg) if cls in _SIMPLE else ("value", tokenize(arg))


_SIMPLE = frozenset({int, str, bool, bytes, type(None)})


def _function_mark(function: Any) -> Any:
    try:
        hash(function)
    except TypeError:
        return "value", tokenize(function)
    return function


def _values_needed_often(outputs: Sequence[Node]) -> set[Node]:
    """Return the nodes of larger values that more than one task takes."""
    once: set[Node] = set()
    often: set[Node] = set()
    for node in ordered(outputs):
        for need in node.needs:
            if need.function is None and not isinstance(need.args[0], _CHEAP):
                (often if need in once else once).add(need)
    return often


_CHEAP = (int, float, complex, str, bytes, type(None), type, type(call), type(len), _core.Handle)


# Keys


def key_of(node: Node) -> Any:
    """Return the name of a node: of pure calls the same for the same call, of others one of their own."""
    for each in ordered([node], _WithKey()):
        each.key = f"{label_of(each)}-{_token(each)}"
    return node.key


class _WithKey:
    """Knows the nodes that have a key."""

    def __contains__(self, node: Any) -> bool:
        return node.key is not None


def label_of(node: Node) -> str:
    """Return what to call a node in a picture, and at the front of its key."""
    return name_of(node.args[0] if node.function is None else node.function)


def _token(node: Node) -> str:
    if not node.pure:
        return os.urandom(_RANDOM_BYTES).hex()
    # What it needs has a key already.
    return tokenize(node.function, _keyed(node.args), _keyed(node.kwargs))


def _keyed(held: Any) -> Any:
    cls = type(held)
    if cls is Node:
        return "key", held.key
    if cls is Nest:
        return held.make, [_keyed(item) for item in held.items]
    if cls is tuple:
        return tuple([_keyed(item) for item in held])
    if cls is dict:
        return {name: _keyed(item) for name, item in held.items()}
    return held


# Pickles


def packed(node: Node) -> tuple[Any, int]:
    """Return an object to put into a pickle, and the node's place in the list of nodes that is unpickled from it.

    Nodes that one pickle holds share these objects, and so what they need.
    """
    place = _live_place(node)
    if place is None:
        place = _Pack(node), -1
    return place


class _Pack:
    """Nodes in a flat list: a deep graph is not a deep pickle. `places`: of those, and of what else they need."""

    __slots__ = ("__weakref__", "places")

    def __init__(self, output: Node) -> None:
        self.places = _Places()
        for at, node in enumerate(ordered([output], self.places)):
            self.places[node] = _Place(None, at)
            _packs[node] = weakref.ref(self), at

    def __reduce__(self) -> tuple[Any, ...]:
        return _nodes_of, ([self._row(node) for node, place in self.places.items() if place.pack is None],)

    def _row(self, node: Node) -> tuple[Any, ...]:
        find = self.places.__getitem__
        # From now on it is its key that tells it from others: there will be copies of it.
        node.named = node.named or not node.pure
        args = tuple([_changed(arg, Node, find) for arg in node.args])
        kwargs = node.kwargs and {name: _changed(arg, Node, find) for name, arg in node.kwargs.items()}
        return node.function, args, kwargs, [find(need) for need in node.needs], node.pure, key_of(node), node.named


class _Places(dict[Node, _Place]):
    """Knows also the nodes in other packs that are in use."""

    def __contains__(self, node: Any) -> bool:
        if super().__contains__(node):
            return True
        elsewhere = _live_place(node)
        if elsewhere is not None:
            self[node] = _Place(*elsewhere)
        return elsewhere is not None


_packs: weakref.WeakKeyDictionary[Node, tuple[weakref.ref[_Pack], int]] = weakref.WeakKeyDictionary()


def _live_place(node: Node) -> tuple[_Pack, int] | None:
    ref, at = _packs.get(node, (None, 0))
    pack = None if ref is None else ref()
    return None if pack is None else (pack, at)


def _nodes_of(rows: Iterable[tuple[Any, ...]]) -> list[Node]:
    nodes: list[Node] = []

    def find(place: _Place) -> Node:
        return (nodes if place.pack is None else place.pack)[place.at]

    for function, args, kwargs, needs, pure, key, named in rows:
        args = tuple([_changed(arg, _Place, find) for arg in args])
        kwargs = kwargs and {name: _changed(arg, _Place, find) for name, arg in kwargs.items()}
        node = Node(function, args, kwargs, [find(need) for need in needs], pure, key)
        node.named = named
        nodes.append(node)
    return nodes


def _changed(held: Any, cls: type, change: Callable[[Any], Any]) -> Any:
    """Return what was unpacked, with what is of a class changed."""
    if type(held) is cls:
        return change(held)
    if type(held) is Nest:
        return Nest(held.make, [_changed(item, cls, change) for item in held.items])
    return held
