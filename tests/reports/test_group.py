# SPDX-License-Identifier: Apache-2.0
import csv
import json
import logging
import math
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from bmex_bids.exceptions import NoInputError
from bmex_bids.inputs.age import GROUPS
from bmex_bids.interfaces.quality import figures
from bmex_bids.metrics.gate import Measures, judge
from bmex_bids.reports.group import Outlier, group_outliers, write_group
from bmex_bids.reports.group_page import GROUPINGS, JUDGED
from bmex_bids.reports.group_rows import AGE_GROUPS, age_group_label, read_sites

SIEMENS = {
    "Manufacturer": "Siemens",
    "ManufacturersModelName": "Prisma",
    "MagneticFieldStrength": 3,
}


def sidecar(months=6.0, *, qi=0.9, litres=0.8, gate=None, fetal=False, **metadata):
    """A sidecar as the participant level writes it."""
    bmex = {
        "Version": "0.1.0",
        "Age": {"months": months, "fetal": fetal, "value": "1", "unit": "months"},
        "Model": "month6",
        "Weights": {"Name": "bmex-lifespan-11", "SHA256": "0" * 64},
        "Mask": {"method": "given", "volume_litres": litres, "components": 1},
        "Quality": {"tct_before": 1.5 * qi, "tct_after": 1.5, "qi": qi},
        "Warnings": [],
    }
    if gate is not None:
        bmex["Gate"] = gate
    return {"Description": "Enhanced brain", **metadata, "BMEX": bmex}


def verdict(word, value=0.8, reason="The brain mask has 0.80 litres."):
    return {
        "Verdict": word,
        "Rules": [
            {"Rule": "mask volume", "Value": value, "Verdict": word, "Reason": reason},
            {"Rule": "not measured", "Value": None, "Verdict": "pass", "Reason": ""},
        ],
    }


@pytest.fixture
def put(tmp_path):
    """``put("sub-01_ses-A_T1w", sidecar(), page=True)``: an image's sidecar in the output."""

    def write(name, content, *, desc="desc-enhanced", page=False):
        parts = name.split("_")
        folders = [part for part in parts if part.startswith(("sub-", "ses-"))]
        path = tmp_path.joinpath("out", *folders, "anat", "_".join([*parts[:-1], desc, parts[-1]]))
        path = path.with_name(path.name + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
        if page:
            (tmp_path / "out" / ("_".join(folders) + ".html")).write_text("<p>subject</p>")
        return path

    return write


@pytest.fixture
def group(tmp_path):
    """Run the group level; returns the table of T1w images as dicts and the page's text."""
    (tmp_path / "out").mkdir()
    (tmp_path / "bids").mkdir()

    def run(suffix="T1w"):
        write_group(tmp_path / "out", tmp_path / "bids")
        with (tmp_path / "out" / f"group_{suffix}.tsv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        return rows, (tmp_path / "out" / f"group_{suffix}.html").read_text(encoding="utf-8")

    return run


# ---------------------------------------------------------------------------------- outliers


def test_an_outlier_lies_beyond_one_and_a_half_ranges():
    # quartiles 2 and 4, range 2: usual is -1 to 7
    values = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 10.0}
    assert group_outliers(values) == [Outlier("e", 10.0, -1.0, 7.0, 3.0)]
    assert group_outliers({**values, "e": 7.0}) == []
    assert group_outliers({name: -value for name, value in values.items()}) == [
        Outlier("e", -10.0, -7.0, 1.0, -3.0)
    ]


def test_four_values_have_no_outliers():
    assert group_outliers({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1e6}) == []


def test_where_most_are_equal_another_value_is_infinitely_far():
    values = dict.fromkeys("abcdefgh", 1.0)
    assert group_outliers(values) == []
    (found,) = group_outliers({**values, "i": 3.0})
    assert (found.image, found.distance, found.low, found.high) == ("i", math.inf, 1.0, 1.0)
    assert group_outliers({**values, "i": 1.0 + 1e-15}) == [], "rounding is no difference"


def test_values_can_be_held_against_those_of_others():
    (found,) = group_outliers({"x": 8.0}, peers=[1.0, 2.0, 3.0, 4.0, 5.0])
    assert found == Outlier("x", 8.0, -1.0, 7.0, 2.0)
    assert group_outliers({"x": 8.0}, peers=[1.0, 2.0]) == []


def test_the_farthest_comes_first():
    values = {**{f"p{k}": float(k) for k in range(20)}, "near": 50.0, "far": -90.0}
    assert [found.image for found in group_outliers(values)] == ["far", "near"]


def test_a_large_age_group_is_its_own_measure(put, group):
    """Ten infants of 0.4 litres are no outliers among thirty adults; the eleventh, of 0.7, is."""
    for k in range(30):
        put(f"sub-a{k:02}_T1w", sidecar(300, litres=1.2 + 0.01 * (k % 7)))
    for k in range(10):
        put(f"sub-b{k:02}_T1w", sidecar(1, litres=0.4 + 0.01 * (k % 4)))
    put("sub-odd_T1w", sidecar(1, litres=0.7))
    put("sub-alone_T1w", sidecar(9, litres=0.7))
    _, page = group()
    listed = re.findall(
        r'<tr><td><span class="name">(sub-\w+)</span></td><td>Brain mask: volume.*?<td>([^<]*)</td></tr>',
        page,
    )
    assert dict(listed) == {"sub-odd_T1w": "11 images, 0 to 2 months"}


# ------------------------------------------------------------------------------------- table


def test_one_row_an_image_with_all_that_is_known(tmp_path, put, group):
    put(
        "sub-01_ses-A_run-2_T1w",
        sidecar(6.5, gate=verdict("warn", 0.8), **SIEMENS),
    )
    (tmp_path / "bids" / "participants.tsv").write_text("participant_id\tsite\nsub-01\tBern\n")
    (row,), _ = group()
    assert row == {
        "image": "sub-01_ses-A_run-2_T1w",
        "participant_id": "sub-01",
        "session_id": "ses-A",
        "age_months": "6.5",
        "age_group": "5 to 7 months",
        "model": "month6",
        "weights": "bmex-lifespan-11",
        "version": "0.1.0",
        "verdict": "warn",
        "Manufacturer": "Siemens",
        "ManufacturersModelName": "Prisma",
        "MagneticFieldStrength": "3",
        "site": "Bern",
        "repeats": "1",
        "rank": "1",
        "best": "true",
        "quality_tct_before": "1.35",
        "quality_tct_after": "1.5",
        "quality_qi": "0.9",
        "mask_volume_litres": "0.8",
        "mask_components": "1",
        "gate_mask_volume": "0.8",
    }


def test_the_motion_that_was_undone_is_a_measure(put, group):
    content = sidecar()
    put("sub-01_T1w", content)
    for subject, undone in (("02", 0.0), ("03", 1.9)):
        motion = {"Applied": undone > 0, "EntropyBefore": 9.0, "RMSDisplacement": undone}
        content["BMEX"]["MotionCorrection"] = motion
        put(f"sub-{subject}_T1w", content)
    rows, _ = group()
    assert [row["motion_undone_mm"] for row in rows] == ["n/a", "0", "1.9"]


def test_what_is_missing_is_n_a(put, group):
    content = sidecar(None)
    content["BMEX"]["Quality"]["qi"] = None
    del content["BMEX"]["Mask"], content["BMEX"]["Weights"]
    put("sub-01_T1w", content)
    put("sub-02_T1w", sidecar(litres=0.7))
    rows, page = group()
    missing = {key for key, value in rows[0].items() if value == "n/a"}
    assert missing == {
        *("session_id", "age_months", "age_group", "weights", "verdict", "site", "quality_qi"),
        *("Manufacturer", "ManufacturersModelName", "MagneticFieldStrength"),
        *("mask_volume_litres", "mask_components"),
    }
    assert "<td>unknown</td>" in page


def test_infinite_and_huge_numbers_are_missing(put, group):
    text = json.dumps(sidecar()).replace('"qi": 0.9', '"qi": Infinity, "big": 1' + "0" * 400)
    put("sub-01_T1w", text)
    (row,), _ = group()
    assert "quality_qi" not in row
    assert "quality_big" not in row
    assert row["quality_tct_after"] == "1.5"


def test_the_finer_grid_counts_only_without_the_native_one(put, group):
    put("sub-01_T1w", sidecar(qi=0.1), desc="res-0p8_desc-enhanced")
    put("sub-01_T1w", sidecar(qi=0.2))
    put("sub-02_T1w", sidecar(qi=0.3), desc="res-0p8_desc-enhanced")
    put("sub-02_T1w", sidecar(qi=0.4), desc="desc-preproc")
    put("sub-03_T1w", sidecar(qi=0.5), desc="desc-quality")
    rows, _ = group()
    assert [(row["image"], row["quality_qi"]) for row in rows] == [
        ("sub-01_T1w", "0.2"),
        ("sub-02_T1w", "0.3"),
        ("sub-03_T1w", "0.5"),
    ]


def test_contrasts_have_tables_of_their_own(tmp_path, put, group):
    put("sub-01_T1w", sidecar())
    _, page = group()
    assert not list((tmp_path / "out").glob("group_T2w*"))
    assert "group_T2w" not in page
    put("sub-01_T2w", sidecar())
    written = write_group(tmp_path / "out", tmp_path / "bids")
    assert [path.name for path in written] == [
        *("group_T1w.tsv", "group_T1w.html", "group_T2w.tsv", "group_T2w.html")
    ]
    assert 'href="group_T2w.html"' in written[1].read_text()
    assert 'href="group_T1w.html"' in written[3].read_text()
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("participant_id\tsite\nsub-0001\tBern\n", "Bern"),
        ("participant_id\tsite_id\nsub-0001\t7\n", "7"),
        ("participant_id\tscanner\nsub-0001\tGE 1\n", "GE 1"),
        ("participant_id\tscanner\tsite\nsub-0001\tGE 1\tBern\n", "Bern"),
        ("participant_id\tscanner\tsite\nsub-0001\tGE 1\tn/a\n", "GE 1"),
        ('Participant_ID\tSite\n1\t"Bern"\n', "Bern"),
        ("site\tsubject\nBern\t0001\n", "Bern"),
        ("participant_id\tsite\nsub-01\n", None),
        ("participant_id\tage\nsub-0001\t3\n", None),
        ("", None),
    ],
)
def test_sites_are_read_from_tables_as_people_write_them(tmp_path, table, expected):
    (tmp_path / "participants.tsv").write_text(table)
    assert read_sites(tmp_path).get("1") == expected


@pytest.mark.parametrize(
    ("months", "fetal", "label"),
    [
        (0, False, "0 to 2 months"),
        (20.999, False, "15 to 21 months"),
        (71.99, False, "21 to 72 months"),
        (72, False, "6 to 12 years"),
        (1500, False, "65 years and older"),
        (6, True, "before birth"),
        (None, False, "n/a"),
        (-1, False, "n/a"),
    ],
)
def test_age_groups(months, fetal, label):
    assert age_group_label(months, fetal) == label


def test_up_to_two_years_the_age_groups_are_those_of_the_models():
    starts = [start for start, _ in GROUPS]
    assert [start for start, _ in AGE_GROUPS][: len(starts)] == starts


# ------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"BMEX": {"Quality": {"qi": 0.', "is not complete JSON"),
        ("", "is not complete JSON"),
        ("[" * 100_000, "is not complete JSON"),
        ("[1, 2]", "lacks the key BMEX"),
        ("{}", "lacks the key BMEX"),
        ('{"BMEX": 3}', "lacks the key BMEX"),
        ('{"BMEX": {"Version": "1"}}', "lacks the quality measures"),
    ],
)
def test_a_spoilt_sidecar_is_left_out_and_named(put, group, caplog, content, reason):
    put("sub-01_T1w", content)
    put("sub-02_T1w", sidecar())
    with caplog.at_level(logging.WARNING, "bmex_bids"):
        rows, page = group()
    assert [row["image"] for row in rows] == ["sub-02_T1w"]
    path = "sub-01/anat/sub-01_desc-enhanced_T1w.json"
    assert re.search(f"Left out: <code>{path}</code> {reason}", page)
    (record,) = caplog.records
    assert path in record.getMessage()
    assert reason in record.getMessage()


def test_a_sidecar_that_is_no_text_or_no_file_is_left_out(tmp_path, put, group):
    put("sub-02_T1w", sidecar())
    put("sub-01_T1w", "").write_bytes(b"\xff\xfe\x00\xd8")
    (tmp_path / "out" / "sub-03" / "anat" / "sub-03_desc-enhanced_T1w.json").mkdir(parents=True)
    rows, page = group()
    assert [row["image"] for row in rows] == ["sub-02_T1w"]
    assert page.count("Left out") == 2


@pytest.mark.parametrize("junk", [None, 3, "x", [], [3, None], {"a": {"b": [None, "x", {}]}}])
@pytest.mark.parametrize("key", ["Age", "Model", "Weights", "Mask", "Gate", "Version"])
def test_a_strange_value_under_any_key_does_no_harm(put, group, key, junk):
    content = sidecar(**SIEMENS)
    content["BMEX"][key] = junk
    content["Manufacturer"] = junk
    put("sub-01_T1w", content)
    rows, _ = group()
    assert len(rows) == 1


@pytest.mark.parametrize("rules", [None, 3, [3], [{}], [{"Rule": None, "Value": "x"}]])
def test_a_strange_gate_does_no_harm(put, group, rules):
    put("sub-01_T1w", sidecar(gate={"Verdict": "splendid", "Rules": rules}))
    (row,), page = group()
    assert row["verdict"] == "splendid"
    assert '<td><span class="verdict none">none</span></td>' in page, "never taken for a pass"


def test_no_image_says_what_to_run_first(tmp_path, put, group):
    with pytest.raises(NoInputError, match=r"got none; run 'bmex .* participant' first"):
        group()
    put("sub-01_T1w", "{")
    with pytest.raises(NoInputError, match="got 1 that cannot be used"):
        group()
    assert not list((tmp_path / "out").glob("group_*"))


# -------------------------------------------------------------------------------------- page


class Links(HTMLParser):
    """Every address on a page, and every id."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.tags = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.add(tag)
        self.ids.add(attributes.get("id"))
        for key in ("href", "src", "data", "action"):
            if key in attributes:
                self.links.add(attributes[key])


def test_every_link_leads_somewhere_here(tmp_path, put, group):
    put("sub-01_ses-A_T1w", sidecar(), page=True)
    put("sub-02_ses-A_T1w", sidecar())
    put("sub-01_ses-A_T2w", sidecar(), page=True)
    _, page = group()
    parsed = Links(page)
    assert "sub-01_ses-A.html" in parsed.links
    assert not any("sub-02" in link for link in parsed.links)
    for link in parsed.links - {"data:,"}:
        if link.startswith("#"):
            assert link[1:] in parsed.ids
        else:
            assert (tmp_path / "out" / unquote(link)).is_file()
    assert not parsed.tags & {"script", "iframe", "object", "img", "base"}
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)


def test_verdicts_are_counted_and_the_worst_comes_first_with_its_reason(put, group):
    put("sub-01_T1w", sidecar(gate=verdict("pass")))
    put("sub-02_T1w", sidecar(gate=verdict("warn", reason="A little <small>.")))
    put("sub-03_T1w", sidecar(gate=verdict("fail", reason="Far too small.")))
    put("sub-04_T1w", sidecar())
    _, page = group()
    order = re.findall(
        r'<tr><td><span class="verdict (\w+)">\w+</span></td><td><span class="name">(sub-\d+)',
        page,
    )
    assert order == [
        ("fail", "sub-03"),
        ("warn", "sub-02"),
        ("pass", "sub-01"),
        ("none", "sub-04"),
    ]
    assert "Far too small." in page
    assert "A little &lt;small&gt;." in page
    assert "The brain mask has 0.80 litres." not in page, "a rule that passed needs no reason"
    assert len(re.findall(r'verdict \w+">\w+</span> 1', page)) == 4


def test_spellings_of_one_maker_are_one_group(put, group):
    for k, maker in enumerate(["Siemens", "SIEMENS", "siemens"]):
        put(f"sub-{k}_T1w", sidecar(Manufacturer=maker))
    _, page = group()
    assert "Siemens (3)" in page


def test_what_the_gate_judged_is_drawn_apart_only_where_it_is_new(put, group):
    """In the table it is in any case; two constants that agree by chance stay two."""
    for k in range(3):
        gate = verdict("pass", 0.5 + k)
        gate["Rules"].append({"Rule": "pieces", "Value": 1, "Verdict": "pass"})
        gate["Rules"].append({"Rule": "other", "Value": 9 - k, "Verdict": "pass"})
        put(f"sub-{k}_T1w", sidecar(litres=0.5 + k, gate=gate))
    rows, page = group()
    new = {name for name in rows[0] if name.startswith("gate_")}
    assert new == {"gate_mask_volume", "gate_pieces", "gate_other"}
    assert set(re.findall(r"<small>(gate_\w+)<", page)) == {"gate_pieces", "gate_other"}


@pytest.mark.parametrize("images", [1, 3])
def test_nothing_that_the_gate_judged_is_drawn_twice(put, group, images):
    """With one image, or equal ones, all ten values of the gate were drawn a second time."""
    measures = Measures(
        volume_litres=0.8, components=1, border_contact=0.0, empty_share=0.01, correlation=0.9,
        mean_shift=0.01, tct_before=1.4, tct_after=1.5, qi=0.93, contrast="T1w", fluid_contrast=-0.5,
        estimated_error_before=0.1, estimated_error_after=0.08, turn_margin=0.0,
        training_distance=1.1, enhanced_tissue_change=0.02, turn="", litres_for_age=(0.5, 1.0),
        motion_before=0.3, motion_after=0.2, flat_face=0.01, white_depth=0.2, brightness_order=0.1,
        age_months=12,
        tissues_before={"CSF": 0.2, "GM": 0.4, "WM": 0.2},
        tissues_after={"CSF": 0.2, "GM": 0.41, "WM": 0.2},
    )  # fmt: skip
    assert None not in vars(measures).values()  # a new measure is judged here, too
    content = sidecar(litres=0.8, gate=judge(measures).as_table())
    scores = {"before": {"motion": 0.3}, "after": {"motion": 0.2}}
    content["BMEX"]["Quality"] = figures(measures) | {"Score": scores}
    content["BMEX"]["Mask"] |= {"border_contact": 0.0, "turn_margin": 0.0}
    for k in range(images):
        put(f"sub-{k}_T1w", content)
    rows, page = group()
    in_table = {name for name in rows[0] if name.startswith("gate_")}
    alone = {f"gate_share_of_{tissue}" for tissue in ("csf", "gm", "wm")}  # of no measure
    alone |= {"gate_tissue_volume_change", "gate_flat_face_of_mask"}
    alone |= {"gate_depth_of_white_matter", "gate_order_of_brightness"}
    assert in_table == {*JUDGED, *alone}
    assert set(re.findall(r"<small>(gate_\w+)<", page)) == alone


def test_in_a_browser_labels_are_inside_their_plots_and_apart(browser, put, group, tmp_path):
    """Long names of scanners were cut off at the left."""
    for k in range(20):
        maker = ("GE MEDICAL SYSTEMS", "Philips Medical Systems")[k % 2]
        put(
            f"sub-{k:02}_T1w",
            sidecar(qi=0.9 + k / 1000, Manufacturer=maker, ManufacturersModelName="MAGNETOM " * k),
        )
    group()
    browser.open(tmp_path / "out" / "group_T1w.html")
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.by-scanner svg')].map(svg => "
        "[svg, ...svg.querySelectorAll('text')].map(e => { const r = e.getBoundingClientRect(); "
        "return [r.left, r.right, r.top, r.bottom]; }))"
    )
    for frame, *texts in boxes:
        for left, right, top, bottom in texts:
            assert frame[0] - 1 <= left
            assert right <= frame[1] + 1
            others = [text for text in texts if text != [left, right, top, bottom]]
            assert not any(
                min(right, o[1]) - max(left, o[0]) > 1 and min(bottom, o[3]) - max(top, o[2]) > 1
                for o in others
            )


def test_markup_in_a_sidecar_stays_text(put, group):
    content = sidecar(Manufacturer="<script>alert(1)</script>")
    content["BMEX"]["Quality"]["<b>&"] = 1.0
    content["BMEX"]["Model"] = "<img src=x>"
    put("sub-01_T1w", content)
    _, page = group()
    assert not Links(page).tags & {"script", "b", "img"}


def test_a_mixture_of_versions_is_said(put, group):
    put("sub-01_T1w", sidecar())
    _, page = group()
    assert "different versions" not in page
    content = sidecar()
    content["BMEX"]["Version"] = "0.2.0"
    put("sub-02_T1w", content)
    _, page = group()
    assert "different versions of bmex_bids: 0.1.0 (1), 0.2.0 (1)" in page


@pytest.fixture
def forty(tmp_path, put):
    """Forty images of four scanners, two sites and many ages; sub-07 is a poor one."""
    scanners = [
        SIEMENS,
        {
            "Manufacturer": "GE",
            "ManufacturersModelName": "MR750 <&'\">",
            "MagneticFieldStrength": 3,
        },
        {"Manufacturer": "Philips", "MagneticFieldStrength": 1.5},
        {},
    ]
    ages = [0.5, 3, 6, 9, 12, 18, 24, 100, 300, 900]
    lines = ["participant_id\tsite"]
    for k in range(40):
        months = ages[k % 10]
        poor = k == 7
        put(
            f"sub-{k:02}_ses-A_T1w",
            sidecar(
                months,
                qi=0.4 if poor else 0.95 + 0.001 * (k * 7 % 11),
                litres=0.2 if poor else 0.4 + min(months, 24) / 30 + 0.01 * (k * 5 % 7),
                gate=verdict("fail" if poor else "warn" if k % 9 == 4 else "pass", 0.5 + k / 99),
                **scanners[k * 3 % 4],
            ),
            page=k % 2 == 1,
        )
        lines.append(f"sub-{k:02}\t{'Bern' if k % 3 else 'Ulm'}")
    (tmp_path / "bids" / "participants.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "out"


def test_every_measure_is_drawn_for_every_grouping_with_all_images(group, forty):
    rows, page = group()
    measures = [name for name in rows[0] if name.startswith(("quality_", "mask_", "gate_"))]
    assert len(measures) == 6
    for key in GROUPINGS:
        block = page.split(f'<div class="plots by-{key}">')[1].split('<div class="plots')[0]
        block = block.split("<section")[0]
        assert re.findall(r"<small>(\w+)</small>", block) == measures
        assert block.count("<title>sub-") == 40 * len(measures)


def test_the_poor_image_is_listed_with_measure_and_distance(group, forty):
    _, page = group()
    listed = page.split('id="outliers"')[1].split("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", listed)
    (row,) = [r for r in rows if "Quality index (TCT before / after)" in r]
    assert '<a href="sub-07_ses-A.html"><span class="name">sub-07_ses-A_T1w</span></a>' in row
    assert re.search(r"\d+\.\d IQR below the first quartile", row)
    assert "all 40 images" in row


def test_in_a_browser_the_page_is_quiet_and_the_choice_works(browser, group, forty):
    group()
    page = forty / "group_T1w.html"
    browser.open(page)
    visible = (
        "[...document.querySelectorAll('.plots')].filter(e => e.offsetHeight > 0)"
        ".map(e => e.className)"
    )
    assert browser.evaluate(visible) == ["plots by-scanner"]
    for key in ("site", "age", "scanner"):
        browser.evaluate(f"document.querySelector('label[for=by-{key}]').click()")
        assert browser.evaluate(visible) == [f"plots by-{key}"]
        assert browser.evaluate(
            f"[...document.querySelectorAll('.plots.by-{key} svg')]"
            ".every(e => e.getBoundingClientRect().height > 60)"
        )
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.complaints == []
    assert browser.failed == []
    assert browser.requested == [page.as_uri()]


def test_in_a_browser_the_mark_under_the_pointer_names_its_image(browser, group, forty):
    """The box is drawn over the marks, but must not take the pointer from them."""
    group()
    browser.open(forty / "group_T1w.html")
    under = (
        "(mark => { mark.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const r = mark.getBoundingClientRect();"
        "const top = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2);"
        "return top.querySelector('title').textContent; })"
    )
    odd = browser.evaluate(f"{under}(document.querySelector('.by-scanner .odd'))")
    assert odd.startswith("sub-07_ses-A_T1w: ")
    marks = "document.querySelectorAll('.by-scanner figure:nth-child(4) .point')"
    names = [browser.evaluate(f"{under}({marks}[{k}])") for k in range(3, 8)]
    assert all(name.startswith("sub-") for name in names)


def test_in_a_browser_a_click_on_a_mark_opens_the_subject_page(browser, group, forty):
    group()
    browser.open(forty / "group_T1w.html")
    browser.evaluate(
        "[...document.querySelectorAll('.by-scanner svg a')]"
        ".find(a => a.getAttribute('href') == 'sub-01_ses-A.html')"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true}))"
    )
    subject = (forty / "sub-01_ses-A.html").as_uri()
    browser.wait(lambda: subject in browser.requested)
    assert browser.failed == []
