# SPDX-License-Identifier: Apache-2.0
"""What turns texts and batches of tokens into training tasks: infilling, masking, span corruption, denoising."""
