# SPDX-License-Identifier: Apache-2.0
"""BART's infilling: how much is hidden, in spans of which lengths, and that the target is the whole document."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, poisson

from foundling.data.transforms.infill import InfillBatches, infill, span_lengths
from foundling.data.transforms.special import mask_id, sentinel_ids
from foundling.errors import ConfigError
from foundling.runtime.rng import generator
from foundling.text import Tokenizer

MASK, EOS = 99, 1


def test_span_lengths_are_poisson() -> None:
    """The first 100 spans of long documents, which the shortening of the last one does not reach."""
    lengths = np.concatenate([span_lengths(4000, 0.3, 3.0, generator("lengths", i))[:100] for i in range(60)])
    assert len(lengths) == 6000
    most = 9
    counts = np.bincount(np.minimum(lengths, most), minlength=most + 1)
    expected = [poisson.pmf(k, 3) for k in range(most)] + [poisson.sf(most - 1, 3)]
    assert chisquare(counts, 6000 * np.array(expected)).pvalue > 1e-3


@pytest.mark.parametrize("length", [1, 2, 5, 40, 1000])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_the_share_is_hidden_and_a_source_is_never_longer(length: int, rate: float) -> None:
    tokens = np.arange(length) + 100
    for i in range(50):
        rng = generator("share", i)
        lengths = span_lengths(length, rate, 3.0, rng)
        source = infill(tokens, lengths, MASK, rng)
        assert lengths.sum() == round(length * rate)
        assert (source == MASK).sum() == len(lengths) and len(source) <= length
        visible = source[source != MASK]
        assert len(visible) == length - round(length * rate) and (np.diff(visible) > 0).all()


def test_by_hand() -> None:
    """Every place of two spans among three visible tokens, ABC.DE. and the like in the paper's figure 2."""
    tokens, seen = np.array([1, 2, 3, 4, 5]), set()
    for i in range(300):
        seen.add(tuple(infill(tokens, np.array([2, 0]), MASK, generator("hand", i)).tolist()))
    spans = set()
    for first in range(4):  # how many visible tokens precede the span of two, and then the inserted mask
        for second in range(first, 4):
            rest = [*tokens[:first], MASK, *tokens[first + 2 :]]
            at = second + 1
            spans.add(tuple(int(t) for t in [*rest[:at], MASK, *rest[at:]]))
    assert seen == spans and len(spans) == 10


def test_every_place_is_hidden_as_often() -> None:
    places = []
    for i in range(400):
        rng = generator("places", i)
        source = infill(np.arange(100) + 100, span_lengths(100, 0.3, 3.0, rng), MASK, rng)
        places += [token for token in range(100) if token + 100 not in source]
    assert len(places) == 400 * 30
    thinned = np.random.default_rng(0).choice(np.array(places), 1000, replace=False)  # few of one document: independent
    assert kstest((thinned + np.random.default_rng(1).random(1000)) / 100, "uniform").pvalue > 1e-3


class Packed:
    def __init__(self) -> None:
        self.batch = {
            "tokens": torch.randint(2, 90, (4, 60), generator=generator("tokens")),
            "documents": torch.tensor([[0] * 20 + [1] * 2 + [2] * 33 + [-1] * 5] * 4),
            "sample_ids": torch.arange(4),
        }

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        return self.batch


def test_targets_are_the_documents_and_sources_stay_apart() -> None:
    packed = Packed()
    batch = InfillBatches(packed, seed=3, mask=MASK, eos=EOS, start_id=7)[0]
    assert batch["source"].shape == (4, 60) and batch["tokens"].shape == batch["targets"].shape == (4, 76)
    for row in range(4):
        for document in range(3):
            whole = packed.batch["tokens"][row][packed.batch["documents"][row] == document].tolist()
            target = batch["targets"][row][batch["documents"][row] == document].tolist()
            read = batch["tokens"][row][batch["documents"][row] == document].tolist()
            source = batch["source"][row][batch["source_documents"][row] == document].tolist()
            assert target == [*whole, EOS] and read == [7, *target[:-1]]
            rest = iter(whole)
            assert all(token in rest for token in source if token != MASK), "visible tokens in their order"
            assert document == 1 or MASK in source
    assert torch.equal(batch["loss_mask"], batch["documents"] >= 0)
    assert torch.equal(batch["sample_ids"], packed.batch["sample_ids"])


def test_without_corruption_the_source_is_the_document() -> None:
    packed = Packed()
    batch = InfillBatches(packed, seed=3, mask=MASK, eos=EOS, rate=0.0)[0]
    real = packed.batch["documents"] >= 0
    assert torch.equal(batch["source_documents"], packed.batch["documents"])
    assert torch.equal(batch["source"][real], packed.batch["tokens"][real])


def test_what_is_hidden_depends_on_seed_and_sample_alone() -> None:
    packed = Packed()
    one = InfillBatches(packed, seed=3, mask=MASK, eos=EOS)[0]
    other = InfillBatches(packed, seed=4, mask=MASK, eos=EOS)[0]
    assert not torch.equal(one["source"], other["source"])
    packed.batch = {name: value[[2, 0]] for name, value in packed.batch.items()}
    again = InfillBatches(packed, seed=3, mask=MASK, eos=EOS)[0]
    for name, value in one.items():
        assert torch.equal(again[name], value[[2, 0]]), name


def test_a_target_that_does_not_fit_is_left_out() -> None:
    packed = Packed()
    batch = InfillBatches(packed, seed=3, mask=MASK, eos=EOS, target_len=30)[0]
    assert set(batch["documents"].unique().tolist()) == {-1, 0, 1}
    last = batch["source"][0][batch["source_documents"][0] == 2].tolist()
    assert last == packed.batch["tokens"][0][packed.batch["documents"][0] == 2].tolist()


def test_bart_reads_the_batches_and_each_target_its_own_source() -> None:
    from foundling.objectives.causal import Causal
    from tests.contract.cases import case

    model = case("bart").tiny()
    packed = Packed()
    packed.batch["tokens"] %= 60
    batch = InfillBatches(packed, seed=3, mask=61, eos=EOS, target_len=60)[0]
    with torch.no_grad():
        (term,) = Causal()(model, batch).values()
        changed = batch | {"source": torch.where(batch["source_documents"] == 2, 5, batch["source"])}
        only_two = {"loss_mask": batch["documents"] == 2}
        others = {"loss_mask": (batch["documents"] >= 0) & (batch["documents"] != 2)}
        for mask, moves in ((only_two, True), (others, False)):
            before, after = (next(iter(Causal()(model, b | mask).values())).sum for b in (batch, changed))
            assert torch.equal(before, after) != moves
    assert int(term.count) == int(batch["loss_mask"].sum()) and torch.isfinite(term.sum)


def test_bad_options_are_refused() -> None:
    for wrong in (dict(rate=1.0), dict(rate=-0.1), dict(mean_span=0.5)):
        with pytest.raises(ConfigError, match="expected 0 <= rate < 1"):
            InfillBatches(Packed(), **(dict(seed=0, mask=MASK, eos=EOS) | wrong))


# --- the tokens that stand for hidden text ---------------------------------------------------------------------------


def test_our_tokenizer_takes_spare_tokens() -> None:
    tokenizer = Tokenizer.train(["some text to train on"] * 3, 320)
    mask, sentinels = mask_id(tokenizer), sentinel_ids(tokenizer)
    names = [tokenizer.backend.id_to_token(token) for token in (mask, *sentinels)]
    assert names == [f"<|spare_{i}|>" for i in range(16)]
    assert tokenizer.special >= {mask, *sentinels}


def test_named_masks_and_sentinels_are_used(tmp_path) -> None:
    import tokenizers
    from tokenizers import AddedToken, models

    backend = tokenizers.Tokenizer(models.BPE())
    backend.add_special_tokens([AddedToken(name, special=True) for name in ("</s>", "<mask>")])
    bart = Tokenizer(backend, {"eos_token": "</s>", "mask_token": "<mask>"})
    assert mask_id(bart) == backend.token_to_id("<mask>")
    with pytest.raises(ConfigError, match="extra_id_0"):
        sentinel_ids(bart)
    backend = tokenizers.Tokenizer(models.BPE())
    names = ["</s>", *(f"<extra_id_{i}>" for i in range(99, -1, -1))]
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    t5 = Tokenizer(backend, {"eos_token": "</s>"})
    assert sentinel_ids(t5) == tuple(backend.token_to_id(f"<extra_id_{i}>") for i in range(100))
    with pytest.raises(ConfigError, match="mask_token"):
        mask_id(t5)
