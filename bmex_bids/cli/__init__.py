# SPDX-License-Identifier: Apache-2.0
"""The command lines: the only layer that reads the configuration, prints, or exits."""
