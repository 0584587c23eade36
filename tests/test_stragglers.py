"""Slow tasks among many fast ones do not wait behind each other.

The only tests that compare times: a plan that puts slow tasks one after the other takes twice as long as it should,
and the bound lies well between.
"""

from __future__ import annotations

import time

import pytest
import tasks
from helpers import both_modes, own, run
from joblib import delayed

pytestmark = pytest.mark.timeout(120)

SLOW_S = 0.4
N_SLOW = 8
N_FAST = 2000
IDEAL_S = N_SLOW * SLOW_S / 2
# Fast tasks, and a machine that does other things too.
SLACK_S = 0.6

PLACES = {
    "last": lambda fast, slow: fast + slow,
    "first": lambda fast, slow: slow + fast,
    "middle": lambda fast, slow: fast[:1000] + slow + fast[1000:],
    "spread": lambda fast, slow: [call for i, one in enumerate(slow) for call in [*fast[i * 250 : (i + 1) * 250], one]],
}


@own
@both_modes
@pytest.mark.parametrize("place", PLACES)
def test_slow_tasks_are_spread_over_the_workers(mode, place):
    run((delayed(tasks.sleep)(0.0) for _ in range(100)), mode)
    fast = [delayed(tasks.nothing)() for _ in range(N_FAST)]
    slow = [delayed(tasks.sleep)(SLOW_S) for _ in range(N_SLOW)]
    bound = 1.25 * IDEAL_S + SLACK_S
    elapsed = timed(PLACES[place](fast, slow), mode)
    if elapsed > bound:
        # The machine may have been busy.
        elapsed = timed(PLACES[place](fast, slow), mode)
    assert elapsed <= bound


def timed(calls, mode):
    started = time.monotonic()
    results = run(calls, mode)
    assert len(results) == N_FAST + N_SLOW
    return time.monotonic() - started


@own
def test_one_long_task_keeps_nobody_waiting(path):
    """What had been sent ahead to the worker of a long task is taken back when another worker is idle."""
    calls = [delayed(tasks.wait_and_return)(path("go"), -1)] + [
        delayed(tasks.note_and_return)(path(), i) for i in range(200)
    ]
    results = run(calls, return_as="generator_unordered", config={"max_pending": 1000})
    first = [next(results) for _ in range(200)]
    tasks.note(path("go"))
    assert sorted(first) == list(range(200))
    assert list(results) == [-1]
