"""Functions that the tests give to rustdask as tasks; importable in worker processes through sys.path.

They tell the outside what they do through files: a line is appended in one write, so lines of several processes
never mix, and a count under a lock of its file is exact.
"""

from __future__ import annotations

import contextvars
import ctypes
import fcntl
import logging
import os
import random
import signal
import struct
import sys
import threading
import time
import warnings

import numpy as np
from joblib import Parallel, delayed
from joblib.parallel import get_active_backend

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")
INITIALIZED: list[object] = []
_PATIENCE_S = 60.0


# Telling the outside


def note(path, text=""):
    """Append a line."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


def lines_of(path):
    try:
        with open(path) as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def wait_for_file(path):
    """Wait until somebody has created `path`."""
    deadline = time.monotonic() + _PATIENCE_S
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise AssertionError(f"nobody created {path}")
        time.sleep(0.002)


def first_time(path):
    """True for exactly one caller, in whatever process."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True


class Gauge:
    """Counts how many tasks are inside at the same moment, across threads and processes."""

    _layout = struct.Struct("qq")

    def __init__(self, path):
        self.path = str(path)

    def _change(self, by):
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            raw = os.pread(fd, self._layout.size, 0)
            inside, peak = self._layout.unpack(raw) if raw else (0, 0)
            inside += by
            peak = max(peak, inside)
            os.pwrite(fd, self._layout.pack(inside, peak), 0)
            return inside, peak
        finally:
            os.close(fd)

    def __enter__(self):
        self._change(+1)
        return self

    def __exit__(self, *_):
        self._change(-1)

    @property
    def peak(self):
        return self._change(0)[1]

    def wait_for_peak(self, expected):
        deadline = time.monotonic() + _PATIENCE_S
        while self.peak < expected:
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.peak} tasks at once, and never {expected}")
            time.sleep(0.002)


# Plain work


def square(x):
    return x * x


def add(x, y=0):
    return x + y


def nothing():
    return None


def whoami(*_):
    return os.getpid(), threading.get_ident()


def pid(*_):
    return os.getpid()


def busy_inside(gauge, expected, linger_s=0.02):
    """Wait for `expected` tasks at once, then stay a little, so that one too many would be seen."""
    with gauge:
        gauge.wait_for_peak(expected)
        time.sleep(linger_s)
    return os.getpid()


def linger_inside(gauge, linger_s=0.02):
    with gauge:
        time.sleep(linger_s)


def spin(n):
    total = 0
    for i in range(n):
        total += i * i
    return total


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def wait_and_return(path, value):
    wait_for_file(path)
    return value


def note_and_wait(started, go, value=None):
    note(started, os.getpid())
    wait_for_file(go)
    return value


def note_and_return(path, value):
    note(path, value)
    return value


def hang_from_first_line(started, value=None):
    """Say that it runs, and never return."""
    note(started, os.getpid())
    while True:
        time.sleep(0.05)


def note_then_hang_if(started, path, value, hangs):
    note(path, value)
    if hangs:
        hang_from_first_line(started)
    return value


# Nesting


def nested(depth, width=2, n_jobs=2):
    """A tree of calls: the number of leaves, and the backend seen on each level."""
    backend = type(get_active_backend()[0])
    seen = [f"{backend.__module__}.{backend.__qualname__}"]
    if depth == 0:
        return 1, seen
    below = Parallel(n_jobs=n_jobs)(delayed(nested)(depth - 1, width, n_jobs) for _ in range(width))
    return sum(leaves for leaves, _ in below), seen + below[0][1]


def nested_inside(depth, gauge, width=3, n_jobs=2):
    """Leaves of a tree of calls linger in the gauge."""
    if depth == 0:
        linger_inside(gauge)
        return 1
    return sum(Parallel(n_jobs=n_jobs)(delayed(nested_inside)(depth - 1, gauge, width, n_jobs) for _ in range(width)))


def nested_sum(depth, base, n_jobs, killer=None, leaf=0):
    """Sum over a ternary tree of calls; with `killer`, one of its leaves kills its process, once."""
    if depth == 0:
        if killer is not None and leaf == 4 and first_time(killer):
            os.kill(os.getpid(), signal.SIGKILL)
        return base + leaf
    calls = (delayed(nested_sum)(depth - 1, base, n_jobs, killer, 3 * leaf + i) for i in range(3))
    return sum(Parallel(n_jobs=n_jobs)(calls))


def nested_hang(depth, started):
    if depth == 0:
        hang_from_first_line(started)
    Parallel(n_jobs=2)(delayed(nested_hang)(depth - 1, started) for _ in range(2))


def nested_failure(depth):
    if depth == 0:
        raise ValueError("deep inside")
    Parallel(n_jobs=2)(delayed(nested_failure)(depth - 1) for _ in range(2))


# Ways to fail


class TwoArguments(Exception):
    """Cannot be unpickled the way exceptions are: its constructor takes two arguments, `args` has one."""

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code = code


class Holder:
    """An object that cannot be pickled, for what its attribute holds."""

    def __init__(self):
        self.lock = threading.Lock()


class HoldsLock(Exception):
    def __init__(self, message):
        super().__init__(message)
        self.lock = threading.Lock()


class LoadFails:
    """Can be pickled, and not unpickled."""

    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise ZeroDivisionError("refuses to be loaded")


def fail(message="on purpose"):
    raise ValueError(message)


def fail_if(condition, value=None):
    if condition:
        raise ValueError(f"task {value}")
    return value


def fail_after(path, message="on purpose"):
    wait_for_file(path)
    raise ValueError(message)


def raise_of(kind):
    """Raise, or return, something awkward."""
    if kind == "two_arguments":
        raise TwoArguments(7, "seven")
    if kind == "unpicklable_exception":
        raise HoldsLock("cannot travel")
    if kind == "unpicklable_result":
        return {"inner": [1, Holder()]}
    if kind == "unloadable_result":
        return LoadFails()
    if kind == "system_exit":
        sys.exit(5)
    if kind == "keyboard_interrupt":
        raise KeyboardInterrupt("raised by the task")
    if kind == "generator_exit":
        raise GeneratorExit("raised by the task")
    if kind == "stop_iteration":
        raise StopIteration("raised by the task")
    if kind == "recursion":
        return raise_of(kind)
    if kind == "error":
        raise ValueError("on purpose")
    return kind


def fail_with_cause_and_notes():
    try:
        raise KeyError("the cause")
    except KeyError as cause:
        error = ValueError("the effect")
        error.add_note("a note from the task")
        raise error from cause


def fail_some_times(path, times, value):
    """Fail on the first `times` runs."""
    note(path, value)
    if len(lines_of(path)) <= times:
        raise OSError(f"run {len(lines_of(path))}")
    return value


def die(how="sigkill"):
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(3)
    elif how == "abort":
        os.abort()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def die_if(condition, value, runs=None, how="sigkill"):
    if runs is not None:
        note(runs, value)
    if condition:
        die(how)
    return value


def die_once(marker, runs, value):
    """Kill its worker on its first run."""
    note(runs, value)
    if marker is not None and first_time(marker):
        die()
    return value


def speak_and_die(text):
    print(text)
    sys.stderr.write(f"{text} (stderr)\n")
    die()


def write_stderr_and_die(text):
    os.write(2, f"{text}\n".encode())
    die()


def allocate(size_bytes):
    """Touch so much memory."""
    block = np.ones(size_bytes // 8)
    return float(block[-1])


# Payloads


class CountsTravels:
    """Notes each time that it is pickled and unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __getstate__(self):
        note(self.path, "pickled")
        return {"path": self.path}

    def __setstate__(self, state):
        self.__dict__.update(state)
        note(self.path, "unpickled")

    def tell(self, value=None):
        return value


def spoil(array, value=None):
    """Change the argument in place, and say what it held before."""
    before = float(array.sum())
    array += 1
    return before, float(array.sum())


def spoil_and_name_worker(array):
    return (os.getpid(), *spoil(array))


def array_facts(array):
    return {
        "type": type(array).__name__,
        "dtype": array.dtype,
        "shape": array.shape,
        "c": array.flags.c_contiguous,
        "f": array.flags.f_contiguous,
        "writeable": array.flags.writeable,
        "filename": str(getattr(array, "filename", None)),
        "mode": getattr(array, "mode", None),
    }


def echo(value):
    return value


def are_same(first, second):
    return first is second


def first_element(array):
    return array.flat[0]


def element(array, at):
    return array[at]


def write_first(array, value):
    """True when the array could be written."""
    try:
        array[0] = value
    except ValueError:
        return False
    return True


def read_when(path, array):
    wait_for_file(path)
    return array[0]


def full(size, value):
    return np.full(size, float(value))


def length_and_item(mapping, key):
    return len(mapping), mapping[key]


def mapped_files(_):
    with open("/proc/self/maps") as file:
        return file.read()


# Surroundings


def warn(message="from a task"):
    warnings.warn(message, UserWarning, stacklevel=2)
    return message


def log(name, level, message):
    logging.getLogger(name).log(level, message)
    return logging.getLogger(name).getEffectiveLevel()


def say(text, stream="stdout"):
    """One write, so that lines of several threads do not mix."""
    getattr(sys, stream).write(f"{text}\n")


def environment(name):
    return os.environ.get(name)


def working_directory():
    return os.getcwd()


def imported_value(module):
    import importlib

    return importlib.import_module(module).VALUE


def variable():
    return VARIABLE.get()


def authkey():
    import multiprocessing

    return bytes(multiprocessing.current_process().authkey)


def append_to(proxy, value):
    proxy.append(value)


def initialize(path, *values):
    note(path, os.getpid())
    INITIALIZED[:] = values


def initialized():
    return tuple(INITIALIZED), os.getpid()


def initialize_badly():
    raise OSError("the initializer failed")


def blas_threads():
    import threadpoolctl

    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]


def rank(gauge, expected):
    """This worker's rank, once all of them are at work."""
    import rustdask

    busy_inside(gauge, expected)
    return rustdask.worker_rank(), os.getpid()


# Random numbers


def own_draws(size=3):
    import rustdask

    return rustdask.rng().random(size).tolist()


def global_draws():
    return float(np.random.random()), random.random()


# What a worker keeps of earlier tasks

_kept = {}


def keep_argument(name, array):
    """Keep an argument beyond its task; return how many are kept here."""
    _kept.setdefault(name, []).append(array)
    return len(_kept[name])


def kept_first_elements(name, _):
    return [float(array[0]) for array in _kept.get(name, [])]


def fork_and(how):
    """Fork; the child comes back from the task as `how` says."""
    child = os.fork()
    if child == 0:
        if how == "exit":
            sys.exit(0)
        return "child"
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def sum_with_loky(n):
    from joblib import Parallel, delayed

    return sum(Parallel(n_jobs=2, backend="loky")(delayed(square)(i) for i in range(n)))


def replace_stdout(how):
    import io

    if how == "replace":
        sys.stdout = io.StringIO()
    else:
        os.close(1)


def write_bytes(data):
    sys.stdout.buffer.write(data)


def change_directory(path):
    os.chdir(path)


def sum_of_firsts(arrays):
    return float(sum(array[0] for array in arrays))


def mark(array, i):
    """Set an element of a shared array; return how many are set once nothing more is being set."""
    array.flat[i] = 1.0
    last = -1
    while (count := int(array.sum())) != last:
        last = count
        time.sleep(0.01)
    return count


def corner(array):
    return float(array[0, 0])


def print_later(seconds, text):
    import threading

    threading.Timer(seconds, lambda: print(text, flush=True)).start()


def slow_if(condition, value):
    time.sleep(2.0 if condition else 0)
    return value
