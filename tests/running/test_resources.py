# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bmex_bids.config import Resources
from bmex_bids.exceptions import UsageError
from bmex_bids.running import resources


@pytest.fixture
def system(tmp_path, monkeypatch):
    """An empty /proc and /sys/fs/cgroup, and a machine of 16 processors."""
    monkeypatch.setattr(resources, "_affinity", lambda: 16)

    def write(path: str, text: str) -> None:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")

    write("proc/self/cgroup", "0::/")
    folders = {"cgroup": tmp_path / "cgroup", "proc": tmp_path / "proc"}
    return write, folders


def test_without_limits_all_processors(system):
    assert resources.available_cpus({}, **system[1]) == 16


def test_the_quota_of_a_container_in_cgroup_2(system):
    write, folders = system
    write("cgroup/cpu.max", "250000 100000")
    assert resources.cpu_quota(**folders) == 2.5
    assert resources.available_cpus({}, **folders) == 3


def test_no_quota_in_cgroup_2(system):
    write, folders = system
    write("cgroup/cpu.max", "max 100000")
    assert resources.available_cpus({}, **folders) == 16


def test_the_tightest_quota_of_nested_groups_counts(system):
    write, folders = system
    write("proc/self/cgroup", "0::/slice/job")
    write("cgroup/slice/cpu.max", "200000 100000")
    write("cgroup/slice/job/cpu.max", "400000 100000")
    assert resources.available_cpus({}, **folders) == 2


def test_the_quota_in_cgroup_1(system):
    write, folders = system
    write("proc/self/cgroup", "4:memory:/job\n3:cpu,cpuacct:/job")
    write("cgroup/cpu/job/cpu.cfs_quota_us", "400000")
    write("cgroup/cpu/job/cpu.cfs_period_us", "100000")
    assert resources.available_cpus({}, **folders) == 4
    write("cgroup/cpu/job/cpu.cfs_quota_us", "-1")
    assert resources.available_cpus({}, **folders) == 16


def test_what_slurm_gave(system):
    environ = {"SLURM_CPUS_PER_TASK": "6", "SLURM_CPUS_ON_NODE": "12"}
    assert resources.available_cpus(environ, **system[1]) == 6
    assert resources.available_cpus({"SLURM_CPUS_ON_NODE": "12"}, **system[1]) == 12


def test_at_least_one_processor(system):
    write, folders = system
    write("cgroup/cpu.max", "1000 100000")
    assert resources.available_cpus({}, **folders) == 1


def test_memory_of_a_container_and_of_slurm(system):
    write, folders = system
    write("cgroup/memory.max", str(2**30))
    assert resources.available_memory_gb({}, **folders) == 1.0
    assert resources.available_memory_gb({"SLURM_MEM_PER_NODE": "512"}, **folders) == 0.5
    per_cpu = {"SLURM_MEM_PER_CPU": "256", "SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": "8"}
    assert resources.available_memory_gb(per_cpu, **folders) == 0.5
    assert resources.available_memory_gb({"SLURM_MEM_PER_CPU": "256"}, **folders) == 0.25
    assert resources.available_memory_gb({"SLURM_MEM_PER_NODE": "0"}, **folders) == 1.0


@pytest.mark.parametrize("megabytes", [0.001, 4, 8, 10, 16, 500, 1000])
def test_memory_below_what_any_image_needs_is_refused_with_both_figures(megabytes):
    """``--mem 8``, meant in GB, waited for ever; ``--mem 16`` took hours."""
    with pytest.raises(UsageError) as refusal:
        resources.refuse_too_little(Resources(mem_gb=megabytes / 1024))
    text = str(refusal.value)
    assert "at least 1024 MB" in text
    assert f"got {megabytes:g} MB" in text
    meant = 8 if megabytes in (0.001, 1000) else megabytes
    assert f"the unit is MB: {meant} GB are {meant}G" in text


@pytest.mark.parametrize("mem_gb", [None, 1.0, 16.0, float("inf")])
def test_memory_that_is_enough_is_not_refused(mem_gb):
    resources.refuse_too_little(Resources(mem_gb=mem_gb))


def test_no_more_than_the_machine_has(monkeypatch):
    """100,000 threads ended the process; memory that is not there filled it with images."""
    monkeypatch.setattr(resources, "available_cpus", lambda: 4)
    monkeypatch.setattr(resources, "available_memory_gb", lambda: 32.0)
    said = []
    huge = Resources(nprocs=10**20, omp_nthreads=10**9, mem_gb=float("inf"), gpu_slots=3)
    assert resources.within_machine(huge, said.append) == Resources(
        nprocs=4, omp_nthreads=4, mem_gb=32.0, gpu_slots=3
    )
    assert [line.split(" ")[0] for line in said] == ["--nprocs", "--omp-nthreads", "--mem-mb"]
    assert "may use 4 processors" in said[0]
    said.clear()
    for fits in (Resources(), Resources(nprocs=4, omp_nthreads=4, mem_gb=32.0)):
        assert resources.within_machine(fits, said.append) == fits
    assert said == []
