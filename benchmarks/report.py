"""Writes what was measured: results.json in full, results.md to read, results.svg to see."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.backends import ENGINES, JOBLIB

COLOURS = {
    "sequential": "#9e9e9e",
    "threading": "#4c78a8",
    "loky": "#72b7b2",
    "dask": "#e0a13a",
    "floor": "#d0d0d0",
    "rustdask threads": "#f06292",
    "rustdask processes": "#b71c1c",
}

Result = dict[str, Any]


def environment() -> dict[str, Any]:
    packages = {}
    for name in ("rustdask", "joblib", "numpy", "scikit-learn", "distributed"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)),
        "packages": packages,
    }


def write(results: list[Result], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    full = {"environment": environment(), "rows": results}
    (folder / "results.json").write_text(json.dumps(full, indent=1, ensure_ascii=False) + "\n")
    (folder / "results.md").write_text(markdown(results))
    plot(results, folder / "results.svg")


def figure(value: float | None) -> str:
    """Three digits are as many as a median of a few rounds can carry."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def one_line(result: Result) -> str:
    medians = ", ".join(f"{name} {figure(value)}" for name, value in result["medians"].items())
    missed = [goal["text"] for goal in result["goals"] if not goal["met"]]
    return f"{result['title']} [{result['unit']}]: {medians}" + "".join(f"\n    missed: {text}" for text in missed)


def goal_cell(goal: dict[str, Any]) -> str:
    """The goal, what was reached in per cent of its limit, and whether it is met."""
    return f"{goal['text']}: {goal['value'] / goal['limit']:.0%} {'✓' if goal['met'] else '✗'}"


def table(results: list[Result], names: list[str]) -> str:
    header = ["work", "unit", *names, "goal: share of the limit used"]
    lines = [header, ["---"] * len(header)]
    for result in results:
        cells = [figure(result["medians"].get(name)) for name in names]
        goals = "<br>".join(goal_cell(goal) for goal in result["goals"])
        lines.append([result["title"], result["unit"], *cells, goals])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def shown(results: list[Result], names: list[str]) -> str:
    present = [name for name in names if any(name in result["medians"] for result in results)]
    rows = [result for result in results if any(name in result["medians"] for name in names)]
    return table(rows, present) if rows else ""


def markdown(results: list[Result]) -> str:
    where = environment()
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items())
    head = (
        f"Python {where['python']}, {where['cpus']} CPUs, {where['system']}; {packages}.\n"
        "Medians of interleaved rounds, the first discarded; two workers everywhere.\n"
        "`floor` is joblib's own front end, with a backend that costs nothing.\n"
    )
    parts = [head, shown(results, list(JOBLIB)), shown(results, list(ENGINES)), notes(results)]
    return "\n".join(part for part in parts if part)


def notes(results: list[Result]) -> str:
    return "".join(million_note(r) for r in results if r["key"] == "million") + "".join(
        pss_note(r) for r in results if r["key"] == "memory_rss"
    )


def million_note(result: Result) -> str:
    lines = ["\n1,000,000 no-ops in one call: µs per task in each tenth of it, and memory of the process around it:\n"]
    for name, (sample, *_) in result["samples"].items():
        slices = sample["slices_us"]
        growth = sum(slices[5:]) / sum(slices[:5])
        shown_slices = ", ".join(figure(value) for value in slices)
        memory = f"RSS {sample['rss_before_mb']:.0f} MB before, {sample['rss_after_mb']:.0f} MB after"
        lines.append(f"- {name}: {shown_slices}; the second half at {growth:.2f} × the first; {memory}")
    return "\n".join(lines) + "\n"


def pss_note(result: Result) -> str:
    peaks = {name: max(sample["pss_mb"] for sample in samples) for name, samples in result["samples"].items()}
    listed = ", ".join(f"{name} {figure(value)} MB" for name, value in peaks.items())
    return f"\nThe same peak as PSS, where a page that processes share counts once: {listed}.\n"


def plot(results: list[Result], path: Path) -> None:
    """Draw each row's times over sequential's, on a log scale: further left is faster."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # Text stays text, and the file does not change from run to run.
    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rustdask", "font.size": 9})
    rows = [result for result in results if "sequential" in result["medians"]][::-1]
    if not rows:
        return
    fig, axes = pyplot.subplots(figsize=(8.5, 0.9 + 0.42 * len(rows)), layout="constrained")
    for name, colour in COLOURS.items():
        points = [
            (r["medians"][name] / r["medians"]["sequential"], y) for y, r in enumerate(rows) if name in r["medians"]
        ]
        ours = name.startswith("rustdask")
        if points and name != "sequential":
            axes.scatter(
                *zip(*points, strict=True), s=70 if ours else 34, color=colour, label=name, zorder=4 if ours else 3
            )
    axes.axvline(1, color=COLOURS["sequential"], lw=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(rows)), [r["title"].replace("`", "") for r in rows])
    axes.set_xlabel("time, as a multiple of one sequential loop (less is faster)")
    axes.grid(axis="both", color="#eeeeee", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.legend(
        frameon=False, ncols=6, loc="lower center", bbox_to_anchor=(0.4, 1.0), columnspacing=1.2, handletextpad=0.2
    )
    fig.savefig(path, metadata={"Date": None})
    pyplot.close(fig)
