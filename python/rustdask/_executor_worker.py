"""What worker processes run of the tasks of executors. Workers begin without it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from rustdask._payload import Constant

_TOKEN_BYTES = 16
# Of this process: whether each initializer was called here, and has not raised.
_is_ready: dict[bytes, bool] = {}


class InitializerFailed(Exception):
    """The initializer has raised the cause of this, or has done so before."""


def call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function that is pickled with its arguments each time: what the call does to it is not seen by others."""
    return function(*args, **kwargs)


class PreparedCaller(Constant):
    """Calls functions after an initializer.

    Parameters
    ----------
    initializer : callable
        Called without arguments, once in each process.
    """

    def __init__(self, initializer: Callable[[], object]) -> None:
        self._initializer = initializer
        self._token = os.urandom(_TOKEN_BYTES)

    def __call__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if not _is_ready.get(self._token):
            self._make_ready()
        return function(*args, **kwargs)

    def _make_ready(self) -> None:
        if self._token in _is_ready:
            raise InitializerFailed("it has failed before")
        _is_ready[self._token] = False
        try:
            self._initializer()
        except BaseException as error:
            raise InitializerFailed(f"{type(error).__name__}: {error}") from error
        _is_ready[self._token] = True


def call_each(function: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    """Call a function for each of several arguments."""
    return [function(*args) for args in chunk]
