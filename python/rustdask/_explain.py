"""Says where the time of a call went, and what to do about it.

Guarantees: any of the figures may be missing; the report has one line of advice, the first of
`_RULES` that applies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rustdask._exceptions import format_bytes


class Explanation:
    """Where the time of a call went. ``str()`` is a report, `as_dict` the figures.

    Parameters
    ----------
    stats : mapping
        Any of: ``function`` and ``mode`` (names); ``n_jobs``, ``tasks``, ``batches``, ``splits``,
        ``retries``, ``crashes`` (counts); ``wall`` and, summed over tasks, ``front_end``,
        ``pickling``, ``unpickling``, ``queue``, ``running``, ``results``, ``gil_wait`` (seconds);
        ``bytes_sent``, ``bytes_placed``, ``bytes_saved``, ``bytes_received``; ``batch_sizes``
        (pairs of size and count); ``task_seconds`` (run times of batches); ``stragglers`` (pairs
        of task index and seconds); ``worker_busy`` (a fraction for each worker).

    Examples
    --------
    >>> Explanation({"function": "f", "tasks": 4, "n_jobs": 2, "wall": 1.0, "running": 1.9}).advice
    'Nothing to improve: the workers ran your code 95 % of the time.'
    """

    def __init__(self, stats: Mapping[str, Any]) -> None:
        self._stats = {key: _plain(value) for key, value in stats.items() if value is not None}

    @property
    def advice(self) -> str:
        """One sentence: the change that would help most."""
        for rule in _RULES:
            advice = rule(self)
            if advice is not None:
                return advice
        return self._good_news()

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain numbers, strings and lists, with the advice."""
        return {**self._stats, "advice": self.advice}

    def __str__(self) -> str:
        lines = [self._title(), *self._times(), *self._details(), f"Advice: {self.advice}"]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Explanation: {self._title()}>"

    def seconds(self, key: str) -> float:
        """Return a time, or 0 if it was not measured."""
        return float(self._stats.get(key, 0.0))

    def count(self, key: str) -> int:
        """Return a count, or 0 if it was not measured."""
        return int(self._stats.get(key, 0))

    def pairs(self, key: str) -> list[tuple[int, float]]:
        """Return a list of pairs, or none if it was not measured."""
        return [(int(first), second) for first, second in self._stats.get(key, [])]

    @property
    def in_processes(self) -> bool:
        return bool(self._stats.get("mode", "processes") == "processes")

    @property
    def worker_seconds(self) -> float:
        """Time that the workers had: their number times the length of the call."""
        return max(1, self.count("n_jobs")) * self.seconds("wall")

    def share(self, *keys: str) -> float:
        """Return the part of the workers' time that went into `keys`."""
        if self.worker_seconds <= 0:
            return 0.0
        return sum(self.seconds(key) for key in keys) / self.worker_seconds

    def wall_share(self, *keys: str) -> float:
        """Return the part of the call's length that the parent spent on `keys`."""
        wall = self.seconds("wall")
        return sum(self.seconds(key) for key in keys) / wall if wall > 0 else 0.0

    def seconds_per_task(self) -> float | None:
        tasks = self.count("tasks")
        return self.seconds("running") / tasks if tasks and "running" in self._stats else None

    def _title(self) -> str:
        name = self._stats.get("function", "call")
        parts = [f"{name}: {_number(self.count('tasks'))} tasks"]
        if "batches" in self._stats:
            parts.append(f"in {_number(self.count('batches'))} batches")
        if "wall" in self._stats:
            parts.append(f"took {format_seconds(self.seconds('wall'))}")
        if "n_jobs" in self._stats:
            kind = "processes" if self.in_processes else "threads"
            parts.append(f"on {self.count('n_jobs')} {kind}")
        return " ".join(parts)

    def _times(self) -> list[str]:
        rows = [(label, self.seconds(key), self.share(key)) for label, key in _TIMES if key in self._stats]
        if not rows or self.worker_seconds <= 0:
            return []
        used = self.share("running", "unpickling", "results", "gil_wait")
        rest = max(0.0, 1.0 - used)
        rows.append(("workers waiting", rest * self.worker_seconds, rest))
        total = format_seconds(self.worker_seconds)
        head = f"  Where the time went, of {total} (wall time × workers):"
        return [head, *(_time_row(*row) for row in rows)]

    def _details(self) -> list[str]:
        rows = [
            ("batch sizes", self._batch_sizes()),
            ("batch times", _spread(self._stats.get("task_seconds", []))),
            ("waited in queue", self._queue()),
            ("stragglers", self._stragglers()),
            ("workers busy", ", ".join(f"{x:.0%}" for x in self._stats.get("worker_busy", []))),
            ("data", self._data()),
            ("incidents", self._incidents()),
        ]
        return [f"  {label:<16} {text}" for label, text in rows if text]

    def _batch_sizes(self) -> str:
        sizes = sorted(self.pairs("batch_sizes"))
        shown = sizes if len(sizes) <= 6 else sizes[:3] + sizes[-3:]
        words = [f"{_number(int(count))} × {size}" for size, count in shown]
        if len(sizes) > 6:
            words.insert(3, "...")
        return ", ".join(words)

    def _queue(self) -> str:
        if "queue" not in self._stats:
            return ""
        batches = max(1, self.count("batches") or self.count("tasks"))
        return f"{format_seconds(self.seconds('queue') / batches)} per batch"

    def _stragglers(self) -> str:
        slowest = sorted(self.pairs("stragglers"), key=lambda pair: -pair[1])[:5]
        return ", ".join(f"task {index} {format_seconds(time)}" for index, time in slowest)

    def _data(self) -> str:
        names = ("sent", "placed", "saved", "received")
        words = {"placed": "placed once", "saved": "saved by sharing"}
        return ", ".join(
            f"{format_bytes(self.count(f'bytes_{name}'))} {words.get(name, name)}"
            for name in names
            if self.count(f"bytes_{name}")
        )

    def _incidents(self) -> str:
        names = {
            "splits": "batches split for idle workers",
            "retries": "tasks run again",
            "crashes": "workers lost",
        }
        found = ((self.count(key), text) for key, text in names.items())
        return ", ".join(f"{count} {text}" for count, text in found if count)

    def _good_news(self) -> str:
        busy = self.share("running")
        if "running" not in self._stats or not busy:
            return "Nothing to improve."
        return f"Nothing to improve: the workers ran your code {min(1.0, busy) * 100:.0f} % of the time."


def format_seconds(seconds: float) -> str:
    """Write a duration the way people read it.

    Examples
    --------
    >>> format_seconds(3.2e-6)
    '3.2 µs'
    """
    for limit, scale, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (120.0, 1.0, "s")):
        if seconds < limit:
            value = seconds * scale
            return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 60:.1f} min"


_TIMES = (
    ("running your code", "running"),
    ("waiting for the GIL", "gil_wait"),
    ("joblib's front end", "front_end"),
    ("pickling", "pickling"),
    ("unpickling", "unpickling"),
    ("returning results", "results"),
)


def _after_crash(call: Explanation) -> str | None:
    if not call.count("crashes"):
        return None
    return (
        f"{call.count('crashes')} workers died and their tasks ran again: look at their stderr, "
        "and if memory ran out use fewer jobs."
    )


def _too_few_tasks(call: Explanation) -> str | None:
    tasks, n_jobs = call.count("tasks"), call.count("n_jobs")
    if not 0 < tasks < n_jobs or call.seconds("wall") < 0.05:
        return None
    return f"Only {tasks} tasks for {n_jobs} workers: cut the work into more, smaller tasks."


def _gil_bound(call: Explanation) -> str | None:
    if call.in_processes or call.share("gil_wait") < 0.25:
        return None
    percent = _percent(call.share("gil_wait"))
    return (
        f"The tasks hold the GIL and waited for each other {percent} of the time: "
        'use processes (mode="processes", without require="sharedmem").'
    )


def _tiny_tasks(call: Explanation) -> str | None:
    each = call.seconds_per_task()
    if each is None or each > 2e-4 or call.share("running") > 0.5 or call.count("tasks") < 100:
        return None
    return (
        f"Tasks are tiny ({format_seconds(each)} each): let each do more work, for example a slice "
        'of the loop, and leave batch_size="auto".'
    )


def _straggler(call: Explanation) -> str | None:
    longest = max(call.pairs("stragglers"), key=lambda pair: pair[1], default=None)
    if longest is None or call.count("n_jobs") < 2 or call.share("running") > 0.85:
        return None
    part = longest[1] / call.seconds("wall") if call.seconds("wall") else 0.0
    if part < 0.4:
        return None
    return (
        f"Task {longest[0]} alone took {_percent(part)} of the call while others waited: "
        "start the longest tasks first, or split it."
    )


def _pickling(call: Explanation) -> str | None:
    part = max(call.wall_share("pickling"), call.share("unpickling"))
    if part < 0.3:
        return None
    return (
        f"Pickling takes {_percent(part)} of the time: pass NumPy arrays instead of lists, dicts "
        "and objects, the same array to all tasks, or have tasks load their own data."
    )


def _results(call: Explanation) -> str | None:
    part = max(call.wall_share("results") if call.count("n_jobs") == 1 else 0, call.share("results"))
    if part < 0.3:
        return None
    return f"Results take {_percent(part)} of the time: return less, or NumPy arrays instead of lists and objects."


def _front_end(call: Explanation) -> str | None:
    part = call.wall_share("front_end")
    if part < 0.5 or call.share("running") > 0.7:
        return None
    return (
        f"Making the tasks takes {_percent(part)} of the time: make the iterator of tasks cheaper, "
        "or let each task do more."
    )


def _idle(call: Explanation) -> str | None:
    used = call.share("running", "unpickling", "results", "gil_wait")
    if not call.seconds("running") or used > 0.6 or call.seconds("wall") < 0.05:
        return None
    return (
        f"Workers waited {_percent(1 - used)} of the time: give them more tasks at once, "
        'for example pre_dispatch="all", or use fewer jobs.'
    )


_Rule = Callable[[Explanation], str | None]
_RULES: tuple[_Rule, ...] = (
    _after_crash,
    _too_few_tasks,
    _gil_bound,
    _tiny_tasks,
    _straggler,
    _pickling,
    _results,
    _front_end,
    _idle,
)


def _plain(value: Any) -> Any:
    """Turn arrays, NumPy numbers and tuples into lists and numbers that JSON knows."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value]


def _percent(part: float) -> str:
    return f"{min(part, 1.0) * 100:.0f} %"


def _number(value: int) -> str:
    return f"{value:,}"


def _time_row(label: str, seconds: float, part: float) -> str:
    bar = "█" * round(min(part, 1.0) * 30)
    return f"    {label:<20} {format_seconds(seconds):>9} {100 * part:>4.0f} %  {bar}".rstrip()


def _spread(times: list[float]) -> str:
    if not times:
        return ""
    ordered = sorted(times)
    middle, high = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)]
    return f"median {format_seconds(middle)}, 90 % under {format_seconds(high)}, longest {format_seconds(ordered[-1])}"
