# SPDX-License-Identifier: Apache-2.0
"""Every family that others have too: their directories load here, ours there, with equal outputs and equal tensors."""

import json

import pytest
import torch

import foundling
from foundling.decode.request import Request
from foundling.decode.sampling import Sampling
from foundling.errors import WeightsError
from foundling.models import FAMILIES
from tests.contract.cases import case
from tests.contract.matrix import covers, families, names
from tests.parity.references import REFERENCES, TOLERANCE, randomise, tokens
from tests.rounding import close

pytest.importorskip("transformers")


@covers("exchange")
def test_both_ways(name: str, tmp_path) -> None:
    assert len(REFERENCES.get(name, ())) == 3, f"give tests/parity/references.py three small models of {name}"
    goes_both_ways(name, 0, tmp_path)


BRANCHES = {
    ("llama", 1): "rope scaled as in Llama 3",
    ("llama4", 1): "no norms of queries and keys; each layer has experts",
    ("llama4", 2): "no tempered scores without positions",
    ("mistral", 1): "no window",
    ("qwen2", 1): "windows in the later layers",
    ("qwen2", 2): "yarn",
    ("phi3", 1): "longrope of a short text and of a part of each head",
    ("phi3", 2): "longrope of a long text",
    ("gpt_neox", 2): "attention and feed-forward in sequence, not in parallel",
    ("gemma2", 2): "no soft caps: null in the file",
    ("gemma3", 2): "linear rope scaling of the global layers",
    ("bloom", 1): "slopes of a number of heads that is no power of two",
    ("mixtral", 1): "one expert a token",
    ("qwen3_moe", 1): "layers without experts by period and by number, probabilities that do not sum to one",
    ("rwkv", 2): "weights divided every second layer",
    ("t5", 1): "version 1.1: gated feed-forward, untied head",
    ("albert", 2): "two groups of layers",
    ("gpt_oss", 1): "experts clamped early, no rope scaling",
    ("modernbert", 1): "untied head, a window of an odd number",
    ("bart", 1): "scaled embeddings, untied head",
    ("bart", 2): "other heads, widths and layers in encoder and decoder",
    ("clip", 2): "eos_id 2: a text ends at its largest id",
}
"""References that run code of their own; they run in `make test`. The other ones differ in sizes."""
QUICK_OURS = ("gpt2", "llama", "mixtral", "qwen3_moe", "gpt_oss", "modernbert")


@pytest.mark.covers("exchange")
@pytest.mark.parametrize(
    ("name", "which"),
    [
        pytest.param(name, which, marks=[] if (name, which) in BRANCHES else pytest.mark.slow)
        for name in names("exchange")
        for which in (1, 2)
    ],
)
def test_other_configurations_both_ways(name: str, which: int, tmp_path) -> None:
    goes_both_ways(name, which, tmp_path)


@torch.inference_mode()
def goes_both_ways(name: str, which: int, tmp_path) -> None:
    reference = REFERENCES[name][which]
    theirs = randomise(reference.make())
    theirs.save_pretrained(tmp_path / "theirs")
    ours = foundling.load(tmp_path / "theirs")
    expected = reference.theirs(theirs)
    close(reference.ours(ours), expected, TOLERANCE.get(name))

    foundling.save(ours, tmp_path / "ours")
    back, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    close(reference.theirs(back.eval()), expected, TOLERANCE.get(name))
    for (key, a), (_, b) in zip(theirs.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), key
    again = foundling.load(tmp_path / "ours")
    assert foundling.weights.directory.weights_hash(again) == foundling.weights.directory.weights_hash(ours)


@pytest.mark.parametrize(
    "name", families([n for n in REFERENCES if FAMILIES[n].kind in ("decoder", "encoder")], QUICK_OURS)
)
@torch.inference_mode()
def test_what_was_raised_here_loads_there(name: str, tmp_path) -> None:
    """Without any key of theirs that a file of ours would pass on."""
    import transformers

    ours, x = case(name).tiny(), tokens()
    foundling.save(ours, tmp_path / "ours")
    architecture = json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"][0]
    there = getattr(transformers, architecture)
    theirs, info = there.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    close(ours.logits(ours(x).hidden), theirs.eval()(x).logits, TOLERANCE.get(name))


@pytest.mark.parametrize("name", [n for n in REFERENCES if FAMILIES[n].kind == "decoder" and n != "mamba2"])
@torch.inference_mode()
def test_padded_and_packed_rows(name: str, tmp_path) -> None:
    """Theirs is told by an attention mask, and given the documents one by one."""
    theirs = randomise(REFERENCES[name][0].make())
    theirs.save_pretrained(tmp_path)
    ours, x = foundling.load(tmp_path), tokens()
    mask = torch.ones_like(x)
    mask[1, 20:] = 0
    padded = theirs(x, attention_mask=mask).logits
    close(ours.logits(ours(x, documents=mask - 1).hidden)[1, :20], padded[1, :20], TOLERANCE.get(name))
    documents = (torch.arange(31) >= 12).long()[None].expand(3, -1)
    packed = ours.logits(ours(x, documents=documents).hidden)
    close(packed[:, 12:], theirs(x[:, 12:]).logits, TOLERANCE.get(name))


READERS = [n for n in names("exchange") if FAMILIES[n].kind == "seq2seq"]


@pytest.mark.parametrize("name", READERS)
@torch.inference_mode()
def test_padding_of_a_source(name: str, tmp_path) -> None:
    theirs, x, y = randomise(REFERENCES[name][0].make()), tokens(), tokens(2, 17)
    theirs.save_pretrained(tmp_path)
    ours = foundling.load(tmp_path)
    mask = torch.ones_like(x)
    mask[1, 20:] = 0
    expected = theirs(input_ids=x, attention_mask=mask, decoder_input_ids=y).logits
    close(ours.logits(ours(y, memory=ours.encode(x, documents=mask - 1)).hidden), expected)


@pytest.mark.parametrize("name", READERS)
def test_greedy_answers_are_theirs(name: str, tmp_path) -> None:
    theirs, x = randomise(REFERENCES[name][1].make()), tokens()  # of an untied head: others repeat what they said
    for parameter, p in theirs.named_parameters():
        if parameter.endswith("bias"):  # what is added always would choose the token alone
            p.data.zero_()
    theirs.save_pretrained(tmp_path)
    ours = foundling.load(tmp_path)
    told = dict(
        decoder_start_token_id=ours.config.start_id, pad_token_id=0, eos_token_id=None, forced_eos_token_id=None
    )
    expected = theirs.generate(x, do_sample=False, max_new_tokens=12, use_cache=False, **told)
    answers = foundling.generate(ours, x.tolist(), max_tokens=12, sampling=Sampling(0))
    assert [answer.tokens for answer in answers] == expected[:, 1:].tolist()
    assert len({tuple(answer.tokens) for answer in answers}) > 1, "the answer depends on the source"


@pytest.mark.parametrize("name", ["gpt_oss", "qwen3_moe"])
def test_greedy_answers_from_caches_are_theirs(name: str, tmp_path) -> None:
    """Longer than a window, from each library's cache and from pages."""
    theirs, x = randomise(REFERENCES[name][0].make()), tokens(7, 12)
    theirs.save_pretrained(tmp_path)
    ours, told = foundling.load(tmp_path), dict(eos_token_id=None, pad_token_id=0)
    with torch.inference_mode():
        expected = theirs.generate(x, do_sample=False, max_new_tokens=30, **told)[:, 12:].tolist()
    answers = foundling.generate(ours, x.tolist(), max_tokens=30, temperature=0)
    assert [answer.tokens for answer in answers] == expected
    engine = foundling.Engine(ours)
    ids = [engine.add(Request(prompt=row, max_tokens=30, sampling=Sampling(0))) for row in x.tolist()]
    done = {}
    while engine.busy:
        done |= {out.request_id: out.completion.tokens for out in engine.step() if out.completion}
    assert [done[i] for i in ids] == expected
    assert len({tuple(row) for row in expected}) == 3, "the answer depends on the prompt"


@torch.inference_mode()
def test_a_bias_of_the_head_that_is_not_zero_is_refused(tmp_path) -> None:
    theirs = REFERENCES["bart"][0].make()
    theirs.final_logits_bias[0, 5] = 1.0
    theirs.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="final_logits_bias"):
        foundling.load(tmp_path)


@pytest.mark.parametrize("name", ["mixtral", "jamba", "qwen3_moe", "gpt_oss"])
@torch.inference_mode()
def test_the_router_loss_is_theirs(name: str, tmp_path) -> None:
    theirs, x = randomise(REFERENCES[name][0].make()), tokens()
    theirs.save_pretrained(tmp_path)
    ours = foundling.load(tmp_path)
    mask = torch.ones_like(x)
    mask[1, 20:] = 0
    for documents, attention in ((None, None), (mask - 1, mask)):
        expected = theirs(x, attention_mask=attention, output_router_logits=True).aux_loss
        term = ours(x, documents=documents).aux["router_balance"]
        assert float(term.sum) == pytest.approx(float(expected), rel=1e-5)


@torch.inference_mode()
def test_contrastive_loss_is_theirs() -> None:
    from foundling.objectives.contrastive import info_nce

    theirs = randomise(REFERENCES["clip"][0].make())
    pixels, x = torch.randn(5, 3, 16, 16), torch.randint(3, 63, (5, 9))
    out = theirs(input_ids=x, pixel_values=pixels, return_loss=True)
    assert float(info_nce(out.logits_per_image).mean()) == pytest.approx(float(out.loss), rel=1e-6)
