# SPDX-License-Identifier: Apache-2.0
"""What is written: BIDS derivatives, their sidecars, and the dataset around them."""
