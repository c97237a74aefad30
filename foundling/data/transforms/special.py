# SPDX-License-Identifier: Apache-2.0
"""The tokens of a tokenizer that stand for hidden text: the mask and the sentinels.

Where a tokenizer names a mask_token (BERT, BART), that is the mask; where it has <extra_id_0>, <extra_id_1>, … (T5),
those are the sentinels. A tokenizer trained here has at least 16 spare tokens: <|spare_0|> is the mask, <|spare_1|> to
<|spare_15|> are the sentinels, of which the last is used for all further spans (transforms/span.py).
"""

from __future__ import annotations

from itertools import count, takewhile

from foundling.errors import ConfigError
from foundling.text import Tokenizer

N_SENTINELS = 15


def mask_id(tokenizer: Tokenizer) -> int:
    """The id of the mask. Raises ConfigError for a tokenizer that has none."""
    spare = _ids(tokenizer, "<|spare_{}|>", 0, 1)
    if tokenizer.mask is None and not spare:
        raise ConfigError("the tokenizer names no mask_token and has no spare tokens; train one here")
    return spare[0] if tokenizer.mask is None else tokenizer.mask


def sentinel_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of the sentinels, in order. Raises ConfigError for a tokenizer that has none."""
    sentinels = _ids(tokenizer, "<extra_id_{}>", 0) or _ids(tokenizer, "<|spare_{}|>", 1, N_SENTINELS)
    if not sentinels:
        raise ConfigError("the tokenizer has neither <extra_id_0> nor spare tokens as sentinels; train one here")
    return sentinels


def _ids(tokenizer: Tokenizer, name: str, start: int, most: int | None = None) -> tuple[int, ...]:
    """The ids of the tokens `name` with consecutive numbers from `start`."""
    numbers = count(start) if most is None else range(start, start + most)
    ids = (tokenizer.backend.token_to_id(name.format(number)) for number in numbers)
    return tuple(token for token in takewhile(lambda token: token is not None, ids) if token is not None)
