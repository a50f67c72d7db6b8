# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from safetensors.torch import save_file

from bmex_bids.cli.train import build_parser, main, settings
from bmex_bids.exceptions import UsageError
from bmex_bids.network.inference.stripper import brain_probability
from bmex_bids.network.models.compact import HalfUNet
from bmex_bids.network.weights import registry
from bmex_bids.network.weights.checkpoints import load_network
from bmex_bids.settings import dumps
from bmex_bids.training.enhance import EnhanceConfig
from bmex_bids.training.images import TRAINING_MAPS, VALIDATION_MAPS
from bmex_bids.training.strip import StripConfig


def asked(*arguments, network="strip"):
    return build_parser().parse_args([network, "--data", "D", "--out", "O", *arguments])


def test_flags_overrule_the_file_which_overrules_the_defaults(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("width = 12\nblocks = 3\n[schedule]\nsteps = 77\nrate = 1e-4\n")
    config = settings(asked("--config", str(file), "--blocks", "1", "--steps", "5"), StripConfig())
    assert (config.width, config.blocks) == (12, 1)
    assert (config.schedule.steps, config.schedule.rate) == (5, 1e-4)
    assert config.schedule.batch == StripConfig().schedule.batch


def test_real_heads_are_for_stripping_alone():
    flags = ("--heads", "H", "--masks", "M")
    config = settings(asked(*flags), StripConfig())
    assert (config.heads, config.masks) == (Path("H"), Path("M"))
    with pytest.raises(UsageError, match="heads, masks is not for"):
        settings(asked(*flags), EnhanceConfig())


@pytest.mark.parametrize("default", [StripConfig(), EnhanceConfig()])
def test_the_settings_of_a_run_give_the_same_run(default, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(dumps(default))
    assert settings(asked("--config", str(file)), default) == default


def test_what_is_not_for_this_network_is_refused(tmp_path):
    with pytest.raises(UsageError, match="tissue_width"):
        settings(asked("--without-tissues"), StripConfig())
    with pytest.raises(UsageError, match="expected settings"):
        settings(asked("--config", str(tmp_path / "nowhere")), StripConfig())
    assert settings(asked("--without-tissues"), EnhanceConfig()).tissue_width == 0


def test_faults_are_told_in_one_line(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["strip", "--data", str(tmp_path), "--out", out, "--steps", "0"]) == 2
    assert "at least one step" in capsys.readouterr().err
    assert main(["strip", "--data", str(tmp_path), "--out", out, "--steps", "1"]) == 2
    assert "label maps" in capsys.readouterr().err


@pytest.fixture
def label_maps(tmp_path):
    """Twenty heads of nested balls, 1 mm."""
    x, y, z = np.meshgrid(*[np.arange(n) - n / 2 for n in (56, 60, 54)], indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    labels = np.select([radius < 12, radius < 18, radius < 22, radius < 26], [2, 3, 24, 502], 0)
    for name in TRAINING_MAPS + VALIDATION_MAPS:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(labels.astype(np.int16), np.eye(4)), path)
    return tmp_path / "data"


def test_a_stripping_network_trains_and_strips(label_maps, tmp_path, capsys):
    """The whole way: label maps, weights that are grown and trained, and the stripper that reads them."""
    begun = tmp_path / "begun.safetensors"
    first = HalfUNet(1, 1, 4, blocks=1, norm=True)
    save_file(first.state_dict(), begun)
    out = tmp_path / "out"
    small = tmp_path / "small.toml"
    small.write_text("width = 6\nblocks = 1\nchunk = 2\n")
    flags = ["--steps", "2", "--batch", "1", "--validate-every", "2", "--threads", "1"]
    given = ["--data", str(label_maps), "--out", str(out), "--start-from", str(begun), *flags]
    assert main(["strip", *given, "--config", str(small)]) == 0
    weights = out / "strip.safetensors"
    assert str(weights) in capsys.readouterr().out
    trained = load_network(weights, "bmex-strip")
    assert trained.head.weight.abs().max() > 0  # it has learnt something
    assert trained.stem.out_channels == 6
    header, row = (out / "log.csv").read_text().splitlines()
    assert header == "step,minutes,loss,rate,Dice,worst"
    assert row.startswith("2,")
    assert "steps = 2" in (out / "config.toml").read_text()
    (bundled,) = (record for record in registry.bundled() if record.kind == "strip")
    record = replace(bundled, path=weights)
    found = brain_probability(
        np.ones((20, 21, 22), np.float32), (2.0,) * 3, record, device="cpu", threads=1
    )
    assert 0 < found.min() < found.max() < 1
