"""Pickles tasks and results.

Guarantees: what pickle can find again by name goes by name, the rest by cloudpickle, by value; buffers
of 64 KiB and more stay beside the pickle; ``numpy.memmap`` arrays travel as the name of their file;
a function or a large argument that many tasks of a call have is pickled once.
"""

from __future__ import annotations

import contextvars
import copyreg
import io
import itertools
import pickle
import types
import weakref
from collections.abc import Callable
from typing import Any

import cloudpickle
import numpy as np

from rustdask import _core
from rustdask._contextvars import reduce_contextvar
from rustdask._payload import CACHED_BYTES, Constant, Kind, Reference, is_plain

MIN_OUT_OF_BAND_BYTES = 64 << 10

_SIZED = frozenset({list, tuple, dict, set, frozenset, str, bytes, bytearray})
_MIN_LENGTH = 1000
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
_MAX_FUNCTIONS = 16
_MAX_LONELY = 4
_MAX_COMMON = 16
_REMEMBERED = 8
_MAX_SEARCHED_BYTES = 16 << 20
_WITHOUT_IDENTITY = (
    *(str, bytes, int, float, complex, type(None), tuple, frozenset, type, np.dtype, np.generic),
    *(types.ModuleType, types.CodeType, types.FunctionType, types.BuiltinFunctionType),
)
"""Objects of these types are equal to their copies for all that tasks can see, or are found again by name."""

_ENDS_AS_NAME = pickle.STACK_GLOBAL + pickle.MEMOIZE + pickle.STOP
"""So ends a pickle that looks its object up by name."""

_blob_ids = itertools.count()


def _reduce_memmap(array: Any) -> Any:
    backing = _backing_memmap(array)
    if backing is None:
        return array.__reduce_ex__(5)
    offset = array.__array_interface__["data"][0] - backing.__array_interface__["data"][0] + backing.offset
    mode = "r+" if backing.mode == "w+" else backing.mode
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    contiguous = array.flags.c_contiguous or array.flags.f_contiguous
    strides = None if contiguous else array.strides
    return _open_memmap, (backing.filename, array.dtype, mode, offset, array.shape, order, strides)


def _open_memmap(
    filename: str, dtype: Any, mode: str, offset: int, shape: tuple[int, ...], order: Any, strides: Any
) -> Any:
    if strides is None:
        return np.memmap(filename, dtype=dtype, mode=mode, offset=offset, shape=shape, order=order)  # type: ignore[call-overload]
    extent = 1 + sum((n - 1) * abs(step) for n, step in zip(shape, strides, strict=True)) + dtype.itemsize - 1
    flat = np.memmap(filename, dtype=np.uint8, mode=mode, offset=offset, shape=extent)  # type: ignore[call-overload]
    return np.ndarray(shape, dtype=dtype, buffer=flat, strides=strides)


def _backing_memmap(array: Any) -> Any:
    """Return the memmap of a file that an array is a view of, with positive strides, or None."""
    base = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and not isinstance(base.base, np.ndarray):
            forward = all(step >= 0 for step in array.strides)
            return base if base.filename is not None and forward and not array.dtype.hasobject else None
        base = base.base
    return None


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(
        self, file: Any, buffer_callback: Callable[[Any], bool] | None, copies: _ContiguousCopies | None = None
    ) -> None:
        self._copies = copies
        # Looked up once, by the base class's constructor.
        self.dispatch_table = _dispatch_table()
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)

    def reducer_override(self, obj: Any) -> Any:
        cls = type(obj)
        if cls is types.FunctionType or issubclass(cls, type):
            return super().reducer_override(obj)
        if cls is np.ndarray and obj.base is not None and _backing_memmap(obj) is not None:
            return _reduce_memmap(obj)
        if cls is np.ndarray and self._copies is not None and not obj.flags.forc:
            copy = self._copies.of(obj)
            return NotImplemented if copy is None else copy.__reduce_ex__(5)
        return NotImplemented


class _ContiguousCopies:
    """Copies of arrays with gaps, such as ``X[:, :-1]``: only what is contiguous can stay beside a pickle.

    Each is made once per call, however many tasks have the array.
    """

    def __init__(self) -> None:
        self._copies: dict[int, tuple[weakref.ref[Any], Any]] = {}

    def of(self, array: Any) -> Any:
        """Return a copy, or None if the array is small or holds objects."""
        if array.nbytes < MIN_OUT_OF_BAND_BYTES or array.dtype.hasobject:
            return None
        original, copy = self._copies.get(id(array), (None, None))
        if original is None or original() is not array:
            copy = np.ascontiguousarray(array)
            key = id(array)
            self._copies[key] = weakref.ref(array, lambda _: self._copies.pop(key, None)), copy
        return copy


_table: dict[type, Any] = {}
_table_made_of: dict[type, Any] = {}


def _dispatch_table() -> dict[type, Any]:
    # cloudpickle's own is a ChainMap, which costs a microsecond for each object that is not in it.
    global _table, _table_made_of
    if copyreg.dispatch_table != _table_made_of or not _table:
        _table_made_of = dict(copyreg.dispatch_table)
        _table = dict(cloudpickle.Pickler.dispatch_table)
        _table[contextvars.ContextVar] = reduce_contextvar
        _table[np.memmap] = _reduce_memmap
    return _table


def dumps(value: object) -> bytes:
    """Pickle a value whole.

    Parameters
    ----------
    value : object

    Returns
    -------
    bytes
        For ``pickle.loads``.
    """
    file = io.BytesIO()
    _Pickler(file, None).dump(value)
    return file.getvalue()


def dumps_out_of_band(value: object, min_bytes: int = MIN_OUT_OF_BAND_BYTES) -> tuple[bytes, list[memoryview]]:
    """Pickle a value, its large buffers left where they are.

    Parameters
    ----------
    value : object
    min_bytes : int
        Size from which on a buffer is large.

    Returns
    -------
    pickle : bytes
        For ``pickle.loads`` with ``buffers``.
    buffers : list of memoryview
        One-dimensional, of bytes.
    """
    data, buffers, _ = _dump(value, min_bytes)
    return data, buffers


def _dump(
    value: object, min_bytes: int, copies: _ContiguousCopies | None = None
) -> tuple[bytes, list[memoryview], _Pickler]:
    buffers: list[memoryview] = []

    def stays_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < min_bytes:
            return True
        buffers.append(raw)
        return False

    file = io.BytesIO()
    pickler = _Pickler(file, stays_in_band, copies)
    pickler.dump(value)
    return file.getvalue(), buffers, pickler


class _Identities:
    """The objects in a pickle that a task would notice to be others than those of a second pickle.

    Such as a sentinel that a function of ``__main__`` knows as a global and gets as an argument.
    """

    def __init__(self, pickler: _Pickler, size_bytes: int) -> None:
        # In a large pickle a search takes too long. Kept alive, so that nothing else can have their ids.
        memo = pickler.memo.copy() if size_bytes <= _MAX_SEARCHED_BYTES else {}
        self._objects = {key: value for key, (_, value) in memo.items() if not isinstance(value, _WITHOUT_IDENTITY)}
        self._globals = frozenset(pickler.globals_ref)

    def know(self, value: object) -> bool:
        """Tell whether this very object is one of them."""
        return id(value) in self._objects

    def meet(self, pickler: _Pickler) -> bool:
        """Tell whether another pickle has one of these objects, or a function with the same globals."""
        if not self._globals.isdisjoint(pickler.globals_ref):
            return True
        return bool(self._objects) and not self._objects.keys().isdisjoint(pickler.memo.copy())


class Blob:
    """A pickle that many tasks refer to."""

    def __init__(self, value: object) -> None:
        self.value = value  # kept, so that nothing else can have its id
        self.number = next(_blob_ids)
        self.pickle, self.buffers, pickler = _dump(value, MIN_OUT_OF_BAND_BYTES)
        self.identities = _Identities(pickler, len(self.pickle))
        self.cached = len(self.pickle) >= CACHED_BYTES
        self.kept = False
        # Its tasks have been seen to share objects with it.
        self.meets_tasks = False


_last_settings: Blob | None = None


def _settings_blob(settings: object) -> Blob:
    """Return the blob of a call's settings: that of the call before, if they are equal."""
    global _last_settings
    last = _last_settings
    if last is not None:
        if last.value == settings:
            return last
        _core.forget_blob(last.number)
    blob = Blob(settings)
    blob.kept = True
    _last_settings = blob
    return blob


_Buffers = list[tuple[memoryview, bool]]
_Shipped = tuple[bytes, _Buffers, list[tuple[int, bool, bytes, _Buffers]]]


class CallSerializer:
    """Pickles the tasks of one call.

    Each item is pickled by itself: what one task does to its arguments is not seen by another,
    though they may have been the same object, and though they travel together.

    Parameters
    ----------
    settings : object
        What every task refers to as its first blob.
    min_bytes : int
        Size from which on buffers stay beside the pickle.
    """

    def __init__(self, settings: object, min_bytes: int = MIN_OUT_OF_BAND_BYTES) -> None:
        self._min_bytes = min_bytes
        self._settings = _settings_blob(settings)
        self._functions: dict[int, Blob] = {}
        # The last large arguments, and how often each was seen.
        self._recent: dict[int, tuple[int, Any]] = {}
        self._common: dict[int, Blob | None] = {}
        self._owners = _Owners()
        self._copies = _ContiguousCopies()
        self._heavy = False
        self._dumped_items = 0
        self._new_buffers = 0

    @property
    def has_own_buffers(self) -> bool:
        """Whether tasks bring large arrays of their own; each takes a file descriptor until its task has ended."""
        return 2 * self._new_buffers > self._dumped_items

    def note(self, items: list[Any]) -> None:
        """Look at items that will be dumped later, for large arguments that several of them have."""
        for _, args, kwargs in items:
            for value in args:
                if type(value) in _SIZED and len(value) >= _MIN_LENGTH:
                    self._count(value)
            if kwargs:
                for value in kwargs.values():
                    if type(value) in _SIZED and len(value) >= _MIN_LENGTH:
                        self._count(value)

    def dump(self, items: list[Any], start: int, end: int, index: int) -> _Shipped:
        """Pickle ``items[start:end]``, of which the first is number `index` of the call.

        Returns
        -------
        pickle : bytes
        buffers : list of (memoryview, bool)
            Each with whether it belongs to an object that an earlier task of the call had, too.
        blobs : list of (int, bool, bytes, list)
            Of what the task refers to: number, whether later calls will refer to it, pickle and buffers.
        """
        if start or end < len(items):
            items = items[start:end]
        self._dumped_items += len(items)
        function = items[0][0]
        if all(item[0] is function for item in items):
            blob = self._function(function)
            arguments = None if blob is None else _only_arguments(items)
            if blob is not None and arguments is not None:
                data = pickle.dumps((Kind.ARGUMENTS.value, index, arguments), protocol=5)
                return data, [], [_shipped(self._settings), _shipped(blob)]
        return self._dump_items(items, index)

    def _dump_items(self, items: list[Any], index: int) -> _Shipped:
        blobs = [self._settings]
        pickles = []
        buffers: list[memoryview] = []
        for item in items:
            data, beside = self._dump_item(item, blobs)
            if len(data) >= CACHED_BYTES:
                # From now on, arguments of any kind are looked at.
                self._heavy = True
            pickles.append((data, len(beside)))
            buffers += beside
        data = pickle.dumps((Kind.ITEMS.value, index, pickles), protocol=5)
        return data, self._mark(buffers), [_shipped(blob) for blob in blobs]

    def _function(self, function: Any) -> Blob | None:
        """Return the blob of a function; None where there are so many that each is better with its task."""
        blob = self._functions.get(id(function))
        if blob is None and isinstance(function, _FUNCTIONS) and len(self._functions) < _MAX_FUNCTIONS:
            blob = self._functions[id(function)] = Blob(function)
        return blob

    def _count(self, value: Any) -> None:
        # Only the last few are remembered: those of a long stream must not stay in memory.
        count, _ = self._recent.pop(id(value), (0, None))
        self._recent[id(value)] = (count + 1, value)
        if len(self._recent) > _REMEMBERED:
            del self._recent[next(iter(self._recent))]

    def _dump_item(self, item: Any, blobs: list[Blob]) -> tuple[bytes, list[memoryview]]:
        function = self._functions.get(id(item[0]))
        if function is None or not function.meets_tasks:
            used: list[Blob] = []
            data, beside, pickler = _dump(self._refer(item, blobs, used), self._min_bytes, self._copies)
            met = [blob for blob in used if blob.identities.meet(pickler)]
            if not met:
                return data, beside
            for blob in met:
                blob.meets_tasks = True
        # What the task is given and what it refers to share objects, so they travel in one pickle.
        data, beside, _ = _dump(item, self._min_bytes, self._copies)
        return data, beside

    def _refer(self, item: Any, blobs: list[Blob], used: list[Blob]) -> Any:
        """Put references in the place of the function and of arguments that are blobs."""
        function, args, kwargs = item
        if self._heavy:
            for value in (*args, *kwargs.values()):
                if not is_plain(value) and type(value) is not np.ndarray and type(value) not in _SIZED:
                    self._count(value)

        def reference(blob: Blob | None, value: Any) -> Any:
            if blob is None:
                return value
            used.append(blob)
            if blob not in blobs:
                blobs.append(blob)
            return Reference(blobs.index(blob))

        def argument(value: Any) -> Any:
            # At first, a large argument is taken to be common; once several were not, it must show.
            if self._recent.get(id(value), (0,))[0] < (1 if len(self._common) < _MAX_LONELY else 2):
                return value
            return reference(self._common_blob(value), value)

        function = reference(self._function(function), function)
        if not self._recent:
            return function, args, kwargs
        return function, tuple(map(argument, args)), {key: argument(kwargs[key]) for key in kwargs}

    def _common_blob(self, value: Any) -> Blob | None:
        key = id(value)
        if any(function.identities.know(value) for function in self._functions.values()):
            return None
        if key not in self._common and len(self._common) < _MAX_COMMON:
            blob = Blob(value)
            # What is small stays with its task, so that objects keep sharing what they share.
            self._common[key] = blob if blob.cached else None
        return self._common.get(key)

    def _mark(self, buffers: list[memoryview]) -> _Buffers:
        marked = [(buffer, self._owners.knows(buffer.obj)) for buffer in buffers]
        self._new_buffers += sum(not known for _, known in marked)
        return marked


class GraphSerializer:
    """Pickles the tasks of graphs, and values that they take.

    Each submission sees its functions and arguments as they are then.

    Parameters
    ----------
    settings : callable
        Returns what workers are to be like, as of now.
    """

    def __init__(self, settings: Callable[[], object]) -> None:
        self._make_settings = settings
        self._settings: Blob | None = None
        self._owners = _Owners()
        self._copies = _ContiguousCopies()

    def begin(self) -> tuple[int, bool, bytes, _Buffers]:
        """Begin a submission. Return what workers are to be like, as a blob: the same one while nothing changes."""
        self._owners = _Owners()
        self._copies = _ContiguousCopies()
        settings = self._make_settings()
        if self._settings is None or self._settings.value != settings:
            self._settings = Blob(settings)
        return _shipped(self._settings)

    def function(self, function: Any) -> tuple[int, bool, bytes, _Buffers]:
        """Pickle a function, as a blob, which later submissions use, too, if theirs would be the same for sure."""
        try:
            data, buffers, _ = _dump(function, MIN_OUT_OF_BAND_BYTES)
        except Exception as error:
            raise _explained({"function": function}, error) from error
        kept = data.endswith(_ENDS_AS_NAME) or isinstance(function, Constant)
        return next(_blob_ids), kept, data, [(buffer, False) for buffer in buffers]

    def arguments(self, call: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[bytes, _Buffers]:
        """Pickle ``(args, kwargs)``.

        Returns
        -------
        pickle : bytes
        buffers : list of (memoryview, bool)
            Each with whether it belongs to an object that was seen before in this submission.
        """
        try:
            data, buffers, _ = _dump(call, MIN_OUT_OF_BAND_BYTES, self._copies)
        except Exception as error:
            raise _explained({"args": call[0], "kwargs": call[1]}, error) from error
        return data, [(buffer, self._owners.knows(buffer.obj)) for buffer in buffers]

    def value(self, value: Any) -> tuple[bytes, _Buffers]:
        """Pickle a value that goes by itself; the result is as that of `arguments`."""
        try:
            data, buffers, _ = _dump(value, MIN_OUT_OF_BAND_BYTES, _ContiguousCopies())
        except Exception as error:
            raise _explained({"value": value}, error) from error
        return data, [(buffer, False) for buffer in buffers]


def _explained(named: dict[str, Any], error: Exception) -> BaseException:
    from rustdask._errors import explain_pickling_error

    return explain_pickling_error(named, error, dumps)


def _shipped(blob: Blob) -> tuple[int, bool, bytes, _Buffers]:
    return blob.number, blob.kept, blob.pickle, [(buffer, True) for buffer in blob.buffers]


class _Owners:
    """Objects whose memory has been pickled before."""

    def __init__(self) -> None:
        self._seen: dict[int, weakref.ref[Any]] = {}

    def knows(self, owner: Any) -> bool:
        """Tell whether it was asked about this object before."""
        # numpy pickles some arrays by a view that is new each time: what counts is whose memory it is.
        while isinstance(owner, np.ndarray) and isinstance(owner.base, np.ndarray):
            owner = owner.base
        known = self._seen.get(id(owner))
        if known is not None and known() is owner:
            return True
        key = id(owner)
        try:
            self._seen[key] = weakref.ref(owner, lambda _: self._seen.pop(key, None))
        except TypeError:
            # Such an owner is compared whole each time.
            self._seen.pop(key, None)
        return False


def _only_arguments(items: list[Any]) -> list[Any] | None:
    """Return the arguments of items that have one plain positional argument each, else None."""
    arguments = []
    for _, args, kwargs in items:
        if kwargs or len(args) != 1 or not is_plain(args[0]):
            return None
        arguments.append(args[0])
    return arguments
