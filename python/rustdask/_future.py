"""Futures, and waiting for them: by blocking, in callbacks, and in event loops.

Guarantees: a task is wanted, and its result kept, while there is a future for it. Every wait can be interrupted
by Ctrl-C. Callbacks run in a thread of their own; event loops are woken through a descriptor, without a thread.
"""

from __future__ import annotations

import asyncio
import collections
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError
from types import TracebackType
from typing import Any, Literal, NamedTuple

from rustdask import _core
from rustdask._exceptions import TaskTimeout, WorkerCrashed

__all__ = ["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION", "Future", "as_completed", "wait"]

Status = Literal["pending", "finished", "error", "cancelled", "released"]


class Future(_core.Handle):
    """The result of a task, which may not be there yet. Made by `Client.submit` and its like.

    In the arguments of other tasks, also inside lists, tuples, dicts and sets, it stands for its result.

    Examples
    --------
    >>> from rustdask import Client
    >>> with Client(processes=False) as client:
    ...     future = client.submit(pow, 2, 10)
    ...     client.submit(sum, [future, 1]).result()
    1025
    """

    __slots__ = ()

    @property
    def status(self) -> Status:
        """Where the task stands: "pending", "finished", "error", "cancelled" or "released"."""
        return self.state()

    @property
    def client(self) -> Any:
        """The client that the future belongs to."""
        from rustdask._client import client_of

        return client_of(self.session)

    def cancelled(self) -> bool:
        """Tell whether the task was cancelled."""
        return self.state() == "cancelled"

    def cancel(self, force: bool = False) -> None:
        """End the task and all that depends on it, unless it has ended; see `Client.cancel`."""
        self.client.cancel([self], force=force)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the task and return its result.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        TimeoutError
            If the task has not ended by then. It goes on.
        concurrent.futures.CancelledError
            If the task was cancelled, or its client closed.
        Exception
            What the task raised, or the task among those it depends on that failed first.
        """
        self._wait(timeout)
        return self._take()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the task and return what it raised, None if it has a result.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        TimeoutError
            If the task has not ended by then.
        concurrent.futures.CancelledError
            If the task was cancelled, or its client closed.
        """
        self._wait(timeout)
        error = self._error()
        if isinstance(error, CancelledError):
            raise error
        return error

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        """Wait for the task and return the traceback of what it raised, None if it has a result."""
        error = self.exception(timeout)
        return None if error is None else error.__traceback__

    def add_done_callback(self, function: Callable[[Future], object]) -> None:
        """Call a function with this future once the task has ended, in a thread of rustdask's own.

        What the function raises is printed and goes no further.
        """
        _callbacks.add(self, function)

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait in an event loop; the task is not cancelled with the one who waits."""
        if not self.done():
            yield from _reader_of(asyncio.get_running_loop()).ended(self).__await__()
        return self._take()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Future cannot be pickled: it is passed to tasks as an argument, or in lists, tuples, dicts and sets "
            "there, but not inside of other objects, nor as a result; take its result() instead"
        )

    def __dask_tokenize__(self) -> Any:
        return self.key

    def __repr__(self) -> str:
        return f"<Future: {self.state()}, key: {self.key}>"

    def _wait(self, timeout: float | None) -> None:
        if not self.wait(timeout):
            raise TimeoutError(f"{self.key} has not ended within {timeout:g} s; it goes on")

    def _take(self) -> Any:
        """Return the result of a task that has ended, or raise."""
        kind, details, cause = self.outcome()
        if kind == "finished":
            return details
        raise self._failure(kind, details, cause)

    def _error(self) -> BaseException | None:
        # The state first: a result need not be loaded.
        return None if self.state() == "finished" else self._failure(*self.outcome())

    def _failure(self, kind: str, details: Any, cause: str | None) -> BaseException:
        """Return the error that such an outcome means."""
        error = _error_of(self, kind, details)
        if cause is not None:
            _add_note(error, f"This is the error of the task {cause}, which other tasks depend on.")
        return error


def _error_of(future: Future, kind: str, details: Any) -> BaseException:
    name = str(future.key)
    if kind == "raised":
        return _as_raised(details)
    if kind == "remote":
        from rustdask._errors import unpack_exception

        return unpack_exception(bytes(details))
    if kind == "crashed":
        return WorkerCrashed(index=None, function=name, **details)
    if kind == "timed out":
        return TaskTimeout(index=None, function=name, timeout=details or 0.0)
    if kind == "cancelled":
        return CancelledError(f"{name} was cancelled")
    if kind == "closed":
        return CancelledError(f"the client was closed before {name} had ended")
    if kind == "unrunnable":
        return RuntimeError(
            f"no worker can run {name}: none has the resources, or is among the workers, that it asks for; "
            "compare with Client.scheduler_info()"
        )
    if kind == "no workers":
        return RuntimeError(f"no worker could be started: {details}")
    return RuntimeError(f"{name} depends on a task that is not there, or on itself")


_raised_at: weakref.WeakKeyDictionary[BaseException, Any] = weakref.WeakKeyDictionary()


def _as_raised(error: BaseException) -> BaseException:
    """Return the exception with the frames of the task alone, however often it has been raised since."""
    traceback = _from_task_on(error.__traceback__)
    try:
        traceback = _raised_at.setdefault(error, traceback)
    except TypeError:
        # Without weak references, as those of the built-in classes, or a hash, the frames of those who ask add up.
        pass
    return error.with_traceback(traceback)


def _from_task_on(traceback: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of what calls the functions of a task that has several steps."""
    from rustdask._tracebacks import is_dispatch

    step = traceback
    while step is not None and is_dispatch(step.tb_frame.f_code.co_filename):
        step = step.tb_next
    return step or traceback


def _add_note(error: BaseException, note: str) -> None:
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


class _Callbacks:
    """Calls functions when futures are done. Its thread lives while there are any to wait for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watch = _core.Watch()
        self._waiting: dict[int, list[tuple[Future, Callable[[Future], object]]]] = {}
        self._running = False

    def add(self, future: Future, function: Callable[[Future], object]) -> None:
        with self._lock:
            self._waiting.setdefault(future.id, []).append((future, function))
            self._watch.add([future])
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="rustdask-callbacks", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                ended = self._watch.next()
            except RuntimeError:
                # The interpreter is ending.
                return
            for future in ended:
                self._call(future)
            with self._lock:
                if not self._watch.pending() and not self._waiting:
                    self._running = False
                    return

    def _call(self, ended: Any) -> None:
        with self._lock:
            waiting = self._waiting[ended.id]
            place = next(at for at, (future, _) in enumerate(waiting) if future is ended)
            future, function = waiting.pop(place)
            if not waiting:
                del self._waiting[ended.id]
        try:
            function(future)
        except BaseException:
            import sys

            sys.excepthook(*sys.exc_info())


_callbacks = _Callbacks()


class _Reader:
    """Tells the coroutines of one event loop when futures are done."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._watch = _core.Watch()
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}
        loop.add_reader(self._watch.fileno(), self._read)

    async def ended(self, future: _core.Handle) -> None:
        """Wait for the end of a task."""
        loop = self._loop()
        assert loop is not None
        waiter = loop.create_future()
        waiting = self._waiting.setdefault(id(future), [])
        waiting.append(waiter)
        if len(waiting) == 1:
            # The watch keeps the future, and so its id.
            self._watch.add([future])
        await waiter

    def _read(self) -> None:
        for future in self._watch.take():
            for waiter in self._waiting.pop(id(future)):
                _wake(waiter)


_readers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Reader] = weakref.WeakKeyDictionary()


def _reader_of(loop: asyncio.AbstractEventLoop) -> _Reader:
    reader = _readers.get(loop)
    if reader is None:
        reader = _readers[loop] = _Reader(loop)
    return reader


async def all_ended(futures: Iterable[Future]) -> None:
    """Wait in an event loop until all tasks have ended."""
    for future in futures:
        if not future.done():
            await _reader_of(asyncio.get_running_loop()).ended(future)


class as_completed:  # noqa: N801
    """Iterate over futures in the order in which their tasks end; also with ``async for``.

    Parameters
    ----------
    futures : iterable of Future
    with_results : bool, default=False
        Yield ``(future, result)``. A task that failed raises its exception there.
    timeout : float, optional
        Seconds that the whole iteration may take.

    Raises
    ------
    TimeoutError
        While iterating, when the time is over.

    Examples
    --------
    >>> from rustdask import Client, as_completed
    >>> with Client(processes=False) as client:
    ...     sorted(future.result() for future in as_completed(client.map(abs, [-1, 2])))
    [1, 2]
    """

    def __init__(
        self, futures: Iterable[Future] = (), with_results: bool = False, timeout: float | None = None
    ) -> None:
        import time

        self._watch = _core.Watch()
        self._ready: collections.deque[Any] = collections.deque()
        self._with_results = with_results
        self._clock = time.monotonic
        self._deadline = None if timeout is None else self._clock() + timeout
        self._left = 0
        self.update(futures)

    def add(self, future: Future) -> None:
        """Iterate over another future, too."""
        self.update([future])

    def update(self, futures: Iterable[Future]) -> None:
        """Iterate over further futures, too."""
        futures = list(futures)
        self._left += len(futures)
        self._watch.add(futures)

    def count(self) -> int:
        """Return how many futures are still to come."""
        return self._left

    def is_empty(self) -> bool:
        """Tell whether no future is to come."""
        return self._left == 0

    def has_ready(self) -> bool:
        """Tell whether the next future is there already."""
        self._ready.extend(self._watch.take())
        return bool(self._ready)

    def next_batch(self) -> list[Any]:
        """Wait for the next future, and return it with all others that are there by then."""
        first = next(self)
        self._ready.extend(self._watch.take())
        rest = [self._hand_out() for _ in range(len(self._ready))]
        return [first, *rest]

    def batches(self) -> Iterator[list[Any]]:
        """Iterate over lists of what has come in the meantime."""
        while not self.is_empty():
            yield self.next_batch()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._ready:
            if self._left == 0:
                raise StopIteration
            self._ready.extend(self._watch.next(self._time_left()))
            self._check_time()
        return self._hand_out()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._left == 0:
            raise StopAsyncIteration
        while not self.has_ready():
            try:
                await asyncio.wait_for(self._something(), self._time_left())
            except TimeoutError:
                self._check_time()
        return self._hand_out()

    async def _something(self) -> None:
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        descriptor = self._watch.fileno()
        loop.add_reader(descriptor, _wake, waiter)
        try:
            await waiter
        finally:
            loop.remove_reader(descriptor)

    def _time_left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def _check_time(self) -> None:
        if not self._ready and self._time_left() == 0:
            raise TimeoutError(f"{self._left} of the tasks have not ended within the time given; they go on")

    def _hand_out(self) -> Any:
        future = self._ready.popleft()
        self._left -= 1
        return (future, future.result()) if self._with_results else future


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class DoneAndNotDone(NamedTuple):
    """What `wait` returns."""

    done: set[Future]
    not_done: set[Future]


def wait(
    futures: Iterable[Future] | Future, timeout: float | None = None, return_when: str = ALL_COMPLETED
) -> DoneAndNotDone:
    """Wait for tasks to end.

    Parameters
    ----------
    futures : iterable of Future
    timeout : float, optional
        Seconds to wait at most.
    return_when : {"ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"}

    Returns
    -------
    done, not_done : set of Future
        A named tuple.

    Raises
    ------
    TimeoutError
        When the time is over before that.
    """
    futures = [futures] if isinstance(futures, Future) else list(futures)
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
        raise ValueError(f"return_when must be one of the names in concurrent.futures, got {return_when!r}")
    if return_when == ALL_COMPLETED:
        watch = _core.Watch()
        watch.add(futures)
        if not watch.wait_all(timeout):
            raise TimeoutError(f"{watch.pending()} of the tasks have not ended within {timeout:g} s; they go on")
    else:
        for future in as_completed(futures, timeout=timeout):
            if return_when == FIRST_COMPLETED or future.status in ("error", "cancelled"):
                break
    done = {future for future in futures if future.done()}
    return DoneAndNotDone(done, set(futures) - done)
