# SPDX-License-Identifier: Apache-2.0
"""One step, one loop, one checkpoint format, for every family and objective."""
