"""Dask's graphs and collections on rustdask."""

from __future__ import annotations

import gc
import io
import operator
import pickle
import subprocess
import sys
import time
import weakref
from collections import namedtuple

import helpers
import numpy as np
import pytest
import tasks
from helpers import PATIENCE_S, assert_quiet_success, both_modes, run_script, wait_until

rustdask = pytest.importorskip("rustdask")
dask = pytest.importorskip("dask")

import dask.array as da  # noqa: E402
import dask.bag as db  # noqa: E402
import dask.dataframe as dd  # noqa: E402
import pandas as pd  # noqa: E402
from dask._task_spec import Alias, DataNode, Dict, List, Task, TaskRef  # noqa: E402
from dask.callbacks import Callback  # noqa: E402
from dask.diagnostics import CacheProfiler, Profiler, ProgressBar  # noqa: E402

from rustdask import Client, Future  # noqa: E402
from rustdask._dask_graph import Plan  # noqa: E402
from rustdask._dask_order import orders  # noqa: E402
from rustdask._steps import Steps  # noqa: E402

pytestmark = helpers.own

Pair = namedtuple("Pair", "left right")


@pytest.fixture(params=["threads", "processes"])
def client(request):
    with Client(n_workers=2, processes=request.param == "processes") as made:
        yield made


@pytest.fixture
def threads():
    with Client(n_workers=2, processes=False) as made:
        yield made


@pytest.fixture
def scheduled(client):
    """Dask's default scheduler is rustdask, and `client` is the current one."""
    with dask.config.set(scheduler=rustdask.get):
        yield client


# Graphs of the old form


def test_tuples_of_functions_and_keys():
    graph = {"x": 1, "y": (tasks.add, "x", 10), "z": (tasks.add, "y", "x"), ("w", 0): (operator.neg, "z")}
    assert rustdask.get(graph, "z") == 12
    assert rustdask.get(graph, ["x", "z", ("w", 0)]) == (1, 12, -12)
    assert rustdask.get(graph, [["x"], [["y"], "z"], []]) == ((1,), ((11,), 12), ())
    assert rustdask.get(graph, ["z", "z"]) == (12, 12)


def test_what_arguments_may_hold():
    graph = {
        "x": 1,
        "y": 2,
        "list": (sum, ["x", "y", 3]),
        "nested": (tasks.echo, [["x"], [["y"]]]),
        "within": (tasks.add, (tasks.add, "x", (operator.neg, "y")), 100),
        "in list": (sum, [(operator.neg, "x"), "y"]),
        "tuple": (tasks.echo, ("x", 5)),
        "set": (tasks.echo, {"x", 7}),
        "dict": (tasks.echo, {"k": "x"}),
        "named": (tasks.echo, Pair("x", 3)),
        "array": (np.sum, np.arange(4)),
        "bool": (tasks.echo, [True, None, "unknown", 2.5]),
        "nothing": (tasks.nothing,),
        "quoted": (dask.core.quote(["x"])),
    }
    expected = {
        "list": 6,
        "nested": [[1], [[2]]],
        "within": 99,
        "in list": 1,
        "tuple": (1, 5),
        "set": {1, 7},
        "dict": {"k": "x"},
        "named": Pair(1, 3),
        "array": 6,
        "bool": [True, None, "unknown", 2.5],
        "nothing": None,
        "quoted": ["x"],
    }
    keys = list(expected)
    assert rustdask.get(graph, keys) == tuple(expected.values()) == dask.threaded.get(graph, keys)
    assert type(rustdask.get(graph, "named")) is Pair


def test_keys_that_are_other_names_and_lists_of_keys(client):
    graph = {"x": 1, "a": "x", "b": "a", "both": ["a", "x", 5], "sum": (sum, "both"), "t": (tasks.add, "b", "b")}
    assert rustdask.get(graph, ["b", "both", "sum", "t"]) == (1, [1, 1, 5], 7, 2)


def test_a_list_of_data_is_passed_on_as_it_is(threads):
    data = [1, [2, 3]]
    assert rustdask.get({"x": (tasks.echo, data)}, "x") is data


# Graphs of the new form


class Doubled(Task):
    """A task that does more than to call its function."""

    def __call__(self, values=()):
        return 2 * super().__call__(values)


def test_tasks_of_every_kind(client):
    graph = {
        "x": DataNode("x", 1),
        "y": Task("y", tasks.add, TaskRef("x"), y=10),
        "alias": Alias("alias", "y"),
        "list": List(TaskRef("x"), Task(None, operator.neg, TaskRef("y"))),
        "dict": Task("dict", tasks.echo, Dict({"k": TaskRef("y"), "l": List(TaskRef("x"))})),
        "within": Task("within", tasks.add, Task(None, tasks.add, Alias("alias"), DataNode(None, 5)), y=TaskRef("x")),
        "doubled": Doubled("doubled", tasks.add, TaskRef("x"), TaskRef("y")),
        "after": Task("after", operator.neg, TaskRef("doubled")),
    }
    expected = (1, 11, 11, [1, -11], {"k": 11, "l": [1]}, 17, 24, -24)
    assert rustdask.get(graph, list(graph)) == expected


def test_tasks_that_dask_has_joined(client):
    parts = [
        Task("a", tasks.add, TaskRef("outside"), 1),
        Task("b", operator.mul, TaskRef("a"), TaskRef("a")),
        DataNode("c", 100),
        Alias("d", "b"),
        Task("e", sum, List(TaskRef("a"), TaskRef("c"), TaskRef("d"))),
    ]
    graph = {
        "outside": Task("outside", tasks.echo, 2),
        "joined": Task.fuse(*parts, key="joined"),
        "again": Task.fuse(
            Task("f", tasks.add, TaskRef("joined"), 1), Task("g", operator.neg, TaskRef("f")), key="again"
        ),
    }
    assert rustdask.get(graph, ["joined", "again"]) == (3 + 100 + 9, -113)


def test_a_joined_task_that_only_hands_on(client):
    graph = {
        "x": Task("x", tasks.echo, 1),
        "y": Task.fuse(Alias("a", "x"), Alias("b", "a"), key="y"),
        "z": Task.fuse(DataNode("c", 5), Alias("d", "c"), key="z"),
    }
    assert rustdask.get(graph, ["y", "z"]) == (1, 5)


def test_what_tells_tasks_apart_is_kept_when_they_have_the_same_steps():
    graph = {}
    for at in range(10):
        graph[at, "x"] = Task((at, "x"), tasks.add, at, y=Task(None, tasks.add, at, y=100))
    plan = Plan(graph, list(graph))
    assert len({id(function) for function, _, _ in plan.tasks}) == 1
    assert rustdask.get(graph, list(graph)) == tuple(2 * at + 100 for at in range(10))


# Chains


def test_tasks_in_a_row_are_joined():
    graph = {("x", 0): 1} | {("x", at): (tasks.add, ("x", at - 1), 1) for at in range(1, 1001)}
    assert len(Plan(graph, [("x", 1000)]).tasks) == 1
    assert len(Plan(graph, [("x", 1000), ("x", 500)]).tasks) == 2
    assert rustdask.get(graph, [("x", 500), ("x", 1000)]) == (501, 1001)


def test_tasks_that_several_need_are_not_joined_with_them():
    graph = {"a": (tasks.echo, 1), "b": (operator.neg, "a"), "c": (tasks.add, "a", 5), "d": (tasks.add, "b", "c")}
    assert len(Plan(graph, ["d"]).tasks) == 4
    assert rustdask.get(graph, "d") == 5


def test_steps_let_go_of_what_they_do_not_need_any_more():
    alive = weakref.WeakSet()

    class Large:
        def __init__(self, *_):
            alive.add(self)

    def count(*_):
        gc.collect()
        counts.append(len(alive))
        return Large()

    counts = []
    steps = tuple((count, (-at,) if at else (0,), ()) for at in range(5))
    Steps(steps, 1)(None)
    assert counts == [0, 1, 1, 1, 1]


def test_steps_travel():
    steps = Steps(((tasks.add, (0, 1), ("y",)), (operator.neg, (-1,), ())), 2)
    assert steps.__name__ == "neg"
    assert pickle.loads(pickle.dumps(steps))(1, 2) == steps(1, 2) == -3
    assert "add, neg" in repr(steps)


# Refusals


def test_a_key_that_is_not_there():
    with pytest.raises(KeyError, match="nowhere"):
        rustdask.get({"x": 1}, ["x", "nowhere"])


def test_a_dependency_that_is_not_there(path):
    graph = {
        "a": Task("a", tasks.note, path()),
        "x": Task("x", tasks.add, TaskRef("a"), TaskRef("nowhere")),
    }
    with pytest.raises(ValueError, match="Missing dependency 'nowhere' for dependents {'x'}"):
        rustdask.get(graph, "x")
    assert tasks.lines_of(path()) == []


def test_circles_are_named():
    graph = {"start": (tasks.echo, "a"), "a": (tasks.echo, "b"), "b": (tasks.add, 1, "c"), "c": (tasks.echo, "a")}
    with pytest.raises(RuntimeError, match="Cycle detected") as caught:
        rustdask.get(graph, "start")
    assert str(caught.value).split("\n  -> ")[1:] == ["a", "b", "c", "a"]
    with pytest.raises(RuntimeError, match="Cycle detected"):
        rustdask.get({"x": (tasks.echo, "x")}, "x")


def test_what_nobody_asked_for_may_be_wrong():
    graph = {"x": (tasks.echo, 1), "bad": Task("bad", tasks.echo, TaskRef("nowhere")), "c": (tasks.echo, "c")}
    assert rustdask.get(graph, "x") == 1


# Errors


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: dask.delayed(tasks.echo)(x)])
def test_the_error_of_a_task_has_its_frames(scheduled, wrap):
    with pytest.raises(Exception, match="on purpose") as caught:
        wrap(dask.delayed(tasks.fail)("on purpose")).compute()
    assert "fail" in [entry.name for entry in caught.traceback]
    assert "_steps.py" not in [entry.path.name for entry in caught.traceback]


def test_an_error_ends_the_rest(path):
    """One worker runs a task that waits for a file, and the other, in the meantime, one that fails."""
    with Client(n_workers=2, processes=False) as client:
        graph = {
            "waits": (tasks.note_and_wait, path("started"), path("go"), 1),
            "after": (tasks.note_and_return, path("after"), "waits"),
            "fails": (tasks.fail_after, path("started"), "oh"),
        }
        with pytest.raises(Exception, match="oh"):
            rustdask.get(graph, ["after", "fails"])
        tasks.note(path("go"))
        wait_until(lambda: client.scheduler_info()["known"] == 0, "all to be forgotten")
        assert tasks.lines_of(path("after")) == []
        assert rustdask.get({"x": (tasks.echo, 1)}, "x") == 1


# Collections


def test_array(scheduled):
    x = da.random.default_rng(0).random((400, 400), chunks=(100, 100))
    y = (x + x.T).sum(axis=0)
    assert np.allclose(y.compute(), y.compute(scheduler="sync"))
    total, mean = dask.compute(x.sum(), x.mean())
    assert np.isclose(total / x.size, mean)


def test_singular_values(scheduled):
    x = da.random.default_rng(0).random((1000, 20), chunks=(100, 20))
    u, s, v = dask.compute(*da.linalg.svd(x))
    assert np.allclose(u @ np.diag(s) @ v, x.compute())


@both_modes
def test_dataframe_of_parquet_files(mode, tmp_path):
    """In a process of its own, since Arrow's threads live on, under the names of those that have started them."""
    script = run_script(PARQUET, mode, str(tmp_path / "data"))
    assert script.returncode == 0, script
    assert script.stdout.split() == ["498.0", "499.0", "500.0", "501.0", "374250.0"]


PARQUET = """
import sys, warnings
import dask, dask.dataframe as dd, numpy as np, pandas as pd, rustdask

warnings.simplefilter("ignore")
mode, path = sys.argv[1:]
frame = pd.DataFrame({"name": list("abcd") * 250, "value": np.arange(1000.0)})
with rustdask.Client(n_workers=2, processes=mode == "processes"), dask.config.set(scheduler=rustdask.get):
    dd.from_pandas(frame, npartitions=4).to_parquet(path)
    read = dd.read_parquet(path)
    print(*read.groupby("name").value.mean().compute().sort_index(), read[read.value > 500].value.sum().compute())
"""


def test_shuffle(scheduled):
    frame = pd.DataFrame({"key": np.arange(200) % 13, "value": np.arange(200)})
    shuffled = dd.from_pandas(frame, npartitions=5).shuffle("key")
    assert sorted(shuffled.compute().value) == list(range(200))


SHUFFLE_METHODS = """
import rustdask

with rustdask.Client(n_workers=1, processes=False):
    import dask

    print(dask.config.get("dataframe.shuffle.method"))
with rustdask.Client(n_workers=1):
    print(dask.config.get("dataframe.shuffle.method"))
"""


def test_shuffles_go_through_tasks_once_there_are_worker_processes():
    assert_quiet_success(run_script(SHUFFLE_METHODS), "None", "tasks")
    late = SHUFFLE_METHODS.replace("processes=False", "processes=True")
    assert_quiet_success(run_script(late), "tasks", "tasks")


def test_the_configuration_says_how_to_shuffle():
    script = run_script(SHUFFLE_METHODS, env={"DASK_DATAFRAME__SHUFFLE__METHOD": "disk"})
    assert_quiet_success(script, "disk", "disk")


def test_bag(scheduled):
    bag = db.from_sequence(range(100), npartitions=7)
    assert bag.map(tasks.square).filter(lambda x: x % 2 == 0).sum().compute() == sum(i * i for i in range(0, 100, 2))
    assert sorted(bag.groupby(lambda x: x % 3).map(lambda group: len(group[1])).compute()) == [33, 33, 34]


def test_delayed_loop(scheduled):
    def f(x, y):
        return x + y

    def g(x, y):
        return x - y

    f, g = dask.delayed(f), dask.delayed(g)
    results = [f(x, y) if x < y else g(x, y) for x in range(5) for y in range(5)]
    total = dask.delayed(sum)(results)
    assert total.compute() == sum(x + y if x < y else x - y for x in range(5) for y in range(5))


def test_collections_within_tasks(scheduled):
    def inside(n):
        return int(da.ones(n, chunks=3).sum().compute(scheduler=rustdask.get))

    assert dask.compute([dask.delayed(inside)(n) for n in range(1, 12)]) == (list(range(1, 12)),)


def test_the_client_of_a_task_computes_and_persists(client):
    def inside():
        inner = rustdask.get_client()
        x = da.arange(12, chunks=3)
        later, kept = inner.compute(x.sum()), inner.persist(x + 1)
        return int(later.result()), int(kept.sum().compute(scheduler=inner.get))

    assert client.submit(inside).result(timeout=PATIENCE_S) == (66, 78)
    wait_until(lambda: client.scheduler_info()["known"] == 0, "forgotten tasks")


# Futures in graphs


def test_futures_are_dependencies_wherever_they_stand(scheduled):
    future = scheduled.submit(tasks.add, 1, 2)
    graph = {"x": future, "y": (tasks.add, "x", 10), "z": (tasks.add, "x", future), "l": [future, "y"], "m": [future]}
    assert rustdask.get(graph, ["x", "y", "z", "l", "m"]) == (3, 13, 6, [3, 13], [3])
    assert dask.delayed(tasks.add)(future, 5).compute() == 8
    assert (da.from_delayed(dask.delayed(future), shape=(), dtype=int) + 1).compute() == 4


def test_the_future_of_another_client_is_waited_for(client):
    with Client(n_workers=1, processes=False, set_as_default=False) as other:
        assert rustdask.get({"x": other.submit(tasks.add, 1), "y": (tasks.add, "x", 1)}, "y") == 2


def test_persist(client):
    x = da.arange(100, chunks=10)
    kept = client.persist(x + 1)
    assert all(isinstance(node.value, Future) for node in kept.dask.values())
    for scheduler in (client, client.get, rustdask.get, "threads", "sync"):
        assert (kept * 2).sum().compute(scheduler=scheduler) == 10100
    assert kept.sum().persist(scheduler=client).compute(scheduler=client) == 5050


def test_persist_runs_once(client, path):
    noted = dask.delayed(tasks.note_and_return)(path(), 7)
    kept = client.persist(noted)
    assert dask.compute(kept, dask.delayed(operator.neg)(kept), scheduler=client) == (7, -7)
    assert kept.compute(scheduler=client) == 7
    assert len(tasks.lines_of(path())) == 1


@pytest.mark.filterwarnings("ignore:Computing mixed collections")
def test_persist_of_every_collection(client):
    frame = dd.from_pandas(pd.DataFrame({"a": range(100)}), npartitions=5)
    kept = client.persist([frame, db.from_sequence(range(10)), {"x": da.ones(5)}, 3])
    assert kept[0].a.sum().compute(scheduler=client) == 4950
    assert kept[1].sum().compute(scheduler=client) == 45
    assert kept[2]["x"].sum().compute(scheduler=client) == 5
    assert kept[3] == 3


def test_what_was_persisted_is_let_go_of(client):
    kept = client.persist(da.ones(100, chunks=10) + 1)
    assert kept.sum().compute(scheduler=client) == 200
    del kept
    gc.collect()
    wait_until(lambda: client.scheduler_info()["known"] == 0, "all to be forgotten")


def test_compute(client):
    x = da.arange(100, chunks=10)
    future = client.compute(x.sum())
    assert isinstance(future, Future)
    assert future.result(timeout=PATIENCE_S) == 4950
    made = client.compute([x.max(), 3, [x.mean(), {"a": x.min()}], [1, 2]])
    assert client.gather(made) == [99, 3, [49.5, {"a": 0}], [1, 2]]
    assert client.compute([x.sum(), x.sum()], sync=True) == [4950, 4950]
    assert client.compute(dask.delayed(5)).result() == 5


@pytest.mark.filterwarnings("ignore:Computing mixed collections")
def test_collections_of_several_kinds_keep_their_order(client):
    frame = dd.from_pandas(pd.DataFrame({"a": range(10)}), npartitions=2)
    mixed = [
        da.full(3, 1).max(),
        dask.delayed(tasks.add)(1, 1),
        da.full(3, 3).max(),
        (frame.a * 0 + 4).max(),
        db.from_sequence([5]).sum(),
        dask.delayed(tasks.echo)(6),
    ]
    assert client.compute(mixed, sync=True) == [1, 2, 3, 4, 5, 6]
    assert [int(kept.compute(scheduler=client)) for kept in client.persist(mixed)] == [1, 2, 3, 4, 5, 6]


# Annotations


def test_resources_of_annotations(path):
    with Client(n_workers=2, processes=False, resources={"GPU": 1, "special-db": 1}) as client:
        load = dask.delayed(tasks.note_and_return)(path(), 1)
        with dask.annotate(resources={"GPU": 1}):
            train = dask.delayed(tasks.add)(load, 10)
        with dask.annotate(resources={"special-db": 1}, priority=5):
            save = dask.delayed(tasks.add)(train, load)
        report = dask.delayed(operator.neg)([train, save][1])
        assert report.compute(scheduler=client) == -12
        assert client.compute([report, train], sync=True) == [-12, 11]
        with dask.annotate(resources={"TPU": 1}):
            impossible = dask.delayed(tasks.add)(load, 10)
        with pytest.raises(RuntimeError, match="no worker can run"):
            impossible.compute(scheduler=client)
    # Where there is nobody to heed them, they do not keep anything from running.
    assert impossible.compute(scheduler=rustdask.get) == 11


def test_retries_of_annotations_and_of_compute(client, path):
    with dask.annotate(retries=2):
        annotated = dask.delayed(tasks.fail_some_times)(path(), 2, "done")
    assert dask.delayed(tasks.echo)(annotated).compute(scheduler=client, optimize_graph=False) == "done"
    plain = dask.delayed(tasks.fail_some_times)(path("b"), 2, "done")
    assert client.compute(plain, retries=2).result() == "done"


# Callbacks


def test_callbacks_hear_of_everything(client):
    heard = []
    callback = Callback(
        start=lambda dsk: heard.append(("start", sorted(dsk))),
        start_state=lambda dsk, state: heard.append(("state", list(state["ready"]))),
        pretask=lambda key, dsk, state: heard.append(("before", key)),
        posttask=lambda key, value, dsk, state, worker: heard.append(("after", key, value)),
        finish=lambda dsk, state, failed: heard.append(("finish", failed)),
    )
    graph = {"x": 1, "y": (tasks.add, "x", 1), "z": (operator.neg, "y")}
    with callback:
        assert rustdask.get(graph, ["z", "x"]) == (-2, 1)
    assert heard == [
        ("start", ["x", "y", "z"]),
        ("state", ["y"]),
        ("before", "y"),
        ("after", "y", 2),
        ("before", "z"),
        ("after", "z", -2),
        ("finish", False),
    ]


def test_callbacks_hear_of_failure(client):
    heard = []
    with Callback(finish=lambda dsk, state, failed: heard.append(failed)):
        with pytest.raises(Exception, match="oh"):
            rustdask.get({"x": (tasks.fail, "oh")}, "x")
    assert heard == [True]
    assert not Callback.active


def test_callbacks_of_a_large_graph(client):
    n = 500
    graph = {("a", at): (tasks.square, at) for at in range(n)} | {"sum": (sum, [("a", at) for at in range(n)])}
    seen, most = [], 0

    def after(key, value, dsk, state, worker):
        nonlocal most
        seen.append(key)
        assert len(state["finished"]) == len(seen)
        most = max(most, len(state["running"]))

    with Callback(posttask=after):
        assert rustdask.get(graph, "sum") == sum(at * at for at in range(n))
    assert sorted(map(str, seen)) == sorted(map(str, graph))
    assert most <= 2


def test_diagnostics(scheduled):
    out = io.StringIO()
    with ProgressBar(out=out), Profiler() as profiler, CacheProfiler() as cache:
        assert da.ones(100, chunks=10).sum().compute() == 100
    assert "100% Completed" in out.getvalue()
    assert len(profiler.results) == len(cache.results) > 10


def test_results_that_are_there_already(path):
    graph = {"x": (tasks.note_and_return, path(), 1), "y": (tasks.add, "x", 1)}
    assert rustdask.get(graph, "y", cache={"x": 10}) == 11
    assert tasks.lines_of(path()) == []


# Workers


def test_num_workers(gauge):
    graph = {at: (tasks.linger_inside, gauge) for at in range(6)}
    rustdask.get(graph, list(graph), num_workers=1)
    assert gauge.peak == 1


def test_the_function_runs_on_the_current_client():
    graph = {at: (tasks.pid,) for at in range(4)}
    mine = set(rustdask.get(graph, list(graph)))
    with Client(n_workers=1):
        theirs = set(rustdask.get(graph, list(graph)))
    assert mine.isdisjoint(theirs)


def test_dask_is_not_imported_before_it_is_asked_for():
    code = "import sys, rustdask; assert 'dask' not in sys.modules; rustdask.get; assert 'dask' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


# Order, memory, cost


def test_results_are_used_up_before_more_are_made():
    """Two means over the same parts: a walk down from the one would keep all parts for the other."""
    x = da.random.default_rng(0).random(400, chunks=1)
    expr = dask.base.collections_to_expr([x.mean(), (x**2).mean()]).optimize()
    plan = Plan(expr.__dask_graph__(), list(dask.core.flatten(expr.__dask_keys__())))
    assert most_kept(plan.needs, range(len(plan.tasks))) > 200
    assert most_kept(plan.needs, orders(plan.needs)) < 30


def most_kept(needs, ranks):
    """How many results are kept at most, when one task runs at a time."""
    left = [0] * len(needs)
    for ahead in needs:
        for need in ahead:
            left[need] += 1
    kept = most = 0
    for at in sorted(range(len(needs)), key=ranks.__getitem__):
        kept += 1
        most = max(most, kept)
        for need in needs[at]:
            left[need] -= 1
            kept -= not left[need]
    return most


def test_the_order_is_left_alone_where_it_does_not_matter():
    tree = [[], [], [0, 1], [], [], [3, 4], [2, 5]] * 5
    assert orders(tree) is None
    shared = [[] for _ in range(40)] + [[at] for at in range(40)] + [[at] for at in range(40)] + [list(range(40, 120))]
    ranks = orders(shared)
    assert sorted(ranks) == list(range(len(shared)))
    assert all(ranks[need] < ranks[at] for at, needs in enumerate(shared) for need in needs)


def test_equal_graphs_are_submitted_in_the_same_way():
    x = da.ones((20, 20), chunks=2)
    graph = dict((x + x.T).sum().__dask_graph__())
    key = next(iter((x + x.T).sum().__dask_keys__()))
    first, second = Plan(graph, [key]), Plan(dict(reversed(graph.items())), [key])
    assert first.keys == second.keys
    assert first.needs == second.needs


@pytest.mark.slow
def test_the_cost_of_a_task_does_not_grow_with_the_graph(threads):
    def cost(n):
        graph = {("a", at): (tasks.square, at) for at in range(n)}
        graph |= {("b", at): (tasks.add, ("a", at), ("a", at + 1)) for at in range(n - 1)}
        best = float("inf")
        for _ in range(3):
            begun = time.process_time()
            rustdask.get(graph, [("b", at) for at in range(n - 1)])
            best = min(best, time.process_time() - begun)
        return best / len(graph)

    assert cost(100_000) < 3 * cost(5_000)


def test_a_large_graph_leaves_nothing(threads):
    graph = {("a", at): (tasks.square, at) for at in range(50_000)} | {"n": (len, [("a", at) for at in range(50_000)])}
    assert rustdask.get(graph, "n") == 50_000
    assert gc.isenabled()
    wait_until(lambda: threads.scheduler_info()["known"] == 0, "all to be forgotten")
