# SPDX-License-Identifier: Apache-2.0
import json
import math

import pytest

from bmex_bids.common.names import BidsName
from bmex_bids.outputs.sidecar import (
    PRODUCTS,
    chosen_products,
    finite,
    product_name,
    sidecar,
    structures_table,
    template_names,
)

BY_FIELD = {
    product.field if product.place is None else f"{product.field}[{product.place}]": product
    for product in PRODUCTS
}
SOURCE = "sub-01/ses-A/anat/sub-01_ses-A_acq-mprage_run-2_T1w.nii.gz"


def made(field, **changes):
    arguments = {
        "source": SOURCE,
        "spacing_mm": 0.75,
        "metadata": {"MagneticFieldStrength": 3, "SkullStripped": True, "Type": "x", "Age": 4},
        "processing": {"Quality": {"qi": math.nan}},
        "stripped_input": False,
    }
    return sidecar(BY_FIELD[field], **(arguments | changes))


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("enhanced_native", "desc-enhanced_T2w"),
        ("enhanced_res", "res-0p75_desc-enhanced_T2w"),
        ("enhanced_half", "res-0p375_desc-enhanced_T2w"),
        ("preproc_native", "desc-preproc_T2w"),
        ("mask_native", "desc-brain_mask"),
        ("dseg_native", "desc-enhanced_dseg"),
        ("probseg_native[0]", "label-CSF_desc-enhanced_probseg"),
        ("probseg_native[1]", "label-GM_desc-enhanced_probseg"),
        ("probseg_native[2]", "label-WM_desc-enhanced_probseg"),
        ("uncertainty_native", "desc-uncertainty_T2w"),
        ("structures_native", "seg-subcortical_desc-enhanced_dseg"),
    ],
)
@pytest.mark.parametrize("stem", ["sub-01", "sub-01_ses-A_acq-mprage_run-2"])
def test_names_keep_the_entities_of_the_source(field, name, stem):
    product = BY_FIELD[field]
    source = BidsName.of(f"{stem}_T2w")
    assert product_name(product, source, "0p75", ".nii.gz") == f"{stem}_{name}.nii.gz"


def test_every_product_is_named_above_and_names_differ():
    source = BidsName.of("sub-01_T1w")
    names = {product_name(product, source, "0p8", ".nii.gz") for product in PRODUCTS}
    assert len(names) == len(PRODUCTS) == 11


@pytest.mark.parametrize("field", list(BY_FIELD))
def test_what_lies_on_the_grid_of_the_raw_image_refers_to_it_and_the_rest_to_itself(field):
    native = f"bids:raw:{SOURCE}"
    itself = field in ("enhanced_res", "enhanced_half")
    assert made(field)["SpatialReference"] == ("orig" if itself else native)


@pytest.mark.parametrize("field", list(BY_FIELD))
def test_every_sidecar_says_what_it_is_and_where_it_comes_from(field):
    table = made(field)
    assert table["Description"]
    assert table["Sources"] == [f"bids:raw:{SOURCE}"]
    assert table["BMEX"] == {"Quality": {"qi": None}}
    json.dumps(table, allow_nan=False)


def test_resolution_is_said_of_the_network_grid_and_of_half_its_edge_alone():
    assert made("enhanced_res")["Resolution"].startswith("0.75 mm isotropic")
    assert made("enhanced_half", spacing_mm=0.8)["Resolution"].startswith(
        "0.4 mm isotropic, super-resolved from the network's 0.8 mm grid"
    )
    said = [field for field in BY_FIELD if "Resolution" in made(field)]
    assert said == ["enhanced_res", "enhanced_half"]


def test_edges_are_halved_only_where_it_is_asked():
    def fields(*grids):
        return {product.field for product in chosen_products(grids)}

    assert fields("native", "0p8", "0p4") - fields("native", "0p8") == {"enhanced_half"}
    assert chosen_products(["0p4"])[0].field == "enhanced_half"


@pytest.mark.parametrize("stripped", [True, False])
def test_skull_stripped_is_what_holds_for_the_product(stripped):
    assert made("enhanced_native", stripped_input=stripped)["SkullStripped"] is True
    assert made("enhanced_res", stripped_input=stripped)["SkullStripped"] is True
    assert made("preproc_native", stripped_input=stripped)["SkullStripped"] is stripped
    assert "SkullStripped" not in made("mask_native", stripped_input=stripped)


def test_metadata_are_carried_where_they_hold():
    image = made("preproc_native")
    assert image["MagneticFieldStrength"] == 3
    assert "Type" not in image
    assert "Age" not in image
    for field in ("mask_native", "dseg_native", "probseg_native[0]"):
        assert "MagneticFieldStrength" not in made(field)
    assert made("mask_native")["Type"] == "Brain"
    assert made("dseg_native")["Manual"] is False
    assert made("structures_native")["Manual"] is False
    assert made("structures_native")["volume_mm3"]["Units"] == "mm^3"


def test_what_the_raw_sidecar_says_of_itself_is_not_carried():
    """The raw image's description stood in the place of the product's, which tells unit and mask."""
    raw = {"Description": "raw", "Units": "arbitrary", "IntendedFor": "x", "RawSources": ["y"]}
    table = sidecar(
        PRODUCTS[0], source="sub-01/anat/sub-01_T1w.nii.gz", spacing_mm=0.8,
        metadata=raw, processing={}, stripped_input=False,
    )  # fmt: skip
    assert table["Description"] == PRODUCTS[0].description
    assert not {"Units", "IntendedFor", "RawSources"} & set(table)


def test_finite_replaces_only_what_json_lacks():
    value = {"a": [1, math.nan, (math.inf, "x")], "b": {"c": -math.inf, "d": 0.5, "e": None}}
    assert finite(value) == {"a": [1, None, [None, "x"]], "b": {"c": None, "d": 0.5, "e": None}}


def test_a_number_that_is_none_in_the_raw_sidecar_is_null():
    table = sidecar(
        PRODUCTS[0],
        source="sub-01/anat/sub-01_T1w.nii.gz",
        spacing_mm=0.8,
        metadata={"EchoTime": float("inf"), "Deep": [{"a": float("nan")}]},
        processing={},
        stripped_input=False,
    )
    assert table["EchoTime"] is None
    assert table["Deep"] == [{"a": None}]


def test_what_is_segmented_decides_on_the_products():
    def fields(segment):
        return {product.field for product in chosen_products(["native"], segment=segment)}

    tissues = {"dseg_native", "probseg_native"}
    assert fields("rois") == fields("tissues") | {"structures_native"}
    assert fields("off") == fields("tissues") - tissues
    assert fields("tissues") >= tissues
    names = template_names(BidsName.of("sub-01_T1w"), "MNI", [""], beside_another=False)
    without = template_names(
        BidsName.of("sub-01_T1w"), "MNI", [""], beside_another=False, tissues=False
    )
    assert {name for name in names if "seg" in name} == set(names) - set(without) != set()


def test_the_table_of_structures_has_numbers_names_and_volumes():
    lines = structures_table({"hippocampus_ml": 7.1234, "weights": "w"}).splitlines()
    assert lines[0] == "index\tname\tvolume_mm3"
    assert lines[9] == "9\thippocampus\t7123.4"
    assert lines[13] == "13\tbrain_stem\tn/a"
    assert len(lines) == 14
