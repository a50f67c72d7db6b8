# SPDX-License-Identifier: Apache-2.0
"""Images from multi-coil k-space: readers, forward model, classical methods and LF-MRI."""
