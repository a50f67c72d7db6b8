# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from bmex_bids.running import single


@pytest.mark.parametrize(("asked", "given"), [(None, 2), (1, 1), (2, 2), (10**12, 2)])
def test_one_image_takes_no_more_threads_than_there_are(tmp_path, monkeypatch, asked, given):
    monkeypatch.setattr(single, "available_cpus", lambda: 2)
    request = single.Request(
        tmp_path / "head.nii", "T1w", 6.0, settings={"omp_nthreads": asked, "weights": "auto"}
    )
    assert single.configuration(request, tmp_path).resources.omp_nthreads == given
