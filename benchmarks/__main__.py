"""Runs every row under every contestant, in interleaved rounds, and writes results.json, results.md and results.svg.

Each contestant lives in a process of its own and stays warm. A row goes round all of them before anyone's next turn,
so that a drift of the machine hits all alike; every other round goes backwards; the first round is discarded. Figures
are medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.backends import CONTESTANTS, is_installed
from benchmarks.contestant import Contestant
from benchmarks.rows import ROWS, Row

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
        for round_index in range(1 + (row.repeat or self.repeat)):
            for name in names if round_index % 2 else reversed(names):
                self._turn(row, name, measured)
        return {name: answers[1:] for name, answers in measured.items() if len(answers) > 1}

    def _turn(self, row: Row, name: str, measured: dict[str, list[dict[str, Any]]]) -> None:
        if name not in self.contestants:
            self.contestants[name] = Contestant(name)
        scale = self.scale * dict(row.small_for).get(name, 1.0)
        try:
            measured[name].append(self.contestants[name].measure(row.key, scale, row.kind))
        except Exception as error:
            print(f"  {row.key}: {error}", file=sys.stderr)
            self.contestants.pop(name).close()

    def close(self) -> None:
        while self.contestants:
            self.contestants.popitem()[1].close()


def result_of(row: Row, measured: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    medians = {name: statistics.median(a["value"] for a in answers) for name, answers in measured.items()}
    return {
        "key": row.key,
        "title": row.title,
        "unit": row.unit,
        "medians": medians,
        "goals": [goal for goal in (judge(goal, medians) for goal in row.goals) if goal],
        "samples": measured,
    }


def judge(goal: Any, medians: dict[str, float]) -> dict[str, Any] | None:
    limit = goal.limit(medians)
    if limit is None or goal.backend not in medians:
        return None
    value = medians[goal.backend]
    return {"text": str(goal), "backend": goal.backend, "value": value, "limit": limit, "met": value <= limit}


def chosen(option: str, all_keys: list[str]) -> list[str]:
    """Return the keys that contain any of the comma-separated words of `option`."""
    words = [word for word in option.split(",") if word]
    return [key for key in all_keys if not words or any(word in key for word in words)]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", default="", help="words, separated by commas; rows whose key contains one of them")
    parser.add_argument("--backends", default="", help="likewise, for the contestants")
    parser.add_argument("--repeat", type=int, default=5, help="rounds that count, after the first")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, two rounds; figures mean little")
    parser.add_argument("--output", type=Path, help="folder for the results; a partial run writes none without it")
    parser.add_argument("--list", action="store_true", help="name rows and contestants, and stop")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    rows = [row for row in ROWS if row.key in chosen(options.rows, [row.key for row in ROWS])]
    names = [name for name in chosen(options.backends, list(CONTESTANTS)) if is_installed(name)]
    if options.list:
        print("rows:    ", ", ".join(row.key for row in rows), "\nbackends:", ", ".join(names))
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
            result = result_of(row, referee.run(row))
            print(report.one_line(result), flush=True)
            results.append(result)
    finally:
        referee.close()
    return results


if __name__ == "__main__":
    main()
