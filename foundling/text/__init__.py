# SPDX-License-Identifier: Apache-2.0
"""Tokenizers and chat templates. Nothing here imports torch."""

from foundling.text.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
