# SPDX-License-Identifier: Apache-2.0
"""Ages as users really write them; most faults are those of ../shared/data/lifespan-bids."""

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmex_bids.exceptions import AgeError, UsageError
from bmex_bids.inputs.age import Age, age_group, near_boundary
from bmex_bids.inputs.collect import SourceImage
from bmex_bids.inputs.find_age import check_age_file, find_age
from bmex_bids.inputs.numbers import parse_age
from bmex_bids.inputs.sources import labelled, rows_of_subject
from bmex_bids.inputs.tables import read_table
from bmex_bids.inputs.units import DAYS_PER_MONTH, SUBJECT_COLUMNS, unit_days

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
        {f"{SCANS}.tsv": scans("6 months"), f"{BESIDE}.tsv": scans("6 months")},
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
    # units said elsewhere
    "sidecar at the top": (
        {f"{SCANS}.tsv": scans("6"), "scans.json": units("months")}, 6, False, None, f"{SCANS}.tsv",
    ),
    "sidecar of all sessions at the top": (
        {f"{SESSIONS}.tsv": "session_id\tage\nses-V01\t6\n", "sessions.json": units("months")},
        6, False, None, f"{SESSIONS}.tsv",
    ),
    "nearer sidecar overrules the one at the top": (
        with_unit("6", "months") | {"scans.json": units("weeks")}, 6, False, None, f"{SCANS}.tsv",
    ),
    "sidecar of the participants": (
        {f"{PEOPLE}.tsv": "participant_id\tage\nsub-0007\t6\n", f"{PEOPLE}.json": units("months")},
        6, False, None, f"{PEOPLE}.tsv",
    ),
    "Age in the sidecar, age in the table": (
        {f"{SCANS}.tsv": scans("6"), f"{SCANS}.json": units("months", "Age")},
        6, False, None, f"{SCANS}.tsv",
    ),
    "unit only in the description": (
        {f"{SCANS}.tsv": scans("6"), f"{SCANS}.json": {"age": {"Description": "Age in months."}}},
        6, False, "its description says months", f"{SCANS}.tsv",
    ),
    "Units n/a, unit in the description": (
        {f"{SCANS}.tsv": scans("6"), f"{SCANS}.json": {"age": {"Units": "n/a", "LongName": "Month"}}},
        6, False, "its description says month", f"{SCANS}.tsv",
    ),
    "description with two units": (
        {
            f"{SCANS}.tsv": scans("6"),
            f"{SCANS}.json": {"age": {"Description": "age in years, to the nearest month"}},
        },
        72, False, "years, BIDS' default, are taken", f"{SCANS}.tsv",
    ),
    "description of weeks of gestation is no weeks": (
        {
            f"{SCANS}.tsv": scans("6"),
            f"{SCANS}.json": {"age": {"Description": "age, corrected for weeks of gestation"}},
        },
        72, False, "years, BIDS' default, are taken", f"{SCANS}.tsv",
    ),
    "weeks, described as gestational": (
        {
            f"{SCANS}.tsv": scans("30"),
            f"{SCANS}.json": {"age": {"Units": "weeks", "Description": "Gestational age at scan"}},
        },
        210 / DAYS_PER_MONTH, True, None, f"{SCANS}.tsv",
    ),
    "weeks of gestation, only described": (
        {
            f"{SCANS}.tsv": scans("30"),
            f"{SCANS}.json": {"age": {"Description": "gestational age at scan, weeks"}},
        },
        210 / DAYS_PER_MONTH, True, "its description says gestational weeks", f"{SCANS}.tsv",
    ),
    "weeks of gestation of a participant": (
        {f"{PEOPLE}.tsv": "participant_id\tga_weeks\nsub-0007\t30\n"},
        210 / DAYS_PER_MONTH, True, "taken for a fetus' age at the scan", f"{PEOPLE}.tsv",
    ),
    "column of months, sidecar of years": (
        {f"{SCANS}.tsv": scans("6", "age_months"), f"{SCANS}.json": units("years", "age_months")},
        6, False, "the column age_months", f"{SCANS}.tsv",
    ),
    "year(s)": (with_unit("6", "year(s)"), 72, False, None, f"{SCANS}.tsv"),
    "yrs.": (with_unit("6", "yrs."), 72, False, None, f"{SCANS}.tsv"),
    "weeks, gestational": (
        with_unit("25", "weeks, gestational"), 175 / DAYS_PER_MONTH, True, None, f"{SCANS}.tsv",
    ),
    "weeks of gestation": (
        with_unit("25", "Weeks of gestation"), 175 / DAYS_PER_MONTH, True, None, f"{SCANS}.tsv",
    ),
    # units in the column's name
    **{
        name: ({f"{SCANS}.tsv": scans("6", name)}, 6, False, None, f"{SCANS}.tsv")
        for name in (
            "age (months)", "Age[months]", "age_in_months", "Age Months", "age-months", "age_mo",
            "age_at_scan_months", "AGE_MONTHS", "months_age",
        )
    },
    "ga_weeks": (
        {f"{SCANS}.tsv": scans(25, "ga_weeks")}, 175 / DAYS_PER_MONTH, True, None, f"{SCANS}.tsv",
    ),
    "gestational age (weeks)": (
        {f"{SCANS}.tsv": scans(25, "gestational age (weeks)")},
        175 / DAYS_PER_MONTH, True, None, f"{SCANS}.tsv",
    ),
    "age_at_scan, unit in the cell": (
        {f"{SCANS}.tsv": scans("6 months", "age_at_scan")}, 6, False, None, f"{SCANS}.tsv",
    ),
    "age_at_scan, unit in the sidecar": (
        {f"{SCANS}.tsv": scans("6", "age_at_scan"), f"{SCANS}.json": units("months", "age_at_scan")},
        6, False, None, f"{SCANS}.tsv",
    ),
    "scan_age without a unit is passed over": (
        {
            f"{SCANS}.tsv": scans("40", "scan_age"),
            f"{PEOPLE}.tsv": "participant_id\tage\nsub-0007\t6 months\n",
        },
        6, False, "scan_age of sub-0007/ses-V01/sub-0007_ses-V01_scans.tsv is not used",
        f"{PEOPLE}.tsv",
    ),
    "columns of other ages are passed over": (
        {
            f"{PEOPLE}.tsv": "participant_id\tage_of_onset_years\tmaternal_age_years\tage_group\t"
            "birth_age_weeks\tage\nsub-0007\t1\t33\t2\t38\t6 months\n",
        },
        6, False, None, f"{PEOPLE}.tsv",
    ),
    "age, and weeks of gestation at birth": (
        {
            f"{PEOPLE}.tsv": "participant_id\tgestational_age_weeks\tage\nsub-0007\t38\t6 months\n",
        },
        6, False, None, f"{PEOPLE}.tsv",
    ),
    # more text
    "006M, as DICOM has it": ({f"{SCANS}.tsv": scans("006M")}, 6, False, None, f"{SCANS}.tsv"),
    "072Y, as DICOM has it": ({f"{SCANS}.tsv": scans("072Y")}, 864, False, None, f"{SCANS}.tsv"),
    "6mo": ({f"{SCANS}.tsv": scans("6mo")}, 6, False, None, f"{SCANS}.tsv"),
    "6 months old": ({f"{SCANS}.tsv": scans("6 months old")}, 6, False, None, f"{SCANS}.tsv"),
    "6 yo": ({f"{SCANS}.tsv": scans("6 yo")}, 72, False, None, f"{SCANS}.tsv"),
    "no-break space": ({f"{SCANS}.tsv": scans("6\xa0months")}, 6, False, None, f"{SCANS}.tsv"),
    "1 year 6 months": ({f"{SCANS}.tsv": scans("1 year 6 months")}, 18, False, None, f"{SCANS}.tsv"),
    "1 year, and 6 months": (
        {f"{SCANS}.tsv": scans("1 year, and 6 months")}, 18, False, None, f"{SCANS}.tsv",
    ),
    "2y3m": ({f"{SCANS}.tsv": scans("2y3m")}, 27, False, None, f"{SCANS}.tsv"),
    "25w3d of gestation": (
        with_unit("25w3d", "gestational_weeks"), 178 / DAYS_PER_MONTH, True, None, f"{SCANS}.tsv",
    ),
    "25+3 weeks of gestation": (
        with_unit("25+3", "gestational_weeks"), 178 / DAYS_PER_MONTH, True, None, f"{SCANS}.tsv",
    ),
    "25 weeks, sidecar gestational_weeks": (
        with_unit("25 weeks", "gestational_weeks"), 175 / DAYS_PER_MONTH, True, None, f"{SCANS}.tsv",
    ),
    "25 gestational weeks, sidecar weeks": (
        with_unit("25 gestational weeks", "weeks"), 175 / DAYS_PER_MONTH, True, None, f"{SCANS}.tsv",
    ),
    ">89": (with_unit(">89", "years"), 1068, False, None, f"{SCANS}.tsv"),
    "≥ 89 years": ({f"{SCANS}.tsv": scans("≥ 89 years")}, 1068, False, None, f"{SCANS}.tsv"),
    "20-25, within one model": (
        with_unit("20-25", "years"), 270, False, "the middle of it is taken", f"{SCANS}.tsv",
    ),
    "2 to 3 months": (
        {f"{SCANS}.tsv": scans("2 to 3 months")}, 2.5, False, "the middle of it", f"{SCANS}.tsv",
    ),
    # missing here and found there
    "no age column in scans": (
        {
            f"{SCANS}.tsv": f"filename\tacq_time\nanat/{NAME}\t2020-01-01\n",
            f"{PEOPLE}.tsv": "participant_id\tage\nsub-0007\t6 months\n",
        },
        6, False, None, f"{PEOPLE}.tsv",
    ),
    "another session only": (
        {
            f"{SESSIONS}.tsv": "session_id\tage\nses-V02\t9 months\n",
            f"{PEOPLE}.tsv": "participant_id\tage\nsub-0007\t6 months\n",
        },
        6, False, "none of the session V01", f"{PEOPLE}.tsv",
    ),
    # more file names
    "backslashes": (
        {f"{SCANS}.tsv": f"filename\tage\nanat\\x_T2w.nii\t1 month\nanat\\{NAME}\t6 months\n"},
        6, False, None, f"{SCANS}.tsv",
    ),
    "a path from the top": (
        {f"{SCANS}.tsv": f"filename\tage\nx.nii\t1 month\n/sub-0007/ses-V01/anat/{NAME}\t6 months\n"},
        6, False, None, f"{SCANS}.tsv",
    ),
    "no file name in the only row": (
        {f"{SCANS}.tsv": "age\n6 months\n"}, 6, False, "names no file", f"{SCANS}.tsv",
    ),
    # more identifiers
    "a row for each session": (
        {
            f"{PEOPLE}.tsv": "participant_id\tsession_id\tage\nsub-0007\tses-V02\t9 months\n"
            "sub-0007\tses-V01\t6 months\n",
        },
        6, False, None, f"{PEOPLE}.tsv",
    ),
    "a row for each session, one without": (
        {f"{PEOPLE}.tsv": "participant_id\tsession\tage\nsub-0007\tV02\t9 months\nsub-0007\tn/a\t6 months\n"},
        6, False, None, f"{PEOPLE}.tsv",
    ),
    "the same row twice": (
        {f"{PEOPLE}.tsv": "participant_id\tage\nsub-0007\t6 months\nsub-0007\t6 months\n"},
        6, False, None, f"{PEOPLE}.tsv",
    ),
    "an exact id before one that may mean it": (
        {f"{PEOPLE}.tsv": "participant_id\tage\n7\t1 year\nsub-0007\t6 months\n"},
        6, False, None, f"{PEOPLE}.tsv",
    ),
    "sessions of a wrong subject": (
        {f"{SESSIONS}.tsv": "participant_id\tsession_id\tage\nsub-0002\tses-V01\t6 months\n"},
        6, False, "names the subject sub-0002", f"{SESSIONS}.tsv",
    ),
    "sessions of all subjects in a subject's folder": (
        {f"{SESSIONS}.tsv": "subject\tsession_id\tage\nsub-0002\tses-V01\t9 months\nsub-0007\tses-V01\t6 months\n"},
        6, False, None, f"{SESSIONS}.tsv",
    ),
    "Participant ID": (
        {f"{PEOPLE}.tsv": "Participant ID\tAge\nsub-0007\t6 months\n"}, 6, False, None, f"{PEOPLE}.tsv",
    ),
    "small letters in the session": (
        {f"{SESSIONS}.tsv": "session_id\tage\nses-v01\t6 months\n"},
        6, False, None, f"{SESSIONS}.tsv",
    ),
    # more of how the file was written
    "commas": (
        {f"{PEOPLE}.tsv": "participant_id,sex,age\nsub-0003,M,1 year\nsub-0007,F,6 months\n"},
        6, False, "separated by commas, not by tabs", f"{PEOPLE}.tsv",
    ),
    "semicolons and decimal commas": (
        {f"{PEOPLE}.tsv": "participant_id;age_months\nsub-0007;4,5\n"},
        4.5, False, "separated by semicolons", f"{PEOPLE}.tsv",
    ),
    "commas and quoted cells": (
        {f"{PEOPLE}.tsv": 'participant_id,note,age\nsub-0007,"late, twice",6 months\n'},
        6, False, "separated by commas", f"{PEOPLE}.tsv",
    ),
    "many blanks": (
        {f"{PEOPLE}.tsv": "participant_id   sex   age\nsub-0007         F     6 months\n"},
        6, False, "separated by blanks", f"{PEOPLE}.tsv",
    ),
    "single blanks": (
        {f"{PEOPLE}.tsv": "participant_id age_months\nsub-0003 5\nsub-0007 6\n"},
        6, False, "separated by blanks", f"{PEOPLE}.tsv",
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
        f"{SESSIONS}.tsv": "session_id\tage\nses-V01\t2 months\n",
        "sessions.tsv": "participant_id\tsession_id\tage\nsub-0007\tses-V01\t3 months\n",
        f"{PEOPLE}.tsv": "participant_id\tage\nsub-0007\t4 months\n",
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
        ({f"{SCANS}.tsv": scans("1-3 months")}, r"ends have different models .month0, month3"),
        ({f"{SCANS}.tsv": scans("3-1 months")}, "got '3-1 months'"),
        ({f"{SCANS}.tsv": scans("<1")}, "got '<1'"),
        ({f"{SCANS}.tsv": scans("6 months 1 year")}, "got '6 months 1 year'"),
        ({f"{SCANS}.tsv": scans("2019-05-03")}, "got '2019-05-03'"),
        ({f"{SCANS}.tsv": scans("25+3")}, "found no word of gestation; .*--fetal"),
        ({f"{SCANS}.tsv": scans("25+3", "age_years")}, "found no word of gestation"),
        ({f"{SCANS}.tsv": scans("40", "scan_age")}, "is it scan_age in .*scans.tsv. Rename"),
        ({f"{SCANS}.tsv": scans("12", "ages")}, "is it ages in"),
        (with_unit("40", "weeks PMA"), "got 'weeks PMA'"),
        (
            {f"{PEOPLE}.tsv": "participant_id\tage\nsub-0007\t6 months\nsub-0007\t9 months\n"},
            "found several .6 months, 9 months.; say in a session_id column",
        ),
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


def test_two_subjects_that_differ_only_in_zeros_keep_their_ages(bids_skeleton):
    root = bids_skeleton(
        {
            "sub-7": {},
            "sub-0007": {},
            f"{PEOPLE}.tsv": "participant_id\tage\n7\t1 year\nsub-0007\tn/a\n",
        }
    )
    with pytest.raises(AgeError, match=r"participants.tsv without one"):
        find_age(image_in(root), root)
    (root / f"{PEOPLE}.tsv").write_text("participant_id\tage\n7\t1 year\n")
    with pytest.raises(AgeError, match="found no scans"):
        find_age(image_in(root), root)


def test_each_session_has_its_own_age(bids_skeleton):
    root = bids_skeleton(
        {
            f"{PEOPLE}.tsv": "participant_id\tsession_id\tage_months\n"
            "sub-0007\tV01\t3\nsub-0007\tV02\t12\nsub-0007\tV03\tn/a\n"
        }
    )
    assert find_age(image_in(root, "V01"), root).months == pytest.approx(3)
    assert find_age(image_in(root, "V02"), root).months == pytest.approx(12)
    for session in ("V03", "V04"):
        with pytest.raises(AgeError):
            find_age(image_in(root, session), root)


def test_a_fetus_prefers_weeks_of_gestation(bids_skeleton):
    root = bids_skeleton(
        {f"{PEOPLE}.tsv": "participant_id\tage\tga_weeks\nsub-0007\t33 years\t25\n"}
    )
    age = find_age(image_in(root), root, fetal=True)
    assert (age.column, age.months * DAYS_PER_MONTH) == ("ga_weeks", pytest.approx(175))


def test_weeks_and_days_of_a_fetus(bids_skeleton):
    root = bids_skeleton({f"{SCANS}.tsv": scans("25+3")})
    age = find_age(image_in(root), root, fetal=True)
    assert age.months * DAYS_PER_MONTH == pytest.approx(178)
    assert (age.value, age.unit, age.fetal) == ("25+3", "weeks", True)


# ------------------------------------------------------------------ the age file
def ages(tmp_path, text, name="ages.tsv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_the_age_file_comes_before_the_dataset_and_after_the_command_line(bids_skeleton, tmp_path):
    root = bids_skeleton({f"{SCANS}.tsv": scans("1 month")})
    table = ages(tmp_path, "participant_id\tage_months\nsub-0007\t9\n")
    image = image_in(root)
    age = find_age(image, root, age_file=table)
    assert (age.months, age.source, age.column) == (9, "ages.tsv (--age-file)", "age_months")
    assert find_age(image, root, age_file=table, override_months=4).months == 4


@pytest.mark.parametrize(
    ("text", "months"),
    [
        ("participant_id\tsession_id\tage_months\n7\tV02\t8\n7\tV01\t9\n", 9),
        ("participant_id\tsession_id\tage_months\n7\tV02\t8\n7\t\t9\n", 9),
        ("participant_id\tsession_id\tage_months\n7\tV02\t8\n", 1),
        ("participant_id\tage_months\nsub-0008\t9\n", 1),
    ],
    ids=["its session", "any session", "another session", "another subject"],
)
def test_rows_of_the_age_file(text, months, bids_skeleton, tmp_path):
    root = bids_skeleton({f"{SCANS}.tsv": scans("1 month")})
    age = find_age(image_in(root), root, age_file=ages(tmp_path, text))
    assert age.months == pytest.approx(months)


def test_the_sidecar_of_the_age_file(bids_skeleton, tmp_path):
    root = bids_skeleton({})
    table = ages(tmp_path, "participant_id\tage\nsub-0007\t9\n")
    (tmp_path / "ages.json").write_text('{"age": {"Units": "weeks"}}')
    assert find_age(image_in(root), root, age_file=table).months == pytest.approx(
        63 / DAYS_PER_MONTH
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "found no such file"),
        ("", "found no rows"),
        ("participant_id\tage\n", "found no rows"),
        ("name\tage\na\t1\n", "expected a column participant_id in .*, found name, age"),
        ("participant_id\tsex\nsub-1\tF\n", "expected a column age_days, .*found participant_id"),
    ],
)
def test_an_age_file_that_is_none(text, message, tmp_path):
    path = tmp_path / "ages.tsv" if text is None else ages(tmp_path, text)
    with pytest.raises(UsageError, match=message):
        check_age_file(path)


def test_a_table_is_read_again_when_it_changes(tmp_path):
    path = ages(tmp_path, "participant_id\tage\nsub-1\t6\n")
    assert read_table(path)[0]["age"] == "6"
    path.write_text("participant_id\tage\nsub-1\t66\n")
    assert read_table(path)[0]["age"] == "66"


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


@pytest.mark.parametrize(
    "unit", ["", " ", "-", "fortnight", "s", "weeks of", "gestational", "weeks months"]
)
def test_unknown_units(unit):
    assert unit_days(unit) is None


def test_an_absent_table_has_no_rows(tmp_path):
    assert read_table(tmp_path / "participants.tsv") == []
    assert read_table(tmp_path) == []


def test_a_table_that_would_be_read_for_ever_or_is_no_table_has_no_rows(tmp_path):
    (tmp_path / "device.tsv").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.tsv")
    (tmp_path / "long.tsv").write_text("participant_id,age\nsub-01," + "9" * 200_000 + "\n")
    for name in ("device.tsv", "pipe.tsv", "long.tsv"):
        assert read_table(tmp_path / name) == []


def test_rows_of_a_subject_are_found_however_large_the_table(tmp_path):
    """Exactly as a search would: by either spelling, in the table's order."""
    rows = [f"{n}\t{n}" for n in range(1000)]
    rows += ["sub-0007\t1", "7\t2", "0007\t3", "sub-0007\t4"]
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tage\n" + "\n".join(rows) + "\n")
    found = rows_of_subject(table, "sub-0007")
    assert [row["age"] for row in found] == ["1", "3", "4"]
    every = read_table(table)
    columns = SUBJECT_COLUMNS
    assert found == labelled(every, columns, tmp_path / "sub-0007", must=True)
    assert rows_of_subject(tmp_path / "absent.tsv", "sub-0007") == []


def _postmenstrual(**entry):
    return {f"{SCANS}.tsv": scans("41"), f"{SCANS}.json": {"age": entry}}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (_postmenstrual(Units="weeks", Description="Postmenstrual age at scan"), "since birth"),
        (_postmenstrual(Description="age at scan in weeks (PMA)"), "since birth"),
        (_postmenstrual(Units="weeks", LongName="weeks after conception"), "since birth"),
        (
            {f"{PEOPLE}.tsv": "participant_id\tage\tgestational_age_weeks\nsub-0007\tn/a\t39.1\n"},
            "gestational_age_weeks is taken for that at birth",
        ),
        (
            {
                f"{PEOPLE}.tsv": "participant_id\tga_weeks\nsub-0007\t39.1\n",
                f"{PEOPLE}.json": {"ga_weeks": {"Description": "gestational age at birth"}},
            },
            "ga_weeks is taken for that at birth",
        ),
    ],
)
def test_a_newborn_is_no_fetus_and_no_nine_months_old(bids_skeleton, files, words):
    """An age at birth made a fetus of a newborn, weeks after conception one of nine months."""
    root = bids_skeleton(files)
    with pytest.raises(AgeError, match=words):
        find_age(image_in(root), root)
    age = find_age(image_in(root), root, fetal=True)
    assert age.fetal
    assert age.months * DAYS_PER_MONTH / 7 == pytest.approx(41 if "scans" in str(files) else 39.1)


def test_with_fetal_nobody_is_told_to_give_it(bids_skeleton):
    root = bids_skeleton({f"{PEOPLE}.tsv": "participant_id\tga_weeks\nsub-0007\tn/a\n"})
    with pytest.raises(AgeError) as raised:
        find_age(image_in(root), root, fetal=True)
    assert "give --fetal" not in str(raised.value)
