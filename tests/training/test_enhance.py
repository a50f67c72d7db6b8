# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch

from bmex_bids.exceptions import UsageError
from bmex_bids.network.models.compact import CompactBMEX
from bmex_bids.training.enhance import EnhanceConfig, freeze_tissues


def test_kept_tissues_do_not_train_and_the_enhancement_does():
    model = CompactBMEX(4, 3)
    torch.nn.init.normal_(model.enhance.head.weight)
    freeze_tissues(model, EnhanceConfig(start_from=Path("some.safetensors"), freeze_tissues=True))
    _, image = model(800 * torch.rand(1, 1, 16, 16, 16))
    image.square().mean().backward()
    changes = {name: value.grad is not None for name, value in model.named_parameters()}
    assert all(changes[name] == name.startswith("enhance.") for name in changes)
    assert len(set(changes.values())) == 2


@pytest.mark.parametrize(
    ("tissue_width", "start_from"), [(0, Path("some.safetensors")), (3, None)]
)
def test_tissues_that_know_nothing_are_not_kept(tissue_width, start_from):
    config = EnhanceConfig(start_from=start_from, freeze_tissues=True)
    with pytest.raises(UsageError, match="trained tissue module"):
        freeze_tissues(CompactBMEX(4, tissue_width), config)
