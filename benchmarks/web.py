"""The rows of a web server: what its clients see under load, and what one computation costs in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.futures import increment
from benchmarks.row import Figure, Goal, Row, percentile
from benchmarks.web_server import WAYS

N_CLIENTS = 100
REQUEST = b"GET /primes?below=50000 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
ANSWER = b'{"below": 50000, "primes": 5133}'


class WebSide:
    """The server in a process of its own, and an event loop in this one, each started when first used."""

    def __init__(self, way: str, stack: contextlib.ExitStack) -> None:
        self.way = way
        self._stack = stack
        self._port: int | None = None
        self._runner: asyncio.Runner | None = None
        self._client: Any = None

    def port(self) -> int:
        if self._port is None:
            command = [sys.executable, "-m", "benchmarks.web_server", self.way]
            # Left, it closes the server's stdin, and waits for its end.
            server = self._stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert server.stdout
            self._port = int(server.stdout.readline())
        return self._port

    def run_with_client(self, coroutine: Callable[[Any], Any]) -> Any:
        if self._runner is None:
            self._runner = self._stack.enter_context(asyncio.Runner())
            opened = WAYS[self.way]()
            self._client = self._runner.run(opened.__aenter__())
            self._stack.callback(lambda: self._run(opened.__aexit__(None, None, None)))
        return self._run(coroutine(self._client))

    def _run(self, coroutine: Any) -> Any:
        assert self._runner
        return self._runner.run(coroutine)


@contextlib.contextmanager
def web_side(way: str) -> Iterator[WebSide]:
    with contextlib.ExitStack() as stack:
        yield WebSide(way, stack)


def under_load(side: WebSide, scale: float) -> dict[str, float]:
    return asyncio.run(load(side.port(), max(2, int(20 * scale))))


async def load(port: int, requests_each: int) -> dict[str, float]:
    """Have all clients ask one thing after the other, and return what they see."""
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(N_CLIENTS)]
    start = time.perf_counter()
    latencies = await asyncio.gather(*(ask(*connection, requests_each) for connection in connections))
    elapsed = time.perf_counter() - start
    for _, writer in connections:
        writer.close()
    every = [seconds * 1e3 for each in latencies for seconds in each]
    return {"value": percentile(every, 0.5), "p99": percentile(every, 0.99), "rate": len(every) / elapsed}


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, times: int) -> list[float]:
    """Speak just enough HTTP: a client that knew more would take the cores that it measures."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(len(ANSWER))
        seconds.append(time.perf_counter() - start)
        assert head.startswith(b"HTTP/1.1 200") and body == ANSWER, (head, body)
    return seconds


def one_await(side: WebSide, scale: float) -> float:
    return side.run_with_client(lambda client: await_one_by_one(client, int(500 * scale)))


async def await_one_by_one(client: Any, times: int) -> float:
    seconds = []
    for i in range(times):
        start = time.perf_counter()
        assert await client.submit(increment, i) == i + 1
        seconds.append(time.perf_counter() - start)
    return percentile(seconds, 0.5) * 1e3


def name_of(way: str) -> str:
    return f"web {way}"


OURS = (name_of("client threads"), name_of("client processes"))

SERVERS: dict[str, Callable[[], contextlib.AbstractContextManager[WebSide]]] = {
    name_of(way): (lambda way=way: web_side(way)) for way in WAYS
}

NEEDS = {name_of(way): "aiohttp" for way in WAYS} | {
    name_of("distributed"): "aiohttp distributed",
    **{ours: "aiohttp rustdask._client" for ours in OURS},
}

WEB_ROWS = [
    Row(
        "web_load",
        "web server, 100 clients: p50",
        "ms",
        under_load,
        tuple(SERVERS),
        figures=(
            Figure("p99", "web server, 100 clients: p99", "ms"),
            Figure("rate", "web server, 100 clients: requests", "per second"),
        ),
        small_for=((name_of("distributed"), 0.25),),
        repeat=3,
        group="web",
    ),
    Row(
        "web_await",
        "submit and await in an event loop, p50",
        "ms",
        one_await,
        tuple(SERVERS),
        tuple(Goal(ours, plus=0.5) for ours in OURS),
        small_for=((name_of("distributed"), 0.2),),
        repeat=3,
        group="web",
    ),
]
