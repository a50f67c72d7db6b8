# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace

import pytest

from bmex_bids.common.failure import Failure
from bmex_bids.inputs.not_taken import NotTaken
from bmex_bids.running import status


def task(name, *, unchanged=False, reason=None):
    planned = SimpleNamespace(skip_reason=reason, runnable=reason is None)
    return SimpleNamespace(
        name=name, planned=planned, unchanged=unchanged, to_run=reason is None and not unchanged
    )


def progress(**tracks):
    """Tracks by name: (status, step, reason, seconds)."""
    return SimpleNamespace(
        tracks={
            name: SimpleNamespace(
                name=name, status=what[0], step=what[1], reason=what[2], seconds=what[3]
            )
            for name, what in tracks.items()
        }
    )


GATE = {
    "Verdict": "fail",
    "Rules": [
        {"Rule": "a", "Verdict": "pass", "Reason": "fine"},
        {"Rule": "b", "Verdict": "warn", "Reason": "rather small"},
        {"Rule": "c", "Verdict": "fail", "Reason": "far too small"},
    ],
}


def test_a_row_for_each_image_in_the_plans_order():
    rows = status.status_rows(
        [task("a"), task("b", reason="no age"), task("c", unchanged=True), task("d")],
        progress(a=("done", "", None, 12.34), d=("failed", "network", "no memory", 3.0)),
    )
    assert [(row["image"], row["status"], row["reason"]) for row in rows] == [
        ("a", "done", ""),
        ("b", "skipped", "no age"),
        ("c", "unchanged", ""),
        ("d", "failed", "no memory"),
    ]
    assert rows[0]["seconds"] == "12.3"
    assert rows[3]["step"] == "network"
    assert list(rows[0]) == list(status.COLUMNS)


def test_what_the_disk_says_counts_more_than_what_the_scheduler_did_not_tell():
    tasks = [task("a"), task("b")]
    told = progress(a=("not run", "", "the run ended", None), b=("not run", "", "so", None))
    rows = status.status_rows(tasks, told, committed=lambda t: {} if t.name == "a" else None)
    assert [row["status"] for row in rows] == ["done", "not run"]
    assert rows[0]["reason"] == ""


def test_the_score_of_an_image_is_in_its_row():
    score = {"before": {"motion": 1.234, "noise_percent": 2, "resolution_mm": 1.1}, "after": None}
    record = {"Gate": {"Verdict": "pass"}, "Quality": {"Score": score}}
    (row, *_) = status.status_rows(
        [task("a")], progress(a=("done", "", None, 1.0)), committed=lambda _: record
    )
    assert row["motion_before"] == "1.23"
    assert row["noise_percent_before"] == "2.00"
    assert row["resolution_mm_before"] == "1.10"
    assert row["motion_after"] == ""


@pytest.mark.parametrize(
    ("told", "cell"),
    [
        ({}, ""),
        ({"MotionCorrection": {"Applied": False, "Reason": "no periodic motion found"}}, "0.00"),
        (
            {
                "MotionCorrection": {
                    "Applied": True, "EntropyBefore": 9.0, "RMSDisplacement": 1.934,
                }
            },
            "1.93",
        ),
        ({"MotionCorrection": {"Applied": True, "Spikes": 2}}, "0.00"),
    ],
)  # fmt: skip
def test_the_motion_that_was_undone_is_in_the_row_of_the_image(told, cell):
    (row,) = status.status_rows(
        [task("a")], progress(a=("done", "", None, 1.0)), committed=lambda _: told
    )
    assert row["motion_undone_mm"] == cell


def test_a_failed_gate_never_looks_like_success():
    rows = status.status_rows(
        [task("a")], progress(a=("done", "", None, 1.0)), committed=lambda _: {"Gate": GATE}
    )
    assert rows[0]["gate"] == "fail"
    assert rows[0]["reason"] == "far too small rather small"
    assert status.exit_code(rows) == status.EXIT_FAILED
    assert status.summary(rows) == "1 done (1 did not pass the quality gate)"
    (line,) = status.complaints(rows)
    assert "did NOT pass" in line


def test_a_warning_of_the_gate_is_told_and_is_no_failure():
    gate = {"Verdict": "warn", "Rules": GATE["Rules"][:2]}
    rows = status.status_rows(
        [task("a")], progress(a=("done", "", None, 1.0)), committed=lambda _: {"Gate": gate}
    )
    assert status.exit_code(rows) == status.EXIT_DONE
    assert list(status.complaints(rows)) == [
        "a passed with a warning the quality gate: rather small"
    ]


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["done", "done"], 0),
        (["unchanged", "done"], 0),
        (["done", "failed"], 3),
        (["done", "skipped"], 3),
        (["unchanged", "not run"], 3),
        (["failed", "failed"], 1),
        (["skipped", "failed"], 1),
    ],
)
def test_exit_codes(statuses, code):
    assert status.exit_code([{"status": s, "gate": ""} for s in statuses]) == code


def test_what_a_killed_run_was_at_comes_last(tmp_path):
    """Else an image that gets the run killed stands in the way of the others for ever."""
    for run, state in (("20250101-1_a", "running"), ("20250102-1_a", "waiting")):
        (tmp_path / run).mkdir()
        (tmp_path / run / "status.tsv").write_text(
            f"image\tstatus\nsub-01_T1w\t{state}\nsub-02_T1w\trunning\nsub-03_T1w\tdone\n"
        )
    this = tmp_path / "20250103-1_a"
    assert status.left_running(this) == {"sub-02_T1w"}
    assert status.left_running(tmp_path / "nothing" / "here") == set()
    tasks = [SimpleNamespace(name=f"sub-{n}_T1w") for n in ("01", "02", "03")]
    ordered = status.in_order(tasks, {"sub-01_T1w", "sub-02_T1w"})
    assert [task.name[4:6] for task in ordered] == ["03", "01", "02"]


def test_what_is_not_taken_has_a_row_and_a_participant_that_brings_nothing_counts():
    left = [
        NotTaken("sub-02/sub-02_T1w.nii.gz", "no folder anat"),
        NotTaken("sub-02", "brings nothing", asked_for=True),
    ]
    rows = status.status_rows([], progress(), not_taken=left)
    assert [(row["image"], row["status"], row["reason"]) for row in rows] == [
        ("sub-02/sub-02_T1w.nii.gz", "not taken", "no folder anat"),
        ("sub-02", "skipped", "brings nothing"),
    ]
    done = {"image": "sub-01_T1w", "status": "done", "gate": "pass", "reason": "", "step": ""}
    assert status.exit_code([done, rows[0]]) == 0
    assert status.exit_code([done, *rows]) == 3
    assert status.summary([done, *rows]) == "1 done, 1 skipped, 1 not taken"
    assert list(status.complaints([done, *rows])) == ["sub-02 skipped: brings nothing"]


@pytest.mark.parametrize(("codes", "code"), [((), 3), ((1,), 3), ((1, 5), 5)])
def test_a_failure_of_the_machine_is_the_runs(codes, code):
    rows = [{"status": "done", "gate": ""}, {"status": "failed", "gate": ""}]
    failures = [Failure("", "", code) for code in codes]
    assert status.Outcome(rows, failures).exit_code == code
