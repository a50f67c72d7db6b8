# SPDX-License-Identifier: Apache-2.0
"""A 3×3×3 convolution with a quarter of the multiplications (Winograd; Lavin & Gray, CVPR 2016).

Two of the three axes are transformed, in blocks of 4 results from 6 values; the third is summed
tap by tap.  For one axis, with data d0…d5 and taps g0…g2::

    y = Aᵀ [ (G g) ⊙ (Bᵀ d) ]        4 results, 6 products instead of 12

On two axes 36 products make 16 results of 9 taps each (144 products).  The products of all
channels are matrix products, which processors do best.  Rounding grows by a small factor: to
about 1e-5 of the largest result in float32, where plain summation has some 2e-6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bmex_bids.network.engine.pool import Workspace

BLOCK = 4  # results of a block, each axis
SPAN = BLOCK + 2  # values they are made from

#: G of F(4, 3) at the points 0, ±1, ±2, ∞
_G = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)


def transform_weight(weight: Tensor) -> Tensor:
    """(out, in, 3, 3, 3) → (3, 36, in, out): tap of the last axis, product, matrix."""
    g = torch.tensor(_G, dtype=weight.dtype, device=weight.device)
    # (a, kd) (b, kh): o i kd kh kw → kw (a b) i o
    first = torch.einsum("ad,oidhw->oiahw", g, weight)
    both = torch.einsum("bh,oiahw->wabio", g, first)
    return both.reshape(3, SPAN * SPAN, weight.shape[1], weight.shape[0]).contiguous()


def values_needed(depth: int, height: int, width: int, channels: int) -> int:
    """Numbers in the larger of the two work arrays, for results (depth, height, width)."""
    return SPAN * SPAN * (depth // BLOCK) * (height // BLOCK) * (width + 2) * channels


def _data_transform(d: list[Tensor], r: list[Tensor], spare: tuple[Tensor, Tensor]) -> None:
    """r = Bᵀ d, six arrays each; two spare arrays of the same shape."""
    one, two = spare
    torch.add(d[4], d[2], alpha=-4, out=one)
    torch.add(d[3], d[1], alpha=-4, out=two)
    torch.add(one, two, out=r[1])
    torch.sub(one, two, out=r[2])
    torch.sub(d[4], d[2], out=one)
    torch.sub(d[3], d[1], out=two)
    torch.add(one, two, alpha=2, out=r[3])
    torch.add(one, two, alpha=-2, out=r[4])
    torch.sub(d[5], d[3], out=r[5]).add_(two, alpha=-4)
    torch.sub(d[2], d[0], out=two)
    torch.add(one, two, alpha=-4, out=r[0])


def _result_transform(m: list[Tensor], y: list[Tensor], spare: tuple[Tensor, Tensor]) -> None:
    """y = Aᵀ m, four arrays from six; two spare arrays of the same shape."""
    one, two = spare
    torch.sub(m[1], m[2], out=one)
    torch.sub(m[3], m[4], out=two)
    torch.add(one, two, alpha=2, out=y[1])
    torch.add(one, two, alpha=8, out=y[3]).add_(m[5])
    torch.add(m[1], m[2], out=one)
    torch.add(m[3], m[4], out=two)
    torch.add(one, two, alpha=4, out=y[2])
    torch.add(m[0], one, out=y[0]).add_(two)


def convolve(x: Tensor, weight: Tensor, out: Tensor, work: Workspace) -> None:
    """Convolve without padding, channels last.

    Parameters
    ----------
    x : (D + 2, H + 2, W + 2, in), contiguous; D and H multiples of 4
    weight : from :func:`transform_weight`
    out : (D, H, W, out), written to; any strides but one for channels
    work : lends the arrays in between
    """
    depth, height, width, c_out = out.shape
    c_in = x.shape[3]
    td, th, w2 = depth // BLOCK, height // BLOCK, width + 2
    # first axis: blocks of six planes, four apart
    planes = [x[k : k + depth : BLOCK] for k in range(SPAN)]
    first = work.take("first", (SPAN, td, height + 2, w2, c_in))
    spare = work.take("spare", (2, td, height + 2, w2, c_in))
    _data_transform(planes, list(first), (spare[0], spare[1]))
    # second axis
    values = work.take("values", (SPAN, SPAN, td, th, w2, c_in))
    rows = [first[:, :, k : k + height : BLOCK] for k in range(SPAN)]
    spare = work.take("spare", (2, SPAN, td, th, w2, c_in))
    _data_transform(rows, [values[:, k] for k in range(SPAN)], (spare[0], spare[1]))
    # products, tap after tap of the third axis: rows of the matrix are moved by one voxel each;
    # the last two of each line mix lines, and are left out below
    lines = td * th * w2
    matrix = values.view(SPAN * SPAN, lines, c_in)
    product = work.take("product", (SPAN * SPAN, lines, c_out))
    used = product[:, : lines - 2]
    torch.bmm(matrix[:, : lines - 2], weight[0], out=used)
    for tap in (1, 2):
        used.baddbmm_(matrix[:, tap : lines - 2 + tap], weight[tap])
    grid = product.view(SPAN, SPAN, td, th, w2, c_out)[..., :width, :]
    # back: second axis, then first
    half = work.take("first", (BLOCK, SPAN, td, th, width, c_out))
    spare = work.take("spare", (2, SPAN, td, th, width, c_out))
    _result_transform([grid[:, k] for k in range(SPAN)], list(half), (spare[0], spare[1]))
    spare = work.take("spare", (2, BLOCK, td, th, width, c_out))
    # out: (td, 4, th, 4, width, c) → for each of the four planes (4 of the second axis, td, th, …)
    blocks = out.unflatten(1, (th, BLOCK)).unflatten(0, (td, BLOCK))
    planes_out = [blocks[:, k].permute(2, 0, 1, 3, 4) for k in range(BLOCK)]
    _result_transform([half[:, k] for k in range(SPAN)], planes_out, (spare[0], spare[1]))
