# SPDX-License-Identifier: Apache-2.0
"""The weight sets this package knows: one record each, read from ``data/weights.json``."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from bmex_bids.exceptions import WeightsError

#: file names of the published BME-X v1.0.2 … v1.0.5 sets, by age group and contrast
PUBLISHED = "bmex-1.0.5"


@dataclass(frozen=True)
class WeightRecord:
    """One set of weights: where it is, what it is, and what it may be used for."""

    name: str
    kind: str  # "enhance" or "strip"
    path: Path
    sha256: str
    licence: str
    source: str
    description: str
    variant: str
    input_units: str
    age_groups: tuple[str, ...]
    contrasts: tuple[str, ...]
    version: str

    def serves(self, kind: str, age_group: str | None, contrast: str | None) -> bool:
        """Whether this set is for the kind, age group and contrast asked for (None: any)."""
        return (
            self.kind == kind
            and (age_group is None or age_group in self.age_groups)
            and (contrast is None or contrast in self.contrasts)
        )


def bundled() -> list[WeightRecord]:
    """The sets that travel in the package."""
    folder = resources.files("bmex_bids.data")
    table: Mapping[str, Any] = json.loads(folder.joinpath("weights.json").read_text())
    root = Path(str(folder)) / "weights"
    return [
        WeightRecord(
            name=entry["name"],
            kind=entry["kind"],
            path=root / entry["file"],
            sha256=entry["sha256"],
            licence=entry["licence"],
            source=entry["source"],
            description=entry["description"],
            variant=entry["variant"],
            input_units=entry["input_units"],
            age_groups=tuple(entry["age_groups"]),
            contrasts=tuple(entry["contrasts"]),
            version=entry["version"],
        )
        for entry in table["sets"]
    ]


def published_file(age_group: str, contrast: str) -> str:
    """The published file name for an age group and contrast.

    >>> published_file("month18", "T1w"), published_file("fetal", "T2w")
    ('BMEX-Month18-T1-model.pt', 'BMEX-Fetal-T2-model.pt')
    """
    age = (
        age_group.capitalize()
        if age_group == "fetal"
        else f"Month{age_group.removeprefix('month')}"
    )
    return f"BMEX-{age}-{contrast.removesuffix('w')}-model.pt"


def published(weights_dir: Path, age_group: str, contrast: str) -> WeightRecord:
    """The published BME-X set for an age, in the user's own folder; absent is a WeightsError."""
    path = weights_dir / published_file(age_group, contrast)
    if not path.exists():
        raise WeightsError(
            f"expected the published weights {path.name} in {weights_dir}, found none; "
            "download them from the links in the BME-X project's README "
            "(DBC-Lab/Brain_MRI_Enhancement) and put them there, or use --weights bundled"
        )
    return WeightRecord(
        name=f"{PUBLISHED}-{age_group}-{contrast}",
        kind="enhance",
        path=path,
        sha256=sha256(path),
        licence="as published (MIT)",
        source="Sun et al., Nat. Biomed. Eng. 2025, doi:10.1038/s41551-024-01283-7",
        description="published BME-X weights, supplied by the user; not verified against a "
        "checksum, since none was published",
        variant="bmex-pytorch",
        input_units="template units",
        age_groups=(age_group,),
        contrasts=(contrast,),
        version="1.0.5",
    )


def select(
    kind: str,
    *,
    age_group: str | None = None,
    contrast: str | None = None,
    weights: str = "auto",
    weights_dir: Path | None = None,
) -> WeightRecord:
    """The weights for one image.

    Parameters
    ----------
    kind : ``"enhance"`` or ``"strip"``
    age_group, contrast : of the image; None where it does not matter (stripping)
    weights : ``"bundled"``; ``"bmex-1.0.5"`` (published, from ``weights_dir``); the name of one
        bundled set; ``"auto"``: published when ``weights_dir`` holds the file for this age, else
        bundled
    weights_dir : folder with the published files

    Raises
    ------
    WeightsError
        Nothing fits, the file is missing, or its checksum is wrong.
    """
    if kind == "enhance" and weights in ("auto", PUBLISHED) and age_group and contrast:
        here = (
            weights_dir is not None
            and (weights_dir / published_file(age_group, contrast)).exists()
        )
        if weights == PUBLISHED and weights_dir is None:
            raise WeightsError(
                f"--weights {PUBLISHED} needs the folder with the published files: "
                "give --weights-dir"
            )
        if weights_dir is not None and (here or weights == PUBLISHED):
            return published(weights_dir, age_group, contrast)
    names = {record.name for record in bundled()}
    if weights not in {"auto", "bundled", PUBLISHED, *names}:
        raise WeightsError(
            f"expected --weights of auto, bundled, {PUBLISHED} or one of "
            f"{sorted(names)}, got {weights!r}"
        )
    fitting = [
        record
        for record in bundled()
        if record.serves(kind, age_group, contrast)
        and (weights not in names or kind != "enhance" or record.name == weights)
    ]
    if not fitting:
        raise WeightsError(
            f"no weights of kind {kind!r} for age group {age_group} and contrast {contrast} "
            f"(--weights {weights})"
        )
    record = fitting[0]
    verify(record.path, record.sha256)
    return record


def verify(path: Path, expected: str) -> None:
    """Compare a file's SHA-256 with the recorded one; a difference is a WeightsError."""
    if not path.exists():
        raise WeightsError(f"expected weights at {path}, found none; install the package again")
    found = sha256(path)
    if found != expected:
        raise WeightsError(
            f"expected {path.name} to have SHA-256 {expected}, found {found}; the file is "
            "damaged: install the package again"
        )


@functools.lru_cache(maxsize=32)
def _digest(path: Path, size: int, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, computed again only when its size or time changed."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)
