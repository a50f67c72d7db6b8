# SPDX-License-Identifier: Apache-2.0
"""Changes after which an image is done again."""

from __future__ import annotations

import dataclasses
import hashlib
from types import SimpleNamespace

import pytest
import template_home

from bmex_bids.cli.parser import parse
from bmex_bids.exceptions import UsageError, WeightsError
from bmex_bids.inputs.age import Age
from bmex_bids.inputs.collect import SourceImage
from bmex_bids.inputs.plan import PlannedImage
from bmex_bids.inputs.templates import Grid, Template
from bmex_bids.network.weights import checkpoints, registry
from bmex_bids.running import planning


@pytest.fixture
def bids(tmp_path):
    anat = tmp_path / "bids" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (anat / "sub-01_T1w.nii.gz").write_bytes(b"voxels")
    (tmp_path / "mask.nii.gz").write_bytes(b"mask")
    return tmp_path / "bids"


@pytest.fixture
def image(bids):
    path = bids / "sub-01/anat/sub-01_T1w.nii.gz"
    source = SourceImage(path, {"sub": "01"}, "T1w", {"EchoTime": 0.003}, bids)
    age = Age(30.0, False, "30", "months", "participants.tsv", "age")
    return PlannedImage(source, age, "month24", 0.8, "0p8", "sub-01/anat")


@pytest.fixture
def task(bids, tmp_path, monkeypatch):
    """Of an image, some flags and the checksums of two networks."""

    def of(image, *flags, sums=("a", "b"), scales=(1.0, None, 1.0), tissues=None):
        enhance, strip = (
            SimpleNamespace(
                sha256=text,
                mirrored=("x",),
                companions=(),
                variant="bmex-slices",
                error_scale=scales[0],
                volume_scale=scales[1],
                share=scales[2],
                usual=None,
                tissues=tissues,
            )
            for text in sums
        )
        monkeypatch.setattr(planning, "weights_of", lambda *_: enhance)
        monkeypatch.setattr(planning, "strip_weights_of", lambda *_: strip)
        config = parse([str(bids), str(tmp_path / "out"), "participant", *flags])
        return planning.task(config, image)

    return of


@pytest.fixture
def fingerprint(task):
    """Of such a task."""
    return lambda *flags, **networks: task(*flags, **networks).fingerprint


def test_the_estimate_of_time_knows_what_the_flags_leave_out(image, task):
    usual = task(image)
    assert (usual.mirroring, usual.motion_correction) == (True, True)
    quick = task(image, "--no-mirroring", "--motion-correction", "off")
    assert (quick.mirroring, quick.motion_correction) == (False, False)


@pytest.mark.parametrize(
    "flags",
    [
        ("--skull-strip", "force"), ("--no-mirroring",), ("--precision", "float32"),
        ("--geometry", "reference"), ("--qc-only",), ("--output-res", "0p8"),
        ("--output-res", "native", "0p8", "0p4"),
        ("--uncertainty", "off"), ("--max-change", "5"), ("--segment", "off"),
        ("--motion-correction", "off"),
    ],
    ids="".join,
)  # fmt: skip
def test_a_flag_that_changes_the_result_does_an_image_again(image, fingerprint, flags):
    assert fingerprint(image, *flags)["Configuration"] != fingerprint(image)["Configuration"]


@pytest.mark.parametrize("flags", [("--nprocs", "1"), ("-v",), ("--low-mem",)], ids="".join)
def test_a_flag_that_does_not_leaves_it(image, fingerprint, flags):
    assert fingerprint(image, *flags) == fingerprint(image)


def test_so_does_what_is_known_of_the_image(image, fingerprint):
    before = fingerprint(image)
    older = dataclasses.replace(image.age, months=31.0)
    for other in (
        dataclasses.replace(image, age=older),
        dataclasses.replace(image, age_group="month18"),
        dataclasses.replace(image, image=dataclasses.replace(image.image, metadata={})),
    ):
        assert fingerprint(other)["Configuration"] != before["Configuration"]


def test_so_does_the_template_of_the_histogram(image, fingerprint, tmp_path):
    """And the name of the dataset that a mask is from."""
    paths = [tmp_path / name for name in ("first.nii.gz", "second.nii.gz")]
    for path in paths:
        path.write_text(path.name)
    known = [fingerprint(image)["Configuration"]]
    for path in paths:
        template = Template("MNIInfant", "T1w", "", (Grid("1", path),))
        matched = dataclasses.replace(image, histogram=template)
        known.append(fingerprint(matched)["Configuration"])
    known.append(fingerprint(dataclasses.replace(image, mask_source="a: m"))["Configuration"])
    assert len(set(known)) == 4


def test_so_do_the_voxels_of_image_and_mask(image, fingerprint, tmp_path):
    before = fingerprint(image)
    masked = dataclasses.replace(image, mask=tmp_path / "mask.nii.gz", mask_source="mine: mask")
    with_mask = fingerprint(masked)
    assert with_mask["Input"] != before["Input"]
    (tmp_path / "mask.nii.gz").write_bytes(b"another mask")
    assert fingerprint(masked)["Input"] != with_mask["Input"]
    image.image.path.write_bytes(b"other voxels")
    assert fingerprint(image)["Input"] != before["Input"]


@pytest.mark.parametrize("scales", [(1.1, None, 1.0), (1.0, 0.1, 1.0), (1.0, None, 0.5)])
def test_so_do_the_factors_of_the_weights(image, fingerprint, scales):
    before = fingerprint(image)["Configuration"]
    assert fingerprint(image, scales=scales)["Configuration"] != before


@pytest.mark.parametrize("sums", [("A", "b"), ("a", "B")])
def test_so_does_each_network(image, fingerprint, sums):
    assert fingerprint(image, sums=sums)["Weights"] != fingerprint(image)["Weights"]


def test_localizers_small_coverage_and_rows_of_scans_are_left_out_with_reasons(
    bids_skeleton, make_image, tmp_path, capsys
):
    rows = [
        {"filename": f"anat/sub-01_{name}.nii.gz", "QU_motion": motion}
        for name, motion in (("T1w", 1), ("run-2_T1w", 4), ("acq-thin_T1w", 0))
    ]
    bids = bids_skeleton(
        {
            "participants.tsv": [{"participant_id": "sub-01", "age_months": 12}],
            "sub-01/sub-01_scans.tsv": rows,
            "sub-01/anat/sub-01_T1w.nii.gz": make_image("LPS", (30, 30, 30), spacing=(5, 5, 5)),
            "sub-01/anat/sub-01_run-2_T1w.nii.gz": None,
            "sub-01/anat/sub-01_acq-thin_T1w.nii.gz": make_image(
                "LPS", (100, 100, 20), spacing=(2, 2, 4)
            ),
            "sub-01/anat/sub-01_acq-mrsLocAx_T2w.nii.gz": None,
        }
    )
    flags = ["--scans-filter", "QU_motion<=2", "--least-coverage", "100"]
    config = parse([str(bids), str(tmp_path / "out"), "participant", *flags])
    planned, not_taken = planning.survey(config)
    assert [image.name for image in planned] == ["sub-01_T1w"]
    assert {item.name.rpartition("/")[2]: item.reason.split(";")[0] for item in not_taken} == {
        "sub-01_run-2_T1w.nii.gz": "QU_motion 4 in sub-01_scans.tsv",
        "sub-01_acq-thin_T1w.nii.gz": "its field of view is 80 mm along one axis",
        "sub-01_acq-mrsLocAx_T2w.nii.gz": "a localizer by its name (acq-mrsLocAx), which shows a part "
        "of the brain",
    }
    assert not any(item.asked_for for item in not_taken)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("acq-scout_T1w", []),
        ("T1w", ["--least-coverage", "100"]),
        ("T1w", ["--scans-filter", "QU_motion<=2"]),
    ],
)
def test_a_participant_asked_for_all_of_whose_images_are_left_out(
    name, flags, bids_skeleton, make_image, tmp_path
):
    bids = bids_skeleton(
        {
            "participants.tsv": [{"participant_id": "sub-01", "age_months": 12}],
            "sub-01/sub-01_scans.tsv": [{"filename": "anat/sub-01_T1w.nii.gz", "QU_motion": 1}],
            "sub-01/anat/sub-01_T1w.nii.gz": make_image("LPS", (30, 30, 30), spacing=(5, 5, 5)),
            f"sub-02/anat/sub-02_{name}.nii.gz": None,
        }
    )
    given = [str(bids), str(tmp_path / "out"), "participant", *flags]
    for labels, told in (([], []), (["--participant-label", "01", "02"], ["sub-02"])):
        planned, not_taken = planning.survey(parse([*given, *labels]))
        assert [image.name for image in planned] == ["sub-01_T1w"]
        assert [item.name for item in not_taken if item.asked_for] == told


def test_a_template_for_the_histogram_is_in_the_plan_with_a_warning(
    bids_skeleton, tmp_path, monkeypatch
):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(template_home.make(tmp_path / "templateflow")))
    bids = bids_skeleton({f"sub-01/anat/sub-01_{name}.nii.gz": None for name in ("T1w", "T2w")})

    def planned(template, *flags, months="3"):
        given = [str(bids), str(tmp_path / "out"), "participant", "--age-months", months]
        return planning.plan(parse([*given, "--histogram-reference", template, *flags]))

    t1w, t2w = planned("tpl-MNIInfant")
    assert [item.histogram.label for item in (t1w, t2w)] == ["MNIInfant+2"] * 2
    assert [item.histogram.contrast for item in (t1w, t2w)] == ["T1w", "T2w"]
    assert "not to the reference of the age" in t1w.warnings[-1]
    assert t1w.templates == ()  # no image is brought there
    (older,) = planned("tpl-MNIInfant", "-m", "T1w", months="30")
    assert older.histogram is None
    assert "not 30" in older.warnings[-1]
    with pytest.raises(UsageError, match="which has T1w"):
        planned("tpl-MNI152NLin2009cAsym")


def structures_record(path, **changes):
    text = b"weights"
    path.write_bytes(text)
    fields = {
        "name": "structures", "kind": "segment", "path": path,
        "sha256": hashlib.sha256(text).hexdigest(), "licence": "", "source": "",
        "description": "", "variant": "bmex-segment", "input_units": "any",
        "age_groups": ("month24",), "contrasts": ("T1w",), "version": "1", **changes,
    }  # fmt: skip
    return registry.WeightRecord(**fields)


def test_structures_without_weights_for_them_are_refused(image, fingerprint, monkeypatch):
    monkeypatch.setattr(
        registry, "bundled", lambda own=registry.bundled: [r for r in own() if r.kind != "segment"]
    )
    with pytest.raises(WeightsError, match="none are installed; use --segment tissues"):
        fingerprint(image, "--segment", "rois")


def test_weights_for_structures_are_part_of_the_fingerprint_and_of_the_work(
    image, bids, fingerprint, tmp_path, monkeypatch
):
    found = structures_record(tmp_path / "w")
    monkeypatch.setattr(registry, "bundled", lambda: [found])
    with_structures = fingerprint(image, "--segment", "rois")
    assert with_structures["Weights"] != fingerprint(image)["Weights"]
    config = parse([str(bids), str(tmp_path / "out"), "participant", "--segment", "rois"])
    task = planning.task(config, image)
    assert task.segment_weights == found
    names = [name.rpartition("/")[2] for name in task.outputs]
    assert "sub-01_seg-subcortical_desc-enhanced_dseg.nii.gz" in names
    loaded = []
    monkeypatch.setattr(checkpoints, "load_network", lambda *given: loaded.append(given))
    monkeypatch.setattr(planning.Task, "to_run", True)
    planning.try_weights([dataclasses.replace(task, weights=None, strip_weights=None)])
    assert loaded == [(found.path, "bmex-segment")]


def test_weights_that_find_the_tissues_are_part_of_the_fingerprint(image, fingerprint):
    def of(tissues, **changes):
        return fingerprint(dataclasses.replace(image, **changes), tissues=tissues)["Weights"]

    finding = {"T1w": ["month24"]}
    assert of(finding) != of(None)
    assert of(finding, age_group="month18") == of(None, age_group="month18")
    assert of({"T2w": ["month24"]}) == of(None)


@pytest.mark.parametrize(
    ("group", "name"), [("month24", "bmex-segment-2"), ("month18", None), ("month6", None)]
)
def test_structures_of_adults_and_children_have_bundled_weights(image, bids, group, name):
    config = parse([str(bids), "out", "participant", "--segment", "rois"])
    found = planning.segment_weights_of(config, dataclasses.replace(image, age_group=group))
    assert (found and found.name) == name


def test_an_image_that_the_weights_for_structures_are_not_for_has_tissues(
    image, bids, fingerprint, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        registry, "bundled", lambda: [structures_record(tmp_path / "w", age_groups=("fetal",))]
    )
    fingerprint(image, "--segment", "rois")
    config = parse([str(bids), str(tmp_path / "out"), "participant", "--segment", "rois"])
    task = planning.task(config, image)
    assert task.segment_weights is None
    assert any("structures are not labelled" in text for text in task.planned.warnings)
    assert not [name for name in task.outputs if "seg-subcortical" in name]
    assert [name for name in task.outputs if "probseg" in name]


def test_without_segmentation_no_tissues_are_expected(image, bids, fingerprint, tmp_path):
    fingerprint(image)
    config = parse([str(bids), str(tmp_path / "out"), "participant", "--segment", "off"])
    outputs = planning.task(config, image).outputs
    assert outputs
    assert not [name for name in outputs if "seg" in name.rpartition("/")[2]]


HALF = ("--output-res", "native", "0p8", "0p4")


def test_weights_that_halve_edges_are_part_of_the_fingerprint_and_of_the_work(
    image, bids, fingerprint, tmp_path, monkeypatch
):
    found = structures_record(tmp_path / "w", kind="super", variant="bmex-super")
    monkeypatch.setattr(registry, "bundled", lambda: [found])
    before = fingerprint(image, *HALF)["Weights"]
    assert before != fingerprint(image)["Weights"]
    config = parse([str(bids), str(tmp_path / "out"), "participant", *HALF])
    task = planning.task(config, image)
    assert task.super_weights == found
    names = [name.rpartition("/")[2] for name in task.outputs]
    assert "sub-01_res-0p4_desc-enhanced_T1w.nii.gz" in names
    loaded = []
    monkeypatch.setattr(checkpoints, "load_network", lambda *given: loaded.append(given))
    monkeypatch.setattr(planning.Task, "to_run", True)
    planning.try_weights([dataclasses.replace(task, weights=None, strip_weights=None)])
    assert loaded == [(found.path, "bmex-super")]


def test_edges_are_halved_only_where_it_is_asked(image, task):
    assert task(image).super_weights is None
    assert not [name for name in task(image).outputs if "res-0p4" in name]
    assert task(image, *HALF, "--qc-only").super_weights is None
    assert task(image, "--output-res", "0p4").super_weights.name.startswith("bmex-super-")


def test_without_weights_that_halve_edges_it_is_refused(image, task, monkeypatch):
    monkeypatch.setattr(registry, "bundled", list)
    with pytest.raises(WeightsError, match="none are installed; leave 0p4 out"):
        task(image, *HALF)
