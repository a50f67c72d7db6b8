# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
import torch

from bmex_bids.cli import evaluate
from bmex_bids.cli.evaluate_speed import network_line, plain_line, reference_line
from bmex_bids.evaluation import speed
from bmex_bids.network.models.bmex import from_published
from bmex_bids.network.weights.checkpoints import load_network


def test_the_synthetic_brain_fills_its_box():
    data, mask = speed.synthetic_brain((24, 32, 16))
    assert data.shape == (24, 32, 16)
    assert 0.45 < mask.mean() < 0.6  # an ellipsoid has pi / 6 of its box
    assert all(mask.any(axis=tuple({0, 1, 2} - {k})).all() for k in range(3))
    assert not data[~mask].any()
    assert (data[mask] > 0).all()
    np.testing.assert_array_equal(data, speed.synthetic_brain((24, 32, 16))[0])


def test_the_reference_has_as_many_patches_as_counted_by_hand():
    mask = np.zeros((200, 220, 200), bool)
    mask[20:180, 10:202, 20:180] = True  # 160, 192, 160 and 10: 170, 202, 170
    # first voxels 0, 18 … 126 and 130; 0, 18 … 144 … 162
    assert speed.patch_count(mask) == 9 * 10 * 9
    mask[:] = False
    mask[5, 5, 5] = True
    assert speed.patch_count(mask) == 1


@pytest.mark.parametrize("name", ["tissue.conv4_1.bias", "recon.bn2.weight", "conv2_con.weight"])
def test_published_names_are_turned_back(name):
    assert from_published(speed.published_name(name)) == name


def test_random_weights_are_a_published_file():
    with speed.random_weights(4) as record:
        network = load_network(record.path, record.variant)
        assert network.tissue.conv1.weight.shape[0] == 4
        sums = record.sha256
    with speed.random_weights(4) as record:
        assert record.sha256 == sums


def test_the_rate_of_matrix_products_by_hand():
    """Three products take 2, 2 and 1 seconds of this clock, which is as long as was asked for."""
    ticks = iter([0, 2, 10, 12, 20, 21])
    rate = speed.matrix_rate(torch.float32, lambda: next(ticks), size=8, seconds=4.5)
    assert rate == speed.MatrixRate(2 * 8**3 / 1e9 / 2, 2 * 8**3 / 1e9)


def test_memory_that_was_held_is_seen():
    with speed.peak_memory() as peak:
        before = peak()
        held = np.ones(2**25, np.float64)  # 256 MiB
        after = peak()
    assert held.all()
    assert after - before > 200 * 2**20


def test_a_row_and_its_line_by_hand():
    row = speed.NetworkRow(
        weights="w", patches=810, patches_timed=3, reference_s=1500.0, first_s=60.0, fast_s=50.0,
        fast_peak_gb=5.0, tflop=4.0, precision="float32",
        rate=speed.MatrixRate(100.0, 125.0),
    )  # fmt: skip
    line = network_line(row)
    assert "60.0 s   50.0 s" in line
    assert "100 (125)" in line
    assert "80 GFLOP/s   80%" in line
    assert "NOT" not in line
    slow = replace(row, rate=speed.MatrixRate(1000.0, 1000.0))
    assert "NOT reached" in network_line(slow)
    assert "1500 s" in reference_line(row)
    assert "GFLOP" not in network_line(replace(row, tflop=0.0))
    assert "12.5 s, after 40 s of compiling" in plain_line(speed.PlainRow("x", 12.5, 40.0))


def test_plain_torch_is_timed_and_compiled_where_there_is_a_compiler(tiny_records, monkeypatch):
    """Each forward pass takes one tick of this clock, the first compiled one two more."""
    data, mask = speed.synthetic_brain((16, 16, 16))
    ticks, calls = [0.0], []

    def compiled(network):
        def forward(x):
            calls.append(x.dtype)
            ticks[0] += 3.0 if len(calls) == 1 else 1.0
            return network(x)

        return forward

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(speed.shutil, "which", lambda name: f"/usr/bin/{name}")
    how = {"threads": 1, "clock": lambda: ticks[0]}
    rows = list(speed.plain_rows(tiny_records[0], data, mask, **how))
    assert [row.name for row in rows] == ["plain bfloat16, whole box", "torch.compile, bfloat16"]
    assert rows[0].compile_s is None
    assert (rows[1].seconds, rows[1].compile_s) == (1.0, 2.0)
    assert calls == [torch.bfloat16] * 2
    monkeypatch.setattr(speed.shutil, "which", lambda _: None)
    assert len(list(speed.plain_rows(tiny_records[0], data, mask, **how))) == 1


def test_the_command_prints_its_table(capsys, monkeypatch):
    monkeypatch.setattr(speed.shutil, "which", lambda _: None)  # nothing is compiled
    code = evaluate.main(
        ["speed", "--width", "4", "--patches", "1", "--shape", "24", "24", "24", "--threads", "1",
         "--parts", "network,n4", "--clock", "cpu"]
    )  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    assert "random, w = 4" in out
    assert "processor seconds" in out
    assert "plain bfloat16, whole box" in out
    assert "the mean of 1 timed patches of 40³ × their number, 1" in out
    assert "N4: shrunk" in out


def test_an_unknown_part_is_refused(capsys):
    assert evaluate.main(["speed", "--parts", "network,x"]) == 2
    assert "got x" in capsys.readouterr().err


def test_agreement_of_a_network_with_itself(tiny_records):
    data, mask = speed.synthetic_brain((32, 32, 32))
    found = speed.agreement(data, mask, tiny_records[0], "ball", threads=1)
    assert found.psnr_db > 60  # untrained: it returns its input
    assert found.same_labels == 1


def test_without_the_data_it_is_told_where_to_give_them(tmp_path):
    with pytest.raises(Exception, match="--data"):
        speed.real_brain(tmp_path)
