# SPDX-License-Identifier: Apache-2.0
"""A denoiser's directory: what may be said of a schedule, what is missing or leaves the folder, and who writes."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from foundling.diffusion.schedule import NoiseSchedule
from foundling.errors import OutputError, WeightsError
from foundling.weights.convert.diffusers import load_denoiser, save_denoiser
from foundling.weights.directory import weights_hash
from foundling.weights.manifest import check
from tests.contract.cases import case
from tests.processes import SERVER, leave_group

SCHEDULE = NoiseSchedule()
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture
def directory(tmp_path) -> Path:
    return save_denoiser(case("unet").tiny(), SCHEDULE, tmp_path / "m")


@pytest.fixture
def unsigned(directory) -> Path:
    """As another program would write it, without hashes that would tell first."""
    (directory / "foundling.json").unlink()
    return directory


def change(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(directory: Path, *parts: str) -> None:
    with pytest.raises(WeightsError) as caught:
        load_denoiser(directory)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize(("predicts", "clip"), [("eps", (True, 1.0)), ("x0", (False, 1.0)), ("v", (True, 2.5))])
def test_every_schedule_is_read_by_diffusers_as_written(kind, predicts, clip, tmp_path) -> None:
    diffusers = pytest.importorskip("diffusers")
    schedule = NoiseSchedule(100, kind, 0.001, 0.03, predicts, *clip)
    save_denoiser(case("unet").tiny(), schedule, tmp_path / "m")
    theirs = diffusers.DDPMScheduler.from_pretrained(tmp_path / "m" / "scheduler")
    torch.testing.assert_close(theirs.alphas_cumprod.double(), schedule.alpha_bar(), rtol=2e-4, atol=1e-6)
    assert (theirs.config.clip_sample, theirs.config.clip_sample_range) == clip
    shutil.rmtree(tmp_path / "m" / "scheduler")
    (tmp_path / "m" / "foundling.json").unlink()
    theirs.save_pretrained(tmp_path / "m" / "scheduler")
    assert load_denoiser(tmp_path / "m")[1] == schedule


def test_what_a_schedule_leaves_out_is_as_diffusers_has_it(unsigned) -> None:
    """Older versions wrote less."""
    diffusers = pytest.importorskip("diffusers")
    (unsigned / SCHEDULER).write_text('{"_class_name": "DDPMScheduler", "beta_end": 0.03}')
    read = load_denoiser(unsigned)[1]
    theirs = diffusers.DDPMScheduler.from_pretrained(unsigned / "scheduler")
    assert read == NoiseSchedule(end=0.03) and theirs.config.prediction_type == "epsilon"
    torch.testing.assert_close(theirs.alphas_cumprod.double(), read.alpha_bar(), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(
    "values",
    [
        {"clip_sample": 1},
        {"clip_sample_range": 0.0},
        {"clip_sample_range": True},
        {"clip_sample_range": float("inf")},
        {"steps_offset": 1},
        {"trained_betas": [0.1]},
        {"thresholding": True},
        {"rescale_betas_zero_snr": True},
        {"variance_type": "learned"},
        {"timestep_spacing": "trailing"},
        {"predict_epsilon": False},
        {"beta_schedule": ["linear"]},
        {"prediction_type": {"eps": 1}},
        {"num_train_timesteps": 1000.5},
        {"num_train_timesteps": float("inf")},
        {"num_train_timesteps": True},
        {"beta_start": float("nan")},
        {"beta_end": None},
    ],
)
def test_a_schedule_that_would_draw_otherwise_is_refused(values: dict, unsigned) -> None:
    change(unsigned / SCHEDULER, values)
    key = next(iter(values))
    refused(unsigned, SCHEDULER, "noise from nan" if key == "beta_start" else key)


def test_what_is_missing_or_elsewhere(unsigned, tmp_path) -> None:
    for part in ("unet", "scheduler"):
        (unsigned / part).rename(tmp_path / "outside")
        refused(unsigned, "lacks the component", part)
        (unsigned / part).symlink_to(tmp_path / "outside")
        refused(unsigned, "lacks the component", part)
        (unsigned / part).unlink()
        (tmp_path / "outside").rename(unsigned / part)
    for file in (SCHEDULER, WEIGHTS, "unet/config.json", "model_index.json"):
        (unsigned / file).rename(tmp_path / "kept")
        refused(unsigned, Path(file).name)
        (tmp_path / "kept").rename(unsigned / file)
    for place in ("../m/unet", ["..", "UNet2DModel"], ["diffusers", "../UNet2DModel"], None):
        good = (unsigned / "model_index.json").read_text()
        change(unsigned / "model_index.json", {"unet": place})
        refused(unsigned, "model_index.json", "unet")
        (unsigned / "model_index.json").write_text(good)
    assert load_denoiser(unsigned)[1] == SCHEDULE


def test_hashes_tell_of_every_file(directory) -> None:
    for file in ("model_index.json", SCHEDULER, "unet/config.json", WEIGHTS):
        good = (directory / file).read_bytes()
        (directory / file).write_bytes(good[:-2] + b" " + good[-1:])
        refused(directory, file, "damaged")
        (directory / file).write_bytes(good)
    assert check(directory)["checked"] == 4


def test_a_pickle_is_named_and_not_opened(unsigned, tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    (unsigned / WEIGHTS).unlink()
    (unsigned / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(unsigned, "diffusion_pytorch_model.bin is a pickle")
    assert not (tmp_path / "executed").exists()


def test_saving_refuses_other_models_and_overwrites_nothing(directory, tmp_path) -> None:
    with pytest.raises(WeightsError, match="llama is a decoder"):
        save_denoiser(case("llama").tiny(), SCHEDULE, tmp_path / "llama")
    assert not (tmp_path / "llama").exists()
    with pytest.raises(OutputError, match="not empty"):
        save_denoiser(case("unet").tiny(seed=1), SCHEDULE, directory)
    assert weights_hash(load_denoiser(directory)[0]) == weights_hash(case("unet").tiny())


def test_loads_in_the_precision_asked_for(directory) -> None:
    model = load_denoiser(directory, dtype=torch.bfloat16)[0]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def two_processes(rank: int, root: str, answers: Any) -> None:
    import torch.distributed as dist

    from foundling.runtime.device import Runtime
    from foundling.train.loop import train
    from foundling.train.options import TrainOptions
    from foundling.train.schedule import Schedule
    from tests.contract.cases import Data

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2)
    of = case("unet")
    state, runtime = of.state("adamw"), Runtime(rank=rank, world_size=2, shard=True)
    list(train(state, of.objective(), Data(of, rank, 2), Schedule(1), TrainOptions(4), runtime))
    save_denoiser(state.model, SCHEDULE, f"{root}/m")
    answers.put(weights_hash(state.model))
    del state
    leave_group()


def test_two_processes_that_share_the_parameters_write_one_directory(tmp_path) -> None:
    answers = SERVER.Queue()
    processes = [SERVER.Process(target=two_processes, args=(r, str(tmp_path), answers), daemon=True) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    hashes = {answers.get(timeout=5) for _ in processes}
    assert hashes == {weights_hash(load_denoiser(tmp_path / "m")[0])} and check(tmp_path / "m")["ok"]
