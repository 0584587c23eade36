"""Names values by what they hold, so that the same call twice is one task.

Guarantees: equal tokens mean equal values, as far as a pickle tells them apart; what cannot be pickled gets a token
that nothing else has. Tokens of numbers, text, containers, arrays, and importable functions are the same in every
process. Functions of scripts and notebooks are told apart by their code and what it refers to.

Assumes that nobody changes a value while it is looked at.
"""

from __future__ import annotations

import enum
import hashlib
import os
import pathlib
import pickle
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

_DIGEST_BYTES = 16


def tokenize(*args: Any, **kwargs: Any) -> str:
    """Return a short text that stands for the values.

    An object says itself what stands for it if it has a method ``__dask_tokenize__``.

    Examples
    --------
    >>> tokenize([1, 2]) == tokenize([1, 2])
    True
    >>> tokenize(1) == tokenize(1.0)
    False
    """
    hasher = _Hasher()
    hasher.feed(args)
    if kwargs:
        hasher.feed(kwargs)
    return hasher.hexdigest()


class _Hasher:
    """Feeds values to a hash, each with its type and its length, so that no two values read alike."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        # Containers that are being read, by their identity: one may hold itself.
        self._open: dict[int, int] = {}

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def feed(self, value: Any) -> None:
        cls = type(value)
        text = _AS_TEXT.get(cls)
        if text is not None:
            self.add(cls.__name__, text(value).encode("utf-8", "surrogatepass"))
            return
        feed = _FEEDS.get(cls)
        if feed is not None:
            feed(self, value)
        else:
            self._feed_object(value)

    def add(self, tag: str, data: Any = b"") -> None:
        size = memoryview(data).nbytes
        self._hash.update(f"{tag}:{size};".encode())
        self._hash.update(data)

    def container(self, tag: str, value: Any, items: Iterable[Any]) -> None:
        place = self._open.get(id(value))
        if place is not None:
            self.add("itself", str(place).encode())
            return
        self._open[id(value)] = len(self._open)
        try:
            self.add(f"{tag} of {len(value)}")
            for item in items:
                self.feed(item)
        finally:
            del self._open[id(value)]

    def _feed_object(self, value: Any) -> None:
        own = getattr(type(value), "__dask_tokenize__", None)
        if own is not None and not isinstance(value, type):
            self.add(_name(type(value)))
            self.feed(own(value))
        elif isinstance(value, enum.Enum):
            self.add(_name(type(value)), value.name.encode())
        elif isinstance(value, pathlib.PurePath):
            self.add(_name(type(value)), str(value).encode("utf-8", "surrogatepass"))
        elif isinstance(value, type) and _is_importable(value):
            self.add("type", _name(value).encode())
        else:
            numpy = sys.modules.get("numpy")
            if numpy is not None and type(value) is numpy.ndarray and value.dtype.hasobject is False:
                self._feed_array(numpy, value)
            else:
                _feed_pickle(self, value)

    def _feed_array(self, numpy: Any, array: Any) -> None:
        self.add("array", f"{numpy.lib.format.dtype_to_descr(array.dtype)}{array.shape}".encode())
        # Some types, such as dates, give no buffer of their own.
        self.add("data", numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8) if array.nbytes else b"")


def _feed_sorted(hasher: _Hasher, value: Any) -> None:
    """A set: its order is nobody's choice."""
    hasher.container(type(value).__name__, value, sorted(map(tokenize, value)))


def _feed_dict(hasher: _Hasher, value: dict[Any, Any]) -> None:
    keys = sorted(value, key=tokenize) if len(value) > 1 else list(value)
    hasher.container("dict", value, (part for key in keys for part in (key, value[key])))


def _feed_function(hasher: _Hasher, value: Any) -> None:
    if _is_importable(value):
        hasher.add("function", _name(value).encode())
    else:
        _feed_pickle(hasher, value)


def _feed_method(hasher: _Hasher, value: types.MethodType) -> None:
    hasher.add("method", value.__name__.encode())
    hasher.feed(value.__self__)


def _feed_pickle(hasher: _Hasher, value: Any) -> None:
    import cloudpickle

    buffers: list[pickle.PickleBuffer] = []
    try:
        data = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    except Exception:
        hasher.add("unique", os.urandom(_DIGEST_BYTES))
        return
    hasher.add(_name(type(value)), data)
    for buffer in buffers:
        hasher.add("buffer", buffer.raw())


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', None)}.{getattr(thing, '__qualname__', None)}"


def _is_importable(thing: Any) -> bool:
    """Whether its name leads to it in every process, and so can stand for it."""
    module = getattr(thing, "__module__", None)
    found = sys.modules.get(module) if module not in (None, "__main__") else None
    for part in (getattr(thing, "__qualname__", None) or "").split("."):
        found = getattr(found, part, None)
    return found is thing


_AS_TEXT: dict[type, Callable[[Any], str]] = {
    type(None): repr,
    bool: repr,
    int: hex,
    float: float.hex,
    complex: repr,
    str: str,
    types.EllipsisType: repr,
    types.NotImplementedType: repr,
    range: repr,
}
_FEEDS: dict[type, Callable[[_Hasher, Any], None]] = {
    bytes: lambda hasher, value: hasher.add("bytes", value),
    bytearray: lambda hasher, value: hasher.add("bytearray", value),
    tuple: lambda hasher, value: hasher.container("tuple", value, value),
    list: lambda hasher, value: hasher.container("list", value, value),
    slice: lambda hasher, value: hasher.feed(("slice", value.start, value.stop, value.step)),
    set: _feed_sorted,
    frozenset: _feed_sorted,
    dict: _feed_dict,
    types.FunctionType: _feed_function,
    types.BuiltinFunctionType: _feed_function,
    types.MethodType: _feed_method,
}
