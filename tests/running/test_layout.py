# SPDX-License-Identifier: Apache-2.0
"""Names of files as another program has them."""

from __future__ import annotations

import pytest

from bmex_bids.cli.parser import parse
from bmex_bids.running import planning
from bmex_bids.workflows.outputs import plan_table


@pytest.mark.parametrize(("layout", "space"), [("bids", ""), ("bme-x", "space-T1w_")])
def test_the_layout_names_the_mask_as_the_published_container(
    bids_skeleton, tmp_path, monkeypatch, layout, space
):
    monkeypatch.chdir(tmp_path)
    stem = "sub-01_ses-V01_run-1"
    bids = bids_skeleton({f"sub-01/ses-V01/anat/{stem}_T1w.nii.gz": None})
    flags = ["--age-months", "6", "--output-layout", layout, "--skull-strip", "skip"]
    config = parse([str(bids), "out", "participant", *flags])
    (image,) = planning.plan(config)
    names = {path.rpartition("/")[2] for path in planning.task(config, image).outputs}
    assert {
        f"{stem}_desc-enhanced_T1w.nii.gz",
        f"{stem}_desc-preproc_T1w.nii.gz",
        f"{stem}_{space}desc-brain_mask.nii.gz",
    } <= names
    assert (f"{stem}_T1w.nii.gz" in names) == (layout == "bme-x")  # the raw image
    # the nodes that write the files are told the same
    assert plan_table(image)["layout"] == layout
    assert plan_table(image)["space"] == space.removeprefix("space-").rstrip("_")
