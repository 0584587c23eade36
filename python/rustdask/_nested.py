"""Tasks that submit tasks, in a worker process: how what they submit is pickled.

Guarantee: a function that has come to this worker with a task goes on as the bytes that it came in, so that a function
that submits itself is pickled once, however deep it goes.
"""

from __future__ import annotations

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

    def function(self, function: Any) -> tuple[int | None, bytes, list[Any]]:
        """Return the number of the pickle that a function came in, if it came in one, a pickle and its buffers."""
        for number, value in list(self._blobs.items()):
            if value is function:
                try:
                    data, buffers = self._endpoint.blob(number)
                except OSError:
                    # The pool has just had it forgotten.
                    break
                if not buffers:
                    return number, bytes(data), []
        _, _, data, beside = self._serializer().function(function)
        return None, data, beside

    def arguments(self, value: Any) -> tuple[bytes, list[Any]]:
        """Pickle ``(args, kwargs)``, or some other value; see `GraphSerializer.arguments`."""
        return self._serializer().arguments(value)  # type: ignore[no-any-return]

    def _serializer(self) -> Any:
        if self._made is None:
            from rustdask._serialize import GraphSerializer

            self._made = GraphSerializer(lambda: None)
        return self._made
