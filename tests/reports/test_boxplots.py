# SPDX-License-Identifier: Apache-2.0
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from bmex_bids.reports.boxplots import MOST_POINTS, Point, box_plot, quartiles, ticks


def drawn(groups):
    """The picture, parsed: it is well-formed XML."""
    return ElementTree.fromstring(box_plot("measure", groups))  # noqa: S314 - we made it


def of_class(picture, name):
    return [part for part in picture.iter() if part.get("class") == name]


def test_every_image_is_a_mark_that_names_it_and_its_value():
    picture = drawn({"A": [Point("one", 1.0), Point("two", 2.5)], "B": [Point("three", 3.0)]})
    titles = [mark.findtext("title") for mark in of_class(picture, "point")]
    assert sorted(titles) == ["one: 1", "three: 3", "two: 2.5"]


def test_positions_are_proportional_to_values():
    picture = drawn({"A": [Point(f"{v}", v) for v in (0.0, 1.0, 4.0)]})
    x = {m.findtext("title"): float(m.get("cx")) for m in of_class(picture, "point")}
    assert (x["4.0: 4"] - x["0.0: 0"]) == pytest.approx(4 * (x["1.0: 1"] - x["0.0: 0"]), abs=0.3)


def test_box_whiskers_and_median_are_those_of_tukey():
    # quartiles 2, 3, 4; 1.5 times 2 beyond them: -1 to 7, so that the upper whisker ends at 4
    picture = drawn({"A": [Point(f"{v}", float(v)) for v in (1, 2, 3, 4, 10)]})
    x = {m.findtext("title"): float(m.get("cx")) for m in of_class(picture, "point")}
    (frame,), (whisker,) = of_class(picture, "frame"), of_class(picture, "whisker")
    (median,) = of_class(picture, "median")
    assert float(frame.get("x")) == x["2: 2"]
    assert float(frame.get("x")) + float(frame.get("width")) == pytest.approx(x["4: 4"], abs=0.2)
    assert float(median.get("x1")) == x["3: 3"]
    assert (float(whisker.get("x1")), float(whisker.get("x2"))) == (x["1: 1"], x["4: 4"])


def test_a_small_group_has_no_box_and_an_empty_one_no_row():
    picture = drawn({"A": [Point(f"{v}", float(v)) for v in range(4)], "empty": []})
    assert of_class(picture, "frame") == []
    assert len(of_class(picture, "median")) == 1
    assert "empty" not in "".join(picture.itertext())


def test_odd_marks_have_another_shape_and_links_only_where_there_is_a_page():
    picture = drawn({"A": [Point("a", 1.0, odd=True, link="a.html"), Point("b", 2.0)]})
    (odd,) = of_class(picture, "odd")
    assert odd.tag == "path"
    (link,) = picture.iter("a")
    assert link.get("href") == "a.html"
    assert odd in list(link)


def test_names_with_markup_do_no_harm():
    picture = drawn({"<b>&'\"": [Point("<script>", 1.0, link="a'b.html")]})
    (mark,) = of_class(picture, "point")
    assert mark.findtext("title") == "<script>: 1"


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-300, 1e300])
def test_equal_values_are_drawn_in_the_middle_of_an_axis_with_distinct_ticks(value):
    picture = drawn({"A": [Point("a", value), Point("b", value)]})
    places = {mark.get("cx") for mark in of_class(picture, "point")}
    assert len(places) == 1
    labels = [t.text for t in picture.iter("text") if t.get("text-anchor") == "middle"]
    assert len(labels) == len(set(labels)) > 1


def test_of_a_large_group_all_odd_points_and_both_ends_are_drawn():
    points = [Point(f"p{k}", float(k), odd=k % 500 == 7) for k in range(5000)]
    picture = drawn({"A": points})
    assert len(of_class(picture, "odd")) == 10
    plain = {m.findtext("title").split(":")[0] for m in of_class(picture, "point")}
    assert len(plain) == MOST_POINTS
    assert {"p0", "p4999"} <= plain


def test_marks_stay_inside_the_drawing():
    picture = drawn({"A": [Point(f"{v}", v) for v in (-5.0, 0.2, 17.0)]})
    width, height = (float(n) for n in picture.get("viewBox").split()[2:])
    for mark in of_class(picture, "point"):
        assert 0 < float(mark.get("cx")) < width
        assert 0 < float(mark.get("cy")) < height
    assert not re.search(r"nan|inf", ElementTree.tostring(picture, "unicode"))


def test_quartiles_of_one_value_are_that_value():
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 35.3), (-1.2, 0.4), (1e-7, 3e-7), (990, 1010), (0.55, 1.49)]
)
def test_ticks_are_few_evenly_spaced_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 6
    assert low <= found[0] < found[-1] <= high
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in pairwise(found)}
    assert steps == {1.0}
