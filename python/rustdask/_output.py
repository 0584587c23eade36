"""What workers print, log and warn of, on its way to this process's own streams, loggers and filters."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Callable
from typing import Any

from rustdask import _logs

_LOG, _WARNING = b"L", b"W"


def take(error_stream: bool, log: bool, text: bytes) -> None:
    """Take in what a worker printed; or, if it is no text but a ``log``, what it logged or warned of."""
    if log:
        _handle_message(text)
    else:
        _write(error_stream, text)


def _write(error_stream: bool, text: bytes) -> None:
    """Write to what ``sys.stdout`` or ``sys.stderr`` is now (pytest and notebooks replace them)."""
    stream = sys.stderr if error_stream else sys.stdout
    if stream is None:
        return
    try:
        stream.write(text.decode())
    except UnicodeDecodeError:
        _write_bytes(stream, text)
    stream.flush()


def _write_bytes(stream: Any, data: bytes) -> None:
    """Write what is no text, unchanged where the stream can take it."""
    buffer = getattr(stream, "buffer", None)
    if buffer is None:
        stream.write(data.decode(errors="replace"))
        return
    stream.flush()
    buffer.write(data)


def _handle_message(data: bytes) -> None:
    if data[:1] == _LOG:
        _logs.handle_forwarded_log(data[1:])
        return
    message, category, filename, line = pickle.loads(data[1:])
    warnings.warn_explicit(message, category, filename, line)


def forward_messages(send: Callable[[bytes], None]) -> None:
    """In a worker: have log records and warnings go to the parent."""
    if "logging" in sys.modules:
        _logs.install_log_forwarding(lambda data: send(_LOG + data))
    if getattr(warnings.showwarning, "_rustdask", False):
        return
    show = warnings.showwarning

    def forward(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        from rustdask._serialize import dumps

        try:
            data = dumps((message, category, filename, lineno))
        except Exception:
            # A warning that cannot travel is printed here, and its text relayed.
            show(message, category, filename, lineno, file, line)
            return
        send(_WARNING + data)

    forward._rustdask = True  # type: ignore[attr-defined]
    warnings.showwarning = forward
