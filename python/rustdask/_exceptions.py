"""What rustdask raises, or returns in a task's place.

Guarantees: every exception survives pickling and copying with all its attributes, whatever its
constructor takes; its message says in a sentence or two what happened, where, and what to do.
"""

from __future__ import annotations

import pickle
import signal as signals
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor
from typing import Any


class WorkerCrashed(BrokenExecutor):
    """A task ended its worker process, and kept doing so when it was run again. The pool goes on.

    Parameters
    ----------
    index : int or None
        Position of the task in the call.
    function : str or None
        Name of the task's function.
    signal : int, optional
        Signal that ended the worker.
    exit_code : int, optional
        Exit code of the worker, if no signal ended it.
    reason : str, optional
        What rustdask ended the worker for, worded to follow "it", such as
        ``"exceeded memory_limit of 512 MiB (reached 700 MiB)"``.
    peak_memory_bytes : int, optional
        Largest resident memory of the last worker.
    stderr : str
        Last lines that the worker wrote to its standard error.
    results : mapping of int to object
        Results that were ready when the call failed, by position.
    deaths : int
        How many workers the task has ended.

    Attributes
    ----------
    signal : signal.Signals, int or None
        As given, with a name (``signal.SIGSEGV``) where the platform knows one.
    """

    def __init__(
        self,
        *,
        index: int | None,
        function: str | None = None,
        signal: int | None = None,
        exit_code: int | None = None,
        reason: str | None = None,
        peak_memory_bytes: int | None = None,
        stderr: str = "",
        results: Mapping[int, Any] | None = None,
        deaths: int = 1,
    ) -> None:
        self.index = index
        self.function = function
        self.signal = None if signal is None else _named_signal(signal)
        self.exit_code = exit_code
        self.reason = reason
        self.peak_memory_bytes = peak_memory_bytes
        self.stderr = stderr
        self.results: Mapping[int, Any] = {} if results is None else results
        self.deaths = deaths
        super().__init__(_crash_message(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduce(self)


class TaskTimeout(TimeoutError):
    """A task ran longer than ``task_timeout``.

    Parameters
    ----------
    index : int or None
        Position of the task in the call.
    function : str or None
        Name of the task's function.
    timeout : float
        The limit, in seconds of run time.
    """

    def __init__(self, *, index: int | None, function: str | None, timeout: float) -> None:
        self.index = index
        self.function = function
        self.timeout = timeout
        super().__init__(
            f"{_task_name(index, function)} ran longer than task_timeout={timeout:g} s. "
            "Raise the limit, or give each task less to do."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduce(self)


class RemoteError(RuntimeError):
    """Stands for an exception of a task that could not be sent from its worker.

    Parameters
    ----------
    type_name : str
        Full name of the original exception's class.
    message : str
        Message of the original exception.
    traceback_text : str
        The original traceback.
    """

    def __init__(self, type_name: str, message: str, traceback_text: str = "") -> None:
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text
        super().__init__(f"{type_name}: {message} (this exception could not be sent as it was)")

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduce(self)


class UnpicklableError(pickle.PicklingError):
    """Part of a task cannot be sent to a worker process.

    Parameters
    ----------
    message : str
        What could not be pickled, where it is, and what to do.
    path : str or None
        Where it is, such as ``args[1]['cfg'].lock``; None if it was not found.
    type_name : str or None
        Full name of its class.
    """

    def __init__(self, message: str, path: str | None = None, type_name: str | None = None) -> None:
        self.path = path
        self.type_name = type_name
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduce(self)


class RemoteTraceback(Exception):
    """Carries the text of a traceback to the place where the exception is shown."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


class TaskFailure:
    """Stands in the place of the result of a task that failed, with ``on_error="return"``.

    Attributes
    ----------
    exception : BaseException
        What the task raised.
    index : int or None
        Position of the task in the call.
    function : str or None
        Name of the task's function.
    traceback : str
        Text of the task's traceback.
    """

    __slots__ = ("exception", "function", "index", "traceback")

    def __init__(
        self,
        exception: BaseException,
        index: int | None = None,
        function: str | None = None,
        traceback: str = "",
    ) -> None:
        self.exception = exception
        self.index = index
        self.function = function
        self.traceback = traceback

    def __repr__(self) -> str:
        return f"TaskFailure({self.exception!r}, index={self.index!r}, function={self.function!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Nested calls return failures across processes: the exception goes the safe way.
        import cloudpickle

        from rustdask._transport import pack_exception

        packed = pack_exception(self.exception, cloudpickle.dumps)
        return _restore_failure, (packed, self.index, self.function, self.traceback)


def format_bytes(size_bytes: float) -> str:
    """Write a size the way people read it.

    Examples
    --------
    >>> format_bytes(700 * 1024**2)
    '700 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.3g} {unit}" if size_bytes < 100 else f"{size_bytes:.0f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def _restore_failure(packed: bytes, index: int | None, function: str | None, traceback: str) -> TaskFailure:
    from rustdask._transport import unpack_exception

    return TaskFailure(unpack_exception(packed), index, function, traceback)


def _reduce(exc: BaseException) -> tuple[Any, ...]:
    return _restore, (type(exc), exc.args, exc.__dict__)


def _restore(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    exc = cls.__new__(cls)
    exc.args = args
    exc.__dict__.update(state)
    return exc


def _named_signal(number: int) -> int:
    try:
        return signals.Signals(number)
    except ValueError:
        return int(number)


def _task_name(index: int | None, function: str | None) -> str:
    name = "A task" if index is None else f"Task {index}"
    return name if function is None else f"{name} ({function})"


def _crash_message(crash: WorkerCrashed) -> str:
    times = "its worker" if crash.deaths <= 1 else f"{crash.deaths} workers, one after the other"
    memory = crash.peak_memory_bytes
    peak = "" if memory is None else f", peak memory {format_bytes(memory)}"
    cause, advice = _cause_of_death(crash)
    lines = [f"{_task_name(crash.index, crash.function)} ended {times}: {cause}{peak}. {advice}"]
    if crash.stderr.strip():
        lines += ["Last lines of the worker's stderr:"]
        lines += [f"  {line}" for line in crash.stderr.strip().splitlines()[-20:]]
    return "\n".join(lines)


def _cause_of_death(crash: WorkerCrashed) -> tuple[str, str]:
    """What ended the worker, and the advice that goes with it."""
    if crash.reason is not None:
        limit = "memory" in crash.reason
        advice = "Raise the limit, use fewer jobs, or give each task less data." if limit else ""
        return f"it {crash.reason}", advice or "The other tasks are not to blame."
    if crash.signal is not None:
        return _death_by_signal(crash.signal)
    if crash.exit_code is not None:
        advice = "Look for a call of os._exit or of a library that ends its process."
        return f"the process exited with code {crash.exit_code}", advice
    return "the process disappeared", "Look in the system's log for what ended it."


def _death_by_signal(number: int) -> tuple[str, str]:
    name = number.name if isinstance(number, signals.Signals) else f"signal {number}"
    if name == "SIGKILL":
        advice = "The system does this when memory runs out: use fewer jobs or smaller tasks."
    elif name in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT"):
        advice = "Compiled code crashed; PYTHONFAULTHANDLER=1 shows in which call."
    else:
        advice = "Something outside of rustdask sent it."
    return f"killed by {name}", advice
