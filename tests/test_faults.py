"""What dies, fails or is broken off takes nothing else with it, says what it was, and never leaves a call waiting.

How often a task ran is counted by the lines that it writes, not by what came back.
"""

from __future__ import annotations

import collections
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
import warnings

import pytest
import tasks
from helpers import (
    BACKEND,
    alive,
    assert_ends_clean,
    assert_quiet_success,
    assert_usable,
    both_modes,
    configured,
    descendants,
    own,
    run,
    run_script,
    rustdask,
    start_script,
    wait_for_lines,
    wait_until,
    within,
)
from joblib import Parallel, delayed

pytestmark = pytest.mark.timeout(120)


def runs(path):
    return collections.Counter(map(int, tasks.lines_of(path)))


# Workers that die


@own
def test_a_task_whose_worker_died_runs_again_and_others_do_not(path):
    calls = [delayed(tasks.die_once)(path("marker") if i == 5 else None, path("runs"), i) for i in range(12)]
    assert within(60, run, calls, batch_size=1) == list(range(12))
    assert runs(path("runs")) == {i: 1 + (i == 5) for i in range(12)}


@own
def test_a_task_whose_worker_was_killed_from_outside_runs_again(path):
    """The first task waits to be killed; the others show that theirs went on."""
    calls = [delayed(wait_to_be_killed)(path("pids"), path("go"))]
    calls += [delayed(tasks.note_and_return)(path("runs"), i) for i in range(6)]

    def killer():
        victim = int(wait_for_lines(path("pids"))[0])
        os.kill(victim, signal.SIGKILL)
        tasks.note(path("go"))

    thread = threading.Thread(target=killer)
    thread.start()
    results = within(60, run, calls, batch_size=1)
    thread.join()
    first, second = tasks.lines_of(path("pids"))
    assert first != second
    assert results == [int(second), *range(6)]
    assert runs(path("runs")) == dict.fromkeys(range(6), 1)


def wait_to_be_killed(pids, go):
    """The first run waits for its death."""
    tasks.note(pids, os.getpid())
    if len(tasks.lines_of(pids)) == 1:
        tasks.hang_from_first_line(os.devnull)
    tasks.wait_for_file(go)
    return os.getpid()


@own
def test_all_workers_killed_at_once(path):
    calls = [delayed(wait_to_be_killed)(path(f"pids{i}"), path("go")) for i in range(2)]

    def killer():
        for i in range(2):
            os.kill(int(wait_for_lines(path(f"pids{i}"))[0]), signal.SIGKILL)
        tasks.note(path("go"))

    thread = threading.Thread(target=killer)
    thread.start()
    results = within(60, run, calls, batch_size=1)
    thread.join()
    assert results == [int(tasks.lines_of(path(f"pids{i}"))[1]) for i in range(2)]


@own
def test_everything_below_this_process_killed_while_idle():
    """Workers and their template: the next call starts them again."""
    assert_usable()
    for pid in descendants():
        os.kill(pid, signal.SIGKILL)
    within(60, assert_usable)


CRASHES = [
    ("sigkill", signal.SIGKILL, None),
    ("segfault", signal.SIGSEGV, None),
    ("abort", signal.SIGABRT, None),
    ("exit", None, 3),
]


@own
@pytest.mark.parametrize(("how", "number", "exit_code"), CRASHES)
def test_a_task_that_always_kills_its_worker_fails_alone(how, number, exit_code, path):
    calls = [delayed(tasks.die_if)(i == 7, i, path("runs"), how) for i in range(10)]
    with pytest.raises(rustdask.WorkerCrashed) as caught:
        within(60, run, calls, batch_size=1, pre_dispatch="all")
    crash = caught.value
    assert (crash.index, crash.signal, crash.exit_code) == (7, number, exit_code)
    assert "die_if" in crash.function
    assert crash.peak_memory_bytes > 1 << 20
    assert runs(path("runs"))[7] >= crash.deaths > 1
    assert set(crash.results.items()) <= {(i, i) for i in range(10)}
    assert len(crash.results) >= 7, "what ran before it has not been lost"
    others = runs(path("runs"))
    assert all(count == 1 for task, count in others.items() if task != 7), others
    for fact in ("7", "die_if", str(3) if exit_code else number.name):
        assert fact in str(crash)
    assert pickle.loads(pickle.dumps(crash)).results == crash.results
    assert_usable()


@own
def test_a_crash_can_take_its_place_among_the_results():
    calls = [delayed(tasks.die_if)(i == 3, i) for i in range(8)]
    results = within(60, run, calls, config={"on_error": "return"}, batch_size=1)
    failure = results.pop(3)
    assert results == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(failure.exception, rustdask.WorkerCrashed)
    assert (failure.index, failure.exception.index) == (3, 3)


@own
def test_a_crash_in_a_batch_is_found(path):
    """Several tasks travel together; the one to blame is named all the same."""
    calls = [delayed(tasks.die_if)(i == 33, i) for i in range(60)]
    with pytest.raises(rustdask.WorkerCrashed) as caught:
        within(60, run, calls)
    assert caught.value.index == 33
    with pytest.raises(rustdask.WorkerCrashed) as caught:
        within(60, run, calls, batch_size=10)
    assert caught.value.signal == signal.SIGKILL
    assert_usable()


@own
@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_a_crash_in_a_generator(return_as):
    calls = [delayed(tasks.die_if)(i == 4, i) for i in range(8)]
    with pytest.raises(rustdask.WorkerCrashed) as caught:
        within(60, lambda: list(run(calls, return_as=return_as, batch_size=1)))
    assert caught.value.index == 4
    assert_usable()


@own
def test_last_words_on_stderr_are_kept(capfd):
    with pytest.raises(rustdask.WorkerCrashed) as caught:
        within(60, run, [delayed(tasks.write_stderr_and_die)("these are my last words"), delayed(tasks.nothing)()])
    assert "these are my last words" in caught.value.stderr
    assert "these are my last words" in str(caught.value)


@own
def test_memory_limit(fresh):
    calls = [delayed(tasks.allocate)(2 << 30 if i == 2 else 1 << 20) for i in range(4)]
    with pytest.raises((MemoryError, rustdask.WorkerCrashed), match="(?i)memory") as caught:
        within(90, run, calls, config={"memory_limit": "400MB"}, batch_size=1)
    if isinstance(caught.value, rustdask.WorkerCrashed):
        assert caught.value.index == 2
        assert "memory_limit" in str(caught.value)
    assert run([delayed(tasks.allocate)(1 << 20)] * 4, config={"memory_limit": 400_000_000}) == [1.0] * 4
    assert_usable()


# What cannot be pickled


@own
def test_an_argument_that_cannot_be_pickled_is_named():
    for _ in range(2):
        config = {"cfg": tasks.Holder()}
        with pytest.raises(rustdask.UnpicklableError, match=r"args\[1\]\['cfg'\]\.lock") as caught:
            within(60, run, [delayed(tasks.square)(1), delayed(tasks.are_same)(1, config)], batch_size=1)
        assert "lock" in str(caught.value).replace("].lock", "")
        assert_usable()


@own
def test_an_argument_that_cannot_be_unpickled():
    with pytest.raises(ZeroDivisionError, match="refuses to be loaded"):
        within(60, run, [delayed(tasks.square)(1), delayed(tasks.echo)(tasks.LoadFails())], batch_size=1)
    assert_usable()


@own
def test_a_result_that_cannot_be_pickled_is_named():
    calls = [delayed(tasks.raise_of)(kind) for kind in ("fine", "unpicklable_result")]
    with pytest.raises((pickle.PicklingError, rustdask.RemoteError), match="lock") as caught:
        within(60, run, calls, batch_size=1)
    assert "['inner'][1].lock" in str(caught.value)
    assert_usable()


@own
def test_a_result_that_cannot_be_unpickled():
    with pytest.raises(ZeroDivisionError, match="refuses to be loaded"):
        within(60, run, [delayed(tasks.raise_of)("unloadable_result")] * 3, batch_size=1)
    assert_usable()


@own
def test_an_exception_that_cannot_be_pickled_is_described():
    """It comes as its own type, without what could not travel, or as what stands for it."""
    with pytest.raises((tasks.HoldsLock, rustdask.RemoteError), match="cannot travel") as caught:
        within(60, run, [delayed(tasks.raise_of)("unpicklable_exception")] * 2, batch_size=1)
    text = "".join(traceback.format_exception(caught.value))
    assert "HoldsLock: cannot travel" in text
    assert 'raise HoldsLock("cannot travel")' in text
    assert_usable()


@own
def test_an_exception_whose_constructor_takes_two_arguments():
    with pytest.raises(tasks.TwoArguments, match="7: seven") as caught:
        within(60, run, [delayed(tasks.raise_of)("two_arguments")] * 2, batch_size=1)
    assert caught.value.code == 7
    assert_usable()


# Exceptions as they were


@both_modes
def test_cause_and_notes_travel(mode):
    with pytest.raises(ValueError, match="the effect") as caught:
        run([delayed(tasks.fail_with_cause_and_notes)()] * 2, mode)
    error = caught.value
    if BACKEND == "rustdask" or mode == "threads":
        assert isinstance(error.__cause__, Exception)
        assert "the cause" in "".join(traceback.format_exception(error))
        assert error.__notes__[0] == "a note from the task"


@both_modes
def test_the_traceback_shows_the_task(mode):
    with pytest.raises(ValueError, match="on purpose") as caught:
        run([delayed(tasks.fail)()] * 2, mode)
    text = "".join(traceback.format_exception(caught.value))
    assert "tasks.py" in text
    assert "in fail" in text
    assert "raise ValueError(message)" in text


@both_modes
def test_the_first_failure_in_order_of_time_is_raised(mode, path):
    with pytest.raises(ValueError, match="task 1"):
        run([delayed(tasks.wait_and_return)(path("go"), 0), delayed(tasks.fail_if)(True, 1)], mode, batch_size=1)
    tasks.note(path("go"))


# Not raising, and trying again


@own
@both_modes
def test_on_error_return(mode):
    calls = [delayed(tasks.fail_if)(i % 3 == 1, i) for i in range(9)]
    results = run(calls, mode, config={"on_error": "return"})
    for i, result in enumerate(results):
        if i % 3 == 1:
            assert isinstance(result, rustdask.TaskFailure)
            assert isinstance(result.exception, ValueError)
            assert (result.index, str(result.exception)) == (i, f"task {i}")
            assert "fail_if" in result.function
            assert "tasks.py" in result.traceback
        else:
            assert result == i


@own
@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_on_error_return_in_a_generator(return_as):
    calls = [delayed(tasks.fail_if)(i == 2, i) for i in range(6)]
    results = list(run(calls, config={"on_error": "return"}, return_as=return_as))
    assert len(results) == 6
    assert sum(isinstance(result, rustdask.TaskFailure) for result in results) == 1


@own
@both_modes
def test_retries_until_it_succeeds(mode, path):
    calls = [delayed(tasks.fail_some_times)(path(f"runs{i}"), i, i) for i in range(3)]
    assert run(calls, mode, config={"retries": 2}, batch_size=1) == [0, 1, 2]
    assert [len(tasks.lines_of(path(f"runs{i}"))) for i in range(3)] == [1, 2, 3]


@own
@both_modes
def test_retries_come_to_an_end(mode, path):
    with pytest.raises(OSError, match="run 3"):
        run([delayed(tasks.fail_some_times)(path(), 100, 1)], mode, config={"retries": 2}, batch_size=1)
    assert len(tasks.lines_of(path())) == 3


# Time limits


@own
def test_task_timeout_names_the_task(path):
    calls = [delayed(tasks.note_then_hang_if)(path("pid"), path("runs"), i, i == 4) for i in range(8)]
    with pytest.raises(rustdask.TaskTimeout) as caught:
        within(60, run, calls, config={"task_timeout": 0.5}, batch_size=1)
    assert (caught.value.index, caught.value.timeout) == (4, 0.5)
    assert "note_then_hang_if" in caught.value.function
    wait_until(lambda: not alive(int(tasks.lines_of(path("pid"))[0])), "the worker that overran to end", 5)
    assert_usable()


@own
def test_task_timeout_spares_the_others(path):
    calls = [delayed(tasks.note_then_hang_if)(path("pid"), path("runs"), i, i in (1, 4)) for i in range(8)]
    config = {"task_timeout": 0.5, "on_error": "return"}
    results = within(60, run, calls, config=config, batch_size=1)
    assert [i for i, result in enumerate(results) if isinstance(result, rustdask.TaskFailure)] == [1, 4]
    assert all(isinstance(results[i].exception, rustdask.TaskTimeout) for i in (1, 4))
    assert [results[i] for i in (0, 2, 3, 5, 6, 7)] == [0, 2, 3, 5, 6, 7]
    assert runs(path("runs")) == dict.fromkeys(range(8), 1)


@own
@both_modes
def test_task_timeout_counts_run_time_only(mode):
    """Twelve tasks on two workers wait much longer than their limit before they run."""
    results = run(
        (delayed(tasks.sleep)(0.2) for _ in range(12)), mode, config={"task_timeout": 1.0}, pre_dispatch="all"
    )
    assert results == [0.2] * 12


@own
def test_task_timeout_in_threads(path):
    try:
        with pytest.raises(rustdask.TaskTimeout):
            within(
                30, run, [delayed(tasks.wait_and_return)(path("go"), 0)] * 2, "threads", config={"task_timeout": 0.3}
            )
    finally:
        tasks.note(path("go"))
    assert_usable("threads")


# Broken off


@pytest.mark.parametrize("how", ["closed", "dropped"])
@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_a_generator_ended_early(return_as, how, path):
    calls = [delayed(tasks.square)(3)] + [delayed(tasks.hang_from_first_line)(path()) for _ in range(6)]

    def call():
        results = run(calls, return_as=return_as, batch_size=1)
        assert next(results) == 9
        pid = int(wait_for_lines(path())[0])
        if how == "closed":
            results.close()
        del results
        return pid

    with warnings.catch_warnings():
        # joblib says that tasks have been cancelled.
        warnings.simplefilter("ignore")
        pid = within(60, call)
    wait_until(lambda: not alive(pid), "the cancelled task to end")
    within(60, assert_usable)


@both_modes
@pytest.mark.parametrize("return_as", ["list", "generator"])
def test_an_iterator_that_raises(mode, return_as):
    def calls():
        for i in range(30):
            yield delayed(tasks.square)(i)
        raise LookupError("the source is broken")

    with pytest.raises(LookupError, match="the source is broken"):
        within(60, lambda: list(run(calls(), mode, return_as=return_as, batch_size=1)))
    within(60, assert_usable, mode)


@own
@both_modes
def test_an_iterator_that_calls_parallel(mode):
    def calls():
        for i in range(5):
            yield delayed(tasks.add)(sum(run([delayed(tasks.square)(i)] * 2, mode)))

    assert within(60, lambda: run(calls(), mode)) == [0, 2, 8, 18, 32]


# No outcome leaves a call waiting

OUTCOMES = {
    "success": (),
    "error": (ValueError,),
    "two_arguments": (tasks.TwoArguments,),
    "unpicklable_exception": (tasks.HoldsLock, RuntimeError),
    "system_exit": (SystemExit, RuntimeError),
    "keyboard_interrupt": (KeyboardInterrupt, RuntimeError),
    "generator_exit": (GeneratorExit, RuntimeError),
    "stop_iteration": (StopIteration, RuntimeError),
    "recursion": (RecursionError,),
}
IN_PROCESSES = {
    "unpicklable_result": (pickle.PicklingError, RuntimeError, TypeError),
    "unloadable_result": (ZeroDivisionError, RuntimeError),
}


@own
# joblib takes a task's GeneratorExit for the end of its own generator, and says what that cost.
@pytest.mark.filterwarnings("ignore:.*You could benefit from adjusting:UserWarning")
@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [("threads", *item) for item in OUTCOMES.items()]
    + [("processes", *item) for item in (OUTCOMES | IN_PROCESSES).items()],
)
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_every_outcome_comes_back(n_jobs, mode, kind, expected, return_as):
    calls = (
        [delayed(tasks.raise_of)("fine")] * 3 + [delayed(tasks.raise_of)(kind)] + [delayed(tasks.raise_of)("fine")] * 3
    )

    def call():
        return list(run(calls, mode, n_jobs, return_as=return_as))

    if expected and not (n_jobs == 1 and kind.endswith("able_result")):
        with pytest.raises(expected):
            within(60, call)
    else:
        assert len(within(60, call)) == 7
    within(60, assert_usable, mode)


@own
@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_a_crash_comes_back(return_as):
    calls = [delayed(tasks.die_if)(i == 3, i) for i in range(7)]
    with pytest.raises(rustdask.WorkerCrashed):
        within(60, lambda: list(run(calls, return_as=return_as)))
    within(60, assert_usable)


@own
@both_modes
@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_shutdown_from_another_thread_comes_back(mode, return_as, path):
    calls = [delayed(tasks.note_and_wait)(path("started"), path("go")) for _ in range(6)]

    def stop():
        wait_for_lines(path("started"))
        rustdask.shutdown()
        tasks.note(path("go"))

    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        # Threads may have done all of it before the end: then there is nothing to complain about.
        results = within(60, lambda: list(run(calls, mode, return_as=return_as, batch_size=1)))
        assert results == [None] * 6
        assert mode == "threads"
    except (RuntimeError, InterruptedError) as error:
        assert "shut" in str(error).lower(), error
    stopper.join(30)
    assert not stopper.is_alive()
    within(60, assert_usable, mode)


@own
def test_timeout_and_error_race(path):
    for _ in range(5):
        with pytest.raises((ValueError, TimeoutError, multiprocessing.TimeoutError)):
            calls = [delayed(tasks.hang_from_first_line)(os.devnull), delayed(fail_after_seconds)(0.1)]
            within(60, run, calls, timeout=0.1, batch_size=1)
    within(60, assert_usable)


def fail_after_seconds(seconds):
    time.sleep(seconds)
    raise ValueError("late")


def test_an_error_while_others_are_many(path):
    with pytest.raises(ValueError, match="task 500"):
        within(60, run, (delayed(tasks.fail_if)(i == 500, i) for i in range(100_000)))
    within(60, assert_usable)


# Ctrl-C

INTERRUPTED = """
    import tasks, time
    started, how, mode = sys.argv[1:4]
    def calls():
        if how == "nested":
            return [delayed(tasks.nested_hang)(2, started)] * 2
        return [delayed(tasks.hang_from_first_line)(started)] * 4
    def main():
        with config(mode):
            if how == "generator":
                next(Parallel(return_as="generator")(calls()))
            else:
                Parallel()(calls())
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        with config("processes"):
            print(Parallel()(delayed(tasks.square)(i) for i in range(4)), flush=True)
        if len(sys.argv) > 4:
            raise
"""


@own
@pytest.mark.parametrize("group", [False, True], ids=["process", "terminal"])
@pytest.mark.parametrize("how", ["list", "generator", "nested"])
def test_ctrl_c_in_processes(how, group, path):
    with start_script(INTERRUPTED, path(), how, "processes") as script:
        wait_for_lines(path())
        sent = time.monotonic()
        script.signal(signal.SIGINT, group)
        assert script.process.stdout.readline() == "interrupted\n"
        # 100 ms is the promise; the rest is for a machine that is busy.
        assert time.monotonic() - sent < 2.0
        script.finish()
        assert (script.returncode, script.stdout, script.stderr) == (0, "[0, 1, 4, 9]\n", "")
        assert_ends_clean(script, 3.0)


@own
@pytest.mark.parametrize("how", ["list", "generator", "nested"])
def test_ctrl_c_in_threads_ends_the_script_though_tasks_run(how, path):
    """A thread cannot be ended: the interpreter must not wait for it either."""
    with start_script(INTERRUPTED, path(), how, "threads", "raise") as script:
        wait_for_lines(path())
        sent = time.monotonic()
        script.signal(signal.SIGINT)
        assert script.process.stdout.readline() == "interrupted\n"
        assert time.monotonic() - sent < 2.0
        script.finish()
        assert script.returncode == -signal.SIGINT
        assert script.stderr.splitlines()[-1] == "KeyboardInterrupt"
        assert_ends_clean(script, 3.0)


@own
def test_ctrl_c_between_calls(path):
    script = """
    import tasks, time
    with config():
        print(Parallel()(delayed(tasks.square)(i) for i in range(4)))
        tasks.note(sys.argv[1])
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            print(Parallel()(delayed(tasks.square)(i) for i in range(4)))
    """
    with start_script(script, path()) as script:
        wait_for_lines(path())
        script.signal(signal.SIGINT, group=True)
        script.finish()
        assert (script.returncode, script.stdout, script.stderr) == (0, "[0, 1, 4, 9]\n" * 2, "")


# The end of the parent

LONG_CALL = """
    import numpy as np, tasks
    started, go = sys.argv[1:3]
    big = np.ones(1 << 21)
    def work(array):
        result = array * 2
        tasks.note(started, os.getpid())
        tasks.wait_for_file(go)
        return result
    def die(array):
        tasks.note(started, os.getpid())
        tasks.wait_for_file(go)
    with config():
        Parallel()(delayed(np.sum)(big) for _ in range(4))
        if len(sys.argv) > 3:
            import threading
            def end():
                while len(tasks.lines_of(started)) < 2:
                    pass
                os._exit(9)
            threading.Thread(target=end).start()
        Parallel()(delayed(work)(big) for _ in range(4))
"""


def shared_memory():
    return set(os.listdir("/dev/shm"))


def of_script(names, script):
    """Those that may be the script's; other programs use /dev/shm too."""
    return [name for name in names if f"_{script.pid}_" in name or "rustdask" in name]


@own
@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL", "SIGHUP", "os._exit"])
def test_the_end_of_the_parent_ends_everything(end, path):
    if end == "SIGHUP" and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        pytest.skip("this process was started to outlive its terminal (nohup), and so are its children")
    arguments = [path("started"), path("go")] + (["exit"] if end == "os._exit" else [])
    before = shared_memory()
    with start_script(LONG_CALL, *arguments) as script:
        workers = set(map(int, wait_for_lines(path("started"), 2)))
        if end != "os._exit":
            assert workers <= script.processes()
            script.signal(getattr(signal, end))
        script.process.wait(30)
        ended = time.monotonic()
        assert_ends_clean(script, 3.0)
        assert time.monotonic() - ended < 3.0
        script.finish()
        assert script.returncode == (9 if end == "os._exit" else -getattr(signal, end))
        assert script.stderr == ""
        assert of_script(shared_memory() - before, script) == []


@own
@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_the_end_of_the_parent_while_idle(end, path):
    script = """
    import tasks, time
    with config():
        Parallel()(delayed(tasks.square)(i) for i in range(4))
    tasks.note(sys.argv[1])
    time.sleep(60)
    """
    with start_script(script, path()) as script:
        wait_for_lines(path())
        assert len(script.processes()) > 1
        script.signal(getattr(signal, end))
        script.process.wait(30)
        assert_ends_clean(script, 3.0)
        script.finish()
        assert script.stderr == ""


@own
def test_workers_of_a_killed_parent_end_though_the_task_holds_the_gil(path):
    script = """
    import ctypes, tasks
    def hold(started):
        tasks.note(started, os.getpid())
        ctypes.PyDLL(None).sleep(60)
    with config():
        Parallel()(delayed(hold)(sys.argv[1]) for _ in range(2))
    """
    with start_script(script, path()) as script:
        wait_for_lines(path(), 2)
        script.signal(signal.SIGKILL)
        script.process.wait(30)
        assert_ends_clean(script, 3.0)


@own
def test_an_uncaught_error_ends_the_script_with_its_traceback():
    with start_script("""
    import tasks
    with config():
        Parallel()(delayed(tasks.fail_if)(i == 3, i) for i in range(10))
    """) as script:
        script.finish()
        assert script.returncode == 1
        assert script.stderr.splitlines()[-1] == "ValueError: task 3"
        assert "tasks.py" in script.stderr
        assert_ends_clean(script, 3.0)


@both_modes
def test_many_failures_in_a_row_leave_the_pool_usable(mode):
    with configured(mode):
        for i in range(10):
            with pytest.raises(ValueError, match=f"task {i}"):
                Parallel(n_jobs=2)(delayed(tasks.fail_if)(j == i, j) for j in range(12))
            assert Parallel(n_jobs=2)(delayed(tasks.square)(j) for j in range(3)) == [0, 1, 4]


@own
@both_modes
def test_a_reused_parallel_runs_nothing_of_the_call_that_failed(mode):
    """joblib keeps batches that it had formed, and gives their results to the next call."""
    with configured(mode), Parallel(n_jobs=2) as parallel:
        for i in range(10):
            with pytest.raises(ValueError, match=f"task {i}"):
                parallel(delayed(tasks.fail_if)(j == i, j) for j in range(12))
            assert parallel(delayed(tasks.square)(j) for j in range(3)) == [0, 1, 4]


# Processes that tasks start


@own
@pytest.mark.parametrize("how", ["exit", "return"])
def test_a_process_that_a_task_forks_and_that_comes_back_from_it_ends(how):
    assert within(30, run, [delayed(tasks.fork_and)(how) for _ in range(3)], batch_size=1) == [0, 0, 0]
    assert_usable()


@own
def test_loky_inside_tasks_leaves_nothing_in_shared_memory(fresh):
    before = set(os.listdir("/dev/shm"))
    assert within(60, run, [delayed(tasks.sum_with_loky)(4) for _ in range(2)]) == [14, 14]
    rustdask.shutdown()
    wait_until(lambda: set(os.listdir("/dev/shm")) <= before, "loky's resource tracker to clean up")


@own
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_forked_child_of_a_process_with_a_pool_has_one_of_its_own(large):
    """Forked at the very end of a call, when native threads still let go of its tasks."""
    script = run_script(
        """
        import numpy as np, tasks, warnings
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        array = np.arange(2_000_000.0 if sys.argv[1] == "True" else 10.0)
        def call():
            return Parallel()(delayed(tasks.first_element)(array) for _ in range(4))
        with config():
            for _ in range(20):
                assert call() == [0.0] * 4
                child = os.fork()
                if child == 0:
                    os._exit(call() != [0.0] * 4)
                assert os.waitpid(child, 0)[1] == 0
        print("done")
        """,
        large,
    )
    assert_quiet_success(script, "done")


@own
@both_modes
@pytest.mark.parametrize("batch_size", ["auto", 2, 4])
def test_the_time_limit_is_one_tasks_own_whatever_the_batch(mode, batch_size):
    config = {"task_timeout": 0.7, "on_error": "return"}
    calls = [delayed(tasks.slow_if)(i == 9, i) for i in range(16)]
    results = within(60, run, calls, mode, config=config, batch_size=batch_size)
    assert [i for i, result in enumerate(results) if isinstance(result, rustdask.TaskFailure)] == [9]
