"""CPython's own tests of `concurrent.futures`, with `rustdask.Executor` in threads and in worker processes.

They come with the interpreter, where its `test` package is installed. What changes is the executor: here, and in the
scripts that some tests start. The module is given to pytest as it is.
"""

from __future__ import annotations

import importlib
import unittest
from concurrent.futures import BrokenExecutor

import pytest

import rustdask

PACKAGE = importlib.import_module("test.test_concurrent_futures")


def part(name):
    """Return a module of the package, which is a single module before Python 3.12."""
    return importlib.import_module(f"{PACKAGE.__name__}.{name}") if hasattr(PACKAGE, "__path__") else PACKAGE


shutdown = part("test_shutdown")
deadlock = part("test_deadlock")
process_pool = part("test_process_pool")
thread_pool = part("test_thread_pool")
wait = part("test_wait")
util = part("util")

PRIVATE = "looks at private attributes of the standard library's executors"
ALONE = "asks that the whole pool be broken; with rustdask the task fails alone, with the error itself"
NO_LIMIT = "rustdask does not replace worker processes after a number of tasks"

# Class -> test -> why it cannot hold for rustdask.
SKIPPED = {
    "ThreadPool": {
        "test_default_workers": "counts the cores in its own way; rustdask heeds cgroups, too",
        "test_idle_thread_reuse": PRIVATE,
        "test_saturation": PRIVATE,
    },
    "ProcessPool": {
        "test_idle_process_reuse_multiple": PRIVATE,
        "test_idle_process_reuse_one": PRIVATE,
        "test_killed_child": PRIVATE,
        "test_max_tasks_early_shutdown": NO_LIMIT,
        "test_max_tasks_per_child": NO_LIMIT,
        "test_max_tasks_per_child_defaults_to_spawn_context": NO_LIMIT,
        "test_python_finalization_error": "counts the threads that the standard library's executor starts",
        "test_saturation": PRIVATE,
        "test_traceback": "asks for a private class; tests/test_executor.py asks for the text of the traceback",
    },
    "Deadlock": {
        "test_error_at_task_unpickle": ALONE,
        "test_error_during_result_unpickle_in_result_handler": ALONE,
        "test_exit_at_task_unpickle": ALONE,
        "test_exit_during_result_unpickle_in_result_handler": ALONE,
        "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": PRIVATE,
        "test_shutdown_deadlock_pickle": PRIVATE,
    },
}


class ThreadExecutor(rustdask.Executor):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, processes=False, **kwargs)


class ProcessExecutor(rustdask.Executor):
    def __init__(self, *args, mp_context=None, **kwargs):
        super().__init__(*args, **kwargs)


class InThreads(util.ExecutorMixin):
    executor_type = ThreadExecutor


class InProcesses(util.ExecutorMixin):
    executor_type = ProcessExecutor


class InProcessesWithContext(InProcesses):
    """For tests that share locks with their tasks, which takes a context of `multiprocessing`."""

    ctx = "spawn"


def define(name, *bases):
    case = type(name, bases, {"__module__": __name__})
    for test, reason in SKIPPED.get(name.partition("In")[0], {}).items():
        # Not every version has each of them.
        if hasattr(case, test):
            setattr(case, test, unittest.skip(reason)(getattr(case, test)))
    globals()[name] = case


MIXINS = {
    "Executor": part("executor").ExecutorTest,
    "AsCompleted": part("test_as_completed").AsCompletedTests,
    "Wait": wait.WaitTests,
    "Shutdown": shutdown.ExecutorShutdownTest,
    # These two are kinds of executors themselves, with something added.
    "Initializer": part("test_init").InitializerMixin,
    "FailingInitializer": part("test_init").FailingInitializerMixin,
}
for name, mixin in MIXINS.items():
    define(f"{name}InThreads", mixin, InThreads, util.BaseTestCase)
    define(f"{name}InProcesses", mixin, InProcesses, util.BaseTestCase)
define("ThreadPoolInThreads", InThreads, thread_pool.ThreadPoolExecutorTest)
define("RacingWaitInThreads", InThreads, wait.ThreadPoolWaitTests)
define("ProcessPoolInProcesses", process_pool.ProcessPoolExecutorTest, InProcessesWithContext, util.BaseTestCase)
define("DeadlockInProcesses", deadlock.ExecutorDeadlockTest, InProcessesWithContext, util.BaseTestCase)


@pytest.fixture(autouse=True)
def a_crash_is_a_broken_executor(monkeypatch):
    """The standard library has a kind of its own for processes, which is expensive to import."""
    monkeypatch.setattr(deadlock, "BrokenProcessPool", BrokenExecutor)


@pytest.fixture(autouse=True)
def scripts_use_rustdask(monkeypatch):
    """Some tests run a script, which imports the executor by its name from the standard library."""
    run = shutdown.assert_python_ok

    def run_edited(option, script):
        for kind, arguments in [(ThreadExecutor, ", processes=False"), (ProcessExecutor, "")]:
            there = f"from concurrent.futures import {kind.__name__}"
            here = f"import functools, rustdask; {kind.__name__} = functools.partial(rustdask.Executor{arguments})"
            script = script.replace(there, here)
        assert "rustdask" in script
        return run(option, script)

    monkeypatch.setattr(shutdown, "assert_python_ok", run_edited)
