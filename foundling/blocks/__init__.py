# SPDX-License-Identifier: Apache-2.0
"""Floor 1: the parts that model families are composed of."""
