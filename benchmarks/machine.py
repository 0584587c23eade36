"""The rows of the scheduler machine alone: what rust/core/examples/machine_throughput prints.

Its graphs stand where others have contestants. On one core, with all that the machine says carried out at once.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.row import Figure, Goal, Row

RUST = Path(__file__).parent.parent
CARGO = ["cargo", "run", "--quiet", "--release", "-p", "rustdask-core", "--example", "machine_throughput", "--"]
MOST_TASKS = 10_000_000

Run = Callable[[int], str]


@contextlib.contextmanager
def shape(name: str) -> Iterator[Run]:
    """Yield a function that measures graphs of this shape, of up to so many tasks, and returns what is printed."""

    def run(most_tasks: int) -> str:
        command = [*CARGO, str(most_tasks), name]
        return subprocess.run(command, cwd=RUST, check=True, capture_output=True, text=True).stdout

    run(0)
    yield run


def machine(run: Run, scale: float) -> dict[str, Any]:
    lines = parsed(run(int(MOST_TASKS * scale)))
    few, many = ([line for line in lines if line["workers"] == n] for n in (2, 1000))
    return {
        "value": most_tasks(few)["completions/s"],
        "thousand": most_tasks(many)["completions/s"],
        "growth": most_tasks(few)["ns each"] / few[0]["ns each"],
        "waiting": max(line["bytes/waiting"] for line in lines),
        "lines": lines,
    }


def most_tasks(lines: list[dict[str, float]]) -> dict[str, float]:
    return max(lines, key=lambda line: line["tasks"])


COLUMNS = ("workers", "tasks", "completions/s", "ns each", "ns to submit", "bytes/waiting")


def parsed(printed: str) -> list[dict[str, float]]:
    """Return the lines of numbers, the smallest graph first."""
    lines = [line.split() for line in printed.splitlines() if line]
    assert lines[0][:3] == ["graph", "workers", "tasks"], lines[0]
    return [dict(zip(COLUMNS, map(float, line[1:]), strict=True)) for line in lines[1:]]


SHAPES: dict[str, Callable[[], contextlib.AbstractContextManager[Run]]] = {
    f"machine {name}": (lambda name=name: shape(name)) for name in ("wide", "tree", "chains", "gpus")
}


def goals(plus: float, least: bool = False) -> tuple[Goal, ...]:
    return tuple(Goal(name, plus=plus, least=least) for name in SHAPES)


MACHINE_ROWS = [
    Row(
        "machine",
        "completions, 2 workers",
        "per second",
        machine,
        tuple(SHAPES),
        goals(1_000_000, least=True),
        figures=(
            Figure("thousand", "completions, 1,000 workers", "per second", goals(1_000_000, least=True)),
            Figure("growth", "time per completion, against a graph of 1,000 tasks", "×", goals(1.25)),
            Figure("waiting", "memory of a waiting task", "bytes", goals(400)),
        ),
        small_for=(("machine chains", 0.1), ("machine gpus", 0.1)),
        repeat=1,
        warm_up=0,
        group="machine",
    )
]
