"""Tracebacks that outlive their process, and those that joblib throws away.

Guarantees: the text shows the frames of the user and of the libraries they call, not those of
rustdask or of joblib's dispatch; it covers the whole chain of causes and contexts. Rebuilt
traceback objects hold no reference to any frame of this process.
"""

from __future__ import annotations

import linecache
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from itertools import islice
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import NamedTuple

from rustdask._exceptions import RemoteTraceback


class Frame(NamedTuple):
    """What a traceback shows of one frame; plain values only."""

    filename: str
    name: str
    qualname: str
    module: str
    first_line: int
    line: int
    end_line: int | None
    column: int | None
    end_column: int | None


def traceback_text(exc: BaseException) -> str:
    """Return the traceback of `exc`, of its causes and its contexts, as text.

    Parameters
    ----------
    exc : BaseException
        An exception that was caught; it may carry a `RemoteTraceback` from an inner call.

    Returns
    -------
    str
        What an interpreter would print, without the frames of rustdask and joblib, and after the
        text of the inner call, if there is one.
    """
    report = traceback.TracebackException.from_exception(exc)
    _remove_dispatch(report, exc)
    text = "".join(report.format())
    earlier = remote_text(exc)
    if text.strip() in earlier:
        # The same exception object raised again and again must not grow.
        return earlier
    return _clip(f"{earlier.rstrip()}\n{_RERAISED}{text}" if earlier else text)


def attach_text(exc: BaseException, text: str) -> None:
    """Put `text` at the end of the chain of causes of `exc`, in place of what is there."""
    last = _cause_chain(exc)[-1]
    suppress = last.__suppress_context__
    last.__cause__ = RemoteTraceback(text)
    # A context that was visible stays so for whoever looks after the text is gone.
    last.__suppress_context__ = suppress


def remote_text(exc: BaseException) -> str:
    """Return the text that `attach_text` has left on `exc`, or ""."""
    cause = _cause_chain(exc)[-1].__cause__
    return cause.text if isinstance(cause, RemoteTraceback) else ""


def with_source_lines(text: str) -> str:
    """Add the source lines that only this process knows: notebook cells, ``python -c``."""
    return re.sub(_BARE_FRAME, _with_source_line, text)


def extract_frames(tb: TracebackType | None) -> list[Frame]:
    """Read the frames that a user wants to see; of very many, the first and the last."""
    frames = [_read_frame(step) for step in _steps(tb) if not is_dispatch(_filename(step))]
    return frames if len(frames) <= 2 * _END else frames[:_END] + frames[-_END:]


def build_traceback(frames: Iterable[Frame]) -> TracebackType | None:
    """Make a traceback object that shows `frames`."""
    tb: TracebackType | None = None
    for frame in reversed(list(frames)):
        tb = TracebackType(tb, _make_frame(frame), 0, frame.line)
    return tb


def is_dispatch(filename: str) -> bool:
    """Tell whether frames of this file belong to rustdask's or joblib's machinery."""
    path = filename.replace("\\", "/")
    return path.startswith(_PACKAGE) or path.endswith(_JOBLIB_FILES) or _LOKY in path


_PACKAGE = os.path.dirname(os.path.abspath(__file__)).replace("\\", "/") + "/"
_JOBLIB_FILES = tuple(f"/joblib/{name}.py" for name in ("parallel", "_parallel_backends", "_utils", "pool"))
_LOKY = "/joblib/externals/loky/"
_RERAISED = "\nThe task that waited for this one raised it again:\n\n"
_END = 50
_MAX_TEXT = 100_000
_BARE_FRAME = (
    r'(?m)^(?P<indent>[ |+-]*)File "(?P<file>[^"\n]+)", line (?P<line>\d+), in .*\n'
    r"(?!(?P=indent)  )"
)


def _cause_chain(exc: BaseException) -> list[BaseException]:
    """`exc`, its cause, the cause of that, and so on, up to a `RemoteTraceback` or a loop."""
    chain, seen = [exc], {id(exc)}
    while (cause := chain[-1].__cause__) is not None:
        if id(cause) in seen or isinstance(cause, RemoteTraceback):
            break
        chain.append(cause)
        seen.add(id(cause))
    return chain


def _remove_dispatch(report: traceback.TracebackException, exc: BaseException) -> None:
    pending = [(report, exc)]
    while pending:
        entry, error = pending.pop()
        if entry.stack:
            visible = [frame for frame in entry.stack if not is_dispatch(frame.filename)]
            entry.stack = traceback.StackSummary.from_list(visible)
        if isinstance(error.__cause__, RemoteTraceback):
            entry.__cause__ = None
        pending += _linked(entry, error)


def _linked(
    entry: traceback.TracebackException, error: BaseException
) -> Iterator[tuple[traceback.TracebackException, BaseException]]:
    """The reports below `entry`, each with its exception."""
    if entry.__cause__ is not None and error.__cause__ is not None:
        yield entry.__cause__, error.__cause__
    if entry.__context__ is not None and error.__context__ is not None:
        yield entry.__context__, error.__context__
    if isinstance(error, BaseExceptionGroup):
        yield from zip(entry.exceptions or [], error.exceptions, strict=False)


def _clip(text: str) -> str:
    surplus = len(text) - _MAX_TEXT
    if surplus <= 0:
        return text
    half = _MAX_TEXT // 2
    return f"{text[:half]}\n  [... {surplus} characters left out ...]\n{text[-half:]}"


def _with_source_line(match: re.Match[str]) -> str:
    source = linecache.getline(match["file"], int(match["line"])).strip()
    return f"{match[0]}{match['indent']}  {source}\n" if source else match[0]


def _steps(tb: TracebackType | None) -> Iterator[TracebackType]:
    while tb is not None:
        yield tb
        tb = tb.tb_next


def _filename(step: TracebackType) -> str:
    return step.tb_frame.f_code.co_filename


def _read_frame(step: TracebackType) -> Frame:
    code = step.tb_frame.f_code
    unknown = (None, None, None, None)
    known = next(islice(code.co_positions(), max(0, step.tb_lasti) // 2, None), unknown)
    exact = known[0] == step.tb_lineno
    _, end_line, column, end_column = known if exact else unknown
    module = step.tb_frame.f_globals.get("__name__")
    return Frame(
        filename=code.co_filename,
        name=code.co_name,
        qualname=code.co_qualname,
        module=module if isinstance(module, str) else "",
        first_line=code.co_firstlineno,
        line=step.tb_lineno or code.co_firstlineno,
        end_line=end_line,
        column=column,
        end_column=end_column,
    )


def _template() -> Iterator[None]:
    yield


def _make_frame(frame: Frame) -> FrameType:
    code = _template.__code__.replace(
        co_filename=frame.filename,
        co_name=frame.name,
        co_qualname=frame.qualname,
        co_firstlineno=frame.first_line,
        co_linetable=_line_table(_template.__code__, frame),
    )
    names = {"__name__": frame.module, "__file__": frame.filename}
    # The frame of a generator that has not started has no caller. Any other frame would keep our
    # own callers alive, with all that their variables hold.
    made: FrameType = FunctionType(code, names)().gi_frame
    return made


def _line_table(code: CodeType, frame: Frame) -> bytes:
    """Say that each instruction of `code` stands where `frame` was.

    The format is that of CPython's ``Objects/locations.md`` (3.11 and later): entries of at most
    eight instructions; kind 14 has lines and columns, kind 13 lines only.
    """
    whole = (frame.end_line, frame.column, frame.end_column)
    table = bytearray()
    instructions, delta = len(code.co_code) // 2, frame.line - frame.first_line
    for start in range(0, instructions, 8):
        kind = 13 if None in whole else 14
        table.append(0x80 | kind << 3 | min(8, instructions - start) - 1)
        table += _varint(delta << 1 if delta >= 0 else -delta << 1 | 1)
        if kind == 14:
            end_line, column, end_column = (value or 0 for value in whole)
            for value in (end_line - frame.line, column + 1, end_column + 1):
                table += _varint(max(0, value))
        delta = 0
    return bytes(table)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value >= 64:
        digits.append(value & 63 | 64)
        value >>= 6
    digits.append(value)
    return bytes(digits)
