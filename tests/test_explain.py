"""The report shows where the time went, and gives the one piece of advice that fits."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import joblib
import pytest
import tasks
from helpers import FREE_THREADED

from rustdask._explain import Explanation, format_seconds

FULL = {
    "function": "fit",
    "mode": "processes",
    "n_jobs": 2,
    "tasks": 2000,
    "batches": 120,
    "wall": 10.0,
    "front_end": 0.02,
    "pickling": 0.1,
    "unpickling": 0.05,
    "queue": 0.6,
    "running": 19.0,
    "results": 0.1,
    "gil_wait": 0.0,
    "bytes_sent": 3_000_000,
    "bytes_placed": 200 * 2**20,
    "bytes_saved": 12 * 2**30,
    "bytes_received": 5_000,
    "batch_sizes": [(1, 20), (16, 100)],
    "task_seconds": [0.1, 0.2, 0.3, 1.5],
    "stragglers": [(17, 1.5), (3, 0.9)],
    "worker_busy": [0.97, 0.95],
    "splits": 3,
    "retries": 0,
    "crashes": 0,
}


def advice(**stats):
    return Explanation({"mode": "processes", "n_jobs": 4, "tasks": 1000, "wall": 1.0, "running": 3.9, **stats}).advice


def test_a_full_report():
    text = str(Explanation(FULL))
    assert text.startswith("fit: 2,000 tasks in 120 batches took 10 s on 2 processes")
    for piece in ("95 %", "20 × 1, 100 × 16", "task 17 1.5 s", "200 MiB placed once", "12 GiB saved", "97%, 95%"):
        assert piece in text
    assert "5 ms per batch" in text
    assert "median 300 ms" in text
    assert "3 batches split" in text
    assert "run again" not in text
    assert text.splitlines()[-1] == "Advice: Nothing to improve: the workers ran your code 95 % of the time."
    assert max(map(len, text.splitlines())) <= 100


def test_the_columns_are_aligned():
    rows = [line for line in str(Explanation(FULL)).splitlines() if line.startswith("    ")]
    assert len({line.index(" %") for line in rows}) == 1


@pytest.mark.parametrize("missing", FULL)
def test_any_figure_may_be_missing(missing):
    stats = {key: value for key, value in FULL.items() if key != missing}
    assert "Advice: " in str(Explanation(stats))
    assert "Advice: " in str(Explanation({**FULL, missing: None}))


def test_nothing_known_at_all():
    assert str(Explanation({})) == "call: 0 tasks\nAdvice: Nothing to improve."
    assert "0 tasks" in repr(Explanation({}))


def test_a_call_that_took_no_time():
    assert str(Explanation({**FULL, "wall": 0.0, "n_jobs": 0}))


def test_as_dict_is_plain():
    numpy = pytest.importorskip("numpy")
    figures = Explanation(
        {**FULL, "task_seconds": numpy.array([0.1, 0.2]), "tasks": numpy.int64(5), "wall": numpy.float64(1.0)}
    ).as_dict()
    assert json.loads(json.dumps(figures)) == figures
    assert figures["task_seconds"] == [0.1, 0.2]
    assert figures["advice"]


def test_many_batch_sizes_are_shortened():
    text = str(Explanation({**FULL, "batch_sizes": [(size, 1) for size in range(1, 40)]}))
    assert "1 × 3, ..., 1 × 37" in text


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        ({}, "Nothing to improve"),
        ({"crashes": 2}, "2 workers died"),
        ({"tasks": 3}, "Only 3 tasks for 4 workers"),
        ({"mode": "threads", "running": 1.5, "gil_wait": 2.4}, "use processes"),
        ({"running": 0.003, "front_end": 0.9}, "Tasks are tiny (3 µs each)"),
        ({"running": 2.0, "stragglers": [(17, 0.9), (2, 0.1)]}, "Task 17 alone took 90 %"),
        ({"running": 1.2, "pickling": 0.6}, "Pickling takes 60 %"),
        ({"running": 1.2, "results": 2.0}, "Results take 50 %"),
        ({"running": 1.2, "front_end": 0.8}, "Making the tasks takes 80 %"),
        ({"running": 1.2}, "Workers waited 70 %"),
    ],
)
def test_advice(stats, words):
    assert words in advice(**stats)
    assert "\n" not in advice(**stats)


def test_gil_advice_is_for_threads_only():
    assert "GIL" not in advice(mode="processes", running=1.5, gil_wait=2.4)


def test_durations():
    shown = [format_seconds(s) for s in (0, 3.2e-6, 4.5e-4, 0.012, 0.5, 3.25, 90, 600)]
    assert shown == ["0 µs", "3.2 µs", "450 µs", "12 ms", "500 ms", "3.2 s", "90 s", "10.0 min"]


def explained(function, arguments, **config):
    rustdask = pytest.importorskip("rustdask")
    with joblib.parallel_config("rustdask", n_jobs=2, **config):
        joblib.Parallel()(joblib.delayed(function)(argument) for argument in arguments)
    return rustdask.explain()


def test_threads_that_wait_for_the_gil_are_told_from_those_that_sleep():
    looping = explained(tasks.spin, [200_000] * 24, mode="threads").seconds("gil_wait")
    sleeping = explained(time.sleep, [0.01] * 24, mode="threads").seconds("gil_wait")
    # How long depends on what else the machine does.
    assert FREE_THREADED or looping > 3 * sleeping


def test_a_straggler_is_named_and_times_add_up():
    explanation = explained(time.sleep, [0.001] * 20 + [0.4], mode="processes")
    assert max(explanation.pairs("stragglers"), key=lambda pair: pair[1])[0] == 20
    assert explanation.share("running", "unpickling", "results") <= 1.01
    assert 0 < explanation.seconds("queue")
    assert explanation.count("crashes") == 0


def test_workers_that_died_are_counted(tmp_path):
    marker, runs = str(tmp_path / "marker"), str(tmp_path / "runs")
    with joblib.parallel_config("rustdask", n_jobs=2, mode="processes"):
        joblib.Parallel(batch_size=1)(joblib.delayed(tasks.die_once)(marker, runs, i) for i in range(4))
    import rustdask

    assert rustdask.explain().count("crashes") == 1
    assert "1 workers died" in rustdask.explain().advice


@pytest.mark.parametrize(("ending", "code"), [("sys.exit(3)", 3), ("", 0), ("1 / 0", 1)])
def test_the_command_explains_however_the_script_ends(tmp_path, ending, code):
    script = tmp_path / "script.py"
    lines = ["import sys", "from joblib import Parallel, delayed", "Parallel(n_jobs=2)([delayed(abs)(1)] * 9)", ending]
    script.write_text("\n".join(lines))
    command = [sys.executable, "-m", "rustdask", "explain", str(script)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == code
    assert "abs: 9 tasks" in ended.stderr
    assert "runpy" not in ended.stderr
