# SPDX-License-Identifier: Apache-2.0
"""Batch normalisations in inference: one product and one sum, folded into weights where they can be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Affine:
    """``relu(scale · x + shift)``, one value a channel each."""

    scale: Tensor
    shift: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Affine:
        """The same elsewhere, or in another number format."""
        return Affine(self.scale.to(device, dtype), self.shift.to(device, dtype))


def affine(norm: nn.Module) -> Affine:
    """A batch normalisation in inference, float64, and the ReLU behind it."""
    if (
        not isinstance(norm, nn.BatchNorm3d)
        or norm.running_mean is None
        or norm.running_var is None
    ):
        raise TypeError(f"expected a batch normalisation with statistics, got {norm}")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        shift = shift + norm.bias.detach().double()
    return Affine(scale, shift)


def folded(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does the batch normalisation behind it too.

    Exact but for rounding: the product is made in float64.
    """
    found = affine(norm)
    weight, bias = parameters(layer)
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
