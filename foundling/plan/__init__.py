# SPDX-License-Identifier: Apache-2.0
"""What a run will take, said before it is spent."""
