# SPDX-License-Identifier: Apache-2.0
import pytest

from bmex_bids.exceptions import NoInputError, UsageError
from bmex_bids.inputs.collect import collect
from bmex_bids.inputs.plan import plan


def planned(root, **options):
    return {item.name: item for item in plan(collect(root), root, **options)}


def test_what_is_decided_for_an_image(bids_skeleton):
    root = bids_skeleton(
        {
            "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz": None,
            "sub-02/anat/sub-02_T2w.nii.gz": None,
            "sub-03/anat/sub-03_T1w.nii.gz": None,
            "participants.tsv": [
                {"participant_id": "sub-01", "age": "12 months"},
                {"participant_id": "sub-02", "age": "30 gestational_weeks"},
                {"participant_id": "sub-03", "age": "n/a"},
            ],
        }
    )
    items = planned(root)
    one = items["sub-01_ses-a_T1w"]
    assert (one.age_group, one.spacing_mm, one.resolution) == ("month12", 0.8, "0p8")
    assert (one.output_dir, one.warnings, one.runnable) == ("sub-01/ses-a/anat", (), True)
    two = items["sub-02_T2w"]
    assert (two.age_group, two.spacing_mm, two.resolution) == ("fetal", 0.75, "0p75")
    assert (two.output_dir, two.runnable) == ("sub-02/anat", True)
    three = items["sub-03_T1w"]
    assert not three.runnable
    assert three.age is None
    assert "--age-months" in three.skip_reason


def test_a_fetal_t1w_has_no_model(bids_skeleton):
    root = bids_skeleton({"sub-01/anat/sub-01_T1w.nii.gz": None})
    item = planned(root, override_months=6, fetal=True)["sub-01_T1w"]
    assert not item.runnable
    assert "T2w images only" in item.skip_reason


def test_a_boundary_is_a_warning_and_no_reason_to_skip(bids_skeleton):
    root = bids_skeleton({"sub-01/anat/sub-01_T1w.nii.gz": None})
    item = planned(root, override_months=20.5)["sub-01_T1w"]
    assert item.runnable
    assert item.age_group == "month18"
    assert "within a month of 21, where model month24 begins" in item.warnings[0]


def test_the_command_line_overrules_every_table(bids_skeleton):
    root = bids_skeleton(
        {
            "sub-01/anat/sub-01_T1w.nii.gz": None,
            "participants.tsv": [{"participant_id": "sub-01", "age": "nonsense"}],
        }
    )
    assert not planned(root)["sub-01_T1w"].runnable
    item = planned(root, override_months=0)["sub-01_T1w"]
    assert (item.runnable, item.age_group, item.age.months) == (True, "month0", 0)


def test_the_age_file_overrules_the_tables(bids_skeleton, tmp_path):
    root = bids_skeleton(
        {
            "sub-01/anat/sub-01_T1w.nii.gz": None,
            "sub-02/anat/sub-02_T1w.nii.gz": None,
            "participants.tsv": [{"participant_id": "sub-01", "age": "nonsense"}],
        }
    )
    table = tmp_path / "ages.tsv"
    table.write_text("participant_id\tage_months\nsub-01\t12\n")
    items = planned(root, age_file=table)
    assert items["sub-01_T1w"].age_group == "month12"
    assert not items["sub-02_T1w"].runnable
    with pytest.raises(UsageError, match="no such file"):
        planned(root, age_file=tmp_path / "other.tsv")


def test_a_mask_made_elsewhere_is_planned_where_there_is_one(bids_skeleton):
    root = bids_skeleton(
        {
            "sub-01/anat/sub-01_T1w.nii.gz": None,
            "sub-02/anat/sub-02_T1w.nii.gz": None,
            "participants.tsv": [{"participant_id": "sub-01", "age": "24 months"}],
        }
    )
    name = "sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    folder = bids_skeleton({name: None}, name="masks")
    one, two = planned(root, derivatives={"hand": folder}).values()
    assert (one.mask, one.mask_source, one.warnings) == (folder / name, f"hand: {name}", ())
    assert (two.mask, two.runnable, two.warnings) == (None, False, ())
    one, two = planned(root, derivatives={"hand": folder}, override_months=30).values()
    assert one.mask == folder / name
    assert two.mask is None
    assert "no brain mask of sub-02_T1w in the derivatives hand" in two.warnings[0]
    assert planned(root, derivatives={})["sub-01_T1w"].mask is None


#: image → (months or gestational weeks, group)
LIFESPAN = {
    "sub-0001_ses-V01_T1w": (72, "month24"),
    "sub-0001_ses-V02_T1w": (72, "month24"),
    "sub-0002_ses-V01_T1w": (23, "month24"),
    "sub-0003_ses-V01_T1w": (19, "month18"),
    "sub-0004_ses-V01_T1w": (11, "month12"),
    "sub-0005_ses-V01_T1w": (9, "month9"),
    "sub-0006_ses-V01_T1w": (6, "month6"),
    "sub-0007_ses-V01_T1w": (4, "month3"),
    "sub-0008_ses-V01_T1w": (1, "month0"),
    "sub-0009_ses-V01_T2w": (25, "fetal"),
}


def test_all_ten_images_of_the_lifespan_can_be_processed(shared_data, tmp_path):
    """Two scans tables contradict each other about the fetus; an age file overrules them."""
    root = shared_data / "lifespan-bids"
    reason = planned(root)["sub-0009_ses-V01_T2w"].skip_reason
    assert "25 gestational_weeks, 30 gestational_weeks" in reason
    assert "ses-V01/anat/sub-0009_ses-V01_scans.tsv" in reason
    table = tmp_path / "ages.tsv"
    table.write_text("participant_id\tage\nsub-0009\t25 gestational_weeks\n")
    items = planned(root, age_file=table)
    found = {}
    for name, item in items.items():
        fetal = item.age.fetal
        months = item.age.months * 365.25 / 12 / 7 if fetal else item.age.months
        found[name] = (pytest.approx(months, abs=1e-6), item.age_group)
        assert item.runnable
        assert item.spacing_mm == (0.75 if fetal else 0.8)
        wrong_name = name[:8] in ("sub-0003", "sub-0004", "sub-0005", "sub-0006")
        assert any("only row" in warning for warning in item.warnings) == wrong_name
    assert found == LIFESPAN


@pytest.mark.parametrize(
    "name",
    [
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T1w.json",
        "T1w.json",
        "participants.tsv",
        "participants.json",
        "sub-01/sub-01_scans.tsv",
    ],
)
def test_a_file_that_datalad_did_not_fetch_skips_what_needs_it(bids_skeleton, name):
    bids = bids_skeleton(
        {
            "participants.tsv": [{"participant_id": f"sub-{x}", "age": 1} for x in ("01", "02")],
            "participants.json": {"age": {"Units": "months"}},
            "sub-01/anat/sub-01_T1w.nii.gz": None,
            "sub-02/anat/sub-02_T1w.nii.gz": None,
        }
    )
    (bids / name).unlink(missing_ok=True)
    (bids / name).symlink_to(".git/annex/objects/Xx/9z/KEY/KEY")
    items = {item.image.subject: item for item in plan(collect(bids), bids)}
    assert "run `datalad get`" in items["01"].skip_reason
    assert str(bids / name) in items["01"].skip_reason
    assert items["02"].runnable == name.startswith("sub-01")


def test_an_age_from_the_command_line_needs_no_table(bids_skeleton):
    bids = bids_skeleton({"sub-01/anat/sub-01_T1w.nii.gz": None})
    (bids / "participants.tsv").symlink_to(".git/annex/objects/Xx/9z/KEY/KEY")
    (item,) = plan(collect(bids), bids, override_months=3.0)
    assert item.runnable


def test_a_mask_that_datalad_did_not_fetch_is_not_passed_over(bids_skeleton, tmp_path):
    bids = bids_skeleton({"sub-01/anat/sub-01_T1w.nii.gz": None})
    mask = tmp_path / "masks/sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    mask.parent.mkdir(parents=True)
    mask.symlink_to("../../.git/annex/objects/Xx/9z/KEY/KEY")
    (item,) = plan(
        collect(bids), bids, override_months=3.0, derivatives={"mine": tmp_path / "masks"}
    )
    assert "run `datalad get`" in item.skip_reason


def test_a_description_that_datalad_did_not_fetch(bids_skeleton):
    bids = bids_skeleton({"sub-01/anat/sub-01_T1w.nii.gz": None}, description=False)
    (bids / "dataset_description.json").symlink_to(".git/annex/objects/Xx/9z/KEY/KEY")
    with pytest.raises(NoInputError, match="datalad get"):
        collect(bids)


def test_only_magnitude_images_are_enhanced(bids_skeleton):
    """A phase image went through the network like any other."""
    parts = ("mag", "phase", "real", "imag")
    tree = {f"sub-01/anat/sub-01_part-{part}_T1w.nii.gz": None for part in parts}
    items = planned(bids_skeleton(tree), override_months=6)
    assert [name for name, item in items.items() if item.runnable] == ["sub-01_part-mag_T1w"]
    assert (
        "expected a magnitude image, got part-phase" in items["sub-01_part-phase_T1w"].skip_reason
    )


@pytest.mark.parametrize("entity", ["desc-svr", "space-MNI152", "res-2", "desc-preproc"])
def test_what_is_derived_is_no_raw_image(bids_skeleton, entity):
    """Its products had ``desc-`` twice, and the group's table one row for two images."""
    root = bids_skeleton(
        {
            f"sub-01/anat/sub-01_{entity}_T2w.nii.gz": None,
            "sub-01/anat/sub-01_rec-svr_T2w.nii.gz": None,
            "participants.tsv": [{"participant_id": "sub-01", "age": "30 gestational_weeks"}],
        }
    )
    planned = {item.name: item for item in plan(collect(root), root)}
    reason = planned[f"sub-01_{entity}_T2w"].skip_reason
    assert f"expected a raw image, got {entity} in its name" in reason
    assert "a reconstruction is rec-" in reason
    assert planned["sub-01_rec-svr_T2w"].runnable


def test_strict_ages_skip_what_had_to_be_guessed(bids_skeleton):
    root = bids_skeleton(
        {
            **{f"sub-01/ses-{s}/anat/sub-01_ses-{s}_T1w.nii.gz": None for s in ("00m", "24m")},
            "sub-02/anat/sub-02_T1w.nii.gz": None,
            "participants.tsv": "participant_id\tage_months\nsub-01\t0\nsub-02\t12\n",
        }
    )
    for item in planned(root).values():
        assert item.runnable
        assert any("one age for 2 sessions (00m, 24m)" in w for w in item.warnings) == (
            item.image.subject == "01"
        )
    items = planned(root, strict_ages=True)
    for session in ("00m", "24m"):
        reason = items[f"sub-01_ses-{session}_T1w"].skip_reason
        assert "--strict-ages" in reason
        assert "one age for 2 sessions" in reason
    assert items["sub-02_T1w"].runnable
