"""The parent's surroundings reach workers, and only when they have changed."""

from __future__ import annotations

import contextvars
import copyreg
import io
import logging
import os
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import timeit
import warnings

import cloudpickle
import pytest

from rustdask import _context
from rustdask._context import capture, handle_forwarded_log, install_log_forwarding, reduce_contextvar, set_baseline

HERE = contextvars.ContextVar("HERE", default="unset")


@pytest.fixture(autouse=True)
def fresh_baseline():
    set_baseline()


class Worker:
    """A plain interpreter that applies snapshots and answers questions."""

    def __init__(self):
        script = """
            import sys, os, pickle, struct, contextvars, warnings, logging
            from rustdask._context import apply
            def read():
                return sys.stdin.buffer.read(struct.unpack("<q", sys.stdin.buffer.read(8))[0])
            context = contextvars.Context()
            out = os.fdopen(os.dup(1), "wb")
            while True:
                kind = read()
                if kind == b"apply":
                    context = apply(read())
                    continue
                try:
                    answer = pickle.loads(read())
                    if callable(answer):
                        answer = context.copy().run(answer)
                    else:
                        answer = context.copy().run(eval, answer)
                except Exception as e:
                    answer = e
                data = pickle.dumps(answer)
                out.write(struct.pack("<q", len(data)) + data); out.flush()
        """
        path = os.pathsep.join(entry for entry in sys.path if entry)
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RUSTDASK_RANK": "0"},
        )

    def send(self, *parts):
        for part in parts:
            self.process.stdin.write(len(part).to_bytes(8, "little") + part)
        self.process.stdin.flush()

    def update(self, dumps=cloudpickle.dumps):
        self.send(b"apply", capture().dumps(dumps))

    def ask(self, question, dumps=pickle.dumps):
        self.send(b"ask", dumps(question))
        size = int.from_bytes(self.process.stdout.read(8), "little")
        answer = pickle.loads(self.process.stdout.read(size))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close()


# What a snapshot costs


def test_nothing_changed_is_the_same_object():
    first = capture()
    assert capture() is first
    assert first.dumps(pickle.dumps) is first.dumps(pickle.dumps)


def test_capture_is_quick():
    capture()
    best = min(timeit.repeat(capture, number=200, repeat=5)) / 200
    assert best < 100e-6


def test_each_change_makes_a_new_snapshot(monkeypatch, tmp_path):
    keys = [capture().key]

    def changed():
        keys.append(capture().key)
        assert len(set(keys)) == len(keys)

    monkeypatch.setenv("SOME_VARIABLE", "1")
    changed()
    monkeypatch.syspath_prepend(str(tmp_path))
    changed()
    monkeypatch.chdir(tmp_path)
    changed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        changed()
        logging.getLogger("test_context.some").setLevel(5)
        changed()
        token = HERE.set("there")
        changed()
    HERE.reset(token)
    logging.getLogger("test_context.some").setLevel(logging.NOTSET)


def test_going_back_finds_the_earlier_snapshot(monkeypatch):
    before = capture()
    monkeypatch.setenv("SOME_VARIABLE", "1")
    assert capture() is not before
    monkeypatch.delenv("SOME_VARIABLE")
    assert capture() is before


def test_values_that_cannot_be_compared():
    numpy = pytest.importorskip("numpy")
    token = HERE.set(numpy.zeros(3))
    assert capture() is capture()
    HERE.reset(token)


# What arrives


def test_environment(worker, monkeypatch):
    monkeypatch.setenv("TO_UNSET", "x")
    monkeypatch.setenv("TO_CHANGE", "old")
    set_baseline()
    worker.update()
    monkeypatch.setenv("ADDED", "ä=b")
    monkeypatch.setenv("TO_CHANGE", "new")
    monkeypatch.delenv("TO_UNSET")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("RUSTDASK_RANK", "9")
    worker.update()
    seen = worker.ask("dict(os.environ)")
    assert seen["ADDED"] == "ä=b"
    assert seen["TO_CHANGE"] == "new"
    assert "TO_UNSET" not in seen
    assert (seen["OMP_NUM_THREADS"], seen["RUSTDASK_RANK"]) == ("1", "0")
    monkeypatch.delenv("ADDED")
    worker.update()
    assert "ADDED" not in worker.ask("dict(os.environ)")


def test_path_and_directory(worker, monkeypatch, tmp_path):
    (tmp_path / "fresh_module.py").write_text("VALUE = 7")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    worker.update()
    assert worker.ask("__import__('fresh_module').VALUE") == 7
    assert worker.ask("os.getcwd()") == os.getcwd()


def test_a_directory_that_is_gone(worker, monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert capture()._view.directory is None
    worker.update()
    assert worker.ask("1 + 1") == 2


def test_warnings_filters(worker):
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.filterwarnings("error", message="a.c", category=FutureWarning, module="m", lineno=3)
        warnings.simplefilter("always", category=re.PatternError if hasattr(re, "PatternError") else UserWarning)
        warnings.simplefilter("ignore", category=type("Local", (UserWarning,), {}))
        warnings.simplefilter("once", category=DeprecationWarning, append=True)
        expected = [f for f in warnings.filters if f[2].__name__ != "Local" and issubclass(f[2], Warning)]
        worker.update()
    seen = worker.ask("list(warnings.filters)")
    assert seen == expected


def test_the_interpreters_own_filters(worker):
    with warnings.catch_warnings():
        warnings.filters[:] = [("default", None, DeprecationWarning, "__main__", 0)]
        worker.update()
    code = "[f[3].match(m) is not None for f in warnings.filters for m in ('__main__', '__main__x')]"
    assert worker.ask(code) == [True, False]


def test_levels_of_loggers(worker):
    named, silent = logging.getLogger("test_context.named"), logging.getLogger("test_context.silent")
    root_level = logging.root.level
    named.setLevel(logging.DEBUG)
    silent.disabled = True
    logging.root.setLevel(logging.ERROR)
    logging.disable(3)
    question = (
        "(logging.getLogger('test_context.named').level, logging.getLogger('test_context.silent').disabled,"
        " logging.root.level, logging.root.manager.disable)"
    )
    try:
        worker.update()
        assert worker.ask(question) == (logging.DEBUG, True, logging.ERROR, 3)
    finally:
        named.setLevel(logging.NOTSET)
        silent.disabled = False
        logging.root.setLevel(root_level)
        logging.disable(0)
    worker.update()
    assert worker.ask(question) == (logging.NOTSET, False, root_level, 0)


def test_a_variable_of_a_module(worker, monkeypatch, tmp_path):
    (tmp_path / "module_with_variable.py").write_text(
        "from contextvars import ContextVar\nVAR = ContextVar('VAR')\ndef read(): return VAR.get('none')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import module_with_variable

    token = module_with_variable.VAR.set({"user": 3})
    worker.update()
    assert worker.ask(module_with_variable.read) == {"user": 3}
    module_with_variable.VAR.reset(token)
    worker.update()
    assert worker.ask(module_with_variable.read) == "none"


class Pickler(cloudpickle.Pickler):
    dispatch_table = cloudpickle.Pickler.dispatch_table.new_child({contextvars.ContextVar: reduce_contextvar})


def by_value(obj):
    file = io.BytesIO()
    Pickler(file).dump(obj)
    return file.getvalue()


def test_a_variable_of_a_function_pickled_by_value(worker):
    variable = contextvars.ContextVar("local", default="from default")
    bare = contextvars.ContextVar("bare")
    namespace = {"variable": variable, "bare": bare, "__name__": "__main__"}
    exec("def read(): return variable.get(), bare.get('none')", namespace)
    worker.update()
    assert worker.ask(namespace["read"], by_value) == ("from default", "none")
    token = variable.set("changed")
    bare.set(5)
    worker.update()
    assert worker.ask(namespace["read"], by_value) == ("changed", 5)
    variable.reset(token)
    worker.update()
    assert worker.ask(namespace["read"], by_value) == ("from default", 5)


def test_a_variable_comes_back_as_itself():
    variable = contextvars.ContextVar("local")
    assert pickle.loads(by_value(variable)) is variable
    assert pickle.loads(by_value(HERE)) is HERE
    assert "HERE" in str(reduce_contextvar(HERE))
    assert contextvars.ContextVar not in copyreg.dispatch_table


def test_values_that_cannot_be_pickled_are_skipped(worker):
    token = HERE.set(threading.Lock())
    other = contextvars.ContextVar("other")
    other.set(x for x in ())
    worker.update()
    assert worker.ask("1 + 1") == 2
    HERE.reset(token)


def test_apply_gives_a_fresh_context():
    context = _context.apply(capture().dumps(cloudpickle.dumps))
    HERE.set("outside")
    assert context.run(HERE.get) == "unset"
    HERE.set("unset")


# Log records on their way back


class Capture(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def forwarded():
    sent = []
    install_log_forwarding(sent.append)
    yield sent
    for handler in list(logging.root.handlers):
        if hasattr(handler, "rustdask_forwarder"):
            logging.root.removeHandler(handler)


@pytest.fixture
def received():
    logger, capture_handler = logging.getLogger("test_context.logs"), Capture()
    logger.addHandler(capture_handler)
    logger.propagate = True
    yield capture_handler.records
    logger.removeHandler(capture_handler)


def test_records_arrive_as_they_were(forwarded):
    logger = logging.getLogger("test_context.logs")
    level = logging.root.level
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("number %d", 3, extra={"mine": [1], "lock": threading.Lock()})
    assert logging.root.level == level
    assert len(forwarded) == 1
    fields = pickle.loads(forwarded[0])
    assert fields["msg"] == "number 3"
    assert "ValueError: why" in fields["exc_text"]
    assert fields["mine"] == [1]
    assert "lock" not in fields


def test_the_parents_levels_decide(received):
    data = pickle.dumps({"name": "test_context.logs", "msg": "100 %", "args": None, "levelno": 20, "levelname": "INFO"})
    logger = logging.getLogger("test_context.logs")
    logger.setLevel(logging.WARNING)
    handle_forwarded_log(data)
    assert not received
    logger.setLevel(logging.INFO)
    handle_forwarded_log(data)
    assert [record.getMessage() for record in received] == ["100 %"]
    logger.setLevel(logging.NOTSET)


def test_forwarding_is_installed_once(forwarded):
    again = []
    install_log_forwarding(again.append)
    logging.getLogger("test_context.logs").warning("w")
    assert (len(forwarded), len(again)) == (0, 1)


def test_a_send_that_fails_does_not_fail_the_task(capsys):
    def send(data):
        raise OSError("closed")

    install_log_forwarding(send)
    try:
        logging.getLogger("test_context.logs").warning("w")
    finally:
        for handler in list(logging.root.handlers):
            if hasattr(handler, "rustdask_forwarder"):
                logging.root.removeHandler(handler)
