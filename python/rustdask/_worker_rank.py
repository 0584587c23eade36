"""Which of the workers this process is, and how much of the machine is its own."""

from __future__ import annotations

_rank: int | None = None
_share: int | None = None


def worker_rank() -> int | None:
    """Return the number of this worker process among those that run at the same time.

    Returns
    -------
    int or None
        0 to n - 1 in a worker process, None elsewhere.

    Examples
    --------
    >>> import rustdask
    >>> rustdask.worker_rank() is None
    True
    """
    return _rank


def set_worker_rank(rank: int) -> None:
    """Say which worker this process is."""
    global _rank
    _rank = rank


def worker_share() -> int | None:
    """Return how many cores calls inside the tasks of this worker may use; None elsewhere."""
    return _share


def set_worker_share(cores: int) -> None:
    """Say how many cores calls inside tasks may use; the backend looks when it is imported."""
    global _share
    _share = cores
