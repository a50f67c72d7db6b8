# SPDX-License-Identifier: Apache-2.0
import json
import os
import re
from pathlib import Path

import pytest
import template_home

from bmex_bids.exceptions import TemplateError, UsageError
from bmex_bids.inputs.templates import home, left_out, parse_spaces, templates_for


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return template_home.make(tmp_path_factory.mktemp("templateflow"))


def found(root, *words, contrast="T1w", months=30.0):
    return templates_for(parse_spaces(words), contrast=contrast, months=months, root=root)


def test_spaces_as_other_apps_write_them():
    words = [
        "T1w",
        "MNI152NLin2009cAsym:res-2:res-1",
        "tpl-MNIInfant",
        "fsaverage:den-10k",
        "anat",
    ]
    spaces = parse_spaces([*words, "MNIInfant"])
    assert [str(space) for space in spaces] == [
        "MNI152NLin2009cAsym:res-2",
        "MNI152NLin2009cAsym:res-1",
        "MNIInfant",
    ]
    assert [word for word in words if left_out(word)] == ["T1w", "fsaverage:den-10k", "anat"]


@pytest.mark.parametrize(
    "word", ["MNI152:res-native", "MNI152:den-2", "MNI152:", "../x", "A:cohort-1:cohort-2"]
)
def test_a_space_that_is_not_understood_is_refused(word):
    with pytest.raises(UsageError, match="write for example"):
        parse_spaces([word])


@pytest.mark.parametrize(
    ("months", "label"),
    [(0.0, "MNIInfant+1"), (2.0, "MNIInfant+1"), (2.1, "MNIInfant+2"), (5.0, "MNIInfant+2")],
)
def test_age_chooses_the_cohort(root, months, label):
    (template,), notes = found(root, "MNIInfant", months=months)
    assert template.label == label
    assert notes == []
    assert template.grids[0].image.name == (f"tpl-MNIInfant_cohort-{label[-1]}_res-1_T1w.nii.gz")


@pytest.mark.parametrize(
    ("months", "reason"),
    [(30.0, "for 0 to 8 months, not 30"), (None, "not for a fetus")],
)
def test_an_age_without_a_cohort_leaves_the_space_out_and_says_so(root, months, reason):
    templates, (note,) = found(root, "MNIInfant", "MNI152NLin2009cAsym", months=months)
    assert [template.label for template in templates] == ["MNI152NLin2009cAsym"]
    assert reason in note


def test_the_narrowest_of_cohorts_that_overlap(tmp_path):
    cohorts = {
        "1": {"age": [4.5, 18.5], "units": "yr"},
        "2": {"age": [4.5, 8.5], "units": "yr"},
        "3": {"age": [7.0, 11.0], "units": "yr"},
    }
    for cohort in cohorts:
        stem = f"tpl-MNIPediatricAsym_cohort-{cohort}_res-1"
        template_home.put(tmp_path, stem, template_home.shrunk(20))
    path = tmp_path / "tpl-MNIPediatricAsym" / "template_description.json"
    path.write_text(json.dumps({"cohort": cohorts}))
    labels = {
        years: found(tmp_path, "MNIPediatricAsym", months=12.0 * years)[0][0].label[-1]
        for years in (5, 8, 10, 15)
    }
    assert labels == {5: "2", 8: "2", 10: "3", 15: "1"}


def test_files_that_were_copied_without_their_description_will_do(tmp_path):
    template_home.put(tmp_path, "tpl-MNI152NLin2009cAsym_res-01", template_home.shrunk(20))
    assert found(tmp_path, "MNI152NLin2009cAsym")[0][0].label == "MNI152NLin2009cAsym"


def test_the_contrast_of_the_image_or_else_the_other(root):
    assert found(root, "MNIInfant:cohort-1", contrast="T2w")[0][0].contrast == "T2w"
    (template,), _ = found(root, "MNI152NLin2009cAsym", contrast="T2w")
    assert template.contrast == "T1w"
    assert template.reference == (
        "https://templateflow.s3.amazonaws.com/tpl-MNI152NLin2009cAsym/"
        "tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz"
    )


def test_a_contrast_that_no_template_has_takes_the_t1w(root):
    assert found(root, "MNIInfant:cohort-1", contrast="FLAIR")[0][0].contrast == "T1w"


def test_two_resolutions_are_grids_of_one_template(root):
    (template,), _ = found(root, "MNI152NLin2009cAsym:res-2", "MNI152NLin2009cAsym")
    assert [grid.resolution for grid in template.grids] == ["", "2"]
    assert [path.name.split("_")[1] for path in template.files] == ["res-01"] * 2 + ["res-02"] * 2


@pytest.mark.parametrize(
    ("word", "command"),
    [
        ("MNIInfant:cohort-3", "get MNIInfant --cohort 3 --res 1 -s T1w -s T2w -s mask"),
        ("MNI152NLin6Asym:res-2", "description"),
        ("MNI152NLin2009cAsym:res-7", "get MNI152NLin2009cAsym --res 7"),
    ],
)
def test_a_missing_template_says_what_to_fetch(root, word, command):
    with pytest.raises(TemplateError, match="a run fetches nothing") as caught:
        found(root, word)
    assert command in str(caught.value)
    assert str(root) in str(caught.value)
    assert "templateflow get" in str(caught.value)


def test_all_that_is_missing_is_named_at_once(root):
    """A user at a cluster without a network fetches once."""
    wanted = ("MNI152NLin6Asym:res-2", "MNI152NLin2009cAsym", "MNIInfant:cohort-3", "MNIPediatric")
    with pytest.raises(TemplateError) as caught:
        found(root, *wanted)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3  # of MNI152NLin2009cAsym all is there
    for name in ("MNI152NLin6Asym", "MNIInfant", "MNIPediatric"):
        assert sum(f"tpl-{name}" in line for line in lines) == 1


def test_what_it_says_to_fetch_is_a_command_of_templateflow(root):
    """``templateflow`` knows the flags; its help is read, nothing is fetched."""
    import subprocess
    import sys

    with pytest.raises(TemplateError) as caught:
        found(root, "MNIInfant:cohort-3")
    flags = re.findall(r" (--?\w+) ", str(caught.value))
    program = "from templateflow.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, "get", "--help"],
        env={**os.environ, "TEMPLATEFLOW_HOME": str(root), "TEMPLATEFLOW_AUTOUPDATE": "off"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(flags) == {"--cohort", "--res", "-s"}
    assert all(re.search(rf"{flag}\b", done.stdout) for flag in flags)


def test_the_home_is_templateflows(monkeypatch, tmp_path):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("TEMPLATEFLOW_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert home() == tmp_path / "cache" / "templateflow"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert home() == Path.home() / ".cache" / "templateflow"
