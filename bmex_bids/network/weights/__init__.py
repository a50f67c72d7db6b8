# SPDX-License-Identifier: Apache-2.0
"""Weight files: which there are, where they come from, and how they become networks."""
