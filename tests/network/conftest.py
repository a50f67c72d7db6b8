# SPDX-License-Identifier: Apache-2.0
import hashlib

import pytest
from safetensors.torch import save_file

from bmex_bids.network.weights.registry import WeightRecord


@pytest.fixture
def make_record(tmp_path):
    """``make_record(network, "bmex-compact")``: a file with its weights, and their record."""

    def make(network, variant, *, kind="enhance", name="test"):
        path = tmp_path / f"{name}.safetensors"
        save_file({k: v.contiguous() for k, v in network.state_dict().items()}, str(path))
        return WeightRecord(
            name=name,
            kind=kind,
            path=path,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            licence="Apache-2.0",
            source="made by a test",
            description="",
            variant=variant,
            input_units="any",
            age_groups=("month24", "fetal"),
            contrasts=("T1w", "T2w"),
            version="1",
        )

    return make
