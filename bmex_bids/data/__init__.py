# SPDX-License-Identifier: Apache-2.0
"""Files the package needs at run time: histogram references, weights, specifications."""
