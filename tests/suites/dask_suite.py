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


EXCEPTIONS = {
    "test_compute_array_bag": "wants the collections' default schedulers to be used, which differ: here, one is set",
    "test_persist_array_bag": "wants the collections' default schedulers to be used, which differ: here, one is set",
    "test_get_scheduler": "asks that no scheduler be set",
    "test_nanquantile_all_nan": "fails with Dask's own schedulers too, under these settings of warnings",
    "test_binary_operator_delegation": "needs pytest-mock",
}

IN_THREADS_ONLY = {
    **dict.fromkeys(
        ["test_store", "test_store_regions", "test_store_compute_false", "test_store_delayed_target"],
        "looks at an array of this process, to which tasks are to have written",
    ),
    **dict.fromkeys(
        ["test_bind", "test_to_delayed_optimize_graph", "test_store_locks_count_calls", "test_from_array_with_lock"],
        "counts calls, or takes locks, in this process",
    ),
    "test_traverse_false": "looks for the very object that a task was given",
    "test_temporary_directory": "wants the pool that it names to be used",
}
if MODE == "processes":
    EXCEPTIONS |= IN_THREADS_ONLY


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = EXCEPTIONS.get(item.name.split("[")[0])
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


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
