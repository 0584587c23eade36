"""Shows how far a call has come: a bar, a line on stderr, or a callable of the user's own.

Guarantees: `Progress.update` costs about a microsecond when nothing is due; displays are never
called by two threads at once, at most about ten times a second, and always once at the end.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO, TypedDict


class ProgressState(TypedDict):
    """What a ``progress=callable`` is given.

    ``total`` and ``eta`` are None while unknown; ``elapsed`` and ``eta`` are seconds, ``rate`` is
    tasks per second; ``failed`` counts those of ``done`` that raised.
    """

    done: int
    total: int | None
    failed: int
    elapsed: float
    rate: float
    eta: float | None


class Progress:
    """A progress display that shows nothing; the base of those that do."""

    def update(self, done: int, failed: int = 0) -> None:
        """Count `done` more finished tasks, `failed` of which raised."""

    def set_total(self, total: int | None) -> None:
        """Set the number of tasks of the call, once it is known."""

    def close(self) -> None:
        """Show the final state and end; further calls do nothing."""


def make_progress(option: Any, total: int | None = None, label: str = "") -> Progress:
    """Choose the display for one call.

    Parameters
    ----------
    option : None, bool or callable
        True shows a bar: tqdm's if tqdm is installed, else a line of our own on stderr. A callable
        is called with a `ProgressState`; what it raises comes out of `Progress.update`. None
        leaves the choice to the variable ``RUSTDASK_PROGRESS``, False shows nothing.
    total : int, optional
        Number of tasks, if it is known.
    label : str
        Stands before the bar.

    Returns
    -------
    Progress

    Raises
    ------
    ValueError
        If ``RUSTDASK_PROGRESS`` is neither a yes nor a no.
    TypeError
        If `option` is none of the above.
    """
    if option is None:
        option = _truthy(os.environ.get("RUSTDASK_PROGRESS", ""))
    if option is False:
        return Progress()
    if option is True:
        return _Throttled(_bar(label), total)
    if not callable(option):
        raise TypeError(f"progress={option!r} is neither True, False, None nor callable.")
    return _Throttled(_Call(option), total)


def wanted(option: Any) -> bool:
    """Tell whether `make_progress` would show anything for this option."""
    return _truthy(os.environ.get("RUSTDASK_PROGRESS", "")) if option is None else option is not False


_INTERVAL = 0.1
_LINE_INTERVAL = 5.0


def _truthy(text: str) -> bool:
    if text.strip().lower() in ("1", "true", "yes", "on"):
        return True
    if text.strip().lower() in ("", "0", "false", "no", "off"):
        return False
    raise ValueError(f"RUSTDASK_PROGRESS={text!r} is not understood. Use 1 or 0.")


class _Display:
    """Shows a state; `interval` is the least time between two of them, in seconds."""

    interval = _INTERVAL

    def show(self, state: ProgressState, *, last: bool) -> None:
        raise NotImplementedError


class _Throttled(Progress):
    def __init__(self, display: _Display, total: int | None) -> None:
        self._display = display
        self._total = total
        self._done = self._failed = 0
        self._start = time.monotonic()
        self._due = self._start + display.interval
        self._closed = False
        self._lock = threading.Lock()
        # Held while showing; reentrant, because a user's callable may use rustdask itself.
        self._showing = threading.RLock()

    def update(self, done: int, failed: int = 0) -> None:
        with self._lock:
            self._done += done
            self._failed += failed
            now = time.monotonic()
            if now < self._due or self._closed:
                return
            self._due = now + self._display.interval
        if self._showing.acquire(blocking=False):
            try:
                self._show(last=False)
            finally:
                self._showing.release()

    def set_total(self, total: int | None) -> None:
        with self._lock:
            self._total = total

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with self._showing:
            self._show(last=True)

    def _show(self, *, last: bool) -> None:
        try:
            self._display.show(self._state(), last=last)
        except BaseException:
            # It would raise again from close(), and hide the first error.
            self._closed = True
            raise

    def _state(self) -> ProgressState:
        with self._lock:
            done, failed, total = self._done, self._failed, self._total
        elapsed = time.monotonic() - self._start
        rate = done / elapsed if elapsed > 0 else 0.0
        eta = max(0, total - done) / rate if total is not None and rate > 0 else None
        return ProgressState(done=done, total=total, failed=failed, elapsed=elapsed, rate=rate, eta=eta)


class _Call(_Display):
    def __init__(self, function: Callable[[ProgressState], object]) -> None:
        self._function = function

    def show(self, state: ProgressState, *, last: bool) -> None:
        self._function(state)


def _bar(label: str) -> _Display:
    try:
        return _TqdmBar(label)
    except ImportError:
        return _Line(label, sys.stderr)


class _TqdmBar(_Display):
    def __init__(self, label: str) -> None:
        self._bar = _tqdm_class()(total=None, desc=label or None, unit="task")

    def show(self, state: ProgressState, *, last: bool) -> None:
        if self._bar.total != state["total"]:
            self._bar.total = state["total"]
        self._bar.n = state["done"]
        if state["failed"]:
            self._bar.set_postfix(failed=state["failed"], refresh=False)
        self._bar.refresh()
        if last:
            self._bar.close()


def _tqdm_class() -> Any:
    import importlib

    tqdm = importlib.import_module("tqdm.auto").tqdm
    # tqdm's own lock is a semaphore shared by processes, and its monitor is one more thread.
    bar_class = type("tqdm", (tqdm,), {"monitor_interval": 0})
    bar_class.set_lock(threading.RLock())  # type: ignore[attr-defined]
    return bar_class


class _Line(_Display):
    """One line: rewritten in place on a terminal, else a new one every few seconds."""

    def __init__(self, label: str, stream: TextIO | None) -> None:
        self._label = label or "tasks"
        self._stream = stream
        self._in_place = stream is not None and stream.isatty()
        self._width = 0
        self.interval = _INTERVAL if self._in_place else _LINE_INTERVAL

    def show(self, state: ProgressState, *, last: bool) -> None:
        if self._stream is None:
            return
        line = f"{self._label}: {_in_words(state)}"
        if self._in_place:
            self._stream.write("\r" + line.ljust(self._width) + ("\n" if last else ""))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def _in_words(state: ProgressState) -> str:
    done, total, eta = state["done"], state["total"], state["eta"]
    words = [f"{done}" if total is None else f"{done}/{total}"]
    if total:
        words.append(f"({100 * done // total} %)")
    words.append(f"{state['rate']:.3g}/s in {_clock(state['elapsed'])}")
    if eta is not None and total != done:
        words.append(f"ETA {_clock(eta)}")
    if state["failed"]:
        words.append(f"{state['failed']} failed")
    return " ".join(words)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
