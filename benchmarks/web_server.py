"""The server of examples/server.py, with one of several ways to compute; as a program: WAY.

It says on which port it listens, and ends when stdin does.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from benchmarks.backends import N_JOBS


class Inline:
    """Computes in the event loop."""

    async def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class InExecutor:
    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return asyncio.get_running_loop().run_in_executor(self.executor, function, *arguments)


@contextlib.asynccontextmanager
async def inline() -> AsyncIterator[Inline]:
    yield Inline()


@contextlib.asynccontextmanager
async def executor(kind: Callable[[int], Executor]) -> AsyncIterator[InExecutor]:
    with kind(N_JOBS) as pool:
        yield InExecutor(pool)


def rustdask_client(processes: bool) -> Any:
    import rustdask

    return rustdask.Client(n_workers=N_JOBS, processes=processes, asynchronous=True)


@contextlib.asynccontextmanager
async def distributed_client() -> AsyncIterator[Any]:
    from distributed import Client, LocalCluster

    async with (
        LocalCluster(n_workers=N_JOBS, threads_per_worker=1, dashboard_address=":0", asynchronous=True) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        yield Unmemoized(client)


class Unmemoized:
    """distributed's client, which would compute each thing but once."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.client.submit(function, *arguments, pure=False)


WAYS: dict[str, Callable[[], Any]] = {
    "inline": inline,
    "ThreadPoolExecutor": lambda: executor(ThreadPoolExecutor),
    "ProcessPoolExecutor": lambda: executor(ProcessPoolExecutor),
    "distributed": distributed_client,
    "client threads": lambda: rustdask_client(processes=False),
    "client processes": lambda: rustdask_client(processes=True),
}


async def serve(way: str) -> None:
    from aiohttp import web

    from examples.server import application

    runner = web.AppRunner(application(WAYS[way]))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await end_of_stdin()
    await runner.cleanup()


async def end_of_stdin() -> None:
    """Wait until the parent has closed it. Not in a thread, whose hold on it forked processes would inherit."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
