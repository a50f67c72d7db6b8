# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from bmex_bids.cli import health
from bmex_bids.exceptions import EnvironmentProblem


def test_the_real_networks_enhance_a_small_brain_and_nothing_is_left(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert health.main(["--device", "cpu"]) == 0
    assert "all well" in capsys.readouterr().out
    assert list(tmp_path.glob("bmex-*")) == []


def test_the_phantom_is_small_oblique_and_stored_in_an_odd_order():
    image = health.phantom()
    assert nib.aff2axcodes(image.affine) == ("P", "I", "R")
    assert np.count_nonzero(image.affine[:3, :3]) == 5  # a tilt mixes two axes
    litres = float((np.asarray(image.dataobj) > 0).sum()) * 1.5**3 / 1e6
    assert litres == pytest.approx(4 / 3 * np.pi * 0.24 * 0.29 * 0.26, rel=0.02)


def _enhanced() -> np.ndarray:
    return np.asarray(health.phantom().dataobj).astype(np.float32) / 2


def test_a_sound_result_passes():
    source = health.phantom()
    health.check(source, nib.Nifti1Image(_enhanced(), source.affine))


@pytest.mark.parametrize("fault", ["nan", "empty", "outside", "flipped", "moved"])
def test_a_result_that_is_wrong_is_found(fault):
    source = health.phantom()
    values, affine = _enhanced(), source.affine.copy()
    if fault == "nan":
        values[20, 20, 20] = np.nan
    elif fault == "empty":
        values[:] = 0
    elif fault == "outside":
        values[0, 0, 0] = 1
    elif fault == "flipped":
        values = np.roll(values, 5, axis=0)
    else:
        affine[0, 3] += 1
    with pytest.raises(EnvironmentProblem, match="report it"):
        health.check(source, nib.Nifti1Image(values, affine))


def test_damaged_weights_are_an_error_with_its_exit_code(monkeypatch, tmp_path, capsys):
    import dataclasses

    from bmex_bids.network.weights import registry

    damaged = tmp_path / "weights.safetensors"
    damaged.write_bytes(b"not weights")
    first, *others = registry.bundled()
    monkeypatch.setattr(
        registry, "bundled", lambda: [dataclasses.replace(first, path=damaged), *others]
    )
    assert health.main([]) == 5
    assert "SHA-256" in capsys.readouterr().err
