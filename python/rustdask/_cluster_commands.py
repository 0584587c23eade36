"""Commands that make a cluster: ``rustdask scheduler``, ``rustdask worker`` and ``rustdask tls``.

Each prints one line when it is ready, and nothing more while all goes well. SIGTERM and Ctrl-C have it leave.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from rustdask import _cluster_address as where
from rustdask import _core
from rustdask._cluster_address import Security

DEFAULT_PORT = 8786
_LOOK_SECONDS = 3600.0
_LOOK_AGAIN_SECONDS = 0.05

_SCHEDULER_HELP = """\
examples:
  rustdask scheduler
  rustdask scheduler --host 10.0.0.5 --scheduler-file ~/cluster.json
  rustdask scheduler --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --tls-ca ca.pem
"""
_WORKER_HELP = """\
examples:
  rustdask worker tcp://10.0.0.5:8786
  rustdask worker --scheduler-file ~/cluster.json --nworkers 8 --memory-limit 4GB
  rustdask worker tls://head:8786 --resources "GPU=2 special-db=1"
"""
_TLS_HELP = """\
example:
  rustdask tls ./certificates --host head --host 10.0.0.5
"""


def add_parsers(commands: Any) -> None:
    """Add the commands to the parser of ``rustdask``."""
    raw = argparse.RawDescriptionHelpFormatter
    scheduler = commands.add_parser(
        "scheduler", help="serve a cluster's scheduler", epilog=_SCHEDULER_HELP, formatter_class=raw
    )
    scheduler.add_argument("--host", help="name or address to listen on (default: 127.0.0.1)")
    scheduler.add_argument("--interface", help="listen on the address of this network interface, such as eth0")
    scheduler.add_argument(
        "--port", type=int, help=f"port to listen on; 0: any (default: {DEFAULT_PORT}, or the next that is free)"
    )
    scheduler.add_argument("--scheduler-file", help="where to write the address and the token, for workers and clients")
    add_security(scheduler)
    scheduler.set_defaults(run=run_scheduler)

    worker = commands.add_parser(
        "worker", help="run tasks for a cluster, in worker processes", epilog=_WORKER_HELP, formatter_class=raw
    )
    worker.add_argument("address", nargs="?", help="of the scheduler, such as tcp://host:8786")
    worker.add_argument("--scheduler-file", help="written by rustdask scheduler")
    worker.add_argument("--nworkers", type=int, help="worker processes, each with one task at a time (default: cores)")
    worker.add_argument(
        "--nthreads", type=int, help="cores for each worker process, if --nworkers is not given (default: 1)"
    )
    worker.add_argument("--memory-limit", help="for each worker process, such as 4GB")
    worker.add_argument("--name", help="for people (default: the host's name and the process id)")
    worker.add_argument("--resources", default="", help='what tasks may ask for, such as "GPU=2 special-db=1"')
    worker.add_argument("--local-directory", help="where results go that are too much for memory")
    worker.add_argument("--host", help="name or address under which others reach this worker's data")
    worker.add_argument("--port", type=int, default=0, help="for data (default: any)")
    worker.add_argument("--death-timeout", type=float, default=60.0, help="seconds without a scheduler until it leaves")
    worker.add_argument(
        "--drain-timeout", type=float, default=3600.0, help="seconds for what runs to end, when it is to leave"
    )
    worker.add_argument("--lifetime", type=float, help="seconds until it leaves")
    add_security(worker)
    worker.set_defaults(run=run_worker)

    tls = commands.add_parser(
        "tls", help="make an authority and certificates, to try TLS", epilog=_TLS_HELP, formatter_class=raw
    )
    tls.add_argument("directory", help="where ca.pem, cert.pem and key.pem go")
    tls.add_argument("--host", action="append", help="name or address of a host that will use the certificate")
    tls.set_defaults(run=run_tls)


def run_scheduler(options: argparse.Namespace) -> int:
    """Serve a scheduler until a signal comes."""
    security = security_of(options)
    if options.scheduler_file and security.token is None and security.tls_cert is None:
        security = Security(token=secrets.token_hex(32))
    host = options.host or _address_of_interface(options.interface) or "127.0.0.1"
    port, exact = (DEFAULT_PORT, False) if options.port is None else (options.port, True)
    service = _core.ClusterScheduler(host=host, port=port, exact=exact, versions=where.versions(), **security.options())
    if options.scheduler_file:
        where.write_scheduler_file(options.scheduler_file, service.address, security.token)
    print(f"rustdask scheduler at {service.address}", flush=True)
    try:
        _wait_for_signal(service.wait, service.stop)
    finally:
        service.stop()
        if options.scheduler_file:
            # Somebody may have tidied up.
            Path(options.scheduler_file).unlink(missing_ok=True)
    return 0


def run_worker(options: argparse.Namespace) -> int:
    """Run tasks for a cluster until a signal comes, or there has been no scheduler for too long."""
    from rustdask._joblib import cores

    security = security_of(options)
    scheduler_file = options.scheduler_file or os.environ.get("RUSTDASK_SCHEDULER_FILE")
    if options.address is None and scheduler_file is not None:
        # The two may have been started together.
        where.read_scheduler_file(scheduler_file, wait_seconds=options.death_timeout)
    address, security = where.find(options.address, scheduler_file, security)
    count = options.nworkers or max(1, cores().count // (options.nthreads or 1))
    node = _start_node(address, security, count, options)
    while node.address is None and not node.wait(_LOOK_AGAIN_SECONDS):
        pass
    if node.address is not None:
        print(f"rustdask worker {node.name} at {node.address}, for {address}", flush=True)
    _wait_for_signal(node.wait, node.leave, options.lifetime)
    node.stop()
    if node.failure:
        print(f"rustdask worker: {node.failure}", file=sys.stderr)
        return 1
    return 0


def _start_node(address: str, security: Security, workers: int, options: argparse.Namespace) -> _core.ClusterNode:
    """Start this machine's part of a cluster."""
    from rustdask._cores import parse_memory
    from rustdask._joblib import launch

    limit = parse_memory(options.memory_limit)
    return _core.ClusterNode(
        scheduler=address,
        name=options.name or f"{socket.gethostname()}-{os.getpid()}",
        workers=workers,
        launch=launch,
        resources=parse_resources(options.resources),
        memory_limit=limit or 0,
        results_limit=limit * workers if limit else None,
        folder=options.local_directory or tempfile.gettempdir(),
        host=options.host or _way_to(address),
        port=options.port,
        death_timeout=options.death_timeout,
        drain_limit=options.drain_timeout,
        versions=where.versions(),
        **security.options(),
    )


def _way_to(address: str) -> str:
    """Return the address of this machine by which the scheduler's sees it."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    host = host.strip("[]")
    found = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)
    family, kind, _, _, to = found[0]
    with socket.socket(family, kind) as probe:
        # Nothing is sent.
        probe.connect(to)
        return str(probe.getsockname()[0])


def run_tls(options: argparse.Namespace) -> int:
    """Make certificates."""
    hosts = options.host or ["localhost", "127.0.0.1", socket.gethostname()]
    _core.make_certificates(options.directory, hosts)
    print(f"rustdask tls: ca.pem, cert.pem and key.pem in {options.directory}, for {', '.join(hosts)}")
    return 0


def parse_resources(text: str) -> dict[str, float]:
    """Return amounts by name, of a text such as ``"GPU=2 special-db=1"``."""
    amounts = {}
    for part in text.replace(",", " ").split():
        name, sign, amount = part.partition("=")
        try:
            amounts[name] = float(amount)
        except ValueError:
            sign = ""
        if not (name and sign):
            raise SystemExit(f"rustdask worker: --resources is made of NAME=AMOUNT, got {part!r}")
    return amounts


def add_security(parser: argparse.ArgumentParser) -> None:
    """Add the options that say who belongs to a cluster."""
    group = parser.add_argument_group("who belongs to the cluster")
    group.add_argument("--token-file", help="has the token; made where it does not exist (or set RUSTDASK_TOKEN)")
    group.add_argument("--tls-cert", help="certificate of this process (PEM)")
    group.add_argument("--tls-key", help="its key (PEM)")
    group.add_argument("--tls-ca", help="certificate of the authority that all certificates are from (PEM)")


def security_of(options: argparse.Namespace) -> Security:
    """Return what those options say."""
    token = os.environ.get("RUSTDASK_TOKEN")
    if options.token_file:
        token = where.read_or_make_token(options.token_file)
    return Security(token, options.tls_cert, options.tls_key, options.tls_ca)


def _address_of_interface(name: str | None) -> str | None:
    if name is None:
        return None
    import fcntl
    import struct

    get_address = 0x8915  # SIOCGIFADDR of Linux
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            found = fcntl.ioctl(probe.fileno(), get_address, struct.pack("256s", name[:15].encode()))
        except OSError as error:
            raise SystemExit(f"rustdask scheduler: no address of the interface {name!r}: {error}") from None
    return socket.inet_ntoa(found[20:24])


def _wait_for_signal(wait: Callable[[float], bool], leave: Callable[[], Any], limit: float | None = None) -> None:
    """Wait until something has ended by itself, or leaves, since a signal or the time has come."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        # A second one ends the process at once.
        signal.signal(number, signal.SIG_DFL)
        leave()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    if limit is not None and not wait(limit):
        leave()
    while not wait(_LOOK_SECONDS):
        pass
