# SPDX-License-Identifier: Apache-2.0
"""Floor 5: from a model to tokens."""
