# SPDX-License-Identifier: Apache-2.0
"""bmex-degrade: the image, its sidecar, and the reasons why not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.testing import assert_allclose, assert_array_equal

from bmex_bids.cli.degrade import main
from bmex_bids.degrade.kinds import KINDS
from bmex_bids.degrade.levels import draw
from bmex_bids.degrade.steps import SEVERITIES

ORIENTATIONS = ("LPS", "RAS", "LAS", "PIR", "SAL", "ALI")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Each test has a folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def source(brain):
    """A small stripped brain of 16-bit numbers."""
    nib.save(brain("RAS"), "in.nii.gz")
    return Path("in.nii.gz")


def degrade(*arguments: object) -> int:
    """Run the program in this process; return its exit code."""
    try:
        return main([str(word) for word in arguments])
    except SystemExit as stop:  # argparse
        return int(stop.code or 0)


def record(name: str = "out.json") -> dict:
    """What the sidecar tells of the degradation."""
    return json.loads(Path(name).read_text())["BMEX"]["Degradation"]


def in_lps(path: str) -> np.ndarray:
    """The voxels, axes LPS."""
    image = nib.load(path)
    change = ornt_transform(io_orientation(image.affine), axcodes2ornt("LPS"))
    return np.asarray(image.as_reoriented(change).dataobj)


def test_the_image_is_what_the_recipe_makes_of_it(source, capsys):
    assert degrade(source, "out.nii.gz", "--severity", "moderate", "--seed", 7) == 0
    before, after = nib.load(source), nib.load("out.nii.gz")
    assert_array_equal(after.affine, before.affine)
    assert after.get_data_dtype() == before.get_data_dtype() == np.int16
    assert after.shape == before.shape
    for code in ("qform_code", "sform_code", "xyzt_units"):
        assert after.header[code] == before.header[code]
    expected = draw("moderate", np.random.default_rng(7)).apply(
        in_lps(source).astype(np.float32), (2.5, 2.5, 2.5)
    )
    assert_array_equal(in_lps("out.nii.gz"), np.rint(expected))
    assert "motion-periodic; seed 7" in capsys.readouterr().out


def test_the_sidecar_makes_the_same_image_again(source, capsys):
    kinds = ["--kind=motion-sudden", "--kind=rician-noise=3", "--kind=ghosting=minor"]
    assert degrade(source, "out.nii.gz", "--severity", "severe", *kinds) == 0
    told = record()
    assert [step["kind"] for step in told["Recipe"]["steps"]] == [
        "motion-piecewise", "rician-noise", "ghosting",
    ]  # fmt: skip
    assert told["Drawn"][0] == {"Kind": "motion-sudden", "Level": "severe"}
    assert isinstance(told["Seed"], int)
    assert degrade(source, "again.nii.gz", "--recipe", "out.json", "--threads", 2) == 0
    assert Path("again.nii.gz").read_bytes() == Path("out.nii.gz").read_bytes()
    assert "equal to the last bit" in capsys.readouterr().out
    # a bare recipe does as well, and so does the seed that was drawn
    Path("bare.json").write_text(json.dumps(told["Recipe"]))
    assert degrade(source, "c.nii.gz", "--recipe", "bare.json") == 0
    assert Path("c.nii.gz").read_bytes() == Path("out.nii.gz").read_bytes()
    assert degrade(source, "b.nii.gz", "--seed", told["Seed"], "--severity=severe", *kinds) == 0
    assert Path("b.nii.gz").read_bytes() == Path("out.nii.gz").read_bytes()


def test_another_image_is_not_taken_for_the_recipes_own(source, brain, capsys):
    nib.save(brain("RAS", seed=1), "other.nii.gz")
    assert degrade(source, "out.nii.gz", "--seed", 1) == 0
    assert degrade("other.nii.gz", "o.nii.gz", "--recipe", "out.json") == 0
    assert "not the image that the recipe" in capsys.readouterr().out


@pytest.mark.parametrize("oblique", [0.0, 12.0])
def test_every_orientation_gives_the_same_image(brain, oblique):
    """Axes are anatomical: however a file stores the head, the same head comes out."""
    results = []
    kinds = [f"--kind={kind}" for kind in KINDS]
    for orientation in ORIENTATIONS:
        nib.save(brain(orientation, oblique), f"{orientation}.nii.gz")
        flags = ("--seed", 3, "--phase-encoding", "IS", "--slice-axis", "LR", *kinds)
        assert degrade(f"{orientation}.nii.gz", f"o{orientation}.nii.gz", *flags) == 0
        out = nib.load(f"o{orientation}.nii.gz")
        assert nib.aff2axcodes(out.affine) == tuple(orientation)
        results.append((in_lps(f"o{orientation}.nii.gz"), record(f"o{orientation}.json")))
    for image, told in results[1:]:
        assert_array_equal(image, results[0][0])
        assert told == results[0][1]


@pytest.mark.parametrize(("axis", "name"), [(0, "LR"), (1, "AP"), (2, "IS")])
def test_ghosts_go_along_the_phase_encoding(source, axis, name):
    flags = ("--kind=ghosting=50", "--seed", 5, "--phase-encoding", name)
    assert degrade(source, "out.nii.gz", *flags) == 0
    before, after = in_lps(source), in_lps("out.nii.gz")
    lines = (before > 100).any(axis=axis)  # lines along the axis that meet the brain
    outside = np.moveaxis(after, axis, 0)[:, ~lines & ~(before > 0).any(axis=axis)]
    assert outside.max(initial=0) <= 1
    assert np.moveaxis(np.where(before == 0, after, 0), axis, 0)[:, lines].max() > 100


def test_a_whole_head_is_degraded_and_then_stripped(head_phantom):
    head = head_phantom()
    nib.save(head.image, "head.nii.gz")
    mask = nib.Nifti1Image(head.mask.astype(np.uint8), head.image.affine)
    nib.save(mask, "mask.nii.gz")
    flags = ("--severity", "severe", "--seed", 2)
    assert degrade("head.nii.gz", "out.nii.gz", *flags, "--mask", "mask.nii.gz") == 0
    stripped = np.asarray(nib.load("out.nii.gz").dataobj)
    assert not stripped[~head.mask].any()
    assert json.loads(Path("out.json").read_text())["SkullStripped"] is True
    assert degrade("head.nii.gz", "whole.nii.gz", *flags) == 0
    whole = np.asarray(nib.load("whole.nii.gz").dataobj)
    assert_allclose(stripped[head.mask], whole[head.mask], atol=1e-3)
    # what the scalp leaves in the brain would be missing, had the brain been cut out first
    nib.save(head.brain, "brain.nii.gz")
    assert degrade("brain.nii.gz", "late.nii.gz", *flags) == 0
    late = np.asarray(nib.load("late.nii.gz").dataobj)
    assert np.abs(late - stripped)[head.mask].mean() > 5


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64"])
def test_the_number_type_stays(make_image, dtype):
    data = np.zeros((12, 14, 16))
    data[3:9, 4:10, 4:12] = 200
    make_image("RAS", dtype=dtype, data=data, path=Path("in.nii.gz").absolute())
    assert degrade("in.nii.gz", "out.nii.gz", "--kind=gaussian-noise=5", "--seed", 1) == 0
    out = nib.load("out.nii.gz")
    assert out.get_data_dtype() == np.dtype(dtype)
    error = np.asarray(out.dataobj)[4:8, 5:9, 5:11] - 200.0
    assert error.std() == pytest.approx(10, rel=0.2)
    assert out.dataobj.slope == 1


def test_numbers_stored_with_a_scale_keep_their_values(make_image):
    data = np.zeros((12, 14, 16), np.float32)
    data[3:9, 4:10, 4:12] = 0.8
    image = make_image("LPS", data=data)
    image.set_data_dtype(np.int16)  # nibabel will scale to the full range
    nib.save(image, "in.nii.gz")
    assert nib.load("in.nii.gz").dataobj.slope != 1
    assert degrade("in.nii.gz", "out.nii.gz", "--kind=smoothing=0", "--seed", 1) == 0
    out = nib.load("out.nii.gz")
    assert out.get_data_dtype() == np.int16
    assert_allclose(np.asarray(out.dataobj), data, atol=1e-4)


def test_what_the_number_type_cannot_hold_is_cut_off_and_said(make_image, capsys):
    data = np.full((12, 14, 16), 250)
    data[0] = 0
    make_image("RAS", dtype="uint8", data=data, path=Path("in.nii").absolute())
    assert degrade("in.nii", "out.nii", "--kind=gaussian-noise=20", "--seed", 1) == 0
    assert "voxels beyond uint8 were cut off" in capsys.readouterr().err
    values = np.asarray(nib.load("out.nii").dataobj)
    assert (values.min(), values.max()) == (0, 255)


def test_the_sidecar_carries_what_holds_and_names_no_folder(bids_skeleton, brain):
    name = "sub-01/anat/sub-01_T1w"
    root = bids_skeleton(
        {
            f"{name}.nii.gz": brain(),
            f"{name}.json": {"EchoTime": 0.003, "SkullStripped": True, "Sources": ["old"]},
        }
    )
    out = "sub-01_desc-degraded_T1w"
    assert degrade(root / f"{name}.nii.gz", f"{out}.nii.gz", "--seed", 1) == 0
    text = Path(f"{out}.json").read_text()
    table = json.loads(text)
    assert table["EchoTime"] == 0.003
    assert table["SkullStripped"] is True
    assert table["Sources"] == [f"{name}.nii.gz"]
    assert str(root.parent) not in text
    assert {"Recipe", "InputVoxels", "OutputVoxels", "Software", "Seed"} <= set(
        record(f"{out}.json")
    )


def test_the_gallery_is_a_picture_of_every_kind_and_level(head_phantom):
    from PIL import Image

    nib.save(head_phantom(spacing=10.0).image, "head.nii.gz")
    assert degrade("head.nii.gz", "out.png", "--gallery", "--seed", 1) == 0
    picture = Image.open(io.BytesIO(Path("out.png").read_bytes()))
    assert picture.size[0] > 100 * (1 + len(SEVERITIES))
    assert picture.size[1] > 100 * len(KINDS)
    panels = np.asarray(picture.convert("L"), dtype=float)
    assert panels.max() > 200
    assert not Path("out.json").exists()


REFUSED = [
    (("in.nii.gz", "in.nii.gz"), 2, "different files"),
    (("in.nii.gz", "out.png"), 2, "ends in .nii.gz or .nii"),
    (("in.nii.gz", "no/out.nii.gz"), 5, "mkdir -p"),
    (("none.nii.gz", "out.nii.gz"), 2, "found nothing"),
    (("in.nii.gz", "out.nii.gz", "--kind", "magic"), 2, "expected a kind of"),
    (("in.nii.gz", "out.nii.gz", "--kind", "blur=terrible"), 2, "a level of"),
    (("in.nii.gz", "out.nii.gz", "--kind", "blur=-1"), 2, "from 0 to 20"),
    (("in.nii.gz", "out.nii.gz", "--kind", "contrast=nan"), 2, "a level of"),
    (("in.nii.gz", "out.nii.gz", "--severity", "awful"), 2, "invalid choice"),
    (("in.nii.gz", "out.nii.gz", "--seed", "-1"), 2, "whole number"),
    (("in.nii.gz", "out.nii.gz", "--phase-encoding", "j"), 2, "invalid choice"),
    (("in.nii.gz", "out.nii.gz", "--recipe", "none.json"), 2, "expected a recipe at"),
    (("in.nii.gz", "out.nii.gz", "--recipe", "in.nii.gz"), 2, "expected a recipe of"),
    (("in.nii.gz", "out.nii.gz", "--recipe", "text.json"), 2, "expected a recipe of"),
    (("in.nii.gz", "out.nii.gz", "--recipe", "later.json"), 2, "version 1, got 99"),
    (("in.nii.gz", "later.nii.gz", "--recipe", "later.json"), 2, "name another OUT"),
    (("in.nii.gz", "out.nii.gz", "--recipe", "later.json", "--seed", "1"), 2, "without --seed"),
    (("in.nii.gz", "out.nii.gz", "--mask", "small.nii.gz"), 1, "resample it first"),
    (("in.nii.gz", "out.png", "--gallery", "--kind", "blur"), 2, "without --kind"),
    (("in.nii.gz", "out.nii.gz", "--gallery"), 2, "ends in .png"),
    (("four.nii.gz", "out.nii.gz"), 1, "three-dimensional"),
    (("nan.nii.gz", "out.nii.gz"), 1, "finite"),
    (("zero.nii.gz", "out.nii.gz"), 1, "zero everywhere"),
    (("negative.nii.gz", "out.nii.gz"), 1, "voxels above zero"),
    (("text.nii.gz", "out.nii.gz"), 1, "complete NIfTI"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), REFUSED)
def test_bad_input_is_refused_and_nothing_is_written(arguments, code, words, make_image, capsys):
    def made(name: str, data: np.ndarray) -> None:
        make_image("RAS", dtype="float32", data=data, path=Path(name).absolute())

    made("in.nii.gz", np.arange(1000.0).reshape(10, 10, 10))
    made("small.nii.gz", np.arange(729.0).reshape(9, 9, 9))
    made("four.nii.gz", np.arange(2000.0).reshape(10, 10, 10, 2))
    made("nan.nii.gz", np.where(np.arange(1000) == 5, np.nan, 1.0).reshape(10, 10, 10))
    made("zero.nii.gz", np.zeros((10, 10, 10)))
    made("negative.nii.gz", -1.0 - np.arange(1000.0).reshape(10, 10, 10))
    Path("text.nii.gz").write_text("not an image")
    Path("text.json").write_text("not a recipe")
    Path("later.json").write_text('{"version": 99, "steps": []}')
    before = {path: path.read_bytes() for path in Path().iterdir()}
    assert degrade(*arguments) == code
    assert words in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in Path().iterdir()} == before
