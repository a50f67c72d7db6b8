# SPDX-License-Identifier: Apache-2.0
"""The comparison of two masks: shells of a known thickness, and the table of the command."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.cli.evaluate import main
from bmex_bids.evaluation import stripping
from bmex_bids.evaluation.stripping import agreement
from bmex_bids.exceptions import UsageError


def ball(radius, shape=(60, 60, 60)):
    place = np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2
    return (place**2).sum(axis=0) <= radius**2


def test_equal_masks_agree():
    found = agreement(ball(20), ball(20), (1, 1, 1))
    assert (found.dice, found.lost_ml, found.added_ml) == (1, 0, 0)
    assert found.distance_mm == pytest.approx(0, abs=0.3)
    assert found.litres == found.other_litres == pytest.approx(4 / 3 * np.pi * 8 / 1e3, rel=0.01)


@pytest.mark.parametrize("inside", [5.0, -5.0])
def test_a_mask_that_lies_inside_another_or_around_it(inside):
    found = agreement(ball(20 - inside), ball(20), (2, 2, 2))
    # a ball's outermost voxels lie up to a voxel's diagonal below its surface
    assert found.inside_mm == pytest.approx(2 * inside, abs=1.2)
    assert found.distance_mm == pytest.approx(10, abs=1.2)
    shell = 4 / 3 * np.pi * (37**3 - 30**3) / 1e3  # from 3 mm below the other's surface
    assert found.lost_ml == pytest.approx(shell if inside > 0 else 0, rel=0.1)
    assert (found.added_ml > 0) is (inside < 0)


def test_of_what_is_lost_the_fluid_is_no_tissue():
    """A cistern that was cut off counted as a lost brain."""
    cut = ball(20).copy()
    cut[:, :25] = False
    head = np.where(ball(20), 100.0, 0.0)
    head[:, 15:25, :30] = 40  # fluid in the lower half of what is cut off
    found = agreement(cut, ball(20), (1, 1, 1), head)
    deep = ball(17) & ~cut
    assert found.lost_ml == pytest.approx(deep.sum() / 1e3, rel=0.1)
    bright = deep & (head == 100)
    assert found.lost_tissue_ml == pytest.approx(bright.sum() / 1e3, rel=0.15)
    assert agreement(cut, ball(20), (1, 1, 1)).lost_tissue_ml == found.lost_ml


def test_an_empty_mask_is_refused():
    with pytest.raises(UsageError, match="got an empty one"):
        agreement(ball(5), ball(5) & False, (1, 1, 1))


def test_the_command_prints_a_row_and_draws_a_picture_of_each_head(
    head_phantom, tmp_path, monkeypatch, capsys
):
    head = head_phantom(spacing=4.0)
    (tmp_path / "heads").mkdir()
    (tmp_path / "masks").mkdir()
    mask = nib.Nifti1Image(head.mask.astype(np.uint8), head.image.affine)
    for name in ("a_T1w", "b_T2w"):
        nib.save(head.image, tmp_path / "heads" / f"{name}.nii.gz")
    nib.save(mask, tmp_path / "masks" / "a_T1w_other.nii.gz")
    monkeypatch.setattr(stripping, "network_mask", lambda *_, **__: (mask, {}))
    arguments = ["--heads", tmp_path / "heads", "--masks", tmp_path / "masks"]
    assert main(["strip", *map(str, arguments), "--out", str(tmp_path / "out")]) == 0
    first, second = [
        line for line in capsys.readouterr().out.splitlines() if line[:2] in ("a_", "b_")
    ]
    assert first.split()[1] == "1.0000"
    assert "NOT reached" not in first
    assert "no other mask" in second
    assert [len(first.split()), first.split()[4:6]] == [10, ["0.0", "0.0"]]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a_T1w.png", "a_T1w_mask.nii.gz", "b_T2w.png", "b_T2w_mask.nii.gz"}


def test_a_folder_without_heads_is_said(tmp_path, capsys):
    assert main(["strip", "--heads", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "expected images of heads" in capsys.readouterr().err
