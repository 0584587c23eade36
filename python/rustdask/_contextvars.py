"""Names for context variables, which cannot be pickled.

Guarantees: a name made in the parent leads to one and the same variable in a worker, whether it
arrives with a value (`refer_to`) or inside a function that was pickled by value
(`reduce_contextvar`). A variable at the top of an importable module is that module's variable;
any other, such as those of ``__main__``, is made anew in the worker, once.
"""

from __future__ import annotations

import contextvars
import importlib
import itertools
import os
import pickle
import sys
import threading
from typing import Any, Literal

Variable = contextvars.ContextVar[Any]
Reference = tuple[Literal["module", "token"], str, str, bytes | None]
"""How to find it, module or token, name, and the pickled default if it may have to be made."""


def refer_to(variable: Variable) -> Reference:
    """Name a variable for another process.

    Parameters
    ----------
    variable : contextvars.ContextVar

    Returns
    -------
    tuple
        Plain values, for `resolve`.
    """
    place = _names.module_of(variable)
    if place is not None:
        return "module", *place, None
    return "token", _names.token_of(variable), variable.name, _dumped_default(variable)


def resolve(reference: Reference) -> Variable:
    """Find, or make, the variable that was named by `refer_to`.

    Raises
    ------
    ImportError, AttributeError
        If its module cannot be imported here, or does not have it.
    """
    how, place, name, default = reference
    if how == "token":
        return _names.variable_of(place, name, default)
    found = getattr(importlib.import_module(place), name)
    if not isinstance(found, contextvars.ContextVar):
        raise AttributeError(f"{place}.{name} is not a context variable here")
    return found


def reduce_contextvar(variable: Variable) -> tuple[Any, tuple[Any, ...]]:
    """Pickle a variable; goes into a pickler's dispatch table under ``ContextVar``.

    Parameters
    ----------
    variable : contextvars.ContextVar

    Returns
    -------
    tuple
        `restore_contextvar` and its arguments.
    """
    return restore_contextvar, refer_to(variable)


def restore_contextvar(
    how: Literal["module", "token"], place: str, name: str, default: bytes | None = None
) -> Variable:
    """Undo `reduce_contextvar`."""
    return resolve((how, place, name, default))


class _Names:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._serial = itertools.count(1)
        # Variables live for ever (see PEP 567), so their ids are never used again while we hold them.
        self._tokens: dict[int, str] = {}
        self._variables: dict[str, Variable] = {}
        self._places: dict[int, tuple[str, str]] = {}
        self._searched = 0

    def module_of(self, variable: Variable) -> tuple[str, str] | None:
        with self._lock:
            if id(variable) in self._tokens:
                return None
            place = self._places.get(id(variable))
            if place is None and self._searched != len(sys.modules):
                self._search()
                place = self._places.get(id(variable))
            return place if place and _leads_to(place, variable) else None

    def token_of(self, variable: Variable) -> str:
        with self._lock:
            if id(variable) not in self._tokens:
                self._add(f"{os.getpid()}-{os.urandom(4).hex()}-{next(self._serial)}", variable)
            return self._tokens[id(variable)]

    def variable_of(self, token: str, name: str, default: bytes | None) -> Variable:
        with self._lock:
            if token not in self._variables:
                self._add(token, _made(name, default))
            return self._variables[token]

    def _add(self, token: str, variable: Variable) -> None:
        self._tokens[id(variable)] = token
        self._variables[token] = variable

    def _search(self) -> None:
        """Find the variables at the top of all modules that a worker could import too."""
        self._searched = len(sys.modules)
        for module_name, module in list(sys.modules.items()):
            if module_name in ("__main__", "__mp_main__") or module is None:
                continue
            for name, value in list(getattr(module, "__dict__", {}).items()):
                if type(value) is contextvars.ContextVar:
                    self._places.setdefault(id(value), (module_name, name))


def _leads_to(place: tuple[str, str], variable: Variable) -> bool:
    return getattr(sys.modules.get(place[0]), place[1], None) is variable


def _dumped_default(variable: Variable) -> bytes | None:
    # The only way to ask for a default: look the variable up where nothing is set.
    try:
        return pickle.dumps(contextvars.Context().run(variable.get))
    except Exception:
        return None


def _made(name: str, default: bytes | None) -> Variable:
    if default is None:
        return contextvars.ContextVar(name)
    return contextvars.ContextVar(name, default=pickle.loads(default))  # noqa: B039


_names = _Names()
