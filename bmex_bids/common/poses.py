# SPDX-License-Identifier: Apache-2.0
"""How far a rigid motion moves a head."""

from __future__ import annotations

#: mm for a radian of rotation: root mean square displacement of a ball of 80 mm radius (Jenkinson,
#: FMRIB technical report TR99MJ1, 1999)
LEVER_MM = 80 * (2 / 5) ** 0.5
