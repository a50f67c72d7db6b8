# SPDX-License-Identifier: Apache-2.0
"""Failures, priorities and what is heard of them, in one process and in several."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from nipype.interfaces.base import BaseInterfaceInputSpec, TraitedSpec, traits
from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from bmex_bids.exceptions import MaskError
from bmex_bids.interfaces import step as interfaces
from bmex_bids.reports.crashes import read_crash
from bmex_bids.running import engine, events, execution, plugins

DISK_FULL = {"ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT}


class StepInput(BaseInterfaceInputSpec):
    value = traits.Int(0, usedefault=True)
    act = traits.Str("", usedefault=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)


class StepOutput(TraitedSpec):
    value = traits.Int()


class Step(interfaces.Step):
    """Add one, or fail in the way asked for."""

    input_spec = StepInput
    output_spec = StepOutput

    def work(self, folder):
        if self.inputs.act in DISK_FULL:
            raise OSError(DISK_FULL[self.inputs.act], "it is full", f"{folder}/image.nii.gz")
        if self.inputs.act == "raise":
            raise MaskError("expected a brain, got a walnut; look at it")
        if self.inputs.act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.inputs.act.startswith("die once "):
            mark = Path(self.inputs.act.removeprefix("die once "))
            time.sleep(0.5)  # the other image's step has begun
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if self.inputs.act == "wait":
            time.sleep(1.5)
        self._results["value"] = self.inputs.value + 1


def image_wf(name: str, act: str = "", n_procs: int = 1, use_gpu: bool = False) -> Workflow:
    """Three steps one after the other; the second may fail."""
    workflow = Workflow(name=name)
    first = Node(Step(), name="conform")
    second = Node(Step(act=act, use_gpu=use_gpu), name="find_brain", n_procs=n_procs)
    third = Node(Step(), name="last")
    out = Node(IdentityInterface(fields=["value"]), name="outputnode")
    workflow.connect(
        [
            (first, second, [("value", "value")]),
            (second, third, [("value", "value")]),
            (third, out, [("value", "value")]),
        ]
    )
    return workflow


@pytest.fixture
def monitored(tmp_path):
    """Run workflows with the resource monitor; return its table, also of a run that breaks off."""

    def go(*workflows, nprocs=1, stop=False, listener=lambda _: None, plugin=None):
        target = tmp_path / "logs" / "monitor.json"
        engine.configure(
            crash_dir=tmp_path / "crash", stop_on_first_crash=stop, resource_monitor=True
        )
        whole = Workflow(name="all", base_dir=str(tmp_path / "work"))
        whole.add_nodes(list(workflows))
        try:
            with suppress(KeyboardInterrupt):
                execution.run(
                    whole,
                    listener=listener,
                    limits=execution.Limits(nprocs),
                    monitor_file=target,
                    plugin=plugin,
                )
        finally:
            engine.configure(crash_dir=tmp_path / "crash")
        return json.loads(target.read_text())

    return go


def steps_measured(table):
    assert len({len(values) for values in table.values()}) == 1
    assert min(table["rss_GiB"], default=1) > 0.01
    return {name.removeprefix("all.") for name in table["name"]}


@pytest.mark.parametrize(("act", "nprocs"), [("raise", 1), ("raise", 2), ("die", 2)])
def test_the_monitor_writes_what_it_measured_also_when_an_image_fails(monitored, act, nprocs):
    """With several processes it wrote nothing when any image had failed."""
    table = monitored(image_wf("a_wf", act), image_wf("b_wf"), nprocs=nprocs)
    assert steps_measured(table) == {
        *(f"{image}_wf.{step}" for image in "ab" for step in ("conform", "find_brain")),
        "b_wf.last",
    }
    assert set(table["interface"]) == {"Step"}


def test_the_monitor_writes_what_it_measured_with_another_plugin(monitored, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execution.batch_plugins, "RESULT_TIMEOUT_S", 1)
    table = monitored(image_wf("a_wf", "raise"), image_wf("b_wf"), plugin=("Linear", {}))
    assert {"a_wf.find_brain", "b_wf.last"} <= steps_measured(table)


def test_the_monitor_leaves_nothing_in_the_current_folder(monitored, tmp_path, monkeypatch):
    """Nipype's samples went there; where it is read-only, each step failed."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monitored(image_wf("a_wf"))
    assert list((tmp_path / "here").iterdir()) == []
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["all"]


@pytest.mark.parametrize("nprocs", [1, 2])
def test_the_monitor_writes_what_it_measured_when_the_run_stops_at_a_crash(monitored, nprocs):
    table = monitored(image_wf("a_wf", "raise"), nprocs=nprocs, stop=True)
    assert steps_measured(table) == {"a_wf.conform", "a_wf.find_brain"}


@pytest.mark.parametrize("nprocs", [1, 2])
def test_the_monitor_writes_what_it_measured_when_the_run_is_interrupted(monitored, nprocs):
    def interrupt(event):
        if event.node.endswith("find_brain") and event.status == "end":
            raise KeyboardInterrupt

    table = monitored(image_wf("a_wf"), nprocs=nprocs, listener=interrupt)
    assert steps_measured(table) == {"a_wf.conform", "a_wf.find_brain"}


def test_the_monitor_knows_steps_whose_folders_are_removed(monitored, tmp_path):
    """``--drop-workdir`` removes an image's folders as soon as it is done."""

    def drop(event):
        if event.status == "end" and event.node.endswith("last"):
            shutil.rmtree(tmp_path / "work/all/a_wf")

    table = monitored(image_wf("a_wf"), listener=drop)
    assert steps_measured(table) == {"a_wf.conform", "a_wf.find_brain", "a_wf.last"}


@pytest.fixture
def run(tmp_path):
    """Run workflows; return the events and the folder of crash files."""

    def go(*workflows, nprocs=1, stop=False, plugin=None, **limits):
        engine.configure(crash_dir=tmp_path / "crash", stop_on_first_crash=stop)
        whole = Workflow(name="all", base_dir=str(tmp_path / "work"))
        whole.add_nodes(list(workflows))
        events = []
        execution.run(
            whole,
            listener=events.append,
            order=[workflow.name for workflow in workflows],
            limits=execution.Limits(nprocs, **limits),
            plugin=plugin,
        )
        return events, tmp_path / "crash"

    return go


def ended(events):
    return [
        (event.workflow, event.node.split(".")[-1]) for event in events if event.status == "end"
    ]


@pytest.mark.parametrize("nprocs", [1, 2])
def test_a_failing_image_stops_no_other(run, nprocs):
    events, crash_dir = run(
        image_wf("a_wf"), image_wf("b_wf", "raise"), image_wf("c_wf"), nprocs=nprocs
    )
    assert sorted(ended(events)) == [
        ("a_wf", "conform"),
        ("a_wf", "find_brain"),
        ("a_wf", "last"),
        ("b_wf", "conform"),
        ("c_wf", "conform"),
        ("c_wf", "find_brain"),
        ("c_wf", "last"),
    ]
    (failure,) = [event for event in events if event.status == "exception"]
    assert failure.workflow == "b_wf"
    assert failure.step == "preprocess: brain mask"
    assert str(failure.failure) == "expected a brain, got a walnut; look at it"
    (crash,) = crash_dir.glob("crash-*.txt")
    assert "walnut" in crash.read_text()


@pytest.mark.parametrize("nprocs", [1, 2])
def test_an_image_whose_crash_file_cannot_be_written_stops_no_other(run, tmp_path, nprocs):
    """Somebody deletes the output at the very moment: the run ended with an internal error."""
    (tmp_path / "crash").write_text("not a folder")
    events, _ = run(image_wf("a_wf", "raise"), image_wf("b_wf"), nprocs=nprocs)
    assert ("b_wf", "last") in ended(events)
    (failure,) = [event for event in events if event.status == "exception"]
    assert str(failure.failure) == "expected a brain, got a walnut; look at it"


def test_one_image_after_the_other_in_one_process(run):
    events, _ = run(image_wf("a_wf"), image_wf("b_wf"))
    assert [name for name, _ in ended(events)] == ["a_wf"] * 3 + ["b_wf"] * 3


def test_the_first_image_is_not_overtaken_in_several_processes(run):
    """Its second step needs both processors, while others have work for one."""
    events, _ = run(image_wf("a_wf", n_procs=2), image_wf("b_wf"), image_wf("c_wf"), nprocs=2)
    order = ended(events)
    assert order.index(("a_wf", "find_brain")) < order.index(("c_wf", "find_brain"))
    assert len(order) == 9


def test_one_network_at_a_time_on_the_gpu_and_the_processor_works_beside_it(run):
    """The GPU has one place; what needs none is done for the next images meanwhile."""
    events, _ = run(
        *(image_wf(f"{name}_wf", "wait", use_gpu=True) for name in "abc"), nprocs=2, gpu_slots=1
    )
    story = [
        (event.workflow[0], event.node.split(".")[-1], event.status)
        for event in events
        if event.status in ("start", "end")
    ]
    networks = [(name, status) for name, step, status in story if step == "find_brain"]
    assert networks == [(name, status) for name in "abc" for status in ("start", "end")]
    first_ends = story.index(("a", "find_brain", "end"))
    assert story.index(("b", "conform", "end")) < first_ends
    assert story.index(("c", "conform", "end")) < first_ends


@pytest.mark.parametrize("memory_gb", [-1.0, 0.0, 4 / 1024, 0.05, 1e300])
def test_memory_that_cannot_come_is_not_waited_for(run, memory_gb):
    """With 0.01 GiB or less, no step ever began."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("no step has ended in a minute"))
    signal.alarm(60)
    try:
        events, _ = run(image_wf("a_wf"), nprocs=2, memory_gb=memory_gb)
    finally:
        signal.alarm(0)
    assert ("a_wf", "last") in ended(events)


@pytest.mark.parametrize(("gpu_slots", "at_once"), [(0, 1), (1, 1), (2, 2), (10**6, 3)])
def test_each_step_takes_one_place_on_the_gpu_whatever_its_processors(gpu_slots, at_once):
    """Steps of two processors took two places: ``--gpu-slots 2`` was 1.  None at all: for ever."""
    plugin = plugins.PoolPlugin(
        {"n_procs": 8, "n_gpu_procs": gpu_slots, "raise_insufficient": False}
    )
    plugin.procs = [
        Node(Step(use_gpu=True), name=f"network{number}", n_procs=2, mem_gb=0.1)
        for number in range(3)
    ]
    sent = []
    plugin.proc_done = np.zeros(3, bool)
    plugin.proc_pending = np.zeros(3, bool)
    plugin.depidx = plugins._Dependencies(scipy.sparse.lil_matrix((3, 3)))
    plugin._submit_job = lambda node, **_: sent.append(node.name) or len(sent)
    plugin._local_hash_check = lambda *_: False
    plugin._status_callback = None
    for node in plugin.procs:
        node.is_cached = lambda: (False, False)
    plugin._send_procs_to_workers()
    plugin.pool.shutdown()
    assert len(sent) == at_once


def test_a_step_that_kills_its_worker_twice_fails_its_image_and_no_other(run):
    events, _ = run(image_wf("a_wf", "die"), image_wf("b_wf"), image_wf("c_wf", "wait"), nprocs=2)
    (failure,) = [event for event in events if event.status == "exception"]
    assert failure.workflow == "a_wf"
    assert "memory was full" in failure.failure.message
    for workflow in ("b_wf", "c_wf"):
        assert (workflow, "last") in ended(events)


def test_steps_that_were_lost_with_a_worker_are_done_again(run, tmp_path):
    """One worker dies, once, while another image's step is running: both steps are lost."""
    mark = tmp_path / "died"
    events, _ = run(image_wf("a_wf", f"die once {mark}"), image_wf("b_wf", "wait"), nprocs=2)
    assert mark.exists()
    assert [event for event in events if event.status == "exception"] == []
    again = {event.workflow for event in events if event.status == "again"}
    assert "a_wf" in again
    assert ("a_wf", "last") in ended(events)
    assert ("b_wf", "last") in ended(events)
    assert len(ended(events)) == 6  # each step ends once


def test_stopping_at_the_first_crash(run):
    events, _ = run(image_wf("a_wf", "raise"), image_wf("b_wf"), stop=True)
    assert ended(events) == [("a_wf", "conform")]


def test_stopping_at_the_first_crash_in_several_processes(run):
    events, _ = run(image_wf("a_wf", "raise"), image_wf("b_wf", n_procs=2), nprocs=2, stop=True)
    assert [event.workflow for event in events if event.status == "exception"] == ["a_wf"]
    assert ("b_wf", "last") not in ended(events)


def test_a_folder_may_have_a_percent_sign_in_its_path(tmp_path):
    folder = tmp_path / "50% of %j"
    engine.configure(crash_dir=folder)
    assert engine.nipype_config.get("execution", "crashdump_dir") == str(folder)


def test_steps_are_the_nodes_that_work():
    whole = Workflow(name="all")
    part = image_wf("a_wf")
    whole.add_nodes([part])
    assert execution.steps_of(part) == {"all.a_wf.conform", "all.a_wf.find_brain", "all.a_wf.last"}


def test_of_an_error_that_is_text_alone_the_last_line_is_told():
    text = "Traceback\n  File x\nValueError: one\n\nDuring handling\n\tKeyError: 'two'\n"
    assert str(events.last_line(text)) == "KeyError: 'two'"
    assert str(events.last_line("")) == "no reason was given; see the crash file"


@pytest.mark.parametrize("nprocs", [1, 2])
@pytest.mark.parametrize("act", ["ENOSPC", "EDQUOT"])
def test_a_full_disk_in_a_step_keeps_its_class(run, nprocs, act):
    """In the parent it was a line of text; the run ended with code 1 or 3."""
    happened, crash_dir = run(image_wf("a_wf", act), image_wf("b_wf"), nprocs=nprocs)
    (failure,) = [event.failure for event in happened if event.status == "exception"]
    assert failure.kind == "OSError"
    assert failure.exit_code == 5
    assert failure.message.startswith("it is full: ")
    assert failure.message.endswith("; free some space, then run the same command again")
    (crash,) = map(read_crash, crash_dir.glob("crash-*.txt"))
    assert crash.failure == failure
    assert "act = " + act in crash.inputs
    assert crash.traceback.startswith("Traceback")


def test_another_plugin_of_nipypes_keeps_the_class(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execution.batch_plugins, "RESULT_TIMEOUT_S", 1)
    happened, _ = run(image_wf("a_wf", "ENOSPC"), plugin=("Linear", {}))
    failures = [event.failure for event in happened if event.status == "exception"]
    assert [failure.exit_code for failure in failures] == [5]


class Unreadable(Step):
    """Fails, and its result cannot be had either, as on a disk that is full."""

    def work(self, folder):
        raise OSError(28, "No space left on device")


def test_the_first_failure_is_told_and_not_that_of_asking_for_its_result(tmp_path):
    node = Node(Unreadable(), name="conform", base_dir=str(tmp_path))
    (tmp_path / "conform").mkdir()
    (tmp_path / "conform" / "result_conform.pklz").mkdir()  # it cannot be read
    result = plugins._run_node(node, False, 1)
    assert "No space left on device" in result["failure"].message
    assert result["failure"].exit_code == 5


def test_workers_are_deaf_to_ctrl_c(tmp_path):
    """A terminal sends it to all processes of a run; only the first one is to speak."""
    plugins._start_fork_server()
    context = multiprocessing.get_context("forkserver")
    with context.Pool(1) as pool:
        mask = pool.apply(signal.pthread_sigmask, (signal.SIG_BLOCK, []))
    assert signal.SIGINT in mask
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.fixture
def frozen(monkeypatch):
    """Objects that garbage collection leaves out, at each step sent to a worker."""
    counts: list[int] = []
    submit = plugins.PoolPlugin._submit_job

    def spy(self, node, updatehash=False):
        counts.append(gc.get_freeze_count())
        return submit(self, node, updatehash)

    monkeypatch.setattr(plugins.PoolPlugin, "_submit_job", spy)
    return counts


def test_the_workflow_itself_is_not_searched_for_garbage_at_each_step(run, frozen):
    """Nipype collects before each step: with 300 images that took longer than the steps."""
    run(image_wf("a_wf"), nprocs=2)
    assert min(frozen) > 10_000
    assert gc.get_freeze_count() == 0


def test_what_is_kept_of_finished_jobs_is_not_searched_either(run, frozen, monkeypatch):
    """It grows with the number of images as the workflow does."""
    monkeypatch.setattr(plugins, "FREEZE_EVERY", 2)
    run(image_wf("a_wf"), image_wf("b_wf"), nprocs=2)
    assert frozen[-1] > frozen[0]
    assert gc.get_freeze_count() == 0


def test_what_is_ready_is_what_nipypes_matrix_says_without_asking_it():
    """Its sums, and its search after each job, grew with the square of the number of images."""
    rng = np.random.default_rng(7)
    jobs = 40
    needs = np.triu(rng.random((jobs, jobs)) < 0.15, k=1)
    matrix = scipy.sparse.lil_matrix(needs.astype(int))
    open_jobs = plugins._Dependencies(matrix)
    matrix = matrix.astype(bool)
    for job in range(jobs):
        assert (open_jobs.sum(0) == matrix.sum(0)).all()
        assert open_jobs.sum(0).shape == (1, jobs)
        open_jobs.finish(job)
        matrix[job] = 0
    assert not open_jobs.sum(axis=0).any()
    with pytest.raises(ValueError, match="axis 0"):
        open_jobs.sum(1)
