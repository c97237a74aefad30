# SPDX-License-Identifier: Apache-2.0
"""Pictures and texts: log-probabilities against transformers' CLIP, and a small CLIP that learns digits here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foundling
from foundling.blocks.init import initialise
from foundling.data.datasets.digits import load as load_digits
from foundling.errors import ConfigError, DataError, GenerationError
from foundling.evaluate.encoder import EncoderSubject
from foundling.evaluate.evaluation import evaluate
from foundling.evaluate.pictures import pixels_of
from foundling.evaluate.recorded import replay
from foundling.evaluate.runners import run
from foundling.evaluate.subject import MatchRequest
from foundling.evaluate.subjects import load_subject
from foundling.evaluate.task_file import load_task
from foundling.media.pictures import PictureSpec
from foundling.models import build, family
from foundling.objectives.contrastive import Contrastive
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from tests.evaluate.encoders import task_file
from tests.evaluate.test_retrieval import no_bar
from tests.parity import references
from tests.text import kinds

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DIGITS = {"name": "digits", "data": "builtin:digits", "kind": "images", "options": NAMES, "answer": "{label}"}


class OfEach:
    """Ten digits with their names, one of each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.pixels, self.classes = load_digits("train")
        rows = [[*tokenizer.encode(name), tokenizer.eos] for name in NAMES]
        width = max(map(len, rows))
        self.tokens = torch.tensor([row + [tokenizer.eos] * (width - len(row)) for row in rows])
        self.documents = torch.tensor([[0] * len(row) + [-1] * (width - len(row)) for row in rows])

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        draw = generator("digits", 0, n)
        at = [(self.classes == k).nonzero()[:, 0] for k in range(10)]
        chosen = torch.stack([every[int(torch.randint(len(every), (), generator=draw))] for every in at])
        return {"pixels": self.pixels[chosen], "tokens": self.tokens, "documents": self.documents,
                "sample_ids": torch.arange(10)}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    tokenizer = Tokenizer.train(NAMES * 3, 320)
    fields = family("clip").module.sized(tokenizer.vocab_size, 16, 8, 8, 1, 64, 1) | {"eos_id": tokenizer.eos}
    model = build("clip", **fields)
    initialise(model, generator("init", 0))
    state = TrainState.build(model, OptimOptions(learning_rate=0.003, matrix_learning_rate=0.01))
    for _ in train(
        state, Contrastive(), OfEach(tokenizer), Schedule(100, warmup_steps=10), TrainOptions(10), Runtime()
    ):
        pass
    return foundling.save(model.eval(), tmp_path_factory.mktemp("clip") / "digits", tokenizer=tokenizer)


def test_a_clip_that_learnt_digits_reads_held_out_ones(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(json.dumps(DIGITS))
    task, subject = load_task(tmp_path / "digits.yaml"), load_subject(directory)
    assert isinstance(subject, EncoderSubject) and subject.serves == ("retrieve", "images")
    record = evaluate(subject, [task], tmp_path / "answers.jsonl", bar=no_bar)
    result, items = record.results[0], record.items["digits"]
    assert result.n == 297 and result.value is not None and result.value > 0.7, "chance is 0.1"
    model, tokenizer = foundling.load(directory), Tokenizer.load(directory)
    rows = [torch.tensor([[*tokenizer.encode(name), tokenizer.eos]]) for name in NAMES]
    with torch.no_grad():
        texts = torch.cat([model.embed_text(row) for row in rows])
        logits = model.embed_image(load_digits("test")[0]) @ texts.T * model.scale.exp()
    expected = logits.double().log_softmax(-1)
    ours = torch.tensor([[logprob for _, logprob in item["choices"]] for item in items])
    assert torch.allclose(ours.double(), expected, atol=1e-4)
    assert result.scores == (expected.argmax(-1) == load_digits("test")[1]).double().tolist()
    assert {"macro F1", "ECE", "NLL"} < set(result.figures)
    again = run(task, replay(tmp_path / "answers.jsonl")).result
    assert again.scores == result.scores and len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2970


@pytest.mark.parametrize("eos", [2, None])
def test_files_and_texts_are_matched_as_transformers_does(tmp_path: Path, eos: int | None) -> None:
    """Whatever of its two ways config.json has to name the end of a text."""
    transformers = references.transformers()
    tokenizer = kinds.tokenizer("bert")
    end = tokenizer.frame[1][0]
    text = dict(vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=32, eos_token_id=eos or end)  # fmt: skip
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16,
                  patch_size=4)  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    theirs = references.randomise(theirs).eval()
    theirs.save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)
    processor.save_pretrained(tmp_path / "model")
    options, rows = ["a cat", "the dog on a mat", "tea"], list[dict[str, Any]]()
    for i in range(5):
        noise = np.random.default_rng(i).integers(256, size=(20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
        rows.append({"picture": f"{i}.png", "label": options[i % 3]})
    path = task_file(tmp_path, rows, kind="images", image="{picture}", options=options, answer="{label}")
    items = run(load_task(path), load_subject(tmp_path / "model")).items
    pixels = processor([Image.open(tmp_path / f"{i}.png") for i in range(5)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = torch.cat(
            [theirs(input_ids=torch.tensor([tokenizer.encode_framed(option)]), pixel_values=pixels).logits_per_image
             for option in options], dim=1,
        )  # fmt: skip
    ours = torch.tensor([[logprob for _, logprob in item["choices"]] for item in items])
    assert torch.allclose(ours.double(), logits.double().log_softmax(-1), atol=1e-4)
    assert items[0]["prompt"].startswith("0.png sha256:") and items[0]["target"] == "a cat"


def test_glyphs_have_captions_to_choose_from(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text(json.dumps({**DIGITS, "data": "builtin:glyphs", "options": "{options}"}))
    task = load_task(tmp_path / "g.yaml", limit=20)
    assert task.continuations and task.target and len(task.examples) == 20
    for row in task.examples:
        options = task.continuations(row)
        assert len(set(options)) == 10 and task.target(row) == row["label"] in options
    picture = task.prompt(task.examples[0])
    assert pixels_of(picture, PictureSpec(16, 3, (0.5,) * 3, (0.5,) * 3, 16)).shape == (3, 16, 16)
    assert load_task(tmp_path / "g.yaml", limit=20).hashes() == task.hashes()


def test_what_does_not_fit_is_refused(directory: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "outside.png")
    Image.new("L", (8, 8)).save(folder / "in.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    spec: dict[str, Any] = {"kind": "images", "options": ["a", "b"], "answer": "{label}"}
    for name in ("../outside.png", str(tmp_path / "outside.png"), "link.png"):
        with pytest.raises(DataError, match="is outside"):
            load_task(task_file(folder, [{"image": name, "label": "a"}], **spec))
    with pytest.raises(DataError, match=r"'none.png' cannot be read"):
        load_task(task_file(folder, [{"image": "none.png", "label": "a"}], **spec))
    with pytest.raises(DataError, match="is none of the 2 options"):
        load_task(task_file(folder, [{"image": "in.png", "label": "c"}], **spec))
    with pytest.raises(DataError, match="builtin:faces' is unknown; expected a file, builtin:digits or builtin:gl"):
        load_task(_written(folder / "f.yaml", {**DIGITS, "data": "builtin:faces"}))
    with pytest.raises(ConfigError, match="kind images needs options"):
        load_task(_written(folder / "o.yaml", {**DIGITS, "options": ""}))
    task = load_task(task_file(folder, [{"image": "in.png", "label": "a"}], **spec))
    Image.new("L", (8, 8), 255).save(folder / "in.png")
    with pytest.raises(DataError, match="changed while the evaluation ran"):
        run(task, load_subject(directory))
    picture = task.prompt(task.examples[0])
    with pytest.raises(GenerationError, match="1 of 1 texts are longer than the 16 tokens"):
        list(load_subject(directory).match([MatchRequest(picture, "seven " * 40)]))


def _written(path: Path, spec: dict[str, Any]) -> Path:
    path.write_text(json.dumps(spec))
    return path
