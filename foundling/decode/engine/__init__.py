# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: a scheduler and a block manager without tensors, and runners that compute."""
