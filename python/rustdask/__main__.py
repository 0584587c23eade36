"""Commands: ``rustdask info``, ``explain``, and those that make a cluster: ``scheduler``, ``worker``, ``tls``."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
from types import TracebackType
from typing import Any

import rustdask
from rustdask import _cluster_commands


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : list of str, optional
        By default those of the process.

    Returns
    -------
    int
        The exit code.
    """
    options, rest = _parser().parse_known_args(arguments)
    if options.command == "explain":
        return _explain(options.script, rest)
    if rest:
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command != "info":
        return int(options.run(options))
    if options.address or options.scheduler_file:
        return _cluster_info(options)
    return _info(as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rustdask", description="Parallel Python on a native executor.")
    parser.add_argument("--version", action="version", version=rustdask.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser(
        "info", help="version, cores and where the number came from, pool, memory; or how a cluster fares"
    )
    info.add_argument("address", nargs="?", help="of a cluster's scheduler")
    info.add_argument("--scheduler-file", help="written by rustdask scheduler")
    info.add_argument("--json", action="store_true", help="print JSON")
    _cluster_commands.add_security(info)
    _cluster_commands.add_parsers(commands)
    explain = commands.add_parser(
        "explain",
        help="run a script with rustdask as joblib's default, then say where its last call's time went",
    )
    explain.add_argument("script", help="a Python file; what follows are its own arguments")
    return parser


def _info(*, as_json: bool) -> int:
    facts = rustdask.info()
    if as_json:
        print(json.dumps(facts))
        return 0
    print(f"rustdask {facts['version']}")
    print(f"cores    {facts['cores']} ({facts['cores_source']})")
    print(f"tasks    in {facts['mode']} by default; workers start by {facts['start']}")
    print(f"pool     {facts['threads']} threads, {len(facts['workers'])} worker processes")
    for worker in facts["workers"]:
        print(f"         worker {worker['rank']}: pid {worker['pid']}, {(worker['memory_bytes'] or 0) >> 20} MiB")
    print(f"memory   {facts['segments']} shared arguments, {facts['segment_bytes'] >> 20} MiB")
    return 0


def _cluster_info(options: argparse.Namespace) -> int:
    security = _cluster_commands.security_of(options)
    with rustdask.Client(
        options.address, scheduler_file=options.scheduler_file, security=security, set_as_default=False
    ) as client:
        facts = client.scheduler_info()
    if options.json:
        print(json.dumps(facts))
        return 0
    print(f"rustdask {facts['versions']['rustdask']} at {facts['address']}, up {facts['uptime']:.0f} s")
    print(f"tasks    {facts['known']} known, {facts['active']} not ended, {facts['queued']} waiting for a worker")
    print(f"clients  {facts['clients'] - 1} beside this one")
    for node in facts["nodes"]:
        state = "leaving" if node["leaving"] else f"{len(node['workers'])} workers"
        print(f"node     {node['name']} at {node['address']}: {state}, {_mib(node)}")
    return 0


def _mib(node: dict[str, Any]) -> str:
    return f"{node['memory_bytes'] >> 20} MiB, {node['result_bytes'] >> 20} MiB of results"


def _explain(script: str, arguments: list[str]) -> int:
    rustdask.install()
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    code: Any = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        traceback = _frames_of(script, error.__traceback__)
        sys.excepthook(type(error), error.with_traceback(traceback), traceback)
        code = 1
    try:
        report = str(rustdask.explain())
    except RuntimeError as nothing:
        report = f"rustdask: {nothing}"
    print(report, file=sys.stderr)
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        return 1
    return code or 0


def _frames_of(script: str, traceback: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the script's first frame on; all of it where the script has none."""
    inner = traceback
    while inner is not None and inner.tb_frame.f_code.co_filename != script:
        inner = inner.tb_next
    return inner or traceback


if __name__ == "__main__":
    sys.exit(main())
