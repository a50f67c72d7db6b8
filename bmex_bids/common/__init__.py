# SPDX-License-Identifier: Apache-2.0
"""Facts that every layer shares: BIDS names, the tissues, bounding boxes."""
