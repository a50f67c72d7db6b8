# SPDX-License-Identifier: Apache-2.0
"""What can be said of an image before anything of it is read: what stands in its way, what is odd.

A file that would stop the whole run (a pipe, a link to a device, an image that no memory holds,
two files with one name) is skipped here, with its reason; all other faults are found when the
image is read, and are then its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.cli.plan_view import BASE_GB

if TYPE_CHECKING:
    from bmex_bids.inputs.plan import PlannedImage

#: bytes that a voxel of a given mask takes while it is read and resampled
MASK_BYTES = 12


def look_at(
    planned: Sequence[PlannedImage], memory_gb: float | None = None
) -> Iterator[PlannedImage]:
    """The same images; those that cannot be run have a reason, the odd ones a warning.

    Parameters
    ----------
    planned : of the dataset
    memory_gb : that one image may take, in 2^30 bytes; None where it is not known (the steps run
        on other machines)
    """
    from bmex_bids.imaging.orientation import header_remarks

    names = Counter(item.name for item in planned)
    for item in planned:
        if not item.runnable:
            yield item
            continue
        reason = _fault(item, names, memory_gb)
        remarks = () if reason else header_remarks(item.image.path)
        yield replace(item, skip_reason=reason, warnings=(*item.warnings, *remarks))


def _fault(item: PlannedImage, names: Counter[str], memory_gb: float | None) -> str | None:
    """Why an image cannot be run, or None."""
    from bmex_bids.imaging.orientation import fault_of_file

    fault = fault_of_file(item.image.path)
    if fault is not None:
        return fault
    if names[item.name] > 1:
        return (
            f"expected one file for {item.name}, got {names[item.name]}, as .nii and .nii.gz or "
            "in another participant's folder; their results would have one name: remove or rename "
            "all but one"
        )
    return None if memory_gb is None else _fault_of_size(item, memory_gb)


def _fault_of_size(item: PlannedImage, memory_gb: float) -> str | None:
    """The reason for an image, or mask, whose header declares more than the memory holds."""
    from bmex_bids.interfaces.files import voxel_count
    from bmex_bids.workflows.base import memory_gb as estimate

    spacing = item.spacing_mm or 1.0
    needs: list[tuple[Path, float]] = [(item.image.path, estimate(item.image.path, spacing))]
    if item.mask is not None:
        needs.append((item.mask, (voxel_count(item.mask) or 0) * MASK_BYTES / 2**30))
    for path, need in needs:
        if BASE_GB + need > memory_gb:
            return (
                f"expected an image for which {memory_gb:.1f} GiB of memory are enough in "
                f"{path.name}, got a header that asks for about {BASE_GB + need:.1f} GiB (at "
                f"{spacing:g} mm); crop or resample it, or give the run more memory"
            )
    return None
