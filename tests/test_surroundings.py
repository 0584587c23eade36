"""Where and from what a call is made: workers see what the caller has set, and what they say comes back to it.

Scripts run as a user would run them; a normal life prints nothing on standard error.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import tasks
from helpers import (
    BACKEND,
    alive,
    assert_ends_clean,
    assert_quiet_success,
    assert_usable,
    both_modes,
    own,
    run,
    run_script,
    rustdask,
    start_script,
    wait_for_lines,
    within,
)
from joblib import Parallel, delayed

pytestmark = pytest.mark.timeout(120)


# What tasks see


@own
@both_modes
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_warnings_filters_travel(mode, n_jobs):
    calls = [delayed(tasks.warn)() for _ in range(4)]
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            with pytest.raises(UserWarning, match="from a task"):
                run(calls, mode, n_jobs)
        with warnings.catch_warnings(record=mode == "threads"):
            warnings.simplefilter("ignore")
            assert run(calls, mode, n_jobs) == ["from a task"] * 4


@own
def test_warnings_of_tasks_are_shown_once_each(fresh):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        run([delayed(tasks.warn)("only this one")] + [delayed(tasks.nothing)()] * 3)
    assert [str(warning.message) for warning in shown] == ["only this one"]


@own
def test_what_is_printed_after_the_call_arrives_too():
    script = run_script(
        """
        import tasks, time
        with config():
            Parallel()(delayed(tasks.print_later)(0.1, f"late {i}") for i in range(2))
        time.sleep(1.0)
        print("end")
        """
    )
    assert script.returncode == 0 and script.stderr == ""
    lines = script.stdout.splitlines()
    assert sorted(lines[:-1]) == ["late 0", "late 1"] and lines[-1] == "end"


@own
@pytest.mark.parametrize("how", ["replace", "close"])
def test_streams_that_a_task_has_replaced_or_closed_are_put_back(how, capfd):
    run([delayed(tasks.replace_stdout)(how) for _ in range(4)], batch_size=1)
    run([delayed(tasks.say)(f"line {i}") for i in range(4)], batch_size=1)
    assert sorted(capfd.readouterr().out.splitlines()) == [f"line {i}" for i in range(4)]


@own
def test_output_that_is_no_text_arrives_unchanged(capfdbinary):
    run([delayed(tasks.write_bytes)(b"\xff\xfe\x00raw\n")])
    assert capfdbinary.readouterr().out == b"\xff\xfe\x00raw\n"


@own
def test_each_call_starts_in_the_parents_directory(tmp_path):
    run([delayed(tasks.change_directory)(tmp_path) for _ in range(4)], batch_size=1)
    assert set(run([delayed(tasks.working_directory)() for _ in range(4)], batch_size=1)) == {os.getcwd()}


@own
@both_modes
def test_log_records_and_levels_travel(mode, caplog):
    logger = logging.getLogger("rustdask-tests.tasks")
    for level in (logging.DEBUG, logging.WARNING):
        logger.setLevel(level)
        caplog.clear()
        with caplog.at_level(logging.DEBUG, logger="rustdask-tests"):
            calls = [delayed(tasks.log)(logger.name, logging.INFO, f"record {i}") for i in range(4)]
            assert run(calls, mode) == [level] * 4
        expected = [f"record {i}" for i in range(4)] if level == logging.DEBUG else []
        assert sorted(caplog.messages) == expected
    logger.setLevel(logging.NOTSET)


@own
@both_modes
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("capture", ["capsys", "capfd"])
def test_what_tasks_print_comes_back(mode, stream, capture, request):
    captured = request.getfixturevalue(capture)
    run([delayed(tasks.say)(f"line {i}", stream) for i in range(20)], mode)
    text = captured.readouterr()
    said, other = (text.out, text.err) if stream == "stdout" else (text.err, text.out)
    assert sorted(said.splitlines()) == sorted(f"line {i}" for i in range(20))
    assert other == ""


@own
def test_what_a_task_printed_before_its_death_comes_back(capsys):
    with pytest.raises(rustdask.WorkerCrashed):
        run([delayed(tasks.speak_and_die)("last words"), delayed(tasks.nothing)()])
    text = capsys.readouterr()
    assert "last words\n" in text.out
    assert "last words (stderr)\n" in text.err


@own
def test_a_lot_of_output_comes_back_whole(capsys):
    lines = [f"{i} " + "x" * 2000 for i in range(400)]
    run(delayed(tasks.say)(line) for line in lines)
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(lines)


@own
def test_environment_changes_travel(monkeypatch):
    assert_usable()
    calls = [delayed(tasks.environment)("RD_TEST_VARIABLE")] * 4
    for value in ("first", "second"):
        monkeypatch.setenv("RD_TEST_VARIABLE", value)
        assert run(calls) == [value] * 4
    monkeypatch.delenv("RD_TEST_VARIABLE")
    assert run(calls) == [None] * 4


@own
def test_import_path_changes_travel(monkeypatch, tmp_path):
    assert_usable()
    (tmp_path / "rd_test_module.py").write_text("VALUE = 17\ndef function(x):\n    return VALUE + x\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert run([delayed(tasks.imported_value)("rd_test_module")] * 2) == [17, 17]
    import rd_test_module

    assert run([delayed(rd_test_module.function)(i) for i in range(3)]) == [17, 18, 19]


@own
def test_a_change_of_directory_travels(monkeypatch, tmp_path):
    assert_usable()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert run([delayed(tasks.working_directory)()] * 3) == [str(tmp_path / name)] * 3


@own
@both_modes
def test_context_variables_travel(mode):
    for value in ("one", "two"):
        token = tasks.VARIABLE.set(value)
        try:
            assert run([delayed(tasks.variable)()] * 4, mode) == [value] * 4
        finally:
            tasks.VARIABLE.reset(token)
    assert run([delayed(tasks.variable)()] * 4, mode) == ["unset"] * 4


@own
@both_modes
def test_context_variables_reach_nested_calls(mode):
    token = tasks.VARIABLE.set("deep")
    try:
        assert run([delayed(variable_of_nested)(2, mode)] * 2, mode) == [["deep"] * 4] * 2
    finally:
        tasks.VARIABLE.reset(token)


def variable_of_nested(depth, mode):
    if depth == 0:
        return [tasks.variable()]
    below = Parallel(n_jobs=2)(delayed(variable_of_nested)(depth - 1, mode) for _ in range(2))
    return [value for values in below for value in values]


@own
@both_modes
def test_context_variables_of_a_script(mode):
    script = """
    import contextvars
    variable = contextvars.ContextVar("variable")
    def read():
        return variable.get("unset")
    with config(sys.argv[1]):
        print(Parallel()(delayed(read)() for _ in range(2)))
        variable.set("set")
        print(Parallel()(delayed(read)() for _ in range(2)))
    """
    assert_quiet_success(run_script(script, mode), "['unset', 'unset']", "['set', 'set']")


def test_the_authentication_key_is_inherited():
    import multiprocessing

    expected = bytes(multiprocessing.current_process().authkey)
    assert run([delayed(tasks.authkey)()] * 2) == [expected] * 2


@both_modes
def test_managers_of_multiprocessing_work(mode):
    script = """
    import multiprocessing, tasks
    if __name__ == "__main__":
        with multiprocessing.Manager() as manager:
            shared = manager.list()
            with config(sys.argv[1]):
                Parallel()(delayed(tasks.append_to)(shared, i) for i in range(6))
            print(sorted(shared))
    """
    assert_quiet_success(run_script(script, mode), "[0, 1, 2, 3, 4, 5]")


@own
def test_callbacks_of_scikit_learn_work():
    pytest.importorskip("sklearn.callback")
    script = run_script(
        """
        from sklearn.callback import ScoringMonitor
        from sklearn.datasets import load_iris
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV
        X, y = load_iris(return_X_y=True)
        monitor = ScoringMonitor(scoring="accuracy")
        search = GridSearchCV(LogisticRegression(max_iter=40).set_callbacks(monitor), {"C": [0.1, 1.0]}, cv=2)
        with config():
            search.fit(X, y)
        print(search.best_score_ > 0.8)
        """,
        options=("-W", "ignore"),
    )
    assert_quiet_success(script, "True")


# Where a call can be made

SCRIPT = """
import tasks
offset = 100
class Point:
    def __init__(self, x):
        self.x = x
def function(x):
    return x + offset
def make(x):
    return Point(x)
with config():
    print(Parallel()(delayed(function)(i) for i in range(4)))
    offset = 200
    print(Parallel()(delayed(lambda x: function(x))(i) for i in range(2)))
    points = Parallel()(delayed(make)(i) for i in range(2))
    print([type(point) is Point for point in points], [point.x for point in points])
"""
SCRIPT_PRINTS = ["[100, 101, 102, 103]", "[200, 201]", "[True, True] [0, 1]"]


@pytest.mark.parametrize("how", ["file", "command", "stdin"])
def test_scripts_without_a_guard(how):
    assert_quiet_success(run_script(SCRIPT, how=how), *SCRIPT_PRINTS)


@own
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_silent_when_warnings_are_errors(start):
    script = run_script(SCRIPT, options=("-W", "error"), env={"RUSTDASK_START": start} if start == "spawn" else {})
    assert_quiet_success(script, *SCRIPT_PRINTS)


@own
@pytest.mark.parametrize("options", [("-X", "dev"), ("-O",), ("-I",), ("-u",)])
def test_options_of_the_interpreter(options):
    if options == ("-I",):
        source = "with config():\n    print(Parallel()(delayed(abs)(-i) for i in range(3)))\n"
        assert_quiet_success(run_script(source, options=options), "[0, 1, 2]")
    else:
        assert_quiet_success(run_script(SCRIPT, options=options), *SCRIPT_PRINTS)


def test_a_module_run_with_m(tmp_path):
    package = tmp_path / "rd_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "from rd_package.work import main\ndef local(x):\n    return -x\nif __name__ == '__main__':\n    main(local)\n"
    )
    (package / "work.py").write_text(
        "from joblib import Parallel, delayed, parallel_config\n"
        + ("import rustdask\n" if BACKEND == "rustdask" else "")
        + "def double(x):\n    return 2 * x\n"
        "def main(local):\n"
        f"    with parallel_config({BACKEND!r}, n_jobs=2):\n"
        "        print(Parallel()(delayed(double)(i) for i in range(3)))\n"
        "        print(Parallel()(delayed(local)(i) for i in range(3)))\n"
    )
    script = run_script(
        "import runpy; sys.argv = ['rd_package']; runpy.run_module('rd_package', run_name='__main__', alter_sys=True)",
        cwd=tmp_path,
        how="command",
    )
    assert_quiet_success(script, "[0, 2, 4]", "[0, -1, -2]")


@own
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_inside_workers_of_a_multiprocessing_pool(method):
    """They are daemons, which multiprocessing does not allow children of its own."""
    script = """
    import multiprocessing, tasks
    def work(base):
        with config():
            return sum(Parallel()(delayed(tasks.add)(base, i) for i in range(4))), os.getpid()
    if __name__ == "__main__":
        context = multiprocessing.get_context(sys.argv[1])
        with config():
            print(Parallel()(delayed(tasks.square)(i) for i in range(3)))
        with context.Pool(2) as pool:
            print([total for total, _ in pool.map(work, range(4), chunksize=1)])
            pool.close()
            pool.join()
    """
    with start_script(script, method, options=("-W", "ignore::DeprecationWarning")) as script:
        assert_quiet_success(script.finish(), "[0, 1, 4]", "[6, 10, 14, 18]")
        assert_ends_clean(script, 3.0)


PREFORK = """
    import tasks, warnings
    # Newer interpreters warn of any fork of a process with threads; that is what is tried here.
    warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
    mode = sys.argv[1]
    def call(base):
        with config(mode):
            return Parallel()(delayed(tasks.add)(base, i) for i in range(3))
    def places():
        with config(mode):
            return set(Parallel()(delayed(tasks.pid)() for _ in range(8)))
    print(call(0), flush=True)
    workers = lambda: {worker["pid"] for worker in rustdask.info()["workers"]}
    before = places() | workers()
    for number in (1, 2):
        child = os.fork()
        if child == 0:
            fresh = places().isdisjoint(before)
            sys.stdout.write(f"{call(10 * number)} {fresh}\\n")
            sys.stdout.flush()
            if number == 1:
                os._exit(0)
            sys.exit(0)
        os.waitpid(child, 0)
    print(call(30), flush=True)
    print(places() <= before)
"""


@own
@both_modes
def test_after_a_prefork(mode):
    """As gunicorn does: the parent has used the pool, and its children start afresh."""
    with start_script(PREFORK, mode) as script:
        script.finish()
        assert script.stdout.splitlines() == [
            "[0, 1, 2]",
            "[10, 11, 12] True",
            "[20, 21, 22] True",
            "[30, 31, 32]",
            "True",
        ]
        assert (script.returncode, script.stderr) == (0, "")
        assert_ends_clean(script, 3.0)


@own
def test_a_child_forked_during_a_call(path):
    script = """
    import tasks, threading
    results = []
    def other():
        with config():
            results.extend(Parallel()(delayed(tasks.note_and_wait)(sys.argv[1], sys.argv[2], i) for i in range(4)))
    thread = threading.Thread(target=other)
    thread.start()
    while not tasks.lines_of(sys.argv[1]):
        pass
    child = os.fork()
    if child == 0:
        with config():
            print(Parallel()(delayed(tasks.square)(i) for i in range(4)), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    tasks.note(sys.argv[2])
    thread.join()
    print(results)
    """
    script = run_script(script, path("started"), path("go"), options=("-W", "ignore::DeprecationWarning"))
    assert_quiet_success(script, "[0, 1, 4, 9]", "[0, 1, 2, 3]")


@own
def test_a_child_that_only_exits_leaves_the_pool_of_its_parent_alone():
    script = """
    import subprocess, tasks
    with config():
        before = set(Parallel()(delayed(tasks.pid)() for _ in range(8)))
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
        subprocess.run(["true"], check=True)
        print(set(Parallel()(delayed(tasks.pid)() for _ in range(8))) <= before)
    """
    assert_quiet_success(run_script(script), "True")


@own
def test_starting_with_spawn(path):
    script = """
    import numpy as np, tasks, warnings, signal
    def local(x):
        return x + 1
    array = np.ones(300_000)
    with config():
        print(Parallel()(delayed(local)(i) for i in range(3)))
        print(Parallel()(delayed(tasks.spoil)(array) for _ in range(3)), array[0])
        print(Parallel()(delayed(tasks.nested)(2) for _ in range(2))[0][0])
        os.environ["RD_LATE"] = "late"
        print(Parallel()(delayed(tasks.environment)("RD_LATE") for _ in range(2)))
        Parallel()(delayed(tasks.say)("said") for _ in range(2))
        print(Parallel()(delayed(tasks.die_once)(sys.argv[1] if i == 3 else None, sys.argv[2], i) for i in range(6)))
        try:
            Parallel()(delayed(tasks.die_if)(i == 3, i) for i in range(6))
        except rustdask.WorkerCrashed as crash:
            print(crash.index, crash.signal == signal.SIGKILL)
        print(len(list(Parallel(return_as="generator")(delayed(tasks.echo)(array) for _ in range(5)))))
    """
    with start_script(script, path("marker"), path("runs"), env={"RUSTDASK_START": "spawn"}) as script:
        assert_quiet_success(
            script.finish(),
            "[1, 2, 3]",
            "[(300000.0, 600000.0), (300000.0, 600000.0), (300000.0, 600000.0)] 1.0",
            "4",
            "['late', 'late']",
            "said",
            "said",
            "[0, 1, 2, 3, 4, 5]",
            "3 True",
            "5",
        )
        assert_ends_clean(script, 3.0)


@own
def test_spawned_workers_end_with_their_parent(path):
    script = """
    import tasks
    with config():
        Parallel()(delayed(tasks.hang_from_first_line)(sys.argv[1]) for _ in range(2))
    """
    with start_script(script, path(), env={"RUSTDASK_START": "spawn"}) as script:
        wait_for_lines(path(), 2)
        script.signal(signal.SIGKILL)
        script.process.wait(30)
        assert_ends_clean(script, 3.0)


@own
def test_modules_imported_late_and_replaced_streams(capsys):
    """The template has been started long ago."""
    import colorsys

    assert_usable()
    assert run([delayed(colorsys.rgb_to_hsv)(0.0, 0.0, float(i)) for i in range(2)]) == [
        (0.0, 0.0, 0.0),
        (2 / 3, 1.0, 1.0),
    ]
    run([delayed(tasks.say)("into the replaced stream")] * 2)
    assert capsys.readouterr().out == "into the replaced stream\n" * 2


@own
def test_closed_standard_streams():
    """As in services and in windowed programs."""
    script = run_script(
        """
        import tasks
        for fd in (0, 1, 2):
            os.close(fd)
        sys.stdin = sys.stdout = sys.stderr = None
        with config():
            ok = Parallel()(delayed(tasks.square)(i) for i in range(4)) == [0, 1, 4, 9]
        os._exit(7 if ok else 8)
        """
    )
    assert (script.returncode, script.stderr) == (7, "")


# Notebooks

NOTEBOOK = """
    import nbclient, nbformat, tempfile
    CELLS = [
        "import rustdask, os\\nfrom joblib import Parallel, delayed, parallel_config\\n"
        "def work(x):\\n    print('said', x)\\n    return x * 10",
        "with parallel_config('rustdask', n_jobs=2):\\n    print(Parallel()(delayed(work)(i) for i in range(3)))",
        "def work(x):\\n    print('now', x)\\n    return x * 20",
        "with parallel_config('rustdask', n_jobs=2, progress=True):\\n"
        "    print(Parallel()(delayed(work)(i) for i in range(3)))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(notebook, timeout=50, kernel_name="python3").execute()
    for cell in notebook.cells:
        said = "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout")
        print(sorted(said.splitlines()))
    # rich output or standard error, as the bar chooses
    print(any(output.get("name") != "stdout" for output in notebook.cells[-1].outputs))
"""


@own
@pytest.mark.timeout(180)
def test_in_a_notebook():
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    with start_script(NOTEBOOK, options=("-W", "ignore"), env={"JUPYTER_PLATFORM_DIRS": "1"}) as script:
        script.finish(timeout=120)
        assert script.returncode == 0, script
        assert script.stdout.splitlines() == [
            "[]",
            "['[0, 10, 20]', 'said 0', 'said 1', 'said 2']",
            "[]",
            "['[0, 20, 40]', 'now 0', 'now 1', 'now 2']",
            "True",
        ]
        assert_ends_clean(script, 5.0)


# The end of the interpreter


@both_modes
@pytest.mark.parametrize("end", ["", "sys.exit(4)", "raise SystemExit(4)", "rustdask.shutdown()"])
def test_an_idle_pool_at_exit(mode, end):
    if BACKEND != "rustdask" and "rustdask" in end:
        pytest.skip("a promise of rustdask's own")
    source = f"""
    import tasks
    with config(sys.argv[1]):
        print(Parallel()(delayed(tasks.square)(i) for i in range(3)), flush=True)
    {end}
    """
    with start_script(source, mode) as script:
        script.finish(30)
        assert script.returncode == (4 if "4" in end else 0)
        assert (script.stdout, script.stderr) == ("[0, 1, 4]\n", "")
        assert_ends_clean(script, 3.0)


@own
@both_modes
@pytest.mark.parametrize("body", ["sleep", "wait"])
def test_a_task_that_still_runs_at_exit(mode, body):
    source = """
    import multiprocessing, tasks, threading, time
    # An event cannot be sent to a process.
    body = threading.Event().wait if sys.argv[1:] == ["threads", "wait"] else time.sleep
    with config(sys.argv[1]):
        try:
            Parallel(timeout=0.2)(delayed(body)(100) for _ in range(3))
        except (TimeoutError, multiprocessing.TimeoutError):
            print("timed out", flush=True)
    """
    with start_script(source, mode, body) as script:
        assert_quiet_success(script.finish(30), "timed out")
        assert_ends_clean(script, 3.0)


@own
@both_modes
def test_a_generator_that_is_alive_at_exit(mode):
    source = """
    import tasks
    with config(sys.argv[1]):
        results = Parallel(return_as="generator", n_jobs=2)(delayed(tasks.square)(i) for i in range(1000))
        print(next(results), next(results), flush=True)
    """
    with start_script(source, mode, options=("-W", "ignore")) as script:
        script.finish(30)
        assert (script.returncode, script.stdout) == (0, "0 1\n")
        assert_ends_clean(script, 3.0)


@own
@both_modes
def test_a_call_in_another_thread_at_exit(mode, path):
    """A daemon thread is in the middle of a call when the interpreter ends."""
    source = """
    import tasks, threading
    def call():
        with config(sys.argv[1]):
            while True:
                Parallel()(delayed(tasks.note_and_return)(sys.argv[2], i) for i in range(50))
    threading.Thread(target=call, daemon=True).start()
    while len(tasks.lines_of(sys.argv[2])) < 200:
        pass
    """
    with start_script(source, mode, path()) as script:
        script.finish(30)
        assert script.returncode == 0
        assert_ends_clean(script, 3.0)


@own
@both_modes
def test_calls_from_exit_handlers_end_one_way_or_another(mode):
    """joblib may be called by somebody's atexit handler; that must not hang."""
    source = """
    import atexit, tasks
    def last():
        try:
            with config(sys.argv[1]):
                print(Parallel()(delayed(tasks.square)(i) for i in range(3)))
        except RuntimeError as error:
            print(type(error).__name__)
    atexit.register(last)
    with config(sys.argv[1]):
        Parallel()(delayed(tasks.square)(i) for i in range(3))
    """
    with start_script(source, mode) as script:
        script.finish(30)
        assert script.returncode == 0
        assert script.stdout in ("[0, 1, 4]\n", "RuntimeError\n")
        assert_ends_clean(script, 3.0)


@own
def test_importing_starts_nothing():
    script = run_script(
        """
        import threading
        threads = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
        print(threading.active_count(), [name for name in threads if "rustdask" in name])
        """
    )
    assert_quiet_success(script, "1 []")


@own
def test_importing_needs_only_what_the_wheel_depends_on():
    source = """
import sys, cloudpickle, joblib, numpy, threadpoolctl
before = set(sys.modules)
import rustdask
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - sys.stdlib_module_names))
"""
    told = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
    assert (told.stdout, told.stderr) == ("['rustdask']\n", "")


@own
def test_a_worker_that_idles_uses_no_time(fresh):
    """Parked is parked: neither workers nor threads of this process poll."""
    assert_usable()
    assert_usable("threads")
    pids = run([delayed(tasks.pid)() for _ in range(6)])
    before = {pid: ticks(pid) for pid in {*pids, os.getpid()} if alive(pid)}
    time.sleep(1.0)
    used = {pid: ticks(pid) - count for pid, count in before.items()}
    assert all(count <= 0.1 * os.sysconf("SC_CLK_TCK") for count in used.values()), used


def ticks(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@own
def test_recursion_limit_and_deep_arguments():
    value = None
    for _ in range(300):
        value = [value]
    assert run([delayed(tasks.echo)(value)] * 2) == [value] * 2


@own
def test_a_huge_number_of_modules_on_the_path(monkeypatch):
    """Surroundings larger than one packet travel too."""
    monkeypatch.setattr(sys, "path", [*sys.path, *(f"/nowhere/{'x' * 100}/{i}" for i in range(2000))])
    monkeypatch.setenv("RD_TEST_LARGE", "y" * 100_000)
    assert within(60, run, [delayed(tasks.environment)("RD_TEST_LARGE")] * 2) == ["y" * 100_000] * 2
