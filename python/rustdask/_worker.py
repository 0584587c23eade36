"""A worker process: takes tasks from its endpoint, runs them, reports.

Guarantees: what a task changes in its arguments, in its context variables or on the standard streams does
not reach the next task; every outcome is reported, also of what cannot be pickled.
"""

from __future__ import annotations

import contextlib
import contextvars
import fcntl
import itertools
import os
import pickle
import signal
import sys
import threading
import time
from typing import Any

from rustdask import _context, _core, _resources
from rustdask._import_hook import when_imported
from rustdask._items import ItemRunner
from rustdask._nested import NestedSerializer
from rustdask._output import forward_messages
from rustdask._payload import Kind, Reference, Settings, is_plain
from rustdask._worker_rank import set_worker_rank, set_worker_share, worker_share

_SPARE_FD = 200

_COUNTED_BYTES = 4096
"""Smaller results that a worker keeps as objects are not counted."""
_NOTHING = contextlib.nullcontext()


def main(socket: int, stdout: int, stderr: int, rank: int) -> None:
    """Run tasks until the parent's end of the connection closes.

    Parameters
    ----------
    socket, stdout, stderr : int
        File descriptors: the connection, and pipes for what tasks print.
    rank : int
        Number of this worker among those that run at the same time.
    """
    set_worker_rank(rank)
    _core.die_with_parent()
    # What a task starts is ended with its worker.
    os.setpgid(0, 0)
    _take_streams(stdout, stderr)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["RUSTDASK_WORKER_RANK"] = str(rank)
    endpoint = _core.WorkerEndpoint(socket)
    # A process that a task forks is no worker: the connection is not its own.
    os.register_at_fork(after_in_parent=endpoint.forked, after_in_child=lambda: _close_over(socket))
    _Worker(endpoint).run()


def _close_over(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fd)
    os.close(null)


def _take_streams(stdout: int, stderr: int) -> None:
    import faulthandler

    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
    faulthandler.enable(sys.stderr)


class _Worker:
    def __init__(self, endpoint: _core.WorkerEndpoint) -> None:
        self._endpoint = endpoint
        self._pid = os.getpid()
        self._streams = _Streams()
        self._cache: dict[int, Any] = {}
        self._settings_id: int | None = None
        self._settings = Settings()
        self._surroundings: int | None = None
        self._context = contextvars.Context()
        self._initialized: set[int] = set()
        self._limit: int | None = None
        self._modules = 0
        self._call: int | None = None
        self._results = _Results(endpoint)
        self._submits = False

    def run(self) -> None:
        """Run tasks whenever it is this thread's turn, until the parent's end of the connection closes."""
        while self._endpoint.stand_in():
            self._run_tasks()

    def _start_stand_in(self) -> None:
        """Have another thread run tasks: the one that this thread is running is going to wait."""
        try:
            threading.Thread(target=self._stand_in, name="rustdask-stand-in", daemon=True).start()
        except RuntimeError as error:
            raise RuntimeError(
                "a task that waits for others needs a thread of its worker that runs tasks meanwhile, and none can be "
                "started; have fewer tasks wait at a time"
            ) from error

    def _stand_in(self) -> None:
        try:
            self.run()
        except BaseException:
            # Nobody else would run tasks any more.
            sys.excepthook(*sys.exc_info())
            self._streams.restore()
            os._exit(1)

    def _run_tasks(self) -> None:
        while (task := self._endpoint.next_task()) is not None:
            if task.linked:
                self._let_submit()
                self._run_call(task)
            else:
                self._run_task(task)
            self._endpoint.settle()
            for blob in self._endpoint.take_forgotten():
                self._cache.pop(blob, None)
            self._results.forget()

    def _let_submit(self) -> None:
        """Have tasks of graphs find a client, to submit tasks of their own to."""
        if not self._submits:
            self._submits = True
            serializer = NestedSerializer(self._endpoint, self._cache)
            _core.Session.upstream(self._endpoint, serializer, self._start_stand_in)

    def _run_call(self, task: _core.WorkerTask) -> None:
        """Run a task of a graph: one call, whose result other tasks may take."""
        began = time.perf_counter()
        clock = _Clock()
        kept = failed = False
        try:
            self._prepare(task.blobs[0], task.call)
            result = self._context.copy().run(self._call_function, task, clock)
            ran = time.perf_counter()
            report, buffers = self._dump_result(result)
            size = len(report) + sum(map(len, buffers))
            kept = self._results.keep(task.id, result, size, self._settings.kept_bytes)
            del result
        except BaseException as error:
            ran = time.perf_counter()
            self._leave_if_forked(error)
            report, buffers, failed = self._dump_error(error), [], True
        self._leave_if_forked(None)
        self._streams.restore()
        dumping = time.perf_counter() - ran
        loading = ran - began - clock.running
        self._endpoint.finish(task, failed, report, buffers, loading, clock.running, dumping, kept)

    def _call_function(self, task: _core.WorkerTask, clock: _Clock) -> Any:
        count = task.buffer_count
        beside = self._endpoint.buffers(task, 0, count) if count else ()
        args, kwargs = pickle.loads(task.pickle, buffers=beside)
        if task.inputs:
            args, kwargs = _core.fill((args, kwargs), {at: self._results.get(at) for at in task.inputs})
        function = self._blob(task.blobs[1], cached=True)
        self._limit_threads()
        granted = task.granted
        holding = _resources.holding(granted, self._settings.devices) if granted else _NOTHING
        began = time.perf_counter()
        try:
            with holding:
                return function(*args, **kwargs) if kwargs else function(*args)
        finally:
            clock.running = time.perf_counter() - began

    def _dump_result(self, result: Any) -> tuple[bytes, list[Any]]:
        if is_plain(result):
            return pickle.dumps(result, protocol=5), []
        from rustdask._serialize import dumps_out_of_band

        try:
            return dumps_out_of_band(result)
        except Exception as error:
            raise self._explain(error, [result]) from error

    def _run_task(self, task: _core.WorkerTask) -> None:
        began = time.perf_counter()
        clock = _Clock()
        try:
            self._prepare(task.blobs[0], task.call)
            results = self._context.copy().run(self._run_items, task, clock)
            ran = time.perf_counter()
            report, buffers = self._dump_results(results, clock.first)
            failed = False
            del results
        except BaseException as error:
            ran = time.perf_counter()
            self._leave_if_forked(error)
            report, buffers, failed = self._dump_error(error), [], True
        self._leave_if_forked(None)
        self._streams.restore()
        dumping = time.perf_counter() - ran
        self._endpoint.finish(task, failed, report, buffers, ran - began - clock.running, clock.running, dumping)

    def _leave_if_forked(self, error: BaseException | None) -> None:
        """End a process that a task has forked and that came back from the task, as a script would end."""
        if os.getpid() == self._pid:
            return
        code: Any = 0
        if isinstance(error, SystemExit):
            code = error.code
        elif error is not None:
            sys.excepthook(type(error), error, error.__traceback__)
            code = 1
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
        self._streams.restore()
        os._exit((code or 0) & 0xFF)

    def _run_items(self, task: _core.WorkerTask, clock: _Clock) -> list[Any]:
        kind, clock.first, data = pickle.loads(task.pickle)
        self._limit_threads()
        runner = ItemRunner(self._settings.options)
        if kind == Kind.ARGUMENTS:
            return self._run_arguments(task, clock, runner, data)
        results = []
        positions = [0, *itertools.accumulate(count for _, count in data)]
        while (i := task.advance()) is not None:
            pickled, count = data[i]
            buffers = self._endpoint.buffers(task, positions[i], positions[i + 1]) if count else []
            function, args, kwargs = self._load(pickled, buffers, task.blobs)
            del buffers
            began = time.perf_counter()
            try:
                results.append(runner(clock.first + i, function, args, kwargs))
            finally:
                clock.running += time.perf_counter() - began
            del function, args, kwargs
            if count:
                self._endpoint.settle()
        return results

    def _run_arguments(self, task: _core.WorkerTask, clock: _Clock, runner: ItemRunner, data: list[Any]) -> list[Any]:
        function = self._blob(task.blobs[1], cached=True)
        began = time.perf_counter()
        results = []
        try:
            if runner.bare:
                while (i := task.advance()) is not None:
                    results.append(function(data[i]))
            else:
                while (i := task.advance()) is not None:
                    results.append(runner(clock.first + i, function, (data[i],), {}))
        finally:
            clock.running += time.perf_counter() - began
        return results

    # Payloads

    def _load(self, data: bytes, buffers: list[Any], blobs: list[int]) -> Any:
        function, args, kwargs = pickle.loads(data, buffers=buffers)

        def value(argument: Any) -> Any:
            if type(argument) is not Reference:
                return argument
            return self._blob(blobs[argument.number], cached=True)

        return value(function), tuple(map(value, args)), {key: value(kwargs[key]) for key in kwargs}

    def _blob(self, blob: int, *, cached: bool) -> Any:
        if cached and blob in self._cache:
            return self._cache[blob]
        data, buffers = self._endpoint.blob(blob)
        value = pickle.loads(data, buffers=buffers)
        if cached:
            self._cache[blob] = value
        return value

    def _dump_results(self, results: list[Any], first: int) -> tuple[bytes, list[Any]]:
        if all(map(is_plain, results)):
            return pickle.dumps(results, protocol=5), []
        from rustdask._serialize import dumps_out_of_band

        try:
            return dumps_out_of_band(results)
        except Exception as error:
            if self._settings.options.on_error != "return":
                raise self._explain(error, results) from error
        return dumps_out_of_band([self._sendable(result, first + i) for i, result in enumerate(results)])

    def _sendable(self, result: Any, index: int) -> Any:
        from rustdask._errors import TaskFailure
        from rustdask._serialize import dumps_out_of_band

        try:
            dumps_out_of_band(result)
        except Exception as error:
            explained = self._explain(error, [result])
            return TaskFailure(exception=explained, index=index, function=None, traceback=str(explained))
        return result

    def _explain(self, error: Exception, results: list[Any]) -> BaseException:
        from rustdask._errors import explain_pickling_error
        from rustdask._serialize import dumps

        return explain_pickling_error({"result": results[0] if len(results) == 1 else results}, error, dumps)

    def _dump_error(self, error: BaseException) -> bytes:
        from rustdask._errors import pack_exception
        from rustdask._serialize import dumps

        return pack_exception(error, dumps)

    # Surroundings

    def _prepare(self, settings_id: int, call: int) -> None:
        """Make this process what the call wants; cheap when nothing has changed."""
        if settings_id != self._settings_id:
            self._settings = self._blob(settings_id, cached=False)
            self._settings_id = settings_id
            self._apply_settings()
        _context.refresh(new_call=call != self._call)
        self._call = call
        initializer = self._settings.initializer
        if initializer is not None and self._settings.initializer_key not in self._initialized:
            function, args = pickle.loads(initializer)
            function(*args)
            self._initialized.add(self._settings.initializer_key)

    def _apply_settings(self) -> None:
        settings = self._settings
        _inherit_authkey(settings.authkey)
        if settings.surroundings is not None and settings.surroundings_key != self._surroundings:
            self._context = _context.apply(settings.surroundings)
            self._surroundings = settings.surroundings_key
        forward_messages(self._endpoint.log)
        if settings.inner_threads != self._limit:
            self._limit = settings.inner_threads
            self._modules = 0
            _limit_threads_of_later_libraries(settings.inner_threads)
        when_imported("joblib", self._configure_joblib)

    def _configure_joblib(self) -> None:
        """Calls inside tasks stay with rustdask, in threads of this worker."""
        if worker_share() == self._settings.cores and "rustdask._joblib" in sys.modules:
            return
        set_worker_share(self._settings.cores)
        from rustdask import _joblib

        # Where its import has brought joblib here, it is not complete yet, and does this itself at its end.
        configure = getattr(_joblib, "configure_worker", None)
        if configure is not None:
            configure(self._settings.cores)

    def _limit_threads(self) -> None:
        """Hold the numeric libraries to this worker's share of the cores; again when there may be new ones."""
        if self._limit is None or len(sys.modules) == self._modules:
            return
        self._modules = len(sys.modules)
        if "numpy" in sys.modules:
            from threadpoolctl import threadpool_limits

            threadpool_limits(limits=self._limit)


class _Results:
    """Results of tasks that other tasks take: those made here, and those that were sent."""

    def __init__(self, endpoint: _core.WorkerEndpoint) -> None:
        self._endpoint = endpoint
        self._values: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}
        self._kept_bytes = 0

    def keep(self, task: int, result: Any, size: int, limit: int) -> bool:
        """Keep a result that was made here; False where all would take too much beside their shared copies."""
        if self._kept_bytes + size > limit:
            return False
        self._values[task] = result
        if size >= _COUNTED_BYTES:
            self._sizes[task] = size
            self._kept_bytes += size
        return True

    def get(self, task: int) -> Any:
        """Return a result; the same object each time."""
        try:
            return self._values[task]
        except KeyError:
            data, buffers = self._endpoint.result(task)
            value = self._values[task] = pickle.loads(data, buffers=buffers)
            return value

    def forget(self) -> None:
        """Drop what nobody needs any more."""
        for task in self._endpoint.take_forgotten_results():
            self._values.pop(task, None)
            self._kept_bytes -= self._sizes.pop(task, 0)


class _Clock:
    """What a task tells while it runs: its place in the call, and the time that user code took."""

    def __init__(self) -> None:
        self.first = 0
        self.running = 0.0


class _Streams:
    """The standard streams of this worker, whatever tasks do to them."""

    def __init__(self) -> None:
        self._streams = (sys.stdout, sys.stderr)
        # Out of the way of whoever closes all descriptors up to some number.
        self._pipes = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _SPARE_FD) for fd in (1, 2))
        self._identities = tuple(map(_identity_of, self._pipes))

    def restore(self) -> None:
        """After a task: write what is in buffers, and undo what it has replaced or closed."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                # A task closed or replaced it.
                continue
        for fd, pipe, identity in zip((1, 2), self._pipes, self._identities, strict=True):
            if identity is not None and _identity_of(fd) != identity and _identity_of(pipe) == identity:
                os.dup2(pipe, fd)
        sys.stdout, sys.stderr = self._streams


def _identity_of(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _inherit_authkey(key: bytes | None) -> None:
    if key is not None:
        from multiprocessing import process

        process.current_process().authkey = key


def _limit_threads_of_later_libraries(threads: int | None) -> None:
    if threads is None:
        return
    for name in ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB_MAXIMUM", "NUMBA", "NUMEXPR"):
        variable = "VECLIB_MAXIMUM_THREADS" if name == "VECLIB_MAXIMUM" else f"{name}_NUM_THREADS"
        os.environ[variable] = str(threads)
