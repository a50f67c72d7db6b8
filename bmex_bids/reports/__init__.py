# SPDX-License-Identifier: Apache-2.0
"""Pages for people: one for each participant and session."""
