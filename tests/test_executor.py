"""`rustdask.Executor` in the place of the executors of `concurrent.futures`."""

from __future__ import annotations

import asyncio
import concurrent.futures.process
import concurrent.futures.thread
import contextvars
import gc
import signal
import threading
import traceback
import weakref

import helpers
import pytest
import tasks
from helpers import PATIENCE_S, assert_quiet_success, run_script, wait_for_lines, wait_until, within

rustdask = pytest.importorskip("rustdask")
from rustdask import Executor, UnpicklableError, WorkerCrashed, _executor_pools, get_client  # noqa: E402

pytestmark = helpers.own


BROKEN = {False: concurrent.futures.thread.BrokenThreadPool, True: concurrent.futures.process.BrokenProcessPool}
"""What the standard library's executors raise once they are broken, in threads and in processes."""

both_kinds = pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])


@pytest.fixture(params=["threads", "processes"])
def executor(request):
    with Executor(2, processes=request.param == "processes") as made:
        yield made


def test_submit_and_map(executor):
    future = executor.submit(tasks.add, 1, y=2)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(PATIENCE_S) == 3
    assert list(executor.map(tasks.add, range(5), range(5))) == [0, 2, 4, 6, 8]
    assert list(executor.map(tasks.square, range(10), chunksize=3)) == [i * i for i in range(10)]
    with pytest.raises(ValueError):
        list(executor.map(tasks.square, range(3), chunksize=0))


def test_the_standard_librarys_wait_and_as_completed(executor):
    futures = [executor.submit(tasks.square, i) for i in range(20)]
    assert concurrent.futures.wait(futures, PATIENCE_S).not_done == set()
    assert {future.result() for future in concurrent.futures.as_completed(futures)} == {i * i for i in range(20)}


def test_errors(executor):
    future = executor.submit(tasks.fail, "oh")
    with pytest.raises(Exception, match="oh"):
        future.result(PATIENCE_S)
    with pytest.raises(Exception, match="oh"):
        list(executor.map(tasks.fail, ["oh"]))


def test_map_times_out(executor, path):
    with pytest.raises(TimeoutError):
        list(executor.map(tasks.wait_for_file, [path("go")], timeout=0.05))
    tasks.note(path("go"))


def test_what_waits_can_be_cancelled_and_what_runs_cannot(executor, path):
    running = executor.submit(tasks.note_and_wait, path(), path("go"))
    wait_for_lines(path())
    others = [executor.submit(tasks.note_and_wait, path(f"o{i}"), path("go")) for i in range(50)]
    assert not running.cancel()
    assert others[-1].cancel()
    assert others[-1].cancelled()
    tasks.note(path("go"))
    assert concurrent.futures.wait([running, *others], PATIENCE_S).not_done == set()


def test_shutdown(executor, path):
    blockers = [executor.submit(tasks.note_and_wait, path(f"b{i}"), path("go")) for i in range(2)]
    for i in range(2):
        wait_for_lines(path(f"b{i}"))
    waiting = [executor.submit(tasks.square, i) for i in range(5000)]
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(tasks.square, 1)
    assert waiting[-1].cancelled()
    tasks.note(path("go"))
    executor.shutdown(wait=True)
    assert all(blocker.done() for blocker in blockers)


@both_kinds
def test_initializers(path, processes):
    with Executor(2, processes=processes, initializer=tasks.note, initargs=(path(),)) as executor:
        assert list(executor.map(tasks.square, range(10))) == [i * i for i in range(10)]
        assert 1 <= len(tasks.lines_of(path())) <= 2
    with Executor(2, processes=processes, initializer=tasks.fail) as executor:
        with pytest.raises(BROKEN[processes]):
            executor.submit(tasks.square, 1).result(PATIENCE_S)
        with pytest.raises(BROKEN[processes]):
            executor.submit(tasks.square, 1)


def test_an_initializer_is_pickled_once(path):
    counter = tasks.CountsTravels(path())
    with Executor(1, initializer=counter.tell) as executor:
        assert [executor.submit(tasks.square, i).result(PATIENCE_S) for i in range(3)] == [0, 1, 4]
    assert tasks.lines_of(path()).count("pickled") == 1


def test_what_a_task_does_to_its_function_is_not_seen_by_others():
    with Executor(1) as executor:
        assert [future.result(PATIENCE_S) for future in [executor.submit(Counter()) for _ in range(3)]] == [1, 1, 1]
        counter = Counter()
        assert [future.result(PATIENCE_S) for future in [executor.submit(counter) for _ in range(3)]] == [1, 1, 1]


def test_a_task_that_ends_its_workers_fails_alone():
    with Executor(2) as executor:
        others = [executor.submit(tasks.square, i) for i in range(20)]
        with pytest.raises(WorkerCrashed) as caught:
            executor.submit(tasks.die).result(PATIENCE_S)
        assert isinstance(caught.value, concurrent.futures.process.BrokenProcessPool)
        assert caught.value.signal == signal.SIGKILL
        assert [future.result(PATIENCE_S) for future in others] == [i * i for i in range(20)]


def test_in_an_event_loop(executor):
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, tasks.square, i) for i in range(10)))

    assert asyncio.run(main()) == [i * i for i in range(10)]


def test_callbacks(executor):
    done = threading.Event()
    executor.submit(tasks.square, 3).add_done_callback(lambda future: done.set())
    assert done.wait(PATIENCE_S)


def test_an_executor_that_is_gone_leaves_nothing(executor):
    other = Executor(1, processes=False)
    assert other.submit(tasks.square, 2).result(PATIENCE_S) == 4
    ref = weakref.ref(other)
    del other
    gc.collect()
    assert ref() is None


def test_the_interpreters_end_waits_for_what_was_submitted():
    script = """
        import sys, time
        from rustdask import Executor

        executor = Executor(2, processes=sys.argv[1] == "processes")
        executor.submit(time.sleep, 0.2).add_done_callback(lambda future: print("done", flush=True))
        """
    for mode in ("threads", "processes"):
        assert_quiet_success(run_script(script, mode), "done")


# What is kept, and for how long


class Owner:
    """Travels as what it holds at the time."""

    def __init__(self, held=0):
        self.held = held

    def tell(self):
        return self.held

    def __call__(self):
        return self.held


def fail_in_own_way():
    raise OwnError


class OwnError(Exception):
    pass


class Counter:
    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return self.count


def test_callables_are_called_as_they_are_when_they_are_submitted(executor):
    owner = Owner()
    for held in range(3):
        owner.held = held
        by_method, by_itself, by_closure = executor.submit(owner.tell), executor.submit(owner), None
        by_closure = executor.submit(lambda: owner.held)
        assert [future.result(PATIENCE_S) for future in (by_method, by_itself, by_closure)] == [held] * 3


def test_functions_and_arguments_are_let_go_of(executor):
    owner, argument = Owner(), Owner()
    gone = [weakref.ref(owner), weakref.ref(argument)]
    executor.submit(owner.tell).result(PATIENCE_S)
    executor.submit(tasks.nothing.__class__, tasks.nothing.__code__, {"held": argument})
    executor.submit(tasks.echo, argument).result(PATIENCE_S)
    del owner, argument
    wait_until(lambda: all(ref() is None for ref in gone), "objects to be freed")


def test_errors_do_not_keep_themselves(executor):
    gc.collect()
    gc.disable()
    try:
        future = executor.submit(fail_in_own_way)
        error = weakref.ref(future.exception(PATIENCE_S))
        executor.submit(tasks.nothing).result(PATIENCE_S)
        del future
        wait_until(lambda: error() is None, "the error to be freed without the garbage collector")
    finally:
        gc.enable()


@both_kinds
def test_futures_outlive_their_executor(processes, path):
    executor = Executor(2, processes=processes)
    futures = [executor.submit(tasks.wait_and_return, path("go"), i) for i in range(20)]
    del executor
    tasks.note(path("go"))
    assert [future.result(PATIENCE_S) for future in futures] == list(range(20))
    wait_until(lambda: not _executor_pools._open, "the pool to end")


# map


def test_chunks(executor):
    for size in (1, 3, 10, 100):
        assert list(executor.map(tasks.add, range(10), range(12), chunksize=size)) == [2 * i for i in range(10)]
    assert list(executor.map(tasks.echo, [], chunksize=4)) == []


def test_map_submits_at_once_and_cancels_what_is_not_taken(executor, path):
    results = executor.map(tasks.note_and_return, [path()] * 4, range(4))
    wait_for_lines(path(), 4)
    assert next(results) == 0
    results.close()
    blocked = executor.map(tasks.wait_for_file, [path("go")] * 2000)
    blocked.close()
    tasks.note(path("go"))
    executor.shutdown()


def test_a_buffer_holds_the_input_back(executor):
    taken = []

    def numbers():
        for i in range(100):
            taken.append(i)
            yield i

    results = executor.map(tasks.square, numbers(), buffersize=5)
    assert len(taken) == 5
    assert [next(results) for _ in range(10)] == [i * i for i in range(10)]
    assert len(taken) <= 15
    assert list(results) == [i * i for i in range(10, 100)]
    assert list(executor.map(tasks.square, range(10), buffersize=2, chunksize=3)) == [i * i for i in range(10)]
    with pytest.raises(TypeError, match="buffersize must be an integer or None"):
        executor.map(tasks.square, [], buffersize="2")
    with pytest.raises(ValueError, match="buffersize must be None or > 0"):
        executor.map(tasks.square, [], buffersize=0)


def test_a_buffered_map_keeps_its_executor():
    results = Executor(1, processes=False).map(tasks.square, range(50), buffersize=2)
    gc.collect()
    assert list(results) == [i * i for i in range(50)]


# Failures


def test_tracebacks_show_the_task():
    with Executor(1) as executor:
        error = executor.submit(tasks.fail).exception(PATIENCE_S)
    assert "in fail" in "".join(traceback.format_exception(error))


def test_what_cannot_be_pickled_fails_alone():
    with Executor(1) as executor:
        futures = list(map(executor.submit, [tasks.echo] * 3, [1, threading.Lock(), 3]))
        error = futures[1].exception(PATIENCE_S)
        assert isinstance(error, UnpicklableError)
        assert "_thread.lock" in str(error)
        assert [futures[at].result(PATIENCE_S) for at in (0, 2)] == [1, 3]
        with pytest.raises(UnpicklableError):
            list(executor.map(tasks.echo, [1, threading.Lock()]))


def test_an_exit_is_an_error_of_the_task(executor):
    with pytest.raises(SystemExit):
        executor.submit(exit, 3).result(PATIENCE_S)
    assert executor.submit(tasks.square, 3).result(PATIENCE_S) == 9


def test_a_crash_names_its_function():
    with Executor(1) as executor:
        assert "(die" in str(executor.submit(tasks.die).exception(PATIENCE_S))


def test_a_worker_that_takes_the_place_of_another_is_initialized(path):
    with Executor(1, initializer=tasks.initialize, initargs=(path(), "yes")) as executor:
        with pytest.raises(WorkerCrashed):
            executor.submit(tasks.die).result(PATIENCE_S)
        assert executor.submit(tasks.initialized).result(PATIENCE_S)[0] == ("yes",)


@both_kinds
def test_a_failed_initializer_is_logged_and_fails_what_waits(processes, caplog):
    with Executor(1, processes=processes, initializer=tasks.fail, initargs=("badly",)) as executor:
        futures = [executor.submit(tasks.nothing)]
        with pytest.raises(BROKEN[processes]):
            while len(futures) < 10_000:
                futures.append(executor.submit(tasks.nothing))
            futures[0].result(PATIENCE_S)
        errors = {type(future.exception(PATIENCE_S)) for future in futures}
        assert errors == {BROKEN[processes]}
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]
    assert "badly" in caplog.text


@both_kinds
def test_what_is_left_when_rustdask_shuts_down_fails(processes, path):
    executor = Executor(1, processes=processes)
    running = executor.submit(tasks.note_and_wait, path(), path("go"), 5)
    wait_for_lines(path())
    waiting = [executor.submit(tasks.nothing) for _ in range(50)]
    # A thread is let to its end.
    threading.Timer(0.05, tasks.note, [path("go")]).start()
    rustdask.shutdown()
    assert {type(future.exception(PATIENCE_S)) for future in waiting} == {BROKEN[processes]}
    assert running.done() or running.result(PATIENCE_S) == 5
    with pytest.raises(BROKEN[processes]):
        executor.submit(tasks.nothing)
    within(PATIENCE_S, executor.shutdown)


# Threads and processes around it


def test_many_threads_submit(executor):
    def submit_some(start):
        futures = [executor.submit(tasks.square, i) for i in range(start, start + 200)]
        return [future.result(PATIENCE_S) for future in futures]

    with concurrent.futures.ThreadPoolExecutor(8) as around:
        results = [around.submit(submit_some, start) for start in range(0, 1600, 200)]
        assert [value for result in results for value in result.result()] == [i * i for i in range(1600)]


def test_shutdown_from_several_threads(executor):
    futures = [executor.submit(tasks.square, i) for i in range(100)]
    with concurrent.futures.ThreadPoolExecutor(4) as around:
        list(around.map(lambda _: executor.shutdown(), range(4)))
    assert all(future.done() for future in futures)


def test_a_task_cannot_wait_for_its_own_executor():
    with Executor(1, processes=False) as executor:
        with pytest.raises(RuntimeError, match="give shutdown wait=False"):
            executor.submit(executor.shutdown).result(PATIENCE_S)
        executor.submit(executor.shutdown, wait=False).result(PATIENCE_S)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(tasks.nothing)


def test_tasks_submit_to_the_same_pool():
    def outer(i):
        return get_client().submit(tasks.square, i).result()

    with Executor(1, processes=False) as executor:
        assert list(executor.map(outer, range(6))) == [i * i for i in range(6)]


def test_threads_run_at_once_and_take_what_waits(gauge):
    with Executor(3, processes=False) as executor:
        list(executor.map(tasks.busy_inside, [gauge] * 6, [3] * 6))
        assert gauge.peak == 3
        # Nobody serves the queue any more, and then somebody has to again.
        assert list(executor.map(tasks.square, range(100))) == [i * i for i in range(100)]


def test_contexts_reach_calls_in_threads():
    variable = contextvars.ContextVar("variable", default=0)
    with Executor(1, processes=False) as executor:
        futures = []
        for value in range(5):
            variable.set(value)
            futures.append(executor.submit(variable.get))
        assert [future.result(PATIENCE_S) for future in futures] == list(range(5))


def test_a_forked_process_has_nothing_to_do_with_it():
    script = """
        import os, sys, threading
        from rustdask import Executor

        executor = Executor(1, processes=sys.argv[1] == "processes")
        unused = Executor(1, processes=False)
        go = threading.Event()
        waiting = executor.submit(int, 5)
        waiting.result()
        child = os.fork()
        if child == 0:
            try:
                executor.submit(int)
            except RuntimeError as error:
                print(error, flush=True)
            print(unused.submit(int, 3).result(), flush=True)
            executor.shutdown()
            sys.exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), executor.submit(int, 6).result())
        """
    for mode in ("threads", "processes"):
        refusal = "this executor belongs to the process that this one was forked from; make one here"
        # Since Python 3.12, to fork with threads around is warned of.
        script_ended = run_script(script, mode, options=["-W", "ignore::DeprecationWarning"])
        assert_quiet_success(script_ended, refusal, "3", "0 6")


def test_after_the_interpreters_end():
    script = """
        import atexit, sys
        from rustdask import Executor

        def submit():
            try:
                executor.submit(int)
            except RuntimeError as error:
                print(error)

        atexit.register(submit)
        executor = Executor(1, processes=sys.argv[1] == "processes")
        """
    for mode in ("threads", "processes"):
        message = "cannot schedule new futures after interpreter shutdown"
        assert_quiet_success(run_script(script, mode), message)


# How far ahead


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(_executor_pools.time, "monotonic", lambda: Clock.now)
    return Clock


def test_of_slow_tasks_few_are_handed_over(clock):
    pace = _executor_pools._Pace(3)
    for _ in range(10):
        clock.now += 1.0
        # The two workers end theirs at the same time.
        pace.count(1)
        pace.count(1)
        assert pace.ahead == 3


def test_of_quick_tasks_many_are_handed_over_until_they_are_slow(clock):
    pace = _executor_pools._Pace(3)
    for _ in range(2000):
        clock.now += 1e-6
        pace.count(1)
    assert pace.ahead == _executor_pools._MOST_AHEAD
    for _ in range(4000):
        clock.now += 1.0
        pace.count(1)
    assert pace.ahead == 3


def test_futures_run_or_can_be_cancelled():
    with Executor(1) as executor:
        go = threading.Event()
        with Executor(1, processes=False) as threads:
            first, second = threads.submit(go.wait), threads.submit(tasks.nothing)
            wait_until(first.running, "the task to run")
            assert not second.running()
            assert not first.cancel()
            assert second.cancel()
            go.set()
        assert executor.submit(tasks.square, 2).result(PATIENCE_S) == 4


@pytest.mark.parametrize("wrong", [0, -1])
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        Executor(wrong)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        Executor(1, initializer=5)
