"""Lazy calls: a program written as usual becomes a graph of tasks, which runs when somebody asks for a result.

Guarantees: nothing runs before `compute`. In one `compute`, each task runs once, however many others take its result,
and so do equal calls that are pure. The rules are those of ``dask.delayed``.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from rustdask import _core
from rustdask._client import Client, default_client, engine_options
from rustdask._delayed_graph import Node, Plan, Proxy, call, filled, key_of, packed, unpacked, value
from rustdask._future import Future

if TYPE_CHECKING:
    from rustdask._drawing import Drawing

__all__ = ["Delayed", "compute", "delayed", "persist", "submit"]

_NOTHING: Any = object()


def delayed(
    obj: Any = _NOTHING,
    name: Any = None,
    pure: bool | None = None,
    nout: int | None = None,
    traverse: bool = True,
) -> Any:
    """Make a function lazy, so that its calls become tasks; or wrap a value, so that what is done with it is lazy.

    Parameters
    ----------
    obj : object
        A function, or anything else. Without it, as in ``@delayed(pure=True)``, a decorator is returned.
    name : hashable, optional
        Key of the wrapped object. A call gets its key by the argument ``dask_key_name``.
    pure : bool, default=False
        The same arguments give the same result, so that equal calls are one task. The argument ``pure`` of a call goes
        before this.
    nout : int, optional
        How many results a call returns; they can then be unpacked.
    traverse : bool, default=True
        Look into lists, tuples, sets, dicts, slices, named tuples and dataclasses for other `Delayed`.

    Returns
    -------
    Delayed

    See Also
    --------
    compute : Compute several of them together.

    Examples
    --------
    >>> from rustdask import delayed
    >>> @delayed
    ... def double(x):
    ...     return 2 * x
    >>> total = delayed(sum)([double(i) for i in range(4)])
    >>> total.compute()
    12

    Attributes, methods, items and operators are lazy, too:

    >>> words = delayed("to be or not to be").split()
    >>> (words[0].upper() + "!").compute()
    'TO!'

    Functions that return several things:

    >>> quotient, rest = delayed(divmod, nout=2)(17, 5)
    >>> (quotient * 10 + rest).compute()
    32
    """
    if obj is _NOTHING:
        return functools.partial(delayed, name=name, pure=pure, nout=nout, traverse=traverse)
    if isinstance(obj, Delayed):
        return obj
    if not (nout is None or (type(nout) is int and nout >= 0)):
        raise ValueError(f"nout must be None or a non-negative integer, got {nout!r}")
    if traverse and not isinstance(obj, _core.Handle):
        needs: list[Node] = []
        inside = unpacked(obj, needs)
        if needs:
            return Delayed(_same_node(inside, needs, type(obj).__name__, pure, name), nout)
        # What was an iterator is a list now.
        obj = inside
    return Wrapped(obj, name, pure, nout)


def compute(*args: Any, client: Client | None = None, traverse: bool = True, **options: Any) -> Any:
    """Compute several lazy results together: what they share runs once.

    Parameters
    ----------
    *args : object
        `Delayed` objects, also inside of lists, tuples, sets, dicts, slices, named tuples and dataclasses. All else is
        returned as it is.
    client : Client, optional
        Where to run. By default the current client, or else one with threads of this process.
    traverse : bool, default=True
        Look into containers.
    **options
        ``priority``, ``retries``, ``resources`` and ``workers``, as of `Client.submit`, for all tasks.

    Returns
    -------
    tuple
        The arguments, with results in the place of `Delayed`. From an asynchronous client, a coroutine of that.

    Raises
    ------
    Exception
        What the task raised that failed first.

    Examples
    --------
    >>> from rustdask import compute, delayed
    >>> x = delayed(pow)(2, 5)
    >>> compute(x + 1, {"half": x / 2}, "as it is")
    (33, {'half': 16.0}, 'as it is')
    """
    needs: list[Node] = []
    inside = tuple([unpacked(arg, needs) if traverse or isinstance(arg, Proxy) else arg for arg in args])
    client = default_client() if client is None else client
    if not needs and not client.asynchronous:
        return inside
    results = client.gather(_submitted(client, needs, keyed=False, **options))
    return _later(inside, needs, results) if client.asynchronous else _with_results(inside, needs, results)


def persist(*args: Any, client: Client | None = None, traverse: bool = True, **options: Any) -> tuple[Any, ...]:
    """Begin to compute several lazy results together, and return lazy ones that hold the futures.

    Parameters
    ----------
    *args, client, traverse, **options
        As for `compute`.

    Returns
    -------
    tuple
        The arguments, with `Delayed` that are computed already, or are about to be, in the place of `Delayed`.

    Examples
    --------
    >>> from rustdask import delayed, persist
    >>> x, = persist(delayed(pow)(2, 5))
    >>> (x + 1).compute()
    33
    """
    needs: list[Node] = []
    inside = tuple([unpacked(arg, needs) if traverse or isinstance(arg, Proxy) else arg for arg in args])
    futures = _submitted(default_client() if client is None else client, needs, keyed=True, **options)
    return _with_results(inside, needs, [Wrapped(future, None, None, None) for future in futures])


def submit(client: Client, outputs: Sequence[Delayed], **options: Any) -> list[Future]:
    """Have lazy results computed, and return the futures of them.

    Parameters
    ----------
    client : Client
    outputs : sequence of Delayed
    **options
        ``priority``, ``retries``, ``resources`` and ``workers``, as of `Client.submit`.
    """
    return _submitted(client, [output._node for output in outputs], keyed=True, **options)


_SEVERAL = (list, tuple, set, frozenset)


def are_lazy(collections: Any) -> bool:
    """Tell whether this is, or are, `Delayed`, of which `Client.compute` makes futures."""
    if isinstance(collections, _SEVERAL):
        return any(isinstance(item, Delayed) for item in collections)
    return isinstance(collections, Delayed)


def compute_later(client: Client, lazy: Any, **options: Any) -> Any:
    """Return the future of a lazy result, or those of several; see `Client.compute`."""
    if not isinstance(lazy, _SEVERAL):
        return submit(client, [lazy], **options)[0]
    items = _without_collections(lazy)
    futures = iter(submit(client, [item for item in items if isinstance(item, Delayed)], **options))
    return [next(futures) if isinstance(item, Delayed) else item for item in items]


def persist_later(client: Client, lazy: Any, **options: Any) -> Any:
    """Return a lazy result that holds its future, or several; see `Client.persist`."""
    if not isinstance(lazy, _SEVERAL):
        return persist(lazy, client=client, **options)[0]
    return list(persist(*_without_collections(lazy), client=client, **options))


def _without_collections(items: Iterable[Any]) -> list[Any]:
    """Refuse Dask's own, whose graphs take another way."""
    items = list(items)
    for item in items:
        if hasattr(type(item), "__dask_graph__"):
            raise TypeError(f"rustdask's Delayed and Dask's {type(item).__name__} take a call each; got both in one")
    return items


def _submitted(
    client: Client,
    nodes: Sequence[Node],
    *,
    keyed: bool,
    priority: int = 0,
    retries: int = 0,
    resources: Mapping[str, float] | None = None,
    workers: Iterable[int] | int | None = None,
) -> list[Future]:
    """Submit a graph. Unless `keyed`, futures have the engine's own keys: those of pure calls take time to make."""
    session = client._session
    plan = Plan(nodes, share=functools.partial(session.scatter, Future) if client.processes else None)
    outputs = {place.task: node for node in nodes if type(place := plan.places[node]) is _core.Input}
    futures: dict[int, Future] = {}
    if outputs:
        options = engine_options(priority, retries, resources, workers)
        keys = [key_of(node) for node in outputs.values()] if keyed else None
        submitted = session.submit(Future, plan.tasks, wanted=list(outputs), keys=keys, **options)
        futures = dict(zip(outputs, submitted, strict=True))
    return [_future_of(session, plan.places[node], futures) for node in nodes]


def _future_of(session: _core.Session, place: Any, futures: Mapping[int, Future]) -> Future:
    if type(place) is _core.Input:
        return futures[place.task]
    return place if isinstance(place, Future) else session.scatter(Future, place)


async def _later(inside: Any, needs: list[Node], results: Coroutine[Any, Any, list[Any]]) -> Any:
    return _with_results(inside, needs, await results)


def _with_results(inside: tuple[Any, ...], needs: list[Node], results: Sequence[Any]) -> tuple[Any, ...]:
    values = dict(zip(needs, results, strict=True))
    return tuple([filled(arg, values) for arg in inside])


class Delayed(Proxy):
    """The result of a call that has not been made. Made by `delayed`.

    What is done with it (operators, items, attributes, calls) is lazy as well. Operators, items and attributes are
    taken to be pure, calls of methods are not.

    Examples
    --------
    >>> from rustdask import delayed
    >>> x = delayed(abs)(-3)
    >>> y = x**2 + 1
    >>> y.compute()
    10
    """

    __slots__ = ("__weakref__", "_length")

    _length: int | None

    # numpy leaves operators between an array and this to this class.
    __array_ufunc__ = None

    def __init__(self, node: Node, length: int | None = None) -> None:
        # Past `__setattr__`, which refuses.
        _set_node(self, node)
        _set_length(self, length)

    @property
    def key(self) -> Any:
        """The name of the task."""
        return key_of(self._node)

    def compute(self, client: Client | None = None, **options: Any) -> Any:
        """Run all that this depends on, wait, and return the result.

        Parameters
        ----------
        client : Client, optional
            Where to run. By default the current client, or else one with threads of this process.
        **options
            ``priority``, ``retries``, ``resources`` and ``workers``, as of `Client.submit`, for all tasks.

        Returns
        -------
        object
            The result; from an asynchronous client, a coroutine of it.

        Raises
        ------
        Exception
            What a task raised.
        """
        results = compute(self, client=client, **options)
        return results[0] if type(results) is tuple else _only(results)

    def persist(self, client: Client | None = None, **options: Any) -> Delayed:
        """Begin to compute this, and return a `Delayed` that holds the future. See `persist`."""
        held: Delayed = persist(self, client=client, **options)[0]
        return held

    def visualize(self, filename: str | PathLike[str] | None = None, format: str | None = None) -> Drawing:
        """Draw the graph.

        Parameters
        ----------
        filename : path, optional
            Where to write it.
        format : str, optional
            ``"svg"``, ``"dot"``, or what Graphviz's program ``dot`` can make, where that is installed, such as
            ``"png"``. By default as the file's name ends, or else ``"svg"``.

        Returns
        -------
        Drawing
            Shows itself in a notebook. Its ``str()`` is the graph in Graphviz's language.

        Raises
        ------
        RuntimeError
            If ``dot`` is needed and not there.

        Examples
        --------
        >>> from rustdask import delayed
        >>> print(delayed(abs)(delayed(min)(1, 2)).visualize())
        digraph {
          rankdir=BT
          0 [label="min", shape=ellipse]
          1 [label="abs", shape=ellipse]
          0 -> 1
        }
        """
        from rustdask._drawing import draw

        return draw([self._node], filename, format)

    def __repr__(self) -> str:
        return f"Delayed({self.key!r})"

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), *packed(self._node), self._length)

    def __copy__(self) -> Delayed:
        return self

    def __dask_tokenize__(self) -> Any:
        return self.key

    def __dir__(self) -> list[str]:
        return dir(type(self))

    def __getattr__(self, name: str) -> Delayed:
        if name.startswith("_"):
            raise AttributeError(f"Attribute {name} not found")
        return Attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError("Delayed objects are immutable")

    def __delattr__(self, name: str) -> None:
        raise TypeError("Delayed objects are immutable")

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError("Delayed objects are immutable")

    def __delitem__(self, index: Any) -> None:
        raise TypeError("Delayed objects are immutable")

    def __getitem__(self, index: Any) -> Delayed:
        return Delayed(call(operator.getitem, (self, index), None, True))

    def __iter__(self) -> Iterator[Delayed]:
        if self._length is None:
            raise TypeError("Delayed objects of unspecified length are not iterable; give delayed() their nout")
        return (self[at] for at in range(self._length))

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("Delayed objects of unspecified length have no len(); give delayed() their nout")
        return self._length

    def __bool__(self) -> bool:
        raise TypeError("Truth of Delayed objects is not supported")

    def __call__(self, /, *args: Any, pure: bool | None = None, dask_key_name: Any = None, **kwargs: Any) -> Delayed:
        return Delayed(call(_apply, (self, *args), kwargs, bool(pure), dask_key_name))

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        # A lazy function in the body of a class is a method.
        return self if instance is None else types.MethodType(self, instance)


class Wrapped(Delayed):
    """A function or another object, wrapped by `delayed`."""

    __slots__ = ("_pure",)

    _pure: bool | None

    def __init__(self, obj: Any, name: Any, pure: bool | None, nout: int | None) -> None:
        super().__init__(value(obj, bool(pure), name), nout)
        _set_pure(self, pure)

    def __call__(self, /, *args: Any, pure: bool | None = None, dask_key_name: Any = None, **kwargs: Any) -> Delayed:
        function = self._node.args[0]
        if pure is None:
            pure = self._pure
        if isinstance(function, _core.Handle):
            return super().__call__(*args, pure=pure, dask_key_name=dask_key_name, **kwargs)
        return Delayed(call(function, args, kwargs, bool(pure), dask_key_name), self._length)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored_wrapped, (*packed(self._node), self._pure, self._length)

    @property
    def __wrapped__(self) -> Any:
        return self._node.args[0]

    @property
    def __name__(self) -> Any:
        return self.__wrapped__.__name__

    @property
    def __doc__(self) -> Any:  # type: ignore[override]
        return self.__wrapped__.__doc__


class Attribute(Delayed):
    """An attribute, which may be a method."""

    __slots__ = ("_name", "_owner")

    _name: str
    _owner: Delayed

    def __init__(self, owner: Delayed, name: str) -> None:
        super().__init__(Node(getattr, (owner._node, name), None, (owner._node,), True))
        _set_owner(self, owner)
        _set_name(self, name)

    def __getattr__(self, name: str) -> Delayed:
        # numpy.dtype() asks for the `dtype` of what it gets, for the `dtype` of that, and so on.
        if name == "dtype" and self._name == "dtype":
            raise AttributeError("Attribute dtype not found")
        return super().__getattr__(name)

    def __call__(self, /, *args: Any, pure: bool | None = None, dask_key_name: Any = None, **kwargs: Any) -> Delayed:
        return Delayed(call(_method(self._name), (self._owner, *args), kwargs, bool(pure), dask_key_name))

    def __reduce__(self) -> tuple[Any, ...]:
        return Attribute, (self._owner, self._name)


_set_node, _set_length, _set_pure, _set_owner, _set_name = (
    cls.__dict__[name].__set__
    for cls, name in [
        (Proxy, "_node"),
        (Delayed, "_length"),
        (Wrapped, "_pure"),
        (Attribute, "_owner"),
        (Attribute, "_name"),
    ]
)


def _restored(cls: type[Delayed], nodes: list[Node], at: int, length: int | None) -> Delayed:
    return cls(nodes[at], length)


def _restored_wrapped(nodes: list[Node], at: int, pure: bool | None, length: int | None) -> Wrapped:
    wrapped = Wrapped.__new__(Wrapped)
    Delayed.__init__(wrapped, nodes[at], length)
    _set_pure(wrapped, pure)
    return wrapped


async def _only(results: Coroutine[Any, Any, tuple[Any, ...]]) -> Any:
    return (await results)[0]


# Functions of tasks


class _Method:
    """Calls a method, by its name."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, owner: Any, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(owner, self.__name__)(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _method, (self.__name__,)


@functools.cache
def _method(name: str) -> _Method:
    return _Method(name)


class _Same:
    """Returns a container, whose items the engine has put there."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, held: Any) -> Any:
        return held

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self.__name__,)


@functools.cache
def _same(name: str) -> _Same:
    return _Same(name)


def _same_node(inside: Any, needs: list[Node], kind: str, pure: bool | None, name: Any) -> Node:
    if type(inside) is Node and name is None:
        return inside
    return Node(_same(kind), (inside,), None, needs, bool(pure), name)


def _apply(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _swapped(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return what a reversed operator does: ``1 - x`` asks ``x.__rsub__(1)``."""

    def reflected(this: Delayed, other: Any) -> Delayed:
        return Delayed(call(function, (other, this), None, True))

    return reflected


def _lazy(function: Callable[..., Any]) -> Callable[..., Delayed]:
    def operator_(*operands: Any) -> Delayed:
        return Delayed(call(function, operands, None, True))

    return operator_


_UNARY = "abs neg pos invert"
_COMPARING = "eq ne lt le gt ge"
_BINARY = "add sub mul matmul truediv floordiv mod pow and or xor lshift rshift"

for _name in [*_UNARY.split(), *_COMPARING.split(), *_BINARY.split()]:
    setattr(Delayed, f"__{_name}__", _lazy(getattr(operator, f"__{_name}__")))
for _name in _BINARY.split():
    setattr(Delayed, f"__r{_name}__", _swapped(getattr(operator, f"__{_name}__")))
_FUNCTIONS: dict[str, Callable[..., Any]] = {"round": round, "divmod": divmod}
for _name, _function in _FUNCTIONS.items():
    setattr(Delayed, f"__{_name}__", _lazy(_function))
setattr(Delayed, "__rdivmod__", _swapped(divmod))  # noqa: B010 (types know of no such method)
