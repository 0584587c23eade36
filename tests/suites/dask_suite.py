"""Dask's own tests, with rustdask as the scheduler wherever a test does not itself name another one.

A pytest plugin (`-p dask_suite`). `RUSTDASK_SUITE_MODE` is "processes" or "threads". With `SUITE_BACKEND=dask` the
schedulers are Dask's own: what fails there as well is no fault of rustdask.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import dask
import pytest

BACKEND = os.environ.get("SUITE_BACKEND", "rustdask")
MODE = os.environ.get("RUSTDASK_SUITE_MODE", "processes")

# Reason -> the tests that it keeps from holding.
SKIPPED_ANYWHERE = {
    "asks which scheduler Dask takes when none has been set; here, one has": [
        "test_compute_array_bag",
        "test_get_scheduler",
        "test_persist_array_bag",
    ],
    "needs the settings with which Dask runs its tests: they make errors of warnings": ["test_nanquantile_all_nan"],
    "needs pytest-mock": ["test_binary_operator_delegation"],
    "names a pool of processes, which keeps a file longer than its tasks": ["test_temporary_directory"],
}

# Those that it keeps from holding in worker processes, under Dask's own scheduler for them as well.
SKIPPED_IN_PROCESSES = {
    "looks for what the tasks left in an object of the test; a process leaves it in a copy": [
        "test_bind",
        "test_from_array_with_lock",
        "test_store",
        "test_store_compute_false",
        "test_store_delayed_target",
        "test_store_regions",
        "test_to_delayed_optimize_graph",
    ],
    "asks that a task hand back the very object of the test; a process hands back a copy": ["test_traverse_false"],
    "counts the tasks of a shuffle through files; it fails under Dask's own schedulers where that goes through tasks": [
        "test_merge_combine_similar",
    ],
    "sets Dask's configuration, which tasks in processes do not see": ["test_disk_shuffle_with_unknown_compression"],
    "locks with an object that cannot be pickled": ["test_store_locks_count_calls"],
}

SKIPPED = SKIPPED_ANYWHERE | (SKIPPED_IN_PROCESSES if MODE == "processes" else {})
REASONS = {test: reason for reason, tests in SKIPPED.items() for test in tests}


@pytest.fixture(scope="session")
def scheduler() -> Iterator[object]:
    if BACKEND != "rustdask":
        yield MODE
        return
    import rustdask

    with rustdask.Client(n_workers=2, processes=MODE == "processes"):
        yield rustdask.get


@pytest.fixture(autouse=True)
def rustdask_is_active(scheduler: object) -> Iterator[None]:
    with dask.config.set(scheduler=scheduler):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if BACKEND != "rustdask":
        return
    for item in items:
        reason = REASONS.get(getattr(item, "originalname", item.name))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
