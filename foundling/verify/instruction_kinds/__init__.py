# SPDX-License-Identifier: Apache-2.0
"""The kinds of verifiable instructions: one small function each, by what they look at."""
