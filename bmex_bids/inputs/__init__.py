# SPDX-License-Identifier: Apache-2.0
"""What there is to do: the images of a dataset, how old their subjects are, and the plan."""
