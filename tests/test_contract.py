"""Every parameter, hint and return mode of joblib's contract, on real tasks."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout

import joblib
import numpy as np
import pytest
import tasks
from helpers import (
    BACKEND,
    FREE_THREADED,
    PEERS,
    alive,
    assert_quiet_success,
    assert_usable,
    both_modes,
    configured,
    descendants,
    own,
    run,
    run_script,
    rustdask,
    wait_until,
    within,
)
from joblib import Parallel, cpu_count, delayed, effective_n_jobs, parallel_backend, parallel_config
from joblib.parallel import get_active_backend

pytestmark = pytest.mark.timeout(120)

SQUARES = [i * i for i in range(10)]


def squares():
    return (delayed(tasks.square)(i) for i in range(10))


# How many at once


@own
def test_n_jobs_defaults_to_all_cores():
    with parallel_config("rustdask"):
        assert effective_n_jobs() == effective_n_jobs(-1) == effective_n_jobs(None)
        assert Parallel().n_jobs == -1
        assert Parallel()(squares()) == SQUARES


@both_modes
@pytest.mark.parametrize(("asked", "below"), [(-1, 0), (-2, 1), (-1000, 10_000)])
def test_negative_n_jobs_count_from_the_cores(mode, asked, below):
    with configured(mode, n_jobs=None):
        cores = effective_n_jobs(-1)
        assert effective_n_jobs(asked) == max(1, cores - below)
        assert 1 <= cores <= max(cpu_count(), 1)


@both_modes
def test_zero_jobs_are_refused(mode):
    with configured(mode), pytest.raises(ValueError, match="n_jobs"):
        Parallel(n_jobs=0)(squares())


@both_modes
@pytest.mark.parametrize("n_jobs", [1, 2, 3, 5])
def test_concurrency_is_capped_exactly(mode, n_jobs, gauge):
    calls = (delayed(tasks.busy_inside)(gauge, n_jobs) for _ in range(3 * n_jobs))
    run(calls, mode, n_jobs, batch_size=1, pre_dispatch="all")
    assert gauge.peak == n_jobs


@both_modes
def test_a_smaller_call_after_a_larger_one_keeps_its_own_cap(mode, gauge, tmp_path):
    run((delayed(tasks.busy_inside)(gauge, 4) for _ in range(8)), mode, 4, batch_size=1)
    small = tasks.Gauge(tmp_path / "small")
    run((delayed(tasks.busy_inside)(small, 2) for _ in range(8)), mode, 2, batch_size=1, pre_dispatch="all")
    assert (gauge.peak, small.peak) == (4, 2)


def test_one_job_runs_in_order(path):
    run((delayed(tasks.note_and_return)(path(), i) for i in range(20)), n_jobs=1)
    assert tasks.lines_of(path()) == [str(i) for i in range(20)]


# Where


def pids_of(**how):
    config = {name: how.pop(name) for name in list(how) if name in ("mode",)}
    with configured(**config):
        return set(Parallel(n_jobs=2, **how)(delayed(tasks.pid)() for _ in range(8)))


@pytest.mark.skipif(FREE_THREADED, reason="threads are the default without the GIL")
@own
def test_worker_processes_are_the_default():
    with parallel_config("rustdask", n_jobs=2):
        pids = set(Parallel()(delayed(tasks.pid)() for _ in range(8)))
    assert os.getpid() not in pids


def test_mode_chooses():
    assert pids_of(mode="threads") == {os.getpid()}
    assert os.getpid() not in pids_of(mode="processes")


def test_sharedmem_always_means_threads():
    assert pids_of(mode="processes", require="sharedmem") == {os.getpid()}
    seen = []
    run((delayed(seen.append)(i) for i in range(20)), require="sharedmem")
    assert sorted(seen) == list(range(20))


@own
def test_preferences_are_heard():
    with parallel_config("rustdask", n_jobs=2):
        threads = set(Parallel(prefer="threads")(delayed(tasks.pid)() for _ in range(8)))
        processes = set(Parallel(prefer="processes")(delayed(tasks.pid)() for _ in range(8)))
    assert threads == {os.getpid()}
    assert FREE_THREADED or os.getpid() not in processes


@own
def test_every_way_to_name_the_backend():
    with parallel_backend("rustdask", n_jobs=2):
        assert Parallel()(squares()) == SQUARES
        assert is_rustdask(get_active_backend()[0])
    parallel = Parallel(n_jobs=2, backend="rustdask")
    assert is_rustdask(parallel._backend)
    assert parallel(squares()) == SQUARES


@own
def test_a_wrong_parameter_is_refused():
    with pytest.raises((TypeError, ValueError), match="mode"):
        run(squares(), mode="proceses")
    with pytest.raises((TypeError, ValueError), match="no_such_parameter"):
        run(squares(), config={"no_such_parameter": 1})
    with pytest.raises((TypeError, ValueError), match="on_error"):
        run(squares(), config={"on_error": "ignore"})
    assert_usable()


def is_rustdask(backend):
    return type(backend).__module__.split(".")[0] == "rustdask"


# What comes back


@both_modes
@pytest.mark.parametrize("n_jobs", [1, 2, 3])
def test_list(mode, n_jobs):
    assert run(squares(), mode, n_jobs) == SQUARES
    assert run([], mode, n_jobs) == []
    assert run([delayed(tasks.square)(3)], mode, n_jobs) == [9]


@both_modes
def test_keyword_arguments_and_none(mode):
    assert run([delayed(tasks.add)(1, y=2), delayed(tasks.add)(x=3), delayed(tasks.nothing)()], mode) == [3, 3, None]


@both_modes
def test_generator_yields_in_order_while_tasks_run(mode, path):
    calls = [delayed(tasks.square)(i) for i in range(3)] + [delayed(tasks.wait_and_return)(path("go"), -1)]
    results = run(calls, mode, return_as="generator", batch_size=1)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    tasks.note(path("go"))
    assert list(results) == [-1]


@both_modes
def test_unordered_generator_yields_what_is_ready(mode, path):
    calls = [delayed(tasks.wait_and_return)(path("go"), -1)] + [delayed(tasks.square)(i) for i in range(3)]
    results = run(calls, mode, return_as="generator_unordered", batch_size=1)
    assert {next(results) for _ in range(3)} == {0, 1, 4}
    tasks.note(path("go"))
    assert list(results) == [-1]


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
@pytest.mark.parametrize("n_jobs", [1, 2])
@both_modes
def test_generators_give_everything(mode, n_jobs, return_as):
    results = run((delayed(tasks.square)(i) for i in range(300)), mode, n_jobs, return_as=return_as)
    assert sorted(results) == [i * i for i in range(300)]


@both_modes
def test_two_generators_at_once(mode):
    first = run((delayed(tasks.square)(i) for i in range(50)), mode, return_as="generator")
    second = run((delayed(tasks.add)(i, 1) for i in range(50)), mode, return_as="generator")
    assert list(zip(first, second, strict=True)) == [(i * i, i + 1) for i in range(50)]


@own
@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_a_generator_holds_back_until_its_results_are_taken(return_as, path):
    calls = (delayed(tasks.note_and_return)(path(), i) for i in range(200))
    results = run(calls, config={"max_pending": 4}, return_as=return_as, batch_size=1)
    first = next(results)
    ran = settled_count(path())
    assert ran <= 1 + 4 + 2 * 4, "window, running and prefetched tasks, and what joblib has dispatched"
    assert sorted([first, *results]) == list(range(200))


@own
def test_a_generator_holds_back_by_bytes(path):
    calls = (delayed(big_result)(path(), i) for i in range(60))
    config = {"max_pending": 1000, "max_pending_bytes": 8 << 20}
    results = run(calls, config=config, return_as="generator", batch_size=1)
    next(results)
    assert settled_count(path()) <= 1 + 8 + 2 * 4
    assert sum(1 for _ in results) == 59


def big_result(path, i):
    tasks.note(path, i)
    return np.zeros(1 << 17)


def settled_count(path, still_s=0.4):
    """How many lines are in a file that has not grown for a while."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < still_s:
        count = len(tasks.lines_of(path))
        if count != last:
            last, since = count, time.monotonic()
        time.sleep(0.01)
    return last


# How it goes


@both_modes
def test_timeout(mode, path):
    try:
        with pytest.raises((TimeoutError, FutureTimeout, multiprocessing.TimeoutError)):
            run((delayed(tasks.wait_and_return)(path("go"), i) for i in range(3)), mode, timeout=0.5)
    finally:
        tasks.note(path("go"))
    assert_usable(mode)


@both_modes
def test_timeout_is_for_each_task(mode):
    assert run((delayed(tasks.sleep)(0.2) for _ in range(12)), mode, timeout=1.0, batch_size=1) == [0.2] * 12


@both_modes
def test_verbose_reports(mode, capsys):
    assert run(squares(), mode, verbose=10) == SQUARES
    said = "".join(capsys.readouterr())
    assert "[Parallel(n_jobs=2)]" in said
    assert "Done  10 out of  10" in said
    if BACKEND == "rustdask":
        assert "rustdask" in said.lower()


@both_modes
@pytest.mark.parametrize(("pre_dispatch", "taken_at_most"), [(1, 2), (2, 2), ("2*n_jobs", 4), ("all", 50), (7, 8)])
def test_pre_dispatch_takes_no_more_than_it_may(mode, pre_dispatch, taken_at_most, path):
    taken = []

    def calls():
        for i in range(50):
            taken.append(i)
            yield delayed(tasks.wait_and_return)(path("go"), i)

    results = run(calls(), mode, pre_dispatch=pre_dispatch, batch_size=1, return_as="generator")
    assert 1 <= len(taken) <= taken_at_most
    assert pre_dispatch != "all" or len(taken) == 50
    tasks.note(path("go"))
    assert list(results) == list(range(50))
    assert len(taken) == 50


@both_modes
@pytest.mark.parametrize("batch_size", [1, 3, 1000, "auto"])
@pytest.mark.parametrize("n_tasks", [1, 10, 401])
def test_batch_size(mode, batch_size, n_tasks):
    results = run((delayed(tasks.square)(i) for i in range(n_tasks)), mode, batch_size=batch_size)
    assert results == [i * i for i in range(n_tasks)]


@both_modes
def test_a_given_batch_runs_in_one_place(mode):
    places = run((delayed(tasks.whoami)(i) for i in range(24)), mode, batch_size=6, pre_dispatch="all")
    assert all(len(set(places[start : start + 6])) == 1 for start in range(0, 24, 6))


@both_modes
def test_a_reused_parallel_keeps_its_workers(mode):
    with configured(mode), Parallel(n_jobs=2) as parallel:
        places = [set(parallel(delayed(tasks.pid)() for _ in range(8))) for _ in range(3)]
        assert parallel(squares()) == SQUARES
    assert len(set().union(*places)) <= (2 if mode == "processes" else 1)


@own
def test_workers_stay_warm_between_calls():
    pids = [set(run(delayed(tasks.pid)() for _ in range(8))) for _ in range(3)]
    assert len(set().union(*pids)) <= 2


# Nested


@own
@both_modes
def test_nested_calls_keep_the_backend(mode):
    leaves, seen = run([delayed(tasks.nested)(3) for _ in range(2)], mode)[0]
    assert leaves == 8
    assert all(name.startswith("rustdask.") for name in seen), seen


@both_modes
@pytest.mark.parametrize("n_jobs", [1, 2, 3])
def test_nested_three_deep(mode, n_jobs):
    results = within(60, run, [delayed(tasks.nested_sum)(3, i, n_jobs) for i in range(4)], mode, n_jobs)
    assert results == [27 * i + sum(range(27)) for i in range(4)]


@own
@both_modes
def test_nested_calls_share_one_core_budget(mode, gauge):
    cores = effective_n_jobs_of_all_cores()
    run([delayed(tasks.nested_inside)(2, gauge) for _ in range(6)], mode, 2)
    assert 1 <= gauge.peak <= max(cores, 2)


@both_modes
def test_a_failure_deep_inside_comes_out(mode):
    with pytest.raises(ValueError, match="deep inside"):
        run([delayed(tasks.nested_failure)(2) for _ in range(3)], mode)
    assert_usable(mode)


def effective_n_jobs_of_all_cores():
    with parallel_config("rustdask"):
        return effective_n_jobs(-1)


# Threads of libraries


@pytest.mark.parametrize("threads", [1, 2])
def test_inner_max_num_threads(threads):
    counts = run((delayed(tasks.blas_threads)() for _ in range(4)), config={"inner_max_num_threads": threads})
    assert counts[0], "numpy brings at least one pool of threads"
    assert {count for pools in counts for count in pools} == {threads}


def test_libraries_share_the_cores():
    counts = run(delayed(tasks.blas_threads)() for _ in range(4))
    assert max(count for pools in counts for count in pools) <= max(1, cpu_count() // 2)


# Arrays and their mappings


def test_mmap_mode_r_is_read_only():
    facts = run([delayed(tasks.array_facts)(np.zeros(5000))] * 4, max_nbytes=1000, mmap_mode="r")
    assert not any(fact["writeable"] for fact in facts)


@own
def test_mmap_mode_from_parallel_config():
    with parallel_config("rustdask", n_jobs=2, mode="processes", max_nbytes=1000, mmap_mode="r"):
        facts = Parallel()([delayed(tasks.array_facts)(np.zeros(50_000))] * 4)
    assert not any(fact["writeable"] for fact in facts)


@own
@pytest.mark.parametrize("mapping", [{}, {"mmap_mode": "c"}, {"mmap_mode": None}, {"max_nbytes": None}])
def test_arrays_are_private_and_writable(mapping):
    array = np.ones(300_000)
    before = run([delayed(tasks.spoil)(array) for _ in range(6)], **mapping)
    assert before == [(300_000.0, 600_000.0)] * 6
    assert array.sum() == 300_000


@own
def test_mmap_mode_r_plus_shares_what_tasks_write(path):
    array = np.zeros(300_000)
    calls = [delayed(tasks.write_first)(array, 7), delayed(note_after_write)(array, path("go"))]
    wrote, seen = run(calls, max_nbytes=1000, mmap_mode="r+", batch_size=1)
    assert wrote
    assert seen == 7


def note_after_write(array, _path):
    """Wait until the other task's write is seen here."""
    deadline = time.monotonic() + 20
    while array[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.002)
    return array[0]


@own
def test_small_arrays_are_not_mapped():
    facts = run([delayed(tasks.array_facts)(np.zeros(10))] * 4, max_nbytes="1M", mmap_mode="r")
    assert all(fact["writeable"] for fact in facts)


@pytest.mark.parametrize("mode_of_file", ["r", "r+", "c"])
def test_a_memmap_travels_as_its_file(mode_of_file, path):
    original = np.memmap(path("data"), dtype="f8", mode="w+", shape=(1000, 100))
    original[:] = np.arange(100)
    original.flush()
    data = np.memmap(path("data"), dtype="f8", mode=mode_of_file, shape=(1000, 100))
    facts = run([delayed(tasks.array_facts)(data)] * 2)[0]
    assert (facts["type"], facts["filename"], facts["shape"]) == ("memmap", path("data"), (1000, 100))
    # joblib turns "w+" into "r+", and keeps the others.
    assert facts["mode"] == mode_of_file
    rows = run([delayed(np.sum)(data[i : i + 1, ::2]) for i in range(3)])
    assert rows == [sum(range(0, 100, 2))] * 3


def test_a_huge_sparse_memmap_costs_nothing(path):
    data = np.memmap(path("sparse"), dtype="u1", mode="w+", shape=(64 << 30,))
    data[1 << 30] = 5
    assert run([delayed(tasks.first_element)(data[1 << 30 :]) for _ in range(4)]) == [5] * 4


def test_what_a_task_writes_to_a_memmap_is_in_the_file(path):
    data = np.memmap(path("data"), dtype="f8", mode="w+", shape=(10_000,))
    assert run([delayed(tasks.write_first)(data, 3.5)] * 2) == [True, True]
    assert data[0] == 3.5


def test_temp_folder_is_left_empty(tmp_path):
    folder = tmp_path / "joblib"
    folder.mkdir()
    array = np.ones(300_000)
    assert run([delayed(np.sum)(array)] * 4, temp_folder=str(folder), max_nbytes=1000) == [300_000.0] * 4
    if BACKEND == "rustdask":
        assert list(folder.iterdir()) == []


@own
def test_temp_folder_is_where_arrays_are(tmp_path):
    array = np.ones(300_000)
    maps = run([delayed(tasks.mapped_files)(array)] * 2, temp_folder=str(tmp_path), max_nbytes=1000, mmap_mode="r")
    assert all(str(tmp_path) in text for text in maps)


# Workers


@own
def test_initializer_runs_once_in_each_worker(fresh, path):
    config = {"initializer": tasks.initialize, "initargs": (path(), 1, "two")}
    results = run((delayed(tasks.initialized)() for _ in range(12)), config=config)
    assert {values for values, _ in results} == {(1, "two")}
    ran_in = tasks.lines_of(path())
    assert len(ran_in) == len(set(ran_in))
    assert {str(pid) for _, pid in results} <= set(ran_in)


@own
def test_an_initializer_that_fails_is_reported():
    with pytest.raises(Exception, match="the initializer failed"):
        within(60, run, [delayed(tasks.nothing)()] * 4, config={"initializer": tasks.initialize_badly})
    assert_usable()


@own
def test_another_initializer_is_obeyed(path):
    for name in ("first", "second"):
        config = {"initializer": tasks.initialize, "initargs": (path(name), name)}
        results = run((delayed(tasks.initialized)() for _ in range(4)), config=config)
        assert {values for values, _ in results} == {(name,)}


@own
@pytest.mark.parametrize("n_jobs", [2, 3])
def test_worker_rank(fresh, gauge, n_jobs):
    results = run((delayed(tasks.rank)(gauge, n_jobs) for _ in range(n_jobs)), n_jobs=n_jobs, batch_size=1)
    assert sorted(rank for rank, _ in results) == list(range(n_jobs))
    assert len({pid for _, pid in results}) == n_jobs
    assert rustdask.worker_rank() is None


@own
def test_idle_workers_leave(fresh):
    pids = set(run((delayed(tasks.pid)() for _ in range(8)), config={"idle_worker_timeout": 1}))
    wait_until(lambda: not any(map(alive, pids)), "idle workers to leave")
    assert_usable()


# Ending


@both_modes
def test_abort_leaves_a_usable_pool(mode, path):
    with configured(mode), Parallel(n_jobs=2, batch_size=1) as parallel:
        for i in range(3):
            started = time.monotonic()
            with pytest.raises(ValueError, match="on purpose"):
                parallel([delayed(tasks.wait_and_return)(path(f"go{i}"), 1), delayed(tasks.fail)()])
            # A thread cannot be ended; it is let go here, after `Parallel` has not waited for it.
            tasks.note(path(f"go{i}"))
            assert parallel(squares()) == SQUARES
            # Ending the work takes milliseconds; the rest is for a machine that is busy.
            assert time.monotonic() - started < 5


@own
def test_abort_ends_running_work(path):
    calls = [delayed(tasks.hang_from_first_line)(path()), delayed(tasks.fail_after)(path())]
    with pytest.raises(ValueError, match="on purpose"):
        run(calls, batch_size=1)
    (pid,) = map(int, tasks.lines_of(path()))
    wait_until(lambda: not alive(pid), "the aborted task's worker to end", patience_s=5)
    assert_usable()


@own
def test_shutdown_leaves_no_child():
    assert_usable()
    rustdask.shutdown()
    wait_until(lambda: not descendants(), "children to end", patience_s=5)
    rustdask.shutdown()
    assert_usable()
    assert_usable("threads")


@own
def test_shutdown_from_an_idle_thread(fresh):
    assert_usable()
    thread = threading.Thread(target=rustdask.shutdown)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert_usable()


# The default backend


@own
def test_install_and_uninstall():
    default = type(get_active_backend()[0])
    rustdask.install()
    try:
        assert is_rustdask(get_active_backend()[0])
        assert is_rustdask(Parallel(n_jobs=2)._backend)
        assert Parallel(n_jobs=2)(squares()) == SQUARES
        with parallel_config("threading", n_jobs=2):
            assert not is_rustdask(get_active_backend()[0])
    finally:
        rustdask.uninstall()
    assert type(get_active_backend()[0]) is default
    rustdask.uninstall()


@own
@pytest.mark.parametrize(("value", "is_default"), [("1", True), ("0", False), ("", False)])
def test_default_by_environment(value, is_default):
    script = run_script(
        """
        from joblib.parallel import get_active_backend
        print(type(get_active_backend()[0]).__module__.split(".")[0] == "rustdask")
        """,
        env={"RUSTDASK_DEFAULT": value},
    )
    assert_quiet_success(script, str(is_default))


# What it says of itself


@own
def test_info_is_plain_data():
    assert_usable()
    info = rustdask.info()
    assert info["version"] == rustdask.__version__
    json.dumps(info)


@own
def test_info_from_the_command_line():
    told = subprocess.run(
        [sys.executable, "-m", "rustdask", "info", "--json"], capture_output=True, text=True, timeout=60
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert json.loads(told.stdout)["version"] == rustdask.__version__
    readable = subprocess.run([sys.executable, "-m", "rustdask", "info"], capture_output=True, text=True, timeout=60)
    assert rustdask.__version__ in readable.stdout
    assert "cores" in readable.stdout.lower()


def test_the_peers_are_there():
    """What RUSTDASK_TEST_BACKEND relies on."""
    assert set(PEERS.values()) <= set(joblib.parallel.BACKENDS)


# Options


@own
@pytest.mark.parametrize(
    ("option", "kind", "words"),
    [
        ({"max_pending": 0}, ValueError, "max_pending must be at least 1, got 0"),
        ({"retries": -1}, ValueError, "retries must be at least 0, got -1"),
        ({"retries": 1.5}, TypeError, "retries must be a whole number, got 1.5"),
        ({"retries": None}, TypeError, "retries must be a whole number, got None"),
        ({"task_timeout": "5"}, TypeError, "task_timeout must be a number of seconds, got '5'"),
        ({"task_timeout": float("nan")}, ValueError, "task_timeout must be at least 0"),
        ({"idle_worker_timeout": "x"}, TypeError, "idle_worker_timeout must be a number of seconds"),
        ({"initargs": 5}, TypeError, "initargs must be a tuple of arguments, got 5"),
        ({"seed": -1}, ValueError, "seed must be a non-negative integer"),
        ({"seed": "abc"}, TypeError, "seed must be a non-negative integer"),
        ({"inner_max_num_threads": 0}, ValueError, "inner_max_num_threads must be at least 1, got 0"),
        ({"no_such": 1}, TypeError, "no option 'no_such'"),
    ],
)
def test_a_wrong_option_is_named(option, kind, words):
    with pytest.raises(kind, match=re.escape(words)):
        run(squares(), config=option)
