# SPDX-License-Identifier: Apache-2.0
"""The weight sets this package can use, bundled or published, and which of them an image gets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from bmex_bids.exceptions import WeightsError
from bmex_bids.network.variants import facts
from bmex_bids.network.weights.published import (
    ENVIRONMENT,
    PublishedFile,
    PublishedSet,
    check,
    companions,
    locate,
    published_sets,
    sha256,
    weights_folder,
)

__all__ = ["PUBLISHED", "WeightRecord", "bundled", "select", "sha256", "verify"]

#: the published set that ``auto`` prefers to the bundled one
PUBLISHED = "bmex-1.0.5"
#: the published stripping network
STRIPPER = "lifespanstrip-2"


@dataclass(frozen=True)
class WeightRecord:
    """One weight file: where it is, what it is, and what it may be used for.

    ``companion`` is a further file that the network's input is prepared with (LifespanStrip's
    histogram template).
    """

    name: str
    kind: str  # "enhance", "strip", "score", "within", "denoise", "super", "segment" or "recon"
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
    companion: Path | None = None
    from_months: float = 0.0  # age of the youngest that it is for
    error_scale: float = 1.0  # factor on the expected error, so that a 95 % interval holds 95 %
    volume_scale: float | None = None  # SD of a tissue's volume over its spread; None: not known
    usual: Mapping[str, Any] | None = None  # figures of images that trained; metrics.familiarity
    # contrast → age groups of which the bundled set of kind "segment" finds the tissues better
    tissues: Mapping[str, Sequence[str]] | None = None
    # contrast → from_months and share: of the correction, where nothing of the kind has trained it
    shares: Mapping[str, Mapping[str, float]] | None = None
    share: float = 1.0  # of the correction, for the image that the set was selected for

    @property
    def companions(self) -> tuple[Path, ...]:
        """The companion with its second half, where it has one (``.hdr`` and ``.img``)."""
        if self.companion is None:
            return ()
        half = self.companion.with_suffix(".img")
        return (self.companion, *([half] if half != self.companion and half.is_file() else []))

    @property
    def mirrored(self) -> tuple[str, ...]:
        """Axes of LPS along which the network knows brains mirrored; () for published weights."""
        return facts(self.variant).mirrored

    def shared(self, contrast: str | None, age_months: float | None) -> WeightRecord:
        """The record with the share of the correction that an image gets."""
        known = (self.shares or {}).get(contrast or "")
        if known is None or (age_months or 0) < known["from_months"]:
            return self
        return replace(self, share=float(known["share"]))

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
            from_months=float(entry.get("from_months", 0)),
            error_scale=float(entry.get("error_scale", 1)),
            volume_scale=entry.get("volume_scale"),
            usual=entry.get("usual"),
            tissues=entry.get("tissues"),
            shares=entry.get("shares"),
        )
        for entry in table["sets"]
    ]


def published_names() -> dict[str, tuple[str, ...]]:
    """The published sets' names by kind."""
    return {
        kind: tuple(release.name for release in published_sets() if release.kind == kind)
        for kind in ("enhance", "strip")
    }


def weight_names() -> set[str]:
    """Everything that ``--weights`` takes by name."""
    ours = {record.name for record in bundled()}
    return {"auto", "bundled", *published_names()["enhance"], *ours}


def published_set(name: str) -> PublishedSet:
    """The published set of a name."""
    return next(release for release in published_sets() if release.name == name)


def record_of(release: PublishedSet, file: PublishedFile, path: Path) -> WeightRecord:
    """The record of a published file; one that changed since it came is a WeightsError."""
    trust = check(path, file)
    how = {
        "published": "checked against the checksum that its publisher gave",
        "first use": "its publisher gave no checksum; unchanged since it came",
        None: "its publisher gave no checksum, and none was written down when it came",
    }[trust]
    beside = companions(release, path.parent)
    for further in beside:
        check(further)
    complete = bool(beside) and len(beside) == len(release.companions)
    return WeightRecord(
        name=release.record_name(file),
        kind=release.kind,
        path=path,
        sha256=sha256(path),
        licence=release.licence,
        source=release.source,
        description=f"{release.description}; {how}",
        variant=release.variant,
        input_units=release.input_units,
        age_groups=file.age_groups,
        contrasts=file.contrasts,
        version=release.version,
        companion=beside[0] if complete else None,
    )


def _published(
    name: str, folder: Path, age_group: str | None, contrast: str | None
) -> WeightRecord | None:
    """The record of a published set's file for an image, where it is there."""
    release = published_set(name)
    for file in release.files:
        if file.serves(age_group, contrast):
            path = locate(folder, file.file)
            if path is not None:
                return record_of(release, file, path)
    return None


def _absent(
    name: str, given: Path | None, age_group: str | None, contrast: str | None
) -> WeightsError:
    """What to do about published weights that were asked for and are not there."""
    release = published_set(name)
    wanted = [file.file for file in release.files if file.serves(age_group, contrast)]
    otherwise = "or let bmex choose with --weights auto"
    if not wanted:
        return WeightsError(
            f"expected an age and contrast that {name} was published for, got {age_group} and "
            f"{contrast}; use --weights bundled for this image, {otherwise}"
        )
    folder = weights_folder(given)
    where = (
        f"which --weights-dir names; {ENVIRONMENT} and the cache are then not looked at"
        if given is not None
        else f"the weights folder; --weights-dir or {ENVIRONMENT} name another"
    )
    return WeightsError(
        f"expected the published weights {wanted[0]} in {folder} ({where}), found none; "
        f"run: bmex-weights fetch {name}"
        + (f" --weights-dir {given}" if given is not None else "")
        + f"; or download the file in a browser from {release.page} and run: bmex-weights fetch "
        f"--from FOLDER; or use --weights bundled, {otherwise}"
    )


def select(
    kind: str,
    *,
    age_group: str | None = None,
    contrast: str | None = None,
    age_months: float | None = None,
    weights: str = "auto",
    weights_dir: Path | None = None,
) -> WeightRecord:
    """The weights for one image.

    Parameters
    ----------
    kind : ``"enhance"``, ``"strip"``, ``"score"``, ``"within"``, ``"denoise"``, ``"super"`` or
        ``"segment"``
    age_group, contrast : of the image; None where it does not matter (stripping)
    age_months : of the participant; None where it is not known.  A bundled set for an age and above
        goes before one for all ages
    weights : ``"auto"``: the published file for this image (:data:`PUBLISHED`, :data:`STRIPPER`)
        where it is there, else the bundled set; ``"bundled"``; the name of one published or
        bundled set.  A name decides on enhancement; for stripping a published name works as
        ``auto`` does, and a bundled name as ``bundled``
    weights_dir : folder with the published files; see ``network.published.weights_folder``

    Raises
    ------
    WeightsError
        Nothing fits, the file is missing, or its checksum is wrong.
    """
    names = {record.name for record in bundled()}
    published = published_names()["enhance"]
    if weights not in weight_names():
        raise WeightsError(
            f"expected --weights of auto, bundled, {', '.join(published)} or one of "
            f"{sorted(names)}, got {weights!r}"
        )
    if weights in {"auto", *published}:
        folder = weights_folder(weights_dir)
        if kind == "strip":
            name = STRIPPER
        else:
            name = PUBLISHED if weights == "auto" else weights
        found = None
        if kind == "strip" or weights != "auto" or (age_group and contrast):
            found = _published(name, folder, age_group, contrast)
        if found is not None:
            return found
        if kind == "enhance" and weights != "auto":
            raise _absent(name, weights_dir, age_group, contrast)
    fitting = [
        record
        for record in bundled()
        if record.serves(kind, age_group, contrast)
        and record.from_months <= (age_months or 0)
        and (weights not in names or kind != "enhance" or record.name == weights)
    ]
    if not fitting:
        raise WeightsError(
            f"no weights of kind {kind!r} for age group {age_group} and contrast {contrast} "
            f"(--weights {weights})"
        )
    record = max(fitting, key=lambda one: one.from_months)
    verify(record.path, record.sha256)
    return record.shared(contrast, age_months)


def bundled_of(kind: str) -> WeightRecord | None:
    """The bundled set of a kind of which there is one for all images; None where there is none."""
    for record in bundled():
        if record.kind == kind:
            verify(record.path, record.sha256)
            return record
    return None


def tissue_finder(
    enhancing: WeightRecord, age_group: str | None, contrast: str
) -> WeightRecord | None:
    """The set that finds an image's tissues in place of the enhancement's; None: the latter does."""
    if age_group not in (enhancing.tissues or {}).get(contrast, ()):
        return None
    return bundled_of("segment")


def unregistered(path: Path, variant: str, name: str = "") -> WeightRecord:
    """The record of an enhancement network whose weight file is in no registry.

    An absent file is a WeightsError.
    """
    if not path.is_file():
        raise WeightsError(f"expected a weight file at {path}, found none")
    return WeightRecord(
        name=name or path.stem, kind="enhance", path=path, sha256=sha256(path), licence="",
        source="", description="in no registry", variant=variant, input_units="template units",
        age_groups=(), contrasts=(), version="",
    )  # fmt: skip


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
