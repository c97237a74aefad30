# SPDX-License-Identifier: Apache-2.0
"""Rewrites projections of any model by name pattern."""
