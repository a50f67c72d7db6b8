# SPDX-License-Identifier: Apache-2.0
"""Ratings of experts: did enhancement raise them, and which score tells them?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bmex_bids.evaluation.summary import changed, grid, probability
from bmex_bids.exceptions import UsageError
from bmex_bids.inputs.tables import read_table
from bmex_bids.metrics.statistics import cohens_d_paired, paired_t

#: fewest images of a site that has a line of its own
FEWEST = 3
#: what both tables have, where scores come from another one
IMAGE = "image"
ALL = "all"


@dataclass(frozen=True)
class Ratings:
    """A table of ratings.

    Attributes
    ----------
    before, after : of each image, any scale on which more is better; NaN where there is none
    sites : of each image; empty where the table has none
    scores : name → a value for each image, NaN where there is none
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    sites: tuple[str, ...]
    scores: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Columns:
    """Names of the columns that hold ratings and sites."""

    before: str = "rating_before"
    after: str = "rating_after"
    site: str = "site"


def read_ratings(
    table: Path,
    columns: Columns = Columns(),
    *,
    group: Path | None = None,
    scores: Sequence[str] = (),
) -> Ratings:
    """Ratings with the scores beside them.

    Parameters
    ----------
    table : TSV, an image a row
    group : a second table, such as ``group_T1w.tsv``, whose columns are joined by ``image``
    scores : columns; without them every other column of numbers of ``table`` and, of ``group``,
        every column that begins with ``quality_``

    Raises
    ------
    UsageError
        A table or column is absent, or no image has both ratings.
    """
    rows = _rows(table)
    own = list(rows[0])
    for column in (columns.before, columns.after):
        if column not in own:
            raise UsageError(
                f"expected a column {column} in {table}, got {', '.join(own)}; name yours with "
                "--before and --after"
            )
    joined = dict.fromkeys(own)
    if group is not None:
        if IMAGE not in own:
            raise UsageError(f"expected a column {IMAGE} in {table} to join {group} by, got none")
        others = {row.get(IMAGE, ""): row for row in _rows(group)}
        rows = [{**others.get(row[IMAGE], {}), **row} for row in rows]
        joined |= dict.fromkeys(next(iter(others.values())))
    taken = {columns.before, columns.after, columns.site}
    named = scores or [
        name
        for name in joined
        if name not in taken
        and (name in own or name.startswith("quality_"))
        and any(math.isfinite(_value(row.get(name))) for row in rows)
    ]
    for name in named:
        if name not in joined:
            raise UsageError(f"expected a column {name}, got {', '.join(joined)}")
    result = Ratings(
        tuple(_value(row.get(columns.before)) for row in rows),
        tuple(_value(row.get(columns.after)) for row in rows),
        tuple(row.get(columns.site) or "" for row in rows),
        {name: tuple(_value(row.get(name)) for row in rows) for name in named},
    )
    if not _both(result.before, result.after).any():
        raise UsageError(f"expected images with both ratings in {table}, got none")
    return result


def _rows(path: Path) -> list[dict[str, str]]:
    rows = read_table(path)
    if not rows:
        raise UsageError(f"expected a table with rows in {path}, got none")
    return rows


def _value(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _both(first: Sequence[float], second: Sequence[float]) -> np.ndarray:
    return np.isfinite(np.asarray(first)) & np.isfinite(np.asarray(second))


def groups(ratings: Ratings) -> dict[str, list[int]]:
    """``all``, then each site of enough images → places of its images."""
    sites: dict[str, list[int]] = {}
    for place, site in enumerate(ratings.sites):
        if site:
            sites.setdefault(site, []).append(place)
    large = {site: places for site, places in sorted(sites.items()) if len(places) >= FEWEST}
    return {ALL: list(range(len(ratings.before))), **large}


def spearman(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, int]:
    """Spearman's correlation, its p, and the number of pairs without a missing value.

    NaN for fewer than three pairs, or where one side does not vary.
    """
    from scipy.stats import spearmanr

    known = _both(first, second)
    a, b = np.asarray(first)[known], np.asarray(second)[known]
    if a.size < FEWEST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, math.nan, int(a.size)
    found = spearmanr(a, b)
    return float(found.statistic), float(found.pvalue), int(a.size)


def markdown(ratings: Ratings) -> str:
    """The page: ratings before and after, then each score against them; by site."""
    places = groups(ratings)
    parts = [
        "# Ratings",
        "## Before and after\n\nPaired t-test; d is Cohen's d of the pairs.\n\n"
        + _change(ratings, places),
    ]
    if ratings.scores:
        parts.append(
            "## Scores\n\nSpearman's correlation with the ratings before and after (p).\n\n"
            + _scores(ratings, places)
        )
    return "\n\n".join(parts) + "\n"


def _change(ratings: Ratings, places: Mapping[str, Sequence[int]]) -> str:
    lines = []
    for site, chosen in places.items():
        pairs = [(ratings.before[k], ratings.after[k]) for k in chosen]
        pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
        if not pairs:
            continue
        before, after = ([pair[side] for pair in pairs] for side in (0, 1))
        change = [b - a for a, b in pairs]
        lines.append(
            [
                site,
                str(len(pairs)),
                f"{np.mean(before):.2f}",
                f"{np.mean(after):.2f}",
                changed(change, 2),
                probability(paired_t(after, before)),
                "" if math.isnan(d := cohens_d_paired(change)) else f"{d:+.2f}",
            ]
        )
    return grid(["site", "images", "before", "after", "change", "p", "d"], lines)


def _scores(ratings: Ratings, places: Mapping[str, Sequence[int]]) -> str:
    lines = []
    for name, values in ratings.scores.items():
        for site, chosen in places.items():
            cells = []
            for rated in (ratings.before, ratings.after):
                rho, p, count = spearman([values[k] for k in chosen], [rated[k] for k in chosen])
                cells.append(
                    "" if math.isnan(rho) else f"{rho:+.2f} ({probability(p)}, n {count})"
                )
            lines.append([name, site, *cells])
    return grid(["score", "site", "rating before", "rating after"], lines)
