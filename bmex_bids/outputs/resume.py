# SPDX-License-Identifier: Apache-2.0
"""What a run need not do again.

An image's *record* is the sidecar of its first product.  It is written last, so a record that is
there says that all the others are; it holds the fingerprint of what the products were made from
and a checksum of each.  Nothing else is needed to go on after a run that was killed: no work
folder, no log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bmex_bids.outputs.records import read_record


def checksum(path: Path) -> str:
    """SHA-256 of a file; OSError where there is none (a pipe would be read for ever)."""
    if not path.is_file():
        raise OSError(f"expected a file at {path}, found none; check the path")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def text_checksum(text: str) -> str:
    """SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def fingerprint(
    inputs: Sequence[Path], settings: Mapping[str, Any], weights: Sequence[str]
) -> dict[str, str] | None:
    """What the products of an image depend on; None where an input cannot be read.

    Parameters
    ----------
    inputs : the raw image, and a mask where one is given
    settings : all that decides how the image is processed; anything that JSON holds
    weights : checksums of the networks
    """
    try:
        sums = [checksum(path) for path in inputs]
    except OSError:
        return None
    return {
        "Input": sums[0] if len(sums) == 1 else text_checksum("\n".join(sums)),
        **settings_fingerprint(settings, weights),
    }


def settings_fingerprint(settings: Mapping[str, Any], weights: Sequence[str]) -> dict[str, str]:
    """The part of a fingerprint for which no image is read."""
    return {
        "Configuration": text_checksum(json.dumps(settings, sort_keys=True, default=str)),
        "Weights": text_checksum("\n".join(weights)),
    }


def seems_finished(
    record_path: Path,
    expected: Mapping[str, str],
    inputs: Sequence[Path],
    pictures: Sequence[Path],
) -> bool:
    """As :func:`finished`, from names and dates alone: for 100,000 images on a login node.

    Parameters
    ----------
    expected : from :func:`settings_fingerprint`
    inputs : one that is younger than the record may have changed, so the image is not finished
    """
    record = read_record(record_path)
    fingerprint = record.get("Fingerprint") if record else None
    outputs = record.get("Outputs") if record else None
    if not isinstance(fingerprint, dict) or not isinstance(outputs, dict):
        return False
    if any(fingerprint.get(key) != value for key, value in expected.items()):
        return False
    try:
        made = record_path.stat().st_mtime
        same = all(path.stat().st_mtime <= made for path in inputs)
    except OSError:
        return False
    products = [record_path.parent / name for name in outputs]
    return same and all(path.is_file() for path in [*products, *pictures])


def finished(record_path: Path, expected: Mapping[str, str], pictures: Sequence[Path]) -> bool:
    """Whether an image's products are there, whole, and made from the same things.

    Parameters
    ----------
    record_path : sidecar of the first product
    expected : from :func:`fingerprint`
    pictures : that the report needs; only their being there counts
    """
    record = read_record(record_path)
    if record is None or record.get("Fingerprint") != dict(expected):
        return False
    outputs = record.get("Outputs")
    if not isinstance(outputs, dict):
        return False
    try:
        whole = all(checksum(record_path.parent / name) == sum_ for name, sum_ in outputs.items())
    except OSError:
        return False
    return whole and all(path.is_file() for path in pictures)
