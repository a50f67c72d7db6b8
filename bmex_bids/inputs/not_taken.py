# SPDX-License-Identifier: Apache-2.0
"""Files that look like anatomical images and are not taken, each with its reason."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bmex_bids.common.contrasts import DEFAULT, SUFFIXES
from bmex_bids.common.names import BidsName, subject_folder
from bmex_bids.inputs.on_disk import (
    EXTENSIONS,
    IGNORED,
    IMAGE_PLACE,
    UNPRINTABLE,
    is_at_home,
)
from bmex_bids.inputs.sidecars import not_fetched


@dataclass(frozen=True)
class NotTaken:
    """What is not taken, and why.

    Attributes
    ----------
    name : path in the dataset, printable, or ``sub-03`` of a participant that was asked for
    reason : in words
    asked_for : a participant that was asked for brings nothing
    """

    name: str
    reason: str
    asked_for: bool = False


def nothing_of(label: str, found: str) -> NotTaken:
    """A participant that was asked for and brings nothing, and what was found instead."""
    reason = f"expected an image of sub-{label}, which was asked for, {found}"
    return NotTaken(f"sub-{label}", reason, asked_for=True)


#: folders are walked to this depth below a participant's
DEPTH = 4
DICOM = re.compile(r"\.(dcm|ima)$", re.IGNORECASE)
#: of images in any format
IMAGE = re.compile(
    r"\.(nii|img|hdr|mg[zh]|nrrd|nhdr|mh[ad]|mnc|dcm|ima|par|rec|brik|head)(\.(gz|bz2|xz|zip|zst|lz4|lzma|br|z))*$",
    re.IGNORECASE,
)
#: ends of files beside an image that are no image
BESIDE = re.compile(
    r"\.(json|tsv|csv|txt|md5|sha\d*|md5sum|log|html?|png|svg|jpe?g|gif|pdf|xml|ya?ml|bval|bvec|md)$",
    re.IGNORECASE,
)
#: folders that are one recording, or results
DATA_FOLDER = re.compile(r"\.(ds|mefd|zarr|nii|gz|feat|ica)$", re.IGNORECASE)
#: of archives
PACKED = re.compile(r"\.(zip|tar|tgz|tar\.(gz|bz2|xz|zst)|7z|rar)$", re.IGNORECASE)
#: what to convert other formats with
CONVERTERS = {
    ".mgz": "mri_convert IN.mgz OUT.nii.gz",
    ".mgh": "mri_convert IN.mgh OUT.nii.gz",
    ".mnc": "mnc2nii",
    ".brik": "3dAFNItoNIFTI",
    ".head": "3dAFNItoNIFTI",
    ".par": "dcm2niix",
    ".rec": "dcm2niix",
}
#: words of names of anatomical images
ANATOMICAL = re.compile(
    r"t1w?|t2w?|pdw?|unit1|mp2?rage|t2starw?|flair|inplanet[12]|pdt2|flash|angio"
    r"|[rt][12](star)?map|pdmap|t1rho",
    re.IGNORECASE,
)
OURS = f"{', '.join(SUFFIXES[:-1])} and {SUFFIXES[-1]}"
#: suffixes that are no images of tissue
NO_IMAGES = frozenset({"mask", "defacemask", "dseg", "probseg", "xfm", "warp"})
#: other words for our suffixes
WORDS = {"t1": "T1w", "t2": "T2w", "mprage": "T1w", "t1w": "T1w", "t2w": "T2w", "space": "T2w"}
LIKE_A_PARTICIPANT = re.compile(r"sub(?:ject)?[-_ ]?\w+", re.IGNORECASE)


def not_taken(
    bids_dir: Path, taken: Collection[Path], participants: Sequence[str] | None
) -> list[NotTaken]:
    """What looks like an anatomical image of the participants (None: of all) and is not taken.

    ``derivatives``, ``sourcedata`` and hidden files are left alone.

    Parameters
    ----------
    bids_dir : absolute
    taken : the images that are
    participants : labels
    """
    known = {path.as_posix() for path in taken}
    found: list[NotTaken] = []
    dicom: dict[str, list[str]] = {}
    for path in _files(bids_dir, participants):
        name = path.relative_to(bids_dir).as_posix()
        if path.as_posix() in known:
            continue
        if _is_dicom(path, name):
            dicom.setdefault(path.parent.relative_to(bids_dir).as_posix(), []).append(name)
            continue
        reason = _reason(path, name, bids_dir)
        if reason is not None:
            found.append(NotTaken(_shown(name), reason))
    for folder, names in dicom.items():
        number = f"{len(names)} DICOM files" if len(names) > 1 else "a DICOM file"
        found.append(
            NotTaken(_shown(names[0]), f"{number} in {_shown(folder)}; convert with dcm2niix")
        )
    return sorted(found, key=lambda item: item.name)


def _shown(name: str) -> str:
    """A name that can be printed and written."""
    return name if name.isprintable() else ascii(name)


def _files(bids_dir: Path, participants: Sequence[str] | None) -> Iterator[Path]:
    """Files of the participants, and those at the dataset's top or in a misnamed folder."""
    wanted = None if participants is None else {f"sub-{label}" for label in participants}
    for entry in _entries(bids_dir):
        name = entry.name
        is_folder = entry.is_dir()
        if is_folder and name.startswith("sub-"):
            # a link back to the dataset would be walked again and again
            loop = entry.is_symlink() and bids_dir.resolve().is_relative_to(
                (bids_dir / name).resolve()
            )
            if not loop and (wanted is None or name in wanted):
                yield from _walk(bids_dir / name, DEPTH)
        elif is_folder:
            if wanted is None and _is_misnamed(bids_dir / name):
                yield from _walk(bids_dir / name, DEPTH)
        elif wanted is None or name.split("_")[0].split(".")[0] in wanted:
            yield bids_dir / name


def without_prefix(bids_dir: Path) -> list[str]:
    """Folders at the dataset's top that hold anatomical images and are named without ``sub-``."""
    names = [entry.name for entry in _entries(bids_dir) if entry.is_dir()]
    return [n for n in names if not n.startswith("sub-") and _has_anat(bids_dir / n)]


def _is_misnamed(folder: Path) -> bool:
    """Whether a folder at the top may hold raw images: of a participant, a session or a site."""
    if folder.name in IGNORED or (folder / "dataset_description.json").exists():
        return False  # another dataset's, such as results
    if LIKE_A_PARTICIPANT.fullmatch(folder.name) or _has_anat(folder):
        return True
    if _in_anat(f"{folder.name}/x") or re.fullmatch("ses-[^_.]+", folder.name):
        return True
    if any(
        path.is_dir() for each in ("anat", "ses-*/anat") for path in folder.glob(f"sub-*/{each}")
    ):
        return True
    names = [entry.name for entry in _entries(folder)]
    return any(IMAGE.search(name) and _has_word(f"{folder.name}/{name}") for name in names)


def _has_anat(folder: Path) -> bool:
    """Whether a folder is laid out as a participant's."""
    if folder.name in IGNORED:
        return False
    return any(path.is_dir() for each in ("anat", "ses-*/anat") for path in folder.glob(each))


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Files, and links that lead nowhere; of links to folders, ``anat`` and sessions."""
    for entry in _entries(folder):
        path = folder / entry.name
        try:
            is_folder = entry.is_dir()
            leave = entry.is_symlink() and not _is_followed(path)
        except OSError:  # a link to itself
            is_folder = leave = False
        if not is_folder:
            yield path
        elif depth and not (leave or DATA_FOLDER.search(entry.name) or entry.name in IGNORED):
            yield from _walk(path, depth - 1)


def _is_followed(link: Path) -> bool:
    """Whether a link to a folder is: to ``anat`` or a session, and not to a folder above it."""
    if not re.fullmatch("anat|ses-.+", link.name, re.IGNORECASE):
        return False
    return not link.parent.resolve().is_relative_to(link.resolve())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, without hidden files; one that may not be read is empty."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []
    return sorted(shown, key=lambda entry: entry.name)


def _in_anat(name: str) -> bool:
    """Whether a path leads through a folder that is meant for anatomical images."""
    folders = PurePosixPath(name).parts[:-1]
    return any(re.fullmatch("anat(omy|omical)?|struct(ural)?", f.lower()) for f in folders)


def _has_word(name: str) -> bool:
    """Whether a part of a name is that of an anatomical image; a label (``acq-T1``) is none."""
    return any(ANATOMICAL.fullmatch(part) for part in re.split(r"[_. /]", name))


def _is_dicom(path: Path, name: str) -> bool:
    """Whether a file of an anatomical series is DICOM, by its name or its first bytes."""
    folder = PurePosixPath(name).parent.as_posix()
    if not (_in_anat(name) or _has_word(folder)):
        return False
    if DICOM.search(path.name):
        return True
    if "." in path.name or not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _reason(path: Path, name: str, bids_dir: Path) -> str | None:
    """Why a file is not taken; None for one that does not look like an anatomical image."""
    if _is_lost_folder(path):
        return "a link that leads nowhere; run `datalad get`, or correct the link"
    match = IMAGE.search(path.name)
    if match is None or not (_in_anat(name) or _has_word(path.name)):
        return _reason_of_rest(path, name)
    stem, extension = path.name[: match.start()], match.group()
    suffix = stem.rpartition("_")[2]
    if suffix.lower() in NO_IMAGES:
        return None
    if UNPRINTABLE.search(name):
        return "its name has characters that cannot be printed; rename it"
    return (
        not_fetched([path])
        or _fault_of_format(path, extension)
        or _fault_of_name(path.name, suffix)
        or _fault_of_place(path, name, bids_dir)
        or "the index of the dataset does not know it as an image; check its name"
    )


def _is_lost_folder(path: Path) -> bool:
    """Whether a link that leads nowhere has the name of a folder of images."""
    named = path.name == "anat" or re.fullmatch(r"(sub|ses)-[^_.]+", path.name)
    return bool(named) and path.is_symlink() and not path.exists()


def _reason_of_rest(path: Path, name: str) -> str | None:
    """Packed participants, pieces of downloads, images with another end to their name."""
    if path.name == "anat" and path.is_file():
        return (
            "expected a folder of images, got a file; is it a link that a program wrote as text?"
        )
    packed = PACKED.search(path.name)
    if packed:
        stem = path.name[: packed.start()]
        of_images = _in_anat(f"{name[: -len(packed.group())]}/x") or _has_word(stem)
        if of_images or re.fullmatch("(sub|ses)-[^_.]+", stem, re.IGNORECASE):
            return "packed; unpack it"
    half = re.search(r"\.nii(\.gz)?(\.(part|tmp|crdownload|download|aria2)|~)$", path.name, re.I)
    if half and (_in_anat(name) or _has_word(path.name)):
        return f"the name of a download that was broken off ({half.group()}); get it again"
    return _fault_of_end(path, name)


def _fault_of_end(path: Path, name: str) -> str | None:
    """The fault of an image's name that ends in no format; None beside an image of that name."""
    image = re.match(rf"(sub-.+_(?:{'|'.join(SUFFIXES)}))(\..*)?$", path.name, re.I | re.S)
    if image is None or BESIDE.search(path.name):
        return None
    stem, end = image[1], image[2] or ""
    if not (_in_anat(name) or end.startswith(".nii")):
        return None
    if any(path.with_name(stem + extension).exists() for extension in EXTENSIONS):
        return None
    return f"expected .nii.gz or .nii, got {ascii(end) if end else 'no extension'}; rename it"


def _fault_of_format(path: Path, extension: str) -> str | None:
    if extension in EXTENSIONS:
        return None
    small = extension.lower()
    if small in EXTENSIONS:
        return f"expected the extension {small} in small letters, got {extension}; rename it"
    if small in {".hdr", ".img", ".hdr.gz", ".img.gz"}:
        return "an image in two files (.hdr and .img) is not read; convert it to .nii.gz"
    tool = CONVERTERS.get(small)
    return f"expected .nii.gz or .nii, got {extension}; convert it" + (
        f" ({tool})" if tool else ""
    )


def _fault_of_name(name: str, suffix: str) -> str | None:
    parsed = BidsName.parse(name)
    if parsed is None or not parsed.suffix.isalnum() or parsed.extension not in EXTENSIONS:
        return (
            "its name is no BIDS name; labels are letters and numbers, as in "
            "sub-01_ses-1_acq-highres_T1w.nii.gz"
        )
    if suffix in DEFAULT:
        return None
    if suffix in SUFFIXES:
        return f"images of the suffix {suffix} are taken when --modalities names it"
    ours = WORDS.get(suffix.lower())
    if ours is not None:
        return f"expected the suffix {ours}, got {suffix}; rename it"
    return f"images of the suffix {suffix} are not enhanced, only {OURS}"


def _fault_of_place(path: Path, name: str, bids_dir: Path) -> str | None:
    parsed = BidsName.parse(path.name)
    folder = path.parent.relative_to(bids_dir).as_posix()
    if parsed is None or IMAGE_PLACE.fullmatch(folder):
        if is_at_home(path, bids_dir):
            return None
        return (
            "its folder is of another participant or session than its name says; rename or move it"
        )
    home = f"{subject_folder(parsed.subject, parsed.session)}/anat"
    found = "at the dataset's top" if folder == "." else f"in {folder}"
    return f"expected in the folder {home}, found {found}; move it there"
