# SPDX-License-Identifier: Apache-2.0
"""BIDS file names: taken apart and put together here only.

A name is a list of entities (``key-label``), a suffix and an extension, joined by ``_`` and ``.``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

#: entities of derivatives, in the order of the BIDS specification; those of raw images come first
DERIVATIVE_ORDER = ("space", "split", "chunk", "seg", "res", "den", "label", "desc")


@dataclass(frozen=True)
class BidsName:
    """A BIDS file name.

    Attributes
    ----------
    entities : key → label, in the order of the name
    suffix : such as ``T1w``
    extension : with its dot; empty where the name has none
    """

    entities: Mapping[str, str] = field(default_factory=dict)
    suffix: str = ""
    extension: str = ""

    @classmethod
    def parse(cls, name: str) -> BidsName | None:
        """The parts of a name; None for a name that is not BIDS.

        >>> BidsName.parse("sub-01_ses-a_T1w.nii.gz")
        BidsName(entities={'sub': '01', 'ses': 'a'}, suffix='T1w', extension='.nii.gz')
        >>> BidsName.parse("localizer.nii.gz") is None
        True
        """
        stem, dot, extension = name.partition(".")
        *pairs, suffix = stem.split("_")
        entities = {}
        for pair in pairs:
            key, dash, label = pair.partition("-")
            if not (dash and key and label):
                return None
            entities[key] = label
        return cls(entities, suffix, dot + extension) if "sub" in entities else None

    @classmethod
    def of(cls, name: str) -> BidsName:
        """The parts of a name; ValueError for a name that is not BIDS."""
        parsed = cls.parse(name)
        if parsed is None:
            raise ValueError(f"expected a BIDS name such as sub-01_T1w, got {name!r}")
        return parsed

    def __str__(self) -> str:
        return f"{self.stem}_{self.suffix}{self.extension}"

    @property
    def stem(self) -> str:
        """All entities: ``sub-01_run-1``."""
        return "_".join(f"{key}-{label}" for key, label in self.entities.items())

    @property
    def subject(self) -> str:
        """The label of ``sub``."""
        return self.entities["sub"]

    @property
    def session(self) -> str | None:
        """The label of ``ses``; None without."""
        return self.entities.get("ses")

    def derived(
        self, entities: Mapping[str, str], suffix: str = "", extension: str = ""
    ) -> BidsName:
        """The name of a derivative: more entities, each in its place; another suffix, if given.

        >>> source = BidsName.parse("sub-01_chunk-2_T1w.nii.gz")
        >>> str(source.derived({"desc": "brain", "space": "T2w"}, "mask", ".json"))
        'sub-01_space-T2w_chunk-2_desc-brain_mask.json'
        """
        merged = {**self.entities, **entities}
        last = [key for key in DERIVATIVE_ORDER if key in merged]
        first = [key for key in merged if key not in last]
        return BidsName(
            {key: merged[key] for key in (*first, *last)}, suffix or self.suffix, extension
        )

    def without(self, *keys: str) -> BidsName:
        """The same name without these entities and without an extension.

        >>> str(BidsName.parse("sub-1_res-0p8_desc-enhanced_T1w.json").without("res", "desc"))
        'sub-1_T1w'
        """
        kept = {key: label for key, label in self.entities.items() if key not in keys}
        return replace(self, entities=kept, extension="")


def subject_folder(subject: str, session: str | None = None) -> str:
    """Where the files of a participant and session are, relative to the dataset.

    >>> subject_folder("01"), subject_folder("01", "A")
    ('sub-01', 'sub-01/ses-A')
    """
    return f"sub-{subject}" + (f"/ses-{session}" if session else "")


def node_name(name: str) -> str:
    """A name as the names of Nipype's nodes and workflows have it.

    >>> node_name("sub-01_ses-A_T1w")
    'sub_01_ses_A_T1w'
    """
    return re.sub(r"\W", "_", name)


def sidecar_of(image: Path) -> Path:
    """The JSON file beside an image.

    >>> sidecar_of(Path("a.b.nii.gz")).name, sidecar_of(Path("c.nii")).name
    ('a.b.json', 'c.json')
    """
    return image.with_name(f"{stem_of(image)}.json")


def stem_without(suffixes: Collection[str], image: Path) -> str:
    """The name of an image without its extension, and without one of these suffixes.

    >>> stem_without(("T1w",), Path("sub-1_T1w.nii.gz")), stem_without(("T1w",), Path("head.nii"))
    ('sub-1', 'head')
    """
    front, _, suffix = stem_of(image).rpartition("_")
    return front if front and suffix in suffixes else stem_of(image)


def stem_of(image: Path) -> str:
    """The name of an image without its extension."""
    return image.name.removesuffix(".gz").removesuffix(".nii")
