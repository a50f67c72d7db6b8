# SPDX-License-Identifier: Apache-2.0
"""The section *About* of a participant's page: the run, and each image as it was scanned."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from bmex_bids.outputs.records import KEY, table_of
from bmex_bids.reports.facts import installed_versions
from bmex_bids.settings import read_table


def about_run(output_dir: Path, run_id: str | None) -> dict[str, str]:
    """When and how the images were made; what is not known is left out."""
    if run_id is None:
        return {}
    settings = read_table(output_dir / "logs" / run_id / "config.toml")
    rows = {
        "Run": _date(run_id),
        "Command line": str(settings.get("command", "")),
        "bmex_bids": str(settings.get("version", "")),
        "Packages when this page was made": ", ".join(
            f"{name} {version}" for name, version in installed_versions().items()
        ),
    }
    return _filled(rows) if settings else {}


def about_image(sidecar: Mapping[str, Any]) -> dict[str, str]:
    """Geometry, scanner and protocol of an image, from the sidecar of what was made of it."""
    geometry = table_of(table_of(sidecar, KEY), "Input")
    strength = sidecar.get("MagneticFieldStrength")
    times = {
        "TR": "RepetitionTime",
        "TE": "EchoTime",
        "TI": "InversionTime",
    }
    protocol = [str(sidecar[key]) for key in ("ProtocolName", "SeriesDescription", "SequenceName")
                if sidecar.get(key)]  # fmt: skip
    settings = [f"{name} {sidecar[key]:g} s" for name, key in times.items()
                if isinstance(sidecar.get(key), int | float)]  # fmt: skip
    if isinstance(angle := sidecar.get("FlipAngle"), int | float):
        settings.append(f"flip angle {angle:g}°")
    return _filled(
        {
            "Matrix": _times(geometry.get("Shape")),
            "Voxels": f"{size} mm" if (size := _times(geometry.get("VoxelSizes"))) else "",
            "Stored axes": str(geometry.get("Orientation", "")),
            "Scanner": " ".join(
                str(part)
                for part in (
                    sidecar.get("Manufacturer"),
                    sidecar.get("ManufacturersModelName"),
                    f"{strength} T" if strength else None,
                )
                if part
            ),
            "Protocol": ", ".join([*dict.fromkeys(protocol), *settings]),
        }
    )


def _filled(rows: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in rows.items() if text}


def _date(run_id: str) -> str:
    """The time in the name of a run's folder, as it is where it has none.

    >>> _date("20251121-080534_1f0c9a7e")
    '2025-11-21 08:05:34'
    """
    try:
        return str(datetime.strptime(run_id[:15], "%Y%m%d-%H%M%S"))  # noqa: DTZ007 - local time
    except ValueError:
        return run_id


def _times(numbers: Any) -> str:
    """
    >>> _times([0.8, 0.80001, 1])
    '0.8 × 0.8 × 1'
    """
    return " × ".join(f"{number:.4g}" for number in numbers) if isinstance(numbers, list) else ""
