# SPDX-License-Identifier: Apache-2.0
import math

from bmex_bids.evaluation.rows import HEADER, Row, append, current, finished, key_of, read


def row(metric="psnr", value=1.0, key="k1", cell="minor"):
    return Row("sub-1", cell, "bmex", key, metric, value)


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "figures.tsv"
    rows = [row(value=31.25), row("psnr", math.inf, cell="clean"), row("seconds", 2.0)]
    append(path, rows[:2])
    append(path, rows[2:])
    assert list(read(path)) == rows
    assert path.read_text().splitlines()[0] == "\t".join(HEADER)
    assert list(read(tmp_path / "none.tsv")) == []


def test_a_line_that_a_killed_run_cut_short_is_left_out_and_spoils_no_other(tmp_path):
    path = tmp_path / "figures.tsv"
    append(path, [row(value=1.0), row("ssim", 2.0)])
    path.write_bytes(path.read_bytes()[:-10])
    assert list(read(path)) == [row(value=1.0)]
    append(path, [row("seconds", 3.0)])
    assert row("seconds", 3.0) in list(read(path))
    assert row(value=1.0) in list(read(path))


def test_a_unit_without_its_last_row_is_not_finished():
    assert finished([row("psnr")]) == set()
    assert finished([row("psnr"), row("seconds")]) == {("sub-1", "minor", "bmex", "k1")}


def test_only_rows_of_the_key_that_is_wanted_count_and_the_last_wins():
    rows = [row(value=1, key="old"), row(value=2), row(value=3)]
    assert current(rows, {("sub-1", "minor", "bmex"): "k1"}) == [row(value=3)]
    assert current(rows, {("sub-2", "minor", "bmex"): "k1"}) == []


def test_a_key_changes_with_any_part_and_with_their_borders():
    assert key_of("a", "b") == key_of("a", "b")
    assert len({key_of("a", "b"), key_of("ab", ""), key_of("a", "c"), key_of("b", "a")}) == 4
