# SPDX-License-Identifier: Apache-2.0
"""Transformer layers in C++ for the CPU, one call per step; weights in 32, 16, 8 or 4 bits.

program.cpp is compiled on first use and needs g++; without a compiler, torch is used instead.
"""
