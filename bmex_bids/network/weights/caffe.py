# SPDX-License-Identifier: Apache-2.0
"""Read a ``.caffemodel`` without Caffe: a protobuf ``NetParameter``, of which little is needed.

::

    NetParameter.layer (100)  →  LayerParameter: name (1), type (2), blobs (7)
    BlobProto:  shape (7) → dim (1);   data (5) float;   double_data (8);
                num, channels, height, width (1 … 4) where an old Caffe wrote no shape

The wire format is the published one of Protocol Buffers: a field is a key (number and wire type)
and a value; a value of wire type 2 is a length and so many bytes.  Field numbers are those of
Caffe's ``caffe.proto``.  Everything else in the file is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bmex_bids.exceptions import WeightsError
from bmex_bids.network.models.adunet import STEPS

Blob = NDArray[np.float32]
Layers = dict[str, list[Blob]]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED_LENGTHS = {FIXED64: 8, FIXED32: 4}
LAYER, V1_LAYER = 100, 2
LAYER_NAME, LAYER_BLOBS = 1, 7
BLOB_DIMENSIONS, BLOB_DATA, BLOB_SHAPE, BLOB_DOUBLES = (1, 2, 3, 4), 5, 7, 8

#: Caffe's stage of each dense block of ``models.adunet.STEPS``, in which convolutions are numbered
#: 1 … 4, and the pair of layers (BatchNorm, Scale) that closes it
BLOCKS: Mapping[str, tuple[str, str, str]] = {
    "a": ("", "bn2", "scale_conv2"),
    "b": ("conv2a-", "bn4", "scale_conv4"),
    "c": ("conv4-", "conv4_bn", "scale_conv4_fine"),
    "d": ("conv5-", "conv5_bn", "scale_conv5"),
    "e": ("conv5_2-", "conv5_2_bn", "scale_conv5_2"),
    "f": ("conv6-", "conv6_bn", "scale_conv6_fine"),
    "g": ("conv6_2-", "conv6_2_bn", "scale_conv6_2"),
}
#: number → (Convolution, BatchNorm, Scale) outside the dense blocks
SINGLES: Mapping[str, tuple[str, str, str]] = {
    "5": ("conv1c", "bn3", "scale_conv3"),
    "10": ("conv2b", "bn5", "scale_conv5_fine"),
    "11": ("conv3a", "bn6", "scale_conv6"),
    "32": ("conv6_3-Convolution1", "conv6_3-BatchNorm1", "conv6_3-Scale1"),
}
STEM = ("conv1a", "bn1", "scale_conv1")
TISSUE_CONNECTION = (
    "Labelconv6_4-Convolution1",
    "Labelconv6_4-BatchNorm1",
    "Labelconv6_4-Scale1",
)
DECONVOLUTIONS: Mapping[str, str] = {"11": "deconv4", "15": "deconv5", "23": "deconv6"}


# ------------------------------------------------------------------ the wire format
def fields(buffer: memoryview) -> Iterator[tuple[int, int, memoryview | int]]:
    """Each field of a message: its number, wire type and value (an int, or the bytes).

    >>> [(n, kind, bytes(v)) for n, kind, v in fields(memoryview(bytes([0x0A, 2, 65, 66])))]
    [(1, 2, b'AB')]
    >>> list(fields(memoryview(bytes([0x08, 0x96, 0x01]))))
    [(1, 0, 150)]
    """
    place = 0
    while place < len(buffer):
        key, place = varint(buffer, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = varint(buffer, place)
            yield number, kind, value
            continue
        if kind == BYTES:
            length, place = varint(buffer, place)
        elif kind in FIXED_LENGTHS:
            length = FIXED_LENGTHS[kind]
        else:
            raise ValueError(f"a field of wire type {kind} at byte {place}")
        if number == 0 or place + length > len(buffer):
            raise ValueError(f"a field that reaches beyond its message at byte {place}")
        yield number, kind, buffer[place : place + length]
        place += length


def varint(buffer: memoryview, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where the next byte is."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(buffer):
            break
        byte = buffer[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError(f"a number without end at byte {place}")


def read_layers(path: Path) -> Layers:
    """The blobs of each layer that has some, float32, by the layer's name.

    Raises WeightsError where the file is not a ``NetParameter``, is damaged, or has none.
    """
    try:
        layers, old = _layers(memoryview(path.read_bytes()))
    except (ValueError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"{path} cannot be read as a Caffe model ({error}); it is damaged or of another kind; "
            "fetch it again"
        ) from error
    if not layers:
        what = "layers of Caffe's first format only" if old else "none"
        raise WeightsError(f"expected layers with weights in {path}, found {what}")
    return layers


def _layers(buffer: memoryview) -> tuple[Layers, bool]:
    layers: Layers = {}
    old = False
    for number, kind, value in fields(buffer):
        if kind != BYTES or isinstance(value, int):
            continue
        old = old or number == V1_LAYER
        if number != LAYER:
            continue
        name, blobs = "", []
        for part, part_kind, content in fields(value):
            if part_kind == BYTES and not isinstance(content, int):
                if part == LAYER_NAME:
                    name = bytes(content).decode("utf-8")
                elif part == LAYER_BLOBS:
                    blobs.append(_blob(content))
        if blobs:
            layers[name] = blobs
    return layers, old


def _blob(buffer: memoryview) -> Blob:
    shape: list[int] | None = None
    legacy = dict.fromkeys(BLOB_DIMENSIONS, 0)
    parts: list[NDArray[np.floating]] = []
    for number, _, value in fields(buffer):
        if isinstance(value, int):
            if number in legacy:
                legacy[number] = value
        elif number == BLOB_SHAPE:
            shape = _dimensions(value)
        elif number == BLOB_DATA:  # packed, or one number a field
            parts.append(np.frombuffer(value, "<f4"))
        elif number == BLOB_DOUBLES:
            parts.append(np.frombuffer(value, "<f8"))
    data = np.concatenate(parts) if parts else np.zeros(0)
    if shape is None:
        shape = [legacy[number] for number in BLOB_DIMENSIONS]
    if math.prod(shape) != data.size:
        raise ValueError(f"{data.size} numbers in a blob of shape {tuple(shape)}")
    return data.astype(np.float32).reshape(shape)


def _dimensions(buffer: memoryview) -> list[int]:
    sizes: list[int] = []
    for number, _, value in fields(buffer):
        if number != 1:
            continue
        if isinstance(value, int):
            sizes.append(value)
            continue
        place = 0
        while place < len(value):
            size, place = varint(value, place)
            sizes.append(size)
    return sizes


# ------------------------------------------------------------------ names
def layer_names() -> dict[str, tuple[str, ...]]:
    """Our name of each layer → Caffe's names of what makes it up.

    ``conv…`` and ``deconv…`` come from one layer; ``bn…`` from a BatchNorm and a Scale.
    """
    names: dict[str, tuple[str, ...]] = {}

    def put(prefix: str, number: str, conv: str, norm: str, scale: str) -> None:
        names[prefix.format("conv", number)] = (conv,)
        names[prefix.format("bn", number)] = (norm, scale)

    dense = {step.makes: step.layers for step in STEPS if step.kind == "dense"}
    for part, label in (("tissue.", "Label"), ("recon.", "")):
        for block, (stage, norm, scale) in BLOCKS.items():
            numbers = [layer.removeprefix("conv") for layer in dense[block]]
            for k, number in enumerate(numbers, 1):
                inner = (f"{stage}BatchNorm{k}", f"{stage}Scale{k}")
                pair = inner if k < len(numbers) else (norm, scale)
                put(part + "{}{}", number, *(label + n for n in (f"{stage}Convolution{k}", *pair)))
        for number, triple in SINGLES.items():
            put(part + "{}{}", number, *(label + name for name in triple))
        for number, name in DECONVOLUTIONS.items():
            names[f"{part}deconv{number}"] = (label + name,)
    put("tissue.{}{}", "1", *("Label" + name for name in STEM))
    put("{}{}_con", "1", *TISSUE_CONNECTION)
    put("{}{}_con", "2", *STEM)  # the second network has no stem of its own
    return names


def caffe_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.caffemodel`` under our names (see ``network.models.bmex.BMEX``).

    Caffe's BatchNorm holds sums and the factor by which to divide them (blob 2; nought means that
    there was nothing to sum); Scale holds gamma and beta.

    Raises
    ------
    WeightsError
        The file cannot be read, or a layer is missing, surplus or has another number of blobs.
    """
    layers = read_layers(path)
    table = layer_names()
    wanted = {name for names in table.values() for name in names}
    odd = [
        f"{label} {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        for label, names in (
            ("missing", sorted(wanted - set(layers))),
            ("surplus", sorted(set(layers) - wanted)),
        )
        if names
    ]
    if odd:
        raise WeightsError(f"{path.name} does not fit the network 'bmex-caffe': {'; '.join(odd)}")
    state: dict[str, Tensor] = {}
    for ours, names in table.items():
        if len(names) == 1:
            weight, bias = _blobs(path, layers, names[0], 2)
            state[f"{ours}.weight"] = torch.from_numpy(weight)
            state[f"{ours}.bias"] = torch.from_numpy(bias.ravel())
            continue
        mean, variance, factor = _blobs(path, layers, names[0], 3)
        gamma, beta = _blobs(path, layers, names[1], 2)
        divide = float(factor.ravel()[0]) if factor.size else 0.0
        share = np.float32(0 if divide == 0 else 1 / divide)
        state[f"{ours}.weight"] = torch.from_numpy(gamma.ravel())
        state[f"{ours}.bias"] = torch.from_numpy(beta.ravel())
        state[f"{ours}.running_mean"] = torch.from_numpy(mean.ravel() * share)
        state[f"{ours}.running_var"] = torch.from_numpy(variance.ravel() * share)
        state[f"{ours}.num_batches_tracked"] = torch.tensor(0)
    return state


def _blobs(path: Path, layers: Layers, name: str, count: int) -> list[Blob]:
    if len(layers[name]) != count:
        raise WeightsError(
            f"expected {count} blobs in the layer {name!r} of {path.name}, got "
            f"{len(layers[name])}; is this a file of another network?"
        )
    return layers[name]
