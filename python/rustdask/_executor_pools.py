"""What executors run on: calls wait in a queue for the engine to make them, and end the standard library's futures.

Guarantees: each future ends, whatever happens to workers, pool or interpreter. One that could be cancelled is never
run. A pool ends when its executor is shut down or gone, or the interpreter ends, and not before its tasks have; a
process that is forked has nothing to do with it.

Assumes that the engine runs each task that is handed over, or says or shows, by letting go of it, that it will not.
"""

from __future__ import annotations

import _thread
import collections
import contextvars
import itertools
import os
import queue
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

from rustdask import _core
from rustdask._client import Client
from rustdask._exceptions import WorkerCrashed
from rustdask._executor_worker import InitializerFailed, PreparedCaller, call
from rustdask._future import Future as EngineFuture
from rustdask._items import function_name

__all__ = ["Call", "Pool", "ProcessPool", "ThreadPool"]

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

_SHUT_DOWN = "rustdask was shut down before this executor's tasks had ended"
_INITIALIZER_FAILED = "an initializer has failed, so this executor cannot be used any more"

# How long the first task may take to begin while its caller waits.
_BEGIN_SECONDS = 1.0

# So much work, in seconds and in tasks, lies ready for worker processes. It cannot be cancelled any more.
_AHEAD_SECONDS = 0.01
_MOST_AHEAD = 1024

_lock = threading.Lock()
# Pools that have been started and have not ended: these end with the interpreter.
_open: set[Pool] = set()
_exiting = False


class Pool:
    """Lives as long as it has tasks, though its executor be gone.

    Its lock may be taken again by the thread that has it: the engine may let go of a task at any time.

    Parameters
    ----------
    make_client : callable
        Makes a client, for the first task.
    broken_error : type
        What is raised once the pool is broken.
    """

    def __init__(self, make_client: Callable[[], Client], broken_error: type[BrokenExecutor]) -> None:
        self.broken: str | None = None
        self.closing = False
        self._make_client = make_client
        self._broken_error = broken_error
        self._client: Client | None = None
        self._owner: int | None = None
        # Tasks that have not begun. Who takes one out of here decides how it ends.
        self._queue: collections.deque[_Item] = collections.deque()
        self._lock = threading.RLock()

    # For the executor

    def submit(self, calls: list[Call]) -> list[Future[Any]]:
        """Run calls; the futures are in their order."""
        if not calls:
            return []
        if not self._is_ours():
            raise RuntimeError("this executor belongs to the process that this one was forked from; make one here")
        items = [_Item(call) for call in calls]
        futures = [item.future for item in items]
        with self._lock:
            self._check_open()
            client = self._client or self._start()
            self._queue.extend(items)
        del items
        self._hand_over(client)
        return futures

    def shutdown(self, wait: bool, cancel: bool) -> None:
        """Take no more calls, and end with the last one."""
        if not self._is_ours():
            return
        client = self._client
        if wait and client is not None and client._session == _core.current_session():
            raise RuntimeError("a task cannot wait for the end of its own executor: give shutdown wait=False")
        with self._lock:
            self.closing = True
        if cancel:
            for item in self._queue.copy():
                item.future.cancel()
        if wait:
            self.end()
        else:
            self.let_go()

    def let_go(self) -> None:
        """Do so in the background. May be called in the middle of anything, so it takes no lock."""
        raise NotImplementedError

    def end(self) -> None:
        """Wait for the tasks, then end the workers."""
        raise NotImplementedError

    def _close(self, client: Client) -> None:
        self._client = None
        client.close()
        with _lock:
            _open.discard(self)

    def _is_ours(self) -> bool:
        return self._owner in (None, os.getpid())

    def _check_open(self) -> None:
        if self.broken:
            raise self._broken_error(self.broken)
        if self.closing:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def _start(self) -> Client:
        self._client = self._make_client()
        self._owner = os.getpid()
        with _lock:
            _open.add(self)
        return self._client

    # For its tasks

    def _hand_over(self, client: Client) -> None:
        """See to it that the tasks of the queue are run."""
        raise NotImplementedError

    def _break(self, why: str) -> None:
        """Fail all tasks that have not begun, and those to come."""
        with self._lock:
            self.broken = self.broken or why
        while self._queue:
            try:
                future = self._queue.popleft().future
            except IndexError:
                # Somebody else has taken the last one.
                return
            if future.set_running_or_notify_cancel():
                future.set_exception(self._broken_error(self.broken))

    def _initializer_failed(self, error: BaseException) -> None:
        from concurrent.futures._base import LOGGER

        if not self.broken:
            LOGGER.critical("Exception in initializer:", exc_info=error)
            self._break(_INITIALIZER_FAILED)


class _Item:
    """A call."""

    __slots__ = ("args", "context", "function", "future", "kwargs")

    def __init__(self, call: Call) -> None:
        self.future: Future[Any] = Future()
        self.function, self.args, self.kwargs = call
        self.context = contextvars.copy_context()


# In threads


class ThreadPool(Pool):
    """What the engine runs are servers of the queue: as many as there are threads, while there are tasks.

    Parameters
    ----------
    make_client : callable
    prepare : callable, optional
        Called in each thread before its first task.
    threads : int
        How many there are.
    """

    def __init__(self, make_client: Callable[[], Client], prepare: Callable[[], object] | None, threads: int) -> None:
        super().__init__(make_client, BrokenThreadPool)
        self._prepare = prepare
        self._here = threading.local()
        # Threads that serve nothing.
        self._free = self._threads = threads
        # Told when all are free.
        self._idle = threading.Condition(self._lock)
        self._end = threading.Lock()
        self._is_new = prepare is None
        self._has_begun = threading.Event()

    def let_go(self) -> None:
        if not self._is_ours():
            return
        self.closing = True
        try:
            _thread.start_new_thread(self.end, ())
        except RuntimeError:
            # The interpreter is ending, and has waited for the tasks already.
            return

    def end(self) -> None:
        # Who comes second waits, too: the interpreter must not end while the first is at it.
        with self._end:
            with self._idle:
                while self._free < self._threads:
                    self._idle.wait()
            if self._client is not None:
                self._close(self._client)

    def serve(self, client: Client) -> None:
        """Run tasks in the thread that calls this, until there are none."""
        self._make_ready()
        session = client._session
        while not self._is_served():
            if session.closed:
                self._break(_SHUT_DOWN)
                continue
            try:
                item = self._queue.popleft()
            except IndexError:
                continue
            runs = item.future.set_running_or_notify_cancel()
            if self._is_new:
                self._is_new = False
                self._has_begun.set()
            if runs:
                _run(item)
            # An error of the task refers to this frame.
            del item

    def dropped(self) -> None:
        """The engine has let go of a server."""
        self._break(_SHUT_DOWN)
        self._has_begun.set()
        self._is_served()

    def _is_served(self) -> bool:
        """Whether the queue is empty; then the thread that asks is free."""
        if self._queue:
            return False
        with self._idle:
            if self._queue:
                return False
            self._free += 1
            if self._free == self._threads:
                self._idle.notify_all()
            return True

    def _hand_over(self, client: Client) -> None:
        if not self._free:
            return
        with self._lock:
            servers = min(self._free, len(self._queue))
            self._free -= servers
        if not servers:
            return
        tasks = [(_Server(self, client), (), None) for _ in range(servers)]
        try:
            handles = client._session.submit(_core.Handle, tasks)
        except RuntimeError as error:
            # The servers are dropped, which fails the futures, too.
            raise BrokenThreadPool(f"{_SHUT_DOWN}: {error}") from error
        for handle in handles:
            handle.keep()
        if self._is_new:
            # As with a thread of the standard library, which has begun once it is started: the first task is not kept
            # waiting, and cancelled, by a caller that goes on without a pause.
            self._has_begun.wait(_BEGIN_SECONDS)
            self._is_new = False

    def _make_ready(self) -> None:
        if self._prepare is None or hasattr(self._here, "is_ready"):
            return
        self._here.is_ready = True
        try:
            self._prepare()
        except BaseException as error:
            self._initializer_failed(error)


def _run(item: _Item) -> None:
    try:
        result = item.context.run(item.function, *item.args, **item.kwargs)
    except BaseException as error:
        item.future.set_exception(error)
        del item
    else:
        item.future.set_result(result)


class _Server:
    """What the engine runs. It lets go of it after that, or instead."""

    __slots__ = ("_client", "_pool")

    def __init__(self, pool: ThreadPool, client: Client) -> None:
        self._pool: ThreadPool | None = pool
        self._client = client

    def __call__(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.serve(self._client)

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool.dropped()


# In worker processes


class ProcessPool(Pool):
    """A thread hands tasks over as others end, and ends their futures.

    Parameters
    ----------
    make_client : callable
    prepare : callable, optional
        Called in each worker process before its first task.
    workers : int
        How many there are.
    """

    def __init__(self, make_client: Callable[[], Client], prepare: Callable[[], object] | None, workers: int) -> None:
        super().__init__(make_client, BrokenProcessPool)
        self._caller = None if prepare is None else PreparedCaller(prepare)
        self._pace = _Pace(workers + 1)
        self._serial = itertools.count()
        # Handed over and not ended; those of them that are watched.
        self._there = 0
        self._watched = 0
        self._watch = _core.Watch()
        # Wakes the thread while nothing is watched. It takes no lock to send there.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def let_go(self) -> None:
        self.closing = True
        self._wake.put(None)

    def end(self) -> None:
        self._wake.put(None)
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> Client:
        client = super()._start()
        self._thread = threading.Thread(target=self._serve, args=(client,), name="rustdask-executor", daemon=True)
        self._thread.start()
        return client

    def _hand_over(self, client: Client) -> None:
        """Hand over as many tasks as there is room for."""
        with self._lock:
            items = []
            while self._queue and self._there < self._pace.ahead:
                item = self._queue.popleft()
                if item.future.set_running_or_notify_cancel():
                    self._there += 1
                    items.append(item)
        if items and not self._send(client, items):
            # One of them cannot be pickled. The others are not to blame.
            for item in items:
                self._send(client, [item])

    def _send(self, client: Client, items: list[_Item]) -> bool:
        """False if one of several tasks cannot be sent. A single one fails."""
        tasks = [self._task(item) for item in items]
        keys = [f"{function_name(item.function)}-{next(self._serial)}" for item in items]
        try:
            tickets = client._session.submit(_Ticket, tasks, keys=keys)
        except BaseException as error:
            if len(items) > 1:
                return False
            self._fail(items[0].future, error, is_lost=client.closed)
            with self._lock:
                self._there -= 1
            # It may have been the last.
            self._wake.put(None)
            return True
        for ticket, item in zip(tickets, items, strict=True):
            ticket.ends = item.future
        with self._lock:
            self._watched += len(tickets)
        self._watch.add(tickets)
        self._wake.put(None)
        return True

    def _task(self, item: _Item) -> Call:
        """Return what the engine runs. Tasks that it gets at once share a function."""
        if self._caller is not None:
            return self._caller, (item.function, *item.args), item.kwargs
        if _can_be_shared(item.function):
            return item.function, item.args, item.kwargs
        return call, (item.function, *item.args), item.kwargs

    # The thread

    def _serve(self, client: Client) -> None:
        try:
            while self._has_tasks():
                self._take(client, self._watch.next())
        except BaseException as error:
            # Such as the end of the interpreter, without a word to this pool.
            self._break(f"{_SHUT_DOWN}: {error}")
        self._close(client)

    def _has_tasks(self) -> bool:
        """Wait until there is a task to watch. False when there is not going to be one."""
        while True:
            with self._lock:
                if self._watched:
                    return True
                if self.closing and not self._queue and not self._there:
                    return False
            self._wake.get()

    def _take(self, client: Client, tickets: list[_Ticket]) -> None:
        with self._lock:
            self._there -= len(tickets)
            self._watched -= len(tickets)
        self._pace.count(len(tickets))
        # Before the results: callbacks may take their time.
        self._hand_over(client)
        for ticket in tickets:
            self._resolve(ticket)

    def _resolve(self, ticket: _Ticket) -> None:
        try:
            result = ticket.value_or_error()
        except BaseException as error:
            # A result that cannot be unpickled.
            ticket.ends.set_exception(error)
            return
        if ticket.state() == "finished":
            ticket.ends.set_result(result)
        else:
            self._fail(ticket.ends, result, is_lost=ticket.state() == "cancelled")

    def _fail(self, future: Future[Any], error: BaseException, is_lost: bool) -> None:
        if isinstance(error, InitializerFailed):
            self._initializer_failed(error.__cause__ or error)
            error = BrokenProcessPool(_INITIALIZER_FAILED)
        elif is_lost:
            self._break(_SHUT_DOWN)
            error = BrokenProcessPool(_SHUT_DOWN)
        elif isinstance(error, WorkerCrashed):
            error = WorkerCrashedAlone(**vars(error))
        future.set_exception(error)


class WorkerCrashedAlone(WorkerCrashed, BrokenProcessPool):
    """The `WorkerCrashed` of executors, for those who expect the standard library's error. The executor goes on."""


class _Ticket(EngineFuture):
    """The engine's future. `ends`: the one that ends with it."""

    __slots__ = ("ends",)

    ends: Future[Any]

    def value_or_error(self) -> Any:
        """Return the result, or the error, without raising it: that would tie its frames to the futures."""
        kind, details, cause = self.outcome()
        return details if kind == "finished" else self._failure(kind, details, cause)


class _Pace:
    """How many tasks to hand over: as many as end in a short time, and at least so many that no worker waits.

    Parameters
    ----------
    least : int
    """

    def __init__(self, least: int) -> None:
        self.ahead = least
        self._least = least
        self._ended = 0
        self._since = time.monotonic()

    def count(self, ended: int) -> None:
        """Look at the time whenever as many tasks have ended as lay ready."""
        self._ended += ended
        if self._ended < self.ahead:
            return
        now = time.monotonic()
        seconds = now - self._since
        if seconds < _AHEAD_SECONDS / 2:
            self.ahead = min(2 * self.ahead, _MOST_AHEAD)
        elif seconds > _AHEAD_SECONDS:
            self.ahead = max(self.ahead // 2, self._least)
        self._ended, self._since = 0, now


def _can_be_shared(function: Any) -> bool:
    """Whether it holds nothing that one call may change for the next."""
    if type(function) is types.FunctionType:
        return function.__closure__ is None
    return type(function) is types.BuiltinFunctionType and isinstance(function.__self__, types.ModuleType)


# The end of the interpreter, and forks


def _end_all() -> None:
    global _exiting
    with _lock:
        _exiting = True
        pools = list(_open)
    for pool in pools:
        pool.closing = True
        pool.end()


def _forget_all() -> None:
    """In a forked process: it has none of the threads that would end these pools."""
    _lock.release()
    _open.clear()


# Before the interpreter joins its threads, as the standard library's executors; `atexit` would be too late.
threading._register_atexit(_end_all)  # type: ignore[attr-defined]
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_forget_all)
