# SPDX-License-Identifier: Apache-2.0
"""TRL's side of benchmarks.align_speed: SFT, DPO and GRPO with LoRA by its trainers, a process a call.

It imports no model of ours, so that its memory is its own. What ours wrote into a folder (`Start`) says which tokens
each step reads, what the adapters begin as, and the learning rate of each of them at each step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.runs import resident_peak
from benchmarks.sides import answer_calls
from foundling.runtime.device import Runtime, available_threads

RANK, ALPHA = 16, 32.0
COMMON: dict[str, dict[str, Any]] = {
    "plain": {},
    "our memory setting": {},
    "compiled": {"torch_compile": True},
    "2 workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    "checkpointing": {"gradient_checkpointing": True},
    "bfloat16 weights": {},
}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "sft": COMMON | {"padding-free": {"padding_free": True, "max_length": None}, "packing": {"packing": True}},
    "dpo": COMMON | {"reference in the step": {"precompute_ref_log_probs": False}},
    "grpo": COMMON | {"static cache": {"cache_implementation": "static"}},
}
"""case -> name -> what is set besides `options`. The head of TRL's trainers computes logits in chunks at any setting;
its Triton kernels, Liger's, the hub's and vLLM do not run on a CPU."""
FOR_MEMORY = ("checkpointing",)
"""settings that are measured for their memory and never chosen for their speed"""


def settings_of(kind: str, precision: str) -> list[str]:
    return [name for name in SETTINGS[kind] if name != "bfloat16 weights" or precision == "bfloat16"]


class Start:
    """What ours wrote: `rates` (adapter -> learning rate), `scales` (factor of each step), the adapters, and the
    batches of all steps."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        about = json.loads((folder / "start.json").read_text(encoding="utf-8"))
        self.rates: dict[str, float] = about["rates"]
        self.scales: list[float] = about["scales"][:steps]
        self.adapters = load_file(folder / "adapters.safetensors")
        self.batches = load_file(folder / "batches.safetensors")
        self.lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()

    def examples(self) -> list[tuple[list[int], list[bool]]]:
        """ids and which of them are learnt, in the order in which they are read"""
        b = {name: t.flatten(0, -2) for name, t in self.batches.items()}
        assert bool((b["documents"] == 0).all()), "all rows have the same length, so that nothing is padded"
        ids = torch.cat([b["tokens"], b["targets"][:, -1:]], 1)
        mask = torch.cat([torch.zeros_like(b["loss_mask"][:, :1]), b["loss_mask"]], 1)
        return list(zip(ids.tolist(), mask.tolist(), strict=True))


def dataset_of(kind: str, start: Start) -> Any:
    import datasets

    if kind == "grpo":
        return datasets.Dataset.from_list([json.loads(line) for line in start.lines])
    examples = start.examples()
    if kind == "sft":
        return datasets.Dataset.from_list(
            [
                {"input_ids": ids, "labels": [i if learnt else -100 for i, learnt in zip(ids, mask, strict=True)]}
                for ids, mask in examples
            ]
        )
    rows = []
    for (chosen, mask), (rejected, other) in zip(examples[::2], examples[1::2], strict=True):
        n, end = mask.index(True), len(mask) - mask[::-1].index(True)
        assert mask == other and all(mask[n:end]) and chosen[:n] == rejected[:n]
        rows.append({"prompt_ids": chosen[:n], "chosen_ids": chosen[n:end], "rejected_ids": rejected[n:end]})
    return datasets.Dataset.from_list(rows)


def options(
    start: Start, *, kind: str, setting: str, precision: str, rows: int, group: int, beta: float, length: int
) -> dict[str, Any]:
    """Of the trainer's config: what ours does too, and nothing that costs time besides."""
    own: dict[str, Any] = {
        "sft": {"max_length": length, "shuffle_dataset": False},
        "dpo": {"max_length": length, "beta": beta, "precompute_ref_log_probs": True},
        "grpo": {
            "beta": beta, "num_generations": group, "num_iterations": 1, "max_completion_length": length,
            "generation_kwargs": {"min_new_tokens": length}, "use_vllm": False, "shuffle_dataset": False,
            "temperature": 1.0, "scale_rewards": "group", "loss_type": "dapo",
        },
    }[kind]  # fmt: skip
    common = {
        "output_dir": str(start.folder / "trl"), "use_cpu": True, "bf16": precision == "bfloat16",
        "per_device_train_batch_size": rows, "gradient_accumulation_steps": 1, "max_steps": len(start.scales),
        "max_grad_norm": 1.0, "gradient_checkpointing": False, "dataloader_num_workers": 0, "report_to": "none",
        "save_strategy": "no", "logging_steps": len(start.scales), "disable_tqdm": True, "seed": 0,
        "train_sampling_strategy": "sequential", "dataloader_pin_memory": False,
    }  # fmt: skip
    return common | own | SETTINGS[kind][setting]


def share_of_e(texts: list[str]) -> list[float]:
    """A reward that costs nothing and differs between the answers of a prompt: the share of a letter."""
    return [text.count("e") / max(1, len(text)) for text in texts]


def rewards(completions: list[Any], **_: Any) -> list[float]:
    return share_of_e([completion[0]["content"] for completion in completions])


def trainer_of(
    kind: str, directory: str, start: Start, config: dict[str, Any], rollouts: list[Any], dtype: torch.dtype
) -> Any:
    import peft
    import transformers
    import trl  # pyright: ignore[reportMissingImports]

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    lora = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")  # pyright: ignore
    parent: Any = {"sft": trl.SFTTrainer, "dpo": trl.DPOTrainer, "grpo": trl.GRPOTrainer}[kind]
    config_of: Any = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "grpo": trl.GRPOConfig}[kind]

    class Trainer(parent):
        """With the loss and the gradient's norm of each step, and the time at which each ended."""

        losses: list[float]

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset if kind == "dpo" else super()._prepare_dataset(dataset, *args, **kwargs)

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            out = super()._generate_and_score_completions(inputs)
            names = ("prompt_ids", "completion_ids", "completion_mask", "advantages", "ref_per_token_logps")
            rollouts.append({name: out[name].tolist() for name in names if isinstance(out.get(name), Tensor)})
            return out

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            self.losses.append(float(loss.detach()))
            return loss

    more = {"reward_funcs": rewards} if kind == "grpo" else {}
    trainer = Trainer(
        model=model, args=config_of(**config), train_dataset=dataset_of(kind, start), processing_class=tokenizer,
        peft_config=lora, **more,
    )  # fmt: skip
    trainer.losses = []
    named = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert named.keys() == start.adapters.keys(), "the same projections have adapters"
    groups: dict[float, list[Any]] = {}
    for name, parameter in named.items():
        parameter.data.copy_(start.adapters[name])
        groups.setdefault(start.rates[name], []).append(parameter)
    trainer.optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate} for rate, parameters in groups.items()],
        betas=(0.9, 0.95), weight_decay=0.0, fused=True,
    )  # fmt: skip
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer, lambda n: start.scales[min(n, len(start.scales) - 1)]
    )
    return trainer


def train(directory: str, folder: str, kind: str, setting: str, steps: int, **more: Any) -> dict[str, Any]:
    """Seconds, loss and gradient of each of `steps` steps; the most bytes that the process had; and GRPO's rollouts, so
    that others can compute their loss. The seconds of a step begin with the end of the one before: loading of data is
    in them. `more`: of `options`."""
    import transformers

    start, marks, norms, rollouts = Start(Path(folder), steps), list[float](), list[float](), list[Any]()

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

    if setting == "our memory setting":
        Runtime(threads=available_threads()).setup()
    torch.set_num_threads(available_threads())
    dtype = torch.bfloat16 if setting == "bfloat16 weights" else torch.float32
    config = options(start, kind=kind, setting=setting, **more)
    trainer = trainer_of(kind, directory, start, config, rollouts, dtype)
    trainer.add_callback(Clock())
    clip = trainer.accelerator.clip_grad_norm_
    trainer.accelerator.clip_grad_norm_ = lambda *args, **kwargs: note(clip(*args, **kwargs), norms)
    marks.append(time.perf_counter())
    trainer.train()
    return {
        "seconds": [b - a for a, b in pairwise(marks)], "losses": trainer.losses, "gradients": norms,
        "peak": resident_peak(), "rollouts": rollouts,
    }  # fmt: skip


def note(value: Any, to: list[float]) -> Any:
    to.append(float(value))
    return value


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("trl", "transformers", "peft", "accelerate", "datasets", "torch")}


if __name__ == "__main__":
    assert sys.argv[1] == "--serve"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    answer_calls(train)
