# SPDX-License-Identifier: Apache-2.0
"""Figures of image quality, with and without a reference."""
