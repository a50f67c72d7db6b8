# SPDX-License-Identifier: Apache-2.0
"""Batch normalisations at no cost: folded into the weights of the convolution before or behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: standard deviations from the mean beyond which a ReLU hardly ever, or hardly never, cuts
UNUSUAL = 3.0
#: from zero, that a ReLU may cut and be done by a comparison
FARTHEST = 1e15


@dataclass(frozen=True)
class Affine:
    """``relu(scale · x + shift)``, for each channel; ``scale`` None is the ReLU alone.

    With ``floor`` it is ``max(x, floor)``, and the rest is left to the weights: see :func:`ahead`.
    ``below``: the channels whose floor is below zero.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    floor: Tensor | None = None
    below: tuple[int, ...] = ()

    def lifted(self, by: Tensor) -> Affine:
        """The same of features that are stored higher, each channel ``by`` its own."""
        assert self.scale is not None  # noqa: S101 - for mypy
        assert self.shift is not None  # noqa: S101
        return Affine(self.scale, self.shift - self.scale * by)


def lift(readers: Sequence[tuple[nn.Module, tuple[int, int]]], channels: int) -> Tensor:
    """How much higher features are to be stored, that hardly a floor of who reads them is below zero.

    The lowest floor comes to lie a hair above zero, since processors compare numbers that are not below
    zero several times as fast (:func:`.kernels.no_less`).  The price, where several read a feature with
    floors far apart, is some of bfloat16's precision: the highest of them lies where numbers are coarser.

    Parameters
    ----------
    readers : batch normalisations with a ReLU behind them; the channels that each reads, first and end
    channels : of the features

    Returns
    -------
    (channels,) float64; zero where nobody reads.  Floors of scales that are not positive do not count
    (see :func:`ahead`), nor do those that are :data:`UNUSUAL`: whoever hardly uses a channel has its
    floor anywhere, and must not take the precision from the others who read it.
    """
    floors = [(_usual_floor(norm), span) for norm, span in readers]
    lowest = floors[0][0].new_full((channels,), torch.inf)
    for floor, (low, end) in floors:
        lowest[low:end] = torch.minimum(lowest[low:end], floor)
    return torch.where(lowest.isfinite(), 1e-6 * (1 + lowest.abs()) - lowest, 0.0)


def _usual_floor(norm: nn.Module) -> Tensor:
    """What a normalisation takes to zero, (channels,) float64; infinite where that is to count for nothing."""
    before = affine(norm)
    assert isinstance(norm, nn.BatchNorm3d)  # noqa: S101 - affine has seen to it
    assert before.scale is not None  # noqa: S101 - for mypy, like those below
    assert norm.running_mean is not None  # noqa: S101
    assert norm.running_var is not None  # noqa: S101
    floor = _floor(before)
    away = (floor - norm.running_mean).abs() / (norm.running_var + norm.eps).sqrt()
    return torch.where((before.scale > 0) & (away <= UNUSUAL), floor, torch.inf)


def _floor(before: Affine) -> Tensor:
    """What a normalisation takes to zero, (channels,) float64; not finite where a scale is zero."""
    assert before.scale is not None  # noqa: S101 - for mypy
    assert before.shift is not None  # noqa: S101
    return -before.shift.double() / before.scale.double()


def ahead(
    before: Affine | None, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> tuple[Affine | None, Tensor, Tensor]:
    """A normalisation and ReLU done by one comparison and the weights of the convolution behind them.

    For a positive scale ``relu(scale · x + shift) = scale · (max(x, floor) − floor)`` with
    ``floor = −shift / scale``.  The factor goes into the weights, what is taken away into the bias, and
    the padding must be ``floor`` where it was zero.  Half the time of a product, a sum and a comparison.

    Parameters
    ----------
    before : what is read goes through it; left as it is unless all its scales are positive and all its
        floors nearer than :data:`FARTHEST`
    weight, bias : (out, in, 3, 3, 3) and (out,)
    dtype : of what is read; the floor is rounded to it first, so that nothing is exactly nothing

    Returns
    -------
    before, weight, bias : in float64 where they have changed
    """
    if before is None or before.scale is None or before.shift is None or before.scale.is_meta:
        return before, weight, bias
    scale = before.scale.double()
    floor = _floor(before).to(dtype)
    # a floor far away comes of a scale that has decayed to nothing, by which weights would vanish in bfloat16
    if not bool((scale > 0).all()) or not bool((floor.abs() < FARTHEST).all()):
        return before, weight, bias
    scaled = weight.to(torch.float64, copy=True).mul_(scale.view(1, -1, 1, 1, 1))
    less = scaled.sum(dim=(2, 3, 4)) @ floor.double()
    below = tuple(torch.nonzero(floor < 0).flatten().tolist())
    return Affine(floor=floor, below=below), scaled, bias.double() - less


def affine(norm: nn.Module) -> Affine:
    """A batch normalisation in inference, and the ReLU behind it."""
    if (
        not isinstance(norm, nn.BatchNorm3d)
        or norm.running_mean is None
        or norm.running_var is None
    ):
        raise TypeError(f"expected a batch normalisation with statistics, got {norm}")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        shift = shift + norm.bias.double()
    return Affine(scale, shift)


def folded(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does the batch normalisation behind it too.

    Exact but for rounding (the product is made in float64): see the tests.
    """
    found = affine(norm)
    weight, bias = parameters(layer)
    assert found.scale is not None  # noqa: S101 - for mypy
    assert found.shift is not None  # noqa: S101
    return (
        (weight.double() * found.scale.view(-1, 1, 1, 1, 1)).to(weight.dtype),
        (bias.double() * found.scale + found.shift).to(bias.dtype),
    )


def parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a (transposed) convolution; zeros for a bias that it does not have."""
    if not isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
        raise TypeError(f"expected a three-dimensional convolution, got {layer}")
    weight = layer.weight.detach()
    if layer.bias is None:
        return weight, weight.new_zeros(layer.out_channels)
    return weight, layer.bias.detach()
