# SPDX-License-Identifier: Apache-2.0
"""How the nodes are wired: one workflow per image, one factory per stage."""
