"""One door to the exceptions, to how they travel, and to what explains a pickling error."""

from rustdask._exceptions import (
    RemoteError,
    RemoteTraceback,
    TaskFailure,
    TaskTimeout,
    UnpicklableError,
    WorkerCrashed,
    format_bytes,
)
from rustdask._transport import (
    annotate_exception,
    pack_exception,
    traceback_text,
    unpack_exception,
)
from rustdask._unpicklable import explain_pickling_error

__all__ = [
    "RemoteError",
    "RemoteTraceback",
    "TaskFailure",
    "TaskTimeout",
    "UnpicklableError",
    "WorkerCrashed",
    "annotate_exception",
    "explain_pickling_error",
    "format_bytes",
    "pack_exception",
    "traceback_text",
    "unpack_exception",
]
