# SPDX-License-Identifier: Apache-2.0
"""Node of the stage *quality*: figures before and after."""

from __future__ import annotations

import math
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bmex_bids.interfaces.files import data_of, read


class MeasureQualityInput(BaseInterfaceInputSpec):
    before = File(exists=True, mandatory=True, desc="matched image, template units")
    after = File(exists=True, mandatory=True, desc="enhanced image, template units")
    labels = File(exists=True, mandatory=True, desc="0 background, 1 CSF, 2 GM, 3 WM")


class MeasureQualityOutput(TraitedSpec):
    quality = traits.Dict(desc="tct_before, tct_after, qi; None where it cannot be measured")


class MeasureQuality(SimpleInterface):
    """Tissue contrast before and after, and the quality index."""

    input_spec = MeasureQualityInput
    output_spec = MeasureQualityOutput

    def _run_interface(self, runtime: Any) -> Any:
        from bmex_bids.metrics.tissue import quality_index, tct

        before = data_of(read(self.inputs.before))
        after = data_of(read(self.inputs.after))
        labels = data_of(read(self.inputs.labels, "uint8"))
        figures = {
            "tct_before": float(tct(before, labels)),
            "tct_after": float(tct(after, labels)),
            "qi": float(quality_index(before, after, labels)),
        }
        self._results["quality"] = {
            name: value if math.isfinite(value) else None for name, value in figures.items()
        }
        return runtime
