"""Runs one item of a call with what was asked for it: retries, stand-ins for failures, random numbers."""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rustdask._payload import RunOptions

if TYPE_CHECKING:
    import numpy as np

_current: contextvars.ContextVar[tuple[Any, int] | None] = contextvars.ContextVar("rustdask_item", default=None)


class ItemRunner:
    """Runs items as the options say.

    Parameters
    ----------
    options : RunOptions

    Attributes
    ----------
    bare : bool
        A plain call does the same.
    """

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        self.bare = options == RunOptions()

    def __call__(self, index: int, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Run item number `index` of the call and return its result, or a `TaskFailure`."""
        options = self._options
        for attempt in range(options.retries + 1):
            if options.seed is not None:
                _current.set((options.seed, index))
                if options.seed_globals:
                    _seed_globals(options.seed, index)
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if attempt == options.retries:
                    return self._failed(error, index, function)
        raise AssertionError("the last attempt returns or raises")

    def _failed(self, error: Exception, index: int, function: Callable[..., Any]) -> Any:
        if self._options.on_error != "return":
            raise error
        from rustdask._errors import TaskFailure, traceback_text

        return TaskFailure(
            exception=error, index=index, function=function_name(function), traceback=traceback_text(error)
        )


def rng() -> np.random.Generator:
    """Return the random number generator of the task that is running.

    With ``parallel_config("rustdask", seed=...)`` each task has its own stream, which depends on the seed
    and on the task's place in the call alone: not on ``n_jobs``, nor on where the task runs.

    Returns
    -------
    numpy.random.Generator
        A new one, at the start of the task's stream, each time it is called.

    Raises
    ------
    RuntimeError
        Outside a task, or in a call without ``seed``.

    References
    ----------
    .. [1] Streams are spawned as by `numpy.random.SeedSequence`:
       https://numpy.org/doc/stable/reference/random/parallel.html
    """
    import numpy as np

    current = _current.get()
    if current is None:
        raise RuntimeError('rustdask.rng() is for tasks of a call with seed=: parallel_config("rustdask", seed=0)')
    return np.random.default_rng(_sequence(*current))


def _sequence(seed: Any, index: int) -> np.random.SeedSequence:
    import numpy as np

    return np.random.SeedSequence(seed, spawn_key=(index,))


def _seed_globals(seed: Any, index: int) -> None:
    import random

    state = _sequence(seed, index).generate_state(4)
    random.seed(int.from_bytes(state.tobytes(), "little"))
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(state)


def function_name(function: Any) -> str:
    """Return what to call a function in a message."""
    inner = getattr(function, "function", None) or getattr(function, "func", None) or function
    return getattr(inner, "__qualname__", None) or type(inner).__name__
