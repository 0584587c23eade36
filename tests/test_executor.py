"""`rustdask.Executor` in the place of the executors of `concurrent.futures`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import signal
import threading
import weakref

import helpers
import pytest
import tasks
from helpers import PATIENCE_S, assert_quiet_success, run_script, wait_for_lines

rustdask = pytest.importorskip("rustdask")
from rustdask import Executor, WorkerCrashed  # noqa: E402

pytestmark = helpers.own


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


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_initializers(path, processes):
    with Executor(2, processes=processes, initializer=tasks.note, initargs=(path(),)) as executor:
        assert list(executor.map(tasks.square, range(10))) == [i * i for i in range(10)]
        assert 1 <= len(tasks.lines_of(path())) <= 2
    with Executor(2, processes=processes, initializer=tasks.fail) as executor:
        with pytest.raises(concurrent.futures.BrokenExecutor):
            executor.submit(tasks.square, 1).result(PATIENCE_S)
        with pytest.raises(concurrent.futures.BrokenExecutor):
            executor.submit(tasks.square, 1)


def test_a_task_that_ends_its_workers_fails_alone():
    with Executor(2) as executor:
        others = [executor.submit(tasks.square, i) for i in range(20)]
        with pytest.raises(WorkerCrashed) as caught:
            executor.submit(tasks.die).result(PATIENCE_S)
        assert isinstance(caught.value, concurrent.futures.BrokenExecutor)
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
