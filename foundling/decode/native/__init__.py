# SPDX-License-Identifier: Apache-2.0
"""The step of a pre-norm transformer in one call: products at the speed of memory, with weights of 32, 16, 8 or 4 bits.

program.cpp is compiled on the spot where there is a g++; where there is none, torch does the work.
"""
