# SPDX-License-Identifier: Apache-2.0
import numpy as np

from bmex_bids.evaluation.harmonisation import SCANNERS, distances
from bmex_bids.training.images import CleanImage


def test_every_pair_of_scanners_has_three_stages_and_matching_brings_them_closer():
    r = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0)
    data = np.select([r < 9, r < 14, r < 18], [600, 400, 200], 0).astype(np.float32)
    clean = CleanImage(
        "x", data, data > 0, np.zeros(data.shape, np.uint8), (0.8, 0.8, 0.8), "month24", "T1w"
    )
    found = list(distances(clean, lambda matched: matched))
    assert len(found) == 3 * len(SCANNERS) * (len(SCANNERS) - 1) // 2
    mean = {
        stage: np.mean([value for _, s, value in found if s == stage])
        for stage in ("degraded", "matched", "enhanced")
    }
    assert mean["matched"] < mean["degraded"]
    assert mean["enhanced"] == mean["matched"]  # nothing was done to it
