# SPDX-License-Identifier: Apache-2.0
"""Floor 5: what a run will take, said before it is spent."""
