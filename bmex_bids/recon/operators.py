# SPDX-License-Identifier: Apache-2.0
"""The forward model A = M F S of parallel imaging, sampling masks, and the data consistency step.

S multiplies an image by the coil sensitivities, F is the centred, orthonormal 2-D Fourier
transform, and M keeps the phase-encoding lines that were measured.  Images are (B, H, W) and data
(B, R, H, W), complex; H is the readout direction and W the phase-encoding direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: acceleration → share of the lines that lie in the fully sampled centre
CENTRE_SHARES = {4: 0.08, 8: 0.04}


def fourier(image: Tensor, dims: tuple[int, ...] = (-2, -1), *, inverse: bool = False) -> Tensor:
    """Centred, orthonormal Fourier transform along ``dims``; the inverse is the adjoint."""
    transform = torch.fft.ifftn if inverse else torch.fft.fftn
    shifted = torch.fft.ifftshift(image, dim=dims)
    return torch.fft.fftshift(transform(shifted, dim=dims, norm="ortho"), dim=dims)


@dataclass(frozen=True)
class Encoding:
    """A = M F S for a batch of slices.

    Attributes
    ----------
    maps : (B, R, H, W), coil sensitivities, complex
    mask : (B, 1, 1, W), 1 for a measured line and 0 for others
    """

    maps: Tensor
    mask: Tensor

    def forward(self, image: Tensor) -> Tensor:
        """A X: (B, H, W) → (B, R, H, W)."""
        return self.mask * fourier(self.maps * image[:, None])

    def adjoint(self, data: Tensor) -> Tensor:
        """Aᴴ Y: (B, R, H, W) → (B, H, W)."""
        return (self.maps.conj() * fourier(self.mask * data, inverse=True)).sum(1)

    def normal(self, image: Tensor) -> Tensor:
        """AᴴA X.  The mask is the same on all of a readout, so only W is transformed.

        FᴴMF is a circular convolution, so nothing but the mask needs to be centred.
        """
        lines = torch.fft.fft(self.maps * image[:, None]) * torch.fft.ifftshift(self.mask, dim=-1)
        return (self.maps.conj() * torch.fft.ifft(lines)).sum(1)


def conjugate_gradients(
    encoding: Encoding, target: Tensor, weight: Tensor, start: Tensor, steps: int
) -> Tensor:
    """Solve (AᴴA + weight I) X = target by ``steps`` iterations from ``start``."""
    image = start
    residual = target - encoding.normal(image) - weight * image
    direction = residual
    power = _power(residual)
    for _ in range(steps):
        product = encoding.normal(direction) + weight * direction
        curvature = (direction.conj() * product).real.sum((-2, -1), keepdim=True)
        length = power / curvature.clamp_min(1e-20)
        image = image + length * direction
        residual = residual - length * product
        previous, power = power, _power(residual)
        direction = residual + power / previous.clamp_min(1e-20) * direction
    return image


def gradient_steps(
    encoding: Encoding, target: Tensor, weight: Tensor, start: Tensor, steps: int
) -> Tensor:
    """The same equation by gradient descent, step 1 / (1 + weight).

    It converges where the squares of the sensitivities sum to 1 or less: then ‖AᴴA‖ ≤ 1.
    """
    image = start
    for _ in range(steps):
        slope = encoding.normal(image) + weight * image - target
        image = image - slope / (1 + weight)
    return image


#: name → solver of (AᴴA + weight I) X = target
SOLVERS = {"cg": conjugate_gradients, "gradient": gradient_steps}


def _power(image: Tensor) -> Tensor:
    return (image.real**2 + image.imag**2).sum((-2, -1), keepdim=True)


def centre_lines(mask: NDArray[np.bool_]) -> int:
    """Lines of the fully sampled centre of a mask (W,); 0 where the middle line is missing.

    >>> centre_lines(np.array([0, 0, 1, 1, 1, 0, 1, 0], dtype=bool))
    2
    """
    middle = len(mask) // 2
    if not mask[middle]:
        return 0
    below = int(np.argmin(np.append(mask[:middle][::-1], False)))
    above = int(np.argmin(np.append(mask[middle + 1 :], False)))
    return 2 * min(below, above) + 1 + int(below > above)


def line_mask(
    width: int, acceleration: float, centre: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Random phase-encoding lines and a fully sampled centre: width / acceleration in all.

    Parameters
    ----------
    width : lines of full sampling
    centre : share of the lines that lie in the centre
    """
    mask = np.zeros(width, dtype=bool)
    middle = max(round(width * centre), 1)
    first = width // 2 - middle // 2
    mask[first : first + middle] = True
    more = max(round(width / acceleration) - middle, 0)
    mask[rng.choice(np.flatnonzero(~mask), more, replace=False)] = True
    return mask
