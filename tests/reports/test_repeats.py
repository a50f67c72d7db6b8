# SPDX-License-Identifier: Apache-2.0
"""Repeats of a contrast: their ranks, the filter that picks the best, and MRIQC's tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from bids import BIDSLayout
from bids.layout import Query

from bmex_bids.reports.group import write_group


@pytest.fixture
def ranks(tmp_path):
    """``ranks({"sub-01_run-1_T1w": (verdict, quality), …})``: run the level; image → its row."""

    def run(images):
        for name, (verdict, quality) in images.items():
            first, *_ = name.split("_")
            entities, _, suffix = name.rpartition("_")
            path = tmp_path / f"out/{first}/anat/{entities}_desc-enhanced_{suffix}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            gate = {"Verdict": verdict, "Rules": []}
            path.write_text(json.dumps({"BMEX": {"Quality": quality, "Gate": gate}}))
        (tmp_path / "bids").mkdir(exist_ok=True)
        write_group(tmp_path / "out", tmp_path / "bids")
        found = {}
        for table in (tmp_path / "out").glob("group_T?w.tsv"):
            with table.open(newline="") as file:
                found |= {row["image"]: row for row in csv.DictReader(file, delimiter="\t")}
        return found

    return run


def cjv(value):
    return {"MRIQC": {"before": {"cjv": 0.5}, "after": {"cjv": value}}}


def motion(value, error=0.05):
    return {"Score": {"after": {"motion": value}}, "estimated_error_after": error, **cjv(0.5)}


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ((("pass", motion(1.2)), ("pass", motion(0.3)), ("pass", motion(0.5))), "312"),
        ((("pass", motion(0.3, 0.09)), ("pass", motion(0.4, 0.01))), "12"),
        ((("fail", motion(0.1)), ("warn", motion(0.9))), "21"),  # the gate's word comes first
        ((("warn", motion(0.1)), ("pass", motion(0.9))), "12"),  # a warning does not decide
        ((("pass", motion(2.0, 0.01)), ("pass", {"estimated_error_after": 0.02})), "12"),
        ((("pass", cjv(0.4)), ("pass", cjv(0.3))), "21"),
        ((("pass", {}), ("pass", cjv(0.3))), "12"),  # nothing that both have: the name
    ],
)
def test_repeats_are_ranked_by_what_all_have(ranks, images, expected):
    rows = ranks({f"sub-01_run-{k}_T1w": image for k, image in enumerate(images, 1)})
    assert "".join(row["rank"] for row in rows.values()) == expected
    assert [row["best"] for row in rows.values()] == [
        "true" if rank == "1" else "false" for rank in expected
    ]
    assert {row["repeats"] for row in rows.values()} == {str(len(images))}


def test_sessions_and_contrasts_do_not_compete(ranks, tmp_path):
    rows = ranks(
        {
            "sub-01_ses-A_T1w": ("pass", motion(1)),
            "sub-01_ses-B_T1w": ("pass", motion(2)),
            "sub-01_ses-A_T2w": ("pass", motion(3)),
        }
    )
    assert {row["rank"] for row in rows.values()} == {"1"}
    assert not (tmp_path / "out/group_filters").exists()


@pytest.mark.parametrize("best", ["run-02", "acq-fast_run-1", ""])
def test_the_filter_picks_the_best_as_fmriprep_reads_it(ranks, tmp_path, best):
    names = ["sub-01_run-01_T1w", "sub-01_run-02_T1w", "sub-01_acq-fast_run-1_T1w", "sub-01_T1w"]
    wanted = f"sub-01_{best}_T1w".replace("__", "_")
    ranks({name: ("pass", motion(0.1 if name == wanted else 1)) for name in names})
    (path,) = (tmp_path / "out/group_filters").iterdir()
    assert path.name == "sub-01.json"
    ((contrast, query),) = json.loads(path.read_text()).items()
    assert contrast == "t1w"

    raw = tmp_path / "raw"
    (raw / "sub-01/anat").mkdir(parents=True)
    (raw / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    for name in names:
        (raw / f"sub-01/anat/{name}.nii.gz").touch()
    # fMRIPrep and NiBabies take null as "without"
    query = {key: Query.NONE if value is None else value for key, value in query.items()}
    found = BIDSLayout(raw, validate=False).get(extension=".nii.gz", **query)
    assert [Path(image.path).name for image in found] == [f"{wanted}.nii.gz"]


def test_a_filter_of_a_session_without_repeats_goes(ranks, tmp_path):
    image = ("pass", motion(1))
    ranks({"sub-01_run-1_T1w": image, "sub-01_run-2_T1w": image})
    (tmp_path / "out/sub-01/anat/sub-01_run-2_desc-enhanced_T1w.json").unlink()
    ranks({"sub-02_T1w": image})
    assert not list((tmp_path / "out/group_filters").iterdir())


def test_the_page_lists_repeats_and_what_decided(ranks, tmp_path):
    ranks({"sub-01_run-1_T1w": ("pass", cjv(0.4)), "sub-01_run-2_T1w": ("pass", cjv(0.3))})
    page = (tmp_path / "out/group_T1w.html").read_text()
    section = page.split('id="repeats"')[1].split("</section>")[0]
    assert section.index("sub-01_run-2_T1w") < section.index("sub-01_run-1_T1w")
    assert "joint variation" in section


def test_mriqcs_measures_have_tables_in_mriqcs_form(ranks, tmp_path):
    rows = ranks(
        {
            "sub-01_T1w": (
                "pass",
                {"MRIQC": {"before": {"snr_gm": 7.5, "cjv": 0.5}, "after": {}}},
            ),
            "sub-02_T1w": ("pass", {"MRIQC": {"before": {"cjv": 0.25}, "after": {"cjv": 0.125}}}),
            "sub-03_T1w": ("pass", {"MRIQC": "none"}),
        }
    )
    out = tmp_path / "out"
    before = (out / "group_before_T1w.tsv").read_text().splitlines()
    assert before == [
        "bids_name\tcjv\tsnr_gm", "sub-01_T1w\t0.5\t7.5", "sub-02_T1w\t0.25\tn/a",
        "sub-03_T1w\tn/a\tn/a",
    ]  # fmt: skip
    after = (out / "group_after_T1w.tsv").read_text().splitlines()
    assert after[2] == "sub-02_T1w\t0.125"
    assert not [name for row in rows.values() for name in row if "MRIQC" in name]
