# SPDX-License-Identifier: Apache-2.0
"""Noise: only what is more than usual is taken off, after everything else or before slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmex_bids.refocus import grain as parts
from bmex_bids.refocus import refocus as module
from bmex_bids.refocus.grain import find_grain
from bmex_bids.refocus.refocus import refocus


@pytest.fixture
def noisy(head):
    """The head, 0…1000, with white noise of 40 units, and that noise."""
    torch.manual_seed(0)
    image = torch.from_numpy(head.image)
    noise = 40 * torch.randn(image.shape)
    return (image + noise).clamp(min=0), noise


def ones(image):
    return torch.ones(image.shape)


def test_strong_noise_is_taken_off(noisy):
    image, noise = noisy
    told = []

    def denoise(_, sigma):
        told.append(sigma)
        return noise

    found = find_grain(image, ones(image), denoise)
    assert told[0] == pytest.approx(40, rel=0.5)
    assert found.share == parts.MOST
    assert found.facts() == {
        "StandardDeviation": round(found.sigma / 10, 2),
        "Removed": parts.MOST,
    }
    assert found.sigma == pytest.approx(40, rel=0.1)
    torch.testing.assert_close(found.undo(image), (image - parts.MOST * noise).clamp(min=0))


def test_between_the_limits_a_part_goes(noisy):
    image, noise = noisy
    whole = find_grain(image, ones(image), lambda *_: noise).sigma
    size = (parts.LITTLE + 0.25 * (parts.MUCH - parts.LITTLE)) / whole
    found = find_grain(image, ones(image), lambda *_: size * noise)
    assert found.share == pytest.approx(0.25 * parts.MOST, abs=0.01)
    torch.testing.assert_close(found.noise, size * noise * found.share)


def test_usual_noise_stays(noisy):
    image, noise = noisy
    assert find_grain(image, ones(image), lambda *_: 0.9 * parts.LITTLE / 45 * noise) is None


def test_a_clean_image_is_not_given_to_the_network():
    smooth = torch.linspace(100, 900, 40).expand(40, 40, 40).contiguous()
    assert find_grain(smooth, ones(smooth), lambda *_: pytest.fail("asked")) is None


def test_outside_the_support_nothing_changes(noisy):
    image, noise = noisy
    support = ones(image)
    support[:10] = 0
    found = find_grain(image, support, lambda *_: noise)
    assert not found.noise[:10].any()
    assert found.noise[20:].any()


@pytest.fixture
def alone(monkeypatch):
    """Nothing but noise is found."""
    monkeypatch.setattr(module, "find", lambda *_: None)
    monkeypatch.setattr(module, "find_thick_slices", lambda *_: None)
    monkeypatch.setattr(module, "without_spikes", lambda image: (image, []))
    monkeypatch.setattr(module, "find_uneven_lines", lambda *_: None)


def test_refocus_takes_it_off_and_tells_it(noisy, alone, head):
    image, _ = noisy
    top = float(np.percentile(image[image > 0], 99.9))
    asked = []

    def denoise(given, sigma):
        asked.append(sigma)
        return torch.full_like(given, 100.0) * torch.sign(torch.randn(given.shape))

    torch.manual_seed(1)
    found = refocus(7 * image.numpy(), head.spacing, denoise=denoise)
    assert found.applied
    assert found.noise["Removed"] == parts.MOST
    assert found.reason.startswith("noise of 1")
    assert len(asked) == 1
    change = np.abs(found.image / 7 - image.numpy()) * 1000 / top
    assert float(np.median(change[image.numpy() > 200])) == pytest.approx(
        100 * parts.MOST, rel=0.01
    )
    assert not refocus(image.numpy(), head.spacing).applied, "without the network noise stays"


def test_after_motion_the_noise_of_what_is_left_is_looked_for(noisy, alone, head, monkeypatch):
    image, noise = noisy
    monkeypatch.setattr(
        module,
        "_without_motion",
        lambda image, *_: module._Mended(2 * image, 0.0, {"PhaseEncodingAxis": 0}),
    )
    monkeypatch.setattr(module, "_in_words", lambda *_: "done")
    seen = []

    def denoise(given, _):
        seen.append(float(given.mean()))
        return noise

    refocus(image.numpy(), head.spacing, denoise=denoise)
    assert seen[1] == pytest.approx(2 * seen[0], rel=1e-3)


def test_slices_that_noise_hides_are_found_without_it(noisy, alone, head, monkeypatch):
    image, noise = noisy
    seen = []

    class Thick:
        def undo(self, given, *_):
            return given + 1

        def facts(self, _):
            return {"Axis": 2, "Thickness": 3.0}

    def find(given, *_):
        seen.append(given)
        return Thick() if len(seen) == 2 else None

    monkeypatch.setattr(module, "find_thick_slices", find)
    asked = []

    def denoise(given, _):
        asked.append(given)
        return noise

    found = refocus(image.numpy(), head.spacing, denoise=denoise)
    assert found.slices == {"Axis": 2, "Thickness": 3.0}
    assert found.noise["Removed"] == parts.MOST
    assert len(asked) == 1, "the noise is taken off once"
    assert float((seen[1] - (seen[0] - parts.MOST * noise).clamp(min=0)).abs().max()) < 1e-3
    assert "slices of 3.0 mm" in found.reason
    assert "noise of" in found.reason
