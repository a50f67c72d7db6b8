# SPDX-License-Identifier: Apache-2.0
"""The limits of the quality gate, a constant a rule; ``docs/quality-gate.md`` explains the rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["pass", "warn", "fail"]
#: from good to bad
VERDICTS: tuple[Verdict, ...] = ("pass", "warn", "fail")


@dataclass(frozen=True)
class Limits:
    """From where a value is odd, and from where it is wrong; a limit itself is still allowed.

    ``None`` is no limit.
    """

    fail_below: float | None = None
    warn_below: float | None = None
    warn_above: float | None = None
    fail_above: float | None = None

    def verdict(self, value: float) -> Verdict:
        """The verdict on a finite value."""
        for verdict, low, high in (
            ("fail", self.fail_below, self.fail_above),
            ("warn", self.warn_below, self.warn_above),
        ):
            if (low is not None and value < low) or (high is not None and value > high):
                return verdict  # type: ignore[return-value]
        return "pass"

    def is_below(self, value: float) -> bool:
        """Whether a value that was not passed is too low (else it is too high)."""
        lowest = self.warn_below if self.warn_below is not None else self.fail_below
        return lowest is not None and value < lowest


#: The limits of a volume for an age are wide already (they catch what is no brain, not a brain
#: that is unusual), so a mask beyond them by this much of a limit is wrong, and in between is odd.
VOLUME_SLACK = 0.2

#: A brain is one piece.  A detached cerebellum or a speck makes a few; a mask in crumbs is noise.
COMPONENTS = Limits(warn_above=1, fail_above=10)

#: Share of the mask's surface on the border of the field of view.  A tightly cropped brain touches
#: each of six faces with a cap one voxel deep, together some 4 %: odd, not wrong.  At 10 % a flat
#: cut goes through the brain (a 2 cm slice of an adult's vertex is 11 %), or the mask is no brain.
BORDER_CONTACT = Limits(warn_above=0.02, fail_above=0.10)

#: Share of the mask where the image shows nothing.  The ten have 0.1 to 0.8 %; a mask that is off by
#: a tenth of the brain has 15 % in an image without a skull, one off by half of it 54 % and more.
EMPTY_SHARE = Limits(warn_above=0.03, fail_above=0.10)

#: Largest relative change of a tissue's volume, of what the enhanced image shows against its
#: input. The ten change by up to 2.8 %. Beyond 15 % a study of volumes would measure the
#: enhancement (heavy noise in a newborn's image: 23 %), and beyond 40 % tissue was invented or
#: taken away (a blur of two voxels: 95 %).
TISSUE_CHANGE = Limits(warn_above=0.15, fail_above=0.40)
#: The same of the written maps, against the image as it came.  They differ where a fault of the
#: read-out was undone: tissues under stripes or ghosts are wrong before, so this never fails.
WRITTEN_CHANGE = Limits(warn_above=0.15)
#: A tissue that is a smaller share of the brain than this is compared with this share: what
#: doubles from one per cent to two has not changed the brain.
SMALL_TISSUE = 0.05

#: Correlation of the enhanced image with the network's input inside the mask.  The ten have 0.984
#: and more; a newborn under noise of twice its own SD, mended, still has 0.92.  Below 0.5 the two
#: share less than a quarter of their variance: another picture (a brain flipped left to right, 0.3).
CORRELATION = Limits(warn_below=0.85, fail_below=0.50)

#: Mean of the enhanced image over that of the input, less 1.  Noise, motion and blur hardly move a
#: brain's mean, so nor should mending them: the ten change by 0.5 % at most.  Intensities are
#: harmonised before the network, not by it.
MEAN_SHIFT = Limits(fail_below=-0.20, warn_below=-0.05, warn_above=0.05, fail_above=0.20)

#: Tissue contrast.  Clean brains have 0.27 (a fetus) and more; at 0.25 grey and white matter overlap
#: so much that tissues, and every figure that is made with them, mean little.
TCT_BEFORE = Limits(warn_below=0.25)
#: The result has to be better than that: at 0.1 it shows no tissues at all (noise has 0.00, a brain
#: flipped left to right 0.2).
TCT_AFTER = Limits(fail_below=0.10, warn_below=0.25)

#: Contrast before over contrast after; 0.89 to 1.00 for the ten.  Above 1, enhancement has cost
#: contrast: two per cent is noise of the figure, a quarter is harm.  Below 0.5 the contrast has
#: doubled, so the input was poor and much of the result is the network's knowledge, not the scan's;
#: below 0.2 the result is a drawing of the labels (the tissues' means, painted: 0.05 to 0.12).
QUALITY_INDEX = Limits(fail_below=0.20, warn_below=0.50, warn_above=1.02, fail_above=1.25)


#: Skewness of what differs from its surroundings: below 0 where fluid is darker than tissue, above
#: where it is brighter (:mod:`bmex_bids.metrics.contrast`).  T1w images of all ages have -0.3 and
#: less, T2w images 0.26 and more; noise brings both nearer to 0.
FLUID_CONTRAST = {
    "T1w": Limits(warn_above=0.0, fail_above=0.15),
    "T2w": Limits(fail_below=-0.15, warn_below=0.0),
    "FLAIR": Limits(warn_above=0.0, fail_above=0.15),
}
#: How much better the average brain fits turned by right angles than as the header says
#: (:mod:`bmex_bids.imaging.likeness`), 0 where no turn is clearly better.
ORIENTATION = Limits(fail_above=0.0)


#: Largest share of the mask's surface in one plane.  Brains have 0.01 to 0.03, halves of them 0.17
#: and more, along any axis.
FLAT_FACE = Limits(warn_above=0.05, fail_above=0.10)

#: How much deeper white matter lies than grey matter, over the mean depth
#: (:mod:`bmex_bids.metrics.anatomy`).
WHITE_DEPTH = Limits(fail_below=0.0, warn_below=0.03)
#: Of a fetus, whose deep grey matter is large beside a thin cortex: atlases have -0.19 to 0.29.
FETAL_WHITE_DEPTH = Limits(fail_below=-0.30, warn_below=-0.25)

#: Smallest step between tissues in the order of brightness, over the brain's mean.
BRIGHTNESS_ORDER = Limits(fail_below=0.0, warn_below=0.02)

#: Severity of motion by the network that scores: 1.5 and more is moderate or worse.  The input may
#: have it, since that is what is mended; 2.5 and more is severe.
MOTION_BEFORE = Limits(warn_above=2.5)
MOTION_AFTER = Limits(warn_above=1.5)

#: Shares of the tissues from an age in months on.  From one year: label maps of 20 adults, and the
#: bundled network in brains of one to 52 years.  Before: grey to white matter is 1.2 to 2.5 in the
#: first year (Gilmore et al., Cereb. Cortex 2012; Bethlehem et al., Nature 2022), so that white
#: matter is a fifth of the brain at least.
SHARES: tuple[tuple[float, Mapping[str, Limits]], ...] = (
    (
        12.0,
        {
            "CSF": Limits(warn_above=0.32, fail_above=0.40),
            "GM": Limits(fail_below=0.20, warn_below=0.30, warn_above=0.68, fail_above=0.80),
            "WM": Limits(fail_below=0.12, warn_below=0.20, warn_above=0.55, fail_above=0.65),
        },
    ),
    (
        0.0,
        {
            "CSF": Limits(warn_above=0.35, fail_above=0.45),
            "GM": Limits(fail_below=0.20, warn_below=0.30, warn_above=0.80, fail_above=0.95),
            "WM": Limits(fail_below=0.03, warn_below=0.15, warn_above=0.55, fail_above=0.65),
        },
    ),
)
#: From label maps of 21 to 34 weeks of gestation, some of them with wide ventricles.
FETAL_SHARES: Mapping[str, Limits] = {
    "CSF": Limits(warn_above=0.55, fail_above=0.65),
    "GM": Limits(fail_below=0.10, warn_below=0.15, warn_above=0.55, fail_above=0.70),
    "WM": Limits(fail_below=0.12, warn_below=0.20, warn_above=0.65, fail_above=0.75),
}


#: Expected error of the enhanced image over the brain's mean, of networks that have learnt it.
#: Clean images have 0.02 to 0.04, minor motion up to 0.07, moderate motion 0.05 to 0.15.
ESTIMATED_ERROR = Limits(warn_above=0.08)
#: Distance from the images that trained the network (:mod:`bmex_bids.metrics.familiarity`); these
#: have 1 in the root mean square.
TRAINING_DISTANCE = Limits(warn_above=3.0)
