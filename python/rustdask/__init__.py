"""Run scikit-learn fits and joblib loops on a fast native executor.

Importing rustdask registers the joblib backend ``"rustdask"``:

>>> import rustdask
>>> from joblib import Parallel, delayed, parallel_config
>>> with parallel_config("rustdask", n_jobs=2):
...     Parallel()(delayed(pow)(i, 2) for i in range(4))
[0, 1, 4, 9]
"""

from rustdask._client import Client, fire_and_forget, get_client
from rustdask._cluster_address import Security
from rustdask._clusters import LocalCluster
from rustdask._core import __version__
from rustdask._delayed import Delayed, compute, delayed, persist
from rustdask._exceptions import RemoteError, TaskFailure, TaskTimeout, UnpicklableError, WorkerCrashed
from rustdask._executor import Executor
from rustdask._future import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, Future, as_completed, wait
from rustdask._get import get
from rustdask._items import rng
from rustdask._joblib import install, uninstall
from rustdask._pool import explain, info, shutdown
from rustdask._resources import held_resources
from rustdask._worker_rank import worker_rank

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "Client",
    "Delayed",
    "Executor",
    "Future",
    "LocalCluster",
    "RemoteError",
    "Security",
    "TaskFailure",
    "TaskTimeout",
    "UnpicklableError",
    "WorkerCrashed",
    "__version__",
    "as_completed",
    "compute",
    "delayed",
    "explain",
    "fire_and_forget",
    "get",
    "get_client",
    "held_resources",
    "info",
    "install",
    "persist",
    "rng",
    "shutdown",
    "uninstall",
    "wait",
    "worker_rank",
]
