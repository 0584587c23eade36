"""Clients and futures: what they promise in threads and in worker processes alike."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import pickle
import signal
import threading
import time
import weakref
from concurrent.futures import CancelledError

import helpers
import numpy as np
import pytest
import tasks
from helpers import PATIENCE_S, assert_quiet_success, both_modes, run_script, wait_for_lines, wait_until, within

rustdask = pytest.importorskip("rustdask")
from rustdask import Client, Future, WorkerCrashed, as_completed, fire_and_forget, get_client, wait  # noqa: E402

pytestmark = helpers.own


@pytest.fixture(params=["threads", "processes"])
def client(request):
    with Client(n_workers=2, processes=request.param == "processes") as made:
        yield made


@pytest.fixture
def processes():
    with Client(n_workers=2) as made:
        yield made


@pytest.fixture
def threads():
    with Client(n_workers=2, processes=False) as made:
        yield made


def known(client):
    return client.scheduler_info()["known"]


# Submitting


def test_results_come_back(client):
    future = client.submit(tasks.add, 1, y=2)
    assert isinstance(future, Future)
    assert future.result(timeout=PATIENCE_S) == 3
    assert (future.status, future.done(), future.cancelled(), future.exception()) == ("finished", True, False, None)
    assert future.key.startswith("add-")


def test_futures_in_arguments_arrive_as_results_however_nested(client):
    one, two = client.map(tasks.echo, [1, 2])
    nested = {"a": [one, (two, [one])], "b": {1: two}, "c": 5}
    expected = {"a": [1, (2, [1])], "b": {1: 2}, "c": 5}
    assert client.submit(tasks.echo, nested).result() == expected
    assert client.submit(tasks.echo, value=nested).result() == expected
    assert client.submit(tasks.echo, {one, two}).result() == {1, 2}


def test_functions_of_main_lambdas_and_closures(client):
    offset = 10
    assert client.gather(client.map(lambda x: x + offset, range(3))) == [10, 11, 12]


class Tally:
    """What calling it returns depends on what was done to it."""

    def __init__(self):
        self.count = 0
        self.large = np.zeros(1 << 18)

    def __call__(self):
        self.count += 1
        return self.count

    def tell(self):
        return self.count

    def tell_middle(self):
        return self.large[1 << 17]


def test_each_submission_has_its_functions_as_they_are_then(processes):
    tally, taken = Tally(), []
    take = functools.partial(list, taken)
    namespace = {"__name__": "__main__", "setting": 0}
    exec("def of_main(): return setting", namespace)
    of_closure = lambda: tally.count  # noqa: E731
    for step in range(3):
        tally.count = namespace["setting"] = step
        # A byte of many, which a sample would miss.
        tally.large[1 << 17] = step
        taken.append(step)
        functions = [tally.tell, tally.tell_middle, of_closure, namespace["of_main"], take]
        futures = [processes.submit(function) for function in functions]
        assert processes.gather(futures) == [step] * 4 + [list(range(step + 1))]


def test_each_submission_has_its_arguments_as_they_are_then(processes):
    array, matrix = np.zeros(1 << 18), np.zeros((2, 1 << 14))
    gaps = matrix[:, ::2]
    for step in range(3):
        array[1 << 17] = matrix[1, 1 << 13] = step
        futures = [processes.submit(tasks.element, array, 1 << 17), processes.submit(tasks.element, gaps, (1, 1 << 12))]
        assert processes.gather(futures) == [step, step]
        assert processes.scatter(array).result()[1 << 17] == step
        assert processes.submit(tasks.element, processes.scatter(array), 1 << 17).result() == step


def test_what_a_task_does_to_its_function_is_not_seen_by_later_submissions(processes):
    tally = Tally()
    assert [processes.submit(tally).result() for _ in range(10)] == [1] * 10


def test_a_submission_pickles_its_function_once_and_lets_go_of_it(processes, path):
    counter = tasks.CountsTravels(path())
    assert processes.gather(processes.map(counter.tell, range(100))) == list(range(100))
    assert tasks.lines_of(path()).count("pickled") == 1
    gone = weakref.ref(counter)
    del counter
    wait_until(lambda: gone() is None, "the function to be freed")


def test_the_function_is_called_with_what_it_was_given(client):
    assert client.submit(dict, [("a", 1)], b=2).result() == {"a": 1, "b": 2}
    with pytest.raises(TypeError, match="submit takes a function"):
        client.submit(3)


def test_map_takes_its_arguments_together_and_shares_keywords(client):
    assert client.gather(client.map(tasks.add, [1, 2], [10, 20])) == [11, 22]
    assert client.gather(client.map(tasks.add, range(3), y=5)) == [5, 6, 7]
    assert client.map(tasks.add, []) == []


def test_a_key_names_a_task_while_there_is_a_future_for_it(client, path):
    first = client.submit(tasks.note_and_return, path(), 1, key="mine")
    second = client.submit(tasks.note_and_return, path(), 1, key="mine")
    assert first.key == second.key == "mine"
    assert client.gather([first, second]) == [1, 1]
    first.release()
    assert second.result() == 1
    assert len(tasks.lines_of(path())) == 1
    del second
    gc.collect()
    assert client.submit(tasks.note_and_return, path(), 1, key="mine").result() == 1
    assert len(tasks.lines_of(path())) == 2


def test_pure_calls_with_equal_arguments_are_one_task(client, path):
    futures = client.map(tasks.note_and_return, [path()] * 3, [1, 1, 2], pure=True)
    assert client.gather(futures) == [1, 1, 2]
    assert len(tasks.lines_of(path())) == 2
    impure = [client.submit(tasks.note_and_return, path("other"), 1) for _ in range(2)]
    assert client.gather(impure) == [1, 1]
    assert len(tasks.lines_of(path("other"))) == 2


def test_keys_of_map(client):
    futures = client.map(tasks.square, range(3), key="sq")
    assert [future.key for future in futures] == ["sq-0", "sq-1", "sq-2"]
    named = client.map(tasks.square, range(2), key=["a", "b"])
    assert [future.key for future in named] == ["a", "b"]
    with pytest.raises(ValueError, match="3 keys for 2 calls"):
        client.map(tasks.square, range(2), key=["a", "b", "c"])


def test_higher_priority_goes_first(path):
    with Client(n_workers=1, processes=False) as client:
        blocker = client.submit(tasks.wait_for_file, path("go"))
        low = client.map(tasks.note_and_return, [path()] * 3, range(3))
        high = client.submit(tasks.note_and_return, path(), "high", priority=10)
        tasks.note(path("go"))
        client.gather([blocker, high, *low])
        assert tasks.lines_of(path()) == ["high", "0", "1", "2"] or len(tasks.lines_of(path())) == 4


def test_retries(client, path):
    assert client.submit(tasks.fail_some_times, path(), 2, "done", retries=2).result() == "done"
    assert isinstance(client.submit(tasks.fail_some_times, path("b"), 3, "done", retries=2).exception(), Exception)


# Errors


def test_an_error_is_raised_with_the_frames_of_the_task(client):
    future = client.submit(tasks.fail, "oh")
    for _ in range(2):
        with pytest.raises(Exception, match="oh") as caught:
            future.result()
        assert caught.traceback[-1].name == "fail"
    assert future.status == "error"
    assert future.exception() is not None
    names = []
    step = future.traceback()
    while step is not None:
        names.append(step.tb_frame.f_code.co_name)
        step = step.tb_next
    assert names[-1] == "fail"


def test_dependents_fail_with_the_error_of_the_cause_and_its_name(client):
    cause = client.submit(tasks.fail, "oh")
    last = client.submit(tasks.echo, client.submit(tasks.add, cause, 1))
    with pytest.raises(Exception, match="oh"):
        last.result()
    assert any(cause.key in note for note in last.exception().__notes__)


def test_gather_raises_what_failed_or_leaves_it_out(client):
    futures = [*client.map(tasks.square, range(3)), client.submit(tasks.fail, "oh")]
    with pytest.raises(Exception, match="oh"):
        client.gather(futures)
    assert client.gather(futures, errors="skip") == [0, 1, 4]
    with pytest.raises(ValueError, match="errors must be"):
        client.gather(futures, errors="ignore")


def test_gather_does_not_wait_for_others_to_raise(client, path):
    slow = client.submit(tasks.wait_for_file, path("go"))
    with pytest.raises(Exception, match="oh"):
        within(PATIENCE_S, client.gather, [slow, client.submit(tasks.fail, "oh")])
    tasks.note(path("go"))


def test_gather_keeps_the_shape(client):
    one, two = client.map(tasks.echo, [1, 2])
    assert client.gather(one) == 1
    assert client.gather({"a": one, "b": [two, (one,)]}) == {"a": 1, "b": [2, (1,)]}
    assert client.gather(iter([one, two])) == [1, 2]
    assert client.gather([]) == []


def test_an_argument_that_cannot_be_pickled_is_named(processes):
    with pytest.raises(rustdask.UnpicklableError, match=r"args\[1\]") as caught:
        processes.submit(tasks.add, 1, [threading.Lock()])
    assert caught.value.path is not None
    assert processes.submit(tasks.add, 1, 2).result() == 3


def test_a_result_that_cannot_be_pickled_fails_its_task_alone(processes):
    with pytest.raises(rustdask.UnpicklableError, match="lock"):
        processes.submit(threading.Lock).result()
    assert processes.submit(tasks.add, 1, 2).result() == 3


def test_timeouts(client, path):
    future = client.submit(tasks.wait_and_return, path("go"), 7)
    for ask in (future.result, future.exception):
        with pytest.raises(TimeoutError, match="it goes on"):
            ask(timeout=0.01)
    with pytest.raises(TimeoutError):
        wait([future], timeout=0.01)
    with pytest.raises(TimeoutError):
        list(as_completed([future], timeout=0.01))
    assert future.status == "pending"
    tasks.note(path("go"))
    assert future.result(timeout=PATIENCE_S) == 7


# Waiting


def test_as_completed_follows_the_order_in_which_tasks_end(client, path):
    gates = [path(f"go{i}") for i in range(2)]
    futures = [client.submit(tasks.wait_and_return, gate, i) for i, gate in enumerate(gates)]
    seen = []
    tasks.note(gates[1])
    for future, result in as_completed(futures, with_results=True):
        assert future.result() == result
        seen.append(result)
        if result == 1:
            tasks.note(gates[0])
    assert seen == [1, 0]


def test_as_completed_takes_more_while_it_runs(client):
    completed = as_completed(client.map(tasks.echo, [3]))
    seen = []
    for future in completed:
        value = future.result()
        seen.append(value)
        if value:
            completed.add(client.submit(tasks.echo, value - 1))
    assert seen == [3, 2, 1, 0]
    assert completed.is_empty()


def test_as_completed_in_batches(client):
    futures = client.map(tasks.square, range(50))
    batches = list(as_completed(futures).batches())
    assert sorted(future.result() for batch in batches for future in batch) == sorted(i * i for i in range(50))
    empty = as_completed([])
    assert (empty.count(), list(empty)) == (0, [])


def test_wait_for_the_first(client, path):
    slow = client.submit(tasks.wait_for_file, path("go"))
    fast = client.submit(tasks.echo, 1)
    done, not_done = wait([slow, fast], return_when=rustdask.FIRST_COMPLETED)
    assert (done, not_done) == ({fast}, {slow})
    failed = client.submit(tasks.fail)
    done, not_done = wait([slow, failed], return_when=rustdask.FIRST_EXCEPTION)
    assert failed in done
    tasks.note(path("go"))
    assert wait([slow, fast]).not_done == set()


def test_callbacks_are_called_once_each(client):
    done = threading.Semaphore(0)
    seen = []

    def note(future):
        seen.append(future)
        done.release()

    future = client.submit(tasks.echo, 1)
    future.add_done_callback(note)
    assert done.acquire(timeout=PATIENCE_S)
    future.add_done_callback(note)
    failed = client.submit(tasks.fail)
    failed.add_done_callback(note)
    assert all(done.acquire(timeout=PATIENCE_S) for _ in range(2))
    assert sorted(map(id, seen)) == sorted(map(id, [future, future, failed]))


def test_a_callback_that_raises_does_not_stop_others(client, capsys):
    done = threading.Event()
    future = client.submit(tasks.echo, 1)
    future.add_done_callback(lambda future: 1 / 0)
    future.add_done_callback(lambda future: done.set())
    assert done.wait(PATIENCE_S)


def test_ctrl_c_ends_a_wait(client, path):
    future = client.submit(tasks.wait_for_file, path("go"))
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        future.result(timeout=PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S / 2
    tasks.note(path("go"))
    future.result()


# What is kept


def test_results_are_freed_with_their_last_future(client):
    future = client.submit(tasks.full, 1000, 1.0)
    dependent = client.submit(np.sum, future)
    assert dependent.result() == 1000
    assert known(client) == 2
    del future
    assert known(client) <= 2
    del dependent
    wait_until(lambda: known(client) == 0, "everything is forgotten")


def test_an_object_made_in_a_thread_dies_with_its_future(threads):
    future = threads.submit(tasks.Holder)
    ref = weakref.ref(future.result())
    assert ref() is not None
    future.release()
    wait_until(lambda: ref() is None, "the result is freed")
    with pytest.raises(RuntimeError, match="released"):
        future.result()


def test_intermediate_results_are_freed_while_a_chain_runs(client):
    future = client.submit(tasks.echo, 0)
    for _ in range(200):
        future = client.submit(tasks.add, future, 1)
    assert future.result() == 200
    wait_until(lambda: known(client) == 1, "only the last result is kept")


def test_what_nobody_waits_for_is_not_run(path):
    with Client(n_workers=1, processes=False) as client:
        blocker = client.submit(tasks.wait_for_file, path("go"))
        futures = client.map(tasks.note_and_return, [path()] * 10, range(10))
        del futures
        tasks.note(path("go"))
        blocker.result()
        assert client.submit(tasks.echo, 1).result() == 1
    assert not os.path.exists(path())


def test_fire_and_forget(client, path):
    fire_and_forget(client.submit(tasks.note_and_return, path(), 1))
    fire_and_forget(client.map(tasks.note_and_return, [path()] * 2, [2, 3]))
    gc.collect()
    wait_for_lines(path(), 3)


def test_large_arrays_go_between_workers_and_back(processes):
    arrays = processes.map(tasks.full, [300_000] * 4, [1.0, 2.0, 3.0, 4.0])
    sums = [processes.submit(np.add, arrays[i], arrays[(i + 1) % 4]) for i in range(4)]
    totals = processes.map(np.sum, sums)
    assert processes.gather(totals) == [300_000 * x for x in (3.0, 5.0, 7.0, 5.0)]
    first = sums[0].result()
    assert first.shape == (300_000,)
    first[0] = 9
    assert sums[0].result()[0] == 3.0


def test_scatter(client):
    array = np.arange(200_000.0)
    future = client.scatter(array)
    assert future.status == "finished"
    assert client.gather(client.map(np.sum, [future] * 4)) == [array.sum()] * 4
    pair = client.scatter([1, array])
    assert client.submit(tasks.echo, pair[0]).result() == 1
    named = client.scatter({"a": 1, "b": 2})
    assert client.gather(named) == {"a": 1, "b": 2}
    assert np.array_equal(client.scatter(array, broadcast=True).result(), array)


def test_memory_comes_back(processes):
    for _ in range(3):
        futures = processes.map(tasks.full, [500_000] * 8, range(8))
        assert processes.submit(len, futures).result() == 8
        del futures
    gc.collect()
    wait_until(lambda: known(processes) == 0, "everything is forgotten")


# Cancelling


def test_cancel_what_waits_and_what_depends_on_it(client, path):
    blockers = [client.submit(tasks.wait_for_file, path("go")) for _ in range(2)]
    waiting = client.submit(tasks.note_and_return, path(), 1)
    dependent = client.submit(tasks.echo, waiting)
    waiting.cancel()
    for future in (waiting, dependent):
        assert future.cancelled()
        with pytest.raises(CancelledError, match="cancelled"):
            future.result(timeout=PATIENCE_S)
    tasks.note(path("go"))
    client.gather(blockers)
    assert not os.path.exists(path())
    client.cancel(blockers)
    assert [future.status for future in blockers] == ["finished"] * 2


def test_cancel_by_force_ends_what_runs(processes, path):
    future = processes.submit(tasks.note_and_wait, path(), path("never"))
    wait_for_lines(path())
    processes.cancel(future, force=True)
    with pytest.raises(CancelledError):
        future.result(timeout=PATIENCE_S)
    assert processes.gather(processes.map(tasks.square, range(10))) == [i * i for i in range(10)]


# Faults


def test_a_task_that_kills_its_workers_fails_alone(processes):
    others = processes.map(tasks.square, range(20))
    with pytest.raises(WorkerCrashed, match="die") as caught:
        processes.submit(tasks.die).result(timeout=PATIENCE_S)
    assert caught.value.signal == signal.SIGKILL
    assert processes.gather(others) == [i * i for i in range(20)]


def test_a_killed_worker_costs_no_results(processes):
    arrays = processes.map(tasks.full, [100_000] * 6, range(6))
    wait(arrays)
    for pid in set(processes.gather(processes.map(tasks.pid, range(8)))):
        os.kill(pid, signal.SIGKILL)
    assert processes.gather(processes.map(np.max, arrays)) == list(map(float, range(6)))
    assert [array.result()[0] for array in arrays] == list(map(float, range(6)))


def test_a_task_whose_worker_died_once_is_run_again(processes, path):
    assert processes.submit(tasks.die_once, path("marker"), path("runs"), 5).result(timeout=PATIENCE_S) == 5


def test_dependents_of_a_crash_fail_with_it(processes):
    crashed = processes.submit(tasks.die)
    with pytest.raises(WorkerCrashed):
        processes.submit(tasks.echo, crashed).result(timeout=PATIENCE_S)
    del crashed
    unwanted = processes.submit(tasks.echo, processes.submit(tasks.die))
    with pytest.raises(WorkerCrashed):
        unwanted.result(timeout=PATIENCE_S)


# The client


def test_closing_cancels_what_has_not_ended(client, path):
    future = (
        client.submit(tasks.hang_from_first_line, path())
        if client.processes
        else client.submit(tasks.wait_for_file, path("go"))
    )
    client.close()
    with pytest.raises(CancelledError, match="closed"):
        future.result(timeout=PATIENCE_S)
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.submit(tasks.square, 1)
    tasks.note(path("go"))
    assert client.closed


def test_the_current_client():
    with pytest.raises(ValueError, match="there is no client"):
        get_client()
    with Client(processes=False, n_workers=1) as outer:
        assert get_client() is outer
        with Client(processes=False, n_workers=1) as inner:
            assert get_client() is inner
        assert get_client() is outer
        with Client(processes=False, n_workers=1, set_as_default=False):
            assert get_client() is outer


def test_a_future_of_another_client_is_refused(threads):
    with Client(processes=False, n_workers=1) as other:
        future = other.submit(tasks.echo, 1)
        with pytest.raises(ValueError, match="another client"):
            threads.submit(tasks.echo, future)


@both_modes
def test_clients_can_be_used_by_many_threads(mode):
    with Client(n_workers=2, processes=mode == "processes") as client:
        found = []

        def use(base):
            futures = client.map(tasks.add, range(50), [base] * 50)
            found.append(sum(client.gather(futures)) - 50 * base)

        users = [threading.Thread(target=use, args=(i,)) for i in range(8)]
        for user in users:
            user.start()
        for user in users:
            user.join(PATIENCE_S)
        assert found == [sum(range(50))] * 8


def test_bad_arguments():
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="n_workers must be"):
            Client(n_workers=bad)
    with pytest.raises(ValueError, match="`2` is no address"):
        Client("2")
    with pytest.raises(ValueError, match="amount of a resource"):
        Client(processes=False, resources={"GPU": -1})


def test_run_on_every_worker(processes, threads):
    pids = processes.run(os.getpid)
    assert len(pids) == len(set(pids.values())) == 2
    assert threads.run(os.getpid) == {0: os.getpid()}


def test_workers_that_die_at_once_are_not_replaced_without_end():
    with Client(n_workers=1) as client:
        with pytest.raises(RuntimeError, match="no worker could be started: .* signal 9 with nothing to do"):
            while True:
                client.wait_for_workers(timeout=PATIENCE_S)
                for worker in client.scheduler_info()["workers"].values():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker["pid"], signal.SIGKILL)
        assert client.submit(tasks.square, 2).result(timeout=PATIENCE_S) == 4


def test_workers_can_be_waited_for_and_named(processes):
    processes.wait_for_workers(2, timeout=PATIENCE_S)
    workers = processes.scheduler_info()["workers"]
    assert len(workers) == 2
    with pytest.raises(ValueError, match="has 2 workers"):
        processes.wait_for_workers(3)
    name, other = workers
    assert set(processes.gather(processes.map(tasks.pid, range(8), workers=name))) == {workers[name]["pid"]}
    assert set(processes.gather(processes.map(tasks.pid, range(8), workers=[other]))) == {workers[other]["pid"]}


# Resources


def test_tasks_wait_for_the_resources_that_they_ask_for(gauge):
    with Client(n_workers=4, processes=False, resources={"GPU": 2}) as client:
        futures = [client.submit(tasks.linger_inside, gauge, resources={"GPU": 1}) for _ in range(8)]
        client.gather(futures)
        assert gauge.peak <= 2


def test_what_no_worker_has_is_refused(client):
    with pytest.raises(RuntimeError, match="no worker can run"):
        client.submit(tasks.square, 2, resources={"TPU": 1}).result(timeout=PATIENCE_S)


# Nested submission


def fib(n):
    if n < 2:
        return n
    client = get_client()
    return sum(client.gather(client.map(fib, [n - 1, n - 2])))


def test_tasks_submit_tasks_and_wait_for_them(client):
    assert client.submit(fib, 9).result(timeout=PATIENCE_S) == 34
    wait_until(lambda: known(client) == 0, "forgotten tasks")


@both_modes
def test_nesting_of_any_depth_does_not_deadlock(mode):
    def down(n):
        return n if n == 0 else get_client().submit(down, n - 1).result() + 1

    with Client(n_workers=1, processes=mode == "processes") as client:
        assert client.submit(down, 60).result(timeout=PATIENCE_S) == 60
        assert client.submit(down, 60).result(timeout=PATIENCE_S) == 60


def fib_and_threads(n):
    if n < 2:
        return n, threading.active_count()
    client = get_client()
    values, counts = zip(*client.gather(client.map(fib_and_threads, [n - 1, n - 2])), strict=True)
    return sum(values), max(*counts, threading.active_count())


def test_a_recursion_goes_into_its_depth_first(client):
    # In its breadth, some hundreds of its 3,193 tasks would wait at a time, each in a thread.
    value, most_threads = client.submit(fib_and_threads, 16).result(timeout=PATIENCE_S)
    assert value == 987
    assert most_threads < 200


def test_no_more_tasks_run_at_once_than_there_are_workers(client, gauge):
    def leaf(_):
        return tasks.linger_inside(gauge)

    def branch(_):
        get_client().gather(get_client().map(leaf, range(4)))

    client.gather(client.map(branch, range(4)))
    assert gauge.peak <= 2


def test_a_task_has_the_whole_of_a_client(client):
    def work():
        inner = get_client()
        assert inner is get_client()
        array = np.arange(100_000.0)
        scattered = inner.scatter(array)
        parts = [inner.submit(np.multiply, scattered, k) for k in range(4)]
        total = inner.submit(sum, parts)
        named = inner.submit(tasks.echo, 5, key="five")
        assert inner.submit(tasks.echo, 6, key="five").result() == 5
        assert named.key == "five"
        done, open_ = wait([*parts, total])
        assert len(done) == 5
        assert not open_
        assert {float(part.result()[1]) for part in as_completed(parts)} == {0.0, 1.0, 2.0, 3.0}
        large = inner.submit(tasks.are_same, array, array)
        return total.result()[1], array.sum() == inner.submit(np.sum, array).result(), large.result()

    total, same, identical = client.submit(work).result(timeout=PATIENCE_S)
    assert (total, same) == (6.0, True)
    assert identical
    wait_until(lambda: known(client) == 0, "forgotten tasks")


def test_tasks_wait_in_every_way(client):
    def work():
        inner = get_client()
        futures = inner.map(tasks.square, range(6))
        first = wait(futures, return_when="FIRST_COMPLETED")
        squares = {result for _, result in as_completed(futures, with_results=True)}
        return len(first.done) >= 1, squares, inner.gather({"a": futures[2], "b": [futures[3]]})

    expected = True, {0, 1, 4, 9, 16, 25}, {"a": 4, "b": [9]}
    assert client.submit(work).result(timeout=PATIENCE_S) == expected


def test_a_task_neither_ends_the_workers_nor_runs_functions_on_all(processes):
    def work():
        with get_client() as inner:
            return inner.submit(tasks.echo, 1).result()

    assert processes.gather([processes.submit(work) for _ in range(4)]) == [1] * 4
    with pytest.raises(RuntimeError, match="cannot run functions on every worker"):
        processes.submit(lambda: get_client().run(os.getpid)).result(timeout=PATIENCE_S)


def test_a_nested_error_arrives_where_it_is_waited_for(client):
    def work():
        future = get_client().submit(tasks.fail, "down there")
        with pytest.raises(Exception, match="down there"):
            future.result()
        dependent = get_client().submit(tasks.echo, future)
        assert "down there" in str(dependent.exception())
        return get_client().submit(tasks.echo, dependent).result()

    with pytest.raises(Exception, match="down there"):
        client.submit(work).result(timeout=PATIENCE_S)


def test_a_nested_crash_arrives_where_it_is_waited_for(processes):
    def work():
        return get_client().submit(tasks.die).result()

    # It may be the worker of the task that waits which is killed, again and again: then that has crashed.
    with pytest.raises(WorkerCrashed) as caught:
        processes.submit(work).result(timeout=PATIENCE_S)
    assert caught.value.signal == signal.SIGKILL
    assert processes.submit(fib, 5).result(timeout=PATIENCE_S) == 5


def test_a_task_waits_for_as_long_as_it_says(client, path):
    def work():
        future = get_client().submit(tasks.wait_for_file, path("go"))
        try:
            future.result(timeout=0.1)
        except TimeoutError:
            tasks.note(path("go"))
            return future.result()

    client.submit(work).result(timeout=PATIENCE_S)


def test_a_task_that_has_waited_holds_nobody_up(client, path):
    def work():
        get_client().submit(tasks.echo, 1).result()
        tasks.note(path("goes on"))
        tasks.wait_for_file(path("go"))

    future = client.submit(work)
    wait_for_lines(path("goes on"))
    assert within(PATIENCE_S, client.gather, client.map(tasks.echo, range(8))) == list(range(8))
    tasks.note(path("go"))
    future.result(timeout=PATIENCE_S)


def test_tasks_that_nobody_waits_for_run_after_their_submitter(client, path):
    def work():
        fire_and_forget(get_client().submit(tasks.note, path(), "done"))

    client.submit(work).result(timeout=PATIENCE_S)
    wait_for_lines(path())


def test_nested_tasks_are_cancelled(client, path):
    def work():
        inner = get_client()
        blockers = [inner.submit(tasks.wait_for_file, path("go")) for _ in range(4)]
        waiting = inner.submit(tasks.echo, blockers)
        waiting.cancel()
        # Not by waiting: a blocker could run in the meantime, and would hold this task up.
        deadline = time.monotonic() + PATIENCE_S
        while not (cancelled := waiting.cancelled()) and time.monotonic() < deadline:
            time.sleep(0.001)
        tasks.note(path("go"))
        inner.gather(blockers)
        return cancelled

    assert client.submit(work).result(timeout=PATIENCE_S)


def test_a_task_that_waits_can_be_cancelled_by_force(processes, path):
    def work():
        tasks.note(path())
        get_client().submit(tasks.wait_for_file, path("never")).result()

    future = processes.submit(work)
    wait_for_lines(path())
    processes.cancel(future, force=True)
    with pytest.raises(CancelledError):
        future.result(timeout=PATIENCE_S)
    wait_until(lambda: processes.scheduler_info()["active"] <= 1, "the end of what waits")


def test_closing_ends_tasks_that_wait(client, path):
    def work():
        tasks.note(path())
        get_client().submit(tasks.wait_for_file, path("go")).result()

    future = client.submit(work)
    wait_for_lines(path())
    threading.Timer(0.2, tasks.note, [path("go")]).start()
    within(PATIENCE_S, client.close)
    with pytest.raises(CancelledError):
        future.result(timeout=PATIENCE_S)


def test_a_worker_that_dies_takes_what_its_tasks_submitted_with_it(path):
    def leaf():
        tasks.note(path("leaves"))
        tasks.wait_for_file(path("go"))
        return 1

    def work():
        tasks.note(path("pids"), os.getpid())
        inner = get_client()
        return sum(inner.gather([inner.submit(leaf) for _ in range(2)]))

    with Client(n_workers=2) as client:
        future = client.submit(work)
        # The worker of the task that waits runs one of them, the other worker the other.
        wait_for_lines(path("leaves"), 2)
        os.kill(int(wait_for_lines(path("pids"))[0]), signal.SIGKILL)
        wait_for_lines(path("pids"), 2)
        tasks.note(path("go"))
        assert future.result(timeout=PATIENCE_S) == 2
        del future
        wait_until(lambda: known(client) == 0, "forgotten tasks")


def test_killed_workers_cost_no_nested_results(processes):
    roots = processes.map(fib, [12] * 4)
    for nth in range(2):
        busy = wait_until(lambda: known(processes) > 20 and processes.scheduler_info()["workers"], "nested tasks")
        os.kill(list(busy.values())[nth % len(busy)]["pid"], signal.SIGKILL)
    assert within(PATIENCE_S, processes.gather, roots) == [144] * 4
    del roots
    wait_until(lambda: known(processes) == 0, "forgotten tasks")


def test_tasks_keep_their_arguments_while_others_run_beside_them(processes):
    def change(array, value):
        array += value
        return float(array[0])

    def work(array):
        before = array.copy()
        array += 1
        found = get_client().gather(get_client().map(change, [array] * 8, range(8)))
        assert found == [array[0] + value for value in range(8)]
        return bool((array == before + 1).all())

    arrays = [np.full(50_000, float(i)) for i in range(6)]
    assert all(processes.gather(processes.map(work, arrays)))


def test_tasks_that_wait_keep_their_arguments_from_others():
    def work(array, value):
        before = float(array[0])
        array += value
        get_client().submit(tasks.echo, 1).result()
        return before, float(array[0]), float(array[-1])

    with Client(n_workers=1) as client:
        found = client.gather(client.map(work, [np.zeros(50_000)] * 4, [1, 2, 3, 4]))
    assert found == [(0.0, value, value) for value in (1, 2, 3, 4)]


def test_what_a_task_does_to_a_nested_result_is_not_seen_by_others(processes):
    def work():
        inner = get_client()
        future = inner.submit(np.zeros, 50_000)
        mine = future.result()
        mine += 1
        seen = inner.gather([inner.submit(np.sum, future) for _ in range(4)])
        return float(mine.sum()), seen

    assert processes.submit(work).result(timeout=PATIENCE_S) == (50_000.0, [0.0] * 4)


def test_the_devices_of_a_task_that_waits_are_its_own():
    def visible():
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    def work():
        inner = get_client()
        before = visible()
        beside = inner.submit(visible, resources={"GPU": 1}).result()
        without = inner.submit(visible).result()
        return before, beside, without, visible()

    with Client(n_workers=1, resources={"GPU": ["2", "5"]}) as client:
        outside = client.submit(visible).result()
        found = client.submit(work, resources={"GPU": 1}).result(timeout=PATIENCE_S)
    assert found == ("2", "5", outside, "2")


def test_a_future_inside_of_an_object_is_refused(processes):
    future = processes.submit(tasks.echo, 1)
    with pytest.raises(TypeError, match="a Future cannot be pickled"):
        pickle.dumps(future)
    with pytest.raises(Exception, match="a Future cannot be pickled"):
        processes.submit(tasks.echo, functools.partial(tasks.echo, future))
    with pytest.raises(Exception, match="a Future cannot be pickled"):
        processes.submit(lambda: get_client().submit(tasks.echo, 1)).result(timeout=PATIENCE_S)


# Memory


def test_results_beyond_the_limit_go_to_disk_and_come_back(tmp_path):
    with Client(n_workers=2, memory_limit="150MB", local_directory=tmp_path) as client:
        arrays = client.map(tasks.full, [1_000_000] * 50, range(50))
        wait(arrays)
        wait_until(lambda: client.scheduler_info()["result_bytes"] < 200e6, "results have gone to disk")
        assert client.scheduler_info()["spilled_bytes"] > 100e6
        assert os.listdir(tmp_path) == []
        assert client.gather(client.map(np.max, arrays)) == list(map(float, range(50)))
        assert arrays[0].result()[-1] == 0.0
        first = arrays[0].result()
        first[0] = 7
        assert arrays[0].result()[0] == 0.0
        del arrays
        wait_until(lambda: client.scheduler_info()["result_bytes"] == 0, "everything is freed")


def test_a_worker_over_its_memory_limit_is_ended(processes):
    with Client(n_workers=1, memory_limit="300MB") as client:
        with pytest.raises(WorkerCrashed, match="memory_limit"):
            client.submit(tasks.allocate, 600 << 20).result(timeout=PATIENCE_S)
        assert client.submit(tasks.square, 3).result() == 9


def test_a_task_knows_its_devices(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with Client(n_workers=2, resources={"GPU": ["2", "5"], "licence": 3}) as client:
        gpus = client.map(tasks.environment, ["CUDA_VISIBLE_DEVICES"] * 6, resources={"GPU": 1})
        assert set(client.gather(gpus)) <= {"2", "5"}
        assert client.submit(tasks.environment, "CUDA_VISIBLE_DEVICES", resources={"GPU": 2}).result() == "2,5"
        assert client.submit(tasks.environment, "CUDA_VISIBLE_DEVICES").result() is None
        held = client.submit(rustdask.held_resources, resources={"GPU": 0.5, "licence": 2}).result()
        assert held["licence"] == 2.0
        assert held["GPU"] in (["2"], ["5"])
        assert client.submit(rustdask.held_resources).result() == {}


def test_tasks_that_hold_the_same_device_do_not_overlap(gauge):
    with Client(n_workers=4, processes=False, resources={"GPU": 1}) as client:
        client.gather([client.submit(tasks.linger_inside, gauge, resources={"GPU": 0.5}) for _ in range(8)])
        assert gauge.peak <= 2


def test_contexts_reach_tasks(client, monkeypatch):
    monkeypatch.setenv("RDT_VALUE", "there")
    assert client.submit(tasks.environment, "RDT_VALUE").result() == "there"
    token = tasks.VARIABLE.set("set")
    try:
        assert client.submit(tasks.variable).result() == "set"
    finally:
        tasks.VARIABLE.reset(token)


def test_what_tasks_print_comes_back(processes, capfd):
    processes.submit(tasks.say, "hello from a task").result()
    wait_until(lambda: "hello from a task" in capfd.readouterr().out, "the output has come")


def test_scattered_data_stays_until_the_tasks_that_take_it_have_run(client, path):
    array = np.arange(50_000.0)
    blockers = [client.submit(tasks.wait_for_file, path("go")) for _ in range(2)]
    scattered = client.scatter(array)
    sums = [client.submit(np.sum, scattered) for _ in range(6)]
    del scattered
    gc.collect()
    tasks.note(path("go"))
    assert client.gather(sums) == [array.sum()] * 6
    client.gather(blockers)


def test_whether_a_task_failed_is_told_without_its_result(processes):
    future = processes.submit(tasks.LoadFails)
    assert (future.exception(PATIENCE_S), future.traceback()) == (None, None)


# The end of the interpreter


def test_the_interpreter_ends_while_threads_run_tasks():
    script = run_script("""
        import threading, time
        import rustdask

        def hang(begun):
            begun.set()
            while True:
                time.sleep(0.001)

        client = rustdask.Client(2, processes=False)
        begun = threading.Event()
        future = client.submit(hang, begun)
        begun.wait()
    """)
    assert_quiet_success(script)


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize(
    "what", ["client.submit(abs, 1)", "client.scatter(1)", "client.cancel(future)", "client.submit(abs, 1).result()"]
)
def test_the_interpreter_ends_while_a_thread_uses_a_client(what, processes):
    script = run_script(f"""
        import threading
        import rustdask

        def use():
            try:
                while True:
                    {what}
                    begun.set()
            except RuntimeError as error:
                assert "interpreter is ending" in str(error)

        client = rustdask.Client(1, processes={processes})
        future = client.submit(abs, -1)
        begun = threading.Event()
        for _ in range(3):
            threading.Thread(target=use, daemon=True).start()
        begun.wait()
    """)
    assert_quiet_success(script)


def test_the_interpreter_ends_while_a_thread_closes_a_client():
    script = run_script("""
        import threading, time
        import rustdask

        def close():
            closing.set()
            client.close()

        client = rustdask.Client(1, processes=False)
        begun, closing = threading.Event(), threading.Event()
        future = client.submit(lambda: begun.set() or time.sleep(0.3))
        begun.wait()
        threading.Thread(target=close, daemon=True).start()
        closing.wait()
    """)
    assert_quiet_success(script)


def test_a_client_that_is_dropped_lets_its_threads_end():
    begun, dropping, go = threading.Event(), threading.Event(), threading.Event()
    client = Client(1, processes=False)
    fire_and_forget(client.submit(lambda: (begun.set(), go.wait())))
    assert begun.wait(PATIENCE_S)
    helper = threading.Thread(target=lambda: dropping.wait() and go.set())
    helper.start()
    dropping.set()
    began = time.monotonic()
    del client
    # So long it waits for threads that do not end.
    assert time.monotonic() - began < 0.5
    helper.join()
