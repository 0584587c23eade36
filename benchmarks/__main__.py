"""Runs every row under every contestant, in interleaved rounds, and writes results.json, results.md and results.svg.

Each contestant lives in a process of its own and stays warm. A row goes round all of them before anyone's next turn,
so that a drift of the machine hits all alike; every other round goes backwards; the first round is discarded. Figures
are medians.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.contestant import Contestant
from benchmarks.contestants import CONTESTANTS, is_installed
from benchmarks.row import Figure, Goal, Row
from benchmarks.rows import ROWS

QUICK_SCALE = 0.1


class Referee:
    """Starts contestants when a row first needs them, and keeps them for the next."""

    def __init__(self, names: list[str], repeat: int, scale: float) -> None:
        self.names = names
        self.repeat = repeat
        self.scale = scale
        self.contestants: dict[str, Contestant] = {}

    def run(self, row: Row) -> dict[str, list[dict[str, Any]]]:
        """Return the measurements of each contestant, the first round left out; those that failed have none."""
        if row.fresh:
            self.close()
        names = [name for name in row.backends if name in self.names]
        measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        if row.warm_up:
            self._round(row, names, row.warm_up)
        for _ in range(min(self.repeat, row.repeat or self.repeat)):
            for name, answer in self._round(row, names).items():
                measured[name].append(answer)
            names.reverse()
        return {name: answers for name, answers in measured.items() if name in names}

    def _round(self, row: Row, names: list[str], share: float = 1.0) -> dict[str, dict[str, Any]]:
        """Measure each of `names` once. Who fails is struck off `names`, and so loses the row."""
        answers = {}
        for name in list(names):
            if name not in self.contestants:
                self.contestants[name] = Contestant(name)
            scale = self.scale * share * dict(row.small_for).get(name, 1.0)
            try:
                answers[name] = self.contestants[name].measure(row.key, scale, row.kind)
            except Exception as error:
                print(f"  {row.key}: {error}", file=sys.stderr)
                names.remove(name)
                self.contestants.pop(name).close()
        return answers

    def close(self) -> None:
        while self.contestants:
            self.contestants.popitem()[1].close()


def results_of(row: Row, measured: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the row's own result, with all that was measured, and one for each further figure."""
    own = Figure("value", row.title, row.unit, row.goals)
    results = [{"key": row.key, **result_of(row, own, measured), "samples": measured}]
    for figure in row.figures:
        results.append({"key": f"{row.key}.{figure.key}", **result_of(row, figure, measured)})
    return results


def result_of(row: Row, figure: Figure, measured: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    medians = {name: statistics.median(a[figure.key] for a in answers) for name, answers in measured.items()}
    return {
        "group": row.group,
        "title": figure.title,
        "unit": figure.unit,
        "medians": medians,
        "shares": {name: share for name, share in row.small_for if name in medians},
        "goals": [goal for goal in (judge(goal, medians) for goal in figure.goals) if goal],
    }


def judge(goal: Goal, medians: dict[str, float]) -> dict[str, Any] | None:
    limit = goal.limit(medians)
    if limit is None or goal.backend not in medians:
        return None
    value = medians[goal.backend]
    return {
        "text": str(goal),
        "backend": goal.backend,
        "value": value,
        "limit": limit,
        "used": limit / value if goal.least else value / limit,
        "met": goal.is_met(value, limit),
    }


def is_chosen(option: str, name: str) -> bool:
    """Whether `name` contains any of the comma-separated words of `option`; all names do if there are none."""
    words = [word for word in option.split(",") if word]
    return not words or any(word in name for word in words)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--rows", default="", help="words, separated by commas; rows whose group or key contains one of them"
    )
    parser.add_argument("--backends", default="", help="likewise, for the contestants")
    parser.add_argument("--repeat", type=int, default=5, help="rounds that count, after the first")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, two rounds; figures mean little")
    parser.add_argument("--output", type=Path, help="folder for the results; a partial run writes none without it")
    parser.add_argument("--list", action="store_true", help="name rows and contestants, and stop")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    names = [name for name in CONTESTANTS if is_chosen(options.backends, name) and is_installed(name)]
    rows = [row for row in ROWS if is_chosen(options.rows, f"{row.group} {row.key}") and {*row.backends} & {*names}]
    if options.list:
        for group, members in itertools.groupby(rows, lambda row: row.group):
            print(f"{group + ':':10}", ", ".join(row.key for row in members))
        print("backends: ", ", ".join(names))
        return
    partial = options.quick or options.rows or options.backends
    output = options.output or (None if partial else Path(__file__).parent)
    results = run_all(
        rows, Referee(names, 2 if options.quick else options.repeat, QUICK_SCALE if options.quick else 1.0)
    )
    print("\n" + report.markdown(results))
    if output:
        report.write(results, output)


def run_all(rows: list[Row], referee: Referee) -> list[dict[str, Any]]:
    results = []
    try:
        for row in rows:
            for result in results_of(row, referee.run(row)):
                print(report.one_line(result), flush=True)
                results.append(result)
    finally:
        referee.close()
    return results


if __name__ == "__main__":
    main()
