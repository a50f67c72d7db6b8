# SPDX-License-Identifier: Apache-2.0
import json
import os

import pytest

from bmex_bids.outputs.records import Kind, find_records
from bmex_bids.reports.facts import collect_facts
from bmex_bids.reports.group_rows import read_rows

NAMES = {
    "enhanced": "sub-01_desc-enhanced_T1w.json",
    "res-enhanced": "sub-01_res-0p8_desc-enhanced_T1w.json",
    "half": "sub-01_res-0p4_desc-enhanced_T1w.json",
    "quality": "sub-01_desc-quality_T1w.json",
}


def write(folder, kind, months, time):
    record = {"Age": {"months": months}, "Model": f"month{months}", "Quality": {}}
    path = folder / "sub-01" / "anat" / NAMES[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"BMEX": record}))
    os.utime(path, (time, time))
    return path


def one(output_dir):
    """The only image."""
    (image,) = find_records(output_dir)
    assert find_records(output_dir, "01") == [image]
    return image


@pytest.mark.parametrize("later", ["res-enhanced", "half", "quality", "enhanced"])
def test_what_was_done_last_is_told(tmp_path, later):
    """A run with --output-res or --qc-only and a corrected age: page, table and methods told the old one."""
    for kind in NAMES:
        write(tmp_path, kind, 3, 1_000_000)
    write(tmp_path, later, 0, 1_003_600)
    assert one(tmp_path).record()["Age"]["months"] == 0
    (row,), skipped = read_rows(tmp_path, "T1w", {})
    assert (row.age_months, skipped) == (0, {})
    assert collect_facts(tmp_path).postnatal_months == (0, 0)


def test_of_what_one_run_wrote_the_native_grid_is_preferred(tmp_path):
    paths = [write(tmp_path, kind, 3, 1_000_000 + k) for k, kind in enumerate(NAMES)]
    preproc = tmp_path / "sub-01" / "anat" / "sub-01_desc-preproc_T1w.json"
    preproc.write_text("{}")
    assert one(tmp_path).latest_first() == paths
    assert set(one(tmp_path).paths) == set(Kind)
    assert find_records(tmp_path, "02") == []


def test_a_sidecar_that_cannot_be_read_gives_way_to_the_next(tmp_path):
    write(tmp_path, "enhanced", 3, 1_000_000)
    write(tmp_path, "quality", 0, 1_003_600).write_text("{")
    assert one(tmp_path).record()["Age"]["months"] == 3
