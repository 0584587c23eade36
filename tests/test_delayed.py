"""Lazy calls: what becomes a task, what is shared, what is refused; and the tokens and pictures of graphs."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import datetime
import enum
import functools
import inspect
import math
import operator
import pathlib
import pickle
import subprocess
import sys
import weakref
from collections import namedtuple
from xml.etree import ElementTree

import cloudpickle
import helpers
import numpy as np
import pytest
import tasks
from helpers import PATIENCE_S, wait_for_lines

rustdask = pytest.importorskip("rustdask")
from rustdask import Client, Future, compute, delayed, get_client, persist  # noqa: E402
from rustdask._delayed import Delayed, submit  # noqa: E402
from rustdask._delayed_graph import Plan  # noqa: E402
from rustdask._tokenize import tokenize  # noqa: E402

pytestmark = helpers.own


@pytest.fixture(params=["threads", "processes"])
def client(request):
    with Client(n_workers=2, processes=request.param == "processes") as made:
        yield made


@pytest.fixture
def threads():
    with Client(n_workers=2, processes=False) as made:
        yield made


add = delayed(operator.add)
Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass
class Point:
    x: object
    y: object = 0


def task_count(*outputs):
    return len(Plan([output._node for output in outputs]).tasks)


# Calls


def test_a_double_loop(client):
    f, g = delayed(tasks.add), delayed(operator.sub)
    results = []
    for i in range(5):
        for j in range(5):
            if i < j:
                results.append(f(i, j))
            elif i > j:
                results.append(g(i, j))
    total = delayed(sum)(results)
    assert total.compute() == sum(i + j if i < j else i - j for i in range(5) for j in range(5) if i != j)


def test_nothing_runs_before_compute(client, path):
    notes = path()
    lazy = delayed(tasks.note)(notes, "ran")
    assert tasks.lines_of(notes) == []
    lazy.compute()
    assert wait_for_lines(notes) == ["ran"]


def test_decorators(client):
    @delayed
    def plain(x):
        """Says what it does."""
        return x + 1

    @delayed(pure=True)
    def pure(x, y=0):
        return x * 10 + y

    @delayed(nout=2)
    def both(x):
        return x, -x

    assert plain(1).compute() == 2
    assert pure(1, y=2).compute() == 12
    assert compute(*both(3)) == (3, -3)
    assert (plain.__name__, plain.__doc__) == ("plain", "Says what it does.")
    assert inspect.signature(pure) == inspect.signature(pure.__wrapped__)


def test_a_lazy_function_in_a_class_is_a_method(threads):
    class Scale:
        factor = 3

        @delayed
        def times(self, x):
            return self.factor * x

    assert Scale().times(5).compute() == 15
    assert isinstance(Scale.times, Delayed)


def test_names_of_parameters_do_not_clash(threads):
    def capture(*args, **kwargs):
        return args, kwargs

    lazy = delayed(capture)(1, self=2, function=3, obj=4, name=5, key=6)
    assert lazy.compute() == ((1,), {"self": 2, "function": 3, "obj": 4, "name": 5, "key": 6})
    assert delayed(sorted)([1, 2, 3], key=operator.neg).compute() == [3, 2, 1]


def test_results_that_are_called(threads):
    make = delayed(functools.partial)
    assert make(operator.add, 1)(2).compute() == 3


def test_values_are_wrapped(client):
    words = delayed(["a", "b"])
    assert words.compute() == ["a", "b"]
    assert delayed(words) is words
    assert delayed(None).compute() is None
    assert compute(words, words[1]) == (["a", "b"], "b")


def test_what_is_shared_is_sent_once(client):
    unpickled = Counted()
    shared = delayed(unpickled)
    ids = compute(*[delayed(id)(shared) for _ in range(20)])
    # Each worker has it once.
    assert len(set(ids)) <= 2


class Counted:
    pass


# Operators, items, attributes


OPERATORS = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow,
    operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift, divmod,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
]  # fmt: skip


def test_operators(threads):
    lazy = {
        (function, a, b): function(delayed(a), b) if b < 4 else function(a, delayed(b))
        for function in OPERATORS
        for a, b in [(7, 3), (2, 5)]
        if function is not operator.truediv or b
    }
    assert all(isinstance(value, Delayed) for value in lazy.values())
    results = compute(*lazy.values())
    assert list(results) == [function(a, b) for function, a, b in lazy]


def test_unary_operators_and_rounding(threads):
    x = delayed(-2.75)
    assert compute(-x, +x, abs(x), round(x), round(x, 1), ~delayed(5)) == (2.75, -2.75, 2.75, -3, -2.8, -6)


def test_arrays_on_the_left(threads):
    array = np.arange(4.0)
    left, product = array + delayed(1), array @ delayed(array)
    assert isinstance(left, Delayed)
    np.testing.assert_array_equal(left.compute(), array + 1)
    assert product.compute() == 14
    with pytest.raises((TypeError, ValueError)):
        np.dtype(delayed(array))


def test_items(threads):
    data = delayed({"a": [1, 2, 3]})
    index = delayed(1)
    assert compute(data["a"][index], data["a"][index:]) == (2, [2, 3])


def test_attributes_and_methods(client):
    text = delayed("a,b")
    assert text.split(",").compute() == ["a", "b"]
    assert text.split(sep=text[1])[0].upper().compute() == "A"
    assert delayed(complex)(1, 2).imag.compute() == 2
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        text.missing.compute()
    with pytest.raises(AttributeError, match="_private"):
        text._private  # noqa: B018
    assert not hasattr(text, "__array__")


def test_unpacking(threads):
    quotient, rest = delayed(divmod, nout=2)(17, 5)
    assert compute(quotient, rest) == (3, 2)
    assert len(delayed(divmod, nout=2)(1, 1)) == 2
    assert list(delayed(list, nout=0)()) == []
    assert compute(*delayed([1, 2], nout=2)) == (1, 2)
    for wrong in (-1, 2.0, True, "2"):
        with pytest.raises(ValueError, match="nout must be None or a non-negative integer"):
            delayed(divmod, nout=wrong)


@pytest.mark.parametrize(
    "act, message",
    [
        (bool, "Truth of Delayed objects"),
        (iter, "not iterable; give delayed.. their nout"),
        (len, "no len.."),
        (lambda x: setattr(x, "attribute", 1), "immutable"),
        (lambda x: setattr(x, "key", 1), "immutable"),
        (lambda x: delattr(x, "attribute"), "immutable"),
        (lambda x: operator.setitem(x, 0, 1), "immutable"),
        (lambda x: operator.delitem(x, 0), "immutable"),
        (lambda x: 1 in x, "not iterable"),
        (int, "int"),
    ],
)
@pytest.mark.parametrize("x", [add(1, 2), delayed([1]), delayed("a").upper], ids=["call", "value", "attribute"])
def test_what_lazy_results_refuse(act, message, x):
    with pytest.raises(TypeError, match=message):
        act(x)


# Containers


def test_lazy_results_in_containers(client):
    x, y = delayed(1), add(1, 1)
    held = [x, (y, {"k": [y]}), {"s": {5, y}}, frozenset([y]), slice(x, None, y), Pair(x, [y]), Point(y, {"p": x})]
    expected = [1, (2, {"k": [2]}), {"s": {5, 2}}, frozenset([2]), slice(1, None, 2), Pair(1, [2]), Point(2, {"p": 1})]
    assert compute(held) == (expected,)
    assert delayed(tasks.echo)(held).compute() == expected
    assert delayed(held).compute() == expected
    assert delayed(dict)(held=held).compute() == {"held": expected}
    assert compute({x: y}, iter([y, 3])) == ({1: 2}, [2, 3])


def test_a_container_counts_as_it_was_when_it_was_passed(threads):
    parts, sums = [], []
    for i in range(4):
        parts.append(add(i, 0))
        sums.append(delayed(sum)(parts))
    parts.clear()
    assert compute(*sums) == (0, 1, 3, 6)


def test_containers_without_lazy_results_are_passed_as_they_are(threads):
    plain, pair = [1, [2]], Pair(1, 2)
    assert delayed(tasks.echo)(plain).compute() is plain
    assert delayed(tasks.echo)(pair).compute() is pair
    assert compute(plain)[0] is plain


def test_traverse(threads):
    inside = [add(1, 2)]
    assert compute(inside, traverse=False) == (inside,)
    assert delayed(inside, traverse=False).compute() is inside
    assert type(delayed(inside, traverse=False)[0].compute()) is Delayed


def test_dataclasses_that_cannot_be_made_anew():
    @dataclasses.dataclass
    class Derived:
        x: object
        y: object = dataclasses.field(init=False)

    @dataclasses.dataclass(init=False)
    class Own:
        x: object

        def __init__(self, a, b):
            self.x = a + b

    assert delayed(tasks.echo)(Derived(1)).x.compute() == 1
    with pytest.raises(ValueError, match="Derived with lazy values.*'y' has init=False"):
        delayed(tasks.echo)(Derived(add(1, 2)))
    with pytest.raises(TypeError, match="Own with lazy values.*__init__ is its own"):
        delayed(tasks.echo)(Own(add(1, 2), 1))


# Sharing, purity, keys


def test_what_is_shared_runs_once(client, path):
    notes = path()
    shared = delayed(tasks.note)(notes, "ran")
    compute(delayed(str)(shared), [delayed(repr)(shared)], shared)
    assert tasks.lines_of(notes) == ["ran"]


def test_pure_calls_are_one_task(threads):
    x, array = add(1, 2), np.arange(5)
    pure, other = delayed(tasks.add, pure=True), delayed(tasks.add)
    assert task_count(pure(x, [1, array]), pure(x, [1, np.arange(5)])) == 2
    assert task_count(pure(x, y=1), pure(x, y=1), pure(x, y=1.0), pure(x, y=True)) == 4
    assert task_count(pure(0.0), pure(-0.0)) == 2
    assert task_count(other(x), other(x)) == 3
    assert task_count(other(x, pure=True), other(x, pure=True)) == 2
    assert task_count(pure(x, pure=False), pure(x, pure=False)) == 3
    assert task_count(pure(pure(x)), pure(pure(x))) == 3
    assert task_count(x + 1, x + 1, x[0], x[0], x.real, x.real) == 4
    assert task_count(x.conjugate(), x.conjugate()) == 3
    assert task_count(x.conjugate(pure=True), x.conjugate(pure=True)) == 2
    assert task_count(pure(delayed([1], pure=True)), pure(delayed([1], pure=True))) == 1


def test_pure_calls_of_functions_without_a_hash(threads):
    class Unhashable:
        __hash__ = None

        def __eq__(self, other):
            return True

        def __call__(self):
            return 1

    one = delayed(Unhashable(), pure=True)
    assert task_count(one(), one()) == 1
    assert one().compute() == 1


def test_keys(threads):
    x = add(1, 2)
    assert x.key.startswith("add-")
    assert x.key == x.key != add(1, 2).key
    assert repr(x) == f"Delayed({x.key!r})"
    assert (x + 1).key == (x + 1).key != (x + 2).key
    assert delayed(tasks.add, pure=True)(x, [1]).key == delayed(tasks.add, pure=True)(x, [1]).key
    assert add(1, 2, dask_key_name="three").key == "three"
    assert delayed(5, name="five").key == "five"
    assert "a".join(["b"]) and delayed("a").join(["b"], dask_key_name=("j", 1)).key == ("j", 1)
    assert submit(threads, [add(1, 2, dask_key_name="three")])[0].key == "three"
    assert {x: 1}[x] == 1


def test_tasks_of_the_same_key_are_one(threads):
    assert compute(add(1, 2, dask_key_name="k"), add(1, 2, dask_key_name="k")) == (3, 3)
    assert task_count(add(1, 2, dask_key_name="k"), add(1, 2, dask_key_name="k")) == 1


def test_order_is_depth_first():
    pairs = [add(delayed(tasks.echo)(i), -i) for i in range(3)]
    names = [function.__name__ for function, _, _ in Plan([delayed(sum)(pairs)._node]).tasks]
    assert names == ["echo", "add"] * 3 + ["sum"]


# Depth


@pytest.mark.parametrize("step", [lambda x: add(x, 1), lambda x: x + 1], ids=["calls", "operators"])
def test_chains_may_be_long(threads, step):
    x = add(0, 0)
    for _ in range(100_000):
        x = step(x)
    assert x.compute() == 100_000
    assert x.key and pickle.loads(pickle.dumps(x)).key == x.key


# Pickles


def test_pickles(client):
    x, y = add(1, 2), delayed("a,b").split(",")
    for lazy in [x, y, x + 1, delayed([1, 2], nout=2), delayed("a").upper, add, delayed([x, y]), delayed(Point(x, y))]:
        remade = pickle.loads(pickle.dumps(lazy))
        assert type(remade) is type(lazy)
        assert remade.key == lazy.key
        if lazy is not add:
            assert delayed(repr)(remade).compute()[:20] == delayed(repr)(lazy).compute()[:20]
    assert len(pickle.loads(pickle.dumps(delayed([1, 2], nout=2)))) == 2
    assert pickle.loads(pickle.dumps(delayed(tasks.add, pure=True)))(1).key == delayed(tasks.add, pure=True)(1).key
    assert cloudpickle.loads(cloudpickle.dumps(delayed(lambda: 5)()))._node.function() == 5
    assert copy.copy(x) is x
    assert copy.deepcopy(x).key == x.key


def test_copies_and_originals_are_one_task():
    x = add(1, 2)
    copied = pickle.loads(pickle.dumps(x))
    twice = pickle.loads(pickle.dumps([x, x + 1]))
    assert task_count(x, copied, *twice) == 2


def test_a_pickle_holds_what_is_shared_once():
    base = add(0, 0)
    for _ in range(500):
        base = add(base, 1)
    one, many = len(pickle.dumps(base)), len(pickle.dumps([add(base, i) for i in range(100)]))
    assert many < 2 * one
    remade = pickle.loads(pickle.dumps([add(base, 1), add(base, 2)]))
    assert remade[0]._node.needs[0] is remade[1]._node.needs[0]


def test_graphs_are_freed():
    x = add(1, 2)
    for _ in range(10):
        x = x + 1
    pickle.dumps(x)
    gone = weakref.ref(x._node)
    del x
    assert gone() is None


# Running


def test_without_a_client_threads_of_this_process_are_used():
    with pytest.raises(ValueError):
        get_client()
    before = helpers.descendants()
    assert add(1, 2).compute() == 3
    assert helpers.descendants() == before


def test_a_client_may_be_named(threads):
    with Client(n_workers=1, processes=False, set_as_default=False) as other:
        which = delayed(lambda: get_client() is other)
        assert which().compute(client=other)
        assert compute(which(), client=other) == (True,)
        assert not which().compute()


def test_failures(client):
    with pytest.raises(ZeroDivisionError):
        (delayed(1) / (add(0, 0) * 2)).compute()


def test_options_reach_the_tasks(client, path):
    # The first attempt fails.
    assert delayed(fails_once)(path()).compute(retries=1) == "done"
    with pytest.raises(TypeError):
        add(1, 2).compute(bogus=1)


def fails_once(path):
    tasks.note(path)
    if len(tasks.lines_of(path)) == 1:
        raise OSError("first")
    return "done"


def test_futures_among_the_arguments(client):
    future = client.submit(tasks.echo, 5)
    assert add(future, 1).compute() == 6
    assert delayed(sum)([future, add(future, 1)]).compute() == 11
    assert (delayed(future) * 2).compute() == 10
    assert delayed(future).compute() == 5
    assert delayed(Point(future)).x.compute() == 5
    assert compute([future, 1]) == ([5, 1],)


def test_futures_of_lazy_results(client):
    x = add(1, 2)
    futures = submit(client, [x, x, delayed(7), delayed(client.submit(tasks.echo, 8))])
    assert all(isinstance(future, Future) for future in futures)
    assert client.gather(futures) == [3, 3, 7, 8]
    assert futures[0].key == x.key


def test_the_client_computes_in_the_background(client):
    x, y = add(1, 2), delayed(7)
    future = client.compute(x)
    assert isinstance(future, Future)
    assert (future.result(), future.key) == (3, x.key)
    futures = client.compute([x, y, 5])
    assert client.gather(futures[:2]) + futures[2:] == [3, 7, 5]
    assert client.gather(client.compute((x, x + 1), priority=1)) == [3, 4]
    with pytest.raises(TypeError):
        client.compute(x, bogus=1)


def test_the_client_persists(client, path):
    noted = delayed(tasks.note_and_return)(path(), 1)
    held = client.persist(noted)
    assert isinstance(held, Delayed)
    [also] = client.persist([held + 1])
    assert compute(held, also) == (1, 2)
    assert len(tasks.lines_of(path())) == 1


def test_lazy_results_and_collections_of_dask_take_a_call_each(threads):
    class Collection:
        def __dask_graph__(self):
            return {}

    for act in (threads.compute, threads.persist):
        with pytest.raises(TypeError, match="Dask's Collection take a call each"):
            act([add(1, 2), Collection()])


def test_persist(client, path):
    notes = path()
    noted = delayed(tasks.note)(notes, "ran")
    held, rest = persist([delayed(str)(noted)], 5)
    assert rest == 5
    assert compute(held, held) == (["None"], ["None"])
    assert (held[0] + "!").compute() == "None!"
    assert add(1, 2).persist().compute() == 3
    assert tasks.lines_of(notes) == ["ran"]


def test_computing_inside_of_a_task(client):
    def nested(n):
        return delayed(sum)([add(i, 1) for i in range(n)]).compute()

    assert compute(*[delayed(nested)(4) for _ in range(6)]) == (10,) * 6


def test_what_is_computed_inside_of_a_task_runs_on_all_workers(gauge):
    def nested():
        return set(delayed(list)([delayed(tasks.busy_inside)(gauge, 2) for _ in range(4)]).compute())

    with Client(n_workers=2) as client:
        client.wait_for_workers()
        pids = {worker["pid"] for worker in client.scheduler_info()["workers"].values()}
        assert client.submit(nested).result(timeout=PATIENCE_S) == pids


def test_an_asynchronous_client():
    async def run():
        async with Client(n_workers=1, processes=False, asynchronous=True) as client:
            x = add(1, 2)
            return await x.compute(client=client), await compute(x, [x], 5, client=client), await compute(1)

    assert asyncio.run(run()) == (3, (3, [3], 5), (1,))


# Pictures


def test_a_picture_as_text():
    shared = delayed(tasks.echo)(delayed([1, 2], name="data"))
    assert str((shared + shared).visualize()).splitlines() == [
        "digraph {",
        "  rankdir=BT",
        '  0 [label="list", shape=box]',
        '  1 [label="echo", shape=ellipse]',
        '  2 [label="add", shape=ellipse]',
        "  0 -> 1",
        "  1 -> 2",
        "}",
    ]


def test_equal_pure_calls_are_drawn_once():
    x = delayed(abs)(1)
    assert str(delayed(max)(x + 1, x + 1).visualize()).count('"add"') == 1


def test_a_picture_without_graphviz(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    lazy = delayed(sum)([delayed(lambda i: i)(i) for i in range(3)] + [delayed([1])])
    drawing = lazy.visualize(tmp_path / "graph.svg")
    picture = ElementTree.parse(tmp_path / "graph.svg").getroot()
    labels = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(labels) == ["<lambda>"] * 3 + ["list", "sum"]
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}path"))) == 4
    assert drawing._repr_svg_() == (tmp_path / "graph.svg").read_text()
    lazy.visualize(tmp_path / "graph.dot")
    assert (tmp_path / "graph.dot").read_text() == f"{drawing}\n"
    lazy.visualize(str(tmp_path / "named"), format="svg")
    assert (tmp_path / "named.svg").exists()
    with pytest.raises(RuntimeError, match="png takes Graphviz's program dot"):
        lazy.visualize(tmp_path / "graph.png")
    with pytest.raises(ValueError, match="filename"):
        lazy.visualize(format="svg")


def test_a_picture_with_graphviz(tmp_path, monkeypatch):
    program = tmp_path / "dot"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1], len(sys.stdin.read()))\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    drawing = add(1, 2).visualize(tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_text() == f"-Tpng {len(str(drawing))}\n"
    program.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    with pytest.raises(RuntimeError, match="dot has failed: broken"):
        add(1, 2).visualize(tmp_path / "graph.png")


# Tokens


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Own:
    def __init__(self, content):
        self.content = content

    def __dask_tokenize__(self):
        return self.content


def cyclic():
    made = [1]
    made.append(made)
    return made


DIFFERENT = {
    "numbers": lambda: [1, 1.0, True, 1 + 0j, 0.0, -0.0, 10**5000, math.inf, None, ...],
    "text": lambda: ["1", b"1", "", b"", "a\ud800", bytearray(b"1")],
    "containers": lambda: [[1], (1,), {1}, frozenset({1}), {1: 1}, [[1]], [1, 1], [], cyclic(), slice(1), range(1)],
    "splits": lambda: [["ab", "c"], ["a", "bc"], [["a"], "bc"]],
    "arrays": lambda: [
        np.arange(6), np.arange(6.0), np.arange(6).reshape(2, 3), np.arange(6).reshape(3, 2), np.zeros(0),
    ],
    "other arrays": lambda: [
        np.array(["a"]), np.array([None]), np.array([{"a": 1}]), np.array("2020", "M8[D]"), np.ma.array([1]),
        np.zeros(2, "i4,f8"), np.float32(1), np.arange(6).reshape(2, 3).T,
    ],
    "functions": lambda: [abs, len, operator.add, tasks.echo, tasks.add, lambda x: x, lambda x: x + 1, "a".join, str],
    "methods": lambda: [
        Own(1).__init__, Own(2).__init__, str.join,
        functools.partial(abs, 1), functools.partial(abs, 2),
    ],
    "objects": lambda: [
        Own(1), Own(2), Colour.RED, Colour.BLUE, Colour, Point(1), Point(2), pathlib.Path("a"),
        Pair(1, 2),
    ],
    "dates": lambda: [datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1), datetime.timedelta(1)],
}  # fmt: skip


@pytest.mark.parametrize("values", DIFFERENT.values(), ids=DIFFERENT)
def test_tokens_tell_values_apart_and_are_the_same_for_the_same(values):
    tokens = [tokenize(value) for value in values()]
    assert len(set(tokens)) == len(tokens)
    assert [tokenize(value) for value in values()] == tokens


def test_order_counts_where_it_matters():
    assert tokenize({"a": 1, "b": 2}) == tokenize({"b": 2, "a": 1})
    assert tokenize({3, 1, 2}) == tokenize({2, 3, 1})
    assert tokenize([1, 2]) != tokenize([2, 1])
    assert tokenize(1, a=2) != tokenize(1, 2) != tokenize((1, 2))


def test_what_cannot_be_pickled_equals_nothing():
    import threading

    lock = threading.Lock()
    assert tokenize(lock) != tokenize(lock)


def test_tokens_are_the_same_in_every_process():
    text = "import numpy, tasks; from rustdask._tokenize import tokenize; "
    text += "print(tokenize({'a', 'b'}, numpy.ones(3), tasks.echo))"
    printed = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, cwd=pathlib.Path(__file__).parent
    ).stdout
    assert printed.strip() == tokenize({"a", "b"}, np.ones(3), tasks.echo)
