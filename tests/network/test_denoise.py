# SPDX-License-Identifier: Apache-2.0
"""The network that tells noise: blocks as channels, tiles, turns, and its file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from bmex_bids.network.inference import denoise as module
from bmex_bids.network.inference.denoise import noise_of
from bmex_bids.network.models.denoise import DenoiseNet, build, gathered, spread_out
from bmex_bids.network.weights.registry import bundled_of, unregistered


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = DenoiseNet((8, 12))
    for block in (made.before, made.after, *made.deep):
        torch.nn.init.normal_(block.second.weight, std=0.05)
    torch.nn.init.normal_(made.conclude.weight, std=0.1)
    return made.eval()


@pytest.fixture
def record(network, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "native_dtype", lambda _: torch.float32)
    path = tmp_path / "denoise.safetensors"
    save_file(network.state_dict(), path)
    return unregistered(path, "bmex-denoise")


def test_a_file_says_the_widths(network):
    again = build(network.state_dict())
    again.load_state_dict(network.state_dict())
    assert again.conclude.in_channels == 8
    assert again.down.out_channels == 12


def test_blocks_become_channels_and_back():
    image = torch.rand(2, 1, 8, 4, 6)
    parts = gathered(image)
    assert parts.shape == (2, 8, 4, 2, 3)
    assert parts[1, :, 2, 1, 0].tolist() == image[1, 0, 4:6, 2:4, 0:2].flatten().tolist()
    assert torch.equal(spread_out(parts), image)


def test_an_untrained_network_finds_no_noise():
    noise = DenoiseNet()(500 * torch.rand(1, 1, 8, 8, 8), torch.tensor([20.0]))
    assert not noise.any()


def test_odd_sizes_and_every_turn(record, network, monkeypatch):
    torch.manual_seed(1)
    image = 100 + 500 * torch.rand(13, 10, 15)
    monkeypatch.setattr(module, "TURNS", (((1, 2, 0), (0,)),))
    padded = torch.nn.functional.pad(image.permute(1, 2, 0).flip(0), (0, 3, 0, 1, 0, 2))
    with torch.no_grad():
        expected = network(padded[None, None], torch.tensor([20.0]))[0, 0, :10, :15, :13]
    found = noise_of(image, 20.0, record=record)
    torch.testing.assert_close(found, expected.flip(0).permute(2, 0, 1))


def test_the_mean_of_turns_is_taken(record, monkeypatch):
    image = 100 + 500 * torch.rand(12, 12, 12)
    parts = []
    for turn in module.TURNS:
        monkeypatch.setattr(module, "TURNS", (turn,))
        parts.append(noise_of(image, 20.0, record=record))
    monkeypatch.undo()
    monkeypatch.setattr(module, "native_dtype", lambda _: torch.float32)
    torch.testing.assert_close(
        noise_of(image, 20.0, record=record), torch.stack(parts).mean(0), rtol=1e-3, atol=1e-2
    )
    assert float((parts[0] - parts[1]).abs().max()) > 1e-3


def test_tiles_are_the_whole(record, monkeypatch):
    torch.manual_seed(2)
    image = 100 + 500 * torch.rand(64, 8, 8)
    whole = noise_of(image, 20.0, record=record)
    monkeypatch.setattr(module, "TILE", 48 * 64)
    # what lies farther than the network sees is of no account
    torch.testing.assert_close(noise_of(image, 20.0, record=record), whole, rtol=1e-3, atol=0.05)


def test_where_nothing_is_there_is_no_noise(record):
    assert not noise_of(torch.zeros(16, 16, 16), 20.0, record=record).any()


def test_another_network_is_refused():
    with pytest.raises(TypeError, match="expected a network that tells noise"):
        noise_of(torch.ones(8, 8, 8), 20.0, record=bundled_of("score"))


def test_the_bundled_network_takes_noise_off_a_ball():
    """Of white noise in a smooth ball, most goes."""
    torch.manual_seed(3)
    x, y, z = torch.meshgrid(*[torch.arange(40.0) - 19.5] * 3, indexing="ij")
    radius = (x**2 + y**2 + z**2).sqrt()
    truth = 300 + 300 * torch.sigmoid((12 - radius) / 1.5)
    image = truth + 25 * torch.randn(truth.shape)
    record = bundled_of("denoise")
    assert record is not None
    clean = image - noise_of(image, 25.0, record=record)
    inner = (slice(4, -4),) * 3
    assert float((clean - truth)[inner].std()) < 0.5 * float((image - truth)[inner].std())
