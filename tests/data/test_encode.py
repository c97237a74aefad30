# SPDX-License-Identifier: Apache-2.0
"""Examples as tokens on disk, and their batches: nothing cut unseen, nothing leaked, everything by number alone."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from foundling.data.encode import Encoder, example_lengths, prompt_ids, suggest_seq_len
from foundling.data.encoded import EncodedExamples, encode_examples
from foundling.data.examples import ingest_examples
from foundling.data.kinds import Example
from foundling.data.transforms.examples import PackedExamples, PaddedExamples, example_batches, pack, training_batches
from foundling.errors import DataError, MismatchError
from foundling.objectives.causal import Causal
from foundling.text.cutting import CHARS
from foundling.text.framing import Framing, TextSpec
from foundling.text.tokenizer import Tokenizer
from foundling.weights.manifest import write_manifest
from foundling.weights.text_spec import read_text_spec, text_spec
from tests.contract.cases import case
from tests.text.kinds import TEXTS, tokenizer
from tests.text.test_answers import FORGETS, chat


@pytest.fixture(scope="module")
def framing() -> Framing:
    return Framing(Tokenizer.train(TEXTS, 384))


def encoded(folder: Path, rows: list[dict], framing: Framing, seq_len: int, **more) -> EncodedExamples:
    folder.mkdir(exist_ok=True)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = ingest_examples(folder / "data.jsonl", folder / "examples", **more)
    return encode_examples(folder / "tokens", examples, framing, seq_len=seq_len)


def chats(n: int) -> list[dict]:
    return [{"messages": chat(f"{i}", "yes " * (i % 7 + 1))} for i in range(n)]


def encode_all(kind, framing: Framing, seq_len: int, *fields: dict, classes=()) -> tuple[list[dict], Encoder]:
    encoder = Encoder(kind, framing, seq_len, classes)
    return [arrays for _, arrays in encoder([Example(str(i), one) for i, one in enumerate(fields)])], encoder


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_a_long_chat_is_skipped_whole(framing):
    short, long = {"messages": chat("a", "b")}, {"messages": chat("a", "the cat sat on the mat " * 9)}
    got, encoder = encode_all("chat", framing, 40, short, long, short)
    assert [one["tokens"] for one in got] == [framing.chat_example(short["messages"])[0]] * 2
    assert encoder.skipped == {"a chat over 41 tokens": 1} and not encoder.cut


def test_texts_are_cut_into_windows_that_predict_every_token_once(framing):
    text = "the dog sat on the log. " * 20
    got, _ = encode_all("text", framing, 16, {"text": text})
    stream = [*framing.tokenizer.opening, *framing.tokenizer.encode(text), framing.tokenizer.eos]
    assert [token for one in got for token in one["tokens"][1:]] == stream[1:]
    assert all(a["tokens"][-1] == b["tokens"][0] for a, b in pairwise(got))
    assert {len(one["tokens"]) for one in got[:-1]} == {17} and all(all(one["mask"]) for one in got)


def test_texts_and_pairs_are_framed_and_cut_as_transformers_does(tmp_path):
    ours = tokenizer("bert")
    backend = json.loads(ours.backend.to_str())
    special = {name: ours.backend.token_to_id(name) for name in ("[CLS]", "[SEP]")}
    backend["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
                 {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in special.items()},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(ours.described))
    framing = Framing(Tokenizer.load(tmp_path))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text, other = "the cat sat on the mat " * 5, "and the dog sat on the log"
    rows = [{"text": "the cat"}, {"text": text}, {"text": "the cat", "pair": other}, {"text": text, "pair": other}]
    rows.append({"text": text, "pair": text})
    got, encoder = encode_all("classify", framing, 16, *(row | {"label": "b"} for row in rows), classes=["a", "b"])
    assert encoder.cut == 3 and {one["labels"] for one in got} == {1}
    for row, one in zip(rows, got, strict=True):
        want = theirs(
            row["text"], row.get("pair"), max_length=16, truncation="longest_first", return_token_type_ids=True
        )
        assert one["tokens"] == want["input_ids"] and one.get("types", want["token_type_ids"]) == want["token_type_ids"]


@pytest.mark.parametrize("kind", ["ours", "bert", "llama 2", "metaspace always", "t5", "gpt2", "prefix space"])
def test_the_first_piece_of_each_word_has_its_tag(kind):
    framing = Framing(tokenizer(kind))
    words, tags = ["the", "cat", "(déjà", "vu)", "sat", "on", "12345"], ["D", "N", "X", "Y", "V", "P", "M"]
    got, _ = encode_all("tag", framing, 99, {"words": words, "tags": tags}, classes=sorted(tags))
    (one,) = got
    starts = [at for at, on in enumerate(one["mask"]) if on]
    assert [sorted(tags)[one["targets"][at]] for at in starts] == tags
    decode = framing.tokenizer.backend.decode
    for word, start, stop in zip(words, starts, [*starts[1:], len(one["tokens"])], strict=True):
        text = decode(one["tokens"][start:stop], skip_special_tokens=True).strip()
        assert text.replace(" ", "") in (word, word.lower(), word.lower().replace("é", "e").replace("à", "a"))


def test_a_long_sentence_is_cut_between_words():
    framing = Framing(tokenizer("bert"))
    words = ["cat", "indentedindented", "mat"] * 4
    whole, _ = encode_all("tag", framing, 99, {"words": words, "tags": ["N"] * 12}, classes=["N"])
    starts = [at for at, on in enumerate(whole[0]["mask"]) if on]
    for seq_len in range(4, len(whole[0]["tokens"]) + 1):
        got, encoder = encode_all("tag", framing, seq_len, {"words": words, "tags": ["N"] * 12}, classes=["N"])
        if not got:
            assert encoder.skipped == {"a sentence without tokens": 1} and starts[1] + 1 > seq_len
            continue
        (one,) = got
        end = len(one["tokens"]) - 1
        assert end + 1 <= seq_len and one["tokens"] == [*whole[0]["tokens"][:end], whole[0]["tokens"][-1]]
        assert end in (*starts, len(whole[0]["tokens"]) - 1) and encoder.cut == (end < len(whole[0]["tokens"]) - 1)


def test_a_source_is_a_prompt_for_a_causal_model_and_a_source_for_an_encoder_decoder(framing):
    row = {"source": "the cat", "target": "sat"}
    (one,), encoder = encode_all("seq2seq", framing, 99, row)
    prompt, eos = prompt_ids(Example("", row), "seq2seq", framing), framing.tokenizer.eos
    assert encoder.packed and one["tokens"] == [*prompt, *framing.tokenizer.encode("sat"), eos]
    assert one["mask"] == [at >= len(prompt) for at in range(len(one["tokens"]))]
    t5 = Framing(tokenizer("t5"), TextSpec(reads_source=True))
    got, encoder = encode_all(
        "seq2seq", t5, 12, row, {"source": "the cat " * 20, "target": "sat"}, row | {"target": "on " * 19}
    )
    assert not encoder.packed and encoder.skipped == {"a target over 12 tokens": 1} and encoder.cut == 1
    assert got[0]["source"] == t5.prompt("the cat") and got[0]["tokens"] == [
        *t5.tokenizer.encode("sat"),
        t5.tokenizer.eos,
    ]
    assert len(got[1]["source"]) == 12 and got[1]["source"][-1] == t5.tokenizer.eos


@pytest.mark.parametrize("kind", ["ours", "bert", "llama 2", "gpt2"])
def test_a_causal_model_that_learnt_sources_is_asked_as_it_was_trained(tmp_path, kind):
    (one,), _ = encode_all("seq2seq", Framing(tokenizer(kind)), 99, {"source": "the cat", "target": "sat"})
    learnt = [token for token, on in zip(one["tokens"], one["mask"], strict=True) if not on]
    write_manifest(tmp_path, {"recipe": {"objective": {"kind": "seq2seq"}}})
    spec = read_text_spec(tmp_path, case("llama").tiny())
    assert Framing(tokenizer(kind), spec).prompt("the cat") == learnt
    newline = tokenizer(kind).encode("the cat\n")
    assert learnt[-len(newline) :] == newline, "and nothing after the text"
    assert read_text_spec(tmp_path, case("t5").tiny()).separator == "" == text_spec(case("llama").tiny()).separator


def test_a_model_without_token_types_learns_pairs(tmp_path):
    row = {"text": "the cat", "pair": "the dog", "label": "a"}
    for name, has in (("bert", True), ("distilbert", False)):
        spec = text_spec(case(name).tiny())
        assert spec.reads_types is has
    probe = tokenizer("bert")
    backend = tokenizers.Tokenizer.from_str(probe.backend.to_str())
    special = [(mark, backend.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    pairs = Tokenizer(backend, probe.described)
    for reads_types in (True, False):
        (one,), _ = encode_all("classify", Framing(pairs, TextSpec(reads_types=reads_types)), 99, row, classes=["a"])
        assert ("types" in one) is reads_types


def test_a_piece_that_goes_on_has_no_end(framing):
    (part, whole), _ = encode_all("text", framing, 99, {"text": "the cat", "continues": True}, {"text": " sat"})
    opening, encode, eos = framing.tokenizer.opening, framing.tokenizer.encode, framing.tokenizer.eos
    assert part["tokens"] == [*opening, *encode("the cat")] and whole["tokens"] == [*opening, *encode(" sat"), eos]


def test_a_text_of_a_million_tokens_is_cut_before_it_is_encoded(framing, monkeypatch):
    seen = list[int]()
    plain = framing.tokenizer.encode_framed_batch
    monkeypatch.setattr(
        framing.tokenizer, "encode_framed_batch", lambda texts: (seen.extend(map(len, texts)), plain(texts))[1]
    )
    (one,), encoder = encode_all("classify", framing, 32, {"text": "a cat " * 170_000, "label": "x"}, classes=["x"])
    assert len(one["tokens"]) == 32 and encoder.cut == 1 and max(seen) <= CHARS * 32
    (one,), _ = encode_all("classify", framing, 32, {"text": " " * 5000 + "cat", "label": "x"}, classes=["x"])
    assert len(one["tokens"]) == 32


def test_what_was_encoded_is_verified_and_bound_to_what_it_was_made_from(tmp_path, framing):
    made = encoded(tmp_path, chats(40), framing, 48)
    examples = ingest_examples(tmp_path / "data.jsonl", tmp_path / "again")
    again = encode_examples(tmp_path / "tokens", examples, framing, seq_len=48)
    assert again.hash == made.hash and again.train.places.tolist() == list(range(len(examples.train)))
    for i, example in enumerate(examples.train):
        ids, mask = framing.chat_example(example.fields["messages"])
        assert made.train.example(i)["tokens"].tolist() == ids and made.train.example(i)["mask"].tolist() == mask
    with pytest.raises(MismatchError, match="seq_len 48, not 64"):
        encode_examples(tmp_path / "tokens", examples, framing, seq_len=64)
    other = Framing(framing.tokenizer.with_chat_template(FORGETS))
    with pytest.raises(MismatchError, match="chat_template"):
        encode_examples(tmp_path / "tokens", examples, other, seq_len=48)
    file = tmp_path / "tokens" / "train" / "tokens.bin"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"tokens.bin: damaged"):
        encode_examples(tmp_path / "tokens", examples, framing, seq_len=48)


def test_what_cannot_be_encoded_is_refused_with_the_way_out(tmp_path, framing):
    thoughts = [{"messages": chat(f"{i}", "<think>x</think>a", "b", "c")} for i in range(20)]
    forgets = Framing(framing.tokenizer.with_chat_template(FORGETS))
    with pytest.raises(DataError, match=r"does not say where the answers.*--as seq2seq"):
        encoded(tmp_path / "a", thoughts, forgets, 99)
    assert not (tmp_path / "a" / "tokens" / "train").exists()
    with pytest.raises(DataError, match=r"no example can be encoded \(a chat over 5 tokens: 16\): .*--seq-len"):
        encoded(tmp_path / "b", chats(20), framing, 4)


def test_the_suggested_length_holds_the_examples(tmp_path, framing):
    made = encoded(tmp_path, chats(50), framing, 64)
    examples = ingest_examples(tmp_path / "data.jsonl", tmp_path / "again")
    lengths = example_lengths(examples.train, "chat", framing, 64)
    assert sorted(lengths) == sorted(made.train.lengths)
    assert suggest_seq_len(lengths, 64) == -(-max(lengths) // 8) * 8
    assert suggest_seq_len(np.array([3] * 99 + [900]), 1024) == 8 and suggest_seq_len(np.array([2000]), 100) == 100


def test_only_what_is_too_long_counts_as_the_longest(tmp_path, framing):
    thoughts = [{"messages": chat(f"{i}", "<think>x</think>a", "b", "c")} for i in range(30)]
    long = [{"messages": chat(f"{i}", "the cat sat on the mat " * 40)} for i in range(10)]
    forgets = Framing(framing.tokenizer.with_chat_template(FORGETS))
    examples = [Example(str(i), row) for i, row in enumerate([*chats(60), *thoughts, *long])]
    lengths = example_lengths(examples, "chat", forgets, 64)
    assert len(lengths) == 70 and sorted(lengths)[-10:] == [64] * 10 and sorted(lengths)[59] < 64


# --- batches ---------------------------------------------------------------------------------------------------------


def test_packing_by_hand():
    assert pack(np.array([8, 6, 4, 4, 2]), 8) == [[0], [1, 4], [2, 3]]
    assert pack(np.array([5, 5, 3, 2, 1]), 8) == [[0, 3, 4], [1, 2]], "of equal rows the last one first"


def test_a_packed_epoch_has_every_example_once_and_depends_on_its_number_alone(tmp_path, framing):
    split = encoded(tmp_path, chats(60), framing, 64).train
    batches = PackedExamples(split, seq_len=64, batch_size=3, seed=5)
    assert batches.padding < 0.3 and batches.steps_per_epoch == -(-batches.n_rows // 3)
    want = Counter(tuple(split.example(i)["tokens"].tolist()) for i in range(len(split)))
    orders = []
    for epoch in range(2):
        got, rows = Counter(), 0
        for n in range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch):
            batch = batches[n]
            for row in range(3):
                rows += 1
                if rows > batches.n_rows:  # filled up
                    continue
                for document in range(int(batch["documents"][row].max()) + 1):
                    here = batch["documents"][row] == document
                    ids = batch["tokens"][row][here].tolist() + batch["targets"][row][here].tolist()[-1:]
                    got[tuple(ids)] += 1
        assert got == want
        orders.append(batches[epoch * batches.steps_per_epoch]["tokens"])
    assert not torch.equal(*orders)
    fresh = PackedExamples(split, seq_len=64, batch_size=3, seed=5)
    late = 2 * batches.steps_per_epoch + 1
    assert all(torch.equal(value, batches[late][name]) for name, value in fresh[late].items())
    other = PackedExamples(split, seq_len=64, batch_size=3, seed=6)
    assert not torch.equal(other[0]["tokens"], fresh[0]["tokens"])


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_ranks_share_a_batch(tmp_path, framing, kind):
    rows = chats(40) if kind == "packed" else [{"text": f"cat {i}", "label": f"{i % 2}"} for i in range(40)]
    made = encoded(tmp_path, rows, framing, 64)
    whole = training_batches(made, batch_size=4, seed=1)
    parts = [training_batches(made, batch_size=4, seed=1, rank=rank, world_size=2) for rank in range(2)]
    for n in (0, 7, 100):
        ids = torch.cat([part[n]["sample_ids"] for part in parts])
        assert torch.equal(ids, whole[n]["sample_ids"])
    with pytest.raises(DataError, match="batch_size 4 is not a multiple of 3"):
        training_batches(made, batch_size=4, seed=1, world_size=3)


@pytest.mark.parametrize("name", ["llama", "mamba", "rwkv"])
@torch.no_grad()
def test_packed_examples_do_not_leak_into_each_other(tmp_path, name):
    """The loss of a packed batch is the sum of the losses of its examples, each alone in a batch without padding."""
    framing = Framing(tokenizer("gpt2"))
    framing = Framing(framing.tokenizer.with_chat_template())
    split = encoded(tmp_path, chats(24), framing, 96).train
    model = case(name).tiny(vocab_size=framing.tokenizer.vocab_size)
    packed = PackedExamples(split, seq_len=96, batch_size=2, seed=0)[1]
    assert int(packed["documents"].max()) > 0
    whole = Causal()(model, packed)["loss"]
    nats, count = 0.0, 0
    for row in range(2):
        for document in range(int(packed["documents"][row].max()) + 1):
            here = packed["documents"][row] == document
            alone = {key: packed[key][row][here][None] for key in ("tokens", "targets", "loss_mask")}
            alone["documents"] = torch.zeros_like(alone["tokens"])
            term = Causal()(model, alone)["loss"]
            nats, count = nats + float(term.sum), count + int(term.count)
    assert int(whole.count) == count and float(whole.sum) == pytest.approx(nats, rel=1e-5)


def test_padded_rows_are_of_similar_length_and_an_epoch_has_every_example(tmp_path, framing):
    rows = [{"text": "cat " * (i % 30 + 1) + str(i), "label": i % 3} for i in range(200)]
    split = encoded(tmp_path, rows, framing, 64).train
    assert split.lengths is split.lengths, "computed once, not for each row"
    batches = PaddedExamples(split, batch_size=6, seed=0)
    assert batches.steps_per_epoch == -(-160 // 6)
    seen, used, size = Counter(), 0, 0
    for n in range(batches.steps_per_epoch):
        batch = batches[n]
        seen.update(batch["sample_ids"].tolist())
        used, size = used + int((batch["documents"] == 0).sum()), size + batch["documents"].numel()
        assert batch["tokens"].shape[1] % 8 == 0 and batch["labels"].dtype == torch.int64
        for row, i in enumerate(batch["sample_ids"].tolist()):
            example = split.example(i)
            length = len(example["tokens"])
            assert batch["tokens"][row][:length].tolist() == example["tokens"].tolist()
            assert batch["documents"][row].tolist() == [0] * length + [-1] * (batch["tokens"].shape[1] - length)
            assert int(batch["labels"][row]) == int(example["labels"])
    assert set(seen) == set(range(160)) and sum(seen.values()) == 6 * batches.steps_per_epoch
    assert used / size > 0.8


def test_evaluation_has_each_example_once_in_order(tmp_path, framing):
    tags = [{"tokens": ["cat", f"w{i}"], "tags": ["N", "V"]} for i in range(50)]
    for name, rows in (("chat", chats(50)), ("tag", tags)):
        split = encoded(tmp_path / name, rows, framing, 64).held_out
        batches = example_batches(split, batch_size=4)
        assert len(batches) == 3 and len(list(batches)) == 3
        assert torch.cat([batch["sample_ids"] for batch in batches]).tolist() == list(range(10))
        counted = sum(int(batch["loss_mask"].sum()) for batch in batches)
        assert counted == sum(int(split.example(i)["mask"].sum()) for i in range(10))
        assert all(batch["loss_mask"][batch["documents"] < 0].sum() == 0 for batch in batches)


def test_values_and_sources_in_batches(tmp_path):
    t5 = Framing(tokenizer("t5"), TextSpec(reads_source=True))
    made = encoded(tmp_path / "a", [{"text": f"cat {i}", "label": i / 7} for i in range(40)], t5, 32)
    batch = training_batches(made, batch_size=4, seed=0)[0]
    assert batch["labels"].dtype == torch.float32
    rows = [{"source": f"the cat {i}", "target": "sat on" + " the" * (i % 4)} for i in range(40)]
    made = encoded(tmp_path / "b", rows, t5, 32)
    batch = training_batches(made, batch_size=4, seed=0, start_id=9)[0]
    for row, i in enumerate(batch["sample_ids"].tolist()):
        example = made.train.example(i)
        n = len(example["tokens"])
        assert batch["targets"][row][:n].tolist() == example["tokens"].tolist()
        assert batch["tokens"][row][:n].tolist() == [9, *example["tokens"][:-1].tolist()]
        assert batch["loss_mask"][row].tolist() == (batch["documents"][row] == 0).tolist()
        assert batch["source"][row][batch["source_documents"][row] == 0].tolist() == example["source"].tolist()
