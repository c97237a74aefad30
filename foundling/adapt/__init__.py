# SPDX-License-Identifier: Apache-2.0
"""Floor 2: rewriting a model's projections by name pattern. Nothing here knows a family."""
