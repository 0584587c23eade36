"""How the exception of a task gets from its worker to the parent.

Guarantees: packing never raises, and unpacking what was packed always gives an exception. It has
the type, arguments, attributes, notes, causes, contexts and grouped exceptions of the original,
except for the parts that cannot be pickled; a type that cannot be pickled becomes `RemoteError`.

Assumes that the parent may load what its own workers pickled.
"""

from __future__ import annotations

import copyreg
import functools
import pickle
import types
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from rustdask._exceptions import RemoteError, RemoteTraceback
from rustdask._tracebacks import (
    Frame,
    attach_text,
    build_traceback,
    extract_frames,
    remote_text,
    traceback_text,
    with_source_lines,
)

__all__ = [
    "annotate_exception",
    "pack_exception",
    "remote_text",
    "traceback_text",
    "unpack_exception",
]

Dumps = Callable[[object], bytes]


def pack_exception(exc: BaseException, dumps: Dumps) -> bytes:
    """Pickle an exception with all that belongs to it; runs in the worker.

    Parameters
    ----------
    exc : BaseException
        The exception, just caught.
    dumps : callable
        ``cloudpickle.dumps`` or the like; what it returns is loaded with `pickle.loads`.

    Returns
    -------
    bytes
        For `unpack_exception`. Never raises.
    """
    try:
        exceptions = _reachable(exc)
        position = {id(error): index for index, error in enumerate(exceptions)}
        nodes = [_pack_node(error, position, dumps) for error in exceptions]
        return pickle.dumps((_text_of(exc), nodes), protocol=5)
    except BaseException:
        return pickle.dumps(("", [_bare_node(exc)]), protocol=5)


def unpack_exception(data: bytes) -> BaseException:
    """Rebuild what `pack_exception` packed; runs in the parent.

    Parameters
    ----------
    data : bytes
        From `pack_exception`.

    Returns
    -------
    BaseException
        The exception, with rebuilt traceback objects, and with the text of the worker's traceback
        as `RemoteTraceback` at the end of its chain of causes.
    """
    text, nodes = pickle.loads(data)
    text = with_source_lines(text)
    built: dict[int, BaseException] = {}
    for index in range(len(nodes)):
        _build(index, nodes, built, text)
    for index, node in enumerate(nodes):
        _link(built[index], node, built)
    if text:
        attach_text(built[0], text)
    return built[0]


def annotate_exception(exc: BaseException) -> BaseException:
    """Keep the traceback of an exception that is about to lose it, in this process.

    joblib drops ``__traceback__`` before it raises what a task raised.

    Parameters
    ----------
    exc : BaseException
        An exception of a task, just caught.

    Returns
    -------
    BaseException
        The same object, with a `RemoteTraceback` at the end of its chain of causes.
    """
    attach_text(exc, _text_of(exc))
    return exc


class _Node(TypedDict):
    """One exception of the chain. Links are positions in the list of nodes."""

    type_name: str
    message: str
    body: bytes | None  # None: nothing but a RemoteError can stand for it
    in_parts: bool  # body is what _parts returns, not the exception itself
    left_out: list[str]
    children: list[int]
    cause: int | None
    context: int | None
    suppress_context: bool
    frames: list[tuple[Any, ...]]


class Unsent:
    """Stands for an argument of an exception that could not be pickled; looks the same."""

    def __init__(self, as_str: str, as_repr: str) -> None:
        self.as_str = as_str
        self.as_repr = as_repr

    def __str__(self) -> str:
        return self.as_str

    def __repr__(self) -> str:
        return self.as_repr


_MAX_EXCEPTIONS = 1000


def _text_of(exc: BaseException) -> str:
    try:
        return traceback_text(exc)
    except Exception:
        return f"{_type_name(exc)}: {_message(exc)}\n"


def _type_name(exc: BaseException) -> str:
    cls = type(exc)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _message(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:
        return "<its message cannot be shown>"


def _reachable(exc: BaseException) -> list[BaseException]:
    """`exc` and all exceptions linked to it, nearest first, each once."""
    found, seen = [exc], {id(exc)}
    for error in found:
        children = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        for linked in (error.__cause__, error.__context__, *children):
            if linked is None or id(linked) in seen or isinstance(linked, RemoteTraceback):
                continue
            if len(found) >= _MAX_EXCEPTIONS:
                return found
            seen.add(id(linked))
            found.append(linked)
    return found


def _bare_node(exc: BaseException) -> _Node:
    return _Node(
        type_name=_type_name(exc),
        message=_message(exc),
        body=None,
        in_parts=False,
        left_out=[],
        children=[],
        cause=None,
        context=None,
        suppress_context=False,
        frames=[],
    )


def _pack_node(exc: BaseException, position: dict[int, int], dumps: Dumps) -> _Node:
    node = _bare_node(exc)
    if isinstance(exc, BaseExceptionGroup):
        links = (position.get(id(child)) for child in exc.exceptions)
        node["children"] = [link for link in links if link is not None]
    node["cause"] = position.get(id(exc.__cause__))
    node["context"] = position.get(id(exc.__context__))
    node["suppress_context"] = exc.__suppress_context__
    node["frames"] = [tuple(frame) for frame in extract_frames(exc.__traceback__)]
    _pack_body(node, exc, dumps)
    return node


def _pack_body(node: _Node, exc: BaseException, dumps: Dumps) -> None:
    """Fill in the best body that survives a round trip."""
    if not isinstance(exc, BaseExceptionGroup) and not _slots(exc):
        for whole in (_AsItself(exc), exc) if type(exc) in copyreg.dispatch_table else (exc,):
            node["body"] = _dumped(whole, dumps, lambda loaded: _alike(loaded, exc))
            if node["body"] is not None:
                return
    node["in_parts"] = True
    cls, args, state = _parts(exc)
    node["body"] = _dumped((cls, args, state), dumps, _loads_in_parts)
    if node["body"] is None:
        node["left_out"] = [name for name, value in state.items() if not _travels(value, dumps)]
        kept = {name: state[name] for name in state if name not in node["left_out"]}
        sent = tuple(_sendable(arg, dumps) for arg in args)
        node["body"] = _dumped((cls, sent, kept), dumps, _loads_in_parts)


class _AsItself:
    """Pickles as the exception says itself, and not as somebody, such as tblib, has told `copyreg` to."""

    def __init__(self, exc: BaseException) -> None:
        self._exc = exc

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._exc.__reduce_ex__(protocol)


def _dumped(value: object, dumps: Dumps, arrived: Callable[[Any], bool]) -> bytes | None:
    """Pickle `value`, or return None if it does not load again or is not as it was."""
    try:
        body = dumps(value)
        return body if arrived(pickle.loads(body)) else None
    except Exception:
        return None


def _travels(value: object, dumps: Dumps) -> bool:
    return _dumped(value, dumps, lambda loaded: True) is not None


def _sendable(arg: object, dumps: Dumps) -> object:
    if _travels(arg, dumps):
        return arg
    try:
        return Unsent(str(arg), repr(arg))
    except Exception:
        return Unsent(*[f"<{type(arg).__qualname__} object>"] * 2)


def _alike(loaded: BaseException, exc: BaseException) -> bool:
    """Tell whether pickling has kept type, arguments, message, and fields of the builtin class.

    An ``__init__`` that rewrites its arguments loads without an error, and wrongly.
    """
    kept, fields = _fields(loaded), _fields(exc)
    return (
        type(loaded).__qualname__ == type(exc).__qualname__
        and type(loaded).__module__ == type(exc).__module__
        and len(loaded.args) == len(exc.args)
        and all(map(_same_argument, loaded.args, exc.args))
        and str(loaded) == str(exc)
        and kept.keys() == fields.keys()
        and all(_same_argument(kept[name], fields[name]) for name in fields)
    )


def _same_argument(loaded: object, sent: object) -> bool:
    if type(sent) in (str, bytes, int, float, bool):
        return repr(loaded) == repr(sent)
    return type(loaded).__qualname__ == type(sent).__qualname__


def _loads_in_parts(parts: tuple[type[BaseException], tuple[Any, ...], dict[str, Any]]) -> bool:
    cls = parts[0]
    children = [Exception()] if issubclass(cls, BaseExceptionGroup) else []
    _assembled(parts, children)
    return True


def _parts(exc: BaseException) -> tuple[type[BaseException], tuple[Any, ...], dict[str, Any]]:
    """Class, arguments and attributes, as the builtin class it derives from pickles them."""
    if isinstance(exc, BaseExceptionGroup):
        return type(exc), (exc.message,), {**exc.__dict__, **_slots(exc)}
    reduced = _builtin_base(type(exc)).__reduce__(exc)
    state = reduced[2] if len(reduced) > 2 and isinstance(reduced[2], dict) else {}
    return type(exc), tuple(reduced[1]), {**state, **_fields(exc), **_slots(exc)}


def _fields(exc: BaseException) -> dict[str, Any]:
    """What the builtin class of an exception keeps outside of its ``__dict__``, such as the code of a `SystemExit`."""
    fields = {}
    for name, field in _builtin_fields(_builtin_base(type(exc))):
        try:
            value = field.__get__(exc)
        except AttributeError:
            # Some are there only once they have a value.
            continue
        if value is not None:
            fields[name] = value
    return fields


@functools.cache
def _builtin_fields(base: type[BaseException]) -> list[tuple[str, Any]]:
    # An exception does not bring the object that it tells of.
    left_out = {*vars(BaseException), "obj"}
    return [
        (name, field)
        for cls in base.__mro__
        if issubclass(cls, BaseException)
        for name, field in vars(cls).items()
        if isinstance(field, (types.MemberDescriptorType, types.GetSetDescriptorType)) and name not in left_out
    ]


def _slots(exc: BaseException) -> dict[str, Any]:
    names: list[str] = []
    for cls in type(exc).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return {name: getattr(exc, name) for name in names if hasattr(exc, name)}


def _builtin_base(cls: type[BaseException]) -> Any:
    return next(base for base in cls.__mro__ if base.__module__ == "builtins")


def _assembled(
    parts: tuple[type[BaseException], tuple[Any, ...], dict[str, Any]],
    children: Sequence[BaseException],
) -> BaseException:
    """Make an exception from its parts, without calling the ``__init__`` of its class."""
    cls, args, state = parts
    base = _builtin_base(cls)
    full = (*args, children) if issubclass(cls, BaseExceptionGroup) else args
    exc: BaseException = base.__new__(cls, *full)
    try:
        base.__init__(exc, *full)
    except TypeError:
        exc.args = tuple(full)
    for name, value in state.items():
        _set_attribute(exc, name, value)
    return exc


def _set_attribute(exc: BaseException, name: str, value: object) -> None:
    try:
        setattr(exc, name, value)
    except AttributeError:
        # A property without a setter hides an attribute of the same name.
        exc.__dict__[name] = value


def _build(index: int, nodes: list[_Node], built: dict[int, BaseException], text: str) -> None:
    if index in built:
        return
    node = nodes[index]
    for child in node["children"]:
        _build(child, nodes, built, text)
    children = [built[child] for child in node["children"]]
    try:
        exc = _loaded(node, children)
    except Exception:
        exc = RemoteError(node["type_name"], node["message"], text)
    if node["left_out"]:
        exc.add_note(f"Attributes that could not be pickled are missing: {', '.join(node['left_out'])}.")
    built[index] = exc


def _loaded(node: _Node, children: list[BaseException]) -> BaseException:
    if node["body"] is None:
        raise pickle.UnpicklingError("sent without a body")
    loaded = pickle.loads(node["body"])
    exc = _assembled(loaded, children) if node["in_parts"] else loaded
    if not isinstance(exc, BaseException):
        raise pickle.UnpicklingError("not an exception")
    return exc


def _link(exc: BaseException, node: _Node, built: dict[int, BaseException]) -> None:
    if node["cause"] is not None:
        exc.__cause__ = built[node["cause"]]
    if node["context"] is not None:
        exc.__context__ = built[node["context"]]
    exc.__suppress_context__ = node["suppress_context"]
    exc.__traceback__ = build_traceback(Frame(*frame) for frame in node["frames"])
