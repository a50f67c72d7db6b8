# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bmex_bids.common.failure import Failure
from bmex_bids.running.events import Event
from bmex_bids.running.progress import Progress, Sparingly


@pytest.fixture
def scene():
    """Two images of two nodes each, a clock that is set by hand, and the lines said."""
    time, lines = [0.0], []
    progress = Progress(
        {"a_wf": ("sub-01_T1w", {"a.1", "a.2"}), "b_wf": ("sub-02_T1w", {"b.1", "b.2"})},
        say=lines.append,
        clock=lambda: time[0],
    )

    def event(node: str, status: str, at: float, reason: str | None = None) -> None:
        time[0] = at
        workflow = node[0] + "_wf"
        failure = Failure("", reason) if status == "exception" else None
        progress(Event(workflow, node, f"step {node[-1]}", status, reason, failure))

    return progress, event, lines


def test_a_line_for_each_step_and_one_at_the_end(scene):
    progress, event, lines = scene
    event("a.1", "start", 0)
    event("a.1", "end", 5)
    event("a.2", "start", 5)
    event("a.2", "end", 3661)
    assert lines == [
        "[00:00:00] image 1 of 2  sub-01_T1w  step 1",
        "[00:00:05] image 1 of 2  sub-01_T1w  step 2",
        "[01:01:01] image 1 of 2  sub-01_T1w  done in 3661 s",
    ]
    assert progress.tracks["a_wf"].status == "done"
    assert progress.tracks["b_wf"].status == "waiting"
    progress.end()
    assert progress.tracks["a_wf"].status == "done"
    assert progress.tracks["b_wf"].status == "not run"
    assert progress.tracks["b_wf"].reason == "the run ended before this image was done"


def test_a_failure_is_said_once_with_its_reason(scene):
    progress, event, lines = scene
    event("b.1", "start", 0)
    event("b.1", "exception", 2, "no brain")
    event("b.2", "exception", 3, "no brain either")
    assert lines[1:] == ["[00:00:02] image 2 of 2  sub-02_T1w  FAILED in step 1: no brain"]
    assert progress.tracks["b_wf"].status == "failed"
    assert progress.tracks["b_wf"].reason == "no brain"


def test_nodes_that_share_a_step_share_a_line(scene):
    progress, _, lines = scene
    progress(Event("a_wf", "a.1", "outputs", "start"))
    progress(Event("a_wf", "a.2", "outputs", "start"))
    assert len(lines) == 1


def test_nodes_that_do_not_count_do_not_end_an_image(scene):
    progress, event, lines = scene
    for node in ("a.1", "a.x", "a.y"):
        event(node, "end", 1)
    assert progress.tracks["a_wf"].status == "running"
    assert lines == []


def test_a_change_of_status_is_told_and_nothing_else():
    seen = []
    progress = Progress(
        {"a_wf": ("sub-01_T1w", {"a.1", "a.2"})},
        say=lambda _: None,
        changed=lambda progress: seen.append(progress.tracks["a_wf"].status),
    )
    for node in ("a.1", "a.2"):
        progress(Event("a_wf", node, node, "start"))
        progress(Event("a_wf", node, node, "end"))
    assert seen == ["running", "done"]


def test_a_table_that_takes_long_is_written_seldom():
    now = [0.0]
    calls = []

    def slow(progress):
        calls.append(now[0])
        now[0] += 1.0

    note = Sparingly(slow, clock=lambda: now[0])
    for _ in range(250):
        note(None)
        now[0] += 1.0
    assert calls == [0.0, 101.0, 202.0]


def test_what_was_left_out_is_told_at_the_next_event():
    told = []
    ready = [False]

    def changed(progress):
        if ready[0]:
            told.append(progress.tracks["a_wf"].status)
        return ready[0]

    progress = Progress(
        {"a_wf": ("sub-01_T1w", {"a.1", "a.2"})}, say=lambda _: None, changed=changed
    )
    progress(Event("a_wf", "a.1", "conform", "start"))
    ready[0] = True
    progress(Event("a_wf", "a.1", "conform", "end"))
    progress(Event("a_wf", "a.2", "network", "start"))
    assert told == ["running"]
