# SPDX-License-Identifier: Apache-2.0
"""The motion that the tests of the motion correction put into their head."""

#: phase axis, cycles a line, radians, mm, degrees
AXIS, FREQUENCY, PHASE = 1, 0.17, 0.7
SWING = (0.3, 1.9, 0.6, 1.2, 0.0, 0.0)
