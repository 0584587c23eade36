import sys
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from os import PathLike
from typing import Any, Literal, Self, TypedDict, TypeVar, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer, disjoint_base

_Item = tuple[Callable[..., Any], Any, dict[str, Any]]
_Kind = Literal["results", "raised", "remote", "crashed", "timed out", "no workers"]
_OutOfBand = tuple[Buffer, bool]
_Blob = tuple[int, bool, bytes, Sequence[_OutOfBand]]
_Dumped = tuple[bytes, Sequence[_OutOfBand], Sequence[_Blob]]

__all__ = [
    "Call",
    "CallStats",
    "ClusterNode",
    "ClusterScheduler",
    "Handle",
    "Input",
    "Session",
    "SharedBuffer",
    "Watch",
    "WorkerEndpoint",
    "WorkerTask",
    "__version__",
    "after_fork_in_child",
    "after_fork_in_parent",
    "before_fork",
    "current_grants",
    "current_session",
    "die_with_parent",
    "fill",
    "forget_blob",
    "is_abandoned",
    "make_certificates",
    "pool_info",
    "results",
    "shutdown",
]

__version__: str

class _CallFigures(TypedDict):
    batches: int
    tasks: int
    batch_sizes: list[tuple[int, int]]
    pickling: float
    unpickling: float
    running: float
    results: float
    bytes_sent: int
    bytes_placed: int
    bytes_saved: int
    bytes_received: int
    task_seconds: NDArray[np.float64]
    splits: int

class _PoolInfo(TypedDict):
    threads: int
    workers: list[tuple[int, int]]
    template_pid: int | None
    argument_segments: int
    argument_bytes: int
    mapped_results: int

@final
class Call:
    @staticmethod
    def threads(
        *,
        cap: int,
        core_budget: int,
        on_done: Callable[[Any, _Kind, Any, int], object],
        divisible: bool,
        helper: bool,
        nested: bool,
        background: bool,
        context: Context | None,
        enter: Callable[[], object] | None,
        run_item: Callable[[int, Callable[..., Any], Any, dict[str, Any]], Any] | None = None,
        substitute: Callable[[_Kind, Any, int, list[_Item]], list[Any] | None] | None = None,
        item_timeout: float | None = None,
    ) -> Call: ...
    @staticmethod
    def processes(
        *,
        cap: int,
        core_budget: int,
        on_done: Callable[[Any, _Kind, Any, int], object],
        divisible: bool,
        background: bool,
        launch: Callable[[], tuple[str, Sequence[str], bytes]],
        dump: Callable[[list[_Item], int, int, int], _Dumped],
        load: Callable[[Buffer, list[Buffer]], list[Any]],
        crash_retries: int,
        access: str,
        max_nbytes: int | None,
        folder: str | PathLike[str] | None = None,
        memory_limit: int = 0,
        substitute: Callable[[_Kind, Any, int, list[_Item]], list[Any] | None] | None = None,
        item_timeout: float | None = None,
        idle_timeout: float | None = None,
    ) -> Call: ...
    def submit(self, items: list[_Item], token: object) -> None: ...
    def wait(self) -> None: ...
    def pause(self, paused: bool) -> None: ...
    def close(self) -> None: ...
    def mean_item_time(self) -> float | None: ...
    def take_stats(self) -> CallStats: ...

@final
class CallStats:
    def as_dict(self) -> _CallFigures: ...

_T = TypeVar("_T")
_State = Literal["pending", "finished", "error", "cancelled", "released"]
_Outcome = Literal[
    "finished", "raised", "remote", "crashed", "timed out", "no workers", "cancelled", "unrunnable", "broken", "closed"
]
_H = TypeVar("_H", bound=Handle)
_Granted = tuple[str, float, list[tuple[int, float]]]

@final
class Input:
    def __new__(cls, task: int) -> Input: ...
    def __reduce__(self) -> tuple[Any, ...]: ...
    @property
    def task(self) -> int: ...

@disjoint_base
class Handle:
    def __new__(cls, seed: object) -> Self: ...
    @property
    def id(self) -> int: ...
    @property
    def key(self) -> Any: ...
    @property
    def session(self) -> Session: ...
    def state(self) -> _State: ...
    def done(self) -> bool: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def outcome(self) -> tuple[_Outcome, Any, str | None]: ...
    def another(self, cls: type[_H]) -> _H: ...
    def keep(self) -> None: ...
    def release(self) -> None: ...

@final
class Session:
    @staticmethod
    def threads(*, workers: int, resources: Mapping[str, float] | None = None) -> Session: ...
    @staticmethod
    def processes(
        *,
        workers: int,
        launch: Callable[[], tuple[str, Sequence[str], bytes]],
        serializer: object,
        results_limit: int,
        folder: str | PathLike[str],
        resources: Mapping[str, float] | None = None,
        memory_limit: int = 0,
    ) -> Session: ...
    @staticmethod
    def upstream(endpoint: WorkerEndpoint, serializer: object, start_stand_in: Callable[[], None]) -> None: ...
    @staticmethod
    def cluster(
        *,
        address: str,
        versions: Mapping[str, Any],
        serializer: object,
        output: Callable[[bool, bool, bytes], None],
        timeout: float,
        memory_limit: int = 0,
        token: str | None = None,
        tls: tuple[str, str, str] | None = None,
    ) -> tuple[Session, list[str]]: ...
    @property
    def is_upstream(self) -> bool: ...
    def workers(self) -> list[tuple[int, int, int]]: ...
    def submit(
        self,
        cls: type[_H],
        tasks: list[Any],
        *,
        wanted: Sequence[int] | None = None,
        orders: Sequence[int] | None = None,
        keys: Sequence[Any] | None = None,
        priority: int = 0,
        retries: int = 0,
        resources: Mapping[str, float] | None = None,
        workers: Sequence[int] | None = None,
    ) -> list[_H]: ...
    def scatter(self, cls: type[_H], value: object) -> _H: ...
    def cancel(self, handles: Sequence[Handle], *, force: bool = False) -> None: ...
    def stats(self) -> dict[str, Any]: ...
    @property
    def start_failure(self) -> str: ...
    @property
    def is_ours(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    def close(self) -> None: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class ClusterScheduler:
    def __new__(
        cls,
        *,
        host: str,
        port: int,
        exact: bool,
        versions: Mapping[str, Any],
        token: str | None = None,
        tls: tuple[str, str, str] | None = None,
    ) -> ClusterScheduler: ...
    @property
    def address(self) -> str: ...
    def wait(self, seconds: float) -> bool: ...
    def stop(self) -> None: ...

@final
class ClusterNode:
    def __new__(
        cls,
        *,
        scheduler: str,
        name: str,
        workers: int,
        launch: Callable[[], tuple[str, Sequence[str], bytes]],
        resources: Mapping[str, float],
        memory_limit: int,
        results_limit: int | None,
        folder: str | PathLike[str],
        host: str,
        port: int,
        death_timeout: float | None,
        drain_limit: float,
        versions: Mapping[str, Any],
        token: str | None = None,
        tls: tuple[str, str, str] | None = None,
    ) -> ClusterNode: ...
    @property
    def name(self) -> str: ...
    @property
    def address(self) -> str | None: ...
    @property
    def failure(self) -> str | None: ...
    def wait(self, seconds: float) -> bool: ...
    def leave(self) -> None: ...
    def stop(self) -> None: ...

@final
class Watch:
    def __new__(cls) -> Watch: ...
    def add(self, handles: Sequence[Handle]) -> None: ...
    def next(self, timeout: float | None = None) -> list[Any]: ...
    def take(self) -> list[Any]: ...
    def wait_all(self, timeout: float | None = None) -> bool: ...
    def pending(self) -> int: ...
    def fileno(self) -> int: ...

@final
class SharedBuffer:
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class WorkerEndpoint:
    def __new__(cls, fd: int) -> WorkerEndpoint: ...
    def stand_in(self) -> bool: ...
    def next_task(self) -> WorkerTask | None: ...
    def buffers(self, task: WorkerTask, start: int, end: int) -> list[Buffer]: ...
    def blob(self, id: int) -> tuple[Buffer, list[Buffer]]: ...
    def forked(self) -> None: ...
    def result(self, task: int) -> tuple[Buffer, list[Buffer]]: ...
    def take_forgotten_results(self) -> list[int]: ...
    def take_forgotten(self) -> list[int]: ...
    def finish(
        self,
        task: WorkerTask,
        failed: bool,
        pickle: bytes,
        buffers: Sequence[Buffer],
        loading: float,
        running: float,
        dumping: float,
        kept: bool = False,
    ) -> None: ...
    def settle(self) -> None: ...
    def log(self, record: bytes) -> None: ...

@final
class WorkerTask:
    @property
    def call(self) -> int: ...
    @property
    def pickle(self) -> Buffer: ...
    @property
    def blobs(self) -> list[int]: ...
    @property
    def id(self) -> int: ...
    @property
    def linked(self) -> bool: ...
    @property
    def inputs(self) -> list[int]: ...
    @property
    def granted(self) -> list[_Granted]: ...
    @property
    def buffer_count(self) -> int: ...
    def advance(self) -> int | None: ...

def fill(structure: _T, results: Mapping[int, Any]) -> _T: ...
def results(handles: Sequence[_H]) -> tuple[Any, ...] | _H: ...
def current_session() -> Session | None: ...
def current_grants() -> list[_Granted]: ...
def is_abandoned() -> bool: ...
def shutdown(*, at_exit: bool = False) -> None: ...
def forget_blob(number: int) -> None: ...
def before_fork() -> None: ...
def after_fork_in_parent() -> None: ...
def after_fork_in_child() -> None: ...
def pool_info() -> _PoolInfo: ...
def die_with_parent() -> None: ...
def make_certificates(directory: str | PathLike[str], hosts: Sequence[str]) -> None: ...
