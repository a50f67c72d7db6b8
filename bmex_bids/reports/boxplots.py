# SPDX-License-Identifier: Apache-2.0
"""Box plots as small pieces of SVG: every point names its image; no script, nothing fetched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

#: a group with fewer points has no box, only its median
SMALLEST_BOX = 5
#: beyond so many ordinary points in a group they are thinned; odd ones are all drawn
MOST_POINTS = 300
#: of the drawing, in pixels
WIDTH, LEFT, RIGHT, ROW, TOP, BOTTOM = 560, 14, 14, 46, 2, 24
#: of a row, above the marks: for the group's name
LABEL = 16
#: characters, about 9 pixels each
LONGEST_LABEL = 52
#: blue and vermilion of Okabe and Ito: told apart with every kind of colour vision, and in print
#: by their shapes
CSS = """
svg.box{width:100%;height:auto;display:block;font:12px system-ui,sans-serif}
svg.box .rail{stroke:#ddd}svg.box .tick{stroke:#999}svg.box text{fill:#222}
svg.box .frame{fill:#56b4e9;fill-opacity:.15;stroke:#00304d}svg.box .whisker{stroke:#00304d}
svg.box .median{stroke:#00304d;stroke-width:2.5}
svg.box .frame,svg.box .whisker,svg.box .median{pointer-events:none}
svg.box .point{fill:#0072b2;fill-opacity:.65;stroke:#fff;stroke-width:.5}
svg.box .odd{fill:#d55e00;stroke:#fff;stroke-width:.7}
svg.box .point:hover,svg.box .odd:hover,svg.box a:focus .point,svg.box a:focus .odd
{stroke:#000;stroke-width:2.5;fill-opacity:1}
"""


@dataclass(frozen=True)
class Point:
    """One image in one plot.

    Attributes
    ----------
    name : of the image, shown when the mouse is over it
    value : finite
    odd : drawn as a diamond
    link : page to open on a click; empty for none
    """

    name: str
    value: float
    odd: bool = False
    link: str = ""


def number(value: float) -> str:
    """A number for people.

    >>> number(1.08914), number(1234567.0), number(0.0)
    ('1.089', '1.235e+06', '0')
    """
    return f"{value:.4g}"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile, interpolated linearly.

    >>> quartiles([1, 2, 3, 4, 5])
    (2.0, 3.0, 4.0)
    """
    first, median, third = np.percentile(np.asarray(values, dtype=np.float64), (25, 50, 75))
    return float(first), float(median), float(third)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, as many as fit.

    >>> ticks(0.0, 1.0), ticks(0.93, 1.07)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.95, 1.0, 1.05])
    """
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (factor * power for factor in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            break
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(k * step, digits) for k in range(first, last + 1)]


def box_plot(title: str, groups: Mapping[str, Sequence[Point]]) -> Markup:
    """One measure: a row for each group, with a box and every point.

    The box goes from quartile to quartile, the whiskers to the farthest points within 1.5 times
    its length.

    Parameters
    ----------
    title : read aloud by screen readers
    groups : label → points; a group without points is left out
    """
    shown = {label: points for label, points in groups.items() if points}
    low, high = _range([point.value for points in shown.values() for point in points])
    scale = (WIDTH - LEFT - RIGHT) / (high - low)
    bottom = TOP + ROW * len(shown)

    def x(value: float) -> str:
        return f"{LEFT + (value - low) * scale:.1f}"

    parts = [
        f'<svg class="box" viewBox="0 0 {WIDTH} {bottom + BOTTOM}" role="group" '
        f'aria-label="{escape(title)}">'
    ]
    for tick in ticks(low, high):
        parts.append(
            f'<line class="rail" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP}" y2="{bottom}"/>'
            f'<text x="{x(tick)}" y="{bottom + 16}" text-anchor="middle">{number(tick)}</text>'
        )
    for row, (label, points) in enumerate(shown.items()):
        middle = TOP + ROW * row + (LABEL + ROW) / 2
        parts.append(_label(label, len(points), TOP + ROW * row + LABEL - 4))
        # the box comes after the points: in a large group they would hide it
        parts += [_mark(point, x(point.value), middle, k) for k, point in _drawn(points)]
        values = sorted(point.value for point in points)
        first, median, third = quartiles(values)
        if len(values) >= SMALLEST_BOX:
            reach = 1.5 * (third - first)
            start = next(value for value in values if value >= first - reach)
            end = next(value for value in reversed(values) if value <= third + reach)
            parts.append(
                f'<line class="whisker" x1="{x(start)}" x2="{x(end)}" y1="{middle}" '
                f'y2="{middle}"/><rect class="frame" x="{x(first)}" y="{middle - 9}" '
                f'width="{(third - first) * scale:.1f}" height="18"/>'
            )
        parts.append(
            f'<line class="median" x1="{x(median)}" x2="{x(median)}" y1="{middle - 10}" '
            f'y2="{middle + 10}"/>'
        )
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704 - escaped above


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Limits of the axis: all values and some air; never of length zero."""
    low, high = min(values), max(values)
    # four digits, as the ticks have, must tell the ends apart
    air = max(0.04 * (high - low), 1e-2 * max(abs(low), abs(high)))
    air = air or 1.0
    return low - air, high + air


def _label(label: str, count: int, y: float) -> str:
    short = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
    return (
        f'<text x="2" y="{y}">{escape(short)} ({count})'
        f"<title>{escape(label)}: {count}</title></text>"
    )


def _drawn(points: Sequence[Point]) -> list[tuple[int, Point]]:
    """Points with their rank: all odd ones on top, and of the others not too many.

    The lowest and the highest are among them.
    """
    ordered = list(enumerate(sorted(points, key=lambda point: point.value)))
    plain = [item for item in ordered if not item[1].odd]
    if len(plain) > MOST_POINTS:
        chosen = np.linspace(0, len(plain) - 1, MOST_POINTS).round().astype(int)
        plain = [plain[k] for k in chosen]
    return plain + [item for item in ordered if item[1].odd]


def _mark(point: Point, x: str, middle: float, rank: int) -> str:
    """A circle or a diamond; neighbours are spread up and down by a fixed, even pattern."""
    y = middle + 14 * ((rank * 0.618034 + 0.5) % 1 - 0.5)
    text = f"<title>{escape(point.name)}: {number(point.value)}</title>"
    if point.odd:
        shape = f'<path class="odd" d="M{x} {y - 6:.1f}l6 6l-6 6l-6-6z">{text}</path>'
    else:
        shape = f'<circle class="point" cx="{x}" cy="{y:.1f}" r="4">{text}</circle>'
    if not point.link:
        return shape
    return f'<a href="{escape(point.link)}" aria-label="{escape(point.name)}">{shape}</a>'
