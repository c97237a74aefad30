# SPDX-License-Identifier: Apache-2.0
"""Learning from rewards: every formula by hand, gradients against finite differences and whole logits, estimators
against sums over all outcomes, and small problems whose optimum is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundling.blocks.init import BASE_WIDTH
from foundling.contracts.data import Batch
from foundling.contracts.model import ModelOutput
from foundling.contracts.objective import total
from foundling.errors import ConfigError
from foundling.objectives import causal, chunked
from foundling.objectives.policy import (
    COLUMNS,
    PolicyGradient,
    ValueHead,
    adapted_kl_coef,
    generalised_advantages,
    group_advantages,
    k3,
    logprobs_of,
    score_tokens,
    whitened,
)
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.state import TrainState
from foundling.train.update import update
from tests.contract.cases import case

LN2 = math.log(2)


def tokens_of(*ratios: float, advantages: list[float]) -> dict[str, Tensor]:
    """Columns of tokens whose old probability was 0.5, drawn as they were trained; each an answer of its own."""
    old = torch.full((len(ratios),), -LN2)
    return {
        "sampler_logprobs": old, "old_logprobs": old, "advantages": torch.tensor(advantages),
        "share": torch.ones(len(ratios)), "rewards": torch.tensor(advantages),
    }  # fmt: skip


def test_clipping_by_hand() -> None:
    """Raised too far with a gain, and lowered too far with a loss, an update stops; the other ways it goes on."""
    ratios, advantages = [1.5, 1.5, 0.5, 0.5, 1.1], [2.0, -2.0, 2.0, -2.0, 1.0]
    logprobs = torch.tensor([-LN2 + math.log(ratio) for ratio in ratios], requires_grad=True)
    loss, metrics = PolicyGradient().of_tokens(logprobs, tokens_of(*ratios, advantages=advantages))
    assert loss.item() == pytest.approx(-(1.2 * 2) + 1.5 * 2 - 0.5 * 2 + 0.8 * 2 - 1.1)
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.0, 3.0, -1.0, 0.0, -1.1])
    assert metrics["clipped"] == 2 and metrics["mismatch"] == 0
    assert metrics["entropy"].item() == pytest.approx(-logprobs.sum().item())
    wide, _ = PolicyGradient(clip_high=0.6).of_tokens(logprobs, tokens_of(*ratios, advantages=advantages))
    assert wide.item() == pytest.approx(loss.item() - 0.3 * 2)


def test_the_penalty_and_the_correction_by_hand() -> None:
    """KL by k3; what the engine drew with another probability is weighed by the ratio, at most the cap."""
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    column = {
        "sampler_logprobs": torch.tensor([-1.5, -3.5]), "advantages": torch.tensor([1.0, 1.0]),
        "share": torch.tensor([0.5, 0.5]), "rewards": torch.zeros(2), "reference_logprobs": torch.tensor([-1.2, -1.0]),
    }  # fmt: skip
    kl = [math.exp(-0.2) - 1 + 0.2, math.exp(1.0) - 1 - 1.0]
    loss, metrics = PolicyGradient(kl_coef=0.1).of_tokens(logprobs, column)
    assert metrics["kl_per_token"].item() == pytest.approx(sum(kl)) and metrics["mismatch"].item() == pytest.approx(2.0)
    # the ratio to the policy itself is 1, whatever the engine drew with
    assert loss.item() == pytest.approx(-math.exp(0.5) - 2.0 + 0.1 * sum(kl))
    halves, _ = PolicyGradient(kl_coef=0.1, normalise="sequence").of_tokens(logprobs, column)
    assert halves.item() == pytest.approx(loss.item() / 2)
    quarters, _ = PolicyGradient(kl_coef=0.1, normalise="constant", max_tokens=4).of_tokens(logprobs, column)
    assert quarters.item() == pytest.approx(loss.item() / 4)


def test_gradients_are_those_of_finite_differences() -> None:
    draw = generator("differences")
    column = {name: torch.randn(6, generator=draw, dtype=torch.float64) for name in COLUMNS}
    column["share"] = torch.full((6,), 1 / 6, dtype=torch.float64)
    column["old_logprobs"] = column["sampler_logprobs"] - 0.3
    logprobs = (column["old_logprobs"] + 0.1 * torch.randn(6, generator=draw, dtype=torch.float64)).requires_grad_()
    for normalise in ("token", "sequence", "constant"):
        objective = PolicyGradient(kl_coef=0.2, normalise=normalise, max_tokens=9)
        assert torch.autograd.gradcheck(lambda x, o=objective: o.of_tokens(x, column)[0], logprobs)


def test_advantages_by_hand() -> None:
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.2, 0.4])
    deltas = [0.2 * 0.9 - 0.5, 0.4 * 0.9 - 0.2, 1.0 - 0.4]
    expected = [deltas[0] + 0.72 * (deltas[1] + 0.72 * deltas[2]), deltas[1] + 0.72 * deltas[2], deltas[2]]
    advantages, returns = generalised_advantages(rewards, values, gamma=0.9, lam=0.8)
    assert advantages.tolist() == pytest.approx(expected)
    assert returns.tolist() == pytest.approx([a + v for a, v in zip(expected, values.tolist())])
    # λ = 1: what came of it, less what was expected; λ = 0: the error of one step
    assert generalised_advantages(rewards, values, lam=1.0)[1].tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert generalised_advantages(rewards, values, lam=0.0)[0].tolist() == pytest.approx([-0.3, 0.2, 0.6])
    group = torch.tensor([[1.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    scaled = group_advantages(group)
    assert scaled[0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-3) and not scaled[1].any()
    assert group_advantages(group, scale=False)[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    one, other = whitened([torch.tensor([1.0, 2.0]), torch.tensor([3.0])])
    assert [*one.tolist(), *other.tolist()] == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)])
    assert adapted_kl_coef(0.1, 6.0, 5.0) == pytest.approx(0.1 * 1.02)
    assert adapted_kl_coef(0.1, 600.0, 5.0) == pytest.approx(0.1 * 1.02) and adapted_kl_coef(
        0.1, 0.0, 5.0
    ) == pytest.approx(0.1 * 0.98)


def test_the_estimate_of_kl_is_unbiased_and_never_negative() -> None:
    draw = generator("kl")
    policy, reference = (torch.randn(7, generator=draw, dtype=torch.float64).log_softmax(0) for _ in range(2))
    exact = (policy.exp() * (policy - reference)).sum()
    estimates = k3(policy, reference)
    torch.testing.assert_close((policy.exp() * estimates).sum(), exact)
    assert (estimates >= 0).all() and exact > 0.1
    naive = policy - reference  # unbiased too, with a larger variance
    spread = lambda e: (policy.exp() * (e - exact).square()).sum()  # noqa: E731
    assert spread(estimates) < spread(naive)


@pytest.mark.parametrize("change", [{"clip_low": 0.0}, {"clip_low": 1.0}, {"clip_high": -1.0}, {"kl_coef": math.nan}])
def test_settings_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        PolicyGradient(**change)  # pyright: ignore[reportArgumentType]


# --- through a model --------------------------------------------------------------------------------------------------


def packed(vocab: int) -> Batch:
    """Two rows: two answers in the first, one and padding in the second."""
    draw = generator("packed")
    tokens = torch.randint(vocab, (2, 16), generator=draw)
    documents = torch.tensor([[0] * 9 + [1] * 7, [0] * 11 + [-1] * 5])
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 3:9] = mask[0, 12:16] = mask[1, 6:11] = True
    batch = {"tokens": tokens, "targets": torch.randint(vocab, (2, 16), generator=draw), "documents": documents}
    columns = {name: torch.randn(2, 16, generator=draw) * mask for name in COLUMNS}
    share = torch.zeros(2, 16)
    share[0, 3:9], share[0, 12:16], share[1, 6:11] = 1 / 6, 1 / 4, 1 / 5
    logprobs = -3 + 0.1 * torch.randn(2, 16, generator=draw)
    return batch | {"loss_mask": mask} | columns | {
        "share": share, "sampler_logprobs": logprobs * mask, "old_logprobs": (logprobs + 0.05) * mask,
        "reference_logprobs": (logprobs - 0.1) * mask,
    }  # fmt: skip


@pytest.mark.parametrize("normalise", ["token", "sequence", "constant"])
def test_chunks_and_micro_batches_give_the_gradient_of_the_whole(normalise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_LOGITS", 1)
    of = case("llama")
    objective = PolicyGradient(kl_coef=0.2, normalise=normalise, max_tokens=8, value_coef=0.3)

    def gradients(parts: list[Batch], *, whole: bool) -> dict[str, Tensor]:
        model = of.tiny()
        model.value_head = ValueHead(64)
        nn.init.normal_(model.value_head.weight, generator=generator("head"))
        counts = objective.normalizers(packed(model.config.vocab_size))
        for batch in parts:
            if whole:
                loss = plain(objective, model, batch)
            else:
                loss = total(objective(model, batch), counts)
            loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    batch = packed(of.tiny().config.vocab_size)
    rows = [{name: column[i : i + 1] for name, column in batch.items()} for i in range(2)]
    expected = gradients([batch], whole=True)
    for parts in ([batch], rows):
        for name, gradient in gradients(parts, whole=False).items():
            torch.testing.assert_close(gradient, expected[name], rtol=2e-4, atol=2e-6)


def plain(objective: PolicyGradient, model, batch: Batch) -> Tensor:
    """The same loss with all logits at once."""
    hidden, mask = causal.read(model, batch).hidden, batch["loss_mask"]
    logprobs = logprobs_of(model.logits(hidden[mask]), batch["targets"][mask])
    column = {name: batch[name][mask] for name in COLUMNS}
    loss, _ = objective.of_tokens(logprobs, column)
    counts = objective.normalizers(batch)
    values = objective.value_loss(model, hidden[mask], column)
    return loss / counts["loss"] + objective.value_coef * values / counts["value"]


def test_what_is_logged_is_counted_over_answers_and_tokens() -> None:
    model, batch = case("llama").tiny(), packed(case("llama").tiny().config.vocab_size)
    objective = PolicyGradient()
    counts, terms = objective.normalizers(batch), objective(model, batch)
    assert (counts["loss"], counts["reward"], counts["kl_per_token"], counts["length"]) == (15, 3, 15, 3)
    rewards = batch["rewards"]
    expected = rewards[0, 3:9].mean() + rewards[0, 12:16].mean() + rewards[1, 6:11].mean()
    torch.testing.assert_close(terms["reward"].sum, expected)
    assert terms["length"].sum == 15 and terms["reward"].weight == 0.0
    logprobs, values = score_tokens(model, batch)
    mask, targets = batch["loss_mask"], batch["targets"]
    whole = F.log_softmax(model.logits(causal.read(model, batch).hidden).double(), -1)
    torch.testing.assert_close(
        logprobs[mask].double(), whole.gather(-1, targets[..., None])[..., 0][mask], atol=1e-5, rtol=0
    )
    assert values is None and not logprobs[~mask].any()


# --- problems whose optimum is known ----------------------------------------------------------------------------------


class Tabular(nn.Module):
    """A policy over tokens 0 … n − 1 with a number for each (state, token): the state is what was read so far, at most
    one token after the start, n."""

    def __init__(self, n: int, steps: int) -> None:
        super().__init__()
        self.n, self.n_states = n, 1 if steps == 1 else n + 1
        self.head = nn.Linear(self.n_states, n, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(0.5 * torch.randn(self.head.weight.shape, generator=generator("tabular", n)))

    def forward(self, tokens: Tensor, documents: Tensor | None = None) -> ModelOutput:
        states = torch.where(tokens == self.n, 0, tokens + 1)
        return ModelOutput(F.one_hot(states, self.n_states).float(), {})

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)

    def table(self) -> Tensor:
        """(states, n) log-probabilities"""
        return self.head.weight.detach().double().mT.log_softmax(1)


def learn(model: Tabular, rewards: Tensor, kl_coef: float, *, ppo: bool, steps: int = 400, size: int = 512) -> None:
    """`rewards` (n,) of one token, or (n, n) of two; answers are drawn, scored and learnt from, as in a run."""
    reference, length = model.table(), rewards.dim()
    rate = 0.05 * model.n_states / BASE_WIDTH  # of a head, which is stated at that width
    state = TrainState.build(model, OptimOptions(optimizer="adamw", learning_rate=rate, weight_decay=0.0))
    objective = PolicyGradient(kl_coef=0.0 if ppo else kl_coef, value_coef=0.5 if ppo else 0.0)
    draw, documents = generator("draws"), torch.zeros(size, length, dtype=torch.int64)
    for step in range(steps):
        table, drawn = model.table(), torch.zeros(size, 0, dtype=torch.int64)
        places = torch.zeros(size, dtype=torch.int64)
        logprobs, others = [], []
        for _ in range(length):
            token = torch.multinomial(table.exp()[places], 1, generator=draw)
            logprobs.append(table[places].gather(1, token))
            others.append(reference[places].gather(1, token))
            drawn, places = torch.cat((drawn, token), 1), token[:, 0] + 1
        own, other = (torch.cat(parts, 1).float() for parts in (logprobs, others))
        earned = rewards[tuple(drawn.T)].float()
        tokens = torch.cat((torch.full((size, 1), model.n), drawn[:, :-1]), 1)
        batch = {
            "tokens": tokens, "targets": drawn, "documents": documents, "sampler_logprobs": own,
            "loss_mask": torch.ones(size, length, dtype=torch.bool), "reference_logprobs": other,
            "share": torch.full((size, length), 1 / length), "rewards": earned[:, None].expand(-1, length),
        }  # fmt: skip
        if ppo:
            values = model.value_head(model(tokens).hidden).detach()
            each = -kl_coef * (own - other)
            each[:, -1] += earned
            advantages, returns = generalised_advantages(each, values, lam=1.0)
            batch |= {"returns": returns, "advantages": whitened([advantages])[0]}
        else:
            batch["advantages"] = group_advantages(earned[None], scale=False)[0][:, None].expand(-1, length)
        scale = 1.0 if step < steps // 2 else 2 * (1 - step / steps)
        update(state, objective, batch, TrainOptions(size, clip=10.0), Runtime(threads=1), lr_scale=scale)


def divergence(policy: Tensor, other: Tensor) -> float:
    return float((policy.exp() * (policy - other)).sum())


def test_ppo_finds_the_optimum_of_a_bandit() -> None:
    """max E[r] − β KL(π ‖ π_ref) is reached by π ∝ π_ref exp(r / β)."""
    rewards, model = torch.tensor([1.0, 0.5, 0.0, -1.0, 0.8]), Tabular(5, 1)
    model.value_head = ValueHead(1)
    best = (model.table()[0] + rewards.double() / 0.5).log_softmax(0)
    before = divergence(model.table()[0], best)
    learn(model, rewards, 0.5, ppo=True)
    assert divergence(model.table()[0], best) < 0.01 < 0.1 < before


def test_ppo_finds_the_optimum_of_two_steps() -> None:
    """Of all pairs of tokens the same law holds for the pair, π(a, b) ∝ π_ref(a, b) exp(r(a, b) / β)."""
    rewards, model = torch.rand(3, 3, generator=generator("rewards")), Tabular(3, 2)
    rewards[1, 2] += 1.0  # the second step decides
    model.value_head = ValueHead(4)
    joint = lambda table: table[0][:, None] + table[1:]  # noqa: E731
    best = (joint(model.table()) + rewards.double() / 0.3).flatten().log_softmax(0)
    before = divergence(joint(model.table()).flatten(), best)
    learn(model, rewards, 0.3, ppo=True)
    assert divergence(joint(model.table()).flatten(), best) < 0.02 < 0.3 < before


def test_grpo_finds_the_optimum_of_a_bandit() -> None:
    """The gradient of k3 in the loss is that of KL(π_ref ‖ π): max E[r] − β KL(π_ref ‖ π) is reached by π = β π_ref /
    (λ − r), with the λ that makes a distribution of it."""
    rewards, model, beta = torch.tensor([1.0, 0.5, 0.0, -1.0, 0.8]), Tabular(5, 1), 0.5
    reference = model.table()[0].exp()
    low, high = float(rewards.max()) + 1e-9, float(rewards.max()) + 10.0
    for _ in range(200):
        middle = (low + high) / 2
        over = float((beta * reference / (middle - rewards.double())).sum()) > 1
        low, high = (middle, high) if over else (low, middle)
    best = (beta * reference / (low - rewards.double())).log()
    before = divergence(model.table()[0], best)
    learn(model, rewards, beta, ppo=False)
    assert divergence(model.table()[0], best) < 0.01 < 0.1 < before
