# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import Undefined

from bmex_bids.interfaces.outputs import (
    SaveDerivatives,
    field_value,
    processing_record,
    super_record,
)
from bmex_bids.metrics.gate import Measures, judge
from bmex_bids.outputs.provenance import write_provenance
from bmex_bids.outputs.sidecar import PRODUCTS

FIELDS = ("enhanced_res", "enhanced_native", "preproc_native", "mask_native", "dseg_native")
PROVENANCE = {
    "weights": "test-1",
    "weights_sha256": "ab" * 32,
    "weights_licence": "MIT",
    "weights_source": "a test",
    "error_scale": 1.25,
    "share": 0.5,
    "device": "cpu",
    "precision": "float32",
    "mirrored": ["x", "y"],
    "seconds": 1.5,
}
GATE = {
    "Verdict": "fail",
    "Rules": [{"Rule": "some", "Value": None, "Verdict": "fail", "Reason": "It is wrong."}],
}
MASK_INFO = {"volume_litres": 1.2, "components": 1, "method": "input", "warnings": ["small mask"]}


@pytest.fixture
def planned():
    return {
        "subject": "01",
        "name": "sub-01_ses-A_run-2_T1w",
        "source": "sub-01/ses-A/anat/sub-01_ses-A_run-2_T1w.nii.gz",
        "folder": "sub-01/ses-A/anat",
        "spacing_mm": 0.8,
        "resolution": "0p8",
        "age": {"value": 2.0, "unit": "years", "months": 24.0, "fetal": False},
        "age_group": "month24",
        "metadata": {"MagneticFieldStrength": 3},
        "warnings": ["age rounded"],
    }


@pytest.fixture
def node(tmp_path, planned):
    """The node with a small image for each of its inputs."""

    def image(name, value):
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(np.full((2, 3, 4), value, np.uint8), np.eye(4)), path)
        return str(path)

    files = {name: image(name, k) for k, name in enumerate(FIELDS)}
    return SaveDerivatives(
        bids_dir=str(tmp_path / "bids"),
        output_dir=str(tmp_path / "out"),
        planned=planned,
        probseg_native=[image(f"prob{k}", 10 + k) for k in range(3)],
        uncertainty_native=image("deviation", 20),
        mask_info=MASK_INFO,
        quality={"tct_before": 1.0, "tct_after": None, "qi": float("nan")},
        gate=GATE,
        provenance=PROVENANCE,
        stripped=False,
        **files,
    )


def test_every_derivative_is_written_beside_its_sidecar(node, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = node.run()
    folder = tmp_path / "out" / "sub-01" / "ses-A" / "anat"
    start = "sub-01_ses-A_run-2"
    values = {
        f"{start}_desc-enhanced_T1w": 1,
        f"{start}_res-0p8_desc-enhanced_T1w": 0,
        f"{start}_desc-preproc_T1w": 2,
        f"{start}_desc-brain_mask": 3,
        f"{start}_desc-enhanced_dseg": 4,
        f"{start}_label-CSF_desc-enhanced_probseg": 10,
        f"{start}_label-GM_desc-enhanced_probseg": 11,
        f"{start}_label-WM_desc-enhanced_probseg": 12,
        f"{start}_desc-uncertainty_T1w": 20,
    }
    expected = {f"{name}.{ext}" for name in values for ext in ("nii.gz", "json")}
    assert {path.name for path in folder.iterdir()} == expected
    assert len(result.outputs.out_files) == 9
    for name, value in values.items():
        assert (np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj) == value).all()
        table = json.loads((folder / f"{name}.json").read_text())
        assert table["Sources"] == ["bids:raw:sub-01/ses-A/anat/sub-01_ses-A_run-2_T1w.nii.gz"]
        assert table["BMEX"]["Gate"] == GATE  # and a failing one stops no output
        assert table["BMEX"]["Quality"] == {"tct_before": 1.0, "tct_after": None, "qi": None}
    assert (tmp_path / "out" / "dataset_description.json").is_file()


def test_the_layout_of_the_published_container_keeps_the_raw_image(
    node, planned, tmp_path, make_image, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "bids" / planned["source"]
    make_image("LAS", (4, 5, 6), "int16", path=raw)
    node.inputs.planned = {**planned, "layout": "bme-x"}
    node.run()
    copy = tmp_path / "out" / planned["folder"] / raw.name
    assert copy.read_bytes() == raw.read_bytes()
    table = json.loads(copy.with_name(f"{planned['name']}.json").read_text())
    assert table["Sources"] == [f"bids:raw:{planned['source']}"]
    assert table["SkullStripped"] is False
    record = json.loads(
        (copy.parent / f"{planned['name'][:-4]}_desc-enhanced_T1w.json").read_text()
    )
    assert raw.name in record["BMEX"]["Outputs"]
    node.inputs.qc_only = True
    copy.unlink()
    node.run()
    assert not copy.exists()


def test_labels_of_structures_come_with_a_table_that_counts_as_a_product(
    node, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    node.inputs.structures_native = node.inputs.mask_native
    node.inputs.quality = {"Structures": {"weights": "w", "thalamus_ml": 13.5}}
    node.run()  # tissues only
    assert not list(tmp_path.glob("out/**/*subcortical*"))
    node.inputs.segment = "rois"
    node.run()
    stem = "sub-01_ses-A_run-2_seg-subcortical_desc-enhanced_dseg"
    folder = tmp_path / "out/sub-01/ses-A/anat"
    found = {path.name for path in folder.glob("*subcortical*")}
    assert found == {f"{stem}.nii.gz", f"{stem}.json", f"{stem}.tsv"}
    table = (folder / f"{stem}.tsv").read_bytes()
    assert b"5\tthalamus\t13500.0" in table
    record = json.loads((folder / "sub-01_ses-A_run-2_desc-enhanced_T1w.json").read_text())
    assert record["BMEX"]["Outputs"][f"{stem}.tsv"] == hashlib.sha256(table).hexdigest()


def test_segmentation_can_be_off(node, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    node.inputs.segment = "off"
    node.run()
    assert list(tmp_path.glob("out/**/*desc-brain_mask*"))
    assert not list(tmp_path.glob("out/sub-*/**/*seg*"))


@pytest.mark.parametrize("changed", [{"uncertainty": "off"}, {"uncertainty_native": Undefined}])
def test_no_map_of_the_uncertainty_where_it_is_not_asked_for_or_not_known(
    node, tmp_path, monkeypatch, changed
):
    monkeypatch.chdir(tmp_path)
    node.inputs.trait_set(**changed)
    names = [Path(path).name for path in node.run().outputs.out_files]
    assert len(names) == 8
    assert not [name for name in names if "uncertainty" in name]
    assert not list(tmp_path.glob("out/**/*uncertainty*"))


def test_sidecars_say_what_the_input_was_and_what_made_the_image(
    node, planned, tmp_path, make_image, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "bids" / planned["source"]
    make_image("LAS", (4, 5, 6), "int16", spacing=(1, 1, 2.5), path=raw)
    node.run()
    folder = tmp_path / "out" / planned["folder"]
    tables = {path: json.loads(path.read_text()) for path in folder.glob("*.json")}
    geometry = {"Shape": [4, 5, 6], "VoxelSizes": [1.0, 1.0, 2.5], "Orientation": "LAS"}
    for path, table in tables.items():
        assert table["BMEX"]["Input"] == geometry
        image = path.with_name(path.name.replace(".json", ".nii.gz"))
        assert table["Digest"] == {"sha256": hashlib.sha256(image.read_bytes()).hexdigest()}
    (made_by,) = {table["GeneratedBy"] for table in tables.values()}
    assert made_by.startswith("bids::prov#enhancement-")
    write_provenance(tmp_path / "out")
    activities = json.loads((tmp_path / "out" / "prov" / "prov-bmex_act.json").read_text())
    assert [item["Id"] for item in activities["Activities"]] == [made_by]


def test_of_an_image_of_another_contrast_no_tissues_are_written(node, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measures = Measures(contrast="T1w", fluid_contrast=0.6)
    node.inputs.gate = judge(measures).as_table()
    node.run()
    names = {path.name for path in (tmp_path / "out" / "sub-01" / "ses-A" / "anat").iterdir()}
    assert not [name for name in names if "dseg" in name or "probseg" in name]
    assert "sub-01_ses-A_run-2_desc-brain_mask.nii.gz" in names
    assert len(names) == 2 * 5


@pytest.mark.parametrize("output_res", [["native", "0p8"], ["0p8"]])
def test_the_record_is_written_last(node, tmp_path, monkeypatch, output_res):
    """It says that all the others are there: a run killed before leaves none."""
    monkeypatch.chdir(tmp_path)
    node.inputs.output_res = output_res
    renamed = []
    real = Path.replace

    def replace(path, target):
        renamed.append(target)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    node.run()
    renamed = [path for path in renamed if path.parent.name == "anat"]
    tables = {path: json.loads(path.read_text()) for path in renamed if path.suffix == ".json"}
    (record,) = (path for path, table in tables.items() if "Outputs" in table["BMEX"])
    assert renamed[-1] == record
    others = {path.name for path in renamed[:-1]}
    assert set(tables[record]["BMEX"]["Outputs"]) == others
    assert len(others) == (17 if "native" in output_res else 13)


def test_a_given_mask_is_a_source_and_its_dataset_is_linked(node, tmp_path, monkeypatch):
    """The sidecar of the very mask named the raw image alone."""
    monkeypatch.chdir(tmp_path)
    path = "sub-01/anat/sub-01_desc-brain_mask.nii.gz"
    node.inputs.planned |= {
        "given_mask": {"name": "byhand", "folder": str(tmp_path / "masks"), "path": path}
    }
    node.run()
    out = tmp_path / "out"
    for sidecar in (out / "sub-01" / "ses-A" / "anat").glob("*.json"):
        assert json.loads(sidecar.read_text())["Sources"][1:] == [f"bids:byhand:{path}"]
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    assert links == {"raw": "../bids", "byhand": "../masks"}


def test_the_record_says_age_weights_and_warnings(planned):
    record = processing_record(planned, PROVENANCE, MASK_INFO, {"qi": 0.5}, GATE)
    assert record["Weights"] == {
        "Name": "test-1", "SHA256": "ab" * 32, "License": "MIT", "Source": "a test",
        "ErrorScale": 1.25, "CorrectionShare": 0.5,
    }  # fmt: skip
    assert record["Gate"] == GATE
    assert record["Model"] == "month24"
    assert record["Mask"] == {"volume_litres": 1.2, "components": 1, "method": "input"}
    assert record["Warnings"] == ["age rounded", "small mask"]
    assert "HistogramReference" not in record


def test_the_record_names_the_template_that_intensities_were_matched_to(planned):
    planned["histogram"] = "MNI152NLin6Asym"
    record = processing_record(planned, PROVENANCE, MASK_INFO, {"qi": 0.5}, GATE)
    assert record["HistogramReference"] == "MNI152NLin6Asym"


def test_every_sidecar_says_what_the_motion_correction_did(node, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    motion = {"Model": "periodic", "PhaseEncodingAxis": 1, "RMSDisplacement": 1.9}
    said = {"applied": True, "reason": "periodic motion", "motion": motion}
    entropies = {"entropy_before": 9.0, "entropy_after": 8.5}
    folder = tmp_path / "out/sub-01/ses-A/anat"

    def records():
        node.run()
        for desc in ("enhanced", "preproc"):
            path = folder / f"sub-01_ses-A_run-2_desc-{desc}_T1w.json"
            yield json.loads(path.read_text())["BMEX"]

    assert all("MotionCorrection" not in record for record in records())  # off
    node.inputs.refocus = said | entropies
    for record in records():
        assert record["MotionCorrection"] == {
            "Applied": True, "Reason": "periodic motion", **motion,
            "EntropyBefore": 9.0, "EntropyAfter": 8.5,
        }  # fmt: skip
    lines = {"PhaseEncodingAxis": 2, "Period": 4.0, "WeakestLine": 0.4}
    node.inputs.refocus = {
        "applied": True, "reason": "ghosts", "motion": {}, "lines": lines, "spikes": 2,
    }  # fmt: skip
    for record in records():
        assert record["MotionCorrection"] == {
            "Applied": True, "Reason": "ghosts", "UnevenLines": lines, "Spikes": 2,
        }  # fmt: skip
    thick = {"Axis": 2, "Thickness": 2.4}
    node.inputs.refocus = {
        "applied": True, "reason": "slices", "motion": {}, "lines": {}, "spikes": 0,
        "slices": thick,
    }  # fmt: skip
    for record in records():
        assert record["MotionCorrection"] == {
            "Applied": True, "Reason": "slices", "ThickSlices": thick,
        }  # fmt: skip
    for split in ({}, {"Axis": 2, "Thickness": 3.0, "Parts": 4}):
        node.inputs.split_slices = split
        for record in records():
            assert record.get("SlicesSplit", {}) == split
    nothing = {"motion": {}, "lines": {}, "spikes": 0, "slices": {}}
    node.inputs.refocus = {"applied": False, "reason": "still"} | nothing
    for record in records():
        assert record["MotionCorrection"] == {"Applied": False, "Reason": "still"}


def test_a_product_takes_its_file_by_name_and_place():
    class Inputs:
        mask_native = "a"
        probseg_native = ("b", "c", "d")

    taken = {
        (product.field, product.place): field_value(Inputs, product)
        for product in PRODUCTS
        if hasattr(Inputs, product.field)
    }
    assert taken == {
        ("mask_native", None): "a",
        ("probseg_native", 0): "b",
        ("probseg_native", 1): "c",
        ("probseg_native", 2): "d",
    }


def test_what_halved_the_edges_is_in_the_record():
    table = {
        "weights": "bmex-super-1", "weights_sha256": "cd", "weights_licence": "L",
        "weights_source": "us", "spacing_mm": 0.4, "seconds": 20.5,
    }  # fmt: skip
    made = super_record({"super": table})["SuperResolution"]
    assert made["Weights"] == {
        "Name": "bmex-super-1", "SHA256": "cd", "License": "L", "Source": "us"
    }  # fmt: skip
    assert (made["VoxelSize"], made["NetworkSeconds"]) == (0.4, 20.5)
    given = ({"age": None, "age_group": "month24", "warnings": []}, {**PROVENANCE, "super": table})
    assert processing_record(*given, MASK_INFO, {}, GATE)["SuperResolution"] == made
    assert super_record(PROVENANCE) == {}


def test_what_found_the_tissues_is_in_the_record():
    table = {
        "weights": "finder", "weights_sha256": "ef", "weights_licence": "L", "weights_source": "us"
    }  # fmt: skip
    given = (
        {"age": None, "age_group": "month3", "warnings": []},
        {**PROVENANCE, "tissues": table},
    )
    told = {"Name": "finder", "SHA256": "ef", "License": "L", "Source": "us"}
    assert processing_record(*given, MASK_INFO, {}, GATE)["TissueMaps"] == {"Weights": told}
    given[1]["tissues"] = {}
    assert "TissueMaps" not in processing_record(*given, MASK_INFO, {}, GATE)


def test_the_grid_of_half_the_edge_is_written_where_it_was_made(node, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    node.inputs.output_res = ["native", "0p8", "0p4"]
    half = tmp_path / "out/sub-01/ses-A/anat/sub-01_ses-A_run-2_res-0p4_desc-enhanced_T1w.nii.gz"
    node.run()
    assert not half.exists()
    node.inputs.enhanced_half = node.inputs.enhanced_res
    node.run()
    assert half.is_file()
