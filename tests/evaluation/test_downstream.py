# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.cli import evaluate
from bmex_bids.common.structures import STRUCTURES
from bmex_bids.evaluation import downstream, subjects
from bmex_bids.exceptions import UsageError
from bmex_bids.metrics.tissue import dice


@pytest.fixture
def heads(painted, monkeypatch):
    table = dict.fromkeys(painted.images)
    monkeypatch.setattr(downstream, "PAINTED", table)
    monkeypatch.setattr(downstream, "IMAGES", painted.images[:2])
    return painted


def test_the_command_registers_both_ways_before_and_after(heads, capsys):
    words = ["downstream", "--data", heads.data, "--out", heads.out, "--device", "cpu"]
    words += ["--cells", "severe"]
    assert evaluate.main([*map(str, words)]) == 0
    assert "2 to compute" in capsys.readouterr().out
    text = (heads.out / "downstream.md").read_text()
    assert "| severe | Dice of structures, mean | 2 |" in text
    assert "| severe | Dice of ventricles | 2 |" in text
    assert "| severe | share of the brain that folds | 2 |" in text
    assert "Dice of hippocampus" not in text  # the maps have none
    assert len(list((heads.out / downstream.PASSES).glob("*.npz"))) == 2  # one a head
    assert evaluate.main([*map(str, words)]) == 0
    assert "0 to compute" in capsys.readouterr().out


def test_labels_are_brought_where_the_other_head_lies(heads):
    """A head and itself, shifted: the registration finds the shift, and the labels follow."""
    path = heads.data / "map0.nii.gz"
    labels = downstream.structures_of(path)
    head = subjects.load_clean(heads.data, subjects.subject_of(heads.images[0])).data
    mask = np.isin(subjects.read_labels(path), [24, 3, 2, 4])
    seen = [
        {downstream.BEFORE: np.roll(head, shift, 0), "mask": np.roll(mask, shift, 0)}
        for shift in (0, 4)
    ]
    images = [
        nib.Nifti1Image(np.roll(labels, shift, 0), np.diag([-1.0, -1, 1, 1])) for shift in (0, 4)
    ]
    found = downstream.registered(seen, images, downstream.BEFORE)
    for part in STRUCTURES:
        if part.name in ("cortex", "white_matter"):
            unmoved = dice(np.roll(labels, 4, 0) == part.number, labels == part.number)
            assert found[f"dice_{part.name}"] > unmoved + 0.1
    assert found["dice_white_matter"] > 0.9
    assert "dice_hippocampus" not in found
    assert found["folded"] < 0.01


def test_only_painted_heads_are_taken(heads):
    for images in (("sub-0003", "painted-0"), ("painted-0",)):
        with pytest.raises(UsageError, match="two or more painted heads"):
            list(downstream.plan(replace(heads, images=images)))
    with pytest.raises(UsageError, match="got worst"):
        list(downstream.plan(replace(heads, cells=("worst",))))
