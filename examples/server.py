"""A web server that leaves its computations to rustdask, and goes on serving meanwhile.

    pip install aiohttp
    python examples/server.py --port 8080
    curl 'http://127.0.0.1:8080/primes?below=50000'

`make bench` puts it under load.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from aiohttp import web

import rustdask

LARGEST = 10_000_000
CLIENT: web.AppKey[Any] = web.AppKey("client")


def count_primes(below: int) -> int:
    """Count the prime numbers below a number, by the sieve of Eratosthenes."""
    is_prime = bytearray([0, 0]) + bytearray([1]) * (below - 2)
    for n in range(2, int(below**0.5) + 1):
        if is_prime[n]:
            is_prime[n * n :: n] = bytes(len(range(n * n, below, n)))
    return sum(is_prime)


async def primes(request: web.Request) -> web.Response:
    below = min(int(request.query.get("below", 50_000)), LARGEST)
    count = await request.app[CLIENT].submit(count_primes, below)
    return web.json_response({"below": below, "primes": count})


def open_client() -> rustdask.Client:
    return rustdask.Client(asynchronous=True)


def application(open_client: Callable[[], AbstractAsyncContextManager[Any]] = open_client) -> web.Application:
    """Return the server. Its client is open as long as it runs."""

    async def client_of(app: web.Application) -> AsyncIterator[None]:
        async with open_client() as client:
            app[CLIENT] = client
            yield

    app = web.Application()
    app.cleanup_ctx.append(client_of)
    app.router.add_get("/primes", primes)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    web.run_app(application(), host="127.0.0.1", port=parser.parse_args().port)
