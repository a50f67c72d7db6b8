# SPDX-License-Identifier: Apache-2.0
"""Making training data and training the bundled weights."""
