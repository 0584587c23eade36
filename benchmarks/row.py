"""What a row of the tables is, and the goals it is judged by."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def short_name(contestant: str) -> str:
    """Return the name without the word that sets it apart from those of other tables."""
    return contestant.removeprefix("rustdask ").removeprefix("web ").removeprefix("machine ")


@dataclass(frozen=True)
class Goal:
    """`backend` is to stay within `times` x the figure of `of`, plus `plus` of the row's unit; or above, if `least`."""

    backend: str
    times: float = 0.0
    of: str | None = None
    plus: float = 0.0
    least: bool = False

    def limit(self, medians: dict[str, float]) -> float | None:
        if self.of is None:
            return self.plus
        return self.times * medians[self.of] + self.plus if self.of in medians else None

    def is_met(self, value: float, limit: float) -> bool:
        return value >= limit if self.least else value <= limit

    def __str__(self) -> str:
        product = f"{self.times:g} × {self.of}" if self.times != 1 else str(self.of)
        terms = ([product] if self.of else []) + ([f"{self.plus:,.10g}"] if self.plus else [])
        return f"{short_name(self.backend)} {'≥' if self.least else '≤'} {' + '.join(terms)}"


@dataclass(frozen=True)
class Figure:
    """A further figure of a row: what its answers have under `key`, shown as a line of its own."""

    key: str
    title: str
    unit: str
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True)
class Row:
    """One line of a table.

    `run(context, scale)` receives what the contestant's context manager yields, and the share of the full size to run.
    It returns the measurement, or a dict with that as "value" and one for each of `figures`.
    `small_for` maps a contestant to a smaller share where the full size would take minutes; what is measured does not
    depend on the size. `warm_up` is the share that the discarded round runs; 0 leaves that round out. `kind` says who
    measures: "time" the contestant; "process" and "memory" the referee, from outside. `fresh` rows get processes that
    have run nothing else. `group` is the table that the row is in.
    """

    key: str
    title: str
    unit: str
    run: Callable[[Any, float], Any]
    backends: tuple[str, ...]
    goals: tuple[Goal, ...] = ()
    small_for: tuple[tuple[str, float], ...] = ()
    kind: str = "time"
    fresh: bool = False
    repeat: int | None = None
    warm_up: float = 1.0
    figures: tuple[Figure, ...] = ()
    group: str = "joblib"


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_ms(call: Callable[[], Any], times: int) -> float:
    return statistics.median(seconds_of(call) for _ in range(times)) * 1e3


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
