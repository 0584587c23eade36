"""joblib's, scikit-learn's, Dask's and CPython's own tests with rustdask active, each suite in a pytest of its own.

`make suites` runs all of this file; `make test` runs what is marked `selection`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SITE_PACKAGES = Path(find_spec("joblib").origin).parent.parent

pytestmark = pytest.mark.suite

# Quick ones that between them fit, search, validate, and fail in most of the ways that the whole suite does.
SKLEARN_SELECTION = [
    "sklearn.ensemble.tests.test_bagging",
    "sklearn.ensemble.tests.test_voting",
    "sklearn.ensemble.tests.test_stacking",
    "sklearn.tests.test_multiclass",
    "sklearn.tests.test_multioutput",
    "sklearn.inspection.tests.test_permutation_importance",
    "sklearn.feature_selection.tests.test_rfe",
    "sklearn.feature_selection.tests.test_sequential",
]
SKLEARN_SUITES = [
    "sklearn.ensemble",
    "sklearn.model_selection",
    "sklearn.tests.test_multiclass",
    "sklearn.tests.test_multioutput",
    "sklearn.feature_selection",
    "sklearn.inspection.tests.test_permutation_importance",
    "sklearn.linear_model.tests.test_logistic",
    "sklearn.linear_model.tests.test_coordinate_descent",
]

# These submit graphs of every form, and look at all that a scheduler may get wrong.
DASK_SELECTION = [
    "dask.tests.test_base",
    "dask.tests.test_delayed",
    "dask.tests.test_graph_manipulation",
]
DASK_SUITES = [
    *DASK_SELECTION,
    "dask.bag.tests",
    "dask.array.tests",
    "dask.dataframe.tests",
]


def run_pytest(*arguments: str | Path, plugin: str, rootdir: Path, python: str = sys.executable, **env: str) -> None:
    """Run pytest with `plugin` from this folder; its output, captured here, is shown if it fails."""
    command = [python, "-m", "pytest", "-c", HERE / "suite.ini", "--rootdir", rootdir, "-p", plugin, *arguments]
    subprocess.run(command, check=True, cwd=rootdir, env=os.environ | {"PYTHONPATH": str(HERE)} | env)


def run_joblib_suite(folder: Path, *arguments: str, python: str = sys.executable) -> None:
    subprocess.run([python, HERE / "joblib_suite.py", folder], check=True)
    run_pytest("test_joblib_parallel.py", *arguments, plugin="joblib_suite", rootdir=folder, python=python)


def run_sklearn_suite(mode: str, modules: list[str]) -> None:
    run_pytest("--pyargs", *modules, plugin="sklearn_suite", rootdir=SITE_PACKAGES, RUSTDASK_SUITE_MODE=mode)


def run_dask_suite(mode: str, modules: list[str]) -> None:
    run_pytest("--pyargs", *modules, plugin="dask_suite", rootdir=SITE_PACKAGES, RUSTDASK_SUITE_MODE=mode)


@pytest.mark.selection
@pytest.mark.timeout(600)
def test_joblib_where_it_names_rustdask(tmp_path):
    run_joblib_suite(tmp_path, "-k", "rustdask")


@pytest.mark.timeout(1200)
def test_joblib(tmp_path):
    run_joblib_suite(tmp_path)


@pytest.mark.timeout(1200)
def test_oldest_joblib(tmp_path):
    python = os.environ.get("JOBLIB13_PYTHON")
    if not python:
        pytest.skip("JOBLIB13_PYTHON names no interpreter with joblib 1.3.2: `make suites` makes one")
    run_joblib_suite(tmp_path, python=python)


@pytest.mark.selection
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["processes", "threads"])
def test_sklearn_selection(mode):
    run_sklearn_suite(mode, SKLEARN_SELECTION)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("module", SKLEARN_SUITES)
@pytest.mark.parametrize("mode", ["processes", "threads"])
def test_sklearn(mode, module):
    run_sklearn_suite(mode, [module])


@pytest.mark.selection
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["processes", "threads"])
def test_dask_selection(mode):
    run_dask_suite(mode, DASK_SELECTION)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("module", DASK_SUITES)
@pytest.mark.parametrize("mode", ["processes", "threads"])
def test_dask(mode, module):
    run_dask_suite(mode, [module])


# CPython's, of concurrent.futures.


@pytest.mark.selection
@pytest.mark.timeout(600)
@pytest.mark.parametrize("where", ["InProcesses", "InThreads"])
def test_executor(where):
    python = os.environ.get("CPYTHON_PYTHON") or sys.executable
    if not os.path.exists(python) or subprocess.run([python, "-c", "import test.test_concurrent_futures"]).returncode:
        pytest.skip("no interpreter at hand has CPython's tests: CONTRIBUTING.md says how `make suites` gets one")
    run_pytest(HERE / "executor_suite.py", "-k", where, plugin="no:cacheprovider", rootdir=HERE, python=python)
