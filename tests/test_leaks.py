"""Nothing stays behind after `shutdown`: no process, thread, descriptor or segment, and no memory of many calls.

`conftest.py` checks the same of the whole suite at its end.
"""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest
import tasks
from helpers import (
    assert_quiet_success,
    assert_usable,
    both_modes,
    descendants,
    open_files,
    own,
    run,
    run_script,
    rustdask,
    segments,
    wait_until,
    zombies,
)
from joblib import delayed

pytestmark = [pytest.mark.timeout(120), own]


def test_shutdown_leaves_nothing(fresh):
    gc.collect()
    wait_until(lambda: not descendants() and not rustdask_threads(), "the last call to be over")
    files = open_files()
    for mode in ("processes", "threads"):
        assert_usable(mode, n_jobs=3)
    run([delayed(tasks.echo)(np.ones(300_000)) for _ in range(6)])
    with pytest.raises(ValueError, match="on purpose"):
        run([delayed(tasks.fail)()] * 3)
    with pytest.raises(rustdask.WorkerCrashed):
        run([delayed(tasks.die)()] * 2)
    rustdask.shutdown()
    gc.collect()
    wait_until(lambda: not descendants(), "child processes to end", 5)
    wait_until(lambda: not zombies(), "ended processes to be waited for", 5)
    wait_until(lambda: not rustdask_threads(), "threads to end", 5)
    wait_until(lambda: segments() == (0, 0), "segments to go", 5)
    wait_until(lambda: len(open_files()) <= len(files), f"descriptors to be closed {files}", 5)


@both_modes
def test_many_lives_leave_nothing(mode, fresh):
    gc.collect()
    counts = []
    for _ in range(6):
        assert_usable(mode)
        rustdask.shutdown()
        wait_until(lambda: not descendants() and not rustdask_threads(), "everything to end", 10)
        counts.append(len(open_files()))
    assert counts[-1] <= counts[1]


@both_modes
def test_many_calls_leave_no_memory(mode):
    """Fifty thousand tasks, after as many to warm up."""
    script = run_script(
        """
        import gc, tasks
        def resident_mib():
            gc.collect()
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        def call(n):
            with config(sys.argv[1]):
                for _ in Parallel(return_as="generator")(delayed(tasks.square)(i) for i in range(n)):
                    pass
                for _ in range(100):
                    Parallel()(delayed(tasks.square)(i) for i in range(10))
        call(20_000)
        before = resident_mib()
        call(50_000)
        print(resident_mib() - before < 10 or resident_mib() / before)
        """,
        mode,
    )
    assert_quiet_success(script, "True")


def test_failed_and_broken_off_calls_leave_no_descriptors():
    def spoilt_calls():
        for _ in range(3):
            with pytest.raises(ValueError, match="on purpose"):
                run([delayed(tasks.fail)(), delayed(tasks.echo)(np.ones(100_000))] * 3)
            with pytest.raises(rustdask.WorkerCrashed):
                run([delayed(tasks.die)(), delayed(tasks.echo)(np.ones(100_000))] * 2, batch_size=1)
        assert_usable()

    spoilt_calls()
    rustdask.shutdown()
    assert_usable()
    wait_until(lambda: len(rustdask.info()["workers"]) == 2, "both workers to start")
    files = files_beside_segments()
    for _ in range(3):
        spoilt_calls()
    gc.collect()
    wait_until(lambda: len(files_beside_segments()) <= len(files), f"descriptors to be closed {files}")
    # How many segments with arguments are kept for the next call is a matter of chance; later, none is.
    wait_until(lambda: rustdask.info()["segments"] == 0, "segments with arguments to go")
    assert rustdask.info()["mapped_results"] == 0


def files_beside_segments():
    return {fd: target for fd, target in open_files().items() if "memfd:rustdask" not in target}


def rustdask_threads():
    names = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/comm") as file:
                names.append(file.read().strip())
        except OSError:
            continue
    return [name for name in names if name.startswith("rustdask")]
