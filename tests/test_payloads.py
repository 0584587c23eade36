"""Arguments and results: what they are on the other side, how often they travel, and when their memory is free again.

Guarantees tested: a task sees its argument as it was when it was dispatched, may change it, and nobody else sees
that; a large argument is placed once per call, a common object is pickled once per call; results are writable, and
their memory goes when they do.
"""

from __future__ import annotations

import gc
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tasks
from helpers import (
    assert_ends_clean,
    assert_quiet_success,
    configured,
    own,
    run,
    run_script,
    rustdask,
    segments,
    start_script,
    wait_until,
)
from joblib import Parallel, delayed

pytestmark = pytest.mark.timeout(120)

# In segments, and below: 64 KiB is where it begins.
SIZES = [10, 5_000, 300_000]


# Large arguments


@own
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_in_place_work_stays_in_its_task(size, batch_size):
    """Each task finds the array as the parent has it, though several run in the same worker."""
    array = np.ones(size)
    results = run([delayed(tasks.spoil_and_name_worker)(array) for _ in range(16)], batch_size=batch_size)
    assert {before for _, before, _ in results} == {float(size)}
    assert {after for _, _, after in results} == {2.0 * size}
    assert len({pid for pid, _, _ in results}) <= 2 < len(results)
    assert (array == 1).all()


@own
def test_in_place_work_on_a_view_stays_in_its_task():
    array = np.ones((4, 100_000))
    results = run([delayed(tasks.spoil)(array[i % 4]) for i in range(12)])
    assert results == [(100_000.0, 200_000.0)] * 12
    assert (array == 1).all()


@own
def test_an_array_for_many_tasks_is_placed_once():
    array = np.ones(1 << 20)
    assert run([delayed(np.sum)(array) for _ in range(32)], batch_size=1) == [float(1 << 20)] * 32
    figures = rustdask.explain().as_dict()
    assert array.nbytes <= figures["bytes_placed"] < 2 * array.nbytes
    assert figures["bytes_saved"] >= 25 * array.nbytes


@own
def test_an_array_inside_other_objects_is_placed_once():
    array = np.ones(1 << 20)
    calls = [delayed(tasks.length_and_item)({"i": i, "array": array}, "i") for i in range(16)]
    assert run(calls, batch_size=1) == [(2, i) for i in range(16)]
    assert rustdask.explain().as_dict()["bytes_placed"] < 2 * array.nbytes


def test_identity_within_a_task_is_kept():
    array, items = np.ones(300_000), [1, 2, 3]
    assert run([delayed(tasks.are_same)(value, value) for value in (array, items)]) == [True, True]


@own
@pytest.mark.parametrize("size", SIZES)
def test_changes_between_calls_are_seen(size):
    """loky, used again in this way, reads the file that it wrote for the first call."""
    array = np.zeros(size)
    with configured(), Parallel() as parallel:
        for value in range(4):
            array[:] = value
            assert parallel([delayed(np.max)(array) for _ in range(4)]) == [value] * 4


@own
@pytest.mark.parametrize("size", SIZES)
def test_a_buffer_used_again_for_each_task(size):
    """joblib takes as many tasks at a time from the iterator as there are jobs: so many buffers take turns."""

    def calls():
        buffers = [np.zeros(size) for _ in range(2)]
        for i in range(40):
            buffers[i % 2][:] = i
            yield delayed(tasks.first_element)(buffers[i % 2])

    assert run(calls(), batch_size=1) == list(range(40))


@own
def test_a_list_used_again_for_each_task():
    def calls():
        lists = [[], []]
        for i in range(40):
            lists[i % 2][:] = [i]
            yield delayed(sum)(lists[i % 2])

    assert run(calls(), batch_size=1) == list(range(40))


def test_new_arrays_at_old_addresses_are_not_mistaken_for_them():
    def calls():
        for i in range(60):
            yield delayed(tasks.first_element)(np.full(20_000, i))

    assert run(calls(), batch_size=1) == list(range(60))


# Kinds of arrays


def arrays():
    base = np.arange(120_000.0).reshape(300, 400)
    fields = np.zeros(20_000, dtype=[("name", "U8"), ("value", "f8"), ("pair", "i4", (2,))])
    fields["value"] = np.arange(20_000)
    fields["name"] = "name"
    return {
        "c": base,
        "fortran": np.asfortranarray(base),
        "transposed": base.T,
        "columns": base[:, 3:77],
        "every_other": base[::2],
        "backwards": base[::-1, ::-1],
        "flat_slice": base.ravel()[7:-9],
        "broadcast": np.broadcast_to(np.arange(400.0), (300, 400)),
        "object": np.array([{"a": 1}, None, "text", base[0]] * 500, dtype=object),
        "structured": fields,
        "field": fields["value"],
        "empty": np.zeros((0, 5)),
        "empty_middle": np.zeros((3, 0, 2), dtype="i2"),
        "scalar": np.array(3.5),
        "bool": base > 7,
        "complex": base + 1j,
        "big_endian": base.astype(">f8"),
        "dates": np.arange(30_000).astype("M8[s]"),
        "text": np.array(["ä", "bcd"] * 20_000),
        "bytes": np.array([b"a", b"bcd"] * 20_000),
        "masked": np.ma.masked_less(base, 50),
        "half": (base % 7).astype("f2"),
    }


@pytest.mark.parametrize("kind", arrays())
def test_every_kind_of_array_travels_both_ways(kind):
    array = arrays()[kind]
    for result in run([delayed(tasks.echo)(array), delayed(tasks.echo)(array)]):
        assert type(result) is type(array)
        assert (result.dtype, result.shape) == (array.dtype, array.shape)
        if kind == "object":
            assert all(np.array_equal(one, other) for one, other in zip(result, array, strict=True))
        else:
            np.testing.assert_array_equal(result, array)


@own
@pytest.mark.parametrize("kind", ["c", "fortran", "structured", "complex"])
def test_layout_and_write_permission_are_kept(kind):
    array = arrays()[kind]
    there, back = run([delayed(tasks.array_facts)(array), delayed(tasks.echo)(array)])
    assert there["writeable"]
    assert (there["c"], there["f"]) == (array.flags.c_contiguous, array.flags.f_contiguous)
    assert back.flags.writeable
    assert (back.flags.c_contiguous, back.flags.f_contiguous) == (there["c"], there["f"])


def test_plain_buffers_travel():
    values = [b"x" * 300_000, bytearray(b"y" * 300_000), "z" * 300_000, list(range(50_000)), {1: (2, [3])}]
    for value in values:
        (result,) = run([delayed(tasks.echo)(value), delayed(tasks.nothing)()])[:1]
        assert type(result) is type(value)
        assert result == value


# Results


@own
def test_results_are_writable_and_independent():
    array = np.ones(300_000)
    first, second = run([delayed(tasks.echo)(array) for _ in range(2)])
    first += 1
    assert (first.sum(), second.sum(), array.sum()) == (600_000, 300_000, 300_000)


@own
def test_memory_of_results_goes_when_they_do(fresh):
    results = run([delayed(tasks.full)(1 << 20, i) for i in range(12)])
    # Only pages that have been touched count as resident.
    assert [result.mean() for result in results] == list(range(12))
    part = results[3][5:7]
    held = resident_bytes()
    del results
    gc.collect()
    wait_until(lambda: resident_bytes() < held - (6 << 23), "the memory of dead results to be given back")
    assert part.tolist() == [3.0, 3.0]
    rustdask.shutdown()
    assert part.tolist() == [3.0, 3.0], "results outlive the workers"
    del part
    gc.collect()
    wait_until(lambda: segments()[0] == 0, "the last mapping to go")


@own
def test_segments_do_not_pile_up(fresh):
    counts = []
    for _ in range(6):
        arrays_ = [np.full(200_000, float(i)) for i in range(8)]
        results = run([delayed(tasks.echo)(array) for array in arrays_])
        assert [result[0] for result in results] == list(range(8))
        counts.append(sum(segments()))
    # The first call fills the pool; the later ones take from it. Results of the one before are still held.
    assert max(counts[2:]) <= 3 * max(counts[:2])


@own
def test_thousands_of_live_results_need_no_thousands_of_descriptors(fresh):
    """Containers allow 1024 open files, and a segment each would be too many."""
    script = run_script(
        """
        import resource, tasks
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        with config():
            results = Parallel()(delayed(tasks.full)(20_000, i) for i in range(1500))
            again = Parallel()(delayed(tasks.first_element)(result) for result in results)
        print(again == list(range(1500)))
        """
    )
    assert_quiet_success(script, "True")


@own
@pytest.mark.parametrize("size", [20_000, 150_000])
def test_an_argument_of_a_thousand_arrays_needs_no_thousand_descriptors(fresh, size):
    script = run_script(
        """
        import resource, numpy as np, tasks
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        arrays = [np.full(int(sys.argv[1]), float(i)) for i in range(1000)]
        with config():
            print(Parallel()(delayed(tasks.sum_of_firsts)(arrays) for _ in range(3)))
        """,
        size,
    )
    assert_quiet_success(script, str([499500.0] * 3))


def resident_bytes():
    """Shared memory and all else that this process has mapped and touched."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Memory that is used again


@own
def test_an_array_that_is_changed_between_calls_takes_the_same_memory(fresh):
    array = np.zeros(1 << 20)
    for value in range(6):
        array[:] = value
        assert run([delayed(tasks.first_element)(array) for _ in range(4)]) == [value] * 4
        assert rustdask.info()["segment_bytes"] == array.nbytes


@own
@pytest.mark.parametrize("size", [20_000, 200_000], ids=["small", "large"])
def test_what_a_worker_keeps_of_an_argument_stays_as_it_was(fresh, size):
    array = np.zeros(size)
    name = f"kept-{size}"
    for value in range(5):
        array[:] = value
        run([delayed(tasks.keep_argument)(name, array) for _ in range(4)], batch_size=1)
        array[:] = -1.0
        assert run([delayed(tasks.first_element)(array) for _ in range(4)], batch_size=1) == [-1.0] * 4
    for firsts in run([delayed(tasks.kept_first_elements)(name, i) for i in range(8)], batch_size=1):
        assert firsts == sorted(firsts) and set(firsts) <= {0.0, 1.0, 2.0, 3.0, 4.0}, firsts


@own
def test_results_are_as_they_were_though_a_forked_child_has_ended(fresh):
    """A child maps them too; what it lets go of is not its to give back."""
    script = run_script(
        """
        import tasks, warnings
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        with config():
            results = Parallel()(delayed(tasks.full)(200_000, 1.0) for _ in range(4))
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                os.read(read, 1)
                os._exit(sum(float(r.min() + r.max()) for r in results) != 8.0)
            others = [Parallel()(delayed(tasks.full)(200_000, 2.0) for _ in range(8))]
            assert {float(r.mean()) for r in results} == {1.0}
            del results
            others += [Parallel()(delayed(tasks.full)(200_000, 3.0) for _ in range(8))]
            os.write(write, b"x")
            print(os.waitpid(child, 0)[1])
        """
    )
    assert_quiet_success(script, "0")


@own
def test_threads_may_call_with_the_same_arrays_at_the_same_time(fresh):
    arrays = [np.full(20_000, float(i)) for i in range(40)]

    def calls():
        for i in range(30):
            own_arrays = arrays[: 1 + (7 * i) % 40]
            for array in own_arrays[::3]:
                array[1] = i  # the first element stays
            expected = [float(sum(range(len(own_arrays))))] * 2
            assert run([delayed(tasks.sum_of_firsts)(own_arrays)] * 2, batch_size=1) == expected

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(calls) for _ in range(6)]:
            future.result(timeout=100)


@own
@pytest.mark.parametrize("layout", ["rows", "columns", "view"])
def test_tasks_share_what_they_write_whatever_the_layout(fresh, layout):
    array = np.zeros((600, 600), order="F" if layout == "columns" else "C")
    for _ in range(5):
        calls = (delayed(tasks.mark)(array[:] if layout == "view" else array, i) for i in range(12))
        sums = run(calls, config={"mmap_mode": "r+"}, batch_size=1)
        # Two run at a time; whichever ends last sees all.
        assert max(sums) == 12, sums


@own
def test_an_array_with_gaps_is_copied_once_per_call(fresh):
    data = np.random.default_rng(0).random((20_000, 13))
    part = data[:, :-1]
    assert run([delayed(tasks.first_element)(part[0])], batch_size=1) == [part[0, 0]]
    results = run([delayed(tasks.corner)(part) for _ in range(16)], batch_size=1)
    assert results == [part[0, 0]] * 16
    assert rustdask.explain().count("bytes_placed") == part.nbytes


@own
def test_results_are_as_they_were_though_workers_use_memory_again(fresh):
    kept = []
    for call in range(5):
        results = run([delayed(tasks.full)(200_000, 10 * call + i) for i in range(6)])
        kept.append((call, results[::2]))
    for call, results in kept:
        assert [float(result.min()) for result in results] == [10.0 * call + i for i in (0, 2, 4)]
        assert [float(result.max()) for result in results] == [10.0 * call + i for i in (0, 2, 4)]


@own
def test_large_arguments_of_a_long_stream_are_not_kept():
    """Each is 8 MB and goes as the consumer takes its result."""
    script = run_script(
        """
        import resource
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        with config():
            Parallel()(delayed(len)([0]) for _ in range(4))
            before = peak()
            stream = ([0.0] * 1_000_000 for _ in range(60))
            parallel = Parallel(return_as="generator", batch_size=1)
            assert sum(parallel(delayed(len)(values) for values in stream)) == 60_000_000
        print(peak() - before < 60 * 8_000_000)
        """
    )
    assert_quiet_success(script, "True")


# Identity


@own
def test_objects_that_a_function_knows_and_gets_are_the_same_objects(path):
    """As under loky, which pickles function and arguments together."""
    script = run_script(
        """
        MISSING, STATE = object(), 0
        def is_missing(x):
            return x is MISSING
        def set_and_call(callback):
            global STATE
            STATE = 5
            return callback()
        def state():
            return STATE
        class Registry:
            pass
        REGISTRY = Registry()
        def enter(registry, value):
            registry.value = value
            return REGISTRY.value
        def closure(local):
            return lambda x: x is local
        local = object()
        with config():
            parallel = Parallel()
            print(parallel(delayed(is_missing)(x) for x in [1, MISSING, 3]))
            print(parallel(delayed(set_and_call)(state) for _ in range(2)), STATE)
            print(parallel(delayed(enter)(REGISTRY, i) for i in range(3)))
            print(parallel(delayed(closure(local))(x) for x in [local, object()]))
        """
    )
    expected = ("[False, True, False]", "[5, 5] 0", "[0, 1, 2]", "[True, False]")
    assert_quiet_success(script, *expected)


# Common objects


@own
@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_a_common_object_is_pickled_once_per_call(path, batch_size):
    shared = {"counter": tasks.CountsTravels(path()), **{f"key{i}": i for i in range(50_000)}}
    for call in (1, 2):
        shared["call"] = call
        results = run([delayed(tasks.length_and_item)(shared, "call") for _ in range(40)], batch_size=batch_size)
        assert results == [(50_002, call)] * 40
    travels = tasks.lines_of(path())
    assert travels.count("pickled") == 2
    assert travels.count("unpickled") <= 4, "once per worker and call"


@own
def test_a_function_is_pickled_once_per_call(path):
    counter = tasks.CountsTravels(path())

    def closure(i):
        return i if isinstance(counter, object) else None

    assert run(delayed(closure)(i) for i in range(40)) == list(range(40))
    assert tasks.lines_of(path()).count("pickled") == 1


@own
def test_a_common_object_changed_between_calls_is_seen():
    shared = {f"key{i}": i for i in range(50_000)}
    for value in range(3):
        shared["key7"] = -value
        assert run([delayed(tasks.length_and_item)(shared, "key7")] * 8) == [(50_000, -value)] * 8


# Small shared memory

UNSHARED = ["unshare", "--mount", "sh", "-c"]
SMALL = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$0" "$@"'


def may_mount():
    try:
        probe = subprocess.run([*UNSHARED, SMALL, "true"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if probe.returncode == 0 else probe.stderr.strip()


@own
def test_64_mb_of_shared_memory_carry_400_mb_both_ways():
    if (reason := may_mount()) is not None:
        pytest.skip(f"may not mount a small /dev/shm here: {reason}")
    script = run_script(
        """
        import numpy as np, os, tasks
        print(os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize >> 20)
        big = np.ones(50_000_000)
        with config():
            print(Parallel()(delayed(np.sum)(big) for _ in range(3)))
            results = Parallel()(delayed(tasks.full)(50_000_000, i) for i in range(2))
        print([result[-1] for result in results])
        print(os.listdir("/dev/shm"))
        """,
        prefix=[*UNSHARED, SMALL],
        timeout=100,
    )
    assert_quiet_success(script, "64", str([np.float64(5e7)] * 3), str([np.float64(i) for i in range(2)]), "[]")


@own
def test_nothing_in_dev_shm_while_it_runs(path):
    script = """
    import numpy as np, tasks
    big = np.ones(1 << 20)
    with config():
        Parallel()(delayed(np.sum)(big) for _ in range(4))
        Parallel()(delayed(tasks.note_and_wait)(sys.argv[1], sys.argv[2], big) for _ in range(2))
    """
    before = set(os.listdir("/dev/shm"))
    with start_script(script, path("started"), path("go")) as script:
        wait_until(lambda: len(tasks.lines_of(path("started"))) == 2, "both tasks to run")
        new = set(os.listdir("/dev/shm")) - before
        # Other programs use it too.
        assert [name for name in new if f"_{script.pid}_" in name or "rustdask" in name] == []
        tasks.note(path("go"))
        script.finish()
        assert (script.returncode, script.stderr) == (0, "")
        assert_ends_clean(script, 3.0)


# Objects of other libraries


def test_pandas_objects():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(30_000.0), "b": ["x", "y", "z"] * 10_000})
    frame["when"] = pandas.Timestamp("2026-01-01") + pandas.to_timedelta(np.arange(30_000), unit="s")
    for result in run([delayed(tasks.echo)(frame) for _ in range(3)]):
        pandas.testing.assert_frame_equal(result, frame)
    means = run([delayed(mean_of_column)(frame, "a") for _ in range(3)])
    assert means == [frame["a"].mean()] * 3
    assert run([delayed(add_column)(frame, i) for i in range(3)]) == [4, 4, 4]
    assert list(frame.columns) == ["a", "b", "when"]


def mean_of_column(frame, name):
    return float(frame[name].mean())


def add_column(frame, value):
    frame["new"] = value
    return frame.shape[1]


def test_sparse_matrices():
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.random(2000, 2000, density=0.02, format="csr", random_state=0)
    for result in run([delayed(tasks.echo)(matrix), delayed(tasks.echo)(matrix)]):
        assert (result != matrix).nnz == 0


# scikit-learn resets the process-wide warnings filters in its tasks, and warns when a nested call sees that.
@pytest.mark.filterwarnings("ignore:.*sklearn.utils.parallel.delayed")
@pytest.mark.parametrize("mode", ["processes", "threads"])
def test_scikit_learn_gives_the_same_scores(mode):
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    X, y = load_breast_cancer(return_X_y=True)
    forest = RandomForestClassifier(n_estimators=12, random_state=0)
    search = GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [1, 2, 4]}, cv=3)
    expected = cross_val_score(forest, X, y, cv=3), search.fit(X, y).cv_results_["mean_test_score"]
    with configured(mode):
        np.testing.assert_array_equal(cross_val_score(forest, X, y, cv=3), expected[0])
        np.testing.assert_array_equal(search.fit(X, y).cv_results_["mean_test_score"], expected[1])
        np.testing.assert_array_equal(forest.fit(X, y).predict(X), forest.set_params(n_jobs=1).predict(X))


@own
def test_a_worker_keeps_no_more_and_more_descriptors(fresh):
    """A pool of warm segments may fill up, and then stays as it is."""

    def rounds(n):
        for _ in range(n):
            run([delayed(tasks.echo)(np.full(100_000, float(i))) for i in range(20)], batch_size=1)
        return max(run([delayed(open_descriptors)() for _ in range(8)], batch_size=1))

    few = rounds(5)
    assert rounds(30) <= few + 20


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))
