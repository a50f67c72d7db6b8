# SPDX-License-Identifier: Apache-2.0
"""A score in words: how an image was spoiled, as ``network.inference.score`` estimates it."""

from __future__ import annotations

from collections.abc import Mapping

#: named severities of motion, a level each
LEVELS = ("none", "minor", "moderate", "severe")
#: quantity → digits after the point, unit, what it is
QUANTITIES: Mapping[str, tuple[int, str, str]] = {
    "motion": (1, "", "Motion (0 none, 1 minor, 2 moderate, 3 severe)"),
    "noise_percent": (1, " %", "Noise (standard deviation, % of the range)"),
    "resolution_mm": (1, " mm", "Effective resolution of the coarsest axis, mm"),
}


def severity_name(motion: float) -> str:
    """The named severity that is nearest to a level.

    >>> severity_name(0.2), severity_name(1.6), severity_name(3)
    ('none', 'moderate', 'severe')
    """
    return LEVELS[min(max(int(motion + 0.5), 0), len(LEVELS) - 1)]


def in_words(before: Mapping[str, float], after: Mapping[str, float] | None = None) -> str:
    """A sentence for people; tables as ``Score.as_table`` gives them.

    >>> in_words({"motion": 1.9, "noise_percent": 2.5, "resolution_mm": 1.02})
    'The input shows moderate motion (1.9 of 3), noise of 2.5 % and details down to 1.0 mm.'
    """
    text = f"The input shows {_words(before)}"
    return text + (f"; the enhanced image {_words(after)}" if after else "") + "."


def _words(table: Mapping[str, float]) -> str:
    level = severity_name(table["motion"])
    return (
        f"{'no' if level == 'none' else level} motion ({table['motion']:.1f} of 3), noise of "
        f"{table['noise_percent']:.1f} % and details down to {table['resolution_mm']:.1f} mm"
    )


def in_figures(name: str, before: Mapping[str, float], after: Mapping[str, float] | None) -> str:
    """A quantity before and after.

    >>> in_figures("noise_percent", {"noise_percent": 2.5}, {"noise_percent": 0.31})
    '2.5 → 0.3 %'
    """
    digits, unit, _ = QUANTITIES[name]
    values = [f"{table[name]:.{digits}f}" for table in (before, after) if table]
    return " → ".join(values) + unit


def in_intervals(before: Mapping[str, float], after: Mapping[str, float] | None) -> str:
    """The intervals of all quantities before and after, where they are known.

    >>> in_intervals({"motion": 1.9, "motion_low": 1.5, "motion_high": 2.3}, None)
    'motion 1.5–2.3'
    """
    parts = []
    for name, (digits, unit, _) in QUANTITIES.items():
        known = [table for table in (before, after) if table and f"{name}_low" in table]
        ranges = [f"{t[f'{name}_low']:.{digits}f}–{t[f'{name}_high']:.{digits}f}" for t in known]
        if ranges:
            parts.append(f"{name.split('_')[0]} {' → '.join(ranges)}{unit}")
    return "; ".join(parts)
