# SPDX-License-Identifier: Apache-2.0
"""Floor 4: one step, one loop, one checkpoint format, for every family and objective."""
