"""Futures in event loops."""

from __future__ import annotations

import asyncio

import helpers
import pytest
import tasks
from helpers import PATIENCE_S

rustdask = pytest.importorskip("rustdask")
from rustdask import Client, as_completed  # noqa: E402

pytestmark = [helpers.own, pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])]


def in_loop(main, processes):
    async def run():
        async with Client(n_workers=2, processes=processes, asynchronous=True) as client:
            return await asyncio.wait_for(main(client), PATIENCE_S)

    return asyncio.run(run())


def test_await_a_future(processes):
    async def main(client):
        future = client.submit(tasks.add, 1, 2)
        assert await future == 3
        assert await future == 3
        with pytest.raises(Exception, match="oh"):
            await client.submit(tasks.fail, "oh")
        return await client.submit(tasks.add, future, 1)

    assert in_loop(main, processes) == 4


def test_async_for_over_completed(processes):
    async def main(client):
        seen = [await future async for future in as_completed(client.map(tasks.square, range(10)))]
        with_results = [result async for _, result in as_completed(client.map(tasks.square, range(3)), True)]
        return sorted(seen), sorted(with_results)

    assert in_loop(main, processes) == ([i * i for i in range(10)], [0, 1, 4])


def test_more_is_added_while_iterating(processes):
    async def main(client):
        completed = as_completed([client.submit(tasks.echo, 3)])
        seen = []
        async for future in completed:
            seen.append(await future)
            if seen[-1]:
                completed.add(client.submit(tasks.echo, seen[-1] - 1))
        return seen

    assert in_loop(main, processes) == [3, 2, 1, 0]


def test_gather_scatter_run_and_cancel_are_coroutines(processes):
    async def main(client):
        assert await client.gather(client.map(tasks.square, range(4))) == [0, 1, 4, 9]
        assert await client.gather({"a": client.submit(tasks.echo, 1)}) == {"a": 1}
        scattered = await client.scatter([1, 2])
        assert await client.submit(sum, scattered) == 3
        await client.wait_for_workers()
        assert len(await client.run(tasks.pid)) == (2 if processes else 1)
        future = client.submit(tasks.echo, 1, key="k")
        await client.cancel([future])

    in_loop(main, processes)


def test_the_loop_goes_on_while_a_future_is_awaited(processes, path):
    async def main(client):
        future = client.submit(tasks.wait_and_return, path("go"), 7)
        waiting = asyncio.ensure_future(_result(future))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        tasks.note(path("go"))
        return await waiting

    assert in_loop(main, processes) == 7


def test_one_who_stops_waiting_does_not_cancel_the_task(processes, path):
    async def main(client):
        future = client.submit(tasks.wait_and_return, path("go"), 7)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_result(future), 0.05)
        assert future.status == "pending"
        tasks.note(path("go"))
        return await future

    assert in_loop(main, processes) == 7


def test_many_coroutines_wait_for_the_same_and_for_others(processes):
    async def main(client):
        shared = client.submit(tasks.echo, 5)
        others = client.map(tasks.square, range(50))
        return await asyncio.gather(*map(_result, [shared] * 10 + others))

    assert in_loop(main, processes) == [5] * 10 + [i * i for i in range(50)]


def test_two_loops_one_after_the_other_use_one_client(processes):
    with Client(n_workers=1, processes=processes) as client:
        for i in range(2):
            assert asyncio.run(_result(client.submit(tasks.echo, i))) == i


def test_an_asynchronous_client_is_entered_as_such(processes):
    client = Client(n_workers=1, processes=processes, asynchronous=True)
    with pytest.raises(TypeError, match="async with"):
        client.__enter__()
    asyncio.run(client.close())


async def _result(future):
    return await future
