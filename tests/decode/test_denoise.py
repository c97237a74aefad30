# SPDX-License-Identifier: Apache-2.0
"""Pictures, each from its own seed; a composite directory; digits that look like digits."""

import json
from types import SimpleNamespace

import pytest
import torch

from foundling.blocks.init import initialise
from foundling.contracts.denoise import Condition
from foundling.data.datasets.digits import HELD_OUT, DigitBatches, digits
from foundling.decode.denoise import denoise
from foundling.diffusion.schedule import NoiseSchedule, to_x0
from foundling.errors import GenerationError, WeightsError
from foundling.models import FAMILIES, build, family
from foundling.objectives.denoise import Denoise
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from foundling.weights.convert.diffusers import load_denoiser, save_denoiser
from foundling.weights.manifest import check
from tests.contract.cases import case, close
from tests.contract.matrix import covers

SCHEDULE = NoiseSchedule()


@covers("generate", only=[name for name, entry in FAMILIES.items() if entry.kind == "denoiser"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_row_is_its_own(name: str, sampler) -> None:
    """The network in float64: its roundings, which differ with the number of rows, are multiplied by 1 / √ᾱ, up to 150,
    and by the guidance. The sampler's own arithmetic is row by row."""
    model = case(name).tiny().double()
    several = denoise(model, SCHEDULE, [3, 1, 4], [7, 8, 9], steps=6, guidance=2.0, sampler=sampler)
    assert several.shape == (3, 1, 8, 8) and several.abs().max() <= 1 + 1e-4
    close(several[1:2], denoise(model, SCHEDULE, [1], [8], steps=6, guidance=2.0, sampler=sampler))
    assert not torch.allclose(several[1:2], denoise(model, SCHEDULE, [1], [9], steps=6, guidance=2.0, sampler=sampler))


def test_no_class_is_the_null_class_and_guidance_one_the_class_alone() -> None:
    model = case("unet").tiny()
    assert not torch.allclose(*(denoise(model, SCHEDULE, c, [1], steps=4) for c in ([2], None)))
    assert not torch.allclose(*(denoise(model, SCHEDULE, [2], [1], steps=4, guidance=g) for g in (1.0, 3.0)))


@pytest.mark.parametrize(("classes", "seeds"), [([10], [0]), ([-1], [0]), ([1, 2], [0]), ([], []), (None, [])])
def test_bad_requests_are_one_line(classes, seeds) -> None:
    with pytest.raises(GenerationError) as caught:
        denoise(case("unet").tiny(), SCHEDULE, classes, seeds)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", [{"sampler": "DDIM"}, {"guidance": float("nan")}, {"guidance": float("inf")}])
def test_a_sampler_or_guidance_that_is_none_is_named(how: dict) -> None:
    with pytest.raises(GenerationError, match=f"{next(iter(how))} .*{next(iter(how.values()))}"):
        denoise(case("unet").tiny(), SCHEDULE, [1], [0], **how)


@pytest.mark.parametrize("clip", [{"clip_sample": False}, {}, {"clip_sample_range": 1.7}])
@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_predictions_are_clipped_as_diffusers_does(predicts: str, clip: dict) -> None:
    diffusers = pytest.importorskip("diffusers")
    names = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
    schedule = NoiseSchedule(predicts=predicts, **clip)  # pyright: ignore
    theirs = diffusers.DDPMScheduler(**{"clip_sample": True, "prediction_type": names[predicts]} | clip)
    theirs.alphas_cumprod = bars = schedule.alpha_bar()  # theirs is float32, and its rounding would hide ours
    draw = generator("clip")
    x, prediction = (3 * torch.randn(2, 3, 4, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    for t in (3, 400, 990):
        x0 = schedule.clip(to_x0(x, prediction, bars[t].expand(2), schedule.predicts))
        torch.testing.assert_close(x0, theirs.step(prediction, t, x).pred_original_sample, rtol=1e-9, atol=1e-9)


class Constant(torch.nn.Module):
    """A denoiser that predicts the same x0 whatever it sees; its samples are one-dimensional."""

    config = SimpleNamespace(n_classes=2)
    sample_shape = (5,)

    def __init__(self) -> None:
        super().__init__()
        self.x0 = torch.nn.Parameter(torch.tensor([-3.0, -1.0, 0.5, 1.5, 7.0]))

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        return self.x0.expand(len(x), -1)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_values_beyond_one_are_drawn_unless_the_schedule_clips_them(sampler) -> None:
    model = Constant()
    for schedule, expected in (
        (NoiseSchedule(predicts="x0", clip_sample=False), model.x0),
        (NoiseSchedule(predicts="x0", clip_sample_range=2.0), model.x0.clamp(-2, 2)),
        (NoiseSchedule(predicts="x0"), model.x0.clamp(-1, 1)),
    ):
        drawn = denoise(model, schedule, None, [1, 2, 3], steps=10, sampler=sampler)
        torch.testing.assert_close(drawn, expected.detach().expand(3, -1))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_network_in_bfloat16_draws_nearly_the_same(sampler) -> None:
    """Its rounding is 2^-9 a step; the sampler around it stays float32."""
    drawn = [
        denoise(model, SCHEDULE, [3, 1], [7, 8], steps=6, guidance=2.0, sampler=sampler)
        for model in (case("unet").tiny(), case("unet").tiny().to(torch.bfloat16))
    ]
    assert drawn[1].dtype == torch.float32
    assert (drawn[1] - drawn[0]).norm() < 0.1 * drawn[0].norm()


def test_a_composite_directory(tmp_path) -> None:
    diffusers = pytest.importorskip("diffusers")
    of = case("unet")
    model, schedule = of.tiny(), NoiseSchedule(500, "cosine", predicts="v")
    save_denoiser(model, schedule, tmp_path / "ours")
    assert check(tmp_path / "ours") == {"ok": True, "checked": 4, "problems": [], "edited": []}
    again, read = load_denoiser(tmp_path / "ours")
    assert read == schedule and torch.equal(of.outputs(again), of.outputs(model))
    theirs = diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back, read = load_denoiser(tmp_path / "theirs")
    assert read == schedule and torch.equal(of.outputs(back), of.outputs(model))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_index.json", {"_class_name": "os.system"}, "model_index.json: _class_name"),
        ("model_index.json", {"unet": ["builtins", "eval"]}, "'unet'"),
        ("model_index.json", {"../evil": ["diffusers", "UNet2DModel"]}, "unknown component"),
        ("model_index.json", {"safety": ["diffusers", "Safety"]}, "unknown component 'safety'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "scheduler_config.json"),
        ("scheduler/scheduler_config.json", {"beta_start": "a"}, "beta_start is 'a', expected float"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 1 << 40}, "steps"),
        ("unet/config.json", {"_class_name": "Mystery"}, "Mystery"),
        ("unet/config.json", {"time_embedding_dim": 64}, "time_embedding_dim"),
        (
            "unet/config.json",
            {"block_out_channels": [9, 64], "norm_num_groups": 1, "attention_head_dim": 1},
            "first width is 9, odd",
        ),
        ("unet/config.json", {"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types"),
        ("unet/config.json", {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}, "down_block_types"),
    ],
)
def test_a_damaged_composite_is_refused(file: str, change: dict, message: str, tmp_path) -> None:
    save_denoiser(case("unet").tiny(), SCHEDULE, tmp_path / "m")
    (tmp_path / "m" / "foundling.json").unlink()  # whose hashes would tell first
    path = tmp_path / "m" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((WeightsError, ValueError), match=message) as caught:
        load_denoiser(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_digit_batches_depend_on_seed_and_number_alone() -> None:
    batches = DigitBatches(batch_size=8, seed=3)
    ranks = [DigitBatches(batch_size=8, seed=3, rank=r, world_size=2) for r in range(2)]
    for n in (0, 186, 187, 400):
        whole, halves = batches[n], [rank[n] for rank in ranks]
        for column in whole:
            assert torch.equal(torch.cat([half[column] for half in halves]), whole[column])
    ids = [int(k) for n in range(188) for k in batches[n]["sample_ids"]]
    assert ids == list(range(188 * 8))
    pixels = torch.cat([batches[n]["pixels"] for n in range(188)])[: 1797 - HELD_OUT]
    assert len(pixels.flatten(1).unique(dim=0)) == len(digits()[0][:-HELD_OUT].flatten(1).unique(dim=0))


def test_noise_depends_on_the_sample_alone() -> None:
    of = case("unet")
    model, batch, objective = of.tiny(), of.batch(0), Denoise(SCHEDULE, seed=1)
    whole = objective(model, batch)["loss"].sum
    parts = [objective(model, {k: v[i : i + 1] for k, v in batch.items()})["loss"].sum for i in range(8)]
    assert float(sum(parts).detach()) == pytest.approx(float(whole.detach()), rel=1e-5)


@pytest.mark.slow
def test_learns_to_draw_digits() -> None:
    """A classifier fitted to the real digits reads what was drawn; guidance makes it clearer."""
    from sklearn.linear_model import LogisticRegression

    model = build("unet", **family("unet").module.sized(8, 1, 10, 32))
    initialise(model, generator("init", 0))
    state = TrainState.build(model, OptimOptions(optimizer="adamw", learning_rate=0.002))
    batches, objective = DigitBatches(batch_size=64, seed=0), Denoise(SCHEDULE, seed=0)
    first = last = 0.0
    for step in train(state, objective, batches, Schedule(1500, warmup_steps=50), TrainOptions(64), Runtime()):
        first = step.loss if step.n == 1 else first
        last = step.loss
    pixels, classes = digits()
    reader = LogisticRegression(max_iter=2000).fit(pixels[:-HELD_OUT].flatten(1), classes[:-HELD_OUT])
    held = reader.score(pixels[-HELD_OUT:].flatten(1), classes[-HELD_OUT:])
    wanted, shares = [c for c in range(10) for _ in range(20)], {}
    for guidance in (1.0, 3.0):
        drawn = denoise(model.eval(), SCHEDULE, wanted, list(range(200)), steps=50, guidance=guidance)
        shares[guidance] = float(reader.score(drawn.flatten(1), wanted))
    print(f"loss {first:.3f} -> {last:.3f}; read as asked: {shares}; held-out real digits {held:.3f}")
    assert shares[1.0] > 0.5 and shares[3.0] > max(0.8, shares[1.0])
