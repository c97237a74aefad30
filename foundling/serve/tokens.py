# SPDX-License-Identifier: Apache-2.0
"""POST /tokenize and /detokenize."""

from __future__ import annotations

from foundling.limits import TOKENIZED
from foundling.serve.errors import APIError
from foundling.serve.models import GenerativeModel, ServedModel
from foundling.serve.protocol import DetokenizeBody, TokenizeBody
from foundling.serve.reply import LargeJSON, TokenTexts


def tokenize(served: ServedModel, body: TokenizeBody) -> LargeJSON:
    """The ids and texts of what would be a prompt. APIError for one that is too long."""
    if (body.prompt is None) == (body.messages is None):
        raise APIError(400, "send either prompt or messages", param="prompt")
    longest = getattr(served.model.config, "max_seq_len", None)
    if not isinstance(served, GenerativeModel):
        if body.prompt is None:
            raise APIError(400, f"{served.name} reads texts and no conversations", param="messages")
        framed = served.tokenizer.encode_framed(body.prompt) if body.add_special_tokens else None
        ids = served.tokenizer.encode(body.prompt) if framed is None else framed
        _check_length(ids)
        texts = [served.tokenizer.backend.id_to_token(i) or "" if i in served.tokenizer.special
                 else served.tokenizer.piece(i) for i in ids]  # fmt: skip
    else:
        framing = served.framing
        if body.messages is not None:
            messages = [message.as_template_sees_it() for message in body.messages]
            ids = framing.chat(messages, add_generation_prompt=body.add_generation_prompt)
        else:
            text = body.prompt or ""
            ids = framing.prompt(text) if body.add_special_tokens else served.tokenizer.encode(text)
        _check_length(ids)
        names = TokenTexts(served, framing.answer([]))
        texts = [names.text(i) for i in ids]
    bytes_of = served.spellings
    tokens = [{"id": i, "text": text, "bytes": list(bytes_of[i]) if i < len(bytes_of) else []}
              for i, text in zip(ids, texts, strict=True)]  # fmt: skip
    return LargeJSON({"tokens": tokens, "count": len(ids), "max_model_len": longest})


def _check_length(ids: list[int]) -> None:
    if len(ids) > TOKENIZED.high:
        raise APIError(
            400, f"the text has {len(ids):,} tokens; at most {TOKENIZED.high:,} are answered: send it in parts"
        )


def detokenize(served: ServedModel, body: DetokenizeBody) -> LargeJSON:
    rows = served.tokenizer.vocab_size
    if max(body.tokens, default=0) >= rows:
        raise APIError(400, f"there is no token {max(body.tokens)}; the tokenizer has {rows:,}", param="tokens")
    return LargeJSON({"prompt": served.tokenizer.decode(body.tokens)})
