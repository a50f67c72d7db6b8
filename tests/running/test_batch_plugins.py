# SPDX-License-Identifier: Apache-2.0
"""Nipype's plugins for batch systems: the guards, and (slow) the plugins on a real SLURM."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from nipype.pipeline.engine import Workflow

from bmex_bids.common.failure import Failure
from bmex_bids.exceptions import UsageError
from bmex_bids.running import batch_plugins, engine, execution
from bmex_bids.running.batch_plugins import BatchGuard, guarded, prepare, slurm_size

JOBS = Path(__file__).parents[1] / "helpers" / "in_jobs"
needs_slurm = pytest.mark.skipif(
    shutil.which("sbatch") is None, reason="there is no sbatch, so no SLURM, on this machine"
)


@pytest.fixture(autouse=True)
def nipype_settings():
    """Nipype's settings are global: leave them as they were."""
    before = {key: dict(part) for key, part in engine.nipype_config._sections.items()}
    yield
    engine.nipype_config.update_config(before)


class Fake:
    """Of a plugin, what a guard calls."""

    def __init__(self, *, pending=lambda: False, result=None):
        self.pending, self.result, self._pending = pending, result, {7: "/w/x_wf/node"}

    def _is_pending(self, taskid):
        return self.pending()

    def _get_result(self, taskid):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def _clean_queue(self, jobid, graph, result=None):
        return result


class Guarded(BatchGuard, Fake):
    pass


def away():
    raise RuntimeError("slurm_load_jobs error: Unable to contact slurm controller")


def test_a_queue_that_does_not_answer_is_no_dead_job(monkeypatch):
    plugin = Guarded(pending=away)
    assert plugin._is_pending(7)
    monkeypatch.setattr(batch_plugins, "PATIENCE_S", -1.0)
    with pytest.raises(RuntimeError, match="Unable to contact"):
        plugin._is_pending(7)


def test_patience_begins_anew_when_the_queue_has_answered():
    plugin = Guarded(pending=away)
    plugin._is_pending(7)
    plugin.pending = lambda: False
    assert not plugin._is_pending(7)
    assert plugin._silent_since is None


def test_a_killed_job_is_a_failure_that_nipype_can_report():
    """Its traceback is a list: as text, Nipype 1.11 adds a list to it and ends in a TypeError."""
    plugin = Guarded(result={"result": None, "traceback": "OSError: Job id (7) finished"})
    result = plugin._get_result(7)
    assert isinstance(result["traceback"], list)
    assert "cancelled, killed" in result["failure"].message


def test_an_error_of_the_plugin_is_one_nodes_failure():
    result = Guarded(result=OSError("disk"))._get_result(7)
    assert str(result["failure"]) == "OSError: disk"


def test_a_job_without_a_result_on_a_full_disk_is_the_disks_fault(monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(batch_plugins.tempfile, "TemporaryFile", full)
    plugin = Guarded(result={"result": None, "traceback": "OSError: Job id (7) finished"})
    assert plugin._get_result(7)["failure"].exit_code == 5


def test_what_a_jobs_interface_noted_is_its_failure():
    noted = Failure("", "no brain", 1)
    plugin = Guarded()
    plugin.procs = [SimpleNamespace()]
    result = {
        "result": SimpleNamespace(runtime=SimpleNamespace(failure=noted)),
        "traceback": ["Traceback\n", "NodeExecutionError: step\n"],
    }
    plugin._clean_queue(0, None, result=result)
    assert plugin.procs[0].failure is noted
    plugin._clean_queue(0, None, result={"result": None, "traceback": ["x\n", "KeyError: 'y'\n"]})
    assert str(plugin.procs[0].failure) == "KeyError: 'y'"


def test_a_result_and_a_running_job_pass_as_they_are():
    good = {"result": 1, "traceback": None}
    assert Guarded(result=good)._get_result(7) is good
    assert Guarded(result=None)._get_result(7) is None


def test_an_unknown_plugin_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="SLURMGraph"):
        guarded("SLURMM", {})


@pytest.mark.parametrize(
    ("name", "batch"), [("SLURM", True), ("SLURMGraph", True), ("PBS", True), ("Linear", False)]
)
def test_what_a_batch_system_is(name, batch):
    assert batch_plugins.is_batch(name) == batch


@pytest.mark.parametrize("folder", ["a b", "a$(x)", "a;b", "a%j", "a'b"])
def test_a_path_that_a_shell_would_change_is_refused(tmp_path, folder):
    engine.configure(crash_dir=tmp_path)
    with pytest.raises(UsageError, match="plain letters"):
        prepare(Workflow(name="w", base_dir=str(tmp_path / folder)), "SLURM", {})


def test_logname_is_set(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_plugins.getpass, "getuser", lambda: "someone")
    monkeypatch.setattr(batch_plugins.os, "environ", environment := {})
    engine.configure(crash_dir=tmp_path)
    prepare(Workflow(name="w", base_dir=str(tmp_path)), "SLURM", {})
    assert environment == {"LOGNAME": "someone"}


def test_each_job_asks_for_its_nodes_size(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(JOBS)
    from job_steps import chain

    engine.configure(crash_dir=tmp_path)
    workflow = Workflow(name="w", base_dir=str(tmp_path))
    workflow.add_nodes([chain("a_wf")])
    prepare(workflow, "SLURM", {"sbatch_args": "--partition=x"})
    node = workflow.get_node("a_wf.conform")
    assert node.plugin_args == {"sbatch_args": " --cpus-per-task=1 --mem=1690M"}
    assert slurm_size(3, 2, "--mem-per-cpu=2G") == "--cpus-per-task=3"


def test_a_node_is_done_when_its_mark_says_so(tmp_path):
    node = SimpleNamespace(
        output_dir=lambda: str(tmp_path), interface=SimpleNamespace(always_run=True)
    )
    assert not batch_plugins.has_result(node, 0)
    mark = tmp_path / "_0xabc.json"
    mark.touch()
    assert batch_plugins.has_result(node, 0)
    os.utime(mark, (1000, 1000))
    assert not batch_plugins.has_result(node, 5000)  # of an earlier run
    node.interface.always_run = False
    assert batch_plugins.has_result(node, 5000)  # which did the same
    (tmp_path / "_0xdef_unfinished.json").touch()
    assert not batch_plugins.has_result(node, 0)


@needs_slurm
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("plugin", ["MultiProc", "SLURM", "SLURMGraph"])
def test_every_plugin_loses_only_what_ends_badly(plugin, tmp_path, monkeypatch):
    """One that raises, one that is killed, one that is cancelled, one that is well."""
    monkeypatch.syspath_prepend(JOBS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(JOBS), str(JOBS.parents[2])]))
    monkeypatch.delenv("LOGNAME", raising=False)
    from job_steps import chain

    engine.configure(crash_dir=tmp_path / "crash")
    engine.nipype_config.set("execution", "job_finished_timeout", "4")
    monkeypatch.setattr(batch_plugins, "POLL_S", 1.0)
    acts = ["", "raise", "die"] + ["cancel"] * (plugin != "MultiProc")
    whole = Workflow(name="all", base_dir=str(tmp_path / "work"))
    whole.add_nodes([chain(f"{act or 'well'}_wf", act) for act in acts])
    events = []
    arguments = {"n_procs": 2} if plugin == "MultiProc" else {"sbatch_args": "--mem=500M"}
    execution.run(whole, listener=events.append, plugin=(plugin, arguments))

    failed = {
        event.workflow: str(event.failure) for event in events if event.status == "exception"
    }
    # of a graph, the steps behind a failed one are told of, too; the first is what counts
    first = {event.workflow: str(event.failure) for event in reversed(events) if event.workflow in failed
             and event.status == "exception"}  # fmt: skip
    assert set(failed) == {f"{act}_wf" for act in acts if act}
    assert first["raise_wf"] == "ValueError: a walnut is no brain"
    for name in set(failed) - {"raise_wf"}:
        assert "killed" in first[name]
    done = tmp_path / "work" / "all" / "well_wf" / "find_brain"
    assert list(done.glob("result_*.pklz"))
