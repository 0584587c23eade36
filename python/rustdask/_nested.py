"""Tasks that submit tasks, in a worker process: how what they submit is pickled.

Guarantee: a function without a closure that has come to this worker with a task goes on as the bytes that it came in,
so that a function that submits itself is pickled once, however deep it goes.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

from rustdask import _core


class NestedSerializer:
    """Pickles functions and arguments of tasks that tasks submit.

    Parameters
    ----------
    endpoint : WorkerEndpoint
    blobs : dict
        What this worker has unpickled, by the numbers of the pickles.
    """

    def __init__(self, endpoint: _core.WorkerEndpoint, blobs: dict[int, Any]) -> None:
        self._endpoint = endpoint
        self._blobs = blobs
        self._made: Any = None

    def begin(self) -> None:
        """Begin a submission."""
        self._serializer().begin()

    def function(self, function: Any) -> tuple[int | None, bool, bytes, list[Any]]:
        """Pickle a function.

        Returns
        -------
        number : int or None
            Of the pickle that it came in, if it goes on as that.
        kept : bool
            Later submissions use it, too.
        pickle : bytes
        buffers : list of (memoryview, bool)
        """
        came_in = self._pickle_it_came_in(function) if type(function) is FunctionType else None
        if came_in is not None:
            return came_in[0], True, came_in[1], []
        _, kept, data, beside = self._serializer().function(function)
        return None, kept, data, beside

    def _pickle_it_came_in(self, function: FunctionType) -> tuple[int, bytes] | None:
        for number, value in list(self._blobs.items()):
            if value is function and function.__closure__ is None:
                try:
                    data, buffers = self._endpoint.blob(number)
                except OSError:
                    # The pool has just had it forgotten.
                    return None
                return None if buffers else (number, bytes(data))
        return None

    def arguments(self, call: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[bytes, list[Any]]:
        """Pickle ``(args, kwargs)``; see `GraphSerializer.arguments`."""
        return self._serializer().arguments(call)  # type: ignore[no-any-return]

    def value(self, value: Any) -> tuple[bytes, list[Any]]:
        """Pickle a value that goes by itself; see `GraphSerializer.value`."""
        return self._serializer().value(value)  # type: ignore[no-any-return]

    def _serializer(self) -> Any:
        if self._made is None:
            from rustdask._serialize import GraphSerializer

            self._made = GraphSerializer(lambda: None)
        return self._made
