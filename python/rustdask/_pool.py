"""The pools of this process: what is running, what the last call did, and their end."""

from __future__ import annotations

import atexit
import os
from typing import Any

from rustdask import _core
from rustdask._explain import Explanation
from rustdask._joblib import FREE_THREADED, cores, install, last_stats


def shutdown() -> None:
    """End the worker processes, the template they are made from, and the threads of rustdask.

    Calls that are running fail. The next call starts afresh.

    Examples
    --------
    >>> import rustdask
    >>> rustdask.shutdown()
    >>> rustdask.info()["workers"]
    []
    """
    _core.shutdown()


def info() -> dict[str, Any]:
    """Return what rustdask is and what it is running.

    Returns
    -------
    dict
        ``version``; ``cores``, how many it uses, and ``cores_source``, where the number came from;
        ``start``, how workers are started; ``mode``, where tasks run by default; ``threads``, how many pool threads
        there are; ``workers``, a list of ``{"rank", "pid", "memory_bytes"}``; ``template_pid``;
        ``segments`` and ``segment_bytes`` of shared memory that hold arguments; ``mapped_results``, how many arrays in
        use are results in shared memory.

    Examples
    --------
    >>> import rustdask
    >>> rustdask.info()["cores"] >= 1
    True
    """
    pool = _core.pool_info()
    budget = cores()
    return {
        "version": _core.__version__,
        "cores": budget.count,
        "cores_source": budget.source,
        "start": os.environ.get("RUSTDASK_START", "fork"),
        "mode": "threads" if FREE_THREADED else "processes",
        "threads": pool["threads"],
        "workers": [{"rank": rank, "pid": pid, "memory_bytes": _memory_of(pid)} for rank, pid in pool["workers"]],
        "template_pid": pool["template_pid"],
        "segments": pool["argument_segments"],
        "segment_bytes": pool["argument_bytes"],
        "mapped_results": pool["mapped_results"],
    }


def explain() -> Explanation:
    """Say where the time of the last call went.

    Returns
    -------
    Explanation
        Its ``str()`` is a report with one line of advice.

    Raises
    ------
    RuntimeError
        If no call has ended in this process yet.

    Examples
    --------
    >>> import rustdask
    >>> from joblib import Parallel, delayed
    >>> results = Parallel(n_jobs=2, backend="rustdask")(delayed(abs)(i) for i in range(4))
    >>> rustdask.explain().as_dict()["tasks"]
    4
    """
    stats = last_stats()
    if stats is None:
        raise RuntimeError("no rustdask call has ended in this process yet: run one, then ask again")
    return Explanation(stats)


def _memory_of(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        # It has ended meanwhile.
        return None


atexit.register(_core.shutdown, at_exit=True)
os.register_at_fork(
    before=_core.before_fork,
    after_in_parent=_core.after_fork_in_parent,
    after_in_child=_core.after_fork_in_child,
)
if os.environ.get("RUSTDASK_DEFAULT") == "1":
    install()
