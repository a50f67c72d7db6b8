# SPDX-License-Identifier: Apache-2.0
"""Images that are left out on purpose: localizers, too small a coverage, rows of scans.tsv."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bmex_bids.inputs.not_taken import NotTaken, nothing_of
from bmex_bids.inputs.scans_filter import read_filter, refusal

if TYPE_CHECKING:
    from bmex_bids.config import Config
    from bmex_bids.inputs.collect import SourceImage
    from bmex_bids.inputs.scans_filter import ScansFilter

#: labels of ``acq`` of images that show a part of the brain, to place other scans by
LOCALIZER = re.compile(r"mrsloc|locali[sz]er|scout", re.IGNORECASE)


def choose(
    images: Sequence[SourceImage], config: Config
) -> tuple[list[SourceImage], list[NotTaken]]:
    """The images to process, and those left out, with reasons."""
    selection = config.selection
    scans = None if selection.scans_filter is None else read_filter(selection.scans_filter)
    kept, left = [], []
    for image in images:
        reason = _reason(image, config, scans)
        if reason:
            left.append(NotTaken(image.relative_path, reason))
        else:
            kept.append(image)
    return kept, [*left, *_brings_nothing(selection.participants or (), images, kept, left)]


def _brings_nothing(
    participants: Sequence[str],
    images: Sequence[SourceImage],
    kept: Sequence[SourceImage],
    left: Sequence[NotTaken],
) -> Iterator[NotTaken]:
    """The participants asked for all of whose images are left out."""
    with_images = {image.subject for image in images} - {image.subject for image in kept}
    for label in sorted(with_images & set(participants)):
        first = next(item for item in left if item.name.startswith(f"sub-{label}/"))
        yield nothing_of(label, f"found none that is kept ({first.name}: {first.reason})")


def _reason(image: SourceImage, config: Config, scans: ScansFilter | None) -> str:
    """Why an image is left out; empty for one that is not."""
    label = image.entities.get("acq", "")
    if LOCALIZER.search(label):
        return f"a localizer by its name (acq-{label}), which shows a part of the brain"
    if scans is not None:
        reason = refusal(image, config.paths.bids_dir, scans)
        if reason:
            return reason
    least = config.selection.least_coverage
    return "" if least is None else _too_small(image, least)


def _too_small(image: SourceImage, least_mm: float) -> str:
    """The reason for an image that is shorter along an axis."""
    from bmex_bids.interfaces.files import header_of

    size = header_of(image.path)
    if size is None:
        return ""  # what is wrong with it is said where it is read
    extent = min(n * zoom for n, zoom in zip(*size, strict=True))
    if extent >= least_mm:
        return ""
    return f"its field of view is {extent:.0f} mm along one axis; --least-coverage is {least_mm:g}"
