# SPDX-License-Identifier: Apache-2.0
"""What a network makes of an image: enhancement, tissues, brain."""
