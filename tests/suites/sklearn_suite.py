"""scikit-learn's own tests, with rustdask active for every test, at n_jobs=2.

A pytest plugin (`-p sklearn_suite`). `RUSTDASK_SUITE_MODE` is "processes" or "threads". `SUITE_BACKEND` names another
backend of joblib: what fails under loky as well is no fault of rustdask.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from joblib import parallel_config

BACKEND = os.environ.get("SUITE_BACKEND", "rustdask")
MODE = os.environ.get("RUSTDASK_SUITE_MODE", "processes")

RACE = {
    "several of its tasks fail side by side; which is heard of first is a matter of luck": [
        "test_cross_val_predict_decision_function_shape",
        "test_learning_curve_params",
    ],
    "compares sums of floats to the last bit; a forest adds its trees up in the order in which threads finish": [
        "test_multi_output_classification",
    ],
}

# Reason -> the tests that it keeps from holding in worker processes, under any backend of joblib.
SKIPPED_IN_PROCESSES = {
    "looks for what the tasks left in an object of the test; a process leaves it in a copy": [
        "test_base_estimator_inputs",
        "test_cross_val_score_score_func",
        "test_cv_results",
        "test_learning_curve_exploit_incremental_learning_routing",
        "test_logistic_cv_mock_scorer",
        "test_metadata_routing_for_stacking_estimators",
        "test_metadata_routing_for_voting_estimators",
        "test_metadata_routing_with_dynamic_method_selection",
        "test_multi_metric_search_forwards_metadata",
        "test_validation_functions_routing",
    ],
    "asks that a task hold the very object of the test; a process holds a copy": [
        "test_search_callbacks_receive_search_instance",
    ],
    "keeps a generator in the search, which no pickle can carry": ["test_grid_search_cv_splits_consistency"],
    "sends a class that it defines itself over scikit-learn's own connection, which pickles by name": [
        "test_search_callbacks_with_partial_fit_failures",
    ],
    "counts the calls of all tasks in one object of the test; each process counts its own": [
        "test_searchcv_raise_warning_with_non_finite_score",
    ],
}

# Reason -> the tests that it keeps from holding in threads, joblib's own included.
SKIPPED_IN_THREADS = {
    "looks up the call stack for the method that started the tasks; a thread has a stack of its own": [
        "test_learning_curve_exploit_incremental_learning_routing",
        "test_metadata_routing_for_stacking_estimators",
        "test_metadata_routing_for_voting_estimators",
        "test_metadata_routing_with_dynamic_method_selection",
        "test_multi_metric_search_forwards_metadata",
        "test_validation_functions_routing",
    ],
    "looks at the order in which the tasks ran; threads run batches of them side by side": [
        "test_base_estimator_inputs",
        "test_cv_results",
    ],
    "records warnings of tasks that run side by side; before Python 3.14 all threads share what catch_warnings saves": [
        "test_cross_validate_failing_scorer",
    ],
    "asks that a task hand back a copy of its argument; a thread hands back the argument": [
        "test_multi_output_classification_partial_fit_parallelism",
    ],
}

SKIPPED = RACE | (SKIPPED_IN_PROCESSES if MODE == "processes" else SKIPPED_IN_THREADS)
REASONS = {test: reason for reason, tests in SKIPPED.items() for test in tests}


@pytest.fixture(autouse=True)
def rustdask_is_active() -> Iterator[None]:
    if BACKEND == "rustdask":
        import rustdask  # noqa: F401  (registers the backend)

        config = parallel_config("rustdask", n_jobs=2, mode=MODE)
    else:
        config = parallel_config(BACKEND, n_jobs=2)
    with config:
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = REASONS.get(getattr(item, "originalname", item.name))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
