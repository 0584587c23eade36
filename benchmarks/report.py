"""Writes what was measured: results.json in full, results.md to read, results.svg to see."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.contestants import CONTESTANTS

COLOURS = {
    "sequential": "#9e9e9e",
    "threading": "#4c78a8",
    "loky": "#72b7b2",
    "dask": "#e0a13a",
    "floor": "#d0d0d0",
    "dask.get_sync": "#bdbdbd",
    "dask.threaded": "#4c78a8",
    "concurrent.futures": "#72b7b2",
    "distributed": "#e0a13a",
    "frisky in-process": "#b39ddb",
    "frisky": "#7e57c2",
    "rustdask threads": "#f06292",
    "rustdask processes": "#b71c1c",
    "client threads": "#f06292",
    "client processes": "#b71c1c",
}

# Below these come the tables. Those who stand in several have the same name there, but for this word.
GROUPS = {
    "joblib": "`floor` is joblib's own front end, with a backend that costs nothing.",
    "engine": "Without joblib:",
    "futures": "Futures, on two worker processes. `client` is `rustdask.Client`, here and below.",
    "graphs": "Graphs, and the set of the RSDS paper, scaled to two cores. `frisky` has processes, like `distributed`.",
    "web": "A web server (examples/server.py) that computes something small for each request, in several ways.",
    "machine": "The scheduler machine alone, on one core, all that it says done at once, by the shape of the graph.",
}

Result = dict[str, Any]


def environment() -> dict[str, Any]:
    packages = {}
    for name in ("rustdask", "joblib", "numpy", "scikit-learn", "distributed", "frisky", "aiohttp"):
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
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def one_line(result: Result) -> str:
    medians = ", ".join(f"{name} {figure(value)}" for name, value in result["medians"].items())
    missed = [goal["text"] for goal in result["goals"] if not goal["met"]]
    return f"{result['title']} [{result['unit']}]: {medians}" + "".join(f"\n    missed: {text}" for text in missed)


def goal_cell(goal: dict[str, Any]) -> str:
    """The goal, what was reached in per cent of its limit, and whether it is met."""
    return f"{goal['text']}: {goal['used']:.0%} {'✓' if goal['met'] else '✗'}"


def table(results: list[Result]) -> str:
    names = [name for name in CONTESTANTS if any(name in result["medians"] for result in results)]
    header = ["work", "unit", *(heading(name) for name in names), "goal: share of the limit used"]
    lines = [header, ["---"] * len(header)]
    for result in results:
        cells = [figure(result["medians"].get(name)) for name in names]
        goals = "<br>".join(goal_cell(goal) for goal in result["goals"])
        lines.append([result["title"], result["unit"], *cells, goals])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def heading(contestant: str) -> str:
    return contestant.removeprefix("web ").removeprefix("machine ")


def shown(results: list[Result], group: str) -> str:
    rows = [result for result in results if result["group"] == group and result["medians"]]
    return f"{GROUPS[group]}\n\n{table(rows)}{shares_note(rows)}" if rows else ""


def shares_note(results: list[Result]) -> str:
    """Say who ran less than the others."""
    shares = [
        f"{result['title']}: " + ", ".join(f"{heading(name)} {share:g}" for name, share in result["shares"].items())
        for result in results
        if result["shares"] and "samples" in result
    ]
    return f"\nShares of the work, where all of it would take too long: {'; '.join(shares)}.\n" if shares else ""


def markdown(results: list[Result]) -> str:
    where = environment()
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items())
    head = (
        f"Python {where['python']}, {where['cpus']} CPUs, {where['system']}; {packages}.\n"
        "Medians of interleaved rounds, the first discarded; two workers everywhere.\n"
    )
    parts = [head, *(shown(results, group) + notes(results, group) for group in GROUPS)]
    return "\n".join(part for part in parts if part)


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


def memory_note(result: Result) -> str:
    kept = (
        f"{name} {sample['rss_before_mb']:.0f} and {sample['rss_after_mb']:.0f} MB"
        for name, (sample, *_) in result["samples"].items()
    )
    return f"\n{result['title']}: memory of the client before and afterwards: {', '.join(kept)}.\n"


NOTES = {
    "million": million_note,
    "memory_rss": pss_note,
    "million_graph": memory_note,
    "million_map": memory_note,
}


def notes(results: list[Result], group: str) -> str:
    return "".join(
        NOTES[result["key"]](result) for result in results if result["group"] == group and result["key"] in NOTES
    )


def plot(results: list[Result], path: Path) -> None:
    """Draw times on a log scale, further left is faster: of joblib over sequential, of graphs over rustdask's best."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # Text stays text, and the file does not change from run to run.
    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rustdask", "font.size": 9})
    panels = [panel for panel in (joblib_panel(results), graphs_panel(results)) if panel[0]]
    if not panels:
        return
    heights = [0.9 + 0.42 * len(rows) for rows, *_ in panels]
    fig, all_axes = pyplot.subplots(
        len(panels), 1, figsize=(8.5, sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    for axes, panel in zip(all_axes[:, 0], panels, strict=True):
        draw(axes, *panel)
    fig.savefig(path, metadata={"Date": None})
    pyplot.close(fig)


def joblib_panel(results: list[Result]) -> tuple[list[Result], list[float], str]:
    rows = [result for result in results if "sequential" in result["medians"]]
    bases = [result["medians"]["sequential"] for result in rows]
    return rows, bases, "time, as a multiple of one sequential loop (less is faster)"


def graphs_panel(results: list[Result]) -> tuple[list[Result], list[float], str]:
    rows = [result for result in results if result["group"] in ("futures", "graphs") and is_time(result)]
    rows = [result for result in rows if ours_of(result)]
    bases = [min(ours_of(result)) for result in rows]
    return rows, bases, "time, as a multiple of the faster of rustdask's clients (less is faster)"


def is_time(result: Result) -> bool:
    return result["unit"] in ("s", "ms", "µs per task")


def ours_of(result: Result) -> list[float]:
    return [value for name, value in result["medians"].items() if is_ours(name)]


def is_ours(name: str) -> bool:
    return name.startswith(("rustdask", "client"))


def draw(axes: Any, rows: list[Result], bases: list[float], label: str) -> None:
    for name, colour in COLOURS.items():
        points = [
            (row["medians"][name] / base, -y)
            for y, (row, base) in enumerate(zip(rows, bases, strict=True))
            if name in row["medians"]
        ]
        ours = is_ours(name)
        if points and name != "sequential":
            axes.scatter(
                *zip(*points, strict=True), s=70 if ours else 34, color=colour, label=name, zorder=4 if ours else 3
            )
    axes.axvline(1, color=COLOURS["sequential"], lw=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks([-y for y in range(len(rows))], [row["title"].replace("`", "") for row in rows])
    axes.set_xlabel(label)
    axes.grid(axis="both", color="#eeeeee", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    # Names in one line if there are few, else in two.
    columns = 6 if len(axes.collections) <= 6 else 4
    axes.legend(
        frameon=False,
        ncols=columns,
        loc="lower center",
        bbox_to_anchor=(0.4, 1.0),
        columnspacing=1.2,
        handletextpad=0.2,
    )
