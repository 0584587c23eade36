"""The client: submits calls and graphs of calls to workers of its own.

A client has a pool: threads of this process, or worker processes. The one that was made last is the current one, which
`get_client` returns; inside a task, that is the client of the task.
"""

from __future__ import annotations

import functools
import os
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rustdask import _cluster_client, _core
from rustdask._cluster_address import Security
from rustdask._cores import parse_memory
from rustdask._future import Future, all_ended
from rustdask._import_hook import when_imported
from rustdask._joblib import cores, launch, worker_settings
from rustdask._resources import amounts_and_devices
from rustdask._steps import name_of

_open: list[weakref.ref[Client]] = []
_by_session: weakref.WeakValueDictionary[_core.Session, Client] = weakref.WeakValueDictionary()
_default: Client | None = None
_of_tasks: Client | None = None
"""In a worker process: the client that its tasks see."""
_default_lock = threading.Lock()

_FIRST = 1 << 30
"""A priority above those of users."""
_LOOK_AGAIN_SECONDS = 0.002


class Client:
    """Runs functions, and graphs of functions that take each other's results, on workers of its own.

    Parameters
    ----------
    n_workers : int or str, optional
        Worker processes, by default as many as there are cores. With ``processes=False``, as many threads. Or the
        address of a cluster's scheduler, such as ``"tcp://host:8786"``; by default that of ``RUSTDASK_ADDRESS``.
    threads_per_worker : int, optional
        With ``processes=False``, threads for each of `n_workers`, by default one. A worker process runs one task at a
        time: there, it only says for how many cores there is one worker where `n_workers` is not given. They are left
        to the threads of numeric libraries.
    processes : bool, default=True
        Run tasks in worker processes, not in threads of this one.
    memory_limit : int or str, optional
        Memory for each worker process, such as ``"2GB"``. One whose own memory goes over it is ended, and its task
        fails with `WorkerCrashed`. When the results that are kept in shared memory take 60 % of what all workers have,
        the oldest go to disk; while they take 80 %, no task begins. By default, it is the machine's memory.
    resources : dict of str to float or list of str, optional
        What the workers have together, for tasks that ask for it: an amount, such as ``{"GPU": 2}``, or the names of
        devices, such as ``{"GPU": ["0", "3"]}``; see `held_resources`.
    asynchronous : bool, default=False
        For use in an event loop: what would wait is a coroutine.
    local_directory : path, optional
        Where results go that are too much for memory; by default, where temporary files go. There is never a file with
        a name, so nothing is left behind.
    set_as_default : bool, default=True
        Be what `get_client` returns.
    scheduler_file : path, optional
        Of a cluster, written by ``rustdask scheduler --scheduler-file``.
    security : Security, optional
        What proves to a cluster that this client belongs to it; by default the token that the scheduler file has, or
        ``RUSTDASK_TOKEN``.
    timeout : float, default=30
        Seconds to wait for a cluster's scheduler.

    Raises
    ------
    ConnectionError
        If the scheduler cannot be reached, or does not want this client.

    Examples
    --------
    >>> from rustdask import Client
    >>> with Client(n_workers=2) as client:
    ...     futures = client.map(abs, [-1, -2, -3])
    ...     client.submit(sum, futures).result()
    6
    """

    def __init__(
        self,
        n_workers: int | str | None = None,
        threads_per_worker: int | None = None,
        processes: bool = True,
        memory_limit: int | str | None = None,
        resources: Mapping[str, float | Sequence[str]] | None = None,
        asynchronous: bool = False,
        local_directory: str | os.PathLike[str] | None = None,
        set_as_default: bool = True,
        scheduler_file: str | os.PathLike[str] | None = None,
        security: Security | None = None,
        timeout: float = 30.0,
    ) -> None:
        address, n_workers = (n_workers, None) if isinstance(n_workers, str) else (None, n_workers)
        _check_count("n_workers", n_workers)
        _check_count("threads_per_worker", threads_per_worker)
        self.asynchronous = asynchronous
        self.processes = processes
        self.memory_limit = parse_memory(memory_limit)
        self._local_directory = os.fspath(local_directory or tempfile.gettempdir())
        self.resources, self._devices = amounts_and_devices(resources)
        self.threads_per_worker = threads_per_worker or 1
        self._named: weakref.WeakValueDictionary[Any, Future] = weakref.WeakValueDictionary()
        self.address: str | None = None
        if processes and n_workers is None and _cluster_client.is_wanted(address, scheduler_file):
            self.n_workers = 0
            self.address, self._session = _cluster_client.open_session(
                address, scheduler_file, security or Security(), timeout, self.memory_limit
            )
        else:
            self.n_workers = n_workers or max(1, cores().count // self.threads_per_worker)
            self._session = self._open_session()
        _by_session[self._session] = self
        if set_as_default:
            _open.append(weakref.ref(self))

    def _open_session(self) -> _core.Session:
        if not self.processes:
            threads = self.n_workers * self.threads_per_worker
            return _core.Session.threads(workers=threads, resources=self.resources)
        when_imported("dask.config", _set_defaults_of_dask)
        from rustdask._serialize import GraphSerializer

        # Without a reference to the client, which would keep itself alive.
        share = max(1, cores().count // self.n_workers)
        settings = functools.partial(worker_settings, share, self._devices, self.memory_limit)

        return _core.Session.processes(
            workers=self.n_workers,
            launch=launch,
            serializer=GraphSerializer(settings),
            results_limit=self._results_limit(),
            folder=self._local_directory,
            resources=self.resources,
            memory_limit=self.memory_limit or 0,
        )

    @classmethod
    def _of_session(cls, session: _core.Session) -> Client:
        """Return the client of the tasks of this worker process."""
        client = cls.__new__(cls)
        client.asynchronous, client.processes = False, True
        client.address, client.memory_limit, client.resources, client._devices = None, None, {}, {}
        client.n_workers, client.threads_per_worker = session.stats()["workers"], 1
        client._named = weakref.WeakValueDictionary()
        client._session = session
        return client

    @property
    def devices(self) -> dict[str, list[str]]:
        """Names of the units of resources, where they have any."""
        return self._devices

    def _results_limit(self) -> int:
        """Return how many bytes of memory results may take."""
        if self.memory_limit is not None:
            return self.memory_limit * self.n_workers
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    # Submitting

    def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        key: Any = None,
        priority: int = 0,
        retries: int = 0,
        resources: Mapping[str, float] | None = None,
        workers: Iterable[int] | int | None = None,
        pure: bool = False,
        **kwargs: Any,
    ) -> Future:
        """Run a function, as soon as a worker is free and the futures among its arguments have results.

        Parameters
        ----------
        function : callable
        *args, **kwargs
            Its arguments. Futures, also inside of lists, tuples, dicts and sets, arrive as their results.
        key : hashable, optional
            Name of the task. While there is a future for a task of that name, another one for it is returned.
        priority : int, default=0
            Tasks of higher priority go first. Of the same priority, those go first that tasks have submitted, and the
            deepest of these.
        retries : int, default=0
            How often the task is run again when it raises.
        resources : dict of str to float, optional
            What it holds while it runs, such as ``{"GPU": 1}``.
        workers : int or iterable of int, optional
            Workers that may run it, by their names in `scheduler_info`.
        pure : bool, default=False
            The same function and arguments give the same result: name the task after them.

        Returns
        -------
        Future

        Raises
        ------
        RuntimeError
            If the client is closed.
        """
        if not callable(function):
            raise TypeError(f"submit takes a function and its arguments, got {function!r}")
        if pure and key is None:
            key = _token(function, args, kwargs)
        if key is not None and (known := self._known(key)) is not None:
            return known
        options = engine_options(priority, retries, resources, workers)
        keys = None if key is None else [key]
        future: Future = self._session.submit(Future, [(function, args, kwargs)], keys=keys, **options)[0]
        if key is not None:
            self._named[key] = future
        return future

    def map(
        self,
        function: Callable[..., Any],
        *iterables: Iterable[Any],
        key: str | Iterable[Any] | None = None,
        priority: int = 0,
        retries: int = 0,
        resources: Mapping[str, float] | None = None,
        workers: Iterable[int] | int | None = None,
        pure: bool = False,
        **kwargs: Any,
    ) -> list[Future]:
        """Run a function on each of many arguments.

        Parameters
        ----------
        function : callable
        *iterables : iterable
            Of its positional arguments, taken together as by ``zip``.
        key : str or iterable, optional
            Prefix of the names of the tasks, or all of the names.
        priority, retries, resources, workers, pure
            As for `submit`.
        **kwargs
            Further arguments, the same for all.

        Returns
        -------
        list of Future
        """
        if not callable(function):
            raise TypeError(f"map takes a function and iterables of arguments, got {function!r}")
        calls = [(function, args, kwargs) for args in zip(*iterables, strict=False)]
        keys = _keys_of(key, calls, pure)
        options = engine_options(priority, retries, resources, workers)
        if keys is None:
            return self._session.submit(Future, calls, **options)
        known: dict[Any, Any] = {name: self._known(name) for name in dict.fromkeys(keys)}
        new = {name: call for name, call in zip(keys, calls, strict=True) if known[name] is None}
        known.update(zip(new, self._session.submit(Future, list(new.values()), keys=list(new), **options), strict=True))
        self._named.update({name: known[name] for name in new})
        return [known[name].another(Future) for name in keys]

    def _known(self, key: Any) -> Future | None:
        future = self._named.get(key)
        if future is None or future.status in ("released", "cancelled"):
            return None
        return future.another(Future)

    # Data

    def gather(self, futures: Any, errors: str = "raise") -> Any:
        """Wait for futures and return their results.

        Parameters
        ----------
        futures : Future, or list, tuple, set or dict of futures, or iterator
            Nested as you like.
        errors : {"raise", "skip"}
            Raise what the first failed task raised, or leave failed tasks out of lists.

        Returns
        -------
        object
            Results in the place of futures.
        """
        if errors not in ("raise", "skip"):
            raise ValueError(f"errors must be 'raise' or 'skip', got {errors!r}")
        if not isinstance(futures, (Future, list, tuple, set, dict)):
            futures = list(futures)
        if self.asynchronous:
            return self._gather_later(futures, errors)
        return _gathered(futures, errors)

    async def _gather_later(self, futures: Any, errors: str) -> Any:
        await all_ended(_futures_in(futures))
        return _gathered(futures, errors)

    def scatter(self, data: Any, broadcast: bool = False) -> Any:
        """Put data where tasks can use it, once for all of them.

        Parameters
        ----------
        data : object
            A list, tuple, set or dict is scattered element by element.
        broadcast : bool, default=False
            Send it to all workers at once. On one machine they share its memory anyway.

        Returns
        -------
        Future, or a list, tuple, set or dict of futures
        """
        if type(data) is dict:
            made: Any = {key: self._scatter_one(value) for key, value in data.items()}
        elif type(data) in (list, tuple, set):
            made = type(data)(self._scatter_one(value) for value in data)
        else:
            made = self._scatter_one(data)
        return _ready(made) if self.asynchronous else made

    def _scatter_one(self, value: Any) -> Future:
        return self._session.scatter(Future, value)

    # Control

    def cancel(self, futures: Any, force: bool = False) -> Any:
        """End tasks, and all that depends on them.

        Parameters
        ----------
        futures : Future, or list, tuple, set or dict of futures
        force : bool, default=False
            End a worker process that runs one of them, too. Otherwise what runs is left to its end.
        """
        self._session.cancel(list(_futures_in(futures)), force=force)
        return _ready(None) if self.asynchronous else None

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function on every worker, whatever else they have to do.

        Threads of this process count as one worker.

        Returns
        -------
        dict
            Results, by the names of the workers.
        """
        if self._session.is_upstream:
            raise RuntimeError("a task in a worker process cannot run functions on every worker")
        self._wait_for_workers(None, None)
        pins: dict[int, int | None] = {name: name for name in self._workers()} if self.processes else {0: None}
        futures = {
            name: self.submit(function, *args, workers=pin, priority=_FIRST, **kwargs) for name, pin in pins.items()
        }
        return self.gather(futures)

    def scheduler_info(self) -> dict[str, Any]:
        """Return what the client has.

        Returns
        -------
        dict
            ``workers``: by name, a dict of ``nthreads``, ``memory_limit`` in bytes or None, ``pid`` and ``resources``,
            which all workers have together. ``starting``: workers on their way. ``known``, ``active``: tasks that
            are kept, and those of them that have not ended. With worker processes, ``result_bytes``,
            ``spilled_bytes``: of results in shared memory, and of those that have gone to disk so far. In a
            task of a worker process, only ``active``, of what tasks there have submitted.
        """
        if self.address is not None:
            info = self._session.stats()
            return {"type": "Scheduler", "address": self.address, **info, "workers": _cluster_client.workers_of(info)}
        return {
            "type": "Scheduler",
            "address": "worker processes" if self.processes else "threads of this process",
            "workers": self._workers(),
            **{name: count for name, count in self._session.stats().items() if name != "workers"},
        }

    def _workers(self) -> dict[int, dict[str, Any]]:
        if self.address is not None:
            return _cluster_client.workers_of(self._session.stats())
        common = {"memory_limit": self.memory_limit, "resources": self.resources}
        if not self.processes:
            threads = self.n_workers * self.threads_per_worker
            return {0: {"nthreads": threads, "pid": os.getpid(), **common}}
        running = self._session.workers()
        return {name: {"nthreads": 1, "pid": pid, "rank": rank, **common} for name, rank, pid in running}

    def ncores(self) -> dict[int, int]:
        """Return how many tasks each worker runs at once, by name."""
        return {name: worker["nthreads"] for name, worker in self._workers().items()}

    nthreads = ncores

    def wait_for_workers(self, n_workers: int | None = None, timeout: float | None = None) -> Any:
        """Wait until workers have started.

        Parameters
        ----------
        n_workers : int, optional
            How many; by default all.
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        TimeoutError
            When the time is over before that.
        RuntimeError
            When no more are started, as those before did not start or died at once.
        ValueError
            If there are never to be so many.
        """
        if n_workers is not None and n_workers > self.n_workers and self.address is None:
            raise ValueError(f"this client has {self.n_workers} workers, so there will not be {n_workers}")
        if self.asynchronous:
            import asyncio

            return asyncio.to_thread(self._wait_for_workers, n_workers, timeout)
        return self._wait_for_workers(n_workers, timeout)

    def _wait_for_workers(self, n_workers: int | None, timeout: float | None) -> None:
        wanted = n_workers or self.n_workers or 1
        deadline = None if timeout is None else time.monotonic() + timeout
        while (there := (stats := self._session.stats())["workers"]) < wanted and not self.closed:
            if self.address is None and there + stats["starting"] < wanted:
                raise RuntimeError(f"no worker could be started: {self._session.start_failure}")
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{there} of {wanted} workers have started within {timeout:g} s")
            time.sleep(_LOOK_AGAIN_SECONDS)

    # Dask's collections

    def get(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute keys of a Dask graph; a Dask scheduler function: ``x.compute(scheduler=client.get)``."""
        from rustdask import _dask

        return _dask.get(dsk, keys, client=self, **kwargs)

    def compute(self, collections: Any, **kwargs: Any) -> Any:
        """Compute Dask collections, or `delayed` objects, in the background.

        Parameters
        ----------
        collections : collection, or list or tuple of collections
        **kwargs
            ``priority``, ``retries``, ``resources`` and ``workers``, as of `submit`, for all tasks.

        Returns
        -------
        Future, or list of Future
        """
        from rustdask import _delayed

        if _delayed.are_lazy(collections):
            return _delayed.compute_later(self, collections, **kwargs)
        from rustdask import _dask

        return _dask.compute(self, collections, **kwargs)

    def persist(self, collections: Any, **kwargs: Any) -> Any:
        """Compute Dask collections, or `delayed` objects, in the background, and return such that hold the results."""
        from rustdask import _delayed

        if _delayed.are_lazy(collections):
            return _delayed.persist_later(self, collections, **kwargs)
        from rustdask import _dask

        return _dask.persist(self, collections, **kwargs)

    # Life

    @property
    def closed(self) -> bool:
        """Whether the client was closed."""
        return self._session.closed

    def close(self) -> Any:
        """End the workers. Tasks that have not ended are cancelled.

        In a task of a worker process, nothing is closed: the workers are those of the client that the task belongs to.
        """
        if not self._session.is_upstream:
            self._session.close()
        _open[:] = [ref for ref in _open if ref() not in (None, self)]
        return _ready(None) if self.asynchronous else None

    def __enter__(self) -> Client:
        if self.asynchronous:
            raise TypeError("an asynchronous client is entered with 'async with'")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, Client]:
        return _ready(self).__await__()

    def __repr__(self) -> str:
        what = self.address or ("processes" if self.processes else "threads")
        state = "closed" if self.closed else f"{self.n_workers} {what}"
        return f"<Client: {state}>"


def get_client() -> Client:
    """Return the current client: inside a task, that of the task; otherwise the one that was made last.

    Raises
    ------
    ValueError
        If there is none.
    """
    session = _core.current_session()
    if session is not None:
        return client_of(session)
    for ref in reversed(_open):
        client = ref()
        if client is not None and not client.closed:
            return client
    raise ValueError("there is no client: make one with rustdask.Client()")


def default_client() -> Client:
    """Return the current client, or else one with threads of this process, made on first use."""
    global _default
    try:
        return get_client()
    except ValueError:
        with _default_lock:
            if _default is None or _default.closed or not _default._session.is_ours:
                _default = Client(processes=False, set_as_default=False)
            return _default


def client_of(session: _core.Session) -> Client:
    """Return the client that a session belongs to."""
    client = _by_session.get(session)
    if client is None and session.is_upstream:
        global _of_tasks
        client = _of_tasks = _by_session[session] = Client._of_session(session)
    if client is None:
        raise ValueError("the client is gone; keep a reference to it while its futures are in use")
    return client


def fire_and_forget(futures: Any) -> None:
    """Have tasks run to their end though nobody keeps a future for them.

    Parameters
    ----------
    futures : Future, or list, tuple, set or dict of futures
    """
    for future in _futures_in(futures):
        future.keep()


async def _ready(value: Any) -> Any:
    return value


def _set_defaults_of_dask() -> None:
    from rustdask._dask_defaults import set_defaults

    set_defaults()


def _check_count(name: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be a positive whole number, got {value!r}")


def engine_options(
    priority: int, retries: int, resources: Mapping[str, float] | None, workers: Iterable[int] | int | None
) -> dict[str, Any]:
    """Return the arguments of the engine's `submit` for those of `Client.submit`; none for what is as by default."""
    options: dict[str, Any] = {}
    if priority:
        options["priority"] = priority
    if retries:
        options["retries"] = retries
    if resources:
        options["resources"] = dict(resources)
    if workers is not None:
        options["workers"] = [workers] if isinstance(workers, int) else [int(worker) for worker in workers]
    return options


def _keys_of(key: str | Iterable[Any] | None, calls: list[Any], pure: bool) -> list[Any] | None:
    if pure and key is None:
        return [_token(*call) for call in calls]
    if key is None:
        return None
    if isinstance(key, str):
        return [f"{key}-{at}" for at in range(len(calls))]
    keys = list(key)
    if len(keys) != len(calls):
        raise ValueError(f"there are {len(keys)} keys for {len(calls)} calls")
    return keys


def _token(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    from rustdask._tokenize import tokenize

    return f"{name_of(function)}-{tokenize(function, args, dict(kwargs))}"


def _futures_in(value: Any) -> Iterable[Future]:
    if isinstance(value, Future):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _futures_in(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _futures_in(item)


def _gathered(value: Any, errors: str) -> Any:
    if errors == "raise" and type(value) is list and all(isinstance(item, Future) for item in value):
        results = _core.results(value)
        # Otherwise it is the future that has failed.
        return list(results) if isinstance(results, tuple) else results.result()
    return _gathered_one_by_one(value, errors)


def _gathered_one_by_one(value: Any, errors: str) -> Any:
    if isinstance(value, Future):
        return value.result()
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not _is_skipped(item, errors)}
        return {key: _gathered_one_by_one(item, errors) for key, item in kept.items()}
    if isinstance(value, (list, tuple, set)):
        kept_items = [item for item in value if not _is_skipped(item, errors)]
        return type(value)(_gathered_one_by_one(item, errors) for item in kept_items)
    return value


def _is_skipped(item: Any, errors: str) -> bool:
    if errors != "skip" or not isinstance(item, Future):
        return False
    item.wait()
    return item.status != "finished"
