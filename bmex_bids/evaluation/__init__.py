# SPDX-License-Identifier: Apache-2.0
"""Judging the weights: what they mend, and what they harm."""
