"""Finds what it is, inside the arguments of a task, that cannot be pickled.

Guarantees: the search ends after about a second, whatever it is given, and never raises. It may
then name a container rather than the culprit inside it.
"""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rustdask._exceptions import UnpicklableError

Dumps = Callable[[object], bytes]


def explain_pickling_error(obj_parts: Mapping[str, object], error: BaseException, dumps: Dumps) -> UnpicklableError:
    """Say which piece of a task cannot be pickled.

    Parameters
    ----------
    obj_parts : mapping of str to object
        What was to be sent, by the name that the user will recognise: ``"function f"``,
        ``"args[0]"``, ``"kwargs['cfg']"``.
    error : BaseException
        What pickling raised.
    dumps : callable
        The function that raised it; it is tried on the pieces.

    Returns
    -------
    UnpicklableError
        Names the path to the smallest such piece and its type, and says what to do; its cause is
        `error`.
    """
    search = _Search(dumps)
    for path, part in obj_parts.items():
        if not search.pickles(part):
            culprit_path, culprit = search.smallest(path, part)
            explained = _explained(culprit_path, culprit, search.last_error or error)
            break
    else:
        explained = UnpicklableError(f"The task could not be pickled: {_first_line(error)}")
    explained.__cause__ = error
    return explained


_MAX_SECONDS = 1.0
_MAX_DEPTH = 60
_MAX_NODES = 20_000
_PLAIN = (str, bytes, bytearray, int, float, complex, bool, type(None))


class _Search:
    def __init__(self, dumps: Dumps) -> None:
        self._dumps = dumps
        self._deadline = time.monotonic() + _MAX_SECONDS
        self._nodes_left = _MAX_NODES
        self.last_error: BaseException | None = None

    def smallest(self, path: str, obj: object) -> tuple[str, object]:
        """Follow the first part that fails, until none of the parts does."""
        seen = {id(obj)}
        if self.last_error is not None and _too_deep(self.last_error):
            return path, obj
        for _ in range(_MAX_DEPTH):
            for child_path, child in _guarded(_children(path, obj)):
                if id(child) not in seen and not self.pickles(child):
                    path, obj = child_path, child
                    seen.add(id(obj))
                    break
                if self._spent():
                    return path, obj
            else:
                return path, obj
        return path, obj

    def pickles(self, obj: object) -> bool:
        self._nodes_left -= 1
        if isinstance(obj, _PLAIN) or _is_plain_array(obj):
            return True
        try:
            self._dumps(obj)
        except Exception as error:
            self.last_error = error
            return False
        return True

    def _spent(self) -> bool:
        return self._nodes_left <= 0 or time.monotonic() > self._deadline


def _is_plain_array(obj: object) -> bool:
    dtype = getattr(obj, "dtype", None) if type(obj).__module__ == "numpy" else None
    return dtype is not None and not getattr(dtype, "hasobject", True)


def _guarded(children: Iterator[tuple[str, object]]) -> Iterator[tuple[str, object]]:
    """Stop where the user's own code (``__reduce__``, ``__iter__``) raises."""
    try:
        yield from children
    except Exception:
        return


def _children(path: str, obj: Any) -> Iterator[tuple[str, object]]:
    if isinstance(obj, Mapping) and type(obj).__reduce_ex__ in (object.__reduce_ex__,):
        yield from ((f"{path}[{_short(key)}]", value) for key, value in obj.items())
        yield from ((f"key {_short(key)} of {path}", key) for key in obj)
    if isinstance(obj, (list, tuple)):
        yield from _items(path, obj)
    elif isinstance(obj, (set, frozenset)):
        yield from ((f"element {_short(element)} of {path}", element) for element in obj)
    elif isinstance(obj, types.FunctionType):
        yield from _function_children(_described(path, obj), obj)
    elif isinstance(obj, types.MethodType):
        yield f"{path}.__self__", obj.__self__
        yield f"{path}.__func__", obj.__func__
    elif isinstance(obj, type):
        yield from ((f"{path}.{name}", value) for name, value in vars(obj).items())
    if not isinstance(obj, (types.FunctionType, types.MethodType, type)):
        yield from _state_children(path, obj)


def _items(path: str, obj: list[Any] | tuple[Any, ...]) -> Iterator[tuple[str, object]]:
    fields = getattr(obj, "_fields", None)
    for index, value in enumerate(obj):
        yield (f"{path}.{fields[index]}" if fields else f"{path}[{index}]"), value


def _described(path: str, function: types.FunctionType) -> str:
    name = f"function {function.__qualname__}"
    return path if path.startswith("function ") else f"{path} ({name})"


def _function_children(path: str, function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """What a function that is pickled by value takes along."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"{path}'s closure variable {name!r}", cell.cell_contents
        except ValueError:
            continue  # the cell has no value yet
    for index, value in enumerate(function.__defaults__ or ()):
        yield f"{path}'s default argument {index}", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"{path}'s default argument {name!r}", value
    for name in _global_names(function.__code__):
        if name in function.__globals__:
            yield f"{path}'s global {name!r}", function.__globals__[name]
    for name, value in vars(function).items():
        yield f"{path}.{name}", value


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _state_children(path: str, obj: Any) -> Iterator[tuple[str, object]]:
    """What the object's own way of pickling would send."""
    reduced = obj.__reduce_ex__(4)
    if not isinstance(reduced, tuple):
        return
    _, args, state, items, pairs = (*reduced, None, None, None)[:5]
    for part in state if _is_dict_and_slots(state) else (state,):
        if isinstance(part, dict):
            yield from ((f"{path}.{name}", value) for name, value in part.items())
        elif part is not None:
            yield f"the state of {path}", part
    for index, value in enumerate(args or ()):
        yield f"argument {index} of the constructor of {path}", value
    yield from ((f"{path}[{index}]", value) for index, value in enumerate(items or ()))
    yield from ((f"{path}[{_short(key)}]", value) for key, value in pairs or ())


def _is_dict_and_slots(state: object) -> bool:
    return (
        isinstance(state, tuple) and len(state) == 2 and all(part is None or isinstance(part, dict) for part in state)
    )


def _short(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _explained(path: str, culprit: object, error: BaseException) -> UnpicklableError:
    type_name = _full_name(type(culprit))
    message = f"{path} cannot be pickled: it is a {type_name} ({_first_line(error)}). "
    return UnpicklableError(message + _advice(culprit, error), path, type_name)


def _full_name(cls: type) -> str:
    name = cls.__qualname__
    return name if cls.__module__ == "builtins" else f"{cls.__module__}.{name}"


def _first_line(error: BaseException) -> str:
    try:
        lines = str(error).strip().splitlines()
    except Exception:
        lines = []
    return (lines[0] if lines else type(error).__name__)[:200]


def _advice(culprit: object, error: BaseException) -> str:
    family = type(culprit).__module__.partition(".")[0]
    if _too_deep(error):
        return "It is nested too deeply: send a flat structure."
    if isinstance(culprit, (types.GeneratorType, types.AsyncGeneratorType)) or _is_iterator(culprit):
        return "Pass a list instead."
    if isinstance(culprit, types.ModuleType):
        return "Import the module inside the function."
    if family in ("_io", "io", "socket", "_socket", "ssl", "sqlite3", "select", "mmap"):
        return "Pass its path or address, and open it inside the task."
    if isinstance(culprit, (types.FunctionType, type)):
        return "Define it at the top level of a module that workers can import."
    if family in ("_thread", "threading"):
        return "Create it inside the task, or leave it out in __getstate__."
    return "Create it inside the task, leave it out in __getstate__, or run in threads with require='sharedmem'."


def _too_deep(error: BaseException) -> bool:
    # cloudpickle turns it into an error of its own.
    return isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)


def _is_iterator(obj: object) -> bool:
    return hasattr(type(obj), "__next__") and type(obj).__module__ in ("builtins", "itertools")
