# SPDX-License-Identifier: Apache-2.0
"""The node that measures and judges: what it finds in a phantom, right and made wrong."""

from __future__ import annotations

import itertools
import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from bmex_bids.interfaces import quality as nodes
from bmex_bids.interfaces.quality import MeasureLikeMriqc, MeasureQuality
from bmex_bids.network.inference.score import Estimate, Score, rms_of
from bmex_bids.network.weights.registry import bundled
from bmex_bids.workflows.request import as_table

SPACING = 4.0
#: number of a tissue in the network → in files
AS_WRITTEN = np.array([0, 3, 1, 2], np.uint8)


@pytest.fixture
def quality(head_phantom, tmp_path, monkeypatch):
    """Run the node on a phantom; keywords replace an image or a value."""
    monkeypatch.chdir(tmp_path)
    phantom = head_phantom(spacing=SPACING)
    brain = np.asarray(phantom.brain.dataobj).astype(np.float32)
    litres = float(phantom.mask.sum()) * SPACING**3 / 1e6
    images = {
        "before": brain,
        "after": (brain * 1.01).astype(np.float32),
        "labels": phantom.tissues.astype(np.uint8),
        "labels_before": phantom.tissues.astype(np.uint8),
        "labels_after": phantom.tissues.astype(np.uint8),
        "dseg": AS_WRITTEN[phantom.tissues],
        "dseg_before": AS_WRITTEN[phantom.tissues],
        "mask_res": phantom.mask.astype(np.uint8),
        "corrected": np.asarray(phantom.image.dataobj).astype(np.float32),
        "mask": phantom.mask.astype(np.uint8),
    }
    values = {
        "mask_info": {
            "volume_litres": litres,
            "components": 1,
            "border_contact": 0.0,
            "turn": "LPS",
            "turn_margin": 0.0,
        },
        "age_months": 72.0,
        "fetal": False,
    }

    def run(**changed):
        inputs = dict(values)
        for name, data in images.items():
            data = changed.pop(name, data)
            path = data if isinstance(data, str) else tmp_path / f"{name}.nii.gz"
            if not isinstance(data, str):
                nib.save(nib.Nifti1Image(data, phantom.image.affine), path)
            inputs[name] = str(path)
        for name in ("deviation", "refocused"):
            if (data := changed.pop(name, None)) is not None:
                path = tmp_path / f"{name}.nii.gz"
                nib.save(nib.Nifti1Image(data, phantom.image.affine), path)
                inputs[name] = str(path)
        outputs = MeasureQuality(**(inputs | changed)).run().outputs
        json.dumps([outputs.quality, outputs.gate], allow_nan=False)  # fit for a sidecar
        rules = {rule["Rule"]: rule["Verdict"] for rule in outputs.gate["Rules"]}
        assert outputs.gate["Verdict"] in rules.values()
        return outputs.quality, outputs.gate["Verdict"], rules

    run.images, run.litres, run.phantom = images, litres, phantom
    run.info = values["mask_info"]
    return run


def test_a_phantom_that_got_a_little_brighter(quality):
    figures, verdict, rules = quality()
    assert set(rules.values()) == {"pass"}
    assert verdict == "pass"
    assert figures["qi"] == pytest.approx(1, abs=1e-3)
    assert figures["tct_before"] == pytest.approx(figures["tct_after"], rel=1e-3)
    assert figures["correlation"] == pytest.approx(1)
    assert figures["mean_shift"] == pytest.approx(0.01, abs=1e-4)
    assert figures["empty_share"] < 0.03
    grey = int((quality.phantom.tissues == 2).sum())
    assert figures["gm_litres_before"] == pytest.approx(grey * SPACING**3 / 1e6)
    assert figures["gm_litres_after"] == figures["gm_litres_before"]


def test_the_network_is_judged_by_the_image_whose_motion_was_undone(quality):
    """The contrast before stays that of the image as it came, which is full of ghosts."""
    good = quality.images["before"]
    ghosts = (0.6 * np.roll(good, 8, axis=1) * quality.phantom.mask).astype(np.float32)
    figures, _, rules = quality(before=ghosts, refocused=good)
    assert figures["correlation"] == pytest.approx(1)
    assert figures["mean_shift"] == pytest.approx(0.01, abs=1e-4)
    assert rules["correlation with input"] == rules["mean intensity shift"] == "pass"
    assert figures["tct_before"] < 0.8 * figures["tct_after"]
    figures, _, rules = quality(before=good, refocused=ghosts)
    assert rules["correlation with input"] == rules["mean intensity shift"] == "fail"
    assert figures["qi"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("shown", "named", "verdict"),
    [
        ("T1w", "T1w", "pass"),
        ("T2w", "T2w", "pass"),
        ("T2w", "T1w", "fail"),
        ("T1w", "T2w", "fail"),
    ],
)
def test_the_contrast_is_held_against_the_name(quality, shown, named, verdict):
    head = quality.images["corrected"]
    seen = head if shown == "T1w" else 1000 - head
    figures, _, rules = quality(corrected=seen, contrast=named)
    assert rules["contrast"] == verdict
    assert (figures["fluid_contrast"] > 0) is (shown == "T2w")


@pytest.mark.parametrize(
    ("shown", "named", "lowest", "highest", "verdict"),
    [
        ("T2w", "T1w", 0.0, 0.5, "warn"),  # a T1w image whose white matter is clipped
        ("T2w", "T1w", 0.1, 0.0, "warn"),  # one whose fluid is
        ("T1w", "T2w", 0.0, 0.1, "warn"),  # a T2w image whose fluid is clipped
        ("T2w", "T1w", 0.0, 0.2, "fail"),
        ("T1w", "T2w", 0.1, 0.0, "fail"),
        ("T1w", "T1w", 0.1, 0.1, "pass"),
    ],
)
def test_a_clipped_image_is_not_called_another_contrast(
    quality, shown, named, lowest, highest, verdict
):
    """Tissue maps were left out, and the user told to correct a name that was right."""
    head = quality.images["corrected"]
    info = quality.info | {"at_lowest": lowest, "at_highest": highest}
    seen = head if shown == "T1w" else 1000 - head
    figures, _, rules = quality(corrected=seen, contrast=named, mask_info=info)
    assert rules["contrast"] == verdict
    assert (figures["fluid_contrast"] is None) is (verdict == "warn")


def test_noise_instead_of_a_brain_fails(quality):
    mask = quality.phantom.mask
    noise = np.random.default_rng(0).uniform(0, 800, mask.shape).astype(np.float32) * mask
    _, verdict, rules = quality(after=noise)
    assert verdict == "fail"
    assert rules["correlation with input"] == rules["tissue contrast after"] == "fail"
    assert rules["quality index"] == "fail"


def test_a_mask_that_is_off_by_half_the_head_fails(quality):
    side = quality.phantom.mask
    extent = np.flatnonzero(side.any(axis=(0, 2)))
    shifted = np.roll(side, (extent[-1] - extent[0]) // 2, axis=1)
    _, verdict, rules = quality(mask=shifted.astype(np.uint8))
    assert verdict == "fail"
    assert rules["empty share of mask"] == "fail"


def test_a_mask_that_fills_the_field_of_view_fails(quality):
    everything = np.ones(quality.phantom.mask.shape, np.uint8)
    info = {
        "volume_litres": everything.size * SPACING**3 / 1e6,
        "components": 1,
        "border_contact": 1.0,
    }
    _, verdict, rules = quality(mask=everything, mask_info=info)
    assert verdict == "fail"
    assert rules["mask volume"] == rules["mask at border"] == "fail"
    assert rules["empty share of mask"] == "fail"


def test_a_tissue_that_doubled_fails(quality):
    labels = quality.images["labels"].copy()
    white, grey = np.flatnonzero(labels == 3), np.flatnonzero(labels == 2)
    taken = min(white.size, grey.size)
    labels.flat[grey[:taken]] = 3
    figures, verdict, rules = quality(dseg=AS_WRITTEN[labels])
    assert rules["tissue volume change"] == "warn"
    assert figures["wm_litres_after"] > 1.4 * figures["wm_litres_before"]
    figures, verdict, rules = quality(labels_after=labels)
    assert verdict == "fail"
    assert rules["tissues of the enhanced image"] == "fail"
    assert figures["enhanced_tissue_change"] > 0.4


def test_volumes_after_are_those_of_the_tissues_that_are_written(quality, tmp_path):
    """They were those of the enhanced image, in which the network sees grey matter as white."""
    seen = quality.images["labels"].copy()
    grey = np.flatnonzero(seen == 2)
    seen.flat[grey[: grey.size // 5]] = 3
    written = tmp_path / "written.nii.gz"  # on another grid than the network's
    data = np.repeat(AS_WRITTEN[quality.phantom.tissues], 2, axis=0)
    nib.save(nib.Nifti1Image(data, np.diag([SPACING / 2, SPACING, SPACING, 1])), written)
    figures, _, rules = quality(labels_after=seen, dseg=str(written))
    for name in ("csf", "gm", "wm"):
        before = figures[f"{name}_litres_before"]
        assert figures[f"{name}_litres_after"] == pytest.approx(before, rel=1e-6)
    assert rules["tissue volume change"] == rules["share of WM"] == "pass"
    assert rules["tissues of the enhanced image"] == "warn"


def test_the_volume_is_judged_by_the_age(quality):
    def verdict(**changed):
        return quality(**changed)[2]["mask volume"]

    assert 1.1 < quality.litres < 1.2 * 1.1  # a little more than a newborn has
    assert verdict() == "pass"
    assert verdict(age_months=0.0) == "warn"
    assert verdict(age_months=6.0, fetal=True) == "fail"
    assert verdict(age_months=None) == "pass"


@pytest.mark.parametrize("value", [0, np.nan])
def test_an_image_without_anything_in_it_is_judged_and_stops_nothing(quality, value):
    blank = np.full_like(quality.images["after"], value)
    figures, verdict, rules = quality(after=blank, labels_after=np.zeros(blank.shape, np.uint8))
    assert verdict == "fail"  # all tissues are gone
    assert figures["correlation"] is None
    assert figures["qi"] is None
    assert rules["correlation with input"] == rules["quality index"] == "warn"


def test_a_mask_of_which_nothing_is_known_is_a_warning(quality):
    _, verdict, rules = quality(mask_info={})
    assert verdict == "warn"
    assert [name for name, found in rules.items() if found == "warn"] == [
        "mask volume", "mask components", "mask at border", "orientation",
    ]  # fmt: skip


def test_the_error_that_a_network_expects_is_a_figure_and_a_rule(quality):
    inside = quality.phantom.mask
    brain = quality.images["before"]
    mean = float(brain[inside].mean())
    deviation = np.where(inside, 0.04 * mean, 0).astype(np.float32)
    after = np.where(inside, brain + np.float32(0.03 * mean), brain)
    figures, _, rules = quality(after=after, deviation=deviation)
    assert figures["estimated_error_before"] == pytest.approx(0.05, rel=1e-3)
    assert figures["estimated_error_after"] == pytest.approx(0.04, rel=1e-3)
    assert rules["estimated error"] == "pass"
    _, _, rules = quality(deviation=3 * deviation)
    assert rules["estimated error"] == "warn"


def test_the_distance_from_training_is_a_figure_and_a_rule(quality):
    figures, _, rules = quality(training_distance=4.0)
    assert figures["training_distance"] == 4
    assert rules["unlike training"] == "warn"
    assert "unlike training" not in quality()[2]


def test_the_spread_of_a_volume_is_among_the_figures(quality):
    figures, _, _ = quality(litres_sd={"GM": 0.012})
    assert figures["gm_litres_sd"] == 0.012
    assert "gm_litres_sd" not in quality()[0]


def test_a_network_that_does_not_know_its_error_has_no_rule_for_it(quality):
    figures, _, rules = quality()
    assert figures["estimated_error_before"] is None
    assert "estimated error" not in rules


def test_the_score_sees_linear_images_before_and_after(quality, tmp_path):
    """The histogram matching is undone, whatever it was."""
    (record,) = [record for record in bundled() if record.kind == "score"]
    path = tmp_path / "intensity.json"

    def scored(match):
        path.write_text(json.dumps({"match": match}))
        knots = np.array(match["source"]), np.array(match["reference"])
        bent = {
            name: np.interp(quality.images[name], *knots).astype(np.float32)
            for name in ("before", "after")
        }
        found, _, _ = quality(**bent, score_weights=as_table(record), intensity_json=str(path))
        return found["Score"]

    plain = scored({"source": [0, 1000], "reference": [0, 1000]})
    bent = scored({"source": [0, 300, 1000], "reference": [0, 600, 1000]})
    assert plain["weights"] == record.name
    for when in ("before", "after"):
        assert bent[when] == pytest.approx(plain[when], abs=0.02)
    assert plain["before"]["noise_percent"] > 0


def test_the_score_after_is_no_better_than_the_change_explains(quality, tmp_path, monkeypatch):
    (record,) = [record for record in bundled() if record.kind == "score"]
    path = tmp_path / "intensity.json"
    path.write_text(json.dumps({"match": {"source": [0, 1000], "reference": [0, 1000]}}))
    told = iter([2.0, 0.1] * 2)

    def network(*_, **__):
        exact = Estimate(1.0, 1.0, 1.0)
        return Score(Estimate(next(told), 0.0, 3.0), exact, exact)

    monkeypatch.setattr(nodes, "score", network)
    before = quality.images["before"]
    for after, expected, verdict in ((before, 2.0, "warn"), (1000 - before, 0.1, "pass")):
        found, _, rules = quality(
            before=before, after=after, score_weights=as_table(record), intensity_json=str(path)
        )
        assert found["Score"]["before"]["motion"] == 2.0
        assert found["Score"]["after"]["motion"] == pytest.approx(expected, abs=0.01)
        assert rules["motion after"] == verdict


@pytest.mark.parametrize(("motion", "expected"), [({"Model": "periodic"}, 1.5), ({}, 0.2)])
def test_the_score_before_is_no_better_than_the_motion_that_was_undone(
    quality, tmp_path, monkeypatch, motion, expected
):
    """Of a fetus the network saw a third of the motion that the first step then undid."""
    record, chain, inside = _scored(quality, tmp_path, monkeypatch, 0.2)
    before = quality.images["before"]
    wave = np.sin(np.arange(before.shape[1]))[:, None] * np.ones(before.shape, np.float32)
    wave -= wave[inside].mean()
    wave *= rms_of(1.5) * before[inside].mean() / 400 / wave[inside].std()
    found, _, _ = quality(
        before=before,
        refocused=before + wave,
        after=before + wave,
        refocus={"applied": True, "motion": motion, "slices": {}},
        score_weights=record,
        intensity_json=chain,
    )
    assert found["Score"]["before"]["motion"] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("severity", "expected"), [(2.0, 1.0), (0.3, 0.3)])
def test_the_score_after_is_no_better_than_the_expected_error(
    quality, tmp_path, monkeypatch, severity, expected
):
    """Up to the motion before: where there was none, what is expected is no motion."""
    record, chain, inside = _scored(quality, tmp_path, monkeypatch, severity, 0.1)
    after = 1000 - quality.images["before"]  # a change that might explain all
    deviation = np.full(after.shape, rms_of(1.0) * after[inside].mean() / 400, np.float32)
    found, _, _ = quality(
        after=after, deviation=deviation, score_weights=record, intensity_json=chain
    )
    assert found["Score"]["after"]["motion"] == pytest.approx(expected, abs=0.02)


def _scored(quality, tmp_path, monkeypatch, before, others=None):
    """A network that says a severity before, and one of all other images; its record, chain, mask."""
    (record,) = [record for record in bundled() if record.kind == "score"]
    path = tmp_path / "intensity.json"
    path.write_text(json.dumps({"match": {"source": [0, 1000], "reference": [0, 1000]}}))
    told = itertools.chain([before], itertools.repeat(before if others is None else others))
    exact = Estimate(1.0, 1.0, 1.0)
    monkeypatch.setattr(
        nodes, "score", lambda *_, **__: Score(Estimate(next(told), 0.0, 3.0), exact, exact)
    )
    return as_table(record), str(path), quality.images["mask_res"] > 0


def test_the_resolution_before_is_no_finer_than_what_is_known(quality, tmp_path, monkeypatch):
    (record,) = [record for record in bundled() if record.kind == "score"]
    path = tmp_path / "intensity.json"
    path.write_text(json.dumps({"match": {"source": [0, 1000], "reference": [0, 1000]}}))
    exact = Estimate(0.5, 0.4, 0.6)
    monkeypatch.setattr(nodes, "score", lambda *_, **__: Score(exact, exact, exact))

    def resolution(**more):
        found, _, _ = quality(score_weights=as_table(record), intensity_json=str(path), **more)
        return [found["Score"][when]["resolution_mm"] for when in ("before", "after")]

    assert resolution() == pytest.approx([SPACING, 0.5])
    thick = {"applied": True, "slices": {"Axis": 2, "Thickness": 9.0}}
    assert resolution(refocus=thick) == pytest.approx([9.0, 0.5])
    assert resolution(refocus={"applied": False, "slices": {}}) == pytest.approx([SPACING, 0.5])


def test_without_a_network_there_is_no_score(quality):
    figures, _, _ = quality()
    assert "Score" not in figures


@pytest.fixture
def mriqc(head_phantom, tmp_path, monkeypatch):
    """Run the node of MRIQC's measures; after, the brain has a quarter of its noise."""
    monkeypatch.chdir(tmp_path)
    noisy, clean = (head_phantom(spacing=SPACING, noise=noise) for noise in (40.0, 10.0))
    affine = noisy.image.affine
    head, better = (np.asarray(p.image.dataobj) + 30 for p in (noisy, clean))
    preproc = nib.Nifti1Image(np.where(noisy.mask, better, head), affine)
    turned = ornt_transform(
        io_orientation(affine), axcodes2ornt("PIR")
    )  # as the scanner stored it
    images = {
        "conformed": nib.Nifti1Image(head, affine),
        "preproc": preproc.as_reoriented(turned),
        "field": nib.Nifti1Image(np.full(head.shape, 1.1, np.float32), affine),
        **{
            name: nib.Nifti1Image(data.astype(np.uint8), affine)
            for name, data in {
                "mask": noisy.mask,
                "mask_res": noisy.mask,
                **{f"tissue_{k}": noisy.tissues == k for k in (1, 2, 3)},
            }.items()
        },
    }

    def run(stripped):
        paths = {name: str(tmp_path / f"{name}.nii.gz") for name in images}
        for name, image in images.items():
            nib.save(image, paths[name])
        maps = [paths.pop(f"tissue_{k}") for k in (1, 2, 3)]
        node = MeasureLikeMriqc(
            **paths, probabilities_before=maps, probabilities=maps, stripped=stripped,
            quality={"qi": 0.9},
        )  # fmt: skip
        return node.run().outputs.quality

    return run


def test_mriqcs_measures_before_and_after(mriqc):
    quality = mriqc(stripped=False)
    json.dumps(quality, allow_nan=False)
    assert quality["qi"] == 0.9
    before, after = (quality["MRIQC"][when] for when in ("before", "after"))
    assert set(before) == set(after)
    assert len(before) == 57
    assert before["summary_wm_median"] == pytest.approx(1000, rel=0.02)
    assert before["summary_gm_median"] == pytest.approx(1000 * 510 / 750, rel=0.05)
    assert before["summary_wm_stdv"] == pytest.approx(1000 * 40 / 750, rel=0.1)
    assert after["summary_wm_stdv"] == pytest.approx(before["summary_wm_stdv"] / 4, rel=0.1)
    assert after["summary_bg_stdv"] == pytest.approx(before["summary_bg_stdv"], rel=0.1)
    assert after["cjv"] < 0.5 * before["cjv"]
    assert before["inu_med"] == pytest.approx(1.1)


def test_mriqcs_measures_of_a_brain_without_its_head(mriqc):
    found = mriqc(stripped=True)["MRIQC"]["before"]
    assert "cjv" in found
    assert not {"cnr", "efc", "fber", "snrd_wm", "summary_bg_mean", "wm2max"} & set(found)
