"""Where a cluster's scheduler is, and what proves to it that one belongs to the cluster."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import time
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from rustdask import _core

_LIBRARIES = ("numpy", "cloudpickle", "joblib", "scikit-learn", "scipy", "pandas", "dask")
_LOOK_AGAIN_SECONDS = 0.05


@dataclass(frozen=True)
class Security:
    """What the processes of a cluster have in common.

    Parameters
    ----------
    token : str, optional
        A secret of at least 16 characters. It proves each side to the other; what they send is not hidden by it.
    tls_cert, tls_key, tls_ca : path, optional
        Certificate and key of this process, and the authority that all certificates are from, in PEM files. With them
        connections are encrypted (TLS 1.3), and each side proves itself by its certificate.
    """

    token: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None

    def __post_init__(self) -> None:
        files = (self.tls_cert, self.tls_key, self.tls_ca)
        if any(files) and not all(files):
            raise ValueError("TLS needs all of tls_cert, tls_key and tls_ca")

    def __repr__(self) -> str:
        token = "" if self.token is None else "token=..."
        tls = "" if self.tls_cert is None else f"tls_cert={self.tls_cert!r}"
        return f"Security({', '.join(filter(None, (token, tls)))})"

    def options(self) -> dict[str, Any]:
        """Return it as the engine takes it."""
        files = (self.tls_cert, self.tls_key, self.tls_ca)
        return {"token": self.token, "tls": tuple(map(os.fspath, files)) if all(files) else None}  # type: ignore[arg-type]


def find(
    address: str | None, scheduler_file: str | os.PathLike[str] | None, security: Security
) -> tuple[str, Security]:
    """Return the address of a scheduler, and the security completed by what its file and the environment say.

    Parameters
    ----------
    address : str, optional
        Such as ``"tcp://host:8786"`` or ``"tls://host:8786"``; by default that of ``RUSTDASK_ADDRESS``.
    scheduler_file : path, optional
        Written by ``rustdask scheduler --scheduler-file``; by default that of ``RUSTDASK_SCHEDULER_FILE``.
    security : Security
    """
    scheduler_file = scheduler_file or os.environ.get("RUSTDASK_SCHEDULER_FILE")
    token = security.token or os.environ.get("RUSTDASK_TOKEN")
    address = address or os.environ.get("RUSTDASK_ADDRESS")
    if address is None and scheduler_file is not None:
        found = read_scheduler_file(scheduler_file)
        address, token = found["address"], token or found.get("token")
    if address is None:
        raise ValueError("no scheduler is named: give its address, a scheduler file, or set RUSTDASK_ADDRESS")
    return address, replace(security, token=token)


def read_scheduler_file(path: str | os.PathLike[str], wait_seconds: float = 0.0) -> dict[str, Any]:
    """Return what a scheduler has written about itself, which may take it a moment."""
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            with open(path) as file:
                return dict(json.load(file))
        except FileNotFoundError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_LOOK_AGAIN_SECONDS)


def write_scheduler_file(path: str | os.PathLike[str], address: str, token: str | None) -> None:
    """Say where a scheduler is, in a file that only this user may read, since it has the token."""
    partial = f"{os.fspath(path)}.{os.getpid()}"
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({"type": "Scheduler", "address": address, "pid": os.getpid(), "token": token}, file)
    # Whoever waits for it sees all of it or nothing.
    os.replace(partial, path)


def read_or_make_token(path: str | os.PathLike[str]) -> str:
    """Return the token in a file. The first one who asks makes it, so that only this user may read it."""
    partial = f"{os.fspath(path)}.{os.getpid()}"
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    # Whoever finds it there finds all of it.
    with contextlib.suppress(FileExistsError):
        os.link(partial, path)
    os.unlink(partial)
    with open(path) as file:
        return file.read().strip()


def versions() -> dict[str, Any]:
    """Return what must be alike, or should be, in the processes of a cluster."""
    libraries = []
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            libraries.append((name, metadata.version(name)))
    return {"rustdask": _core.__version__, "python": sys.version_info[:2], "libraries": libraries}
