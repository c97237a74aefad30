# SPDX-License-Identifier: Apache-2.0
"""Schedules and samplers against diffusers, and against what can be said without any implementation."""

import pytest
import torch

from foundling.diffusion.samplers import ddim, ddpm, guided
from foundling.diffusion.schedule import NoiseSchedule, noised, target, to_eps, to_x0
from foundling.errors import ConfigError

diffusers = pytest.importorskip("diffusers")
KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("kind", KINDS)
def test_schedules_are_those_of_diffusers(kind: str) -> None:
    theirs = diffusers.DDPMScheduler(beta_schedule=KINDS[kind]).alphas_cumprod.double()
    ours = NoiseSchedule(kind=kind).alpha_bar()  # theirs is summed up in float32
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=1e-6)
    assert (ours.diff() < 0).all() and 0 < ours[-1] < ours[0] < 1


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("linear", [0.9, 0.9 * 0.75, 0.9 * 0.75 * 0.6]),  # β 0.1, 0.25, 0.4
        ("scaled_linear", [0.9, 0.9 * 0.775, 0.9 * 0.775 * 0.6]),  # the middle β ((√0.1 + √0.4) / 2)² = 0.225
        # cos² of 0.012467, 0.531910, 1.051353 is 0.999845, 0.742768, 0.246410; the last β is held at 0.999
        ("cosine", [0.742884, 0.246448, 0.000246448]),
    ],
)
def test_schedules_by_hand(kind: str, expected: list[float]) -> None:
    bars = NoiseSchedule(3, kind, 0.1, 0.4).alpha_bar()
    torch.testing.assert_close(bars, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_whatever_is_predicted_leads_back(predicts: str) -> None:
    x0, eps = torch.randn(4, 1, 3, 3, dtype=torch.float64), torch.randn(4, 1, 3, 3, dtype=torch.float64)
    bars = torch.tensor([0.999, 0.7, 0.3, 0.01], dtype=torch.float64)
    x = noised(x0, eps, bars)
    said = target(x0, eps, bars, predicts)
    torch.testing.assert_close(to_x0(x, said, bars, predicts), x0)
    torch.testing.assert_close(to_eps(x, x0, bars), eps)


def network(x: torch.Tensor, t: int) -> torch.Tensor:
    return torch.tanh(x * 0.7 + t / 1000)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
@pytest.mark.parametrize("n", [10, 50])
def test_samplers_are_those_of_diffusers(predicts: str, n: int) -> None:
    names = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
    schedule = NoiseSchedule(predicts=predicts)
    bars, start = schedule.alpha_bar(), torch.randn(2, 1, 4, 4, dtype=torch.float64)

    def denoise(x: torch.Tensor, t: int) -> torch.Tensor:
        return to_x0(x, network(x, t), bars[t].expand(len(x)), predicts).clamp(-1, 1)

    settings = dict(prediction_type=names[predicts], clip_sample=True, timestep_spacing="leading")
    theirs = diffusers.DDIMScheduler(**settings, set_alpha_to_one=True)
    theirs.alphas_cumprod = bars  # theirs is float32, and its rounding would hide ours
    theirs.set_timesteps(n)
    assert theirs.timesteps.tolist() == schedule.spaced(n)
    x = start
    for t in theirs.timesteps.tolist():
        x = theirs.step(network(x, t), t, x, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(ddim(denoise, start, schedule, schedule.spaced(n)), x, rtol=1e-9, atol=1e-9)

    theirs = diffusers.DDPMScheduler(**settings)
    theirs.alphas_cumprod = bars
    theirs.set_timesteps(n)
    draws = torch.Generator().manual_seed(5)
    x = start
    for t in theirs.timesteps.tolist():
        x = theirs.step(network(x, t), t, x, generator=draws).prev_sample
    draws = torch.Generator().manual_seed(5)
    ours = ddpm(
        denoise,
        start,
        schedule,
        schedule.spaced(n),
        lambda t: torch.randn(start.shape, generator=draws, dtype=torch.float64),
    )
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_a_perfect_network_finds_the_picture() -> None:
    schedule = NoiseSchedule()
    x0, start = torch.rand(1, 1, 4, 4) * 2 - 1, torch.randn(1, 1, 4, 4)
    found = ddim(lambda x, t: x0, start, schedule, schedule.spaced(20))
    torch.testing.assert_close(found, x0)
    torch.testing.assert_close(
        ddpm(lambda x, t: x0, start, schedule, schedule.spaced(20), lambda t: torch.randn_like(x0)), x0
    )


def test_guidance_by_hand() -> None:
    assert float(guided(torch.tensor(3.0), torch.tensor(1.0), 2.5)) == 6.0
    assert float(guided(torch.tensor(3.0), torch.tensor(1.0), 1.0)) == 3.0


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in (dict(start=0.0), dict(end=1.0), dict(n_steps=0), dict(start=0.5, end=0.1), dict(n_steps=1 << 30)):
        with pytest.raises(ConfigError):
            NoiseSchedule(**wrong)
    for wrong in (dict(kind="sigmoid"), dict(predicts="score"), dict(predicts=["eps"])):
        with pytest.raises(ConfigError, match="expected one of"):
            NoiseSchedule(**wrong)
    with pytest.raises(ConfigError, match="1 to 1000"):
        NoiseSchedule().spaced(1001)
