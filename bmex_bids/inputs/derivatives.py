# SPDX-License-Identifier: Apache-2.0
"""Brain masks that were made elsewhere, such as by fMRIPrep, NiBabies or by hand.

A wrong mask is worse than none, so a mask is taken only when its name, its sidecar and its grid
all agree that it is of the image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmex_bids.common.contrasts import SUFFIXES
from bmex_bids.common.names import BidsName, subject_folder
from bmex_bids.exceptions import UsageError
from bmex_bids.inputs.filters import fits
from bmex_bids.inputs.on_disk import EXTENSIONS
from bmex_bids.inputs.sidecars import read_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bmex_bids.inputs.collect import SourceImage

#: entities that say how a mask was made, not of which image it is
OF_THE_MASK = frozenset({"desc", "space", "res", "den"})
#: share of the smaller field of view that lies inside the other when both show one head
OVERLAP = 0.9


@dataclass(frozen=True)
class GivenMask:
    """A brain mask of an image, made elsewhere.

    Attributes
    ----------
    path : absolute
    source : the derivative's name and the path in it, ``"fmriprep: sub-01/anat/…"``
    warnings : what its user should know
    """

    path: Path
    source: str
    warnings: tuple[str, ...] = ()


def parse_derivatives(items: Sequence[str]) -> dict[str, Path]:
    """Folders of derivatives by their names, in the order given.

    Parameters
    ----------
    items : each ``NAME=PATH``, or a path, whose last part is the name then

    Raises
    ------
    UsageError
        A folder is missing, or one name is given to two folders.
    """
    found: dict[str, Path] = {}
    for item in items:
        name, path = "", Path(item).expanduser()
        before, equals, after = item.partition("=")
        # a path may hold an equals sign too
        if equals and "/" not in before and not path.is_dir():
            name, path = before.strip(), Path(after.strip()).expanduser()
        if not item.strip() or (equals and not (before.strip() and after.strip())):
            raise UsageError(
                f"expected NAME=PATH or a path for --derivatives, got {item!r}; write for example "
                "--derivatives fmriprep=/data/derivatives/fmriprep"
            )
        path = path.absolute()
        if not path.is_dir():
            what = "a file" if path.exists() else "no such folder"
            raise UsageError(
                f"expected a folder of derivatives in {path}, found {what}; check the path, and "
                "inside a container that it is mounted"
            )
        name = name or path.resolve().name or "derivatives"
        if found.get(name, path) != path:
            raise UsageError(
                f"expected one folder for the derivatives {name}, got {found[name]} and {path}; "
                "give them different names, as in --derivatives first=PATH second=PATH"
            )
        found[name] = path
    return found


def choose_mask(
    image: SourceImage, derivatives: Mapping[str, Path]
) -> tuple[GivenMask | None, tuple[str, ...]]:
    """The brain mask of an image, and warnings: about others, or why there is none."""
    masks, warnings = find_masks(image, derivatives)
    if not masks:
        if derivatives:
            nowhere = f"no brain mask of {image.name} in the derivatives {', '.join(derivatives)}"
            warnings = (*warnings, f"{nowhere}; it is made here")
        return None, warnings
    chosen, *others = masks
    if others:
        more = ", ".join(mask.source for mask in others)
        warnings = (*warnings, f"several brain masks: {chosen.source} is used, not {more}")
    return chosen, warnings


def find_masks(
    image: SourceImage, derivatives: Mapping[str, Path]
) -> tuple[list[GivenMask], tuple[str, ...]]:
    """All brain masks of an image, the best first, and why others were passed over.

    The order is that of the derivatives, and within one: masks with all of the image's entities,
    then those with fewer; ``space-<suffix>``, then no space; ``.nii.gz``, then ``.nii``.

    Parameters
    ----------
    image : of the raw dataset
    derivatives : name → folder with ``sub-*/[ses-*/]anat/*_desc-brain_mask.nii.gz``
    """
    masks: list[GivenMask] = []
    warnings: list[str] = []
    for name, folder in derivatives.items():
        ranked = []
        for path in _mask_files(image, Path(folder).absolute()):
            rank = _rank(image, path)
            if rank is None:
                continue
            source = f"{name}: {path.relative_to(Path(folder).absolute()).as_posix()}"
            fault = _fault_of_sources(image, path) or _fault_of_grid(image.path, path)
            if fault is None:
                ranked.append((rank, GivenMask(path, source)))
            else:
                warnings.append(f"brain mask {source} is not used: {fault}")
        masks += [mask for _, mask in sorted(ranked, key=lambda item: item[0])]
    return masks, tuple(warnings)


def mask_files_of(image: SourceImage, derivatives: Mapping[str, Path]) -> list[Path]:
    """All files that by their names may be brain masks of an image, links to nowhere too."""
    return [
        path
        for folder in derivatives.values()
        for path in _mask_files(image, Path(folder).absolute())
        if _rank(image, path) is not None
    ]


def _mask_files(image: SourceImage, folder: Path) -> list[Path]:
    place = folder / subject_folder(image.subject, image.session) / "anat"
    names = (
        path
        for extension in EXTENSIONS
        for path in place.glob(f"sub-{image.subject}_*desc-brain*_mask{extension}")
    )
    return sorted(names)


def _rank(image: SourceImage, path: Path) -> tuple[int, int, int, str] | None:
    """Where a mask stands in the order of preference by its name; None: it is not the image's."""
    name = BidsName.parse(path.name)
    entities = name.entities if name else {}
    if entities.get("desc") != "brain":
        return None
    own = {key: label for key, label in entities.items() if key not in OF_THE_MASK}
    if (own.get("sub"), own.get("ses")) != (image.subject, image.session):
        return None
    if not all(fits(image.entities.get(key), label, key) for key, label in own.items()):
        return None
    missing = len(image.entities) - len(own)
    space = entities.get("space")
    others = _other_images(image)
    # a mask with fewer entities is of any image that has them: is there only this one?
    if missing and any(_covers(own, other) for other in others if other.suffix == image.suffix):
        return None
    if space is None:
        # without a space, a mask beside both contrasts is the T1w image's, as fMRIPrep has it
        if image.suffix != "T1w" and any(
            _covers(own, other) for other in others if other.suffix == "T1w"
        ):
            return None
    elif space != image.suffix:
        return None
    coarse = "res" in entities or "den" in entities
    return (missing, int(coarse), int(space is None), path.name.replace(".nii.gz", ".nii!"))


def _covers(own: Mapping[str, str], other: BidsName) -> bool:
    return all(fits(other.entities.get(key), label, key) for key, label in own.items())


def _other_images(image: SourceImage) -> list[BidsName]:
    """Names of the other anatomical images in the image's folder."""
    names = [
        BidsName.parse(path.name)
        for path in sorted(image.path.parent.glob("sub-*.nii*"))
        if path.name.endswith(EXTENSIONS) and path.name != image.path.name
    ]
    return [name for name in names if name is not None and name.suffix in SUFFIXES]


def _fault_of_sources(image: SourceImage, path: Path) -> str | None:
    """Whether a mask's sidecar names other raw images than this one."""
    sidecar = read_json(path.with_name(f"{path.name.split('.')[0]}.json"))
    raw = set()
    for key in ("Sources", "RawSources"):
        listed = sidecar.get(key) or []
        for written in listed if isinstance(listed, list) else [listed]:
            file = re.split(r"[/:\\]", str(written))[-1]
            name = BidsName.parse(file)
            if name is not None and name.suffix in SUFFIXES and "desc" not in name.entities:
                raw.add(file.split(".")[0])
    if not raw or raw == {image.name}:
        return None
    if image.name in raw and len({name.rpartition("_")[2] for name in raw}) == len(raw):
        return None  # a T1w and a T2w image, registered to each other
    return f"its sidecar says that it was made from {', '.join(sorted(raw))}"


def _fault_of_grid(image: Path, mask: Path) -> str | None:
    """Whether a mask shows another part of space than its image, by their headers."""
    import nibabel as nib
    import numpy as np

    try:
        ours: Any = nib.load(image) if image.is_file() else None
    except Exception:  # noqa: BLE001 - whatever a damaged header makes a parser raise
        ours = None
    if ours is None or len(ours.shape) < 3:
        return None  # that the image cannot be used is said where it is read
    if not mask.is_file():
        return "it is not a file"
    try:
        theirs: Any = nib.load(mask)
    except Exception as error:  # noqa: BLE001
        return f"it cannot be read ({type(error).__name__}: {error})"
    if len(theirs.shape) < 3 or any(n != 1 for n in theirs.shape[3:]):
        return f"it is not three-dimensional but of shape {theirs.shape}"
    grids = [(im.shape[:3], np.asarray(im.affine, dtype=np.float64)) for im in (ours, theirs)]
    if any(not np.isfinite(a).all() or abs(np.linalg.det(a[:3, :3])) < 1e-9 for _, a in grids):
        return "its affine, or the image's, cannot place it in space"
    share = overlap(*grids)
    if share < OVERLAP:
        return (
            f"its field of view differs from the image's ({100 * share:.0f} % of the smaller "
            "one lies in the other)"
        )
    return None


def overlap(
    first: tuple[Sequence[int], NDArray[np.float64]],
    second: tuple[Sequence[int], NDArray[np.float64]],
) -> float:
    """Share of one field of view that lies in the other, 0…1; of the two shares, the larger.

    A crop lies wholly in the image it was cut from, so that its share is 1.

    Parameters
    ----------
    first, second : shape of the grid, and affine (voxel → mm)
    """
    return max(_share(first, second), _share(second, first))


def _share(
    inner: tuple[Sequence[int], NDArray[np.float64]],
    outer: tuple[Sequence[int], NDArray[np.float64]],
) -> float:
    import numpy as np

    # the centres of 16³ equal boxes that fill the inner field of view, edge to edge
    steps = (np.arange(16) + 0.5) / 16
    points = np.array(list(product(steps, repeat=3))) * np.array(inner[0]) - 0.5
    mapping = np.linalg.inv(outer[1]) @ inner[1]
    there = points @ mapping[:3, :3].T + mapping[:3, 3]
    inside = (there >= -0.5 - 1e-3) & (there <= np.array(outer[0]) - 0.5 + 1e-3)
    return float(inside.all(axis=1).mean())
