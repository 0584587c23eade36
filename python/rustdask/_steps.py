"""Several calls that run as one task.

A task of a graph may hold calls within calls, or be a chain of tasks that were joined. Its function is then a `Steps`:
what is to be called with what, apart from the data. So tasks of the same form share one `Steps`, which travels to
worker processes once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

from rustdask._core import is_abandoned

Step = tuple[Callable[..., Any], tuple[int, ...], tuple[str, ...]]
"""A function, the places of its arguments, and the names of the last of these.

The places 0, 1, ... are those of the inputs; -1, -2, ... those of the results of the steps.
"""


class Steps:
    """Call functions in turn, with what the task was given and with results of earlier steps.

    In threads, no further step is begun once the task is cancelled.

    Parameters
    ----------
    steps : tuple of Step
        The last one makes the result of the task.
    n_inputs : int
    """

    __slots__ = ("__name__", "_calls", "_steps", "n_inputs")

    def __init__(self, steps: tuple[Step, ...], n_inputs: int) -> None:
        self._steps = steps
        self._calls = _with_last_uses(steps, n_inputs)
        self.n_inputs = n_inputs
        self.__name__ = name_of(steps[-1][0])

    def __call__(self, *inputs: Any) -> Any:
        known = list(inputs)
        del inputs
        result = None
        for function, places, names, spent in self._calls:
            if len(known) > self.n_inputs and is_abandoned():
                raise CancelledError(f"{self.__name__} was cancelled")
            given = [known[place] for place in places]
            # An intermediate result goes as soon as the step that is the last to need it lets go of it.
            for place in spent:
                known[place] = None
            if names:
                split = len(given) - len(names)
                result = function(*given[:split], **dict(zip(names, given[split:], strict=True)))
            else:
                result = function(*given)
            known.append(result)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return Steps, (self._steps, self.n_inputs)

    def __repr__(self) -> str:
        return f"<Steps: {', '.join(name_of(function) for function, _, _ in self._steps)}>"


def _with_last_uses(
    steps: tuple[Step, ...], n_inputs: int
) -> list[tuple[Callable[..., Any], tuple[int, ...], tuple[str, ...], tuple[int, ...]]]:
    """Count places from the first input on, results after inputs, and note where each is used for the last time."""
    calls = []
    met: set[int] = set()
    for function, coded, names in reversed(steps):
        places = tuple([place if place >= 0 else n_inputs + ~place for place in coded])
        spent = tuple([place for place in places if place not in met])
        met.update(places)
        calls.append((function, places, names, spent))
    calls.reverse()
    return calls


def name_of(function: Any) -> str:
    """Return what to call a function, or some other value, in keys and pictures."""
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def same(value: Any) -> Any:
    """Return the argument, in which the engine has put results in their places."""
    return value


def list_of(*items: Any) -> list[Any]:
    """Return a list of the arguments."""
    return list(items)


def tuple_of(*items: Any) -> tuple[Any, ...]:
    """Return a tuple of the arguments."""
    return items


def set_of(*items: Any) -> set[Any]:
    """Return a set of the arguments."""
    return set(items)


def dict_of(*items: Any) -> dict[Any, Any]:
    """Return a dict of the arguments: key, value, key, value and so on."""
    return dict(zip(items[::2], items[1::2], strict=True))


def run_node(node: Callable[[dict[Any, Any]], Any], keys: tuple[Any, ...], *values: Any) -> Any:
    """Run a node of a Dask graph that knows itself how to get at its arguments."""
    return node(dict(zip(keys, values, strict=True)))


def as_tuple_type(cls: Callable[[tuple[Any, ...]], Any], *items: Any) -> Any:
    """Return a sequence of a type that is made of a tuple."""
    return cls(items)
