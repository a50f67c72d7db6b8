# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pybtex.database import parse_string

from bmex_bids import __version__
from bmex_bids.exceptions import OutputError
from bmex_bids.imaging.intensity import rescale_robust
from bmex_bids.network.weights.registry import bundled
from bmex_bids.reports import methods
from bmex_bids.reports.facts import installed_versions
from bmex_bids.reports.methods import (
    Facts,
    WeightSet,
    collect_facts,
    fill_frame,
    methods_text,
    write_citation,
)
from bmex_bids.reports.references import cited_keys, known_references

OURS = next(record for record in bundled() if record.kind == "enhance")
STRIPPER = next(record for record in bundled() if record.kind == "strip")
OWN = {"Name": OURS.name, "SHA256": OURS.sha256, "License": OURS.licence, "Source": OURS.source}
PUBLISHED = {
    "Name": "bmex-1.0.5-month6-T1w",
    "SHA256": "ab" * 32,
    "License": "as published (MIT)",
    "Source": "Sun et al., Nat. Biomed. Eng. 2025",
}
NETWORK_MASK = {
    "method": "network",
    "weights": STRIPPER.name,
    "weights_sha256": STRIPPER.sha256,
    "weights_licence": STRIPPER.licence,
}
STRIPPED_MASK = {"method": "stripped"}
GIVEN_MASK = {"method": "given", "source": "fmriprep"}


def record(months=6.0, fetal=False, weights=OWN, mask=STRIPPED_MASK, **more):
    group = "fetal" if fetal else f"month{int(months // 6 * 6)}"
    return {
        "Version": __version__,
        "Age": {"months": months, "fetal": fetal, "value": "6", "unit": "months"},
        "Model": group,
        "Weights": weights,
        "Device": "cpu",
        "Precision": "float32",
        "Mask": mask,
        "Quality": {"tct_before": 1.7, "tct_after": 1.8, "qi": 0.95},
        **more,
    }


@pytest.fixture
def output(tmp_path):
    """A function that puts the sidecars of one image into the output; returns the output."""
    all_products = ("desc-enhanced", "res-0p8_desc-enhanced", "desc-preproc")

    def add(stem="sub-1", suffix="T1w", products=all_products, **of_record):
        entities = [part for part in stem.split("_") if part.startswith(("sub-", "ses-"))]
        folder = tmp_path.joinpath(*entities, "anat")
        folder.mkdir(parents=True, exist_ok=True)
        for product in products:
            path = folder / f"{stem}_{product}_{suffix}.json"
            path.write_text(json.dumps({"BMEX": record(**of_record)}), encoding="utf-8")
        return tmp_path

    return add


@pytest.fixture
def no_pandoc(monkeypatch):
    monkeypatch.setattr(methods.shutil, "which", lambda name: None)


def text_of(output_dir):
    return methods_text(collect_facts(output_dir))


# ------------------------------------------------------------------ facts
def test_every_image_counts_once_whatever_was_written_of_it(output):
    output("sub-1_ses-A_run-1")
    output("sub-1_ses-A_run-2", products=["desc-enhanced"])
    output("sub-2", "T2w", months=30, products=["res-0p8_desc-enhanced"])
    root = output("sub-3", products=["desc-quality"])
    facts = collect_facts(root)
    assert facts.images == 4
    assert facts.participants == 3
    assert facts.contrasts == {"T1w": 3, "T2w": 1}
    assert facts.age_groups == {"month6": 3, "month30": 1}
    assert list(facts.age_groups) == ["month6", "month30"]
    assert (facts.native, facts.resolution, facts.preproc, facts.measured) == (2, 2, 1, 1)
    assert facts.weights == (
        WeightSet(OURS.name, OURS.sha256, OURS.licence, OURS.source, "own", 4),
    )


def test_images_in_which_motion_was_looked_for_and_undone_are_counted(output):
    output("sub-1")
    output("sub-2", MotionCorrection={"Applied": False, "Reason": "no periodic motion found"})
    output("sub-3", MotionCorrection={"Applied": False, "EntropyBefore": 9.0})
    output("sub-4", MotionCorrection={"Applied": True, "Model": "periodic"})
    output("sub-9", MotionCorrection={"Applied": True, "Model": "jumps"})
    output("sub-5", MotionCorrection={"Applied": True, "Spikes": 2})
    output("sub-6", MotionCorrection={"Applied": True, "UnevenLines": {"Period": 4}})
    output("sub-7", MotionCorrection={"Applied": True, "ThickSlices": {"Axis": 2}})
    root = output("sub-8", MotionCorrection={"Applied": True, "Noise": {"Removed": 1.0}})
    facts = collect_facts(root)
    assert (facts.motion_looked_for, facts.motion_undone, facts.jumps_undone) == (8, 1, 1)
    assert (facts.lines_mended, facts.spikes_removed) == (1, 1)
    assert (facts.slices_sharpened, facts.noise_reduced) == (1, 1)


def test_images_whose_slices_were_split_are_counted(output):
    output("sub-1")
    root = output("sub-2", SlicesSplit={"Axis": 2, "Thickness": 3.0, "Parts": 4})
    assert collect_facts(root).slices_split == 1


@pytest.mark.parametrize(
    ("key", "field"), [("TissueMaps", "tissue_weights"), ("SuperResolution", "super_weights")]
)
def test_further_networks_are_counted_by_their_weights(output, key, field):
    told = {
        "Name": OURS.name, "SHA256": OURS.sha256, "License": OURS.licence, "Source": OURS.source
    }  # fmt: skip
    output("sub-1")
    root = output("sub-2", **{key: {"Weights": told}})
    (found,) = getattr(collect_facts(root), field)
    assert (found.name, found.images) == (OURS.name, 1)


def test_ages_are_kept_apart_at_birth(output):
    output("sub-1", months=3)
    output("sub-2", months=72)
    facts = collect_facts(output("sub-3", "T2w", months=7 * 30 / 30.4375, fetal=True))
    assert facts.postnatal_months == (3, 72)
    assert facts.fetal_weeks == pytest.approx((30, 30))
    text = methods_text(facts)
    assert "Ages at the scan were 3 months to 6 years and 30 weeks of gestation." in text
    assert "0.8 mm (fetal images: 0.75 mm)" in text


def test_a_sidecar_that_cannot_be_read_is_left_out_and_named(output, caplog):
    root = output()
    (root / "sub-2" / "anat").mkdir(parents=True)
    broken = root / "sub-2" / "anat" / "sub-2_desc-enhanced_T1w.json"
    broken.write_text("{", encoding="utf-8")
    foreign = broken.with_name("sub-3_desc-enhanced_T1w.json")
    foreign.write_text('{"BMEX": 3}', encoding="utf-8")
    assert collect_facts(root).images == 1
    assert str(broken) in caplog.text


def test_versions_are_those_of_what_is_installed(output):
    import nibabel

    facts = collect_facts(output())
    assert facts.versions["nibabel"] == nibabel.__version__
    assert facts.versions["python"] == ".".join(str(n) for n in sys.version_info[:3])
    assert f"*NiBabel* {nibabel.__version__} [@nibabel]" in methods_text(facts)


def test_collecting_loads_neither_torch_nor_nipype(output):
    code = (
        "import sys; from pathlib import Path; from bmex_bids.reports.methods import *;"
        "methods_text(collect_facts(Path(sys.argv[1])));"
        "print(*{'torch', 'nipype', 'bids', 'nireports'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(output())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == ""


# ------------------------------------------------------------------ text
def every_kind_of_facts():
    """Facts in which each step was done, and others in which one of them was not."""
    full = Facts(
        images=6,
        participants=5,
        contrasts={"T1w": 4, "T2w": 2},
        age_groups={"fetal": 1, "month0": 5},
        postnatal_months=(0.5, 40),
        fetal_weeks=(25, 31),
        processed_by=("0.0.1",),
        versions=installed_versions(),
        weights=(
            WeightSet("w-own", "11", "Apache-2.0", "us", "own", 4),
            WeightSet("w-published", "22", "MIT", "them", "published", 2),
        ),
        strip_weights=(WeightSet("w-strip", "44", "Apache-2.0", "us", "own", 2),),
        structure_weights=(WeightSet("w-structures", "66", "Apache-2.0", "us", "own", 3),),
        super_weights=(WeightSet("w-super", "77", "Apache-2.0", "us", "own", 2),),
        tissue_weights=(WeightSet("w-tissues", "88", "Apache-2.0", "us", "own", 4),),
        masks={"network": 2, "stripped": 1, "given": 2, "drawn": 1},
        mask_sources=("fmriprep",),
        spacing_mm=0.8,
        fetal_spacing_mm=0.75,
        native=5,
        resolution=4,
        preproc=5,
        measured=1,
        devices=("cpu", "NVIDIA X"),
        precisions=("float32",),
        reoriented=1,
        motion_looked_for=4,
        motion_undone=2,
        jumps_undone=1,
        lines_mended=1,
        spikes_removed=1,
        slices_sharpened=1,
        noise_reduced=1,
        slices_split=2,
        mirrored=4,
        turns=4,
        max_changes={"2.5": 1, "10": 1},
        shares={"50": 2},
        matched_to={"MNI152NLin6Asym": 1},
        spaces={"MNI152NLin2009cAsym": 2, "MNIInfant+2": 1},
        in_spaces=2,
        contrast_measured=6,
        gate={"pass": 5, "fail": 1},
        pictures=True,
        n4_mm=4,
        n4_iterations=(50, 20),
        match_points=7,
        match_levels=1024,
        match_share=0.999,
    )
    own, published = full.weights
    other = WeightSet("w-other", "33", "", "elsewhere", "other", 6)
    yield full
    yield dataclasses.replace(full, weights=(own,))
    yield dataclasses.replace(full, weights=(published,))
    yield dataclasses.replace(full, weights=(other,))
    theirs = WeightSet("w-lifespanstrip", "55", "MIT", "them", "published", 2)
    yield dataclasses.replace(full, strip_weights=(theirs,))
    yield dataclasses.replace(full, images=1, participants=1, masks={"network": 1})
    yield Facts(
        images=1,
        participants=1,
        contrasts={"T2w": 1},
        versions=full.versions,
        n4_mm=4,
        n4_iterations=(50, 20),
    )
    yield Facts(versions=full.versions)


@pytest.mark.parametrize("facts", list(every_kind_of_facts()))
def test_every_key_cited_is_in_the_bibliography(facts):
    known = known_references().entries
    text = methods_text(facts)
    keys = cited_keys(text)
    assert len(keys) >= 2
    assert set(keys) <= set(known)
    assert text.count("@") == len(re.findall(r"@[a-z]\w+", text))  # all of them are keys
    assert text.endswith("### References\n")
    assert not re.search(r"[{}\0]|  |\(\)|\*\*|None| ,| \.", text)


def test_no_reference_is_there_for_nothing():
    known = known_references().entries
    cited = {key for facts in every_kind_of_facts() for key in cited_keys(methods_text(facts))}
    assert cited == set(known)


FULL = next(every_kind_of_facts())
#: what was not done → the facts of that, and words that FULL has and these facts must not have
SKIPPED = {
    "no standard space": (
        {"spaces": {}, "in_spaces": 0, "matched_to": {}},
        [
            "For 2 images, images, mask and tissue maps",
            "@templateflow",
            "@mattes",
            "@demons",
            "(MNI152NLin2009cAsym for 2 and MNIInfant+2 for 1)",
        ],
    ),
    "all of the correction": ({"shares": {}}, ["For 2 images, only 50 % of the correction"]),
    "matched to the age": ({"matched_to": {}}, ["MNI152NLin6Asym"]),
    "no limit": ({"max_changes": {}}, ["no voxel was changed", "2.5 and 10 %"]),
    "no mask by network": (
        {"masks": {"stripped": 6}},
        ["@synthstrip", "@synthseg", "w-strip", "label maps", "convolutional", "probability map"],
    ),
    "a stripper that is not ours": (
        {"strip_weights": (WeightSet("w-strip", "44"),)},
        ["@synthstrip", "@synthseg", "label maps"],
    ),
    "no stripped image": ({"masks": {"network": 6}}, ["skull-stripped", "non-zero"]),
    "no mask given": ({"masks": {"network": 6}}, ["existing brain mask", "fmriprep"]),
    "our weights only": (
        {"weights": FULL.weights[:1]},
        ["U-Net", "@adunet", "w-published", "linear interp", "published BME-X code"],
    ),
    "published only": (
        {"weights": FULL.weights[1:]},
        ["compact", "w-own", "cubic splines, or", "inside the brain only", "99.9th percentile;"],
    ),
    "not on the input's grid": (
        {"native": 0, "preproc": 0},
        ["grid of the input", " also ", "blended"],
    ),
    "not back in the head": ({"preproc": 0}, ["blended", "inverse of the steps"]),
    "not on the network's grid": ({"resolution": 0}, ["saved on the grid"]),
    "no structures": (
        {"structure_weights": ()},
        ["For 3 images, 13 structures were labelled", "w-structures"],
    ),
    "nothing super-resolved": (
        {"super_weights": ()},
        ["super-resolved to half the edge", "w-super", "@espcn"],
    ),
    "tissues by the enhancement": (
        {"tissue_weights": ()},
        [
            "For 4 images, the tissues in maps and measures came",
            "w-tissues",
            "probability of a tissue",
        ],
    ),
    "no gate": ({"gate": {}}, ["verdict", "gate "]),
    "no pictures": ({"pictures": False}, ["NiReports", "@nireports", "visual inspection"]),
    "no header corrected": ({"reoriented": 0}, ["header", "right angles"]),
    "no motion looked for": (
        {
            "motion_looked_for": 0,
            "motion_undone": 0,
            "jumps_undone": 0,
            "lines_mended": 0,
            "spikes_removed": 0,
            "slices_sharpened": 0,
            "noise_reduced": 0,
        },
        ["@autofocus", "@gradientmotion", "read-out", "k-space", "entropy"],
    ),
    "no uneven lines": ({"lines_mended": 0}, ["strength of the lines was equalised"]),
    "no strong noise": ({"noise_reduced": 0}, ["noise was reduced"]),
    "no thick slices": ({"slices_sharpened": 0}, ["voxels within the slices"]),
    "no split slices": ({"slices_split": 0}, ["slices were first split"]),
    "no spikes": ({"spikes_removed": 0}, ["Spikes were removed"]),
    "no motion undone": ({"motion_undone": 0}, ["undone in k-space", "entropy fell"]),
    "no jumps": ({"jumps_undone": 0}, ["jumps of the head"]),
    "no tissue contrast": ({"contrast_measured": 0}, ["Tissue contrast"]),
    "nothing only measured": ({"measured": 0}, ["quality measures"]),
    "no fetus": (
        {"fetal_weeks": None, "fetal_spacing_mm": None},
        ["0.75 mm", "gestation"],
    ),
    "none born": ({"postnatal_months": None, "spacing_mm": None}, ["3.3 years", "0.8 mm"]),
    "measured only": (
        {"measured": 6, "native": 0, "resolution": 0, "preproc": 0},
        ["not meant for", "saved on the grid", "grid of the input", "blended"],
    ),
}


@pytest.mark.parametrize(("changes", "words"), SKIPPED.values(), ids=SKIPPED)
def test_what_was_not_done_is_not_in_the_text(changes, words):
    done, not_done = methods_text(FULL), methods_text(dataclasses.replace(FULL, **changes))
    assert [word for word in words if word not in done] == []
    assert [word for word in words if word in not_done] == []


def test_a_part_of_the_correction_and_another_reference_are_counted(output):
    output("sub-1", weights=OWN | {"CorrectionShare": 1.0})
    output("sub-2", weights=OWN | {"CorrectionShare": 0.5})
    root = output("sub-3", HistogramReference="MNI152NLin6Asym")
    facts = collect_facts(root)
    assert (facts.shares, facts.matched_to) == ({"50": 1}, {"MNI152NLin6Asym": 1})


def test_facts_that_are_told():
    text = methods_text(FULL)
    for words in (
        f"*bmex_bids* 0.0.1 (the settings described here are those of {__version__})",
        "consisted of 6 images of 5 participants (4 T1-weighted and 2 T2-weighted)",
        "Ages at the scan were 0.5 months to 3.3 years and 25 to 31 weeks of gestation.",
        "For 1 image, only quality measures were saved",
        "In 4 images, read-out faults were looked for",
        "In 2 images, thick slices were first split",
        "Spikes were removed from 1 image.",
        "For 1 image, the strength of the lines was equalised.",
        "For 2 images, the entropy fell by more than it does in still images",
        "voxels of about 4 mm, at most 50 and 20 iterations on 2 levels",
        "For 2 images, the brain was segmented",
        "*w-strip* (SHA-256 `44`; licence: Apache-2.0)",
        "1 image had been skull-stripped before",
        "For 2 images, an existing brain mask was used unchanged (fmriprep).",
        "For 1 image, the brain mask was obtained as follows: drawn.",
        "(images by age group: 1 fetal and 5 from birth)",
        "For 4 images, a compact network",
        "for 1 image, the histogram was matched to that of a template of TemplateFlow "
        "[@templateflow]: MNI152NLin6Asym.",
        "*w-own* (SHA-256 `11`; licence: Apache-2.0)",
        "For 2 images, the two joined",
        "*w-published* (SHA-256 `22`; licence: MIT)",
        "on the CPU and NVIDIA X in single precision (float32).",
        "For 4 images, they were applied to the brain and to its mirror images",
        "as prior [@mixture]; the probability of a tissue",
        "as prior [@mixture].",
        "averaged; the passes alternated between separately trained networks",
        "pass for 5 and fail for 1.",
    ):
        assert words in text


def test_mirror_images_are_told_as_each_kind_of_network_has_them(output):
    sliced = next(record for record in bundled() if record.variant == "bmex-slices")
    slices = {"Name": sliced.name, "SHA256": sliced.sha256, "License": sliced.licence}
    root = output("sub-1", weights=slices, MirroredAxes=["x"])
    text = text_of(root)
    assert "in six directions, every other one mirrored left to right, and" in text
    assert "front–back" not in text
    output("sub-2", weights=slices, MirroredAxes=[])
    assert "mirrored left to right (three directions for 1 image), and" in text_of(root)
    output("sub-1", weights=slices, MirroredAxes=[])
    assert "in three directions, and" in text_of(root)
    output("sub-1", MirroredAxes=["x", "y"])
    assert "For 1 image, they were applied to the brain and to its mirror" in text_of(root)


def test_the_histogram_matching_told_is_that_of_the_weights():
    _, own, published, other, *_ = (methods_text(facts) for facts in every_kind_of_facts())
    assert "inside the brain only, and ended at the 99.9th percentile" in own
    assert "background included" not in own
    assert "(cubic splines; *SciPy*" in own
    assert "background included, with 1024 histogram levels" in published
    assert "inside the brain only" not in published
    assert "(linear interpolation; *SciPy*" in published
    assert "inner quantiles" not in other
    assert "source: elsewhere" in other


def test_images_without_a_reference_are_told():
    full = next(every_kind_of_facts())
    assert "no reference" not in methods_text(full)
    text = methods_text(dataclasses.replace(full, contrasts={"T1w": 4, "FLAIR": 2}))
    assert "2 images (FLAIR), for which there is no reference" in " ".join(text.split())
    assert "mean was scaled to 400 instead" in " ".join(text.split())


def test_the_noise_around_a_ratio_of_images_is_told():
    full = next(every_kind_of_facts())
    assert "MP2RAGE" not in methods_text(full)
    text = methods_text(dataclasses.replace(full, contrasts={"T1w": 4, "UNIT1": 2}))
    assert "In 2 images (MP2RAGE UNI), the noise around the head was set" in " ".join(text.split())


def test_without_an_image_nothing_is_described(tmp_path):
    text = text_of(tmp_path)
    assert "has not completed an image" in text
    assert cited_keys(text) == ["bids", "bidsapps"]
    assert "N4" not in text


def test_names_from_elsewhere_cannot_become_markup(output):
    weights = {"Name": "x*y[@bmex] {version}\n\n# z", "Source": "`a`", "SHA256": "0` [@n4]"}
    text = text_of(output(weights=weights, Device="cuda:1 (NVIDIA *H200* MIG_1g)"))
    assert r"*x\*y\[\@bmex\] \{version\} \# z*" in text
    assert "`0n4`" in text
    assert r"NVIDIA \*H200\* MIG_1g" in text


def test_the_percentiles_in_the_frame_are_those_of_the_code():
    values = np.arange(100_000, dtype=np.float32)
    _, scale = rescale_robust(values)
    above = values[values > np.percentile(values, 0.5)]
    assert scale.lower == pytest.approx(np.percentile(values, 0.5))
    assert scale.upper == pytest.approx(np.percentile(above, 99.9))
    assert "0.5th percentile of all voxels became 0 and the 99.9th" in methods_text(FULL)


def test_a_frame_with_an_unknown_name_is_refused():
    with pytest.raises(KeyError, match="nobody"):
        fill_frame("{?nobody}x{/}", {}, {})
    with pytest.raises(KeyError, match="nothing"):
        fill_frame("{nothing}", {}, {})


def test_a_condition_that_fails_leaves_no_gap():
    frame = "a\n{?no}b{/}\nc\n\n{?no}d{/}\n\n{?yes}e\n\nf{?no} g{/}.{/}"
    assert fill_frame(frame, {"no": False, "yes": True}, {}) == "a c\n\ne\n\nf.\n"


# ------------------------------------------------------------------ files
def test_four_files_agree(output, no_pandoc):
    root = output(mask=NETWORK_MASK)
    paths = write_citation(root, collect_facts(root))
    assert paths == [root / "logs" / f"CITATION.{kind}" for kind in ("md", "bib", "html", "tex")]
    markdown, bibliography, html, tex = (path.read_text(encoding="utf-8") for path in paths)
    keys = cited_keys(markdown)
    assert list(parse_string(bibliography, "bibtex").entries) == keys
    assert re.findall(r'<li id="ref-(\w+)">', html) == keys
    assert re.findall(r"\\bibitem\{(\w+)\}", tex) == keys
    for text in (html, tex):
        assert OURS.sha256 in text
        assert re.search(r"Y\.(&nbsp;|~)Sun, L\.(&nbsp;|~)Wang, G\.(&nbsp;|~)Li, W\.", text)
        assert "@" not in text
    assert not re.search(r"<script|<link|@import|src=", html)


def test_markdown_only_takes_away_what_would_be_old(output, no_pandoc):
    root = output()
    write_citation(root, collect_facts(root))
    paths = write_citation(root, collect_facts(root), markdown_only=True)
    assert [path.suffix for path in paths] == [".md", ".bib"]
    assert {path.name for path in (root / "logs").iterdir()} == {"CITATION.md", "CITATION.bib"}


def test_rewriting_gives_the_same(output, no_pandoc):
    root = output()
    first = [path.read_bytes() for path in write_citation(root, collect_facts(root))]
    assert [path.read_bytes() for path in write_citation(root, collect_facts(root))] == first


def test_many_writers_at_once_leave_whole_files(output, no_pandoc):
    root = output()
    facts = collect_facts(root)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: write_citation(root, facts), range(24)))
    names = {path.name for path in (root / "logs").iterdir()}
    assert names == {f"CITATION.{kind}" for kind in ("md", "bib", "html", "tex")}
    assert (root / "logs" / "CITATION.md").read_text(encoding="utf-8") == methods_text(facts)


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path, no_pandoc):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(OutputError, match="expected to write"):
        write_citation(tmp_path, Facts(versions=installed_versions()))


# ------------------------------------------------------------------ pandoc
@pytest.fixture
def pandoc(tmp_path, monkeypatch):
    """A function that puts a program of some lines of Python in Pandoc's place."""

    def put(body):
        program = tmp_path / "bin" / "pandoc"
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable}\nimport sys, time\n{body}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setattr(methods.shutil, "which", lambda name: str(program))

    return put


def test_pandoc_is_used_where_it_is(output, pandoc):
    pandoc("print('<p>', open('CITATION.md').read()[-9:], *sys.argv[1:], '</p>')")
    root = output()
    _, _, html, tex = (p.read_text("utf-8") for p in write_citation(root, collect_facts(root)))
    assert "--citeproc" in html
    assert "--bibliography=CITATION.bib" in html
    assert html.startswith("<!DOCTYPE html>")
    assert "--natbib" in tex
    assert "References" not in tex  # natbib makes that heading


@pytest.mark.parametrize(
    "body", ["sys.exit(3)", "pass", "time.sleep(60)"], ids=["fails", "says nothing", "hangs"]
)
def test_without_a_working_pandoc_we_do_it_ourselves(output, pandoc, monkeypatch, body):
    monkeypatch.setattr(methods, "PANDOC_SECONDS", 2)
    pandoc(body)
    root = output()
    _, _, html, tex = (p.read_text("utf-8") for p in write_citation(root, collect_facts(root)))
    assert '<ol class="references">' in html
    assert r"\begin{thebibliography}" in tex


@pytest.mark.skipif(methods.shutil.which("pandoc") is None, reason="pandoc is not installed")
def test_the_real_pandoc_resolves_every_citation(output):
    root = output(mask=NETWORK_MASK)
    paths = write_citation(root, collect_facts(root))
    markdown, _, html, tex = (path.read_text(encoding="utf-8") for path in paths)
    keys = set(cited_keys(markdown))
    assert set(re.findall(r'id="ref-(\w+)"', html)) == keys
    assert "???" not in html
    cites = re.findall(r"\\cite[pt]\{([^}]*)\}", tex)
    assert {key.strip() for cite in cites for key in cite.split(",")} == keys
    assert not re.search(r"<script|<link|@import|src=", html)
