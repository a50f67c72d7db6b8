# SPDX-License-Identifier: Apache-2.0
"""What can be said of an image before anything of it is read: what stands in its way, what is odd.

A file that would stop the whole run (a pipe, a link to a device, an image that no memory holds,
two files with one name) is skipped here, with its reason; all other faults are found when the
image is read, and are then its own.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bmex_bids.running.disks import ignores_case, longest_name
from bmex_bids.running.resources import BASE_GB

if TYPE_CHECKING:
    from bmex_bids.inputs.plan import PlannedImage

#: bytes that a voxel of a given mask takes while it is read and resampled
MASK_BYTES = 12
#: a voxel's edge, beyond which ``imaging.orientation`` takes a header for broken
LARGEST_MM = 20.0


def look_at(
    planned: Sequence[PlannedImage],
    memory_gb: float | None = None,
    output_dir: Path | None = None,
    work_dir: Path | None = None,
) -> Iterator[PlannedImage]:
    """The same images; those that cannot be run have a reason, the odd ones a warning.

    Parameters
    ----------
    planned : of the dataset
    memory_gb : that one image may take, in 2^30 bytes; None where it is not known (the steps run
        on other machines)
    output_dir : what is written must stay below it
    work_dir : for intermediate files
    """
    from bmex_bids.imaging.orientation import header_remarks
    from bmex_bids.workflows.base import workflow_name

    # two names that differ in signs only are one to Nipype; in case only, to some file systems
    folders = [folder for folder in (output_dir, work_dir) if folder is not None]
    fold = str.casefold if any(map(ignores_case, folders)) else str
    names = Counter(fold(workflow_name(item.name)) for item in planned)
    for item in planned:
        if not item.runnable:
            yield item
            continue
        alike = names[fold(workflow_name(item.name))]
        reason = _fault(item, alike, memory_gb) or (
            None
            if output_dir is None
            else fault_of_links(output_dir, item) or _fault_of_name(output_dir, item)
        )
        remarks = () if reason else header_remarks(item.image.path)
        yield replace(item, skip_reason=reason, warnings=(*item.warnings, *remarks))


def _fault(item: PlannedImage, alike: int, memory_gb: float | None) -> str | None:
    """Why an image cannot be run, or None."""
    from bmex_bids.imaging.orientation import fault_of_file

    fault = fault_of_file(item.image.path)
    if fault is not None:
        return fault
    if alike > 1:
        return (
            f"expected one file for {item.name}, got {alike} whose results would have one name "
            "(.nii beside .nii.gz, another participant's folder, labels that differ in signs "
            "other than letters and digits, or in upper and lower case where the output or work "
            "folder does not tell them apart); remove or rename all but one"
        )
    return None if memory_gb is None else _fault_of_size(item, memory_gb)


def _fault_of_size(item: PlannedImage, memory_gb: float) -> str | None:
    """The reason for an image, or mask, whose header declares more than the memory holds."""
    path, need = _largest_need(item)
    if need <= memory_gb:
        return None
    return (
        f"expected an image for which {memory_gb:.1f} GiB of memory are enough in {path.name}, got "
        f"a header that asks for about {need:.1f} GiB (at {item.spacing_mm or 1.0:g} mm); crop or "
        "resample it, or give the run more memory (--mem-mb)"
    )


def memory_needed(item: PlannedImage) -> float:
    """What a run needs for an image by its header, at least, in 2^30 bytes."""
    return _largest_need(item)[1]


def _largest_need(item: PlannedImage) -> tuple[Path, float]:
    """The file of an image that needs the most memory, and how much."""
    from bmex_bids.interfaces.files import header_of, voxel_count
    from bmex_bids.workflows.base import memory_gb as estimate

    size = header_of(item.image.path)
    if size is not None and max(size[1]) > LARGEST_MM:
        return item.image.path, 0.0  # the header is wrong, which is said where the image is read
    needs = [(item.image.path, BASE_GB + estimate(item.image.path, item.spacing_mm or 1.0))]
    if item.mask is not None:
        voxels = voxel_count(item.mask) or 0
        needs.append((item.mask, BASE_GB + voxels * MASK_BYTES / 2**30))
    return max(needs, key=lambda need: need[1])


def _fault_of_name(output_dir: Path, item: PlannedImage) -> str | None:
    """The reason for an image whose products would have names too long for the output's disk."""
    from bmex_bids.common.names import BidsName
    from bmex_bids.outputs.sidecar import PRODUCTS, product_name

    source = BidsName.of(item.name)
    names = [product_name(p, source, item.resolution or "", ".nii.gz") for p in PRODUCTS]
    name = max(names, key=len)
    size, most = len(os.fsencode(name)), longest_name(output_dir)
    if size <= most:
        return None
    return (
        f"expected results with names of at most {most} bytes, which the file system of "
        f"{output_dir} takes, got {size} for {name}; shorten the labels, or name another output "
        "folder"
    )


def fault_of_links(output_dir: Path, item: PlannedImage) -> str | None:
    """The reason for an image whose folders in the output lead out of it by a link, or None."""
    home = output_dir.resolve()
    anat = Path(item.output_dir)
    top = Path(anat.parts[0])
    for folder in (*reversed([anat, *anat.parents[:-1]]), top / "figures"):
        path = output_dir / folder
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            return (
                f"expected the folder {folder.as_posix()} of {item.name} within the output, got a "
                f"link to {path.resolve()}; remove the link, or name another output folder"
            )
    return None
