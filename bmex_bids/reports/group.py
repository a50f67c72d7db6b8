# SPDX-License-Identifier: Apache-2.0
"""The level *group*: one table and one page on all images of a contrast.

Only sidecars are read, no image, so a thousand of them take seconds.

=====================  ============================================
:mod:`.group_rows`     sidecars → rows of the table
:mod:`.outliers`       rows → values far from the others
:mod:`.repeats`        rows → the best image of each session
:mod:`.boxplots`       one measure → one drawing
:mod:`.group_page`     all of it → the page
=====================  ============================================
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bmex_bids.common.contrasts import SUFFIXES
from bmex_bids.exceptions import NoInputError
from bmex_bids.outputs.files import as_json, write_together
from bmex_bids.reports.group_page import group_page
from bmex_bids.reports.group_rows import group_table, mriqc_table, read_rows, read_sites
from bmex_bids.reports.outliers import Outlier, group_outliers
from bmex_bids.reports.repeats import FILTERS, filters, ranked

__all__ = ["Outlier", "group_outliers", "write_group"]

LOGGER = logging.getLogger(__name__)


def write_group(
    output_dir: Path, bids_dir: Path, suffixes: Sequence[str] = SUFFIXES
) -> list[Path]:
    """Write ``group_<suffix>.tsv`` and ``group_<suffix>.html`` for each contrast with images.

    Also ``group_{before,after}_<suffix>.tsv`` with MRIQC's measures, in its form, and for each
    session with repeats a file that picks the best image in fMRIPrep and NiBabies.

    Parameters
    ----------
    output_dir : with the sidecars, ``sub-*/**/*_desc-enhanced_<suffix>.json``
    bids_dir : the raw dataset; its participants.tsv may name the sites
    suffixes : contrasts

    Returns
    -------
    What was written.  All of it appears together, or nothing.

    Raises
    ------
    NoInputError
        There is no readable sidecar of any of the contrasts.
    OutputError
        The file system refuses.
    """
    output_dir, bids_dir = Path(output_dir), Path(bids_dir)
    sites = read_sites(bids_dir)
    found = {suffix: read_rows(output_dir, suffix, sites) for suffix in suffixes}
    for _, skipped in found.values():
        for path, reason in skipped.items():
            LOGGER.warning("%s is left out of the group level: %s", path, reason)
    present = [suffix for suffix, (rows, _) in found.items() if rows]
    if not present:
        spoilt = sum(len(skipped) for _, skipped in found.values())
        what = f"{spoilt} that cannot be used (named in the log)" if spoilt else "none"
        raise NoInputError(
            f"expected sidecars sub-*/**/*_desc-enhanced_<{'|'.join(suffixes)}>.json in "
            f"{output_dir}, got {what}; run 'bmex {bids_dir} {output_dir} participant' first"
        )
    texts: dict[str, str] = {}
    best = {suffix: ranked(found[suffix][0]) for suffix in present}
    for suffix, rows in best.items():
        texts[f"group_{suffix}.tsv"] = group_table(rows)
        texts[f"group_{suffix}.html"] = group_page(rows, found[suffix][1], suffix, present)
        for when in ("before", "after"):
            if table := mriqc_table(rows, when):
                texts[f"group_{when}_{suffix}.tsv"] = table
    for name, query in filters(best):
        texts[f"{FILTERS}/{name}"] = as_json(query)
    fills: dict[Path, Callable[[Path], object]] = {
        output_dir / name: partial(_write, text) for name, text in texts.items()
    }
    write_together(fills)
    for earlier in (output_dir / FILTERS).glob("sub-*.json"):
        if earlier not in fills:
            earlier.unlink()  # of an earlier run; its session has no repeats any more
    return list(fills)


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
