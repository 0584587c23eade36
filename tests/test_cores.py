"""The core budget is the least of all limits and says which; memory sizes are read or refused."""

from __future__ import annotations

import math
import os

import pytest

from rustdask import _cores
from rustdask._cores import CoreBudget, core_budget, parse_memory

MACHINE = 64


@pytest.fixture(autouse=True)
def big_machine(monkeypatch):
    """64 cores, all allowed, no option: the limits under test decide."""
    monkeypatch.setattr(os, "cpu_count", lambda: MACHINE)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(MACHINE)), raising=False)
    monkeypatch.setattr(_cores.sys, "_xoptions", {})


class Host:
    """A made-up root directory."""

    def __init__(self, root):
        self.root = root
        self.mounts = []
        self.groups = []

    def write(self, path, text):
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def mount(self, kind, point, group="/", options="rw"):
        self.mounts.append(f"31 23 0:28 {group} {point} rw shared:9 - {kind} {kind} {options}")
        self.write("proc/self/mountinfo", "\n".join(self.mounts))

    def join(self, line):
        self.groups.append(line)
        self.write("proc/self/cgroup", "\n".join(self.groups))

    def budget(self, **environ):
        return core_budget(environ, self.root)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_without_limits_it_is_the_machine(host):
    assert host.budget() == CoreBudget(MACHINE, "CPUs of this machine")


def test_the_real_machine_has_a_core():
    assert core_budget({}).count >= 1


def test_affinity(host, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert host.budget() == CoreBudget(2, "CPU affinity")


def test_without_affinity_calls_it_is_the_machine(host, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert host.budget().count == MACHINE


def test_cgroup_v2_quota_is_rounded_up(host):
    host.mount("cgroup2", "/sys/fs/cgroup")
    host.join("0::/app")
    host.write("sys/fs/cgroup/app/cpu.max", "150000 100000")
    assert host.budget() == CoreBudget(2, "cgroup quota 1.5 cores")


def test_cgroup_v2_quota_of_a_group_above(host):
    host.mount("cgroup2", "/sys/fs/cgroup")
    host.join("0::/user.slice/job/step")
    host.write("sys/fs/cgroup/user.slice/job/step/cpu.max", "max 100000")
    host.write("sys/fs/cgroup/user.slice/cpu.max", "300000 100000")
    assert host.budget() == CoreBudget(3, "cgroup quota 3 cores")


def test_the_tightest_group_decides(host):
    host.mount("cgroup2", "/sys/fs/cgroup")
    host.join("0::/a/b")
    host.write("sys/fs/cgroup/a/b/cpu.max", "800000 100000")
    host.write("sys/fs/cgroup/a/cpu.max", "50000 100000")
    assert host.budget() == CoreBudget(1, "cgroup quota 0.5 cores")


def test_cgroup_v2_in_a_container_whose_path_is_that_of_the_host(host):
    host.mount("cgroup2", "/sys/fs/cgroup")
    host.join("0::/../../docker/abc")
    host.write("sys/fs/cgroup/cpu.max", "400000 100000")
    assert host.budget().count == 4


def test_cgroup_v1_quota(host):
    host.mount("cgroup", "/sys/fs/cgroup/cpu,cpuacct", options="rw,cpu,cpuacct")
    host.mount("cgroup", "/sys/fs/cgroup/memory", options="rw,memory")
    host.join("4:memory:/app")
    host.join("1:cpu,cpuacct:/app")
    host.write("sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us", "250000")
    host.write("sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us", "100000")
    assert host.budget() == CoreBudget(3, "cgroup quota 2.5 cores")


def test_cgroup_v1_without_a_quota(host):
    host.mount("cgroup", "/sys/fs/cgroup/cpu", options="rw,cpu")
    host.join("1:cpu:/")
    host.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    host.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert host.budget().count == MACHINE


def test_cgroup_v1_mounted_from_a_group(host):
    host.mount("cgroup", "/sys/fs/cgroup/cpu", group="/docker/abc", options="rw,cpu")
    host.join("1:cpu:/docker/abc")
    host.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000")
    host.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert host.budget().count == 2


def test_mount_points_with_spaces(host):
    host.mount("cgroup2", r"/my\040groups")
    host.join("0::/")
    host.write("my groups/cpu.max", "200000 100000")
    assert host.budget().count == 2


@pytest.mark.parametrize("text", ["", "max", "abc 100000", "100000 0", "-5 100000", "1 2 3"])
def test_quota_files_that_make_no_sense_are_no_limit(host, text):
    host.mount("cgroup2", "/sys/fs/cgroup")
    host.join("0::/")
    host.write("sys/fs/cgroup/cpu.max", text)
    assert host.budget().count == MACHINE


@pytest.mark.parametrize("name", ["SLURM_CPUS_PER_TASK", "PYTHON_CPU_COUNT", "LOKY_MAX_CPU_COUNT", "RUSTDASK_CORES"])
def test_variables(host, name):
    assert host.budget(**{name: "7"}) == CoreBudget(7, name)
    assert host.budget(**{name: "1000"}).count == MACHINE
    assert host.budget(**{name: " "}).count == MACHINE


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "²"])
def test_a_wrong_variable_is_named_with_its_value(host, value):
    with pytest.raises(ValueError, match="RUSTDASK_CORES='?") as error:
        host.budget(RUSTDASK_CORES=value)
    assert value in str(error.value)


def test_the_least_variable_wins(host):
    assert host.budget(SLURM_CPUS_PER_TASK="6", RUSTDASK_CORES="4") == CoreBudget(4, "RUSTDASK_CORES")


def test_the_interpreter_option_wins_over_its_variable(host, monkeypatch):
    monkeypatch.setattr(_cores.sys, "_xoptions", {"cpu_count": "5"})
    assert host.budget(PYTHON_CPU_COUNT="3") == CoreBudget(5, "-X cpu_count")
    monkeypatch.setattr(_cores.sys, "_xoptions", {"cpu_count": "default"})
    assert host.budget(PYTHON_CPU_COUNT="3").count == MACHINE
    monkeypatch.setattr(_cores.sys, "_xoptions", {})
    assert host.budget(PYTHON_CPU_COUNT="default").count == MACHINE


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (None, None),
        (1_000_000_000, 10**9),
        (1e9, 10**9),
        ("2GB", 2 * 10**9),
        ("2 gb", 2 * 10**9),
        ("512MiB", 512 * 2**20),
        ("512Mi", 512 * 2**20),
        ("1.5G", 1_500_000_000),
        ("1e9", 10**9),
        (" 64 kB ", 64_000),
        ("100B", 100),
        ("1TiB", 2**40),
        (".5GB", 5 * 10**8),
    ],
)
def test_memory_sizes(value, size):
    assert parse_memory(value) == size


@pytest.mark.parametrize(
    "value", ["", "GB", "two GB", "1XB", "-1GB", "0", 0, -5, True, math.inf, math.nan, "1iB", [], object()]
)
def test_what_is_not_a_memory_size(value):
    with pytest.raises(ValueError, match="memory size"):
        parse_memory(value)
