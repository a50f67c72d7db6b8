# SPDX-License-Identifier: Apache-2.0
"""The networks as sequences of layers for :class:`~bmex_bids.network.engine.layers.Layers`.

A program computes what ``network(x)`` computes, over a whole volume, with the arrays and the order
that need the least memory.  A network without a program runs in tiles through its own ``forward``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from bmex_bids.network.devices import native_dtype
from bmex_bids.network.engine.folding import Affine, affine, folded, lift, parameters
from bmex_bids.network.engine.layers import Layers, Patterns, Tally
from bmex_bids.network.engine.pool import Memory
from bmex_bids.network.engine.regions import PERIOD, SLAB, Box, Regions
from bmex_bids.network.models.adunet import ADUNet
from bmex_bids.network.models.bmex import BMEX, CONNECTION
from bmex_bids.network.models.compact import (
    CLASSES,
    DETAIL,
    CompactBMEX,
    HalfUNet,
    Residual,
    shuffle,
    split,
    unshuffle,
)

#: a need that only the cap of the regions limits
FAR = 10**6
RELU = Affine()
#: the image is left out (tissues only) → what is returned is the scores
Program = Callable[[Layers, nn.Module, Tensor, bool], Tensor]


# ------------------------------------------------------------------ the published network
def _adunet(
    run: Layers, net: ADUNet, prefix: str, inputs: list[Tensor], out: Tensor, need: int
) -> None:
    """An ADU-Net: features (D, H, W, C), taken out of the list → ``out`` (D, H, W, classes).

    ``need`` is how far beyond what is wanted the result is needed.  Arrays are let go as soon as
    they have been read for the last time.
    """
    layer = net.get_submodule
    lifted: dict[str, Affine] = {}  # normalisations of features that are stored higher
    width = int(parameters(layer("conv1"))[0].shape[0])
    q, h = width // 4, width // 2

    def norm(name: str) -> Affine:
        return lifted[name] if name in lifted else affine(layer(f"bn{name}"))

    def conv(
        name: str,
        parts: list[Tensor],
        target: Tensor,
        scale: int,
        reach: int = FAR,
        before: str | None = None,
        by: Tensor | None = None,
    ) -> None:
        """``by``: what is stored is higher by that."""
        weight, bias = parameters(layer(f"conv{name}"))
        run.convolve(
            f"{prefix}{name}",
            parts,
            target,
            (weight, bias if by is None else bias + by),
            scale=scale,
            need=reach,
            before=None if before is None else norm(before),
        )

    def ends(name: str, parts: list[Tensor], target: Tensor, reach: int) -> None:
        """A convolution whose batch normalisation and ReLU follow it directly."""
        weights = folded(layer(f"conv{name}"), layer(f"bn{name}"))
        run.convolve(f"{prefix}{name}", parts, target, weights, scale=1, need=reach, relu=True)

    def dense(
        names: tuple[str, str, str, str],
        parts: list[Tensor],
        scale: int,
        widths: tuple[int, int],
        reach: int,
        before: str | None = None,
    ) -> Tensor:
        """Four convolutions whose results lie side by side; ``reach`` is that of the stack."""
        wide, narrow = widths
        voxel = scale  # of the full grid
        stack = run.array(scale, wide + 3 * narrow)
        new_first, carried = names[0] == "6", names[0] == "16"
        start = narrow if new_first else 0
        written, read = [(start, start + wide)], [(start, start + wide)]  # channels, by whom
        for k in (1, 2, 3):
            end = read[-1][1]
            written.append((0, narrow) if new_first and k == 1 else (end, end + narrow))
            read.append((0, max(end, written[-1][1])))
        # the last normalisation of the carried stack reads what is activated, which is not stored higher
        readers = list(zip(names, read, strict=True))[: 3 if carried else 4]
        higher = lift([(layer(f"bn{name}"), span) for name, span in readers], stack.shape[3])
        lifted.update({name: norm(name).lifted(higher[slice(*span)]) for name, span in readers})
        for k, (low, end) in enumerate(written):
            fed = [stack[..., slice(*read[k - 1])]] if k else parts
            ahead = names[k - 1] if k else before
            further = reach + (3 - k) * voxel
            conv(names[k], fed, stack[..., low:end], scale, further, ahead, higher[low:end])
            if k == 0:
                parts.clear()
        if carried:  # the activated stack is handed on, not the raw one
            run.activate(stack[..., slice(*read[2])], scale=scale, need=FAR, before=norm(names[2]))
        return stack

    f = [need + k for k in range(11)]  # full grid: how far each of the last ten layers is needed
    x = run.array(1, width)
    ends("1", inputs, x, FAR)
    inputs.clear()
    stack = dense(("2", "3", "4", "4_1"), [x], 1, (width, q), FAR)
    del x
    skip1 = run.array(1, width)
    conv("5", [stack], skip1, 1, before="4_1")
    del stack
    x = run.array(2, width)
    run.pool(f"{prefix}pool1", skip1, x, scale=2, need=FAR, before=norm("5"))
    stack = dense(("6", "7", "8", "9"), [x], 2, (width, h), FAR)
    skip2 = run.array(2, 2 * width)
    conv("10", [stack], skip2, 2, before="9")
    x = run.array(4, 2 * width)
    run.pool(f"{prefix}pool2", skip2, x, scale=4, need=FAR, before=norm("10"))
    skip3 = run.array(4, 2 * width)
    conv("11", [x], skip3, 4)
    x = run.array(8, 2 * width)
    run.pool(f"{prefix}pool3", skip3, x, scale=8, need=FAR, before=norm("11"))

    def up(name: str, source: Tensor, scale: int, reach: int, before: str | None) -> Tensor:
        weights = parameters(layer(f"deconv{name}"))
        target = run.array(scale, int(weights[0].shape[1]))
        run.upsample(
            f"{prefix}deconv{name}",
            [source],
            target,
            weights,
            scale=scale,
            need=reach,
            before=None if before is None else norm(before),
        )
        return target

    x = up("11", x, 4, FAR, None)
    stack = dense(("12", "13", "14", "15"), [skip3, x], 4, (4 * width, h), FAR)
    del skip3
    x = up("15", stack, 2, FAR, "15")
    # full grid 9 → half grid: one voxel of it (2) more, and two for each of its convolutions
    half = f[9] + 3
    stack = dense(("16", "17", "18", "19"), [skip2, x], 2, (4 * width, h), half + 8)
    del skip2
    stack = dense(("20", "21", "22", "23"), [stack], 2, (4 * width, h), half, "19")
    x = up("23", stack, 1, f[9], "23")
    del stack
    parts = [skip1, x]
    del skip1, x
    stack = dense(("24", "25", "26", "27"), parts, 1, (2 * width, q), f[5])
    stack = dense(("28", "29", "30", "31"), [stack], 1, (width, q), f[1], "27")
    run.convolve(
        f"{prefix}32",
        [stack],
        out,
        folded(layer("conv32"), layer("bn32")),
        scale=1,
        need=f[0],
        before=norm("31"),
        relu=True,
    )


def _bmex(run: Layers, network: nn.Module, x: Tensor, tissues_only: bool) -> Tensor:
    assert isinstance(network, BMEX)  # noqa: S101 - for mypy
    result = run.array(1, CLASSES if tissues_only else CLASSES + 1, torch.float32)
    scores = result[..., :CLASSES]
    # the second network reads the scores as far as its context goes
    _adunet(run, network.tissue, "tissue.", [x], scores, 0 if tissues_only else FAR)
    if tissues_only:
        return result
    features = run.array(1, 2 * CONNECTION, brief=True)
    for name, part, target in (
        ("1", _softmax(run, scores), features[..., :CONNECTION]),
        ("2", x, features[..., CONNECTION:]),
    ):
        run.convolve(
            f"con{name}",
            [part],
            target,
            folded(
                network.get_submodule(f"conv{name}_con"), network.get_submodule(f"bn{name}_con")
            ),
            scale=1,
            need=FAR,
            relu=True,
        )
    inputs = [features]
    del features, part, target
    _adunet(run, network.recon, "recon.", inputs, result[..., CLASSES:], 0)
    return result


def _softmax(run: Layers, scores: Tensor) -> Tensor:
    """Softmax over the channels; the surroundings of the region included.

    Class by class: over the last axis torch takes ten times as long.
    """
    result = run.array(1, CLASSES, torch.float32)

    def work(box: Box) -> None:
        result[box] = torch.softmax(scores[box].movedim(-1, 0).contiguous(), dim=0).movedim(0, -1)

    run.everywhere(1, FAR, work)
    return result


# ------------------------------------------------------------------ the compact network
def _half_unet(run: Layers, net: HalfUNet, prefix: str, x: Tensor, out: Tensor) -> None:
    """A HalfUNet; x and ``out`` are at half resolution, shuffled."""
    w1 = int(parameters(net.stem)[0].shape[0])

    def stack(name: str, part: Tensor, scale: int) -> None:
        middle = run.array(scale, part.shape[3])
        for k, block in enumerate(net.get_submodule(name).children()):
            assert isinstance(block, Residual)  # noqa: S101 - for mypy
            conv = partial(run.convolve, scale=scale, need=FAR, before=RELU)
            label = f"{prefix}{name}.{k}"
            conv(f"{label}.1", [part], middle, parameters(block.conv1))
            conv(f"{label}.2", [middle], part, parameters(block.conv2), add=True)

    a = run.array(2, w1)
    run.convolve(f"{prefix}stem", [x], a, parameters(net.stem), scale=2, need=FAR)
    stack("enc1", a, 2)
    b = run.array(4, 2 * w1)
    run.downsample(f"{prefix}down1", [a], b, parameters(net.down1), scale=4, need=FAR)
    stack("enc2", b, 4)
    c = run.array(8, 4 * w1)
    run.downsample(f"{prefix}down2", [b], c, parameters(net.down2), scale=8, need=FAR)
    stack("mid", c, 8)
    up = partial(run.upsample, need=FAR, add=True)
    up(f"{prefix}up2", [c], b, parameters(net.up2), scale=4)
    stack("dec2", b, 4)
    up(f"{prefix}up1", [b], a, parameters(net.up1), scale=2)
    stack("dec1", a, 2)
    run.convolve(f"{prefix}head", [a], out, parameters(net.head), scale=2, need=FAR, before=RELU)


def _compact(run: Layers, network: nn.Module, x: Tensor, tissues_only: bool) -> Tensor:
    assert isinstance(network, CompactBMEX)  # noqa: S101 - for mypy
    volume = x.permute(3, 0, 1, 2)[None]
    scaled = split(volume)

    def pass_through(net: HalfUNet, prefix: str, fed: Tensor, channels: int) -> Tensor:
        half = unshuffle(fed)[0].permute(1, 2, 3, 0).contiguous()
        out = run.array(2, 8 * channels, torch.float32)
        if run.patterns is not None:
            out.zero_()  # where nothing is computed, nothing is said
        _half_unet(run, net, prefix, half, out)
        return shuffle(out.permute(3, 0, 1, 2)[None])

    if network.tissue is None:
        scores = scaled.new_zeros((1, CLASSES, *scaled.shape[2:]))
    else:
        scores = pass_through(network.tissue, "tissue.", scaled, CLASSES)
    if tissues_only:
        return scores[0].permute(1, 2, 3, 0)
    if network.tissue is not None:
        scaled = torch.cat([scaled, torch.softmax(scores, dim=1)], dim=1)
    correction = pass_through(network.enhance, "enhance.", scaled, 1)
    return torch.cat([scores, volume + correction * DETAIL], dim=1)[0].permute(1, 2, 3, 0)


# ------------------------------------------------------------------ which network has which
_PROGRAMS: dict[type[nn.Module], Program] = {BMEX: _bmex, CompactBMEX: _compact}
_patterns: weakref.WeakKeyDictionary[nn.Module, dict[object, Patterns]] = (
    weakref.WeakKeyDictionary()
)


def has_program(network: nn.Module) -> bool:
    """Whether a network can be run layer by layer."""
    if isinstance(network, CompactBMEX):
        return not any(isinstance(m, nn.GroupNorm) for m in network.modules())
    if isinstance(network, BMEX):  # the Caffe release's pools have no padding
        return not getattr(network, "caffe", False)
    return False


def emptiness(
    network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32
) -> Patterns:
    """What each layer makes of endless zeros; computed once for a network, device and type."""
    known = _patterns.setdefault(network, {})
    if (device, dtype) not in known:
        cube = np.ones((PERIOD,) * 3, bool)
        run = Layers(Regions(cube, whole=True, slab=PERIOD), device, dtype, patterns=None)
        zeros = torch.zeros((*cube.shape, 1), device=device)
        with torch.inference_mode():
            _PROGRAMS[type(network)](run, network, zeros, False)
        known[device, dtype] = run.found
    return known[device, dtype]


def run_program(
    network: nn.Module,
    volume: Tensor,
    regions: Regions,
    *,
    tissues_only: bool = False,
    dtype: torch.dtype = torch.float32,
    winograd: bool = True,
    tally: Tally | None = None,
    memory: Memory | None = None,
) -> Tensor:
    """What a network makes of a volume, where it is wanted.

    Parameters
    ----------
    network : one for which :func:`has_program` holds
    volume : (D, H, W) on the device that is to compute, template units
    regions : of the volume
    tissues_only : leave the image out
    dtype : of the features
    winograd : may be used (a processor, float32)
    tally : the operations are added to it
    memory : of runs before this one, whose results are no longer used (a processor)

    Returns
    -------
    (D, H, W, 5): scores of the 4 classes and the image; (D, H, W, 4) with ``tissues_only``.
    Outside the wanted voxels the values mean nothing.
    """
    patterns = emptiness(network, volume.device, dtype)
    pool = None
    if volume.device.type == "cpu":
        pool = (memory or Memory()).pool(bytes_per_voxel(network, dtype) * volume.numel())
    run = Layers(
        regions, volume.device, dtype, patterns, winograd, memory=pool, tally=tally or Tally()
    )
    program = _PROGRAMS[type(network)]
    with torch.inference_mode(), run:
        return program(run, network, volume[..., None].float(), tissues_only)


def slab(network: nn.Module, device: torch.device) -> int:
    """Planes and rows of a piece: few where the arithmetic counts, more where the calls do.

    Measured on one core in float32: the compact network took 10.7 s with 16, 8.1 s with 32, 7.8 s with
    64; on two cores in bfloat16 the published one 16.6 s with 16, 17.5 s with 24, 18.1 s with 32, 22.6 s
    with 64.  The figure for a GPU is a guess.
    """
    if device.type != "cpu":
        return 64
    return SLAB if isinstance(network, BMEX) else 2 * SLAB


def best_dtype(network: nn.Module, device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware and is the faster for it, else float32.

    On two cores with AMX, matrix products of bfloat16 are six times as fast, and the published network
    gains; the compact one of width 32 took 5.8 s in bfloat16 and 5.0 s in float32, where Winograd saves
    multiplications.  So with the compact one every processor gives the same numbers.
    """
    if device.type == "cpu" and isinstance(network, CompactBMEX):
        return torch.float32
    return native_dtype(device)


def bytes_per_voxel(network: nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Memory that a program takes at its peak for each voxel of the volume."""
    size = torch.empty(0, dtype=dtype).element_size()
    if isinstance(network, BMEX):
        width = int(network.tissue.get_parameter("conv1.weight").shape[0])
        # conv24 reads 2w and writes into 11w/4; beside them image, scores, result
        return size * (2 * width + 11 * width // 4 + 12)
    if isinstance(network, CompactBMEX):
        width = int(network.enhance.get_parameter("stem.weight").shape[0])
        # a, middle, the input and the result at half resolution; b, c; full-size scores and so on
        return size * (2 * width // 8 + 3 * width // 8 + 40)
    raise TypeError(f"expected a network with a program, got {type(network).__name__}")


# ------------------------------------------------------------------ how far a network sees
#: steps of the longest way from the image to the result: how often, and what
Steps = tuple[tuple[int, str], ...]
_ADUNET: Steps = (
    (6, "conv"), (1, "pool"), (5, "conv"), (1, "pool"), (1, "conv"), (1, "pool"),
    (1, "up4"), (4, "conv"), (1, "up4"), (8, "conv"), (1, "up4"), (9, "conv"),
)  # fmt: skip


def receptive_field(network: nn.Module) -> int:
    """Voxels on each side beyond which the image has no influence on a result; exact.

    Nothing is said about how much influence there is within: it falls off long before.
    """
    if isinstance(network, BMEX):
        steps = (*_ADUNET, (1, "conv"), *_ADUNET)
    elif isinstance(network, CompactBMEX):
        tissue = () if network.tissue is None else _half_steps(network.tissue)
        steps = ((2, "conv"), *tissue, *_half_steps(network.enhance))  # type: ignore[assignment]
    else:
        raise TypeError(f"expected a network with a program, got {type(network).__name__}")
    widest = 0
    for place in range(PERIOD, 2 * PERIOD):
        low, high = place, place
        for count, step in reversed(steps):
            for _ in range(count):
                low, high = _BACK[step](low, high)
        widest = max(widest, place - low, high - place)
    return widest


def _half_steps(net: HalfUNet) -> Steps:
    def convs(name: str) -> int:
        return 2 * len(list(net.get_submodule(name).children()))

    return (
        (1, "down2"), (1 + convs("enc1"), "conv"), (1, "down2"), (convs("enc2"), "conv"),
        (1, "down2"), (convs("mid"), "conv"), (1, "up2"), (convs("dec2"), "conv"), (1, "up2"),
        (convs("dec1") + 1, "conv"), (1, "up2"),
    )  # fmt: skip


#: first and last voxel of a result → those of what it is made from
_BACK: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "conv": lambda a, b: (a - 1, b + 1),
    "pool": lambda a, b: (2 * a - 1, 2 * b + 1),
    "down2": lambda a, b: (2 * a, 2 * b + 1),
    "up2": lambda a, b: (a // 2, b // 2),
    # result o has the taps k of the values (o + 1 − k) / 2, k = 0 … 3
    "up4": lambda a, b: (-((2 - a) // 2), (b + 1) // 2),
}
