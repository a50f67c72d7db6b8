# SPDX-License-Identifier: Apache-2.0
"""Which of an image's sidecars tells what was done last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: kinds of sidecar, from the one preferred: native grid, finer grid alone, ``--qc-only``
KINDS = ("enhanced", "res-enhanced", "quality")
#: a run writes all sidecars of an image together
TOGETHER_S = 30.0


def kind_of(file_name: str) -> str | None:
    """Which of :data:`KINDS` a sidecar is, by its name; None for none of them.

    >>> kind_of("sub-1_res-0p8_desc-enhanced_T1w.json"), kind_of("sub-1_desc-preproc_T1w.json")
    ('res-enhanced', None)
    """
    parts = file_name.split("_")
    fine = any(part.startswith("res-") for part in parts)
    if "desc-enhanced" in parts:
        return "res-enhanced" if fine else "enhanced"
    return "quality" if "desc-quality" in parts and not fine else None


def image_name(file_name: str) -> str:
    """Name of the source image.

    >>> image_name("sub-1_ses-2_res-0p8_desc-enhanced_T1w.json")
    'sub-1_ses-2_T1w'
    """
    parts = file_name.split(".")[0].split("_")
    return "_".join(part for part in parts if not part.startswith(("res-", "desc-", "space-")))


def latest_first(paths: Mapping[str, Path]) -> list[Path]:
    """An image's sidecars by kind: those that the latest run wrote first, the preferred of them foremost.

    A run that asks for other products (``--output-res``, ``--qc-only``) leaves those of an earlier one,
    which had perhaps another age or other weights.
    """
    times = {kind: path.stat().st_mtime for kind, path in paths.items()}
    since = max(times.values(), default=0.0) - TOGETHER_S
    kinds = sorted(paths, key=lambda kind: (times[kind] < since, KINDS.index(kind)))
    return [paths[kind] for kind in kinds]
