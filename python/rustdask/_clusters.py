"""A cluster that is started from Python, by the commands ``rustdask scheduler`` and ``rustdask worker``."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any

from rustdask._client import Client
from rustdask._cluster_address import Security
from rustdask._cores import parse_memory

_START_SECONDS = 60.0
_LEAVE_SECONDS = 30.0


class LocalCluster:
    """A cluster on this machine: a scheduler, and nodes with a worker process each, over loopback.

    `Client` without an address does the same work faster. This is for code that wants a cluster, and for trying one.

    Parameters
    ----------
    n_workers : int, optional
        Nodes, by default as many as there are cores.
    memory_limit : int or str, optional
        Memory for each worker process, such as ``"2GB"``.
    resources : dict of str to float, optional
        What each node has for tasks that ask for it.
    security : Security, optional
        By default a token that is made for this cluster.

    Examples
    --------
    >>> from rustdask import LocalCluster
    >>> with LocalCluster(n_workers=2) as cluster, cluster.get_client() as client:
    ...     client.submit(sum, [1, 2]).result()
    3
    """

    def __init__(
        self,
        n_workers: int | None = None,
        *,
        memory_limit: int | str | None = None,
        resources: Mapping[str, float] | None = None,
        security: Security | None = None,
    ) -> None:
        from rustdask._joblib import cores

        parse_memory(memory_limit)
        self.security = security or Security(token=secrets.token_hex(32))
        self._memory_limit = memory_limit
        self._resources = dict(resources or {})
        self._nodes: list[_Process] = []
        self._leaving: list[_Process] = []
        self._scheduler: _Process | None = None
        self.scheduler_address = ""
        self._environment = {**os.environ, **_environment_of(self.security)}
        files = _files_of(self.security)
        command = [sys.executable, "-m", "rustdask", "scheduler", "--port", "0", *files]
        try:
            self._scheduler = _Process(command, self._environment)
            self.scheduler_address = self._scheduler.wait_for("rustdask scheduler at ")
            self.scale(n_workers if n_workers is not None else cores().count)
        except BaseException:
            self.close()
            raise

    def scale(self, n_workers: int) -> None:
        """Have so many nodes. Those that go end what they run, and hand their results over, first."""
        files = _files_of(self.security)
        command = [sys.executable, "-m", "rustdask", "worker", self.scheduler_address, "--nworkers", "1", *files]
        command += self._worker_options()
        new = [_Process(command, self._environment) for _ in range(n_workers - len(self._nodes))]
        self._nodes += new
        for process in new:
            process.wait_for("rustdask worker ")
        leaving, self._nodes = self._nodes[n_workers:], self._nodes[:n_workers]
        for process in leaving:
            process.leave()
        self._leaving += leaving

    def get_client(self, **options: Any) -> Client:
        """Return a client of the cluster; see `Client`."""
        return Client(self.scheduler_address, security=self.security, **options)

    def close(self) -> None:
        """End all processes. What runs is not waited for."""
        for process in [*self._leaving, *self._nodes, *filter(None, [self._scheduler])]:
            process.end()
        self._leaving.clear()
        self._nodes.clear()
        self._scheduler = None

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self.scheduler_address if self._scheduler is not None else "closed"
        return f"<LocalCluster: {state}, {len(self._nodes)} nodes>"

    def _worker_options(self) -> list[str]:
        options = []
        if self._memory_limit is not None:
            options += ["--memory-limit", str(self._memory_limit)]
        if self._resources:
            options += ["--resources", " ".join(f"{name}={amount:g}" for name, amount in self._resources.items())]
        return options


class _Process:
    """A command that says in a line when it is ready."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._command = command
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C is for this process, which then ends the others.
            start_new_session=True,
        )
        self._stderr: list[str] = []
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()

    def wait_for(self, beginning: str) -> str:
        """Return what follows in the line that begins so."""
        assert self._process.stdout is not None
        timer = threading.Timer(_START_SECONDS, self._process.kill)
        timer.start()
        try:
            for line in self._process.stdout:
                if line.startswith(beginning):
                    return line.removeprefix(beginning).strip()
        finally:
            timer.cancel()
        self._process.wait()
        self._listener.join()
        raise RuntimeError(f"{shlex.join(self._command)} did not start: {''.join(self._stderr).strip()}")

    def leave(self) -> None:
        """Have it end what it does, and leave."""
        self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """End it at once."""
        # A second signal ends a process that is leaving.
        deadline = time.monotonic() + _LEAVE_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            self._process.terminate()
            try:
                self._process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            self._stderr.append(line)
            sys.stderr.write(line)


def _environment_of(security: Security) -> dict[str, str]:
    return {} if security.token is None else {"RUSTDASK_TOKEN": security.token}


def _files_of(security: Security) -> list[str]:
    if security.tls_cert is None:
        return []
    return ["--tls-cert", security.tls_cert, "--tls-key", str(security.tls_key), "--tls-ca", str(security.tls_ca)]
