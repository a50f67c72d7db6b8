# SPDX-License-Identifier: Apache-2.0
"""The networks, their weights, and how they are run over a volume."""
