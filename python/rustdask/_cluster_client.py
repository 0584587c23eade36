"""A client's session on a cluster: what it sends with its tasks, and what it hears."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable
from typing import Any

from rustdask import _cluster_address as where
from rustdask import _core, _output
from rustdask._cluster_address import Security


def is_wanted(address: str | None, scheduler_file: object) -> bool:
    """Tell whether a client is to be one of a cluster, by what it was given or the environment says."""
    named = address is not None or scheduler_file is not None
    return named or "RUSTDASK_ADDRESS" in os.environ or "RUSTDASK_SCHEDULER_FILE" in os.environ


def open_session(
    address: str | None,
    scheduler_file: str | os.PathLike[str] | None,
    security: Security,
    timeout: float,
    memory_limit: int | None,
) -> tuple[str, _core.Session]:
    """Connect to a scheduler.

    Returns
    -------
    address : str
    session : Session

    Raises
    ------
    ConnectionError
        If the scheduler cannot be reached within so many seconds, or does not want this process.
    """
    from rustdask._serialize import GraphSerializer

    address, security = where.find(address, scheduler_file, security)
    session, differences = _core.Session.cluster(
        address=address,
        versions=where.versions(),
        serializer=GraphSerializer(_settings_of_client(memory_limit)),
        output=_output.take,
        timeout=timeout,
        memory_limit=memory_limit or 0,
        **security.options(),
    )
    for difference in differences:
        warnings.warn(f"the cluster at {address}: {difference}", stacklevel=4)
    return address, session


def workers_of(info: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the worker processes of a cluster by their names, of what its scheduler says of itself."""
    workers = {}
    for node in info["nodes"]:
        of_all = {name: node[name] for name in ("name", "host", "address", "resources", "memory_limit", "leaving")}
        for worker, pid in node["workers"]:
            workers[worker] = {"nthreads": 1, "pid": pid, **of_all}
    return workers


def _settings_of_client(memory_limit: int | None) -> Callable[[], Any]:
    from rustdask._joblib import worker_settings

    # Workers tell surroundings apart by their keys, which clients number by themselves.
    this_client = uuid.uuid4().hex

    def settings() -> Any:
        made = worker_settings(1, {}, memory_limit)
        return made._replace(surroundings_key=f"{this_client}-{made.surroundings_key}")

    return settings
