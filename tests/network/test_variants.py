# SPDX-License-Identifier: Apache-2.0
from pkgutil import resolve_name

import pytest

from bmex_bids.network.variants import VARIANTS, facts
from bmex_bids.network.weights.registry import bundled


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_what_a_record_names_is_there(variant):
    assert callable(resolve_name(variant.build))
    assert variant.rename is None or callable(resolve_name(variant.rename))
    assert facts(variant.name) is variant


def test_every_bundled_set_is_of_a_known_kind():
    assert {record.variant for record in bundled()} <= set(VARIANTS)


def test_an_unknown_kind_is_planned_with_the_most_memory():
    assert facts("another").bytes_per_voxel == max(v.bytes_per_voxel for v in VARIANTS.values())
    assert facts("another").mirrored == ()
