# SPDX-License-Identifier: Apache-2.0
"""Gaps are filled as transformers' own pipeline does, the surest first, and by a model trained here from both sides."""

import json
import random
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

import foundling
from foundling.cli import main
from foundling.data.transforms.mask import MaskedBatches
from foundling.decode.fill import MaskFiller, fill
from foundling.errors import GenerationError
from foundling.objectives.causal import Causal
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.text import Tokenizer
from foundling.train.loop import train
from foundling.train.options import OptimOptions, TrainOptions
from foundling.train.schedule import Schedule
from foundling.train.state import TrainState
from tests.contract.cases import case

SOUNDS = {"cat": "meows", "dog": "barks", "cow": "moos", "duck": "quacks", "lion": "roars", "bee": "hums"}
PLACES = ["house", "garden", "field", "city", "forest", "meadow", "kitchen", "stable"]
HELD_OUT = {("cat", "field"), ("dog", "city"), ("cow", "house"), ("duck", "forest"), ("lion", "kitchen")}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def word_pieces(directory: Path) -> Tokenizer:
    """A tokenizer of BERT's kind, in the files that transformers writes."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))  # pyright: ignore
    backend.normalizer = normalizers.BertNormalizer()  # pyright: ignore
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore
    backend.decoder = tokenizers.decoders.WordPiece()  # pyright: ignore
    backend.train_from_iterator(sentences(), trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL))
    ids = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    config = {"tokenizer_class": "BertTokenizer", **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(directory)


def sentences() -> list[str]:
    return [
        f"in the {place} the {animal} {sound}."
        for animal, sound in SOUNDS.items()
        for place in PLACES
        if (animal, place) not in HELD_OUT
    ]


class Sentences:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.texts = [tokenizer.encode_framed(text) for text in sentences()]
        self.pad = tokenizer.backend.token_to_id("[PAD]")

    def __getitem__(self, n: int):
        rows = random.Random(n).sample(self.texts, 16)
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows])
        documents = torch.where(tokens == self.pad, -1, 0)
        return {"tokens": tokens, "documents": documents, "sample_ids": torch.arange(16) + 16 * n}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fill") / "bert"
    tokenizer = word_pieces(directory.parent / "tokenizer")
    assert tokenizer.mask is not None
    sizes = dict(vocab_size=192, max_seq_len=32, d_model=64, n_layers=2, n_heads=2, d_ff=128)
    model = foundling.build("bert", **sizes)
    foundling.blocks.init.initialise(model, generator("init", 0))
    state = TrainState.build(model, OptimOptions(optimizer="adamw", learning_rate=0.003))
    special = tuple(sorted(tokenizer.special))
    batches = MaskedBatches(
        Sentences(tokenizer), seed=0, mask=tokenizer.mask, vocab_size=150, rate=0.25, never=special
    )  # fmt: skip
    for _ in train(state, Causal(), batches, Schedule(220), TrainOptions(16), Runtime()):
        pass
    return foundling.save(model.eval(), directory, tokenizer=tokenizer)


def test_gaps_are_filled_from_both_sides(trained: Path) -> None:
    filler = MaskFiller.load(trained)
    for animal, place in sorted(HELD_OUT):
        whole = f"in the {place} the {animal} {SOUNDS[animal]}."
        assert filler.fill(f"in the {place} the ___ {SOUNDS[animal]}.")["text"] == whole
        assert filler.fill(f"in the {place} the {animal} ___.")["text"] == whole
    both = filler.fill("in the ___ the ___ quacks.", n=2)
    assert [len(best) for best in both["gaps"]] == [2, 2]
    assert both["gaps"][0][0]["token"] in PLACES and both["gaps"][1][0]["token"] == "duck"


def test_the_pipeline_of_transformers_says_the_same(trained: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    theirs = transformers.pipeline("fill-mask", model=str(trained), tokenizer=str(trained), device="cpu")
    ours = MaskFiller.load(trained)
    for text in ("in the city the ___ barks.", "The ___ roars in the garden.", "in the field the cow ___."):
        expected = theirs(text.replace("___", "[MASK]"), top_k=4)
        (found,) = ours.fill(text, n=4)["gaps"]
        assert [word["token"] for word in found] == [word["token_str"] for word in expected]
        assert [word["probability"] for word in found] == pytest.approx([w["score"] for w in expected], rel=1e-4)


@torch.inference_mode()
def test_the_surest_gap_first_and_the_rest_with_it_there() -> None:
    """By hand: two gaps, so either order is one of two passes."""
    model, mask = case("bert").tiny(), 1
    tokens = [5, 1, 9, 20, 1, 33]
    first = model.logits(model(torch.tensor([tokens])).hidden)[0].softmax(-1)
    first[:, mask] = 0
    at = max((1, 4), key=lambda place: float(first[place].max()))
    then = list(tokens)
    then[at] = int(first[at].argmax())
    second = model.logits(model(torch.tensor([then])).hidden)[0].softmax(-1)
    second[:, mask] = 0
    other = 5 - at
    then[other] = int(second[other].argmax())
    found = fill(model, tokens, mask, n=3)
    assert found.tokens == then
    chances = {at: first[at], other: second[other]}
    for place, best in zip((1, 4), found.gaps, strict=True):
        top = chances[place].topk(3)
        assert [token for token, _ in best] == top.indices.tolist()
        assert [chance for _, chance in best] == pytest.approx(top.values.tolist(), rel=1e-5)
    barred = [token for token, _ in found.gaps[0]]
    assert not {token for token, _ in fill(model, tokens, mask, n=3, exclude=barred).gaps[0]} & set(barred)


def command(capsys, *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    result = capsys.readouterr()
    return int(ended.value.code or 0), result.out, result.err


def test_the_command(trained: Path, capsys) -> None:
    code, out, err = command(capsys, "fill", trained, "in the house the ___ meows.", "-n", "2", "--json")
    result = json.loads(out)
    assert code == 0 and not err
    assert result["text"] == "in the house the cat meows." and len(result["gaps"][0]) == 2
    assert "gap 1: 'cat'" in command(capsys, "fill", trained, "in the house the [MASK] meows.")[1]


def test_wrong_input(trained: Path, tmp_path: Path, capsys) -> None:
    foundling.save(case("llama").tiny(), tmp_path / "llama")
    foundling.save(foundling.build("bert", **case("bert").fields() | {"masked": False}), tmp_path / "base")
    foundling.save(case("bert").tiny(), tmp_path / "nameless", tokenizer=Tokenizer.train(["a b c"] * 9, 320))
    for args, says in (
        (("fill", trained, "no gap at all"), "write ___ where"),
        (("fill", trained, "the cat " * 20 + "___"), "at most 32"),
        (("fill", trained, "the ___", "-n", "0"), "n is 0"),
        (("fill", tmp_path / "llama", "the ___"), "generate --suffix"),
        (("fill", tmp_path / "base", "the ___"), "no head over its vocabulary"),
        (("fill", tmp_path / "nameless", "the ___"), "has no mask_token"),
        (("fill", tmp_path / "nothing", "the ___"), "no such model directory"),
        (("generate", trained, "--prompt", "the cat"), "foundling fill"),
        (("chat", trained, "--weights", "float32"), "foundling fill"),
    ):
        code, out, err = command(capsys, *args)
        assert code == 2 and says in err and err.count("\n") == 1 and not out, err
    with pytest.raises(GenerationError, match="no gap"):
        fill(case("bert").tiny(), [4, 5], 1)
    for write in (foundling.Engine, lambda model: foundling.generate(model, [[4, 5]], max_tokens=2)):
        with pytest.raises(GenerationError, match="foundling fill"):
            write(case("bert").tiny())
