"""Memory of a process and of its whole tree, read from /proc."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
INTERVAL_SECONDS = 0.02


def own_rss_mb() -> float:
    return rss_bytes(os.getpid()) / 1e6


def reset_own_peak() -> None:
    """Let `own_peak_rss_mb` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def own_peak_rss_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return own_rss_mb()


def settled_rss_mb() -> float:
    """Return the memory of this process once Python has emptied its free lists and a moment has passed."""
    gc.collect()
    time.sleep(0.5)
    return own_rss_mb()


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def pss_bytes(pid: int) -> int:
    """Resident memory, each shared page counted in equal parts to those who share it."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def tree(root: int) -> Iterator[int]:
    """Yield `root` and every descendant of it."""
    yield root
    for task in Path(f"/proc/{root}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from tree(int(child))


class PeakMemory:
    """The peak of the process tree below `root` while the block runs, sampled every 20 ms.

    Attributes
    ----------
    rss_mb, pss_mb : float
        Peak over the samples of the sum over the tree. Pages that processes share count once for each in the first,
        and once altogether in the second.
    """

    def __init__(self, root: int) -> None:
        self.root = root
        self.rss_mb = self.pss_mb = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        self._sample()
        while not self._done.wait(INTERVAL_SECONDS):
            self._sample()

    def _sample(self) -> None:
        rss = pss = 0
        for pid in tree(self.root):
            try:
                rss += rss_bytes(pid)
                pss += pss_bytes(pid)
            except OSError:
                # It has ended since it was listed.
                continue
        self.rss_mb = max(self.rss_mb, rss / 1e6)
        self.pss_mb = max(self.pss_mb, pss / 1e6)
