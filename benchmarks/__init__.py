# SPDX-License-Identifier: Apache-2.0
"""Figures of the docs, made again: each module is one benchmark, `python -m benchmarks.NAME`."""
