# SPDX-License-Identifier: Apache-2.0
"""Fluid, bone and skin, drawn around a brain that came without them.

What moves in a scanner is a head.  A stripped brain that is moved has nothing but air around it: its
rim fades, no fat sends ghosts into it, and a network that saw only such brains learnt to brighten
every dark rim and to let the ripples of a real scalp be.  So half of the training brains are put
into a head before a fault acts, and taken out of it again.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Array = NDArray[np.float32]

ROOM = 20  # voxels of 0.8 mm around the brain's array
#: brightness in template units (low, high): of fluid in the two contrasts, of bone, marrow and skin
FLUID = {"T1w": (50.0, 300.0), "T2w": (500.0, 950.0)}
BONE, MARROW, SKIN = (0.0, 120.0), (100.0, 500.0), (200.0, 1000.0)
#: thickness in voxels (low, high)
LAYERS = ((0.5, 4.0), (3.0, 8.0), (3.0, 9.0))


def surround(
    brain: Array, mask: NDArray[np.bool_], contrast: str, rng: np.random.Generator
) -> Array:
    """A head with this brain in it, :data:`ROOM` voxels larger at each side.

    Parameters
    ----------
    brain, mask : (X, Y, Z), template units, zero outside the mask
    contrast : ``"T1w"`` or ``"T2w"``: how bright the fluid is
    rng : decides thickness and brightness of the layers

    Returns
    -------
    (X + 2·ROOM, …) float32 array, template units; inside the mask it is the brain
    """
    inside = np.pad(mask, ROOM)
    shape = (inside.shape[0], inside.shape[1], inside.shape[2])
    distance = _distance(inside)
    edges = [np.zeros((), dtype=np.float32)]
    for low, high in LAYERS:
        thickness = float(rng.uniform(low, high)) * (1 + 0.35 * _smooth(shape, rng))
        edges.append(edges[-1] + np.clip(thickness, 0.3, None))
    bone = MARROW if rng.random() < 0.3 else BONE
    values = [float(rng.uniform(*limits)) for limits in (FLUID[contrast], bone, SKIN)]
    head = np.zeros(shape, dtype=np.float32)
    for value, inner, outer in zip(values, edges[:-1], edges[1:], strict=True):
        layer = (distance > inner) & (distance <= outer)
        head = np.where(layer, value * (1 + 0.15 * _smooth(shape, rng)), head)
    head = np.where(inside, values[0], head).astype(np.float32)
    head = scipy.ndimage.gaussian_filter(np.clip(head, 0, None), 0.7)
    return np.where(inside, np.pad(brain, ROOM), head).astype(np.float32)


def take_out(head: Array) -> Array:
    """The part of a head that is the brain's array: undoes the padding of :func:`surround`."""
    return head[ROOM:-ROOM, ROOM:-ROOM, ROOM:-ROOM]


def _distance(inside: NDArray[np.bool_]) -> Array:
    """Distance to the brain in voxels, zero in it; found on every second voxel of each axis."""
    half = scipy.ndimage.distance_transform_edt(~inside[::2, ::2, ::2]) * 2
    return _to_shape(half.astype(np.float32), inside.shape)


def _smooth(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A field of about unit size that changes over a quarter of the head."""
    return _to_shape(rng.standard_normal((6, 6, 6), dtype=np.float32), shape)


def _to_shape(field: Array, shape: tuple[int, ...]) -> Array:
    found = F.interpolate(
        torch.from_numpy(field)[None, None], size=shape, mode="trilinear", align_corners=False
    )
    return np.asarray(found[0, 0].numpy(), dtype=np.float32)
