# SPDX-License-Identifier: Apache-2.0
"""The level *group*: one table and one page on all images of a contrast.

Only sidecars are read, no image, so a thousand of them take seconds.

=====================  ============================================
:mod:`.group_rows`     sidecars → rows of the table
:mod:`.outliers`       rows → values far from the others
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
from bmex_bids.outputs.files import write_together
from bmex_bids.reports.group_page import group_page
from bmex_bids.reports.group_rows import group_table, read_rows, read_sites
from bmex_bids.reports.outliers import Outlier, group_outliers

__all__ = ["Outlier", "group_outliers", "write_group"]

LOGGER = logging.getLogger(__name__)


def write_group(
    output_dir: Path, bids_dir: Path, suffixes: Sequence[str] = SUFFIXES
) -> list[Path]:
    """Write ``group_<suffix>.tsv`` and ``group_<suffix>.html`` for each contrast with images.

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
    fills: dict[Path, Callable[[Path], object]] = {}
    for suffix in present:
        rows, skipped = found[suffix]
        table, page = group_table(rows), group_page(rows, skipped, suffix, present)
        for name, text in ((f"group_{suffix}.tsv", table), (f"group_{suffix}.html", page)):
            fills[output_dir / name] = partial(_write, text)
    write_together(fills)
    return list(fills)


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
