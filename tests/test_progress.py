"""Progress is counted exactly, shown seldom, and always shown at the end."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time

import pytest

from rustdask import _progress
from rustdask._progress import Progress, make_progress


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("RUSTDASK_PROGRESS", raising=False)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def no_tqdm(monkeypatch):
    def missing(label):
        raise ImportError

    monkeypatch.setattr(_progress, "_TqdmBar", missing)


def test_off_by_default_and_by_name(monkeypatch):
    assert type(make_progress(None)) is Progress
    monkeypatch.setenv("RUSTDASK_PROGRESS", "1")
    assert type(make_progress(False)) is Progress
    assert type(make_progress(None)) is not Progress


@pytest.mark.parametrize("text", ["0", "false", "", "off"])
def test_the_variable_says_no(monkeypatch, text):
    monkeypatch.setenv("RUSTDASK_PROGRESS", text)
    assert type(make_progress(None)) is Progress


def test_what_is_not_understood_is_refused(monkeypatch):
    with pytest.raises(TypeError, match="progress=3"):
        make_progress(3)
    monkeypatch.setenv("RUSTDASK_PROGRESS", "maybe")
    with pytest.raises(ValueError, match="RUSTDASK_PROGRESS='maybe'"):
        make_progress(None)


def test_a_display_that_shows_nothing_takes_all_calls():
    progress = make_progress(False)
    progress.update(1)
    progress.set_total(2)
    progress.close()


def test_a_callable_is_told_the_end():
    states = []
    progress = make_progress(states.append, 10)
    progress.update(4, failed=1)
    progress.update(6)
    progress.close()
    progress.close()
    assert len(states) == 1
    assert {k: states[0][k] for k in ("done", "total", "failed")} == {"done": 10, "total": 10, "failed": 1}
    assert states[0]["eta"] == 0
    assert states[0]["rate"] > 0
    assert set(states[0]) == {"done", "total", "failed", "elapsed", "rate", "eta"}


def test_an_unknown_total():
    states = []
    progress = make_progress(states.append)
    progress.update(3)
    progress.close()
    assert states[0]["total"] is None
    assert states[0]["eta"] is None


def test_a_total_that_is_known_later():
    states = []
    progress = make_progress(states.append)
    progress.set_total(5)
    progress.close()
    assert (states[0]["done"], states[0]["total"]) == (0, 5)


def test_a_callable_is_called_about_ten_times_a_second():
    states = []
    progress = make_progress(states.append, 100)
    end = time.monotonic() + 0.55
    while time.monotonic() < end:
        progress.update(1)
        time.sleep(0.001)
    progress.close()
    assert 3 <= len(states) <= 7
    assert [s["done"] for s in states] == sorted(s["done"] for s in states)


def test_errors_of_a_callable_come_out_once(monkeypatch):
    calls = []

    def fails(state):
        calls.append(state)
        raise KeyError("mine")

    monkeypatch.setattr(_progress._Display, "interval", 0.0)
    progress = make_progress(fails, 3)
    with pytest.raises(KeyError):
        progress.update(1)
    progress.close()
    assert len(calls) == 1


def test_threads_lose_no_count_and_never_meet_in_the_callable(monkeypatch):
    monkeypatch.setattr(_progress._Display, "interval", 0.0)
    inside, states, met = [], [], []

    def shows(state):
        inside.append(1)
        met.append(len(inside))
        states.append(state)
        inside.pop()

    progress = make_progress(shows, 4000)
    threads = [threading.Thread(target=lambda: [progress.update(1) for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    progress.close()
    assert states[-1]["done"] == 4000
    assert set(met) == {1}


def test_updates_are_cheap():
    progress = make_progress(lambda state: None, 10)
    start = time.perf_counter()
    for _ in range(10_000):
        progress.update(1)
    assert time.perf_counter() - start < 0.2


def test_a_line_on_a_terminal_is_rewritten_in_place(monkeypatch, no_tqdm):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(_progress, "_INTERVAL", 0.0)
    progress = make_progress(True, 4, "fit")
    progress.update(2, failed=1)
    progress.update(2)
    progress.close()
    lines = terminal.getvalue()
    assert lines.startswith("\rfit: 2/4 (50 %)")
    assert "1 failed" in lines
    assert lines.count("\n") == 1
    assert "4/4 (100 %)" in lines


def test_a_line_in_a_file_is_written_seldom(monkeypatch, no_tqdm):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    progress = make_progress(True, 100)
    for _ in range(100):
        progress.update(1)
    progress.close()
    assert file.getvalue().count("\n") == 1
    assert "tasks: 100/100" in file.getvalue()


def test_without_stderr_nothing_is_shown(monkeypatch, no_tqdm):
    monkeypatch.setattr(sys, "stderr", None)
    progress = make_progress(True, 1)
    progress.update(1)
    progress.close()


def test_tqdm_shows_the_end_and_starts_nothing_of_its_own():
    pytest.importorskip("tqdm")
    script = (
        "import threading, sys, tqdm\n"
        "from rustdask._progress import make_progress\n"
        "p = make_progress(True, 7, 'fit'); p.update(3, failed=2); p.update(4)\n"
        "print(threading.active_count(), hasattr(tqdm.tqdm, '_lock'))\n"
        "p.close()\n"
        "print('multiprocessing.synchronize' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    assert "fit: 100%" in ran.stderr
    assert "7/7" in ran.stderr
    assert "failed=2" in ran.stderr
    assert ran.stdout.split()[0] == "1"


def test_clock():
    assert _progress._clock(59.6) == "1:00"
    assert _progress._clock(3725) == "1:02:05"
