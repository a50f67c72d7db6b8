# SPDX-License-Identifier: Apache-2.0
"""Simulated image degradation: motion, blur, low resolution, noise, bias and contrast.

Drawing and acting are separate. :func:`bmex_bids.degrade.recipe.draw` throws the dice and returns
a
:class:`~bmex_bids.degrade.recipe.Recipe`, plain numbers that can be written as JSON;
:meth:`Recipe.apply` does the deterministic rest, so that any degraded image can be made again.
"""
