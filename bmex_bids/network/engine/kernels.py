# SPDX-License-Identifier: Apache-2.0
"""Ways of computing what torch computes too, that are faster on processors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from bmex_bids.network.engine.pool import Workspace

#: results up to which a float32 convolution is faster as one matrix product
THIN = 4
#: channels of a row that is copied as whole numbers, at most
SHORT = 16
#: channels that are compared one by one, at most
FEW_BELOW = 8


def rectify(x: Tensor, out: Tensor | None = None) -> None:
    """max(x, 0) into ``out``, or where it is.

    A 16-bit float is below zero where its bits, read as an integer, are; as integers processors
    compare them four times as fast.
    """
    out = x if out is None else out
    if x.device.type == "cpu" and x.dtype == out.dtype == torch.bfloat16:
        x, out = x.view(torch.int16), out.view(torch.int16)
    torch.clamp_min(x, 0, out=out)


def no_less(x: Tensor, floor: Tensor, out: Tensor, below: Sequence[int]) -> None:
    """max(x, floor) into ``out``; ``floor`` (channels,) belongs to the last axis.

    ``below``: the channels whose floor is below zero.  For the others the order of bfloat16 is that of its
    bits as integers, as in :func:`rectify`: what is below zero is less than a floor either way.  So a few
    of them are done apart.
    """
    if x.device.type != "cpu" or x.dtype != torch.bfloat16 or len(below) > FEW_BELOW:
        torch.maximum(x, floor, out=out)
        return
    bits = floor.abs().view(torch.int16)  # minus zero would be the lowest integer
    if below:
        bits[list(below)] = torch.iinfo(torch.int16).min
    torch.maximum(x.view(torch.int16), bits, out=out.view(torch.int16))
    for channel in below:
        torch.maximum(x[..., channel], floor[channel], out=out[..., channel])


def largest(first: Tensor, *others: Tensor) -> Tensor:
    """The largest of arrays of one shape, whose values are not below zero, at each place; two or more.

    As in :func:`rectify`, bfloat16 is compared as integers.
    """
    kind = first.dtype
    arrays = [first, *others]
    if kind == torch.bfloat16 and first.device.type == "cpu":
        arrays = [array.view(torch.int16) for array in arrays]
    result = torch.maximum(arrays[0], arrays[1])
    for array in arrays[2:]:
        torch.maximum(result, array, out=result)
    return result.view(kind)


def copy_rows(x: Tensor, out: Tensor) -> None:
    """``out.copy_(x)``, of features whose channels lie side by side.

    Rows of 16 bfloat16 are copied as four whole numbers, in two thirds of the time; from 32 on it is all one.
    """
    if (
        x.dtype == out.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.shape[-1] <= SHORT
        and all(
            a.stride(-1) == 1 and not any(n % 4 for n in (a.storage_offset(), *a.stride()[:-1]))
            for a in (x, out)
        )
        and x.shape[-1] % 4 == 0
    ):
        x, out = x.view(torch.int64), out.view(torch.int64)
    out.copy_(x)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 as a sum of two bfloat16: together they have 16 of its 24 bits."""
    first = x.to(torch.bfloat16)
    return first, (x - first).to(torch.bfloat16)


def parities(weight: Tensor) -> dict[tuple[int, ...], Tensor]:
    """A transposed convolution of kernel 4, stride 2 and padding 1 as eight convolutions of kernel 2.

    Each makes the results at even or odd places of the three axes, which processors do in half the
    time.  An even place 2m has the taps 3 of value m − 1 and 1 of m, an odd one 2m + 1 the taps 2 of
    m and 0 of m + 1.

    Parameters
    ----------
    weight : (in, out, 4, 4, 4)

    Returns
    -------
    parity of the three axes → (out, in, 2, 2, 2)
    """
    turned = weight.transpose(0, 1).flip(2, 3, 4)
    return {
        (a, b, c): turned[:, :, a::2, b::2, c::2].contiguous(memory_format=torch.channels_last_3d)
        for a, b, c in product(range(2), repeat=3)
    }


def thin_convolution(x: Tensor, weight: Tensor, bias: Tensor, space: Workspace) -> Tensor:
    """A 3×3×3 convolution with few results: one matrix product, whose 27 parts are added up.

    Parameters
    ----------
    x : (D + 2, H + 2, W + 2, C)
    weight, bias : (out, C, 3, 3, 3) and (out,)

    Returns
    -------
    (D, H, W, out)
    """
    depth, height, width = (n - 2 for n in x.shape[:3])
    rows = weight.permute(2, 3, 4, 0, 1).reshape(-1, x.shape[3])  # (27 · out, C)
    voxels = x.reshape(-1, x.shape[3])
    parts = torch.mm(rows, voxels.T, out=space.take("parts", (len(rows), len(voxels))))
    parts = parts.view(3, 3, 3, -1, *x.shape[:3])
    result = bias.view(-1, 1, 1, 1).repeat(1, depth, height, width)
    for i, j, k in product(range(3), repeat=3):
        result += parts[i, j, k, :, i : i + depth, j : j + height, k : k + width]
    return result.permute(1, 2, 3, 0)
