# SPDX-License-Identifier: Apache-2.0
"""What happens to an image before and after the network: geometry, intensities, masks."""
