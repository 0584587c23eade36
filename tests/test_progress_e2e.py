"""Progress and seeds, as a caller sees them: what is counted, and which numbers are drawn."""

from __future__ import annotations

import pytest
import tasks
from helpers import (
    assert_quiet_success,
    both_modes,
    configured,
    own,
    run,
    run_script,
    within,
)
from joblib import Parallel, delayed

pytestmark = [pytest.mark.timeout(120), own]


# Progress


@both_modes
@pytest.mark.parametrize("n_jobs", [1, 2, 3])
@pytest.mark.parametrize("n_tasks", [1, 7, 500])
def test_every_task_is_counted(mode, n_jobs, n_tasks):
    states = []
    run([delayed(tasks.square)(i) for i in range(n_tasks)], mode, n_jobs, config={"progress": states.append})
    assert (states[-1]["done"], states[-1]["total"], states[-1]["failed"]) == (n_tasks, n_tasks, 0)
    done = [state["done"] for state in states]
    assert done == sorted(done)
    assert set(states[-1]) >= {"done", "total", "failed", "elapsed", "rate", "eta"}


@both_modes
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_tasks_from_an_iterator_are_counted(mode, n_jobs):
    states = []
    run((delayed(tasks.square)(i) for i in range(300)), mode, n_jobs, config={"progress": states.append})
    assert (states[-1]["done"], states[-1]["total"]) == (300, 300)


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_generators_are_counted(n_jobs, return_as):
    states = []
    config = {"progress": states.append}
    results = run((delayed(tasks.square)(i) for i in range(60)), n_jobs=n_jobs, config=config, return_as=return_as)
    assert len(list(results)) == 60
    assert (states[-1]["done"], states[-1]["total"]) == (60, 60)


@both_modes
def test_progress_is_told_while_tasks_run(mode, path):
    """The last task waits until the progress of the others has been shown."""
    states = []

    def show(state):
        states.append(state)
        if state["done"] >= 3:
            tasks.note(path("go"))

    calls = [delayed(tasks.sleep)(0.15) for _ in range(6)] + [delayed(tasks.wait_and_return)(path("go"), 0)]
    assert run(calls, mode, config={"progress": show}, batch_size=1)[-1] == 0
    assert any(0 < state["done"] < 7 for state in states)


@both_modes
def test_failures_are_counted(mode):
    states = []
    config = {"progress": states.append, "on_error": "return"}
    run([delayed(tasks.fail_if)(i % 4 == 0, i) for i in range(20)], mode, config=config)
    assert (states[-1]["done"], states[-1]["failed"]) == (20, 5)


def test_progress_ends_when_the_call_fails():
    states = []
    with pytest.raises(ValueError, match="task 3"):
        run([delayed(tasks.fail_if)(i == 3, i) for i in range(20)], config={"progress": states.append})
    count = len(states)
    assert count >= 1
    assert states[-1]["failed"] >= 1
    run([delayed(tasks.square)(i) for i in range(20)])
    assert len(states) == count


def test_a_callable_that_fails_does_not_hang_the_call():
    def show(state):
        raise LookupError("my progress is broken")

    with pytest.raises(LookupError, match="my progress is broken"):
        run([delayed(tasks.sleep)(0.1) for _ in range(6)], config={"progress": show}, batch_size=1)
    run([delayed(tasks.square)(i) for i in range(4)])


def test_each_call_under_one_config_is_counted_by_itself():
    states = []
    with configured(progress=states.append):
        for n in (4, 6):
            Parallel()(delayed(tasks.square)(i) for i in range(n))
            assert (states[-1]["done"], states[-1]["total"]) == (n, n)


@pytest.mark.parametrize("asked", ["parameter", "variable"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_the_bar_is_on_stderr(asked, n_jobs):
    script = run_script(
        """
        import tasks
        options = {"progress": True} if sys.argv[1] == "parameter" else {}
        with config(n_jobs=int(sys.argv[2]), **options):
            print(Parallel()(delayed(tasks.square)(i) for i in range(12))[-1])
        """,
        asked,
        n_jobs,
        env={"RUSTDASK_PROGRESS": "1"} if asked == "variable" else {},
    )
    assert (script.returncode, script.stdout) == (0, "121\n")
    assert "12/12" in script.stderr


def test_no_bar_unless_asked():
    script = run_script(
        """
        import tasks
        with config():
            print(Parallel()(delayed(tasks.square)(i) for i in range(12))[-1])
        """
    )
    assert_quiet_success(script, "121")


# Seeds


def draws(mode, n_jobs, seed=123, n=12, **parallel):
    return run([delayed(tasks.own_draws)() for _ in range(n)], mode, n_jobs, config={"seed": seed}, **parallel)


@both_modes
@pytest.mark.parametrize("n_jobs", [1, 2, 3])
def test_the_same_draws_for_any_n_jobs_and_place(mode, n_jobs):
    expected = draws("processes", 2)
    assert draws(mode, n_jobs) == expected
    assert draws(mode, n_jobs, batch_size=5) == expected
    assert draws(mode, n_jobs, n=5) == expected[:5]


def test_no_two_tasks_draw_the_same():
    numbers = [number for row in draws("processes", 2, n=100) for number in row]
    assert len(set(numbers)) == len(numbers)


def test_another_seed_draws_others():
    assert draws("processes", 2, seed=1) != draws("processes", 2, seed=2)


def test_a_task_that_runs_again_draws_the_same(path):
    expected = draws("processes", 2, n=4)
    calls = [delayed(draw_after_death)(path("marker"), i == 2) for i in range(4)]
    assert run(calls, config={"seed": 123}, batch_size=1) == expected


def draw_after_death(marker, dies):
    numbers = tasks.own_draws()
    if dies and tasks.first_time(marker):
        tasks.die()
    return numbers


@pytest.mark.parametrize("n_jobs", [2, 3])
def test_global_generators_are_seeded_in_processes(n_jobs):
    def global_draws(**parallel):
        return run([delayed(tasks.global_draws)() for _ in range(12)], n_jobs=n_jobs, config={"seed": 5}, **parallel)

    expected = run([delayed(tasks.global_draws)() for _ in range(12)], n_jobs=2, config={"seed": 5})
    assert global_draws() == global_draws(batch_size=1) == expected
    assert len(set(expected)) == 12


def test_workers_do_not_share_a_stream_when_nothing_is_seeded(fresh):
    """Workers forked from one process begin with one state, unless somebody cares."""
    draws_ = run([delayed(tasks.global_draws)() for _ in range(40)], n_jobs=3, batch_size=1)
    assert len(set(draws_)) == 40


def test_a_seed_leaves_the_caller_alone():
    import random

    import numpy as np

    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    draws("threads", 2)
    draws("processes", 2)
    assert (random.random(), np.random.random()) == expected


@own
@both_modes
def test_an_error_of_the_callable_reaches_the_consumer_of_a_generator(mode):
    def broken(state):
        raise RuntimeError("the bar broke")

    results = run([delayed(tasks.sleep)(0.02)] * 8, mode, config={"progress": broken}, return_as="generator")
    with pytest.raises(RuntimeError, match="the bar broke"):
        within(30, list, results)
