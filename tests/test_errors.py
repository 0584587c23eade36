"""Exceptions travel whole, their tracebacks are readable, and pickling errors name the culprit."""

from __future__ import annotations

import copy
import copyreg
import functools
import gc
import io
import linecache
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections import namedtuple
from dataclasses import dataclass

import cloudpickle
import pytest
import tasks
import tblib.pickling_support

from rustdask import _tracebacks
from rustdask._errors import (
    RemoteError,
    RemoteTraceback,
    TaskFailure,
    TaskTimeout,
    UnpicklableError,
    WorkerCrashed,
    annotate_exception,
    explain_pickling_error,
    pack_exception,
    traceback_text,
    unpack_exception,
)


def caught(function, *args):
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError("did not raise")


def travel(exc, dumps=cloudpickle.dumps):
    return unpack_exception(pack_exception(exc, dumps))


def last_cause(exc):
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return exc


# The public exceptions


def crash(**changes):
    given = {"index": 17, "function": "simulate", "signal": signal.SIGSEGV, "deaths": 3, "stderr": "a\nb"}
    return WorkerCrashed(**{**given, "results": {0: "r"}, "peak_memory_bytes": 700 * 2**20, **changes})


@pytest.mark.parametrize("remake", [copy.copy, lambda exc: pickle.loads(pickle.dumps(exc))])
@pytest.mark.parametrize(
    "exc",
    [
        crash(),
        TaskTimeout(index=3, function="f", timeout=2.0),
        RemoteError("lib.Error", "no", "Traceback ..."),
        UnpicklableError("no", "args[0]", "_thread.lock"),
        RemoteTraceback("text"),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_public_exceptions_keep_all_attributes(exc, remake):
    exc.add_note("a note")
    again = remake(exc)
    assert type(again) is type(exc)
    assert (str(again), again.args, vars(again)) == (str(exc), exc.args, vars(exc))


def test_a_crash_says_what_happened_where_and_what_to_do():
    text = str(crash())
    assert "Task 17 (simulate)" in text
    assert "3 workers" in text
    assert "SIGSEGV" in text
    assert "700 MiB" in text
    assert "PYTHONFAULTHANDLER" in text
    assert text.endswith("  a\n  b")
    assert crash().signal is signal.SIGSEGV
    assert crash(signal=11).signal.name == "SIGSEGV"
    assert "signal 99" in str(crash(signal=99))


def test_a_crash_by_exit_or_for_a_reason():
    assert "exited with code 3" in str(crash(signal=None, exit_code=3))
    reason = "exceeded memory_limit of 512 MiB (reached 700 MiB)"
    assert f"it {reason}" in str(crash(signal=signal.SIGKILL, reason=reason))
    assert "memory runs out" in str(crash(signal=signal.SIGKILL))
    assert "disappeared" in str(crash(signal=None))
    assert "A task ended its worker" in str(WorkerCrashed(index=None))


def test_public_exceptions_are_of_the_promised_kinds():
    assert issubclass(WorkerCrashed, RuntimeError)
    assert issubclass(TaskTimeout, TimeoutError)
    assert issubclass(RemoteError, RuntimeError)
    assert issubclass(UnpicklableError, pickle.PicklingError)
    assert "task_timeout=2 s" in str(TaskTimeout(index=3, function="f", timeout=2))


def test_a_failure_shows_what_failed_and_travels():
    failure = TaskFailure(TwoArguments("x", 1), 4, "f", "Traceback ...")
    assert repr(failure) == "TaskFailure(TwoArguments('x: 1'), index=4, function='f')"
    again = pickle.loads(pickle.dumps(failure))
    assert repr(again) == repr(failure)
    assert again.traceback == "Traceback ..."
    assert again.exception.code == 1


# Exceptions on their way


class TwoArguments(Exception):
    def __init__(self, name, code):
        self.code = code
        super().__init__(f"{name}: {code}")


class Rewrites(Exception):
    """Loads without an error, but not as it was."""

    def __init__(self, name, code=0):
        super().__init__(f"{name}-{code}")


class Slotted(Exception):
    __slots__ = ("code",)


class OwnOSError(OSError):
    def __init__(self, path):
        self.own = path
        super().__init__(2, "gone", path)


class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no message")


class OwnReduce(Exception):
    def __init__(self, a, b):
        self.a, self.b = a, b

    def __reduce__(self):
        return OwnReduce, (self.a, self.b)


def test_a_plain_exception():
    again = travel(caught(int, "x"))
    assert type(again) is ValueError
    assert str(again) == "invalid literal for int() with base 10: 'x'"


def test_attributes_and_notes():
    exc = ValueError("a", 2)
    exc.detail = {"k": [1]}
    exc.add_note("look here")
    again = travel(exc)
    assert again.args == ("a", 2)
    assert again.detail == {"k": [1]}
    assert again.__notes__ == ["look here"]


def test_an_init_with_other_arguments_than_it_passes_on():
    again = travel(TwoArguments("x", 3))
    assert type(again) is TwoArguments
    assert (str(again), again.args, again.code) == ("x: 3", ("x: 3",), 3)


def test_an_init_that_loads_wrongly():
    again = travel(Rewrites("x", 3))
    assert type(again) is Rewrites
    assert str(again) == "x-3"


def test_slots():
    exc = Slotted("m")
    exc.code = 5
    assert travel(exc).code == 5


def test_fields_of_builtin_classes():
    again = travel(OwnOSError("/x"))
    assert (again.errno, again.filename, again.own) == (2, "/x", "/x")
    assert isinstance(travel(caught(open, "/no/such/file")), FileNotFoundError)
    assert travel(caught(open, "/no/such/file")).filename == "/no/such/file"
    assert travel(caught(b"\xff".decode)).start == 0
    assert travel(ImportError("m", name="n", path="p")).name == "n"
    assert travel(SystemExit(3)).code == 3
    assert travel(StopIteration(7)).value == 7
    assert travel(caught(compile, "1 +", "f", "eval")).lineno == 1


@pytest.fixture
def foreign_reducers():
    """As `distributed` has tblib put them in place for all exceptions."""
    before = dict(copyreg.dispatch_table)
    tblib.pickling_support.install()
    yield
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


@pytest.mark.usefixtures("foreign_reducers")
def test_fields_arrive_whatever_reducers_are_installed():
    test_fields_of_builtin_classes()
    assert travel(caught(lambda: no_such_name)).name == "no_such_name"  # noqa: F821
    test_attributes_and_notes()
    test_a_second_hop_keeps_one_text()


@pytest.mark.usefixtures("foreign_reducers")
def test_causes_travel_once_whatever_reducers_are_installed():
    error = chain = ValueError("z" * 1000)
    for _ in range(50):
        chain.__cause__ = chain = ValueError("z" * 1000)
    assert len(pack_exception(error, cloudpickle.dumps)) < 50 * 3000


def test_a_reducer_of_an_exception_that_does_not_pickle_itself(monkeypatch):
    monkeypatch.setitem(copyreg.dispatch_table, tasks.HoldsLock, lambda exc: (tasks.HoldsLock, exc.args))
    again = travel(tasks.HoldsLock("m"))
    assert type(again) is tasks.HoldsLock
    assert (str(again), hasattr(again, "lock"), hasattr(again, "__notes__")) == ("m", True, False)


def test_a_class_that_reduces_itself():
    again = travel(OwnReduce(1, [2]))
    assert (again.a, again.b) == (1, [2])


def test_a_message_that_raises():
    assert type(travel(Silent())) is Silent


def test_cause_context_and_suppression():
    def with_cause():
        try:
            int("x")
        except ValueError as error:
            raise KeyError("k") from error

    def with_context():
        try:
            int("x")
        except ValueError:
            raise KeyError("k")  # noqa: B904

    def from_none():
        try:
            int("x")
        except ValueError:
            raise KeyError("k") from None

    again = travel(caught(with_cause))
    assert type(again.__cause__) is ValueError
    assert type(again.__context__) is ValueError
    assert type(again.__cause__.__cause__) is RemoteTraceback

    again = travel(caught(with_context))
    assert type(again.__cause__) is RemoteTraceback
    assert type(again.__context__) is ValueError
    assert not again.__suppress_context__
    assert "During handling" in str(again.__cause__)

    again = travel(caught(from_none))
    assert type(again.__cause__) is RemoteTraceback
    assert type(again.__context__) is ValueError
    assert again.__suppress_context__
    assert "ValueError" not in str(again.__cause__)


def test_loops_of_causes():
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one
    again = travel(one)
    assert str(again.__cause__) == "2"
    assert again.__cause__.__cause__ is not None


def test_long_chains():
    first = exc = ValueError("0")
    for number in range(3000):
        exc.__context__ = ValueError(str(number))
        exc = exc.__context__
    assert str(travel(first)) == "0"


def test_exception_groups():
    exc = ExceptionGroup("many", [TwoArguments("x", 1), ExceptionGroup("inner", [caught(int, "y")])])
    exc.tag = 7
    exc.add_note("n")
    again = travel(exc)
    assert type(again) is ExceptionGroup
    assert again.message == "many"
    assert (again.tag, again.__notes__) == (7, ["n"])
    assert again.exceptions[0].code == 1
    assert type(again.exceptions[1].exceptions[0]) is ValueError
    assert "Sub-exception" not in str(again)
    assert "inner" in str(last_cause(again))
    assert type(travel(BaseExceptionGroup("b", [KeyboardInterrupt()]))) is BaseExceptionGroup


class OwnGroup(ExceptionGroup):
    def __new__(cls, errors, code):
        made = super().__new__(cls, "own", errors)
        made.code = code
        return made


def test_a_group_with_other_arguments():
    again = travel(OwnGroup([ValueError("a")], 4))
    assert type(again) is OwnGroup
    assert again.code == 4


def test_only_the_attributes_that_cannot_travel_are_left_out():
    exc = TwoArguments("x", 3)
    exc.lock = threading.Lock()
    exc.kept = 1
    again = travel(exc)
    assert type(again) is TwoArguments
    assert (again.code, again.kept) == (3, 1)
    assert not hasattr(again, "lock")
    assert "lock" in again.__notes__[-1]


def test_arguments_that_cannot_travel_look_the_same():
    exc = ValueError("bad", threading.Lock())
    again = travel(exc)
    assert type(again) is ValueError
    assert str(again) == str(exc)


def test_local_classes_travel_by_value():
    class Local(Exception):
        def __init__(self, a, b):
            self.b = b
            super().__init__(a)

    again = travel(Local(1, 2))
    assert type(again).__name__ == "Local"
    assert (again.args, again.b) == ((1,), 2)


def test_a_class_that_cannot_travel():
    class Local(Exception):
        pass

    again = travel(caught(raise_, Local("why")), dumps=pickle.dumps)
    assert type(again) is RemoteError
    assert again.type_name.endswith("Local")
    assert again.message == "why"
    assert "raise_" in again.traceback_text
    assert "Local: why" in str(again)


def test_packing_never_raises():
    def dumps(value):
        raise MemoryError

    class Awful(Exception):
        def __getattribute__(self, name):
            raise RuntimeError(name)

    assert type(travel(ValueError("x"), dumps)) is RemoteError
    assert isinstance(travel(Awful()), BaseException)


def test_a_class_that_the_parent_cannot_import(tmp_path):
    (tmp_path / "only_there.py").write_text("class Gone(Exception): pass")
    script = (
        "import pickle, sys; from rustdask._errors import pack_exception\n"
        "import only_there\n"
        "try: raise only_there.Gone('x')\n"
        "except Exception as e: sys.stdout.buffer.write(pack_exception(e, pickle.dumps))\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=True
    )
    again = unpack_exception(ran.stdout)
    assert type(again) is RemoteError
    assert again.type_name == "only_there.Gone"


# Tracebacks


def raise_(exc):
    raise exc


def outer(exc):
    return raise_(exc)


def test_the_text_shows_the_frames_of_the_user():
    text = str(travel(caught(outer, ValueError("boom"))).__cause__)
    assert "in outer" in text
    assert "return raise_(exc)" in text
    assert text.rstrip('"\n').endswith("ValueError: boom")


def test_frames_of_the_machinery_are_left_out(monkeypatch):
    joblib = pytest.importorskip("joblib")
    exc = caught(joblib.parallel.BatchedCalls([(outer, (ValueError("b"),), {})], (None, 1)))
    frames = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(exc.__traceback__)]
    assert any(name.endswith("parallel.py") for name in frames)
    again = travel(exc)
    assert "joblib" not in str(again.__cause__)
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(again.__traceback__)]
    assert names == ["outer", "raise_"] if "caught" not in names else ["caught", "outer", "raise_"]


def test_files_of_the_machinery():
    assert _tracebacks.is_dispatch(_tracebacks.__file__)
    assert _tracebacks.is_dispatch("/x/site-packages/joblib/parallel.py")
    assert _tracebacks.is_dispatch(r"C:\x\joblib\externals\loky\process_executor.py")
    assert not _tracebacks.is_dispatch("/x/site-packages/joblib/memory.py")
    assert not _tracebacks.is_dispatch("/home/me/rustdask_study/model.py")


def test_rebuilt_tracebacks_show_the_same_lines_and_columns():
    exc = caught(outer, ValueError("boom"))
    expected = "".join(traceback.format_tb(exc.__traceback__))
    again = travel(exc)
    assert "".join(traceback.format_tb(again.__traceback__)) == expected


def test_the_interpreters_own_printer_shows_rebuilt_tracebacks(capfd):
    again = travel(caught(outer, ValueError("boom")))
    sys.__excepthook__(type(again), again, again.__traceback__)
    shown = capfd.readouterr().err
    assert shown.count("return raise_(exc)") == 2


def test_rebuilt_tracebacks_hold_nothing_of_this_process():
    class Big:
        pass

    def receive(data):
        big = Big()
        alive.append(weakref.ref(big))
        return unpack_exception(data)

    alive: list[weakref.ref] = []
    again = receive(pack_exception(caught(outer, ValueError("boom")), cloudpickle.dumps))
    gc.collect()
    assert alive[0]() is None
    assert all(frame.f_back is None for frame, _ in traceback.walk_tb(again.__traceback__))


def test_very_deep_tracebacks_are_shortened():
    def deep():
        deep()

    again = travel(caught(deep))
    assert type(again) is RecursionError
    assert len(list(traceback.walk_tb(again.__traceback__))) == 100
    assert len(str(again.__cause__)) < 150_000


def test_source_lines_that_only_the_parent_knows():
    name = "<cell 7>"
    namespace: dict[str, object] = {}
    exec(compile("def cell():\n    raise ValueError('in a cell')\n", name, "exec"), namespace)
    packed = pack_exception(caught(namespace["cell"]), cloudpickle.dumps)
    linecache.cache[name] = (10, None, ["def cell():\n", "    raise ValueError('in a cell')\n"], name)
    try:
        shown = str(unpack_exception(packed).__cause__)
        shown_in_group = str(last_cause(travel_group(packed)))
    finally:
        del linecache.cache[name]
    assert "    raise ValueError('in a cell')\nValueError: in a cell" in shown
    assert shown_in_group


def travel_group(packed):
    return travel(ExceptionGroup("g", [unpack_exception(packed)]))


def test_a_second_hop_keeps_one_text():
    def waits(data):
        raise unpack_exception(data)

    inner = pack_exception(caught(outer, ValueError("boom")), cloudpickle.dumps)
    again = travel(caught(waits, inner))
    assert type(again.__cause__) is RemoteTraceback
    assert again.__cause__.__cause__ is None
    text = again.__cause__.text
    assert text.index("in raise_") < text.index("in waits")


def test_threads_keep_the_traceback_that_joblib_drops():
    exc = caught(outer, ValueError("boom"))
    assert annotate_exception(exc) is exc
    exc.__traceback__ = None
    shown = "".join(traceback.format_exception(exc))
    assert "in outer" in shown
    assert "direct cause" in shown


def test_an_exception_object_raised_again_and_again_does_not_grow():
    exc = ValueError("shared")
    sizes = set()
    for _ in range(50):
        exc.__traceback__ = None
        caught(outer, exc)
        annotate_exception(exc)
        sizes.add(len(exc.__cause__.text))
    assert len(sizes) == 1


def test_text_of_an_exception_that_was_never_raised():
    assert traceback_text(ValueError("x")) == "ValueError: x\n"


def test_packing_is_quick():
    exc = caught(outer, TwoArguments("x", 1))
    start = time.perf_counter()
    for _ in range(20):
        travel(exc)
    assert time.perf_counter() - start < 1.0


# What cannot be pickled


def explain(parts, dumps=cloudpickle.dumps):
    error = caught(dumps, tuple(parts.values()))
    explained = explain_pickling_error(parts, error, dumps)
    assert explained.__cause__ is error
    return explained


class Holder:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class SlotHolder:
    __slots__ = ("ok", "value")

    def __init__(self, value):
        self.ok, self.value = 1, value


class StateHolder:
    def __init__(self, value):
        self.value = value

    def __getstate__(self):
        return {"renamed": self.value}


class Arguments:
    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return Arguments, (self.value,)


class OwnDict(dict):
    pass


@dataclass
class Data:
    value: object


Pair = namedtuple("Pair", "left right")
LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("part", "path"),
    [
        (LOCK, "args[0]"),
        ([1, LOCK], "args[0][1]"),
        ({"cfg": Holder(ok=1, lock=LOCK)}, "args[0]['cfg'].lock"),
        (Pair(1, {"k": (LOCK,)}), "args[0].right['k'][0]"),
        (SlotHolder([LOCK]), "args[0].value[0]"),
        (StateHolder(LOCK), "args[0].renamed"),
        (Data(LOCK), "args[0].value"),
        (OwnDict(a=1, b=LOCK), "args[0]['b']"),
        (Arguments(LOCK), "argument 0 of the constructor of args[0]"),
        (functools.partial(print, 1, key=LOCK), "key"),
        (Holder(lock=LOCK).__init__, "args[0].__self__.lock"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_path_to_the_culprit(part, path):
    explained = explain({"args[0]": part})
    if path == "key":
        assert explained.path.endswith("['key']")
    else:
        assert explained.path == path
    assert explained.type_name == "_thread.lock"
    assert str(explained).startswith(f"{explained.path} cannot be pickled: it is a _thread.lock")


def test_elements_of_sets_and_keys():
    assert "of args[0]" in explain({"args[0]": {LOCK}}).path
    assert explain({"args[0]": {LOCK: 1}}).path.startswith("key <unlocked _thread.lock")


def test_closures_globals_and_defaults():
    lock = threading.Lock()

    def closes():
        return lock

    def inner_default(x=LOCK):
        return x

    assert explain({"function closes": closes}).path == "function closes's closure variable 'lock'"
    path = explain({"args[1]": closes}).path
    assert path.startswith("args[1] (function test_closures")
    assert path.endswith("closes)'s closure variable 'lock'")
    assert explain({"function f": inner_default}).path == "function f's default argument 0"

    namespace = {"LOCK": LOCK, "__name__": "__main__"}
    exec("def uses():\n    return [LOCK for _ in (1,)]", namespace)
    assert explain({"function uses": namespace["uses"]}).path == "function uses's global 'LOCK'"


def test_only_the_failing_part_is_named():
    parts = {"function f": len, "args[0]": [1, 2], "kwargs['cfg']": {"lock": LOCK}}
    assert explain(parts).path == "kwargs['cfg']['lock']"


@pytest.mark.parametrize(
    ("part", "advice"),
    [
        (LOCK, "__getstate__"),
        ((x for x in ()), "list"),
        (sys._getframe(), "in threads"),
    ],
    ids=["lock", "generator", "other"],
)
def test_advice(part, advice):
    assert advice in str(explain({"args[0]": part}))


def test_advice_for_files():
    with io.FileIO(os.devnull) as file:
        assert "open it inside" in str(explain({"args[0]": file}))


def test_advice_for_plain_pickle():
    explained = explain({"function f": lambda: 1}, pickle.dumps)
    assert "top level" in str(explained)


def test_nesting_and_cycles():
    cycle: list[object] = [LOCK]
    cycle.insert(0, cycle)
    assert explain({"args[0]": cycle}).path == "args[0][1]"
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested too deeply" in str(explain({"args[0]": deep}))
    while deep:
        deep = deep.pop()


def test_an_object_that_fails_in_its_own_code():
    class Awkward:
        def __reduce_ex__(self, protocol):
            raise ValueError("not today")

        def __repr__(self):
            raise RuntimeError

    explained = explain({"args[0]": [Awkward()]})
    assert explained.path == "args[0][0]"
    assert "not today" in str(explained)


def test_when_each_part_pickles_alone():
    explained = explain_pickling_error({"args[0]": 1}, pickle.PicklingError("odd"), pickle.dumps)
    assert explained.path is None
    assert "odd" in str(explained)


def test_the_search_ends():
    wide = {str(i): [list(range(100)) for _ in range(200)] for i in range(200)}
    wide["last"] = LOCK
    start = time.perf_counter()
    explain({"args[0]": wide})
    assert time.perf_counter() - start < 3.0


def test_the_search_leaves_big_arrays_alone():
    numpy = pytest.importorskip("numpy")

    def dumps(value):
        tried.append(type(value))
        return cloudpickle.dumps(value)

    tried: list[type] = []
    assert explain({"args[0]": [numpy.zeros(10), LOCK]}, dumps).path == "args[0][1]"
    assert numpy.ndarray not in tried
