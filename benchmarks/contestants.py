"""All contestants: each opens once in a process of its own and stays warm there."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from benchmarks import backends, clients, machine, web

CONTESTANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = (
    backends.JOBLIB | backends.ENGINES | clients.CLIENTS | web.SERVERS | machine.SHAPES
)

NEEDS = backends.NEEDS | clients.NEEDS | web.NEEDS


def is_installed(name: str) -> bool:
    """Whether what contestant `name` is made of is there."""
    if name in machine.SHAPES:
        return shutil.which("cargo") is not None
    return all(is_importable(module) for module in NEEDS.get(name, "").split())


def is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
