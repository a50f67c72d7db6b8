# SPDX-License-Identifier: Apache-2.0
"""Text for the methods section of a paper: ``methods.md`` (frame) and ``references.bib``."""
