# SPDX-License-Identifier: Apache-2.0
"""Many answers at once: who reads what in which step (no tensors), where it is kept, and what computes it."""
