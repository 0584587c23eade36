"""CPython's own tests of `concurrent.futures`, with `rustdask.Executor` in threads and in worker processes.

They come with some interpreters; CONTRIBUTING.md says with which. What changes is the executor: here, and in the
scripts that some tests start. The module is given to pytest as it is.
"""

from __future__ import annotations

import importlib
import os
import unittest

import pytest

import rustdask
from rustdask._joblib import cores

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

ITSELF = "makes an executor of the standard library's itself"
PRIVATE = "looks at private attributes of the standard library's executors"
ALONE = "asks that the whole pool be broken; with rustdask the task fails alone, with the error itself"
NO_LIMIT = "rustdask does not replace worker processes after a number of tasks"

# Class -> test -> why it cannot hold for rustdask.
SKIPPED = {
    "Shutdown": {
        "test_context_manager_shutdown": ITSELF,
        "test_del_shutdown": ITSELF,
        "test_shutdown_no_wait": ITSELF,
        "test_thread_names_assigned": ITSELF,
        "test_thread_names_default": ITSELF,
        "test_threads_terminate": PRIVATE,
    },
    "ThreadPool": {
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


if cores().count != getattr(os, "process_cpu_count", os.cpu_count)():
    SKIPPED["ThreadPool"]["test_default_workers"] = "counts the cores in its own way; rustdask heeds cgroups, too"


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
    # These two are kinds of executors themselves, with something added.
    "Initializer": part("test_init").InitializerMixin,
    "FailingInitializer": part("test_init").FailingInitializerMixin,
}
for name, mixin in MIXINS.items():
    define(f"{name}InThreads", mixin, InThreads, util.BaseTestCase)
    define(f"{name}InProcesses", mixin, InProcesses, util.BaseTestCase)
define("ShutdownInThreads", InThreads, shutdown.ThreadPoolShutdownTest)
define("ShutdownInProcesses", shutdown.ExecutorShutdownTest, InProcesses, util.BaseTestCase)
define("ThreadPoolInThreads", InThreads, thread_pool.ThreadPoolExecutorTest)
define("RacingWaitInThreads", InThreads, wait.ThreadPoolWaitTests)
define("ProcessPoolInProcesses", process_pool.ProcessPoolExecutorTest, InProcessesWithContext, util.BaseTestCase)
define("DeadlockInProcesses", deadlock.ExecutorDeadlockTest, InProcessesWithContext, util.BaseTestCase)


# Executors by the names that scripts have for them -> further arguments of `rustdask.Executor`.
IN_SCRIPTS = {
    ThreadExecutor.__name__: ", processes=False",
    "ThreadPoolExecutor": ", processes=False",
    ProcessExecutor.__name__: "",
}


@pytest.fixture(autouse=True)
def scripts_use_rustdask(monkeypatch):
    """Some tests run a script, which imports the executor by its name from the standard library."""
    run = shutdown.assert_python_ok

    def run_edited(option, script):
        for name, arguments in IN_SCRIPTS.items():
            there = f"from concurrent.futures import {name}"
            here = f"import functools, rustdask; {name} = functools.partial(rustdask.Executor{arguments})"
            script = script.replace(there, here)
        assert "rustdask" in script
        return run(option, script)

    monkeypatch.setattr(shutdown, "assert_python_ok", run_edited)
