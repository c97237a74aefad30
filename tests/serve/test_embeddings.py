# SPDX-License-Identifier: Apache-2.0
"""/v1/embeddings: the official client, over real HTTP, gets the vectors of TextEmbedder."""

from __future__ import annotations

import asyncio
import base64
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

import foundling
from foundling.decode.embed import TextEmbedder
from foundling.errors import GenerationError
from foundling.models import build, family
from foundling.serve.key_file import KeyFile
from foundling.serve.models import EmbeddingModel, load_served
from foundling.serve.options import ServeOptions
from foundling.serve.pool import ModelPool
from foundling.text import Tokenizer
from foundling.weights.loading import load
from tests.decode.test_fill import sentences, word_pieces
from tests.serve import raw
from tests.serve.servers import Live, save_encoder, save_model, serving

TEXTS = sentences()[:6]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("embed") / "bert")


@pytest.fixture(scope="module")
def live(directory: Path) -> Iterator[Live]:
    with serving({"bert": directory, "llama": save_model(directory.with_name("llama"))}) as server:
        yield server


@pytest.fixture(scope="module")
def expected(directory: Path) -> torch.Tensor:
    embedder = TextEmbedder(load(directory), Tokenizer.load(directory))
    vectors = {i: vector for i, vector, _ in embedder.embed(TEXTS)}
    return torch.stack([vectors[i] for i in range(len(TEXTS))])


def close(data: Any, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor([one.embedding for one in data]), expected, rtol=1e-4, atol=1e-5)
    assert [one.index for one in data] == list(range(len(expected)))


def test_texts_and_ids_in_both_encodings_equal_the_embedder(live: Live, directory: Path, expected) -> None:
    client = live.client()
    whole = client.embeddings.create(model="bert", input=TEXTS)  # the client asks for base64
    close(whole.data, expected)
    ids = [Tokenizer.load(directory).encode_framed(text) for text in TEXTS]
    assert whole.usage.prompt_tokens == whole.usage.total_tokens == sum(map(len, ids))
    close(client.embeddings.create(model="bert", input=TEXTS, encoding_format="float").data, expected)
    close(client.embeddings.create(model="bert", input=ids).data, expected)
    close(client.embeddings.create(model="bert", input=ids[0]).data, expected[:1])
    close(client.embeddings.create(model="bert", input=TEXTS[0], dimensions=64).data, expected[:1])
    raw = client.embeddings.with_raw_response.create(model="bert", input=TEXTS[0], encoding_format="base64").parse()
    numbers = struct.unpack("<64f", base64.b64decode(str(raw.data[0].embedding)))
    torch.testing.assert_close(torch.tensor(numbers), expected[0], rtol=1e-4, atol=1e-5)


def test_clients_that_wait_are_computed_together(live: Live, expected) -> None:
    client = live.client()
    served: Any = live.server.pool.get("bert", EmbeddingModel)
    client.embeddings.create(model="bert", input="the cat")  # from now on there is a batcher

    def n_batches() -> float:
        return live.metric("foundling_embedding_batches_total", model="bert")

    before = n_batches()
    places = [k % len(TEXTS) for k in range(32)]
    with ThreadPoolExecutor(32) as pool:
        with live.busy():
            answers = [pool.submit(client.embeddings.create, model="bert", input=TEXTS[k]) for k in places[:1]]
            raw.wait_for(lambda: n_batches() == before + 1)
            answers += [pool.submit(client.embeddings.create, model="bert", input=TEXTS[k]) for k in places[1:]]
            raw.wait_for(lambda: served.batcher.n_waiting == 31)
        got = torch.tensor([answer.result().data[0].embedding for answer in answers])
    torch.testing.assert_close(got, expected[places], rtol=1e-4, atol=1e-5)
    assert n_batches() == before + 2, "the first, and 31 together"


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"input": "the cat " * 40}, "has more than 32 tokens"),
        ({"input": ["the cat", "the cow " * 40]}, "input[1] has more than 32 tokens"),
        ({"input": [[3] * 33]}, "input[0] has 33 tokens"),
        ({"input": [5, 150]}, "input[0] has the token 150; the model has 150"),
        ({"input": ["the cat", ""]}, "input[1] is an empty text"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 257}, "input has 257 texts; this server allows 256"),
        ({"input": "the cat", "dimensions": 16}, "dimensions is 16; bert has 64"),
        ({"input": "the cat", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "the cat", "model": "llama"}, "ask for bert"),
        ({"input": "the cat", "extra_body": {"wrong": 1}}, "wrong: this field is not supported"),
    ],
)
def test_what_is_refused_says_why(live: Live, fields: dict[str, Any], part: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        live.client().embeddings.create(**({"model": "bert"} | fields))
    assert part in refused.value.message


def test_a_long_text_is_cut_where_the_request_asks(live: Live, directory: Path) -> None:
    long = "the cat " * 40
    got = live.client().embeddings.create(model="bert", input=long, extra_body={"truncate": True})
    embedder = TextEmbedder(load(directory), Tokenizer.load(directory))
    ((_, vector, n),) = embedder.embed([long])
    close(got.data, vector[None])
    assert got.usage.prompt_tokens == n == 32


def test_deterministic_bits_do_not_depend_on_company(directory: Path) -> None:
    with serving({"bert": directory}, deterministic=True) as live:
        client = live.client()

        def bits(text: str) -> Any:
            return client.embeddings.create(model="bert", input=text, encoding_format="float").data[0].embedding

        alone = [bits(text) for text in TEXTS]
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(bits, TEXTS * 4)) == alone * 4


def test_who_waits_for_a_turn_is_refused_in_time_and_charged_for_what_is_computed(
    directory: Path, tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path / "keys", create=True)
    key = keys.create("anna")
    with serving({"bert": directory}, key_file=keys.path, queue_timeout=0.3, max_queue=1) as live:
        client, served = live.client(key), live.server.pool.get("bert")
        client.embeddings.create(model="bert", input="the cat")
        used = keys.records()[0].prompt_tokens
        with ThreadPoolExecutor(2) as pool, live.busy():
            waiting = [pool.submit(client.embeddings.create, model="bert", input="the cat")]
            raw.wait_for(lambda: served.batcher._task is not None and not served.batcher.n_waiting)
            waiting += [pool.submit(client.embeddings.create, model="bert", input="the cat")]
            raw.wait_for(lambda: served.batcher.n_waiting == 1)
            with pytest.raises(openai.RateLimitError):  # before its text is looked at, which is empty
                client.embeddings.create(model="bert", input="")
            for one in waiting:
                with pytest.raises(openai.InternalServerError, match=r"waited 0\.3 s") as met:
                    one.result(60)
                assert met.value.status_code == 503
            raw.wait_for(lambda: served.batcher.n_waiting == 0)
        client.embeddings.create(model="bert", input="the cat")
        raw.wait_for(lambda: keys.records()[0].prompt_tokens == 2 * used)
        assert keys.records()[0].requests == 2


def test_computations_run_one_at_a_time_also_where_a_client_leaves() -> None:
    running, most, leave = [0], [0], threading.Event()

    def compute() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        leave.wait(10)
        running[0] -= 1

    async def use() -> None:
        pool = ModelPool(ServeOptions())
        first = asyncio.create_task(pool.in_turn(compute))
        while not running[0]:
            await asyncio.sleep(0.001)
        first.cancel()
        second = asyncio.create_task(pool.in_turn(compute))
        third = asyncio.create_task(pool.in_turn(compute))
        await asyncio.sleep(0.05)
        third.cancel()
        assert running == [1]
        leave.set()
        await second

    asyncio.run(use())
    assert most == [1] and running == [0]


def test_weights_choose_native_code_or_are_refused(directory: Path, tmp_path: Path, expected) -> None:
    served: Any = load_served("bert", str(directory), ServeOptions(weights="int8"))
    assert served.embedder.model is not served.model, "packed anew"
    vectors = {i: vector for i, vector, _ in served.embedder.embed(TEXTS)}
    got = torch.stack([vectors[i] for i in range(len(TEXTS))])
    assert (got * expected).sum(-1).min() > 0.99 and not torch.equal(got, expected)
    other: Any = build("modernbert", **family("modernbert").module.sized(150, 32, 64, 2))
    place = foundling.save(other.eval(), tmp_path / "modern", tokenizer=word_pieces(tmp_path / "words"))
    with pytest.raises(GenerationError, match="weights 'int8' need native code"):
        load_served("modern", str(place), ServeOptions(weights="int8"))
