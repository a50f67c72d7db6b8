# SPDX-License-Identifier: Apache-2.0
"""Nipype nodes: each loads files, calls one pure function, and saves what it returns."""
