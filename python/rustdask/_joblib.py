"""The joblib backend.

Each `joblib.Parallel` object gets a backend instance of its own, whichever way the backend was named, so that
what the instance knows of a running call cannot be another call's. A call opens with its first
batch and ends in `stop_call` or `abort_everything`.

Who reads the outcomes: the caller, in `retrieval_context`, when the results are wanted as a list;
otherwise (generators, ``timeout``) the core's background reader, while joblib polls.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any

from joblib import parallel as joblib_parallel
from joblib._parallel_backends import FallbackToBackend, ParallelBackendBase
from joblib.parallel import Parallel, parallel_config, register_parallel_backend

from rustdask import _core
from rustdask._cores import CoreBudget, core_budget, parse_memory

# Not where they are needed: tasks in threads may fail because the interpreter ends, which is no time for imports. Those
# would have a script exit with 1 that Ctrl-C has ended, since CPython notes that where evaluating a string clears it.
from rustdask._errors import annotate_exception, explain_pickling_error, unpack_exception
from rustdask._exceptions import TaskFailure, TaskTimeout, WorkerCrashed
from rustdask._items import ItemRunner, function_name
from rustdask._payload import RunOptions
from rustdask._worker_rank import worker_rank, worker_share

_THREAD_BATCH_SECONDS = 1e-3
_PROCESS_BATCH_SECONDS = 2e-3
_MAX_BATCH = 4096
_MAX_BATCH_OF_ARRAYS = 4
_CRASH_RETRIES = 2
"""A task that ends its worker is run again this often."""

_PRELOADED = ("cloudpickle", "numpy", "joblib")
_PRELOADED_IF_LOADED = ("scipy", "threadpoolctl", "pandas", "polars", "sklearn", "sklearn.base", "sklearn.utils",
                        "sklearn.model_selection", "sklearn.ensemble", "sklearn.linear_model", "sklearn.svm",
                        "sklearn.pipeline", "sklearn.tree")  # fmt: skip

FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()


class _DefaultMode(str):
    """joblib's default for ``mmap_mode``, told apart from an explicit ``"r"``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def _mark_default_mmap_mode() -> None:
    # joblib passes "r" on whether the user asked for it or not, and rustdask maps
    # copy-on-write unless asked. The marked default is equal to the one it stands for.
    sentinel = joblib_parallel.default_parallel_config["mmap_mode"]
    if not isinstance(sentinel.default_value, _DefaultMode):
        object.__setattr__(sentinel, "default_value", _DefaultMode(sentinel.default_value))


@functools.lru_cache(maxsize=1)
def cores() -> CoreBudget:
    """Return the core budget of this process; looked up once."""
    return core_budget()


class _Outcome:
    """What joblib's callback is given, and gives back to `retrieve_result_callback`."""

    __slots__ = ("error", "value")

    def __init__(self, value: Any, error: BaseException | None) -> None:
        self.value = value
        self.error = error


class _Batch:
    """What was submitted at once."""

    __slots__ = ("callback", "items", "single")

    def __init__(self, callback: Callable[[Any], Any] | None, items: list[Any], single: bool) -> None:
        self.callback = callback
        self.items = items
        self.single = single


class _Consumed(list[Any]):
    """Results of a batch of a generator call, which tell when they are taken."""

    def __init__(self, results: list[Any], taken: Callable[[int, int], None], size: int) -> None:
        super().__init__(results)
        self._taken = taken
        self._size = size

    def __iter__(self) -> Iterator[Any]:
        self._taken(len(self), self._size)
        return super().__iter__()


class RustdaskBackend(ParallelBackendBase):  # type: ignore[misc]
    """Run joblib's calls on native threads or worker processes.

    Parameters
    ----------
    nesting_level : int, optional
        How many calls this one stands in; joblib sets it.
    inner_max_num_threads : int, optional
        Most threads that BLAS, OpenMP and the like use in each worker process. By default each
        worker gets its share of the cores.
    mode : {"threads", "processes"}, optional
        Where tasks run. By default in worker processes, and in threads where joblib is told
        ``prefer="threads"`` or ``require="sharedmem"``, in nested calls, and on free-threaded Python.
    task_timeout : float, optional
        Longest run time of one task, in seconds.
    retries : int, default=0
        How often a task that raised is run again.
    on_error : {"raise", "return"}, default="raise"
        With "return", a `TaskFailure` stands in the place of each task that failed.
    progress : bool or callable, optional
        Show a progress bar, or call the callable with a dict now and then. ``RUSTDASK_PROGRESS=1`` does the former.
    max_pending : int, optional
        In generator calls: begin no more tasks while so many results wait to be taken.
        By default a few batches for each worker.
    max_pending_bytes : int or str, optional
        As `max_pending`, by the size of the results.
    memory_limit : int or str, optional
        Private memory that a worker process may use, such as ``"2GB"``. A task that goes over it fails with
        `WorkerCrashed`.
    initializer : callable, optional
        Called in each worker process before its first task of such a call.
    initargs : tuple, default=()
        Arguments of the initializer.
    idle_worker_timeout : float, default=300
        Worker processes that have had nothing to do for so many seconds end.
    seed : int or sequence of int, optional
        Give each task a random number stream of its own, see `rng`. In worker processes the global generators of
        `random` and numpy are seeded from it, too.

    Raises
    ------
    ValueError
        If an option has a value that it cannot have.
    TypeError
        If there is no option of that name.
    """

    supports_inner_max_num_threads = True
    supports_retrieve_callback = True
    supports_sharedmem = True
    uses_threads = True
    default_n_jobs = -1

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **options: Any
    ) -> None:
        self.nesting_level = nesting_level
        self.inner_max_num_threads = inner_max_num_threads
        self.backend_kwargs = _checked(options)
        self._cores: int | None = None
        self._owner: Parallel | None = None
        self._call: _Call | None = None
        self._plan: _Plan | None = None
        self._nested: RustdaskBackend | None = None

    # How many

    def _budget(self) -> int:
        return self._cores if self._cores is not None else cores().count

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many tasks run at once, as joblib defines it."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            n_jobs = self.default_n_jobs
        if n_jobs < 0:
            return max(self._budget() + 1 + n_jobs, 1)
        return n_jobs

    # The life of a call, in joblib's order

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        **options: Any,
    ) -> int:
        """Prepare for calls of a `Parallel` object; return how many tasks it may run at once."""
        if self._owner is not parallel:
            raise FallbackToBackend(self._own_instance(parallel))
        self.parallel = parallel
        self._nested = None
        self._plan = plan = _Plan(self, self.effective_n_jobs(n_jobs), prefer, require, options)
        # With one job, joblib runs tasks itself, and knows nothing of progress, retries and the like.
        return 2 if plan.n_jobs == 1 and plan.needs_engine else plan.n_jobs

    def _own_instance(self, parallel: Any) -> RustdaskBackend:
        own = type(self)(self.nesting_level, self.inner_max_num_threads, **self.backend_kwargs)
        own._cores = self._cores
        own._owner = parallel
        return own

    def start_call(self) -> None:
        """Open a call."""
        assert self._plan is not None
        self._call = _Call(self._plan, self.get_nested_backend()[0])

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> Any:
        """Hand a batch over; `callback` hears of its outcome, whatever that is."""
        items = getattr(func, "items", None)
        batch = _Batch(callback, [(func, (), {})] if items is None else items, items is None)
        if self._call is None:
            self.start_call()
            assert self._call is not None
        self._call.submit(batch)
        return batch

    apply_async = submit

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Wait for the whole call, where its results are wanted as a list."""
        call = self._call
        if call is not None and not call.background and not getattr(self.parallel, "_aborting", False):
            call.wait()
        yield

    def retrieve_result_callback(self, out: _Outcome) -> Any:
        """Return a batch's results, or raise what it failed with."""
        if out.error is not None:
            raise out.error
        return out.value

    def stop_call(self) -> None:
        """Close the call."""
        if self._call is not None:
            self._call.close()
            self._call = None

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End what runs. The workers of other calls, and the pool, go on."""
        self.stop_call()
        # joblib would run what it had taken from the iterator and not handed over in the next call.
        leftovers = getattr(self.parallel, "_ready_batches", None)
        while leftovers is not None and not leftovers.empty():
            leftovers.get(block=False)

    def terminate(self) -> None:
        """Close the call; the workers stay for the next."""
        self.stop_call()

    # Batches and nesting

    def compute_batch_size(self) -> int:
        """Return how many tasks to hand over at once: about a millisecond's worth."""
        return 1 if self._call is None else self._call.batch_size()

    def get_nested_backend(self) -> tuple[ParallelBackendBase, int | None]:
        """Return what calls inside tasks use: rustdask, within the task's share of the cores."""
        if self._nested is None:
            n_jobs = 1 if self._plan is None else self._plan.n_jobs
            self._nested = _rebuild((self.nesting_level or 0) + 1, None, max(1, self._budget() // n_jobs), {})
        return self._nested, None

    def __reduce__(self) -> Any:
        return _rebuild, (self.nesting_level, self.inner_max_num_threads, self._cores, self.backend_kwargs)


def _rebuild(level: int | None, inner: int | None, share: int | None, options: dict[str, Any]) -> RustdaskBackend:
    backend = RustdaskBackend(level, inner, **options)
    backend._cores = share
    return backend


_OPTIONS: dict[str, Any] = {
    "mode": None,
    "task_timeout": None,
    "retries": 0,
    "on_error": "raise",
    "progress": None,
    "max_pending": None,
    "max_pending_bytes": None,
    "memory_limit": None,
    "initializer": None,
    "initargs": (),
    "idle_worker_timeout": 300.0,
    "seed": None,
}

_NUMBERS: dict[str, tuple[type, int]] = {
    "task_timeout": (Real, 0),
    "retries": (Integral, 0),
    "max_pending": (Integral, 1),
    "idle_worker_timeout": (Real, 0),
}
"""Type and least value of options that are numbers."""

_JOBLIB_OPTIONS = frozenset({"max_nbytes", "mmap_mode", "temp_folder", "verbose", "context"})


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(options.keys() - _OPTIONS.keys())
    if unknown:
        raise TypeError(f"the rustdask backend has no option {unknown[0]!r}; it has {', '.join(sorted(_OPTIONS))}")
    choices = {"mode": (None, "threads", "processes"), "on_error": ("raise", "return")}
    for name, allowed in choices.items():
        if options.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {options[name]!r}")
    for name, (kind, least) in _NUMBERS.items():
        value = options.get(name, _OPTIONS[name])
        if value is not None or name == "retries":
            _check_number(name, value, kind, least)
    parse_memory(options.get("memory_limit"))
    parse_memory(options.get("max_pending_bytes"))
    if options.get("initializer") is not None and not callable(options["initializer"]):
        raise TypeError(f"initializer must be callable, got {options['initializer']!r}")
    if not isinstance(options.get("initargs", ()), (tuple, list)):
        raise TypeError(f"initargs must be a tuple of arguments, got {options['initargs']!r}")
    if options.get("seed") is not None:
        _check_seed(options["seed"])
    return options


def _check_number(name: str, value: Any, kind: type, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        wanted = "a whole number" if kind is Integral else "a number of seconds"
        raise TypeError(f"{name} must be {wanted}, got {value!r}")
    number: Any = value
    # A comparison that is false for NaN.
    if not number >= least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")


def _check_seed(seed: Any) -> None:
    from numpy.random import SeedSequence

    try:
        SeedSequence(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"seed must be a non-negative integer or a sequence of such, got {seed!r}") from error


class _Plan:
    """What a `Parallel` object asks for, in the end."""

    def __init__(
        self,
        backend: RustdaskBackend,
        n_jobs: int,
        prefer: str | None,
        require: str | None,
        options: dict[str, Any],
    ) -> None:
        joblibs = {name: options.pop(name) for name in _JOBLIB_OPTIONS & options.keys()}
        chosen = {**_OPTIONS, **backend.backend_kwargs, **_checked(options)}
        self.n_jobs = n_jobs
        self.level = backend.nesting_level or 0
        self.cores = backend._budget()
        self.share = max(1, self.cores // n_jobs)
        self.inner_threads = backend.inner_max_num_threads
        if self.inner_threads is not None:
            _check_number("inner_max_num_threads", self.inner_threads, Integral, 1)
        self.parallel = backend.parallel
        # A batch of a size that was asked for runs in one place.
        self.divisible = getattr(backend.parallel, "batch_size", "auto") == "auto"
        self.task_timeout: float | None = chosen["task_timeout"]
        self.progress = chosen["progress"]
        self.on_error: str = chosen["on_error"]
        self.max_pending: int | None = chosen["max_pending"]
        self.max_pending_bytes = parse_memory(chosen["max_pending_bytes"])
        self.memory_limit = parse_memory(chosen["memory_limit"])
        self.initializer = chosen["initializer"]
        self.initargs = tuple(chosen["initargs"])
        self.idle_timeout: float | None = chosen["idle_worker_timeout"]
        self.retries: int = chosen["retries"]
        self.seed = chosen["seed"]
        self.max_nbytes: int | None = joblibs.get("max_nbytes", 1 << 20)
        self.mmap_mode = joblibs.get("mmap_mode")
        self.temp_folder = joblibs.get("temp_folder")
        self.threads = self._use_threads(chosen["mode"], prefer, require)

    def _use_threads(self, mode: str | None, prefer: str | None, require: str | None) -> bool:
        if require == "sharedmem" or self.level > 0:
            return True
        if self.n_jobs == 1 and mode is None:
            return self.memory_limit is None and self.initializer is None
        if mode is not None:
            return mode == "threads"
        return prefer == "threads" or FREE_THREADED

    @property
    def needs_engine(self) -> bool:
        """Whether one job alone must run here, and not in joblib's own loop."""
        from rustdask._progress import wanted

        features = (self.task_timeout, self.seed, self.initializer, self.memory_limit)
        return (
            any(feature is not None for feature in features)
            or self.on_error != "raise"
            or self.retries > 0
            or (self.level == 0 and wanted(self.progress))
        )

    @property
    def access(self) -> str:
        """How workers map large arguments."""
        if isinstance(self.mmap_mode, _DefaultMode) or self.mmap_mode is None:
            return "c"
        return "r+" if self.mmap_mode == "w+" else str(self.mmap_mode)

    @property
    def min_out_of_band(self) -> int:
        """Size from which on arrays travel in shared memory; less for those that must be mapped in a certain way."""
        if self.access == "c" or self.max_nbytes is None:
            return 64 << 10
        return min(64 << 10, self.max_nbytes + 1)

    @property
    def options(self) -> RunOptions:
        return RunOptions(self.on_error, self.retries, self.seed, self.seed is not None and not self.threads)


class _Call:
    """One call of a `Parallel` object."""

    def __init__(self, plan: _Plan, nested: RustdaskBackend) -> None:
        self._plan = plan
        self._nested = nested
        parallel = plan.parallel
        self._as_list = getattr(parallel, "return_as", "list") == "list"
        self.background = not self._as_list or getattr(parallel, "timeout", None) is not None
        self._progress = _progress_of(plan)
        self._finished: list[tuple[int, list[Any]]] = []
        self._window = None if self._as_list else _Window(plan, self._pause)
        self._serializer: Any = None
        self._submitted = 0
        self._dispatching = True
        self._began = time.perf_counter()
        # How long joblib took to hand tasks over, our own part of it not counted.
        self._front_end = 0.0
        self._function: str | None = None
        # None once the call is closed: the core refers to this object, and only one of them can let go.
        self._core: _core.Call | None = self._open_threads() if plan.threads else self._open_processes()

    def _open_threads(self) -> _core.Call:
        plan = self._plan
        bare = plan.options == RunOptions()
        self._helps = self._as_list and not self.background and plan.task_timeout is None and not _in_event_loop()
        return _core.Call.threads(
            cap=plan.n_jobs,
            # A worker's main thread takes one of its cores.
            core_budget=cores().count - (worker_rank() is not None),
            on_done=self._on_done,
            divisible=plan.divisible,
            helper=self._helps,
            nested=plan.level > 0,
            background=self.background,
            context=contextvars.copy_context(),
            enter=functools.partial(_enter_thread, self._nested),
            run_item=None if bare else ItemRunner(plan.options),
            substitute=self._substitute if plan.on_error == "return" else None,
            item_timeout=plan.task_timeout,
        )

    def _open_processes(self) -> _core.Call:
        from rustdask._serialize import CallSerializer

        plan = self._plan
        self._helps = False
        self._serializer = CallSerializer(_settings(plan), plan.min_out_of_band)
        return _core.Call.processes(
            cap=plan.n_jobs,
            core_budget=cores().count,
            on_done=self._on_done,
            divisible=plan.divisible,
            background=self.background,
            launch=launch,
            dump=self._dump,
            load=_load,
            crash_retries=_CRASH_RETRIES,
            access=plan.access,
            max_nbytes=plan.max_nbytes,
            folder=plan.temp_folder,
            memory_limit=plan.memory_limit or 0,
            substitute=self._substitute if plan.on_error == "return" else None,
            item_timeout=plan.task_timeout,
            idle_timeout=plan.idle_timeout,
        )

    def _dump(self, items: list[Any], start: int, end: int, index: int) -> Any:
        try:
            return self._serializer.dump(items, start, end, index)
        except Exception as error:
            raise _explained(error, items[start:end]) from error

    def _pause(self, paused: bool) -> None:
        if (core := self._core) is not None:
            core.pause(paused)

    def submit(self, batch: _Batch) -> None:
        self._submitted += len(batch.items)
        if self._function is None and batch.items:
            self._function = function_name(batch.items[0][0])
        began = time.perf_counter()
        if self._serializer is not None:
            self._serializer.note(batch.items)
        if (core := self._core) is not None:
            core.submit(batch.items, batch)
        self._front_end -= time.perf_counter() - began

    def wait(self) -> None:
        core = self._core
        self._dispatching = False
        if core is None:
            return
        self._front_end += time.perf_counter() - self._began
        with parallel_config(backend=self._nested, n_jobs=None) if self._helps else contextlib.nullcontext():
            core.wait()

    def batch_size(self) -> int:
        plan = self._plan
        if plan.task_timeout is not None or plan.max_pending is not None or plan.max_pending_bytes is not None:
            return 1
        core = self._core
        mean = None if core is None else core.mean_item_time()
        if mean is None:
            return 1
        target = _THREAD_BATCH_SECONDS if plan.threads else _PROCESS_BATCH_SECONDS
        size = max(1, min(int(target / max(mean, 1e-7)), _MAX_BATCH))
        if self._serializer is not None and self._serializer.has_own_buffers:
            return min(size, _MAX_BATCH_OF_ARRAYS)
        if self._window is not None:
            # Someone who takes few results of a generator does not want many more computed.
            return min(size, 256) if mean < 50e-6 else 1
        return size

    # Outcomes

    def _on_done(self, batch: _Batch, kind: str, value: Any, index: int) -> bool:
        """Pass a batch's outcome on to joblib; True ends the call."""
        failed = kind != "results"
        if failed:
            outcome = _Outcome(None, self._error(kind, value, index, function_name(batch.items[0][0])))
        else:
            outcome = _Outcome(self._accept(batch, value, index), None)
        if self.background:
            # Nobody is above this to be told of an error but who waits for the batch.
            try:
                self._report(batch, failed, value)
            except BaseException as error:
                outcome, failed = _Outcome(None, error), True
        if batch.callback is not None:
            began = time.perf_counter()
            batch.callback(outcome)
            self._front_end += time.perf_counter() - began
        if not self.background:
            # After the callback: it is what takes the next tasks from the iterator, and finds its end.
            self._report(batch, failed, value)
        return failed

    def _accept(self, batch: _Batch, results: list[Any], index: int) -> Any:
        if self._as_list and not self._plan.threads:
            self._finished.append((index, results))
        if batch.single:
            return results[0]
        return results if self._window is None else self._window.add(results)

    def _report(self, batch: _Batch, failed: bool, results: Any) -> None:
        if self._progress is None:
            return
        count = len(batch.items)
        lost = count if failed else sum(isinstance(result, TaskFailure) for result in results)
        self._progress.set_total(self._total())
        self._progress.update(count, lost)

    def _total(self) -> int | None:
        """How many tasks the call has, as soon as that is known."""
        parallel = self._plan.parallel
        total: int | None = getattr(parallel, "n_tasks", None)
        if total is None and getattr(parallel, "_original_iterator", True) is None and not self._dispatching:
            return self._submitted
        return total

    def _error(self, kind: str, value: Any, index: int, function: str | None) -> BaseException:
        if kind == "remote":
            return unpack_exception(bytes(value))
        if kind == "raised":
            # Nobody is shown the traceback of an exit.
            if not self._plan.threads or isinstance(value, SystemExit):
                return value  # type: ignore[no-any-return]
            return annotate_exception(value)
        if kind == "crashed":
            results = {first + i: result for first, batch in self._finished for i, result in enumerate(batch)}
            return WorkerCrashed(index=index, function=function, results=results, **value)
        if kind == "timed out":
            assert self._plan.task_timeout is not None
            return TaskTimeout(index=index, function=function, timeout=self._plan.task_timeout)
        return RuntimeError(f"no worker process could be started: {value}")

    def _substitute(self, kind: str, value: Any, index: int, items: list[Any]) -> list[Any] | None:
        """Return failures to stand for the items of a part that failed as a whole."""
        if kind == "no workers":
            return None
        failures = []
        for offset, (function, _, _) in enumerate(items):
            name = function_name(function)
            error = self._error(kind, value, index + offset, name)
            text = getattr(getattr(error, "__cause__", None), "text", "")
            failures.append(TaskFailure(exception=error, index=index + offset, function=name, traceback=text))
        return failures

    def close(self) -> None:
        core, self._core = self._core, None
        if core is None:
            return
        core.close()
        self._finished.clear()
        if self._progress is not None:
            self._dispatching = False
            self._progress.set_total(self._total())
            self._progress.close()
        _remember(self._plan, core, self._function, time.perf_counter() - self._began, self._front_end)


def _enter_thread(nested: RustdaskBackend) -> None:
    """Prepare a pool thread: calls inside tasks stay with rustdask."""
    parallel_config(backend=nested, n_jobs=None)


class _Window:
    """Backpressure of generator calls: holds tasks back while too many results wait to be taken.

    The reader adds, the consumer takes; results of tasks that were held back and those that run
    arrive all the same, so a consumer that waits for one of them is not held up.
    """

    def __init__(self, plan: _Plan, pause: Callable[[bool], None]) -> None:
        self._pause = pause
        self._count_results = plan.max_pending is not None
        self._limit = plan.max_pending if plan.max_pending is not None else 4 * plan.n_jobs
        self._max_bytes = plan.max_pending_bytes
        self._lock = threading.Lock()
        self._pending = 0
        self._bytes = 0
        self._paused = False

    def add(self, results: list[Any]) -> _Consumed:
        size = 0 if self._max_bytes is None else sum(map(_size_of, results))
        self._change(len(results), size)
        return _Consumed(results, lambda count, size: self._change(-count, -size), size)

    def _change(self, count: int, size: int) -> None:
        with self._lock:
            self._pending += count if self._count_results else (1 if count > 0 else -1)
            self._bytes += size
            paused = self._pending >= self._limit or (self._max_bytes is not None and self._bytes >= self._max_bytes)
            changed = paused != self._paused
            self._paused = paused
            if changed:
                self._pause(paused)


def _size_of(value: Any) -> int:
    return int(getattr(value, "nbytes", 0)) or sys.getsizeof(value)


def _in_event_loop() -> bool:
    """Whether this thread runs an event loop: then a task that starts its own could not run here."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def _progress_of(plan: _Plan) -> Any:
    if plan.level > 0:
        return None
    from rustdask._progress import make_progress, wanted

    return make_progress(plan.progress, None, "rustdask") if wanted(plan.progress) else None


def _explained(error: Exception, items: list[Any]) -> BaseException:
    """Return an error that says what of the items cannot be pickled."""
    from rustdask._serialize import dumps

    if isinstance(error, (OSError, MemoryError)):
        return error
    for function, args, kwargs in items:
        parts = {f"function {function_name(function)}": function}
        parts |= {f"args[{i}]": value for i, value in enumerate(args)}
        parts |= {f"kwargs[{name!r}]": value for name, value in kwargs.items()}
        try:
            dumps((function, args, kwargs))
        except Exception as culprit:
            return explain_pickling_error(parts, culprit, dumps)
    return error


def _load(data: Any, buffers: list[Any]) -> Any:
    return pickle.loads(data, buffers=buffers)


_initializer_keys: dict[bytes, int] = {}
_key_numbers = itertools.count(1)


def worker_settings(share: int, devices: dict[str, list[str]], memory_limit: int | None) -> Any:
    """Return what worker processes are to be like for a caller who asks for nothing else.

    Parameters
    ----------
    share : int
        Cores that each of them may use.
    devices : dict of str to list of str
        Names of the units of resources.
    memory_limit : int or None
        Bytes of private memory that each of them may use.
    """
    from rustdask import _context
    from rustdask._payload import Settings
    from rustdask._serialize import dumps

    snapshot = _context.capture()
    return Settings(
        surroundings=snapshot.dumps(dumps),
        surroundings_key=snapshot.key,
        inner_threads=share,
        cores=share,
        authkey=_authkey(),
        devices=devices,
        kept_bytes=Settings().kept_bytes if memory_limit is None else memory_limit // 8,
    )


def _settings(plan: _Plan) -> Any:
    from rustdask import _context
    from rustdask._payload import Settings
    from rustdask._serialize import dumps

    snapshot = _context.capture()
    initializer = dumps((plan.initializer, plan.initargs)) if plan.initializer is not None else None
    key = 0
    if initializer is not None:
        key = _initializer_keys.setdefault(initializer, next(_key_numbers))
    return Settings(
        options=plan.options,
        surroundings=snapshot.dumps(dumps),
        surroundings_key=snapshot.key,
        initializer=initializer,
        initializer_key=key,
        inner_threads=plan.inner_threads if plan.inner_threads is not None else _default_inner_threads(plan),
        cores=plan.share,
        authkey=_authkey(),
    )


def _default_inner_threads(plan: _Plan) -> int:
    for variable in RustdaskBackend.MAX_NUM_THREADS_VARS:
        value = os.environ.get(variable, "")
        if value.isdecimal():
            return int(value)
    return plan.share


def _authkey() -> bytes | None:
    process = sys.modules.get("multiprocessing.process")
    return None if process is None else bytes(process.current_process().authkey)


def launch() -> tuple[str, list[str], bytes]:
    """Say how to start the template process."""
    from rustdask import _context, _template

    _context.set_baseline()
    spawn = os.environ.get("RUSTDASK_START", "fork") == "spawn"
    preload = [*_PRELOADED, *(name for name in _PRELOADED_IF_LOADED if name in sys.modules)]
    arguments = [*_template.interpreter_flags(), "-c", _template.BOOTSTRAP]
    return sys.executable, arguments, _template.greeting(preload, spawn=spawn)


def configure_worker(share: int) -> None:
    """In a worker process: have calls inside tasks run in threads of the worker, on its share of the cores."""
    nested = _rebuild(1, None, share, {})
    cores.cache_clear()
    os.environ["RUSTDASK_CORES"] = str(share)
    _register()
    parallel_config(backend=nested, n_jobs=None)


# The last call, for explain()

_last: tuple[_core.CallStats, str | None, bool, int, float, float] | None = None


def _remember(plan: _Plan, core: _core.Call, function: str | None, wall: float, front_end: float) -> None:
    global _last
    if plan.level == 0:
        _last = core.take_stats(), function, plan.threads, plan.n_jobs, wall, front_end


def last_stats() -> dict[str, Any] | None:
    """Return the figures of the last call that ended in this process, as `Explanation` takes them."""
    if _last is None:
        return None
    figures, function, threads, n_jobs, wall, front_end = _last
    stats: dict[str, Any] = {
        **figures.as_dict(),
        "function": function,
        "mode": "threads" if threads else "processes",
        "n_jobs": n_jobs,
        "wall": wall,
        "front_end": max(front_end, 0.0),
    }
    on_cpu, blocked = stats.pop("on_cpu"), stats.pop("blocked")
    if stats["mode"] == "threads":
        for key in ("pickling", "unpickling", "results"):
            del stats[key]
        if not FREE_THREADED:
            # An estimate: a thread can wait for the GIL only while another one of the call's runs.
            stats["gil_wait"] = min(blocked, on_cpu * (stats["n_jobs"] - 1))
            stats["running"] -= stats["gil_wait"]
    # Those batches that took much longer than usual, and a good part of the call, by their first task.
    seconds = sorted(stats["task_seconds"])
    least = max(2 * seconds[len(seconds) // 2] if seconds else 0.0, stats["wall"] / 20)
    stats["stragglers"] = [(index, time) for index, time in stats.pop("slowest") if time > least]
    return stats


# Registration

_defaults: tuple[Any, Any, Any] | None = None


def _register() -> None:
    _mark_default_mmap_mode()
    register_parallel_backend("rustdask", RustdaskBackend)


def install() -> None:
    """Make rustdask joblib's default backend in this process.

    Calls that name no backend then run on rustdask, those that prefer threads or require shared memory on its
    threads. ``RUSTDASK_DEFAULT=1`` does the same when rustdask is imported.

    Examples
    --------
    >>> import joblib, rustdask
    >>> rustdask.install()
    >>> joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(i) for i in (-1, 2))
    [1, 2]
    >>> rustdask.uninstall()
    """
    global _defaults
    names = ("DEFAULT_BACKEND", "DEFAULT_THREAD_BACKEND", "DEFAULT_PROCESS_BACKEND")
    if _defaults is None:
        _defaults = tuple(getattr(joblib_parallel, name, None) for name in names)  # type: ignore[assignment]
    for name in names:
        setattr(joblib_parallel, name, "rustdask")


def uninstall() -> None:
    """Give joblib its own default backends back."""
    global _defaults
    if _defaults is None:
        return
    names = ("DEFAULT_BACKEND", "DEFAULT_THREAD_BACKEND", "DEFAULT_PROCESS_BACKEND")
    for name, value in zip(names, _defaults, strict=True):
        setattr(joblib_parallel, name, value)
    _defaults = None


_register()
if (_share := worker_share()) is not None:
    configure_worker(_share)
