"""A cluster on loopback: commands, tokens and TLS, tasks, data between nodes, and nodes that are lost."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys

import helpers
import numpy as np
import pytest
import tasks
from helpers import PATIENCE_S, wait_for_lines

pytestmark = pytest.mark.skipif(helpers.BACKEND != "rustdask", reason="of rustdask alone")
from rustdask import Client, LocalCluster, Security, WorkerCrashed, as_completed  # noqa: E402

RUSTDASK = [sys.executable, "-m", "rustdask"]


@pytest.fixture
def cluster():
    with LocalCluster(n_workers=2) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with cluster.get_client() as client:
        client.wait_for_workers(2, timeout=PATIENCE_S)
        yield client


def test_calls_graphs_and_errors(client):
    assert client.submit(lambda x: x + 1, 1).result(PATIENCE_S) == 2
    squares = client.map(lambda x: x * x, range(50))
    assert client.submit(sum, squares).result(PATIENCE_S) == sum(x * x for x in range(50))
    assert sorted(f.result() for f in as_completed(squares)) == [x * x for x in range(50)]
    with pytest.raises(ZeroDivisionError):
        client.submit(lambda: 1 / 0).result(PATIENCE_S)
    failed = client.submit(lambda: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        client.submit(lambda x: x, failed).result(PATIENCE_S)


def test_arrays_go_to_nodes_between_them_and_back(client):
    array = np.arange(2_000_000.0)
    workers = list(client.scheduler_info()["workers"])
    made = client.submit(lambda a: a + 1, array, workers=workers[0])
    moved = client.submit(lambda a: a.sum(), made, workers=workers[1])
    assert moved.result(PATIENCE_S) == (array + 1).sum()
    np.testing.assert_array_equal(made.result(PATIENCE_S), array + 1)
    scattered = client.scatter(array)
    sums = [client.submit(lambda a, by: a.sum() * by, scattered, by) for by in range(6)]
    assert client.gather(sums) == [array.sum() * by for by in range(6)]


def test_graphs_of_dask(client):
    da = pytest.importorskip("dask.array")
    x = da.random.default_rng(0).random((400, 400), chunks=100)
    assert (x @ x.T).sum().compute(scheduler=client.get) == pytest.approx((x @ x.T).sum().compute(scheduler="sync"))


def test_what_a_lost_node_had_is_made_again(cluster, client, path):
    notes = path()
    made = client.map(lambda i: tasks.note_and_return(notes, np.full(100_000, i)), range(4))
    assert [f.exception(PATIENCE_S) for f in made] == [None] * 4
    nodes = client.scheduler_info()["nodes"]
    os.kill(nodes[0]["pid"], signal.SIGKILL)
    sums = client.map(lambda a: float(a.sum()), made)
    assert [f.result(PATIENCE_S) for f in sums] == [100_000.0 * i for i in range(4)]
    assert [float(f.result(PATIENCE_S).sum()) for f in made] == [100_000.0 * i for i in range(4)]
    assert len(tasks.lines_of(notes)) > 4


def test_a_task_that_ends_its_workers_fails_alone(client):
    doomed = client.submit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    others = client.map(lambda x: x + 1, range(20))
    assert client.gather(others) == list(range(1, 21))
    with pytest.raises(WorkerCrashed, match="SIGKILL"):
        doomed.result(PATIENCE_S)


def test_a_running_task_is_ended_by_force(client, path):
    running = client.submit(tasks.hang_from_first_line, path())
    wait_for_lines(path())
    running.cancel(force=True)
    assert running.cancelled()
    assert client.gather(client.map(lambda x: x, range(4))) == list(range(4))


def test_nodes_that_leave_hand_over_what_they_have(cluster, client):
    made = client.map(lambda i: np.full(100_000, i), range(4))
    assert [f.exception(PATIENCE_S) for f in made] == [None] * 4
    cluster.scale(1)
    helpers.wait_until(lambda: len(client.scheduler_info()["nodes"]) == 1, "a node to leave")
    assert [float(f.result(PATIENCE_S).sum()) for f in made] == [100_000.0 * i for i in range(4)]


def test_tasks_that_submit_tasks_are_told_that_they_cannot(client):
    def submits():
        from rustdask import get_client

        return get_client().submit(abs, -1).result()

    with pytest.raises(Exception, match="cannot submit tasks yet"):
        client.submit(submits).result(PATIENCE_S)
    assert client.submit(abs, -1).result(PATIENCE_S) == 1


def test_what_workers_print_comes_to_the_client(client, capsys):
    client.submit(print, "printed far away").result(PATIENCE_S)
    seen = []

    def printed():
        seen.append(capsys.readouterr().out)
        return "printed far away\n" in "".join(seen)

    helpers.wait_until(printed, "the text")


def test_with_a_client_goes_what_it_had(cluster, client):
    with cluster.get_client(set_as_default=False) as other:
        kept = other.map(lambda i: np.zeros(100_000), range(4))
        other.gather(kept)
        assert client.scheduler_info()["known"] == 4
    helpers.wait_until(lambda: client.scheduler_info()["known"] == 0, "the tasks to go")


# Who belongs to it


def test_strangers_are_refused(cluster):
    for security in (Security(), Security(token="not the right one at all")):
        with pytest.raises(ConnectionError, match="token"):
            Client(cluster.scheduler_address, security=security, timeout=PATIENCE_S)
    assert "token=..." in repr(cluster.security)
    assert cluster.security.token not in repr(cluster.security)


def test_tls(tmp_path):
    subprocess.run([*RUSTDASK, "tls", str(tmp_path), "--host", "127.0.0.1"], check=True, capture_output=True)
    cert, key, ca = (str(tmp_path / name) for name in ("cert.pem", "key.pem", "ca.pem"))
    security = Security(tls_cert=cert, tls_key=key, tls_ca=ca)
    with LocalCluster(n_workers=1, security=security) as cluster, cluster.get_client() as client:
        assert cluster.scheduler_address.startswith("tls://")
        assert client.submit(lambda a: a.sum(), np.ones(200_000)).result(PATIENCE_S) == 200_000
        with pytest.raises(ConnectionError):
            Client(cluster.scheduler_address.replace("tls://", "tcp://"), timeout=PATIENCE_S)


def test_no_scheduler_is_a_clear_error():
    with pytest.raises(ConnectionError, match="cannot reach tcp://127.0.0.1:9"):
        Client("tcp://127.0.0.1:9", timeout=1)
    with pytest.raises(ValueError, match="address"):
        Client("not an address", timeout=1)


# Commands


def test_a_scheduler_file_says_where_and_who(tmp_path):
    path = tmp_path / "scheduler.json"
    with running("scheduler", "--port", "0", "--scheduler-file", str(path)) as scheduler:
        line = scheduler.stdout.readline()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        found = json.loads(path.read_text())
        assert line == f"rustdask scheduler at {found['address']}\n"
        with running("worker", "--scheduler-file", str(path), "--nworkers", "1") as worker:
            assert worker.stdout.readline().startswith("rustdask worker ")
            with Client(scheduler_file=path, timeout=PATIENCE_S) as client:
                assert client.submit(sum, [1, 2]).result(PATIENCE_S) == 3
            told = subprocess.run(
                [*RUSTDASK, "info", "--scheduler-file", str(path), "--json"], check=True, capture_output=True, text=True
            )
            assert [len(node["workers"]) for node in json.loads(told.stdout)["nodes"]] == [1]
            worker.terminate()
            assert (worker.wait(PATIENCE_S), worker.stderr.read()) == (0, "")
        scheduler.terminate()
        assert (scheduler.wait(PATIENCE_S), scheduler.stderr.read()) == (0, "")
    assert not path.exists()


def test_others_cannot_reach_a_scheduler_without_a_secret():
    refused = subprocess.run(
        [*RUSTDASK, "scheduler", "--host", "0.0.0.0", "--port", "0"], capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "token" in refused.stderr


def running(*arguments):
    return _Running([*RUSTDASK, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class _Running(subprocess.Popen):
    """A command that is ended at the end, if it has not ended by itself."""

    def __exit__(self, *exc_info):
        self.kill()
        super().__exit__(*exc_info)
