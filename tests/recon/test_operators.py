# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from bmex_bids.recon.operators import (
    Encoding,
    centre_lines,
    conjugate_gradients,
    fourier,
    gradient_steps,
    line_mask,
)


def drawn(*shape, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    return torch.from_numpy(values.astype(np.complex128))


@pytest.fixture
def encoding():
    maps = drawn(2, 3, 8, 10)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    rng = np.random.default_rng(1)
    masks = np.stack([line_mask(10, 2, 0.2, rng) for _ in range(2)])
    return Encoding(maps, torch.from_numpy(masks[:, None, None].astype(np.float64)))


def test_the_adjoint_is_the_adjoint(encoding):
    x, y = drawn(2, 8, 10, seed=2), drawn(2, 3, 8, 10, seed=3)
    left = (encoding.forward(x).conj() * y).sum()
    right = (x.conj() * encoding.adjoint(y)).sum()
    assert torch.allclose(left, right, rtol=1e-12)
    assert abs(left) > 1


def test_the_normal_operator_is_the_adjoint_of_the_forward_model(encoding):
    x = drawn(2, 8, 10, seed=2)
    assert torch.allclose(encoding.normal(x), encoding.adjoint(encoding.forward(x)))


def test_both_solvers_reach_one_fixed_point(encoding):
    target, weight = drawn(2, 8, 10, seed=4), torch.tensor(0.1, dtype=torch.float64)
    start = torch.zeros_like(target)
    by_cg = conjugate_gradients(encoding, target, weight, start, 60)
    by_gradient = gradient_steps(encoding, target, weight, start, 600)
    again = encoding.normal(by_cg) + weight * by_cg
    assert torch.allclose(again, target, atol=1e-9)
    assert torch.allclose(by_gradient, by_cg, atol=1e-9)


def test_the_transform_is_that_of_sigpy():
    sigpy = pytest.importorskip("sigpy")
    image = drawn(5, 6)
    assert np.allclose(fourier(image).numpy(), sigpy.fft(image.numpy()))


def test_a_mask_has_its_lines_and_its_centre():
    mask = line_mask(192, 4, 0.08, np.random.default_rng(0))
    assert mask.sum() == 48
    assert centre_lines(mask) >= 15
    assert mask[89:104].all()


@pytest.mark.parametrize(
    ("mask", "lines"), [("0110", 2), ("1111", 4), ("11011", 0), ("01110", 3), ("00110", 1)]
)
def test_the_centre_is_as_wide_on_either_side(mask, lines):
    assert centre_lines(np.array(list(mask)) == "1") == lines
