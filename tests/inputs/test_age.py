# SPDX-License-Identifier: Apache-2.0
"""Ages as users really write them; most faults are those of ../shared/data/lifespan-bids."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmex_bids.exceptions import AgeError
from bmex_bids.inputs.age import (
    DAYS_PER_MONTH,
    Age,
    age_group,
    find_age,
    near_boundary,
    parse_age,
    read_table,
    unit_days,
)
from bmex_bids.inputs.collect import SourceImage

NAME = "sub-0007_ses-V01_T1w.nii.gz"
SCANS = "sub-0007/ses-V01/sub-0007_ses-V01_scans"
BESIDE = "sub-0007/ses-V01/anat/sub-0007_ses-V01_scans"
SESSIONS = "sub-0007/sub-0007_sessions"
PEOPLE = "participants"


def image_in(root: Path, session: str | None = "V01") -> SourceImage:
    """An image that is only a name: ages come from tables."""
    entities = {"sub": "0007"} | ({"ses": session} if session else {})
    folder = root / "sub-0007" / (f"ses-{session}" if session else "") / "anat"
    stem = "_".join(f"{key}-{value}" for key, value in entities.items())
    return SourceImage(folder / f"{stem}_T1w.nii.gz", entities, "T1w", {}, root)


def scans(age, column="age", filename=f"anat/{NAME}"):
    return f"filename\t{column}\n{filename}\t{age}\n"


def units(unit, column="age"):
    return {column: {"Description": "Age (in years) of the candidate", "Units": unit}}


def with_unit(age, unit):
    return {f"{SCANS}.tsv": scans(age), f"{SCANS}.json": units(unit)}


#: fault → (files, months, fetal, part of a warning or None, source)
FAULTS = {
    # units of the sidecar
    "months": (with_unit("6", "months"), 6, False, None, f"{SCANS}.tsv"),
    "month": (with_unit("6", "month"), 6, False, None, f"{SCANS}.tsv"),
    "Months": (with_unit("6", " Months "), 6, False, None, f"{SCANS}.tsv"),
    "years": (with_unit("6", "years"), 72, False, None, f"{SCANS}.tsv"),
    "year": (with_unit("6", "year"), 72, False, None, f"{SCANS}.tsv"),
    "UCUM a": (with_unit("0.5", "a"), 6, False, None, f"{SCANS}.tsv"),
    "weeks": (with_unit("13", "weeks"), 91 / DAYS_PER_MONTH, False, None, f"{SCANS}.tsv"),
    "week": (with_unit("13", "week"), 91 / DAYS_PER_MONTH, False, None, f"{SCANS}.tsv"),
    "days": (with_unit("91", "days"), 91 / DAYS_PER_MONTH, False, None, f"{SCANS}.tsv"),
    "day": (with_unit("91", "day"), 91 / DAYS_PER_MONTH, False, None, f"{SCANS}.tsv"),
    "gestational_weeks": (
        with_unit("25", "gestational_weeks"), 175 / DAYS_PER_MONTH, True, None, f"{SCANS}.tsv",
    ),
    "gestational week": (
        with_unit("25", "gestational week"), 175 / DAYS_PER_MONTH, True, None, f"{SCANS}.tsv",
    ),
    # columns that name their unit
    "age_days": ({f"{SCANS}.tsv": scans(0, "age_days")}, 0, False, None, f"{SCANS}.tsv"),
    "age_weeks": (
        {f"{SCANS}.tsv": scans(13, "age_weeks")}, 91 / DAYS_PER_MONTH, False, None, f"{SCANS}.tsv",
    ),
    "age_months": ({f"{SCANS}.tsv": scans(6.5, "age_months")}, 6.5, False, None, f"{SCANS}.tsv"),
    "age_years": ({f"{SCANS}.tsv": scans(2, "age_years")}, 24, False, None, f"{SCANS}.tsv"),
    "Age, capital": (
        {f"{SCANS}.tsv": scans("6 months", "Age")}, 6, False, None, f"{SCANS}.tsv",
    ),
    "age_months before age": (
        {f"{SCANS}.tsv": f"filename\tage\tage_months\nanat/{NAME}\t0.5\t7\n"},
        7, False, None, f"{SCANS}.tsv",
    ),
    # no unit
    "no sidecar": (
        {f"{SCANS}.tsv": scans("6")}, 72, False, "years, BIDS' default, are taken", f"{SCANS}.tsv",
    ),
    "sidecar of other columns": (
        {f"{SCANS}.tsv": scans("6"), f"{SCANS}.json": {"site": {"Levels": []}}},
        72, False, "no unit", f"{SCANS}.tsv",
    ),
    "sidecar that is no JSON": (
        {f"{SCANS}.tsv": scans("6"), f"{SCANS}.json": b"{age: years"},
        72, False, "no unit", f"{SCANS}.tsv",
    ),
    # text
    "6 years": ({f"{SCANS}.tsv": scans("6 years")}, 72, False, None, f"{SCANS}.tsv"),
    "6 months, sidecar years": (
        {f"{SCANS}.tsv": scans("6 months"), f"{SCANS}.json": units("years")},
        6, False, "the former is taken", f"{SCANS}.tsv",
    ),
    "30 gestational_weeks": (
        {f"{SCANS}.tsv": scans("30 gestational_weeks")},
        210 / DAYS_PER_MONTH, True, None, f"{SCANS}.tsv",
    ),
    "89+": (with_unit("89+", "years"), 1068, False, None, f"{SCANS}.tsv"),
    "decimal comma": (with_unit("4,5", "months"), 4.5, False, None, f"{SCANS}.tsv"),
    "trailing spaces": (with_unit("  6 ", "years"), 72, False, None, f"{SCANS}.tsv"),
    # missing here, found there
    "n/a in scans": (
        {f"{SCANS}.tsv": scans("n/a"), f"{PEOPLE}.tsv": "participant_id\tage\nsub-0007\t6 months\n"},
        6, False, None, f"{PEOPLE}.tsv",
    ),
    "empty in scans": (
        {f"{SCANS}.tsv": scans(""), f"{SESSIONS}.tsv": "session_id\tage\nses-V01\t6 months\n"},
        6, False, None, f"{SESSIONS}.tsv",
    ),
    "n/a in age_months, number in age": (
        {f"{SCANS}.tsv": f"filename\tage_months\tage\nanat/{NAME}\tn/a\t2 years\n"},
        24, False, None, f"{SCANS}.tsv",
    ),
    "other images only": (
        {
            f"{SCANS}.tsv": "filename\tage\na_T2w.nii.gz\t1 month\nb_T2w.nii.gz\t2 months\n",
            f"{PEOPLE}.tsv": "participant_id\tage\nsub-0007\t6 months\n",
        },
        6, False, None, f"{PEOPLE}.tsv",
    ),
    # file names
    "bare file name": (
        {f"{SCANS}.tsv": f"filename\tage\nother_T2w.nii.gz\t1 month\n{NAME}\t6 months\n"},
        6, False, None, f"{SCANS}.tsv",
    ),
    "file name without gz": (
        {f"{SCANS}.tsv": scans("6 months", filename=NAME.removesuffix(".gz"))},
        6, False, None, f"{SCANS}.tsv",
    ),
    "wrong subject in the only row": (
        {f"{SCANS}.tsv": scans("6 months", filename="sub-0002_ses-V01_T1w.nii.gz")},
        6, False, "names sub-0002_ses-V01_T1w.nii.gz, not sub-0007", f"{SCANS}.tsv",
    ),
    "table beside the image": ({f"{BESIDE}.tsv": scans("6 months")}, 6, False, None, f"{BESIDE}.tsv"),
    "tables in both places": (
        {f"{SCANS}.tsv": scans("6 months"), f"{BESIDE}.tsv": scans("7 months")},
        6, False, None, f"{SCANS}.tsv",
    ),
    # identifiers and columns
    "numeric id": (
        {f"{PEOPLE}.tsv": "participant_id\tage\n3\t1 year\n7\t6 months\n"},
        6, False, None, f"{PEOPLE}.tsv",
    ),
    "id as a float": (
        {f"{PEOPLE}.tsv": "participant_id\tage\n7.0\t6 months\n"}, 6, False, None, f"{PEOPLE}.tsv",
    ),
    "id without prefix": (
        {f"{PEOPLE}.tsv": "participant_id\tage\n0007\t6 months\n"}, 6, False, None, f"{PEOPLE}.tsv",
    ),
    "subject, other order": (
        {f"{PEOPLE}.tsv": "age\tsex\tsubject\n6 months\tF\tsub-0007\n"},
        6, False, None, f"{PEOPLE}.tsv",
    ),
    "sessions with subject first": (
        {f"{SESSIONS}.tsv": "subject\tsession_id\tage\nsub-0007\tses-V02\t9 months\nsub-0007\tses-V01\t6 months\n"},
        6, False, None, f"{SESSIONS}.tsv",
    ),
    "one sessions table for all": (
        {"sessions.tsv": "session_id\tage\tsubject_id\nV01\t9 months\t8\nV01\t6 months\t7\n"},
        6, False, None, "sessions.tsv",
    ),
    # how the file was written
    "CRLF": ({f"{SCANS}.tsv": scans("6 months").replace("\n", "\r\n")}, 6, False, None, f"{SCANS}.tsv"),
    "old Mac": ({f"{SCANS}.tsv": scans("6 months").replace("\n", "\r")}, 6, False, None, f"{SCANS}.tsv"),
    "BOM": ({f"{SCANS}.tsv": b"\xef\xbb\xbf" + scans("6 months").encode()}, 6, False, None, f"{SCANS}.tsv"),
    "BOM in the sidecar": (
        {f"{SCANS}.tsv": scans("6"), f"{SCANS}.json": b'\xef\xbb\xbf{"age": {"Units": "months"}}'},
        6, False, None, f"{SCANS}.tsv",
    ),
    "UTF-16": (
        {f"{SCANS}.tsv": scans("6 months").encode("utf-16")}, 6, False, None, f"{SCANS}.tsv",
    ),
    "Latin-1": (
        {f"{PEOPLE}.tsv": "participant_id\tcity\tage\nsub-0007\tZürich\t6 months\n".encode("latin-1")},
        6, False, None, f"{PEOPLE}.tsv",
    ),
    "no newline at the end, blank lines": (
        {f"{SCANS}.tsv": "\n" + scans("6 months").rstrip()}, 6, False, None, f"{SCANS}.tsv",
    ),
    "spaces in the header": (
        {f"{SCANS}.tsv": f" filename \t age \n{NAME} \t 6 months \n"}, 6, False, None, f"{SCANS}.tsv",
    ),
    "a row cut short": (
        {f"{PEOPLE}.tsv": "participant_id\tsex\tage\nsub-0003\nsub-0007\tF\t6 months\n"},
        6, False, None, f"{PEOPLE}.tsv",
    ),
    "quoted cells": (
        {f"{PEOPLE}.tsv": '"participant_id"\t"age"\n"sub-0007"\t"6 months"\n'},
        6, False, None, f"{PEOPLE}.tsv",
    ),
    "a quotation mark": (
        {f"{PEOPLE}.tsv": 'participant_id\tnote\tage\nsub-0003\t"late\t1 year\nsub-0007\tok\t6 months\n'},
        6, False, None, f"{PEOPLE}.tsv",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_ages_as_users_write_them(fault, bids_skeleton):
    files, months, fetal, warning, source = FAULTS[fault]
    root = bids_skeleton(files)
    age = find_age(image_in(root), root)
    assert age.months == pytest.approx(months, abs=1e-9)
    assert age.fetal == fetal
    assert age.source == source
    if warning is None:
        assert age.warnings == ()
    else:
        assert len(age.warnings) == 1
        assert warning in age.warnings[0]


def test_the_most_specific_table_wins(bids_skeleton):
    files = {
        f"{SCANS}.tsv": scans("1 month"),
        f"{BESIDE}.tsv": scans("2 months"),
        f"{SESSIONS}.tsv": "session_id\tage\nses-V01\t3 months\n",
        "sessions.tsv": "participant_id\tsession_id\tage\nsub-0007\tses-V01\t4 months\n",
        f"{PEOPLE}.tsv": "participant_id\tage\nsub-0007\t5 months\n",
    }
    root = bids_skeleton(files)
    image = image_in(root)
    assert find_age(image, root, override_months=9).months == 9
    for months, name in enumerate(files, start=1):
        age = find_age(image, root)
        assert (age.months, age.source) == (pytest.approx(months), name)
        (root / name).unlink()
    with pytest.raises(AgeError, match=r"no scans, sessions or participants table.*--age-months"):
        find_age(image, root)


def test_without_sessions(bids_skeleton):
    root = bids_skeleton(
        {"sub-0007/sub-0007_scans.tsv": scans("3 months", filename="anat/x_T1w.nii")}
    )
    age = find_age(image_in(root, session=None), root)
    assert age.months == pytest.approx(3)
    assert age.source == "sub-0007/sub-0007_scans.tsv"


def test_an_age_of_zero_from_the_command_line_is_an_age(bids_skeleton):
    root = bids_skeleton({f"{PEOPLE}.tsv": "participant_id\tage\nsub-0007\t6 years\n"})
    age = find_age(image_in(root), root, override_months=0)
    assert (age.months, age.source, age_group(age)) == (0, "command line", "month0")


def test_a_fetus_without_a_unit_is_in_weeks_of_gestation(bids_skeleton):
    root = bids_skeleton({f"{SCANS}.tsv": scans("25")})
    age = find_age(image_in(root), root, fetal=True)
    assert age.months * DAYS_PER_MONTH == pytest.approx(175)
    assert age_group(age) == "fetal"
    assert "weeks of gestation are taken" in age.warnings[0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({f"{SCANS}.tsv": scans("six")}, "got 'six'; write a number"),
        ({f"{SCANS}.tsv": scans("2-3 months")}, "got '2-3 months'"),
        ({f"{SCANS}.tsv": scans("6 fortnights")}, "got 'fortnights'; correct 'Units'"),
        (with_unit("6", "moons"), "got 'moons'"),
        (with_unit("-1", "months"), "0 to 130 years, got -1 months"),
        (with_unit("1560", "years"), "0 to 130 years"),
        (with_unit("1e999", "months"), "0 to 130 years"),
        (with_unit("60", "gestational_weeks"), "10 to 45 weeks of gestation"),
        (with_unit("5", "gestational_weeks"), "10 to 45 weeks of gestation"),
        ({f"{SCANS}.tsv": scans("n/a")}, "scans.tsv without one"),
        ({f"{SCANS}.tsv": ""}, "found no scans"),
        ({}, "found no scans"),
    ],
)
def test_what_is_no_age(files, message, bids_skeleton):
    root = bids_skeleton(files)
    with pytest.raises(AgeError, match=message.replace("(", r"\(")):
        find_age(image_in(root), root)


# ------------------------------------------------------------------ groups
@pytest.mark.parametrize(
    ("months", "group"),
    [
        (0, "month0"), (1.999, "month0"), (2, "month3"), (4.999, "month3"), (5, "month6"),
        (6.999, "month6"), (7, "month9"), (9.999, "month9"), (10, "month12"), (14.999, "month12"),
        (15, "month18"), (20.999, "month18"), (21, "month24"), (72, "month24"), (1068, "month24"),
    ],
)  # fmt: skip
def test_groups_begin_exactly_where_they_should(months, group):
    assert age_group(Age(months, False, "", "", "", "")) == group


def test_a_fetus_is_a_fetus_at_any_age():
    for months in (2.5, 5.75, 9.0):
        assert age_group(Age(months, True, "", "", "", "")) == "fetal"
        assert near_boundary(Age(months, True, "", "", "", "")) is None


@pytest.mark.parametrize(
    ("months", "start"),
    [(0.9, None), (1.5, "2"), (3.5, None), (12.5, None), (20.5, "21"), (21.9, "21"), (22, None)],
)
def test_near_a_boundary(months, start):
    warning = near_boundary(Age(months, False, "", "", "", ""))
    if start is None:
        assert warning is None
    else:
        assert f"within a month of {start}," in warning


# ------------------------------------------------------------------ text
@given(st.text(max_size=20))
def test_any_text_is_parsed_or_refused(text):
    parsed = parse_age(text)
    if parsed is not None:
        number, unit = parsed
        assert not math.isnan(number)
        assert unit is None or unit[0].isalpha()
        if unit is not None:
            unit_days(unit)


@given(
    number=st.floats(0, 1500, allow_nan=False).map(lambda x: round(x, 4)),
    unit=st.sampled_from(
        ["days", "week", "Months", "years", "gestational_weeks", "weeks gestation"]
    ),
    comma=st.booleans(),
    plus=st.sampled_from(["", "+"]),
    gap=st.sampled_from(["", " ", "  "]),
)
def test_a_number_and_a_unit_come_back(number, unit, comma, plus, gap):
    written = f"{number:.4f}"
    written = written.replace(".", ",") if comma else written
    assert parse_age(f" {written}{plus}{gap}{unit} ") == (number, unit)
    assert parse_age(f"{written}{plus}") == (number, None)
    assert unit_days(unit) is not None


@pytest.mark.parametrize("unit", ["", " ", "-", "fortnight", "s", "weeks of"])
def test_unknown_units(unit):
    assert unit_days(unit) is None


def test_an_absent_table_has_no_rows(tmp_path):
    assert read_table(tmp_path / "participants.tsv") == []
    assert read_table(tmp_path) == []
