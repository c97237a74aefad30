# SPDX-License-Identifier: Apache-2.0
"""Diffusion as pure functions: how noise is added, what a network predicts of it, how it is taken away."""
