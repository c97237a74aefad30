# SPDX-License-Identifier: Apache-2.0
"""Floor 8: whole programs over the parts below, each readable from top to bottom."""
