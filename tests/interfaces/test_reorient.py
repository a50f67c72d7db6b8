# SPDX-License-Identifier: Apache-2.0
"""A header that calls the axes wrongly is corrected."""

import itertools
from importlib import resources

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.imaging.likeness import STORED_LEVELS, likeness
from bmex_bids.imaging.orientation import WORKING_AXES, conform, turned
from bmex_bids.interfaces import stripping
from bmex_bids.interfaces.preprocess import Conform, MaskBrain
from bmex_bids.interfaces.reorient import Reorient
from bmex_bids.network.weights.registry import select
from bmex_bids.workflows.request import as_table

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.1, 0.2, 0.05) @ np.diag([-5.0, -5, 5]), [90, 120, -70]
)
#: the 24 turns by right angles, without mirror images
TURNS = [
    "".join(axes)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for axes in itertools.product(*order)
    if np.linalg.det(nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(axes), (1, 1, 1)))
    * np.linalg.det(np.diag([-1, -1, 1]))
    > 0
]


@pytest.fixture(scope="module")
def brain():
    """The average brain as a stripped T1w image, axes LPS, 5 mm."""
    with resources.files("bmex_bids.data").joinpath("average_brain.npz").open("rb") as stream:
        half = np.load(stream)["shares"].astype(np.float32) / STORED_LEVELS
    shares = np.concatenate([half, half[:, ::-1]], axis=1)
    image = np.tensordot((100, 80, 500, 600, 800, 550, 750), shares[:-1], 1)
    image += np.random.default_rng(0).normal(0, 30, image.shape)
    return np.where(shares[-1] > 0.5, np.clip(image, 20, None), 0).astype(np.int16)


def stored(brain, turn):
    """Voxels whose axes lead along ``turn``, in a header that says LPS."""
    wanted = nib.orientations.axcodes2ornt(turn)
    change = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LPS"), wanted)
    return nib.orientations.apply_orientation(brain, change)


@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_affine_says_where_the_axes_lead(turn, brain):
    data = stored(brain, turn)
    centre = nib.affines.apply_affine(OBLIQUE, (np.array(data.shape) - 1) / 2)
    affine = turned(OBLIQUE, turn, centre)
    assert "".join(nib.aff2axcodes(affine)) == turn
    assert np.linalg.det(affine) == pytest.approx(np.linalg.det(OBLIQUE))
    middle = nib.affines.apply_affine(affine, (np.array(data.shape) - 1) / 2)
    np.testing.assert_allclose(middle, centre)
    again = conform(nib.Nifti1Image(data, affine))
    np.testing.assert_array_equal(np.asarray(again.dataobj), brain)


@pytest.mark.parametrize("turn", ["LPR", "RPS"])
def test_what_is_no_turn_is_refused(turn):
    with pytest.raises(ValueError, match=turn):
        turned(OBLIQUE, turn, np.zeros(3))


@pytest.mark.parametrize(
    ("turn", "codes"),
    [("RAS", (1, 1)), ("LAI", (0, 4)), ("PSL", (3, 0)), ("LPS", (2, 0))],
)
def test_the_header_of_a_turned_brain_is_corrected(turn, codes, brain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = stored(brain, turn)
    affine = np.diag([-5.0, -5, 5, 1])
    raw = nib.Nifti1Image(data, affine)
    raw.set_sform(affine, codes[0], update_affine=False)
    raw.set_qform(affine, codes[1], update_affine=False)
    nib.save(raw, "raw.nii.gz")
    nib.save(nib.Nifti1Image((data > 0).astype(np.uint8), affine), "mask.nii.gz")
    found = Reorient(in_file="raw.nii.gz", given_mask="mask.nii.gz").run().outputs
    assert found.turn == ("" if turn == "LPS" else turn)
    if turn == "LPS":
        assert (found.out_file, found.given_mask) == (
            str(tmp_path / "raw.nii.gz"), str(tmp_path / "mask.nii.gz"),
        )  # fmt: skip
        return
    image = nib.load(found.out_file)
    assert "".join(nib.aff2axcodes(image.affine)) == turn
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(image.dataobj), data)
    code = next(code for code in codes if code)
    assert (image.header["sform_code"], image.header["qform_code"]) == (code, code)
    np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-4)
    outputs = Conform(in_file=found.out_file).run().outputs
    after = MaskBrain(
        in_file=outputs.out_file, corrected=outputs.out_file, given_mask=found.given_mask,
        reoriented=found.turn, age_months=360.0,
    ).run().outputs  # fmt: skip
    assert after.mask_info["turn"] == "".join(WORKING_AXES)
    assert after.mask_info["reoriented"] == turn
    assert any("--reorient" in text for text in after.mask_info["warnings"])


@pytest.mark.parametrize("turn", ["LAI", "SLP"])
def test_a_head_that_is_not_upright_is_looked_at_from_other_sides(
    turn, brain, tmp_path, monkeypatch
):
    """A network that knows upright heads marks something else in others."""
    looks = []

    def upright_only(data, spacing, record, *, twice=True, **_):
        looks.append(twice)
        found = likeness(data, data > 50, spacing)
        if found.turn[2] == "S":
            return (data > 50).astype(np.float32)
        ball = np.linalg.norm(np.indices(data.shape) - 12, axis=0) < 8
        return ball.astype(np.float32)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stripping, "brain_probability", upright_only)
    nib.save(nib.Nifti1Image(stored(brain, turn), np.diag([-5.0, -5, 5, 1])), "raw.nii.gz")
    how = {"skull_strip": "force", "weights": as_table(select("strip", weights="bundled"))}
    found = Reorient(in_file="raw.nii.gz", **how).run().outputs
    assert found.turn == turn
    assert looks == [True, *[False] * len(stripping.HOLDS)]
    outputs = Conform(in_file=found.out_file).run().outputs
    looks.clear()
    after = MaskBrain(in_file=outputs.out_file, corrected=outputs.out_file, **how).run().outputs
    assert looks == [True]  # what is clearly a brain is not looked at again
    assert after.mask_info["turn"] == "LPS"
