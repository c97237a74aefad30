# SPDX-License-Identifier: Apache-2.0
"""Whole programs over the parts below, each readable from top to bottom."""
