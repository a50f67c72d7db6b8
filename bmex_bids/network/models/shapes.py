# SPDX-License-Identifier: Apache-2.0
"""Sizes of a network, read from the tensors of its file."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bmex_bids.exceptions import WeightsError

State = Mapping[str, Tensor]


def channels(state: State, key: str) -> int:
    """The first size of a tensor: the results of a convolution."""
    if key not in state:
        raise WeightsError(
            f"expected a tensor named {key!r} in the weight file, found {len(state)} others; "
            "is this a file of another network?"
        )
    if state[key].ndim == 0:
        raise WeightsError(f"expected an array of weights named {key!r}, got one number")
    return int(state[key].shape[0])


def base_width(state: State, key: str) -> int:
    """The same, of a network whose layers are quarters of it wide."""
    width = channels(state, key)
    if width < 4 or width % 4:
        raise WeightsError(
            f"expected a base width that is a multiple of 4 in {key!r}, got {width}; "
            "is this a file of another network?"
        )
    return width
