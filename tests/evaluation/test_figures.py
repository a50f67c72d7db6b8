# SPDX-License-Identifier: Apache-2.0
import numpy as np

from bmex_bids.evaluation.benchmark import slice_file
from bmex_bids.evaluation.figures import grid
from bmex_bids.evaluation.rows import Row
from bmex_bids.evaluation.summary import Table


def test_the_grid_shows_no_method_that_the_table_does_not_have(tmp_path):
    """A slice of another run's ablation lay there, and was drawn with "nan dB" below it."""
    (tmp_path / "slices").mkdir()
    for cell, method in (
        ("clean", "degraded"),
        ("moderate", "degraded"),
        ("moderate", "ablation"),
        ("moderate", "bmex"),
    ):
        np.save(slice_file(tmp_path, "sub-1", cell, method), np.full((6, 7), 300.0, np.float32))
    table = Table(
        Row("sub-1", "moderate", method, "key", "psnr", value)
        for method, value in (("degraded", 25.0), ("bmex", 28.0))
    )
    figure = grid(table, tmp_path, "sub-1")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["clean", "degraded", "bmex", "error, degraded", "error, bmex"]
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert texts == ["moderate", "25.0 dB", "28.0 dB"]
