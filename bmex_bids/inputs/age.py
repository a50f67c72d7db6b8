# SPDX-License-Identifier: Apache-2.0
"""An age, what it may be, and the model it has."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bmex_bids.exceptions import AgeError
from bmex_bids.inputs.units import DAYS_PER_MONTH, DAYS_PER_YEAR

OLDEST_YEARS = 130.0
LONGEST_GESTATION_WEEKS = 45.0

#: from this age in months on, the model is that of …
GROUPS: Sequence[tuple[float, str]] = (
    (0, "month0"),
    (2, "month3"),
    (5, "month6"),
    (7, "month9"),
    (10, "month12"),
    (15, "month18"),
    (21, "month24"),
)


@dataclass(frozen=True)
class Age:
    """An age and where it was found.

    Attributes
    ----------
    months : since birth, or since conception when ``fetal``
    fetal : counted in weeks of gestation, before birth
    value, unit : as found
    source : the table, relative to the dataset; ``"command line"``; or the age file's name
    column : of the table
    warnings : what was guessed
    """

    months: float
    fetal: bool
    value: str
    unit: str
    source: str
    column: str
    warnings: tuple[str, ...] = ()

    @property
    def written(self) -> str:
        """As found, with the unit unless that was written beside it."""
        return self.value if re.search("[A-Za-z]", self.value) else f"{self.value} {self.unit}"


def age_group(age: Age) -> str:
    """The model of an age; nothing is rounded.

    >>> age_group(Age(1.999, False, "1.999", "months", "", ""))
    'month0'
    """
    if age.fetal:
        return "fetal"
    chosen = GROUPS[0][1]
    for start, group in GROUPS:
        if age.months >= start:
            chosen = group
    return chosen


def near_boundary(age: Age) -> str | None:
    """A warning when another model begins less than a month away."""
    if age.fetal:
        return None
    for start, group in GROUPS[1:]:
        if abs(age.months - start) < 1:
            return (
                f"age of {age.months:.2f} months is within a month of {start:g}, where model "
                f"{group} begins"
            )
    return None


def checked(age: Age) -> Age:
    """The same age; one that no image can have is an AgeError."""
    years = age.months * DAYS_PER_MONTH / DAYS_PER_YEAR
    weeks = age.months * DAYS_PER_MONTH / 7
    bad = not math.isfinite(age.months) or age.months < 0
    if bad or (years > OLDEST_YEARS) or (age.fetal and not 10 <= weeks <= LONGEST_GESTATION_WEEKS):
        limits = "10 to 45 weeks of gestation" if age.fetal else f"0 to {OLDEST_YEARS:g} years"
        raise AgeError(
            f"expected an age of {limits}, got {age.written} ({age.source}, "
            f"{age.column}); correct the value or its unit, or give --age-months"
        )
    return age
