"""The template process: imports what workers need, then forks them and says how they ended.

Guarantees: it stays single-threaded, so that its forks are sound; it ends when the process that
started it does, and its workers with it. It is started as ``python -c BOOTSTRAP`` with its socket as
standard input, one pickled plain value to a packet.

Imports of the user's own libraries happen before the first worker is forked when they take long
(the first worker would have to wait for them anyway), and otherwise when there is nothing to do.
"""

from __future__ import annotations

import importlib
import os
import pickle
import select
import signal
import socket
import sys
from typing import Any

BOOTSTRAP = """
import os, pickle, socket, sys
_socket = socket.socket(fileno=os.dup(0))
_greeting = pickle.loads(_socket.recv(1 << 20))
sys.path[:] = _greeting["sys_path"]
exec(_greeting["light_import"])
from rustdask._template import serve
serve(_socket, _greeting)
"""

LIGHT_IMPORT = """
import importlib.util
_spec = importlib.util.spec_from_file_location(
    "rustdask", _greeting["package"] + "/__init__.py", submodule_search_locations=[_greeting["package"]])
_light = importlib.util.module_from_spec(_spec)
def _load(name, _light=_light, _spec=_spec):
    if name.startswith("_"):
        raise AttributeError(name)
    del _light.__getattr__
    _spec.loader.exec_module(_light)
    return getattr(_light, name)
_light.__getattr__ = _load
sys.modules["rustdask"] = _light
"""
"""Makes the submodules of rustdask importable without the package's own imports (joblib, numpy),
which are made up for when somebody asks the package for one of its public names."""

_SLOW = frozenset({"pandas", "polars", "scipy", "sklearn"})
_QUIET_SECONDS = 0.5


def greeting(preload: list[str], *, spawn: bool) -> bytes:
    """Return the first packet for a template.

    Parameters
    ----------
    preload : list of str
        Modules that workers will need; the long ones first served, see the module's docstring.
    spawn : bool
        Start plain interpreters instead of forking.

    Returns
    -------
    bytes
        A pickled dict.
    """
    return pickle.dumps(
        {
            "sys_path": [entry for entry in sys.path if isinstance(entry, str)],
            "package": os.path.dirname(__file__),
            "light_import": LIGHT_IMPORT,
            "preload": preload,
            "spawn": spawn,
        }
    )


def serve(sock: socket.socket, told: dict[str, Any]) -> None:
    """Start workers on request until the socket closes.

    Parameters
    ----------
    sock : socket.socket
        Packets to and from the process that started this one.
    told : dict
        Its greeting.
    """
    from rustdask import _core

    if not told["spawn"]:
        # Here once, rather than in each worker.
        import rustdask._worker  # noqa: F401
    _core.die_with_parent()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    # Threads of numeric libraries would not survive a fork; workers start their own.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    try:
        _Template(sock, told).serve()
    finally:
        os._exit(0)


class _Template:
    def __init__(self, sock: socket.socket, told: dict[str, Any]) -> None:
        self._sock = sock
        self._told = told
        self._workers: dict[int, int] = {}
        self._preload = [] if told["spawn"] else list(told["preload"])
        self._wakeup, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if not _SLOW.isdisjoint(self._preload):
            self._import_all()

    def serve(self) -> None:
        import gc

        gc.freeze()
        while True:
            quiet = _QUIET_SECONDS if self._preload else None
            watched: list[Any] = [self._sock, self._wakeup]
            ready, _, _ = select.select(watched, [], [], quiet)
            if self._wakeup in ready:
                os.read(self._wakeup, 4096)
                self._reap()
            if self._sock in ready and not self._serve_one():
                return
            if not ready:
                self._import_all()
                gc.collect()
                # Collections in workers must not touch, and so copy, the pages of what was imported.
                gc.freeze()

    def _import_all(self) -> None:
        for name in self._preload:
            try:
                importlib.import_module(name)
            except Exception:
                # The worker that needs it will say why it cannot be imported.
                continue
        self._preload = []

    def _serve_one(self) -> bool:
        packet, fds, _, _ = socket.recv_fds(self._sock, 1 << 16, 3)
        if not packet:
            return False
        request = pickle.loads(packet)
        worker = request["worker"]
        try:
            pid = (self._spawn if self._told["spawn"] else self._fork)(request, fds)
        except OSError as error:
            self._say(worker, error=f"cannot start a worker process: {error}")
        else:
            self._workers[pid] = worker
            self._say(worker, pid=pid)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _fork(self, request: dict[str, Any], fds: list[int]) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._sock.close()
            os.close(self._wakeup)
            from rustdask._worker import main

            main(fds[0], fds[1], fds[2], request["rank"])
        finally:
            os._exit(1)

    def _spawn(self, request: dict[str, Any], fds: list[int]) -> int:
        told = {key: self._told[key] for key in ("sys_path", "package", "light_import")}
        source = (
            f"import sys; _greeting = {told!r}; sys.path[:] = _greeting['sys_path']; "
            f"exec(_greeting['light_import']); from rustdask._worker import main; "
            f"main({fds[0]}, {fds[1]}, {fds[2]}, {request['rank']})"
        )
        import subprocess

        arguments = [sys.executable, *interpreter_flags(), "-c", source]
        child = subprocess.Popen(arguments, pass_fds=fds, stdin=subprocess.DEVNULL)
        # This process reaps all of its children itself.
        child.returncode = 0
        return child.pid

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self._workers.pop(pid, None)
            if worker is not None:
                self._say(worker, pid=pid, status=status, peak_memory_kib=usage.ru_maxrss)

    def _say(self, worker: int, **what: Any) -> None:
        reply = {"worker": worker, "pid": 0, "status": None, "peak_memory_kib": 0, "error": None, **what}
        self._sock.send(pickle.dumps(reply))


def interpreter_flags() -> list[str]:
    """Return the flags that this interpreter was started with, but for those about warnings.

    Warnings filters reach tasks with the rest of the context; in the template they would turn the
    imports of libraries into errors.
    """
    import subprocess

    return [flag for flag in subprocess._args_from_interpreter_flags() if not flag.startswith("-W")]  # type: ignore[attr-defined]
