# SPDX-License-Identifier: Apache-2.0
"""An encoder as the subject of an evaluation: it scores texts by masking, embeds texts, and matches pictures with
texts, as far as its capabilities go."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from foundling.decode.classify import BATCH_SIZE
from foundling.decode.embed import Pooling, TextEmbedder, pooling_of
from foundling.errors import GenerationError
from foundling.evaluate.classifier import too_long
from foundling.evaluate.local import Loaded
from foundling.evaluate.perplexity import masked_nats
from foundling.evaluate.pictures import pixels_of
from foundling.evaluate.subject import Continuation, MatchRequest, Refusals, Vector, prompt_text
from foundling.evaluate.task import Task
from foundling.limits import MASKED_POSITIONS
from foundling.media.pictures import PictureSpec, picture_spec
from foundling.runtime.device import Runtime
from foundling.runtime.machine import versions
from foundling.runtime.mode import evaluation_mode
from foundling.text import Tokenizer
from foundling.weights.directory import weights_hash
from foundling.weights.text_spec import text_spec

POSITIONS = 64
"""tokens of a text that are masked in turn, unless stated otherwise"""
_AT_ONCE = 256  # texts that are embedded before their vectors are recorded


class EncoderSubject(Refusals):
    """`pooling`: how states become a vector. `positions`: how many tokens of each text are masked in turn, drawn by
    `seed` and the text; a shorter text has each of its tokens masked. `truncate`: a text to embed that is too long
    loses its end; without, it is refused. `pictures`: how a picture becomes pixels."""

    kind = "an encoder"

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        name: str = "model",
        pooling: Pooling = "mean",
        max_len: int | None = None,
        positions: int = POSITIONS,
        seed: int = 0,
        truncate: bool = False,
        pictures: PictureSpec | None = None,
        model_hash: str | None = None,
    ) -> None:
        can = model.capabilities
        kinds = {"perplexity": can.fills, "retrieve": can.embeds, "images": can.embeds and "image" in can.modalities}
        self.serves = tuple(kind for kind, able in kinds.items() if able)
        if not self.serves:
            raise GenerationError(f"{name}: {type(model).__name__} neither fills gaps nor embeds texts")
        self.model, self.tokenizer, self.name, self.truncate, self.seed = model, tokenizer, name, truncate, seed
        self.positions = MASKED_POSITIONS.check(positions, "positions")
        self.embedder = TextEmbedder(model, tokenizer, pooling, max_len) if can.embeds else None
        if "images" in self.serves:
            self.pictures = pictures or picture_spec(None, model.config.image_size, model.config.channels)
        self._model_hash = model_hash

    @classmethod
    def of(cls, loaded: Loaded, *, truncate: bool = False, positions: int | None = None) -> EncoderSubject:
        model, files = loaded.model, loaded.files
        pooling, longest = pooling_of(files)
        reads_pictures = "image" in model.capabilities.modalities
        pictures = picture_spec(files, model.config.image_size, model.config.channels) if reads_pictures else None
        return cls(
            model, loaded.tokenizer, name=loaded.name, pooling=pooling, max_len=longest, truncate=truncate,
            positions=POSITIONS if positions is None else positions, pictures=pictures, model_hash=loaded.hash,
        )  # fmt: skip

    @property
    def hashes(self) -> dict[str, str]:
        if self._model_hash is None:
            self._model_hash = weights_hash(self.model)
        parameter, embedder = next(self.model.parameters()), self.embedder
        template = [
            self.tokenizer.backend.to_str(), self.positions, self.seed,
            [embedder.pooling, embedder.longest] if embedder else None,
            repr(self.pictures) if "images" in self.serves else None,
        ]  # fmt: skip
        return {
            "model": self._model_hash,
            "template": hashlib.sha256(json.dumps(template).encode()).hexdigest(),
            "backend": f"{versions()}, {str(parameter.dtype).removeprefix('torch.')} on {parameter.device.type}",
        }

    # --- texts that are scored by masking -----------------------------------------------------------------------------

    def rolling(self, texts: Sequence[str]) -> Iterator[tuple[int, Continuation]]:
        """The pseudo-log-likelihood Σ ln p(token | all others) of each text (Salazar et al. 2020, equation 1), where
        not every token is masked estimated as their number times the mean. A long text is read in windows without
        overlap."""
        if not self.model.capabilities.fills or self.tokenizer.mask is None:
            self.refuse("it predicts no masked tokens, by which tasks of kind perplexity measure an encoder")
        return self._rolling(texts, self.tokenizer.mask)

    def _rolling(self, texts: Sequence[str], mask: int) -> Iterator[tuple[int, Continuation]]:
        runtime = Runtime(str(next(self.model.parameters()).device))
        for index, text in enumerate(texts):
            n, windows, places = self._masked(text)
            nats = masked_nats(self.model, windows, places, mask, runtime, BATCH_SIZE)
            total = sum(nats) / max(1, len(nats)) * n
            yield index, Continuation(text, -total, n, n_masked=len(nats))

    def _masked(self, text: str) -> tuple[int, list[list[int]], list[tuple[int, int]]]:
        """(tokens of the text, its windows, the places (window, position) that are masked)"""
        before, after = self.tokenizer.frame
        before = [*text_spec(self.model).virtual, *before]
        longest = self.model.config.max_seq_len
        available = longest - len(before) - len(after)
        if available < 1:
            raise GenerationError(f"the model reads {longest} tokens, which leaves none for a text")
        ids = self.tokenizer.encode(text)
        windows = [[*before, *ids[at : at + available], *after] for at in range(0, len(ids), available)]
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        draw = random.Random(f"{self.seed} {digest}")
        chosen = sorted(draw.sample(range(len(ids)), min(self.positions, len(ids))))
        return len(ids), windows, [(at // available, len(before) + at % available) for at in chosen]

    def count(self, task: Task[Any]) -> tuple[int, int]:
        """(tokens that are computed for a task, 0 that are generated); of a picture its patches count."""
        prompts = [prompt_text(task.prompt(example)) for example in task.examples]
        if task.rolling:
            masked = [self._masked(text) for text in prompts]
            return sum(len(windows[at]) for _, windows, places in masked for at, _ in places), 0
        texts, patches = [*prompts, *(text for _, text in task.documents or ())], 0
        if task.pictures and task.continuations:
            texts = list({text.strip() for example in task.examples for text in task.continuations(example)})
            config = self.model.config
            patches = len(set(prompts)) * ((config.image_size // config.patch_size) ** 2 + 1)
        return patches + sum(len(one.ids) for one in self.embedder.encode(texts)) if self.embedder else 0, 0

    # --- vectors ------------------------------------------------------------------------------------------------------

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[int, Vector]]:
        """GenerationError for texts that are too long."""
        if self.embedder is None:
            self.refuse("it embeds no texts, which tasks of kind retrieve need")
        self._check_lengths(texts)
        return self._embed(self.embedder, texts)

    def _embed(self, embedder: TextEmbedder, texts: Sequence[str]) -> Iterator[tuple[int, Vector]]:
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding in each group
        for start in range(0, len(texts), _AT_ONCE):
            group = by_length[start : start + _AT_ONCE]
            for place, vector, n in embedder.embed([texts[i] for i in group]):
                yield group[place], Vector.of(vector.numpy(), n)

    def _check_lengths(self, texts: Sequence[str]) -> None:
        if self.embedder and not self.truncate and (n := sum(one.cut for one in self.embedder.encode(texts))):
            raise GenerationError(too_long(n, len(texts), self.embedder.longest))

    # --- pictures -----------------------------------------------------------------------------------------------------

    def match(self, requests: Sequence[MatchRequest]) -> Iterator[tuple[int, Continuation]]:
        """The cosine of picture and text times the model's learned factor, as CLIP is trained (Radford et al. 2021,
        figure 3)."""
        if "images" not in self.serves or self.embedder is None:
            self.refuse("it reads no pictures, which tasks of kind images need")
        texts = list(dict.fromkeys(request.text.strip() for request in requests))
        self._check_lengths(texts)
        return self._match(self.embedder, requests, texts)

    def _match(
        self, embedder: TextEmbedder, requests: Sequence[MatchRequest], texts: Sequence[str]
    ) -> Iterator[tuple[int, Continuation]]:
        of_text = {texts[i]: (vector, n) for i, vector, n in embedder.embed(texts)}
        factor = float(self.model.scale.detach().float().exp())
        by_picture: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_picture.setdefault(request.picture, []).append(index)
        pictures = [requests[indices[0]].picture for indices in by_picture.values()]
        for start in range(0, len(pictures), BATCH_SIZE):
            chunk = pictures[start : start + BATCH_SIZE]
            vectors = self._embed_pictures([pixels_of(picture, self.pictures) for picture in chunk])
            for picture, vector in zip(chunk, vectors, strict=True):
                for index in by_picture[picture]:
                    text, n = of_text[requests[index].text.strip()]
                    yield index, Continuation(requests[index].text, factor * float(vector @ text), n)

    @torch.inference_mode()
    def _embed_pictures(self, pixels: list[Any]) -> torch.Tensor:
        parameter = next(self.model.parameters())
        batch = torch.stack([torch.from_numpy(one) for one in pixels]).to(parameter.device, parameter.dtype)
        with evaluation_mode(self.model):
            vectors = self.model.embed("image", {"pixels": batch}).float().cpu()
        if not vectors.isfinite().all():
            raise GenerationError("the model's vectors are not finite; is the model damaged?")
        return vectors
