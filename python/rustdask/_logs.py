"""Brings the log records of tasks back to the parent's loggers.

Guarantees: a record is handled in the parent as if it had been made there, so the parent's
handlers, filters and levels decide; levels in the worker stay as they are.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any


def install_log_forwarding(send: Callable[[bytes], None]) -> None:
    """Send every record that reaches the root logger of this worker to the parent.

    Parameters
    ----------
    send : callable
        Given bytes for `handle_forwarded_log`. Calling this again replaces it.
    """
    import logging

    class Forwarder(logging.Handler):
        rustdask_forwarder = True

        def emit(self, record: logging.LogRecord) -> None:
            try:
                send(_packed(record))
            except Exception:
                self.handleError(record)

    for handler in list(logging.root.handlers):
        if hasattr(handler, "rustdask_forwarder"):
            logging.root.removeHandler(handler)
    logging.root.addHandler(Forwarder())


def handle_forwarded_log(data: bytes) -> None:
    """Hand a worker's record to the logger of its name in this process.

    Parameters
    ----------
    data : bytes
        What a worker sent.
    """
    import logging

    record = logging.makeLogRecord(pickle.loads(data))
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _packed(record: Any) -> bytes:
    """Pickle a record, its arguments and traceback turned into text.

    As `logging.handlers.QueueHandler.prepare` does, but the message is left unformatted.
    """
    import logging

    fields = dict(record.__dict__)
    fields["msg"], fields["args"] = record.getMessage(), None
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
    fields["exc_info"] = None
    try:
        return pickle.dumps(fields, protocol=5)
    except Exception:
        return pickle.dumps({k: v for k, v in fields.items() if _pickles(v)}, protocol=5)


def _pickles(value: object) -> bool:
    try:
        pickle.dumps(value, protocol=5)
    except Exception:
        return False
    return True
