"""How many cores, and how much memory, this process may use.

Guarantees: the core count is the least of all limits that apply, is at least 1, and comes with a
few words that say which limit was the binding one. A limit that cannot be read is no limit; a
limit that a person wrote down wrongly is a ``ValueError`` that names the variable and its value.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class CoreBudget(NamedTuple):
    """Usable cores of this host, and the limit that decided.

    Attributes
    ----------
    count : int
        Cores that may compute at the same time, at least 1.
    source : str
        Where the number comes from, such as ``"cgroup quota 1.5 cores"``.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    source: str


def core_budget(environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> CoreBudget:
    """Count the cores that this process may use.

    Parameters
    ----------
    environ : mapping, optional
        Environment to read; ``os.environ`` by default.
    root : Path
        Where ``proc`` and ``sys`` are found; tests point it at a made-up tree.

    Returns
    -------
    CoreBudget
        The least of: CPU affinity, cgroup v1 and v2 quotas of this process's group and all groups
        above it, ``SLURM_CPUS_PER_TASK``, ``-X cpu_count`` or ``PYTHON_CPU_COUNT``,
        ``LOKY_MAX_CPU_COUNT`` and ``RUSTDASK_CORES``.

    Raises
    ------
    ValueError
        If one of the variables is set to anything but a whole number above zero.

    Examples
    --------
    >>> core_budget({"RUSTDASK_CORES": "1"}).count
    1
    """
    limits = [_system_limit(), *_quota_limits(root)]
    limits += _environment_limits(os.environ if environ is None else environ)
    return min(limits, key=lambda limit: limit.count)


def parse_memory(value: int | float | str | None) -> int | None:
    """Turn a memory size into bytes.

    Parameters
    ----------
    value : int, float, str or None
        A number of bytes, or text such as ``"2GB"``, ``"512MiB"``, ``"1.5G"``. ``k``, ``M``, ``G``,
        ``T`` are powers of 1000 and ``Ki``, ``Mi``, ``Gi``, ``Ti`` powers of 1024, with or without
        ``B``, in either case.

    Returns
    -------
    int or None
        Bytes, or None if `value` is None.

    Raises
    ------
    ValueError
        If `value` is not a size above zero.

    Examples
    --------
    >>> parse_memory("512MiB")
    536870912
    """
    if value is None:
        return None
    size = _text_bytes(value) if isinstance(value, str) else _number_bytes(value)
    if size is None:
        raise ValueError(f"{value!r} is not a memory size. Give bytes, or text such as '2GB' or '512MiB'.")
    return size


def _system_limit() -> CoreBudget:
    total = os.cpu_count() or 1
    if not hasattr(os, "sched_getaffinity"):
        return CoreBudget(total, "CPUs of this machine")
    allowed = max(1, len(os.sched_getaffinity(0)))
    return CoreBudget(allowed, "CPUs of this machine" if allowed == total else "CPU affinity")


def _environment_limits(environ: Mapping[str, str]) -> Iterator[CoreBudget]:
    for name in ("SLURM_CPUS_PER_TASK", "LOKY_MAX_CPU_COUNT", "RUSTDASK_CORES"):
        yield from _limit(name, environ.get(name, ""))
    # As in Python 3.13: the option wins over the variable, and "default" switches either off.
    option = sys._xoptions.get("cpu_count")
    if option is not None:
        yield from _limit("-X cpu_count", "" if option == "default" else str(option))
    elif environ.get("PYTHON_CPU_COUNT") != "default":
        yield from _limit("PYTHON_CPU_COUNT", environ.get("PYTHON_CPU_COUNT", ""))


def _limit(name: str, text: str) -> Iterator[CoreBudget]:
    if not text.strip():
        return
    if not text.strip().isascii() or not text.strip().isdigit() or int(text) < 1:
        raise ValueError(f"{name}={text!r} is not a number of cores. Use a whole number above 0.")
    yield CoreBudget(int(text), name)


def _quota_limits(root: Path) -> Iterator[CoreBudget]:
    """Limits of the group that this process is in, and of every group above it."""
    for directory in _cgroup_directories(root):
        cores = _quota_v2(directory) or _quota_v1(directory)
        if cores is not None:
            yield CoreBudget(max(1, math.ceil(cores)), f"cgroup quota {cores:.4g} cores")


def _quota_v2(directory: Path) -> float | None:
    words = _read(directory / "cpu.max").split()
    if len(words) != 2 or words[0] == "max":
        return None
    return _ratio(words[0], words[1])


def _quota_v1(directory: Path) -> float | None:
    return _ratio(_read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    try:
        quota_us, period_us = int(quota), int(period)
    except ValueError:
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _cgroup_directories(root: Path) -> Iterator[Path]:
    mounts = list(_cgroup_mounts(_read(root / "proc/self/mountinfo")))
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        # The unified hierarchy has no controller in its line; of the others only cpu has quotas.
        kind = "cgroup2" if not controllers else "cgroup"
        if kind == "cgroup" and "cpu" not in controllers.split(","):
            continue
        for mount in mounts:
            if mount.kind == kind:
                yield from _upwards(root, mount, path)


class _Mount(NamedTuple):
    kind: str
    group: PurePosixPath  # the group that is seen at the mount point
    point: PurePosixPath


def _cgroup_mounts(mountinfo: str) -> Iterator[_Mount]:
    """Parse the lines of proc(5) mountinfo that mount a cgroup hierarchy with cpu quotas."""
    for line in mountinfo.splitlines():
        head, found, tail = line.partition(" - ")
        fields, kind_fields = head.split(), tail.split()
        if not found or len(fields) < 5 or len(kind_fields) < 3:
            continue
        kind, options = kind_fields[0], kind_fields[2].split(",")
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options):
            yield _Mount(kind, _unescaped(fields[3]), _unescaped(fields[4]))


def _upwards(root: Path, mount: _Mount, path: str) -> Iterator[Path]:
    """Directories from the group `path` up to the mount point."""
    group = PurePosixPath(path)
    # In a container the path may be that of the host; the mount point then shows our own group.
    inside = group.is_relative_to(mount.group) and ".." not in group.parts
    below = group.relative_to(mount.group) if inside else PurePosixPath()
    top = root / mount.point.relative_to("/")
    for part in (below, *below.parents):
        yield top / part


def _unescaped(text: str) -> PurePosixPath:
    return PurePosixPath(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


_SIZE = r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([kmgtp]?)(i?)b?\s*"


def _text_bytes(text: str) -> int | None:
    match = re.fullmatch(_SIZE, text, re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        return None
    base = 1024 if match[3] else 1000
    return _number_bytes(float(match[1]) * base ** " kmgtp".index(match[2].lower() or " "))


def _number_bytes(value: object) -> int | None:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    number = float(value)
    return int(number) if math.isfinite(number) and number >= 1 else None
