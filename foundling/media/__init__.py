# SPDX-License-Identifier: Apache-2.0
"""Files of pictures as arrays: safe decoding and the transforms that models expect."""
