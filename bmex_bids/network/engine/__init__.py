# SPDX-License-Identifier: Apache-2.0
"""Runs a network over a whole volume layer by layer, in little memory."""
