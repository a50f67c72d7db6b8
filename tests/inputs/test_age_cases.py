# SPDX-License-Identifier: Apache-2.0
"""Every way in which a number or an age is written, and every pair of sources that may disagree."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmex_bids.exceptions import AgeError
from bmex_bids.inputs.collect import SourceImage
from bmex_bids.inputs.find_age import find_age
from bmex_bids.inputs.numbers import is_missing, number, parse_age, readings
from bmex_bids.inputs.units import DAYS_PER_MONTH, unit_days

COUNT = itertools.count()
PEOPLE = "participants.tsv"
SESSIONS = "sub-01/sub-01_sessions.tsv"
TOP_SESSIONS = "sessions.tsv"
SCANS = "sub-01/ses-00m/sub-01_ses-00m_scans.tsv"
BESIDE = "sub-01/ses-00m/anat/sub-01_ses-00m_scans.tsv"
OF_SUBJECT = "sub-01/sub-01_scans.tsv"


def image_in(root: Path, session: str | None = "00m", **metadata: object) -> SourceImage:
    entities = {"sub": "01"} | ({"ses": session} if session else {})
    stem = "_".join(f"{key}-{label}" for key, label in entities.items())
    folder = root / "sub-01" / (f"ses-{session}" if session else "") / "anat"
    return SourceImage(folder / f"{stem}_T1w.nii.gz", entities, "T1w", metadata, root)


def people(age: str, column: str = "age") -> str:
    return f"participant_id\t{column}\nsub-01\t{age}\n"


def sessions(age: str, column: str = "age") -> str:
    return f"session_id\t{column}\nses-00m\t{age}\n"


def scans(age: str, column: str = "age", session: str = "00m") -> str:
    return f"filename\t{column}\nanat/sub-01_ses-{session}_T1w.nii.gz\t{age}\n"


def found(bids_skeleton, files, *, session="00m", metadata=None, **options):
    root = bids_skeleton(files, name=f"bids{next(COUNT)}")
    return find_age(image_in(root, session, **(metadata or {})), root, **options)


# ------------------------------------------------------------------ numbers
#: written → number; None: refused
NUMBERS = {
    # plain, as SAS and SPSS write them, with either decimal mark
    "6": 6, "006": 6, "6.5": 6.5, "6.50": 6.5, ".5": 0.5, "30.": 30, "+6": 6, "0": 0, "-1": -1,
    "6,5": 6.5, ",5": 0.5, "6,": 6, "0,095": 0.095, "1,0950": 1.095, "12,50": 12.5,
    "1095,123": 1095.123, "1.095": 1.095, "0.123": 0.123,
    # powers of ten
    "1e1": 10, "1.5E+01": 15, "1,5e1": 15, "1.5D+01": 15, "5e-1": 0.5,
    # marks between thousands
    "1,095.5": 1095.5, "1.095,5": 1095.5, "1,234,567": 1234567, "1.234.567": 1234567,
    "1 095": 1095, "1 095,5": 1095.5, "1'095": 1095, "1 234 567": 1234567,
    # one comma before three digits: nobody knows
    "1,095": None, "12,345": None, "123,456": None,
    # no number
    "6 9": None, "1.2.3": None, "1,2,3": None, "6..5": None, "6.5,": None, "1,23,456": None,
    "": None, ".": None, ",": None, "-": None, "6-": None, "1 0": None, "six": None, "1e": None,
}  # fmt: skip


@pytest.mark.parametrize("written", NUMBERS)
def test_numbers(written):
    expected = NUMBERS[written]
    assert number(written) == (None if expected is None else pytest.approx(expected))


@given(
    value=st.integers(1, 10**7),
    decimals=st.integers(0, 10**4 - 1),
    marks=st.sampled_from([(",", "."), (".", ","), (" ", ","), (" ", "."), ("'", "."), ("", ".")]),
)
def test_a_number_in_any_notation_is_itself_or_refused(value, decimals, marks):
    """Never another number."""
    thousands, point = marks
    text = f"{value:,}".replace(",", thousands) + f"{point}{decimals:04d}"
    assert number(text) in {None, float(f"{value}.{decimals:04d}")}
    whole = number(f"{value:,}".replace(",", thousands))
    ambiguous = thousands in ",." and 1000 <= value < 10**6
    if thousands == "," and ambiguous:
        assert whole is None
    elif not (thousands == "." and ambiguous):  # a point before three digits is a decimal point
        assert whole == value


@given(st.floats(0.001, 130, allow_nan=False))
def test_numbers_of_programs_come_back(value):
    for text in (repr(value), f"{value:.6f}", f"{value:.6e}", f"{value:.4g}", f"{value:.6E}"):
        assert number(text) == float(text)


@given(st.text("0123456789.,' +-eEdD", max_size=12))
def test_any_text_of_digits_and_marks_is_one_number_or_none(text):
    value = number(text)
    if value is not None:
        digits = [sign for sign in text.lower().split("e")[0].split("d")[0] if sign.isdigit()]
        assert abs(value) == 0 or digits
        assert readings(text) is None or value < 0


# ------------------------------------------------------------------ one cell
#: cell of a column "age" without unit → months; None: refused
CELLS = {
    "2": 24, "2.5": 30, ".5": 6, "30.": 360, "2,5": 30, "1,095": None, "1,095 days": None,
    "1095 days": 1095 / DAYS_PER_MONTH, "1095 days 00:00:00": 1095 / DAYS_PER_MONTH,
    "1 095 days": 1095 / DAYS_PER_MONTH, "1'095 d": 1095 / DAYS_PER_MONTH,
    "1,095.0 days": 1095 / DAYS_PER_MONTH,
    # quotation marks and signs of spreadsheets
    '="006M"': 6, "'6 months": 6, "6\xa0months": 6, "6\u202fmonths": 6, "6·5 months": 6.5,
    # units
    "6 mos": 6, "6 mths": 6, "6 mons": 6, "6 mo.": 6, "6-months-old": None, "6 months-old": 6,
    "6 m.o.": 6, "6 m/o": 6, "6 months of age": 6, "6 months since birth": 6,
    "6 yrs": 72, "6 y/o": 72, "6 y.o.": 72, "6yo": 72, "6 years of age": 72, "6 year old": 72,
    "36 hours": 1.5 / DAYS_PER_MONTH, "10 d": 10 / DAYS_PER_MONTH, "6 wks": 42 / DAYS_PER_MONTH,
    # compound
    "1 year 6 months": 18, "1y6m": 18, "1 yr, 6 mo": 18, "P1Y6M": 18, "P6M": 6, "P2Y": 24,
    "1 year 6": None, "1,6 years 2 months": 21.2, "2y 3m 5d": 27 + 5 / DAYS_PER_MONTH,
    # fractions
    "½ year": 6, "1½ years": 18, "1 1/2 years": 18, "1/2 year": 6, "1/2": None, "1 6/12 years": 18,
    "6/52": None, "3/2 years": None,
    # bounds and ranges: one model, or none
    "89+": 1068, ">89": 1068, "≥ 30": 360, "3+ months": None, "> 3 months": None, "<1": None,
    "20-25": 270, "20–25": 270, "20 years to 25 years": 270, "1-3 months": None,
    "2-2.5 months": 2.25, "2 months - 2.5 months": 2.25, "1,095-1,200 days": None,
    # dates, times and what spreadsheets make of ranges
    "2019-05-03": None, "03/05/2019": None, "6-Dec": None, "Dec-06": None, "5:06": None, "5;6": None,
    # words and codes
    "six": None, "newborn": None, "adult": None, "#VALUE!": None, "#REF!": None, "6?": None,
    "6*": None, "~6": None, "6 & 9": None, "True": None, "[6]": None, "-1": None, "999": None,
    # weeks that may count from birth or before
    **dict.fromkeys(
        (
            "38w", "38 wk", "38 wks", "38 weeks", "38W", "38.3 weeks", "38w2d", "38 w 2 d",
            "38 weeks 2 days", "38 weeks, 2 days", "38 weeks and 2 days", "38+2", "38+2/7",
            "38 2/7", "38w+2d", "38w+2", "38+2 weeks", "P38W2D", "P38W", "16 weeks", "60 weeks",
            "6+2", "37-39 weeks",
        )
    ),
    # and that count from before birth of the child
    "38 weeks PMA": None, "PMA 38+2": None, "38 weeks postmenstrual": None,
    # those say from when
    "38 weeks since birth": 266 / DAYS_PER_MONTH, "38 weeks old": 266 / DAYS_PER_MONTH,
    "38 postnatal weeks": 266 / DAYS_PER_MONTH, "38 weeks of age": 266 / DAYS_PER_MONTH,
    "2 weeks": 14 / DAYS_PER_MONTH, "104 weeks": 728 / DAYS_PER_MONTH,
    "2w3d": 17 / DAYS_PER_MONTH,
}  # fmt: skip


@pytest.mark.parametrize("written", CELLS)
def test_cells(written, bids_skeleton):
    files = {PEOPLE: people(written)}
    expected = CELLS[written]
    if expected is None:
        with pytest.raises(AgeError, match="expected"):
            found(bids_skeleton, files, session=None)
    else:
        age = found(bids_skeleton, files, session=None)
        assert not age.fetal
        assert age.months == pytest.approx(expected)


WEEKS = [
    "38w2d", "38 w 2 d", "38 weeks 2 days", "38 weeks and 2 days", "38+2", "38+2/7", "38 2/7",
    "38w+2d", "38w+2", "38+2 weeks", "P38W2D", "GA 38+2", "38+2 GA", "38+2 weeks of gestation",
]  # fmt: skip


@pytest.mark.parametrize("written", WEEKS)
@pytest.mark.parametrize("said", ["the flag", "the unit", "the description", "the column"])
def test_all_ways_of_weeks_and_days_go_one_way(written, said, bids_skeleton):
    """Refused until something says from when they count (see CELLS), and then one age."""
    column = "ga_weeks" if said == "the column" else "age"
    files = {SCANS: scans(written, column)}
    if said == "the unit":
        files["scans.json"] = {"age": {"Units": "gestational_weeks"}}
    if said == "the description":
        files["scans.json"] = {"age": {"Description": "Gestational age at the scan"}}
    age = found(bids_skeleton, files, fetal=said == "the flag")
    assert age.fetal
    assert age.months * DAYS_PER_MONTH == pytest.approx(268)


@pytest.mark.parametrize(
    ("column", "entry"),
    [
        ("age", {"Units": "weeks", "Description": "Age since birth"}),
        ("age", {"Units": "weeks", "Description": "Postnatal age"}),
        ("age", {"Units": "weeks", "Description": "Corrected age at the scan"}),
        ("age", {"Units": "weeks since birth"}),
        ("postnatal_age_weeks", {}),
        ("age_weeks_since_birth", {}),
    ],
)
def test_weeks_since_birth(column, entry, bids_skeleton):
    files = {SCANS: scans("38", column), "scans.json": {column: entry}}
    age = found(bids_skeleton, files)
    assert (age.fetal, age.warnings) == (False, ())
    assert age.months * DAYS_PER_MONTH == pytest.approx(266)


@pytest.mark.parametrize("entry", [{"Units": "weeks"}, {"Description": "age in weeks"}])
def test_weeks_of_a_table_are_as_unclear_as_those_of_a_cell(entry, bids_skeleton):
    for column in ("age", "age_weeks"):
        files = {SCANS: scans("38", column), "scans.json": {column: entry}}
        with pytest.raises(AgeError, match="from when '38' in column"):
            found(bids_skeleton, files)


def test_both_readings_are_named(bids_skeleton):
    files = {PEOPLE: people("1,095"), "participants.json": {"age": {"Units": "days"}}}
    with pytest.raises(AgeError, match=r"'1,095', which is 1095 or 1\.095; write"):
        found(bids_skeleton, files, session=None)


@pytest.mark.parametrize(
    ("written", "unit", "doubted"),
    [
        ("1.095", "days", True),
        ("10.950", "days", True),
        ("1.095 days", "", True),
        ("1.09", "days", False),
        ("1095.123", "days", False),
        ("365.250", "days", False),  # 1000 years
        ("1.095", "months", False),
        ("1.095", "years", False),
    ],
)
def test_days_with_a_point_before_three_digits_are_doubted(written, unit, doubted, bids_skeleton):
    """A German spreadsheet writes 1095 days so; the age would be that of a newborn."""
    files = {PEOPLE: people(written), "participants.json": {"age": {"Units": unit or "days"}}}
    age = found(bids_skeleton, files, session=None)
    assert any("is it 10950?" in text or "is it 1095?" in text for text in age.warnings) == doubted
    if doubted:
        with pytest.raises(AgeError, match="that needs no assumption"):
            found(bids_skeleton, files, session=None, strict=True)


@pytest.mark.parametrize(
    "entry",
    [
        *({"Units": unit} for unit in ("years", "year", "Years", "yr", "y", "a", "year(s)")),
        {"Description": "age of the participant", "Units": "years"},
        {"Description": "Age in years, corrected for months of gestation", "Units": "years"},
        {"LongName": "Age", "Description": "gestational cohort; age", "Units": "years"},
        {"Description": "Age in years"},
        {"LongName": "Age (years)"},
    ],
)
@pytest.mark.parametrize("column", ["age", "Age", "age_years", "age (years)"])
def test_no_warning_of_what_is_normal(entry, column, bids_skeleton):
    files = {PEOPLE: people("30", column), "participants.json": {column: entry}}
    age = found(bids_skeleton, files, session=None)
    assert (age.months, age.warnings) == (360, ())


@pytest.mark.parametrize(
    ("written", "column", "unit", "last"),
    [("0", "age_years", "", "month12"), ("1", "age_years", "", "month24"), ("1 year", "age", "", "month24")],
)  # fmt: skip
def test_a_whole_year_with_several_models_is_told(written, column, unit, last, bids_skeleton):
    age = found(bids_skeleton, {PEOPLE: people(written, column)}, session=None)
    (warning,) = age.warnings
    assert "in whole years" in warning
    assert last in warning
    for other in ("2", "1.0833", "30"):
        assert found(bids_skeleton, {PEOPLE: people(other, column)}, session=None).months > 0


# ------------------------------------------------------------------ what is not known
MISSING = [
    "n/a", "N/A", "NA", "", " ", "nan", "NaN", "NULL", "None", ".", ".A", ".z", "._", "-", "--", "?",
    "#N/A", "<NA>", "NaT", "unknown", "not known", "-9", "-9.0", "-999", "-9999", "NA_real_",
]  # fmt: skip


@pytest.mark.parametrize("written", MISSING)
def test_words_for_nothing(written):
    assert is_missing(written)
    assert not is_missing("0")


@pytest.mark.parametrize("written", ["n/a", "", "NaN", ".", "-9"])
@pytest.mark.parametrize("near", [SESSIONS, SCANS, BESIDE, OF_SUBJECT, TOP_SESSIONS, "age file"])
def test_not_known_nearer_to_the_image_is_not_known(written, near, bids_skeleton, tmp_path):
    contents = {
        SESSIONS: sessions(written), SCANS: scans(written), BESIDE: scans(written),
        OF_SUBJECT: scans(written),
        TOP_SESSIONS: f"participant_id\tsession_id\tage\nsub-01\tses-00m\t{written}\n",
    }  # fmt: skip
    files = {PEOPLE: people("30")}
    options = {}
    if near == "age file":
        (tmp_path / "ages.tsv").write_text(people(written))
        options["age_file"] = tmp_path / "ages.tsv"
    else:
        files[near] = contents[near]
    with pytest.raises(AgeError) as raised:
        found(bids_skeleton, files, **options)
    message = str(raised.value)
    assert "not known" in message
    assert "30 years of participants.tsv" in message
    assert "--age-file or --age-months" in message
    overruled = found(bids_skeleton, files, override_months=5)
    assert overruled.months == 5


def test_an_age_file_overrules_what_is_not_known(bids_skeleton, tmp_path):
    table = tmp_path / "ages.tsv"
    table.write_text("participant_id\tage_months\nsub-01\t6\n")
    files = {SESSIONS: sessions("n/a"), PEOPLE: people("30 years")}
    age = found(bids_skeleton, files, age_file=table)
    assert age.months == 6
    assert "overrules 30 years of participants.tsv" in age.warnings[0]


# ------------------------------------------------------------------ sources that disagree
#: nearer, farther, whether that is told
PAIRS = [
    (SCANS, scans("6 months"), SESSIONS, sessions("9 months"), True),
    (SCANS, scans("6 months"), SESSIONS, sessions("6.2 months"), False),
    (SCANS, scans("6.4 months"), SESSIONS, sessions("6 months"), False),
    (SCANS, scans("23 months"), SESSIONS, sessions("1 year"), False),
    (SCANS, scans("6 months"), PEOPLE, people("9 months"), True),
    (SESSIONS, sessions("6 months"), PEOPLE, people("6 years"), True),
    (SESSIONS, sessions("6 months"), PEOPLE, people("30 gestational_weeks"), False),
    (SESSIONS, sessions("6 months"), PEOPLE, people("n/a"), False),
    (SESSIONS, sessions("6 months"), PEOPLE, people("rubbish"), False),
    (SESSIONS, sessions("6 months"), PEOPLE, people("6"), False),  # its unit is a guess
]


@pytest.mark.parametrize(("near", "text", "far", "other", "told"), PAIRS)
def test_the_nearer_table_wins_and_is_told_to_disagree(
    near, text, far, other, told, bids_skeleton
):
    files = {near: text, far: other}
    age = found(bids_skeleton, files)
    assert age.source == near
    assert any("the former is taken" in warning for warning in age.warnings) == told
    if told:
        with pytest.raises(AgeError, match=r"--strict-ages.*the former is taken"):
            found(bids_skeleton, files, strict=True)


@pytest.mark.parametrize(
    ("first", "second", "taken"),
    [
        (SCANS, BESIDE, None), (SCANS, OF_SUBJECT, None), (BESIDE, OF_SUBJECT, None),
    ],
)  # fmt: skip
def test_two_scans_tables_contradict_each_other(first, second, taken, bids_skeleton):
    files = {first: scans("25 gestational_weeks"), second: scans("30 gestational_weeks")}
    with pytest.raises(AgeError, match=r"found several .25 gestational_weeks, 30 gest") as raised:
        found(bids_skeleton, files)
    assert first in str(raised.value)
    assert second in str(raised.value)
    with pytest.raises(AgeError, match="found several"):
        found(bids_skeleton, {first: scans("6 months"), second: scans("n/a")})
    same = {first: scans("1 year"), second: scans("23 months")}
    assert found(bids_skeleton, same).months == pytest.approx(23)  # the finer of two that agree


def test_two_columns_of_a_row_contradict_each_other(bids_skeleton):
    header = "participant_id\tage_months\tage_years\n"
    with pytest.raises(AgeError, match="6 months in column age_months and 30 years"):
        found(bids_skeleton, {PEOPLE: f"{header}sub-01\t6\t30\n"}, session=None)
    age = found(bids_skeleton, {PEOPLE: f"{header}sub-01\t30\t2\n"}, session=None)
    assert (age.months, age.warnings) == (30, ())
    text = "participant_id\tage_months\tage\nsub-01\t20\t30\n"
    age = found(bids_skeleton, {PEOPLE: text}, session=None)
    assert "20 months in column age_months and 30 years in column age" in age.warnings[0]


def test_one_column_twice(bids_skeleton):
    twice = "participant_id\tage\tage\nsub-01\t2\t{}\n"
    assert found(bids_skeleton, {PEOPLE: twice.format("2")}, session=None).months == 24
    assert found(bids_skeleton, {PEOPLE: twice.format("")}, session=None).months == 24
    with pytest.raises(AgeError, match=r"got '2 \| 30'"):
        found(bids_skeleton, {PEOPLE: twice.format("30")}, session=None)


def test_more_cells_than_columns(bids_skeleton):
    """A decimal comma in a table of commas shifted the cells, and 4,5 years were 4."""
    text = "participant_id,age,sex\nsub-01,4,5,F\n"
    with pytest.raises(AgeError, match=r"got 'sub-01 \| 4 \| 5 \| F'"):
        found(bids_skeleton, {PEOPLE: text}, session=None)
    text = "participant_id\tage\n1\tsub-02\t3\n2\tsub-01\t30\n"  # R numbers rows, not the header
    assert found(bids_skeleton, {PEOPLE: text}, session=None).months == 360
    text = "participant_id\tage\nsub-01\t30\t\t\n"
    assert found(bids_skeleton, {PEOPLE: text}, session=None).months == 360


@pytest.mark.parametrize(
    ("tree", "warned"),
    [
        (["ses-00m", "ses-24m"], True), (["ses-00m", "ses-12m", "ses-24m"], True),
        (["ses-00m"], False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("table", [PEOPLE, "age file"])
def test_one_age_for_several_sessions(tree, warned, table, bids_skeleton, tmp_path):
    files = {f"sub-01/{session}/anat/x": "" for session in tree}
    options = {}
    if table == PEOPLE:
        files[PEOPLE] = people("24 months")
    else:
        options["age_file"] = tmp_path / "ages.tsv"
        options["age_file"].write_text(people("24 months"))
    age = found(bids_skeleton, files, **options)
    assert any(f"one age for {len(tree)} sessions" in w for w in age.warnings) == warned
    if warned:
        with pytest.raises(AgeError, match="--strict-ages"):
            found(bids_skeleton, files, strict=True, **options)


@pytest.mark.parametrize(
    "table",
    [
        {SESSIONS: sessions("0 months")}, {SCANS: scans("0 months")},
        {PEOPLE: "participant_id\tsession_id\tage\nsub-01\tses-00m\t0 months\n"},
    ],
)  # fmt: skip
def test_an_age_for_each_session_is_no_matter(table, bids_skeleton):
    tree = {f"sub-01/ses-{session}/anat/x": "" for session in ("00m", "24m")}
    files = {PEOPLE: people("24 months"), **tree, **table}
    assert found(bids_skeleton, files, strict=True).warnings == ()


def test_a_sessions_table_without_this_session(bids_skeleton):
    tree = {f"sub-01/ses-{session}/anat/x": "" for session in ("00m", "24m")}
    table = "session_id\tage\nses-24m\t24 months\n"
    age = found(bids_skeleton, {**tree, SESSIONS: table, PEOPLE: people("24 months")})
    assert "one age for 2 sessions" in age.warnings[0]


def test_the_scanners_age(bids_skeleton):
    files = {PEOPLE: people("6 years")}
    for written, told in (
        ("006M", True),
        ("006Y", False),
        ("072M", False),
        ("", False),
        (6, False),
    ):
        age = found(bids_skeleton, files, session=None, metadata={"PatientAge": written})
        assert any("PatientAge" in warning for warning in age.warnings) == told
    with pytest.raises(AgeError, match=r"PatientAge in its JSON is 006M"):
        found(bids_skeleton, {}, session=None, metadata={"PatientAge": "006M"})


def test_a_table_in_another_format_is_named(bids_skeleton):
    with pytest.raises(AgeError, match=r"participants\.xlsx is not read"):
        found(bids_skeleton, {"participants.xlsx": "x"}, session=None)


@given(
    months=st.integers(0, 240),
    form=st.sampled_from(["{} months", "{}mo", "{:03d}M", "{}.0 months", "P{}M", "{} m/o", " {} MTH "]),
)  # fmt: skip
def test_months_in_any_form(months, form):
    value, unit = parse_age(form.format(months))
    days, before_birth = unit_days(unit)
    assert value * days / DAYS_PER_MONTH == pytest.approx(months)
    assert not before_birth


def test_warnings_stay_plain_text(bids_skeleton):
    tree = {f"sub-01/ses-{session}/anat/x": "" for session in ("00m", "24m")}
    age = found(bids_skeleton, {**tree, PEOPLE: people("24 months")})
    assert all(isinstance(text, str) for text in dataclasses.asdict(age)["warnings"])


def test_two_ages_that_r_merged_are_no_years(bids_skeleton):
    """``age.y`` is the second of two columns ``age``; its y was taken for years."""
    text = "participant_id\tage.x\tage.y\nsub-01\t6\t30\n"
    with pytest.raises(AgeError, match=r"is it age.x in participants.tsv, age.y in"):
        found(bids_skeleton, {PEOPLE: text}, session=None)


def test_a_unit_in_a_list(bids_skeleton):
    files = {PEOPLE: people("6"), "participants.json": {"age": {"Units": ["months"]}}}
    age = found(bids_skeleton, files, session=None)
    assert (age.months, age.warnings) == (6, ())


@pytest.mark.parametrize(
    ("column", "months"),
    [
        ("AgeMonths", 7), ("AgeInMonths", 7), ("agemonths", 7), ("ageyears", 84), ("AgeDays", 0.23),
        ("agewks", 1.61), ("ScanAgeMonths", 7), ("Age", 84),
    ],
)  # fmt: skip
def test_names_of_columns_that_are_written_together(column, months, bids_skeleton):
    age = found(bids_skeleton, {PEOPLE: people("7", column)}, session=None)
    assert age.months == pytest.approx(months, abs=0.01)


def test_a_name_without_a_unit_is_asked_for_however_it_is_written(bids_skeleton):
    for column in ("AgeAtScan", "scanAge", "AgeAtMRI"):
        with pytest.raises(AgeError, match="Rename that, with its unit"):
            found(bids_skeleton, {PEOPLE: people("7", column)}, session=None)


@pytest.mark.parametrize(
    ("levels", "label"),
    [
        ({"777": "refused"}, "refused"),
        ({"777": {"Description": "lost"}}, "lost"),
        ({"777": ""}, ""),
    ],
)
def test_a_code_that_the_sidecar_explains_is_no_age(levels, label, bids_skeleton):
    """It was an age of 65 years."""
    entry = {"age": {"Units": "months", "Levels": levels}}
    files = {PEOPLE: people("777"), "participants.json": entry}
    with pytest.raises(AgeError, match=rf"says '777 \({label or 'a level'}\)', not known"):
        found(bids_skeleton, files, session=None)
    files[PEOPLE] = people("7")
    assert found(bids_skeleton, files, session=None).months == 7


def test_a_sidecar_that_is_no_json_is_named_where_it_would_say_the_unit(bids_skeleton, tmp_path):
    """Seven months were seven years, and the warning did not say why."""
    files = {PEOPLE: people("7"), "participants.json": {"age": {"Units": "months"}}}
    root = bids_skeleton(files)
    sidecar = root / "participants.json"
    text = sidecar.read_text()
    sidecar.write_text(text.rstrip().removesuffix("}") + ",}")
    age = find_age(image_in(root, None), root)
    assert age.warnings[0].startswith(
        "no unit for column age of participants.tsv, since participants.json is no JSON file ("
    )
    with pytest.raises(AgeError, match="strict-ages"):
        find_age(image_in(root, None), root, strict=True)
    for encoding in ("latin-1", "utf-16"):
        described = text.replace('"Units"', '"Description": "Alter, M\u00e4dchen", "Units"')
        sidecar.write_bytes(described.encode(encoding))
        assert find_age(image_in(root, None), root).months == 7


# ------------------------------------------------------------------ units of several tables
@pytest.mark.parametrize("unit", ["months", "weeks since birth", "days"])
@pytest.mark.parametrize("near", [SESSIONS, TOP_SESSIONS, SCANS])
def test_years_are_not_guessed_where_another_table_says_another_unit(bids_skeleton, near, unit):
    """An infant of 24 months became an adult of 24 years, with a warning."""
    table = {
        SESSIONS: sessions("24"),
        TOP_SESSIONS: "participant_id\tsession_id\tage\nsub-01\t00m\t24\n",
        SCANS: scans("24"),
    }[near]
    files = {near: table, PEOPLE: people("6"), "participants.json": {"age": {"Units": unit}}}
    with pytest.raises(AgeError, match=r"the unit of 24 for sub-01.*write 'Units'"):
        found(bids_skeleton, files)
    said = near.replace(".tsv", ".json")
    age = found(bids_skeleton, files | {said: {"age": {"Units": "months"}}})
    assert age.months == 24
    assert found(bids_skeleton, files, override_months=24).months == 24


@pytest.mark.parametrize("people_say", ["6 years", "6", "38 weeks of gestation", "n/a"])
def test_years_are_taken_where_no_other_table_says_otherwise(bids_skeleton, people_say):
    age = found(bids_skeleton, {SESSIONS: sessions("24"), PEOPLE: people(people_say)})
    assert age.months == 288


# ------------------------------------------------------------------ tables that spreadsheets change
@pytest.mark.parametrize("written", ["777.0", "777", " 777.00 "])
def test_a_code_that_pandas_made_a_decimal_is_a_code(written, bids_skeleton):
    """777.0 months were an adult."""
    entry = {"age": {"Units": "months", "Levels": {"777": "refused"}}}
    with pytest.raises(AgeError, match="not known"):
        found(
            bids_skeleton,
            {PEOPLE: people(written), "participants.json": entry},
            session=None,
        )


def test_a_sidecar_that_describes_a_column_by_a_text(bids_skeleton):
    files = {PEOPLE: people("6"), "participants.json": {"age": "Age in months"}}
    assert found(bids_skeleton, files, session=None).months == 6


def test_blanks_that_an_editor_took_from_the_end_of_a_row_are_an_empty_cell(bids_skeleton):
    """The participant's age was taken, without a word."""
    files = {PEOPLE: people("30"), SESSIONS: "session_id\tacq_time\tage\nses-00m\t2020\n"}
    with pytest.raises(AgeError, match=r"not known, which counts more than 30 years"):
        found(bids_skeleton, files)


@pytest.mark.parametrize(
    ("columns", "cells"),
    [
        ("age_years\tage_months", "1\t8"),
        ("age_y\tage_m", "1\t3"),
        ("age\tage_months", "1\t11"),
        ("age\tage_months", "30\t6"),
        ("age_months\tage_days", "1\t20"),
    ],
)
def test_parts_of_an_age_in_two_columns_are_no_two_ages(columns, cells, bids_skeleton):
    """One year and eight months were eight months."""
    text = f"participant_id\t{columns}\nsub-01\t{cells}\n"
    with pytest.raises(AgeError, match="may be the parts of one"):
        found(bids_skeleton, {PEOPLE: text}, session=None)


def test_columns_that_say_one_age_in_two_units_are_no_parts(bids_skeleton):
    for columns, cells, months in (
        ("age_years\tage_months", "0\t8", 8),
        ("age_years\tage_months", "1\t20", 20),
        ("age_months\tage_weeks_since_birth", "6\t26", 5.98),
    ):
        text = f"participant_id\t{columns}\nsub-01\t{cells}\n"
        age = found(bids_skeleton, {PEOPLE: text}, session=None)
        assert age.months == pytest.approx(months, abs=0.03)


@pytest.mark.parametrize(
    "table",
    [
        {SESSIONS: "session_id\tage\nbaseline\t6 months\n"},
        {SESSIONS: "age\n6 months\n"},
        {TOP_SESSIONS: "participant_id\tsession_id\tage\nsub-01\tbaseline\t6 months\n"},
    ],
)
def test_ages_of_sessions_none_of_which_is_the_images_are_told(table, bids_skeleton):
    """The participant's age of another year was taken, without a word."""
    files = {PEOPLE: people("30 years"), **table}
    age = found(bids_skeleton, files)
    assert "has ages and none of the session 00m" in age.warnings[0]
    with pytest.raises(AgeError, match="--strict-ages"):
        found(bids_skeleton, files, strict=True)


def test_ages_of_sessions_of_others_are_not_told(bids_skeleton):
    others = "participant_id\tsession_id\tage\nsub-02\tses-1\t6 months\n"
    for table in (others, "participant_id\tsession_id\tage\nsub-01\tses-1\tn/a\n"):
        age = found(bids_skeleton, {PEOPLE: people("30 years"), TOP_SESSIONS: table})
        assert age.warnings == ()


@pytest.mark.parametrize(("other", "told"), [("6 months", True), ("31 years", False)])
def test_a_fetus_that_another_table_has_as_born_is_told(other, told, bids_skeleton):
    """The other may be the mother's age, but not one of a child."""
    files = {SCANS: scans("25 gestational_weeks"), SESSIONS: sessions(other)}
    age = found(bids_skeleton, files)
    assert any("the former is taken" in warning for warning in age.warnings) == told
