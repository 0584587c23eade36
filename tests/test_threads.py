"""Threads, many callers at once, and calls inside calls: all finish, and all results are right.

Runs on free-threaded Python too; needs nothing but pytest, numpy and joblib.
"""

from __future__ import annotations

import gc
import os
import threading
import time

import numpy as np
import pytest
import tasks
from helpers import (
    FREE_THREADED,
    assert_usable,
    both_modes,
    configured,
    own,
    run,
    rustdask,
    stacks,
    within,
)
from joblib import Parallel, delayed, parallel_config

pytestmark = pytest.mark.timeout(180)


def in_threads(n, call, patience_s=120):
    """What `call(i)` returned in each of `n` threads started together."""
    results, errors = [None] * n, []
    barrier = threading.Barrier(n)

    def target(i):
        try:
            barrier.wait(patience_s)
            results[i] = call(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=target, args=(i,), daemon=True, name=f"caller-{i}") for i in range(n)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patience_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        pytest.fail(f"not finished after {patience_s} s\n{stacks()}")
    if errors:
        raise errors[0]
    return results


# Threads of this process


def test_threads_share_memory():
    array = np.zeros(1000)
    run([delayed(array.__setitem__)(i, i) for i in range(1000)], "threads")
    assert array.tolist() == list(range(1000))


@own
def test_arguments_and_results_are_not_copied():
    value = object()
    array = np.ones(300_000)
    results = run([delayed(tasks.echo)(value), delayed(tasks.echo)(array)], "threads")
    assert results[0] is value
    assert results[1] is array


@own
def test_threads_stay_between_calls():
    places = [{thread for _, thread in run([delayed(tasks.whoami)()] * 40, "threads")} for _ in range(5)]
    assert len(set().union(*places)) <= 3


@own
@pytest.mark.skipif(not FREE_THREADED, reason="only without the GIL")
def test_threads_are_the_default_without_the_gil():
    with parallel_config("rustdask", n_jobs=2):
        assert set(Parallel()(delayed(tasks.pid)() for _ in range(8))) == {os.getpid()}


def test_results_are_let_go():
    class Big:
        alive = 0

        def __init__(self):
            Big.alive += 1

        def __del__(self):
            Big.alive -= 1

    results = run([delayed(Big)() for _ in range(20)], "threads")
    assert Big.alive == 20
    del results
    gc.collect()
    assert Big.alive == 0
    list(run([delayed(Big)() for _ in range(20)], "threads", return_as="generator"))
    gc.collect()
    assert Big.alive == 0


def test_arguments_are_let_go():
    class Argument:
        alive = 0

        def __init__(self):
            Argument.alive += 1

        def __del__(self):
            Argument.alive -= 1

    run((delayed(id)(Argument()) for _ in range(50)), "threads")
    gc.collect()
    assert Argument.alive == 0


def test_errors_in_threads_are_the_very_objects():
    error = ValueError("the very one")

    def fail():
        raise error

    with pytest.raises(ValueError) as caught:
        run([delayed(fail)()] * 3, "threads")
    assert caught.value is error


# Many callers


@own
@both_modes
def test_calls_from_several_threads_keep_to_their_own_cap(mode, tmp_path):
    gauges = [tasks.Gauge(tmp_path / f"gauge{i}") for i in range(3)]

    def call(i):
        calls = (delayed(tasks.busy_inside)(gauges[i], i + 1) for _ in range(6))
        return len(run(calls, mode, n_jobs=i + 1, batch_size=1))

    assert in_threads(3, call) == [6, 6, 6]
    assert [gauge.peak for gauge in gauges] == [1, 2, 3]


@own
@both_modes
def test_many_small_calls_from_several_threads(mode):
    def call(i):
        with configured(mode, n_jobs=1 + i % 3):
            return all(
                Parallel()(delayed(tasks.add)(i, j) for j in range(5)) == list(range(i, i + 5)) for _ in range(30)
            )

    assert all(in_threads(6, call))


@both_modes
def test_one_config_for_several_threads(mode):
    """`parallel_config` gives the same backend object to all calls below it."""
    with configured(mode) as config:
        backend = config["backend"]

        def call(i):
            with parallel_config(backend, n_jobs=2):
                return Parallel()(delayed(tasks.add)(i, j) for j in range(50))

        assert in_threads(4, call) == [list(range(i, i + 50)) for i in range(4)]


@own
@both_modes
def test_errors_reach_only_the_caller_they_belong_to(mode):
    def call(i):
        for _ in range(5):
            calls = [delayed(tasks.fail_if)(i % 2 == 1 and j == 7, j) for j in range(20)]
            try:
                results = run(calls, mode)
            except ValueError as error:
                assert (i % 2, str(error)) == (1, "task 7")
            else:
                assert (i % 2, results) == (0, list(range(20)))
        return True

    assert all(in_threads(4, call))


@own
@both_modes
def test_generators_of_several_threads(mode):
    def call(i):
        results = run((delayed(tasks.add)(i, j) for j in range(100)), mode, return_as="generator")
        return sum(results)

    assert in_threads(4, call) == [sum(range(i, i + 100)) for i in range(4)]


# Calls inside calls


@own
@both_modes
def test_six_threads_four_calls_nested_three_deep(mode, tmp_path):
    """With worker processes, one task of each second call kills its worker, once."""

    def call(i):
        results = []
        for j in range(4):
            killer = str(tmp_path / f"kill-{i}-{j}") if mode == "processes" and (i + j) % 2 else None
            n_jobs = 1 + (i + j) % 3
            if n_jobs == 1:
                # One job may run in this very process.
                killer = None
            results += run([delayed(tasks.nested_sum)(2, k, n_jobs, killer, 3 * k) for k in range(3)], mode, n_jobs)
        return results

    expected = [sum(k + leaf for leaf in range(27 * k, 27 * k + 9)) for k in range(3)] * 4
    assert in_threads(6, call) == [expected] * 6
    killed = len(list(tmp_path.glob("kill-*")))
    assert killed == (8 if mode == "processes" else 0)


@own
@both_modes
@pytest.mark.parametrize("n_jobs", [1, 2, 3])
def test_a_waiting_thread_helps(mode, n_jobs):
    """Each of the tasks waits for tasks of its own; there are more of them than workers."""
    results = within(90, run, [delayed(tasks.nested_sum)(3, i, n_jobs) for i in range(6)], mode, n_jobs)
    assert results == [27 * i + sum(range(27)) for i in range(6)]


@own
@both_modes
def test_nested_generators(mode):
    assert within(60, run, [delayed(sum_of_generator)(i) for i in range(4)], mode) == [
        sum(range(i, i + 20)) for i in range(4)
    ]


def sum_of_generator(i):
    return sum(Parallel(n_jobs=2, return_as="generator")(delayed(tasks.add)(i, j) for j in range(20)))


@own
@both_modes
def test_nested_calls_in_threads_of_a_task(mode):
    assert within(60, run, [delayed(sum_in_threads)(i) for i in range(3)], mode) == [30 * i + 3 * 45 for i in range(3)]


def sum_in_threads(i):
    """joblib's configuration does not reach threads that a task starts: they name the backend."""

    def call(_):
        with configured("threads"):
            return sum(Parallel()(delayed(tasks.add)(i, j) for j in range(10)))

    return sum(in_threads(3, call))


@own
@both_modes
def test_modes_nested_in_each_other(mode):
    other = {"processes": "threads", "threads": "processes"}[mode]
    assert within(60, run, [delayed(nested_in_mode)(other, i) for i in range(4)], mode) == [4 * i + 6 for i in range(4)]


def nested_in_mode(mode, i):
    with configured(mode):
        return sum(Parallel()(delayed(tasks.add)(i, j) for j in range(4)))


@own
def test_an_error_in_a_nested_call_of_many():
    for _ in range(10):
        with pytest.raises(ValueError, match="deep inside"):
            within(60, run, [delayed(tasks.nested_failure)(2) for _ in range(6)], "threads")
    assert_usable("threads")


@own
@both_modes
def test_shutdown_between_calls_of_several_threads(mode):
    """A call that is broken off says so; the next one starts afresh."""

    def call(i):
        for j in range(10):
            if i == 0:
                rustdask.shutdown()
                continue
            try:
                assert run([delayed(tasks.square)(k) for k in range(5)], mode) == [0, 1, 4, 9, 16]
            except RuntimeError as error:
                assert "shut" in str(error).lower(), (j, error)
        return True

    assert all(in_threads(4, call))
    assert_usable(mode)


@own
def test_failing_calls_one_after_the_other_need_no_more_threads(fresh):
    for _ in range(200):
        with pytest.raises(ValueError):
            run([delayed(tasks.fail)() for _ in range(3)], "threads")
    assert rustdask.info()["threads"] <= 6
