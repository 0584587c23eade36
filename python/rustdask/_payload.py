"""What travels to a worker beside the user's own objects. Imported by both sides; imports next to nothing."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

_PLAIN = frozenset({int, float, bool, str, bytes, type(None), complex})

CACHED_BYTES = 64 << 10
"""A common argument whose pickle is this long is unpickled once per worker; shorter ones for each task."""


class Kind(IntEnum):
    """How the data of a task's pickle ``(kind, index of the first item, data)`` is to be read."""

    ITEMS = 0
    """For each item its own pickle, of ``(function, args, kwargs)`` with `Reference` objects, and how many
    of the task's buffers belong to it."""
    ARGUMENTS = 1
    """The only argument of each item; the function is the second blob."""


def is_plain(value: object) -> bool:
    """Tell whether pickle alone handles a value, in next to no time."""
    return type(value) in _PLAIN


class Constant:
    """A function that stays as it is: it is pickled once, whatever is submitted later."""

    __slots__ = ()


class Reference(NamedTuple):
    """Stands for the content of a blob of the task."""

    number: int


class RunOptions(NamedTuple):
    """How items are run."""

    on_error: str = "raise"
    retries: int = 0
    seed: Any = None
    seed_globals: bool = False


class Settings(NamedTuple):
    """What a call wants its workers to be."""

    options: RunOptions = RunOptions()
    surroundings: bytes | None = None
    surroundings_key: int | None = None
    initializer: bytes | None = None
    initializer_key: int = 0
    inner_threads: int | None = None
    cores: int = 1
    authkey: bytes | None = None
    devices: dict[str, list[str]] = {}  # noqa: RUF012
    kept_bytes: int = 256 << 20
