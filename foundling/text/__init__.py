# SPDX-License-Identifier: Apache-2.0
"""Floor 1: tokenizers and chat templates. Nothing here imports torch."""

from foundling.text.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
