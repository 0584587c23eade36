"""Fixtures for all tests, and the check that the whole suite leaves nothing behind.

After the last test, `rustdask.shutdown()` must have ended every process and thread of rustdask, closed every
descriptor and unmapped every segment that this process has gained since the first; otherwise the suite fails.
"""

from __future__ import annotations

import gc
import os
import threading
import uuid

import helpers
import pytest
from helpers import BACKEND, TAG, command_lines, descendants, open_files, rustdask, segments, tagged, wait_until

# Opened once and kept by the standard library and by numpy.
_HARMLESS = ("/dev/null", "/dev/urandom", "/dev/random")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind():
    tag = uuid.uuid4().hex
    os.environ[TAG] = tag
    files = open_files()
    children = descendants()
    yield
    if BACKEND != "rustdask":
        return
    rustdask.shutdown()
    gc.collect()
    _settles(lambda: descendants() - children, lambda left: command_lines(left), "child processes")
    _settles(lambda: tagged(tag), lambda left: command_lines(left), "orphaned processes")
    _settles(lambda: _new_files(files), dict, "open files")
    _settles(_mappings, str, "mapped segments")
    _settles(_threads, list, "threads")


@pytest.fixture
def path(tmp_path):
    """Name a file that does not exist yet."""
    return lambda name="notes": str(tmp_path / name)


@pytest.fixture
def gauge(tmp_path):
    import tasks

    return tasks.Gauge(tmp_path / "gauge")


@pytest.fixture
def fresh():
    """Start without workers, for tests that count them."""
    if helpers.BACKEND == "rustdask":
        rustdask.shutdown()


def _settles(left, describe, what):
    """Ending takes a moment after shutdown has been asked for, and no more."""
    last = None

    def none_left():
        nonlocal last
        last = left()
        return not last

    try:
        wait_until(none_left, what, patience_s=5.0)
    except pytest.fail.Exception:
        pytest.fail(f"the suite leaves {what} behind: {describe(last)}", pytrace=False)


def _new_files(before):
    known = set(before.values())
    return {
        fd: target
        for fd, target in open_files().items()
        if fd not in before and target not in known and target not in _HARMLESS
    }


def _mappings():
    return segments()[0]


def _threads():
    """Threads of rustdask, by the name that the kernel knows or the one that Python knows."""
    names = [thread.name for thread in threading.enumerate()]
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/comm") as file:
                names.append(file.read().strip())
        except OSError:
            continue
    return [name for name in names if "rustdask" in name.lower() or name == "within"]
