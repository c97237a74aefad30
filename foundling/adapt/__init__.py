# SPDX-License-Identifier: Apache-2.0
"""Rewriting a model's projections by name pattern. Nothing here knows a family."""
