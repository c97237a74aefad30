# SPDX-License-Identifier: Apache-2.0
"""How good a model is: tasks with their runners and intervals, held-out loss, baselines, comparisons."""
