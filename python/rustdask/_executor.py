"""`concurrent.futures.Executor` over a pool of its own, by the rules of the standard library's executors."""

from __future__ import annotations

import collections
import functools
import itertools
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor as _Executor
from concurrent.futures import Future
from typing import Any, TypeVar

from rustdask._client import Client
from rustdask._executor_pools import Call, Pool, ProcessPool, ThreadPool
from rustdask._executor_worker import call_each
from rustdask._joblib import cores

__all__ = ["Executor"]

_T = TypeVar("_T")
_Results = Generator[Any, None, None]

# As in the standard library: threads often wait for something else than a core.
_MORE_THREADS = 4
_MOST_THREADS = 32


class Executor(_Executor):
    """Runs calls in worker processes or threads, as the executors of `concurrent.futures` do.

    A task that ends its worker process fails alone, with a `WorkerCrashed` that is also a
    `concurrent.futures.process.BrokenProcessPool`. The executor goes on.

    Parameters
    ----------
    max_workers : int, optional
        How many tasks run at once. By default as many as there are cores; threads, four more, but not above 32.
    processes : bool, default=True
        Run tasks in worker processes, not in threads of this one.
    initializer : callable, optional
        Called in each worker before its first task. If it raises, the executor is broken: all that has not begun fails
        with `concurrent.futures.BrokenExecutor`, and nothing more can be submitted.
    initargs : tuple
        Arguments of the initializer.
    memory_limit : int or str, optional
        As of `Client`.

    Examples
    --------
    >>> from rustdask import Executor
    >>> with Executor(max_workers=2) as executor:
    ...     future = executor.submit(pow, 2, 10)
    ...     print(future.result(), list(executor.map(abs, [-1, -2, -3])))
    1024 [1, 2, 3]
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        processes: bool = True,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        memory_limit: int | str | None = None,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._max_workers = max_workers or _default_workers(processes)
        self._processes = processes
        client = functools.partial(
            Client, self._max_workers, processes=processes, memory_limit=memory_limit, set_as_default=False
        )
        prepare = None if initializer is None else functools.partial(initializer, *initargs)
        kind = ProcessPool if processes else ThreadPool
        self._pool: Pool = kind(client, prepare, self._max_workers)
        weakref.finalize(self, self._pool.let_go).atexit = False

    @property
    def _broken(self) -> str | None:
        """Why it is broken, under the name that the standard library's executors have for it."""
        return self._pool.broken

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Run a call.

        Parameters
        ----------
        fn : callable
        *args, **kwargs
            Its arguments.

        Returns
        -------
        concurrent.futures.Future

        Raises
        ------
        RuntimeError
            After `shutdown`, at the end of the interpreter, and in a forked process.
        concurrent.futures.BrokenExecutor
            If an initializer has failed.
        """
        return self._pool.submit([(fn, args, kwargs)])[0]

    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[_T]:
        """Run a call for each of many arguments, and iterate over the results in order.

        Parameters
        ----------
        fn : callable
        *iterables : iterable
            Of its positional arguments, taken together as by ``zip``.
        timeout : float, optional
            Seconds from now in which the results must be there.
        chunksize : int, default=1
            So many calls are one task of a worker process. In threads it means nothing.
        buffersize : int, optional
            Submit no more tasks than so many ahead of the results that have been taken. By default, all at once.

        Returns
        -------
        iterator

        Raises
        ------
        TimeoutError
            While iterating.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        _check_buffer_size(buffersize)
        deadline = None if timeout is None else timeout + time.monotonic()
        if not self._processes or chunksize == 1:
            return self._results(_calls(fn, iterables), buffersize, deadline)
        return _flat(self._results(_chunked(fn, iterables, chunksize), buffersize, deadline))

    def _results(self, calls: Iterator[Call], buffersize: int | None, deadline: float | None) -> _Results:
        """Submit calls now, and return an iterator over their results."""
        first = list(calls if buffersize is None else itertools.islice(calls, buffersize))
        futures = collections.deque(self._pool.submit(first))
        # Who has calls left to submit keeps the executor.
        return _taken(futures, None if buffersize is None else self, calls, deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and end the workers once those that were taken have ended.

        Parameters
        ----------
        wait : bool, default=True
            Return when that is so. Otherwise it happens in the background.
        cancel_futures : bool, default=False
            Cancel what has not begun.

        Raises
        ------
        RuntimeError
            In a task of this executor, with ``wait``.
        """
        self._pool.shutdown(wait, cancel_futures)


def _default_workers(processes: bool) -> int:
    count = cores().count
    return count if processes else min(_MOST_THREADS, count + _MORE_THREADS)


def _check_buffer_size(size: Any) -> None:
    if size is None:
        return
    if not isinstance(size, int):
        raise TypeError("buffersize must be an integer or None")
    if size < 1:
        raise ValueError("buffersize must be None or > 0")


# Many calls at once


def _taken(
    futures: collections.deque[Future[Any]], executor: Executor | None, calls: Iterator[Call], deadline: float | None
) -> _Results:
    """Iterate over results in order. The executor, if there is one, gets another call for each result that is taken."""
    try:
        while futures:
            # No name holds the future while its result is used.
            yield _result_or_cancel(futures.popleft(), deadline)
            if executor is not None:
                futures.extend(executor._pool.submit(list(itertools.islice(calls, 1))))
    finally:
        for future in futures:
            future.cancel()


def _result_or_cancel(future: Future[Any], deadline: float | None) -> Any:
    try:
        return future.result(None if deadline is None else deadline - time.monotonic())
    finally:
        future.cancel()
        # An exception refers to this frame.
        del future


def _calls(fn: Callable[..., Any], iterables: Sequence[Iterable[Any]]) -> Iterator[Call]:
    return ((fn, args, {}) for args in zip(*iterables, strict=False))


def _chunked(fn: Callable[..., Any], iterables: Sequence[Iterable[Any]], size: int) -> Iterator[Call]:
    arguments = zip(*iterables, strict=False)
    while chunk := list(itertools.islice(arguments, size)):
        yield call_each, (fn, chunk), {}


def _flat(chunks: _Results) -> Iterator[Any]:
    try:
        for chunk in chunks:
            chunk.reverse()
            while chunk:
                # Nothing here refers to a result that has been handed out.
                yield chunk.pop()
    finally:
        chunks.close()
