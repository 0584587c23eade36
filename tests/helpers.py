"""What the end-to-end tests share: calls, deadlines, scripts, and a look at the system's processes.

Guarantees: nothing here waits without a deadline, and a deadline that passes shows every thread's stack or the
script's output. Needs Linux's /proc, pytest, joblib and numpy, and no more.

RUSTDASK_TEST_BACKEND=loky runs what is not rustdask's own promise on joblib's loky and threading: a test that
fails there too is most likely wrong itself.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
import tasks
from joblib import Parallel, delayed, parallel_config

BACKEND = os.environ.get("RUSTDASK_TEST_BACKEND", "rustdask")
if BACKEND == "rustdask":
    import rustdask
else:
    rustdask = None

PEERS = {"processes": "loky", "threads": "threading"}
FREE_THREADED = hasattr(sys, "_is_gil_enabled") and not sys._is_gil_enabled()
TAG = "RUSTDASK_TEST_TAG"

# Long enough for a loaded machine; a test that needs it fails, so no good run ever waits this long.
PATIENCE_S = 30.0

own = pytest.mark.skipif(BACKEND != "rustdask", reason="a promise of rustdask's own")
both_modes = pytest.mark.parametrize("mode", ["processes", "threads"])


# Calls


def configured(mode="processes", n_jobs=2, **params):
    if BACKEND == "rustdask":
        return parallel_config("rustdask", n_jobs=n_jobs, mode=mode, **params)
    return parallel_config(PEERS[mode], n_jobs=n_jobs, **params)


def run(calls, mode="processes", n_jobs=2, config=None, **parallel):
    """`Parallel(**parallel)(calls)` under rustdask with the parameters `config`."""
    with configured(mode, n_jobs, **(config or {})):
        return Parallel(**parallel)(calls)


def assert_usable(mode="processes", n_jobs=2):
    assert run([delayed(tasks.square)(i) for i in range(6)], mode, n_jobs) == [0, 1, 4, 9, 16, 25]


# Deadlines


def within(seconds, call, *args, **kwargs):
    """What `call` returns or raises; it runs in a thread, so that this returns even when `call` never does."""
    outcome: queue.Queue = queue.Queue()

    def target():
        try:
            outcome.put((call(*args, **kwargs), None))
        except BaseException as exc:
            outcome.put((None, exc))

    threading.Thread(target=target, name="within", daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty:
        pytest.fail(f"{call} has not returned after {seconds} s\n{stacks()}")
    if error is not None:
        raise error
    return result


def stacks():
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def wait_until(condition, what, patience_s=PATIENCE_S):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {patience_s} s for {what}\n{stacks()}")
        time.sleep(0.005)
    return value


def wait_for_lines(path, count=1):
    """The lines that tasks have written to `path`, once there are `count`."""

    def enough():
        lines = tasks.lines_of(path)
        return lines if len(lines) >= count else None

    return wait_until(enough, f"{count} lines in {path}")


# Processes


def _stat(pid):
    """State and parent of a process, or None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)


def _pids():
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def alive(pid):
    stat = _stat(pid)
    return stat is not None and stat[0] not in "ZX"


def descendants(pid=None):
    """Living processes below `pid` (this process, if not given)."""
    parents = {child: stat[1] for child in _pids() if (stat := _stat(child)) and stat[0] not in "ZX"}
    found, front = set(), {os.getpid() if pid is None else pid}
    while front:
        front = {child for child, parent in parents.items() if parent in front}
        found |= front
    return found


def zombies():
    """Children of this process that have ended and were not waited for."""
    me = os.getpid()
    return {pid for pid in _pids() if (stat := _stat(pid)) and stat == ("Z", me)}


def tagged(tag):
    """Living processes that were started with `tag` in their environment, whoever their parent is now."""
    needle = f"{TAG}={tag}".encode()
    found = set()
    for pid in _pids():
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if needle in environ and alive(pid) and pid != os.getpid():
            found.add(pid)
    return found


def command_lines(pids):
    lines = []
    for pid in sorted(pids):
        try:
            lines.append(f"{pid}: {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode()}")
        except OSError:
            continue
    return lines


# Descriptors and segments


def open_files(pid="self"):
    """What each open file descriptor of a process leads to."""
    folder = Path(f"/proc/{pid}/fd")
    targets = {}
    for name in os.listdir(folder):
        try:
            targets[int(name)] = os.readlink(folder / name)
        except OSError:
            continue
    return targets


def segments(pid="self"):
    """How many mappings and open descriptors of rustdask's memory segments a process holds."""
    maps = sum("memfd:rustdask" in line for line in Path(f"/proc/{pid}/maps").read_text().splitlines())
    return maps, sum("memfd:rustdask" in target for target in open_files(pid).values())


# Scripts


@dataclass
class Script:
    """A running Python process of a test's own, in its own process group."""

    process: subprocess.Popen
    tag: str
    folder: tempfile.TemporaryDirectory
    stdout: str = ""
    stderr: str = ""
    returncode: int | None = None

    @property
    def pid(self):
        return self.process.pid

    def finish(self, timeout=60.0):
        """Wait for its end; past the deadline, have it show its stacks, end it, and fail."""
        try:
            self.stdout, self.stderr = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            self._end()
            pytest.fail(f"the script has not ended after {timeout} s\n{self.stdout}\n{self.stderr}")
        self.returncode = self.process.returncode
        return self

    def processes(self):
        return tagged(self.tag)

    def signal(self, number, group=False):
        if group:
            os.killpg(self.pid, number)
        else:
            os.kill(self.pid, number)

    def _end(self):
        """End whatever is left, and take what it has said."""
        try:
            self.stdout, self.stderr = self.process.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            self.kill_all()
            self.stdout, self.stderr = self.process.communicate()

    def kill_all(self):
        unfinished = {self.pid} if self.returncode is None else set()
        for pid in self.processes() | unfinished:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill_all()
        if self.returncode is None:
            self.process.communicate()
        self.folder.cleanup()


def start_script(source, *args, env=None, cwd=None, options=(), how="file", prefix=(), stdin=subprocess.DEVNULL):
    """Start `source` as a `__main__` script (`how="file"`), with `python -c`, or from standard input."""
    tag = uuid.uuid4().hex
    environ = {**os.environ, **(env or {}), TAG: tag, "PYTHONPATH": _python_path(env)}
    # Output that a task leaves in a buffer must not be saved by a setting of whoever runs the tests.
    environ.pop("PYTHONUNBUFFERED", None)
    program = [*prefix, sys.executable, "-X", "faulthandler", *options]
    folder = tempfile.TemporaryDirectory(prefix="rustdask-test-")
    if how == "file":
        path = Path(folder.name, "script.py")
        path.write_text(_lead(source))
        program.append(str(path))
    elif how == "command":
        program += ["-c", _lead(source)]
    else:
        program.append("-")
        stdin = subprocess.PIPE
    process = subprocess.Popen(
        [*program, *map(str, args)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environ,
        start_new_session=True,
    )
    if how == "stdin":
        process.stdin.write(_lead(source))
        process.stdin.close()
        process.stdin = None
    return Script(process, tag, folder)


def run_script(source, *args, timeout=60.0, **how):
    """Run a script to its end; see `start_script`."""
    with start_script(source, *args, **how) as script:
        return script.finish(timeout)


def assert_quiet_success(script, *expected_lines):
    """It ended well, printed exactly these lines, and nothing on standard error."""
    assert script.returncode == 0, script
    assert script.stderr == "", script.stderr
    assert script.stdout.splitlines() == list(expected_lines)


def assert_ends_clean(script, patience_s):
    """Nothing of the script runs after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while left := script.processes():
        if time.monotonic() > deadline:
            pytest.fail(f"left running: {command_lines(left)}")
        time.sleep(0.01)


def _python_path(env):
    tests = str(Path(__file__).parent)
    given = (env or {}).get("PYTHONPATH", os.environ.get("PYTHONPATH"))
    return f"{tests}{os.pathsep}{given}" if given else tests


def _lead(source):
    """The source without its margin, with BACKEND and `config` known to it."""
    return _PRELUDE + textwrap.dedent(source)


_PRELUDE = """\
import os, sys
BACKEND = os.environ.get("RUSTDASK_TEST_BACKEND", "rustdask")
if BACKEND == "rustdask":
    import rustdask
from joblib import Parallel, delayed, parallel_config
def config(mode="processes", n_jobs=2, **params):
    if BACKEND == "rustdask":
        return parallel_config("rustdask", mode=mode, n_jobs=n_jobs, **params)
    return parallel_config({"processes": "loky", "threads": "threading"}[mode], n_jobs=n_jobs, **params)
"""
