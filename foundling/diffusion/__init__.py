# SPDX-License-Identifier: Apache-2.0
"""Diffusion as pure functions: noise schedules, prediction targets and samplers."""
