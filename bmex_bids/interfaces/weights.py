# SPDX-License-Identifier: Apache-2.0
"""Weights that travel between nodes as plain values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bmex_bids.network.weights.registry import WeightRecord


def weight_record(table: dict[str, Any]) -> WeightRecord:
    """The :class:`WeightRecord` that travels as a plain dict."""
    values = dict(table, path=Path(table["path"]))
    if values.get("companion") is not None:
        values["companion"] = Path(values["companion"])
    for key in ("age_groups", "contrasts"):
        values[key] = tuple(values[key])
    return WeightRecord(**values)


def provenance_of(record: WeightRecord) -> dict[str, Any]:
    """What a node tells of the weights that it used."""
    return {
        "weights": record.name,
        "weights_sha256": record.sha256,
        "weights_licence": record.licence,
        "weights_source": record.source,
    }


def with_weights(function: Callable[..., Any], table: dict[str, Any]) -> Any:
    """A function of a network with its keyword ``record`` filled; None without weights."""
    return partial(function, record=weight_record(table)) if table else None
