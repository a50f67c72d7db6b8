# SPDX-License-Identifier: Apache-2.0
"""Ratings of experts: the t-test, and Spearman's correlation of scores, by site."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from bmex_bids.cli import evaluate
from bmex_bids.evaluation.ratings import spearman


def table(path, columns):
    rows = [columns, *zip(*columns.values(), strict=True)]
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.fixture
def rated(tmp_path):
    """Twelve images of two sites: all rated higher after, and one score that tells the rating."""
    rng = np.random.default_rng(0)
    before = rng.integers(0, 3, 12)
    after = before + np.array([1, 1, 1, 0] * 3)
    return table(
        tmp_path / "ratings.tsv",
        {
            "image": [f"sub-{k:02}_T1w" for k in range(12)],
            "site": ["A"] * 6 + ["B"] * 5 + ["C"],
            "rating_before": before,
            "rating_after": after,
            "qi": 0.9 - 0.1 * before,
            "comment": ["fine"] * 12,
        },
    )


def lines(text, part):
    section = text.split(f"## {part}")[1].split("##")[0]
    return {
        tuple(cells[: 1 + (part == "Scores")]): cells
        for line in section.splitlines()
        if line.startswith("|")
        and (cells := [cell.strip() for cell in line.strip("|").split("|")])
    }


def test_the_page_of_a_table(rated, tmp_path, capsys):
    out = tmp_path / "page.md"
    assert evaluate.main(["ratings", str(rated), "--out", str(out)]) == 0
    text = out.read_text()
    assert text in capsys.readouterr().out
    change = lines(text, "Before and after")
    assert change["all",][1] == "12"
    assert change["all",][4].startswith("+0.75 [")
    assert change["all",][5] == "< 0.001"
    # nine changes of 1 and three of 0
    d = 0.75 / math.sqrt((9 * 0.25**2 + 3 * 0.75**2) / 11)
    assert float(change["all",][6]) == pytest.approx(d, abs=0.01)
    assert set(change) >= {("all",), ("A",), ("B",)}
    assert ("C",) not in change  # one image says nothing of a site
    scores = lines(text, "Scores")
    assert scores["qi", "all"][2].startswith("-1.00 (< 0.001, n 12)")
    assert -1 < float(scores["qi", "A"][3].split()[0]) < 0
    assert not re.search("comment|image \\|", "".join(name for name, _ in scores))


def test_scores_of_a_group_table_and_columns_of_other_names(rated, tmp_path, capsys):
    own = tmp_path / "own.tsv"
    own.write_text(
        rated.read_text().replace("rating_before", "Raw").replace("rating_after", "BMEX")
    )
    group = table(
        tmp_path / "group_T1w.tsv",
        {
            "image": [f"sub-{k:02}_T1w" for k in range(11)],
            "quality_Score_after_motion": ["n/a", *range(10)],
            "mask_components": [1] * 11,
        },
    )
    flags = ["--before", "Raw", "--after", "BMEX", "--group", str(group)]
    assert evaluate.main(["ratings", str(own), *flags]) == 0
    scores = lines(capsys.readouterr().out, "Scores")
    assert scores["quality_score_after_motion", "all"][2].endswith("n 10)")
    assert ("mask_components", "all") not in scores
    assert evaluate.main(["ratings", str(own), *flags, "--scores", "mask_components"]) == 0
    assert set(lines(capsys.readouterr().out, "Scores")) >= {("mask_components", "all")}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--before", "nothing"], "expected a column nothing"),
        (["--scores", "nothing"], "expected a column nothing"),
        (["--before", "comment"], "both ratings"),
        (["--group", "absent.tsv"], "absent.tsv"),
    ],
)
def test_what_is_absent_is_said(rated, capsys, flags, said):
    assert evaluate.main(["ratings", str(rated), *flags]) == 2
    assert said in capsys.readouterr().err


def test_spearman_by_hand():
    assert spearman([1, 2, 3, 4], [10, 30, 20, 40])[0] == pytest.approx(0.8)
    assert spearman([1, 2, math.nan, 3], [1, 4, 5, 9])[::2] == (pytest.approx(1.0), 3)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3])[0])
    assert math.isnan(spearman([1, 2], [1, 2])[0])
