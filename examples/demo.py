"""Fit scikit-learn models under joblib's backends and under rustdask, side by side.

Three jobs, each under every backend, twice: the first pass pays for starting workers, the second finds them warm. The
scores must be the same to the last bit; the program ends with status 1 if they are not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from joblib import parallel_config
from sklearn.datasets import load_breast_cancer, load_digits, make_classification
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC
from tqdm.auto import tqdm

import rustdask

PEERS = ["sequential", "loky", "threading"]
BACKENDS = [*PEERS, "rustdask"]
PASSES = ["first pass", "warm"]


def grid_search() -> np.ndarray:
    X, y = load_digits(return_X_y=True)
    grid = {"C": [1, 10, 100], "gamma": [0.0005, 0.001, 0.002, 0.01]}
    return GridSearchCV(SVC(), grid, cv=5).fit(X, y).cv_results_["mean_test_score"]


def cross_validation() -> np.ndarray:
    X, y = load_breast_cancer(return_X_y=True)
    return cross_val_score(GradientBoostingClassifier(random_state=0), X, y, cv=10)


def forest_at_scale() -> Callable[[], np.ndarray]:
    """A forest on as many rows and columns as the covtype data set has; each tree sees one row in fifty."""
    X, y = make_classification(581_012, 54, n_informative=20, n_classes=7, random_state=0)
    X = X.astype(np.float32)

    def fit() -> np.ndarray:
        forest = RandomForestClassifier(40, max_samples=0.02, random_state=0).fit(X, y)
        return forest.predict_proba(X[:20_000])

    return fit


def timed(job: Callable[[], np.ndarray], backend: str) -> tuple[float, np.ndarray]:
    params: dict[str, Any] = {"progress": True} if backend == "rustdask" else {}
    with parallel_config(backend, n_jobs=1 if backend == "sequential" else -1, **params):
        start = time.perf_counter()
        scores = job()
        return time.perf_counter() - start, scores


def run(name: str, job: Callable[[], np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Run `job` under every backend; rustdask draws its own progress bar, tqdm one over the others."""
    seconds, scores = {}, {}
    bar = tqdm(PEERS, desc=name, unit="backend", leave=False, disable=None)
    for backend in bar:
        bar.set_postfix_str(backend)
        seconds[backend], scores[backend] = timed(job, backend)
    seconds["rustdask"], scores["rustdask"] = timed(job, "rustdask")
    return seconds, scores


def cell(seconds: dict[str, float], backend: str) -> str:
    text = f"{seconds[backend]:7.2f} s"
    return text if backend == "sequential" else f"{text}  {seconds['sequential'] / seconds[backend]:5.2f}×"


def print_table(times: dict[tuple[str, str], dict[str, float]]) -> None:
    header = f"{'':32}{'sequential':>9}" + "".join(f"{backend:>18}" for backend in BACKENDS[1:])
    for pass_name in PASSES:
        print(f"\n{header.replace(' ' * len(pass_name), pass_name, 1)}")
        for (row_pass, job), seconds in times.items():
            if row_pass == pass_name:
                print(
                    f"  {job:30}"
                    + cell(seconds, "sequential")
                    + "".join(f"{cell(seconds, b):>18}" for b in BACKENDS[1:])
                )


def main() -> int:
    print("Making a data set of 581,012 × 54 …", flush=True)
    jobs = {
        "grid search, digits": grid_search,
        "cross-validation, breast cancer": cross_validation,
        "random forest, 581,012 × 54": forest_at_scale(),
    }
    times, differing = {}, set()
    for pass_name in PASSES:
        for job_name, job in jobs.items():
            times[pass_name, job_name], scores = run(f"{job_name}, {pass_name}", job)
            if any(not np.array_equal(scores["sequential"], other) for other in scores.values()):
                differing.add(job_name)
    print_table(times)
    rustdask.shutdown()
    if differing:
        print(f"\nScores differ between backends: {', '.join(sorted(differing))}")
        return 1
    print("\nThe scores are identical under every backend. (Times in seconds; × is the speed-up over sequential.)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
