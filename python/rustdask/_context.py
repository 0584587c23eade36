"""What of the parent's surroundings tasks in worker processes see.

Guarantees: warnings filters, logging levels, changes to the environment, ``sys.path``, the working
directory and context variables reach the workers. `capture` returns the same object until
one of them changes, so that nothing is sent when nothing has changed.

Left out, without a word: values that cannot be pickled, filters of classes that a worker does not
find, and changes inside a context variable's value (set the variable anew to send them).
"""

from __future__ import annotations

import contextvars
import importlib
import itertools
import os
import pickle
import re
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from rustdask._contextvars import Reference, reduce_contextvar, refer_to, resolve, restore_contextvar
from rustdask._import_hook import when_imported
from rustdask._logs import handle_forwarded_log, install_log_forwarding

__all__ = [
    "NEVER_TOUCHED",
    "ContextSnapshot",
    "apply",
    "capture",
    "handle_forwarded_log",
    "install_log_forwarding",
    "reduce_contextvar",
    "refresh",
    "restore_contextvar",
    "set_baseline",
]

Dumps = Callable[[object], bytes]

NEVER_TOUCHED = frozenset(
    {
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "_",
        "SHLVL",
    }
)
"""Variables of which each worker has its own, besides all that begin with ``RUSTDASK_``."""


def set_baseline() -> None:
    """Take the environment of now as the one that workers start with.

    Call it when the process that workers are made from is started; until then it is the
    environment of the first `capture`.
    """
    _parent.set_baseline()


def capture() -> ContextSnapshot:
    """Return the surroundings of now, as seen by this thread.

    Returns
    -------
    ContextSnapshot
        The same object as before if nothing has changed.
    """
    return _parent.capture()


def apply(state: bytes) -> contextvars.Context:
    """Make the surroundings of this worker those of a snapshot.

    Parameters
    ----------
    state : bytes
        From `ContextSnapshot.dumps`.

    Returns
    -------
    contextvars.Context
        A fresh context with the parent's values, to run tasks in. Run each in a ``copy()`` of it,
        lest one task sees what another has set.
    """
    return _worker.apply(pickle.loads(state))


def refresh(*, new_call: bool) -> None:
    """Before a task, in a worker: make up for what could not be applied when a snapshot was.

    Parameters
    ----------
    new_call : bool
        It is the first task of its call here: the working directory is the parent's again.
    """
    _worker.refresh(new_call=new_call)


class ContextSnapshot:
    """The surroundings of one moment.

    Attributes
    ----------
    key : int
        Different for each snapshot of this process.
    """

    def __init__(self, view: _View, environment: dict[str, str | None]) -> None:
        self.key = next(_keys)
        self._view = view
        self._environment = environment
        self._dumped: bytes | None = None

    def dumps(self, dumps: Dumps) -> bytes:
        """Pickle for `apply`.

        Parameters
        ----------
        dumps : callable
            ``cloudpickle.dumps`` or the like, for the values of context variables.

        Returns
        -------
        bytes
            The same for each call on this snapshot.
        """
        if self._dumped is None:
            state = _State(
                filters=_portable_filters(self._view.filters),
                logging=self._view.logging,
                environment=self._environment,
                path=[entry for entry in self._view.path if isinstance(entry, str)],
                directory=self._view.directory,
                variables=_dumped_variables(self._view.variables, dumps),
            )
            self._dumped = pickle.dumps(state, protocol=5)
        return self._dumped

    def matches(self, other: _View) -> bool:
        """Tell whether `other` shows what this snapshot shows."""
        return self._view.same(other)


_Filter = tuple[str, str | None, tuple[str, str], str | None, int]
_Levels = tuple[int, int, dict[str, tuple[int, bool]]]  # disable, root level, the named loggers


class _State(TypedDict):
    """What travels."""

    filters: list[_Filter]
    logging: _Levels | None
    environment: dict[str, str | None]
    path: list[str]
    directory: str | None
    variables: list[tuple[Reference, bytes]]


class _View:
    """The surroundings as they are; live objects until `frozen`."""

    __slots__ = ("directory", "environment", "filters", "logging", "path", "variables")

    def __init__(self) -> None:
        self.filters: Any = _filters()
        self.logging = _logging_levels()
        self.environment: Any = _raw_environment()
        self.path: list[Any] = sys.path
        self.directory = _directory()
        self.variables = list(contextvars.copy_context().items())

    def same(self, other: _View) -> bool:
        return bool(
            self.environment == other.environment
            and self.path == other.path
            and self.filters == other.filters
            and self.logging == other.logging
            and self.directory == other.directory
            and len(self.variables) == len(other.variables)
            and all(map(_same_variable, self.variables, other.variables))
        )

    def frozen(self) -> _View:
        self.filters = list(self.filters)
        self.environment = dict(self.environment)
        self.path = list(self.path)
        return self


def _same_variable(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    # By identity: comparing values may be slow, or, for arrays, mean nothing.
    return one[0] is other[0] and one[1] is other[1]


class _Parent:
    """Remembers the last few snapshots: threads whose contexts differ take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: list[ContextSnapshot] = []
        self._baseline: dict[str, str] | None = None

    def set_baseline(self) -> None:
        with self._lock:
            self._baseline = dict(os.environ)
            self._recent.clear()

    def capture(self) -> ContextSnapshot:
        view = _View()
        with self._lock:
            for place, snapshot in enumerate(self._recent):
                if snapshot.matches(view):
                    if place:
                        self._recent.insert(0, self._recent.pop(place))
                    return snapshot
            snapshot = self._new(view.frozen())
            self._recent.insert(0, snapshot)
            del self._recent[8:]
            return snapshot

    def _new(self, view: _View) -> ContextSnapshot:
        now = dict(os.environ)
        if self._baseline is None:
            self._baseline = now
        return ContextSnapshot(view, _changes(self._baseline, now))


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str | None]:
    """Variables to set, and, with None, to unset."""
    names = (before.keys() | now.keys()) - NEVER_TOUCHED
    return {
        name: now.get(name) for name in names if before.get(name) != now.get(name) and not name.startswith("RUSTDASK_")
    }


def _raw_environment() -> Any:
    # Decoding all of os.environ takes longer than all the rest of a capture.
    return getattr(os.environ, "_data", None) or dict(os.environ)


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


def _filters() -> Any:
    current = getattr(warnings, "_get_filters", None)  # Python 3.14: one list for each context
    return warnings.filters if current is None else current()


def _portable_filters(filters: list[Any]) -> list[_Filter]:
    return [
        (action, _pattern(message), _class_name(category), _pattern(module), line)
        for action, message, category, module, line in filters
        if isinstance(category, type)
    ]


def _pattern(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        # The interpreter's own filters hold plain names, which must be equal.
        return re.escape(value) + r"\Z"
    return str(value.pattern)


def _class_name(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _logging_levels() -> _Levels | None:
    logging = sys.modules.get("logging")
    if logging is None:
        return None
    # Hundreds of loggers are common, and this runs for each call: no function call for each of them.
    root, empty = logging.root, logging.PlaceHolder
    named = {
        name: (logger.level, logger.disabled)
        for name, logger in root.manager.loggerDict.copy().items()
        if logger.__class__ is not empty and (logger.level or logger.disabled)
    }
    return root.manager.disable, root.level, named


def _dumped_variables(variables: list[Any], dumps: Dumps) -> list[tuple[Reference, bytes]]:
    sent = []
    for variable, value in variables:
        try:
            sent.append((refer_to(variable), dumps(value)))
        except Exception:
            continue
    return sent


class _Worker:
    """What this worker was like before, so that what the parent takes back goes back here too."""

    def __init__(self) -> None:
        self._own_environment: dict[str, str | None] = {}
        self._named_loggers: set[str] = set()
        self._parents_directory: str | None = None
        self._filters: list[_Filter] = []
        self._filters_stale = False
        self._missing: set[str] = set()

    def apply(self, state: _State) -> contextvars.Context:
        self._apply_environment(state["environment"])
        self._parents_directory = state["directory"]
        _apply_directory(self._parents_directory)
        if sys.path != state["path"]:
            sys.path[:] = state["path"]
            importlib.invalidate_caches()
        self._filters = state["filters"]
        self._apply_filters()
        if state["logging"] is not None:
            self._apply_logging(state["logging"])
        return _context_with(state["variables"])

    def _apply_environment(self, changes: Mapping[str, str | None]) -> None:
        for name in list(self._own_environment):
            if name not in changes:
                _set_variable(name, self._own_environment.pop(name))
        for name, value in changes.items():
            self._own_environment.setdefault(name, os.environ.get(name))
            _set_variable(name, value)

    def refresh(self, *, new_call: bool) -> None:
        if self._filters_stale:
            self._apply_filters()
        if new_call:
            _apply_directory(self._parents_directory)

    def _apply_filters(self) -> None:
        """Set the filters, but for those about a class of a module that is not imported here."""
        warnings.resetwarnings()
        for entry in self._filters:
            if _module_of(entry) in sys.modules:
                _add_filter(entry, append=True)
            else:
                when_imported(_module_of(entry), self._module_imported)
        self._missing = {_module_of(entry) for entry in self._filters} - sys.modules.keys()
        self._filters_stale = False

    def _module_imported(self) -> None:
        # Perhaps within somebody's catch_warnings: for now the new ones are put in front, later all are set again.
        arrived = self._missing & sys.modules.keys()
        self._missing -= arrived
        for entry in reversed(self._filters):
            if _module_of(entry) in arrived:
                _add_filter(entry, append=False)
        self._filters_stale = True

    def _apply_logging(self, levels: _Levels) -> None:
        import logging

        disable, root_level, named = levels
        if logging.root.manager.disable != disable:
            logging.disable(disable)
        if logging.root.level != root_level:
            logging.root.setLevel(root_level)
        for name in self._named_loggers.difference(named):
            _set_logger(name, logging.NOTSET, False)
        for name, (level, disabled) in named.items():
            _set_logger(name, level, disabled)
        self._named_loggers = set(named)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    elif os.environ.get(name) != value:
        os.environ[name] = value


def _apply_directory(directory: str | None) -> None:
    if directory is None or directory == _directory():
        return
    try:
        os.chdir(directory)
    except OSError:
        return


def _set_logger(name: str, level: int, disabled: bool) -> None:
    import logging

    logger = logging.getLogger(name)
    logger.disabled = disabled
    if logger.level != level:
        logger.setLevel(level)


def _module_of(entry: _Filter) -> str:
    return entry[2][0]


def _add_filter(entry: _Filter, *, append: bool) -> None:
    action, message, (module_name, class_name), module, line = entry
    category: Any = sys.modules[module_name]
    for attribute in class_name.split("."):
        category = getattr(category, attribute, None)
    if isinstance(category, type) and issubclass(category, Warning):
        warnings.filterwarnings(action, message or "", category, module or "", line, append=append)  # type: ignore[arg-type]


def _context_with(variables: list[tuple[Reference, bytes]]) -> contextvars.Context:
    context = contextvars.Context()
    for reference, dumped in variables:
        try:
            context.run(resolve(reference).set, pickle.loads(dumped))
        except Exception:
            continue
    return context


_keys = itertools.count(1)
_parent = _Parent()
_worker = _Worker()
