# SPDX-License-Identifier: Apache-2.0
import pytest

from bmex_bids.evaluation.rows import Row
from bmex_bids.evaluation.summary import (
    MARKS,
    Table,
    against,
    beats,
    by_age,
    by_cell,
    each_image,
    markdown,
    replaced,
    volumes,
)
from bmex_bids.exceptions import UsageError
from bmex_bids.metrics.statistics import bootstrap_interval


def row(image, cell, method, metric, value):
    return Row(image, cell, method, "k", metric, value)


@pytest.fixture
def found():
    """Two adults and a fetus with moderate motion; the second adult becomes worse."""
    rows = []
    for image, after in (("adult-31", 60.0), ("adult-68", 110.0), ("fetus-31w", 40.0)):
        for method, error in (("damaged", 100.0), ("bmex", after)):
            rows += [row(image, "moderate", method, m, error) for m in ("mse", "native_mse")]
            rows += [
                row(image, "moderate", method, m, 50 - error / 10) for m in ("psnr", "native_psnr")
            ]
            rows += [row(image, "moderate", method, "dice_own", 0.8 - error / 1000)]
        rows.append(row(image, "clean", "bmex", "native_psnr", 45.0 if after > 50 else 40.0))
        rows.append(row(image, "clean", "bmex", "volume_own_dark", 0.012))
    return rows


def test_means_are_over_images_and_the_worst_is_named(found):
    (line,) = [x for x in by_cell(Table(found)).splitlines() if x.startswith("| moderate")]
    assert "moderate (3)" in line
    assert "-30% [" in line  # of -40, +10 and -60 %
    assert "40.0 → 43.0" in line
    assert "adult-68 +10%" in line
    (clean,) = [x for x in by_cell(Table(found)).splitlines() if x.startswith("| clean")]
    assert "fetus-31w 40.0 dB" in clean


def test_no_age_is_hidden_in_a_mean_and_images_that_became_worse_stand_out(found):
    table = Table(found)
    head, _, line = by_age(table).splitlines()
    assert head == "| damage | adult (2) | fetus (1) |"
    assert line == "| moderate | -15% | -60% |"
    assert "| adult-68 | **+10%** |" in each_image(table)
    assert "| adult-31 | -40% |" in each_image(table)
    assert "+1.2%" in volumes(table)


def test_a_tie_does_not_beat_a_baseline(found):
    assert beats(30.1, 30.0)
    assert not beats(30.0, 30.0)
    tie = [row("adult-31", "moderate", "nlm", "psnr", 44.0)]  # what the network has
    assert "1 of 3" in against(Table([*found, *tie]))
    assert "2 of 3" in against(Table(found))


def test_the_bootstrap_holds_the_mean_and_shrinks_with_the_number_of_images():
    low, high = bootstrap_interval([1.0, 2.0, 3.0, 4.0])
    assert 1 <= low < 2.5 < high <= 4
    many = bootstrap_interval([1.0, 2.0, 3.0, 4.0] * 25)
    assert many[1] - many[0] < high - low
    assert bootstrap_interval([1.0, 2.0]) == bootstrap_interval([1.0, 2.0])
    assert str(bootstrap_interval([1.0])) == "(nan, nan)"


def test_the_table_of_a_page_is_replaced_between_its_marks(found):
    begin, end = (mark.format("benchmark") for mark in MARKS)
    page = f"a\n{begin}\nold \\1\n{end}\nb\n"
    new = replaced(page, "new \\1")
    assert new == f"a\n{begin}\n\nnew \\1\n\n{end}\nb\n"
    with pytest.raises(UsageError, match="marks"):
        replaced("nothing", "new")


def test_an_empty_run_has_tables_without_rows():
    assert "0 of" in markdown([], "weights `tiny`")
    assert markdown([], "weights by age").startswith("Weights by age. ")
