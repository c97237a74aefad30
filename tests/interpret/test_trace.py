# SPDX-License-Identifier: Apache-2.0
"""A trace of every family: attention as transformers returns it, lens and contributions that add up to the logits."""

import pytest
import torch

import foundling
from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.quantize import quantize
from foundling.errors import InterpretError
from foundling.interpret import Site, Trace, attribute, logit_lens, patched, trace
from foundling.interpret.lens import frozen_norm
from foundling.models import FAMILIES
from foundling.runtime.rng import generator
from tests.contract.cases import VOCAB, case, tokens
from tests.parity.references import randomise

TEXT = [name for name, entry in FAMILIES.items() if entry.kind not in ("dual_encoder", "denoiser")]
ATTENDING = [n for n in TEXT if n not in ("mamba", "mamba2", "rwkv", "lstm", "ffn_lm", "s4", "elmo", "lstm_seq2seq")]
POST_NORM = ("gpt", "bart", "transformer")
NO_STREAM = ("lstm", "lstm_seq2seq", "ffn_lm")
"""whose layers do not add to what they read, or not with every layer"""


def traced(name: str, x: torch.Tensor | None = None) -> tuple[object, Trace]:
    of = case(name)
    model, x = of.tiny(), tokens() if x is None else x
    source = {"source": of.source(len(x))} if FAMILIES[name].kind == "seq2seq" else {}
    return model, trace(model, x, **source)


@pytest.mark.parametrize("name", ATTENDING)
def test_heads_of_every_family_add_up(name: str) -> None:
    """Rows sum to one (of an attention sink to less), nothing is seen that is masked, and the heads' outputs sum to
    that of the attention."""
    model, record = traced(name)
    assert record.heads
    for heads in record.heads:
        weights = heads.weights()
        total = weights.sum(-1)
        assert (weights >= 0).all() and (total < 1 + 1e-5).all()
        assert name == "gpt_oss" or torch.allclose(total, torch.ones_like(total), atol=1e-5)
        if model.causal:
            assert not weights.triu(1).any()
        layer = next(layer for layer in record.stack if any(heads is one for one in layer.heads))
        bias = 0 if heads.module.o.bias is None else heads.module.o.bias
        assert torch.allclose(heads.outputs().sum(1) + bias, layer.outputs["mixer"], atol=2e-4), name


@pytest.mark.parametrize("name", [n for n in TEXT if n != "ffn_lm"])
def test_the_last_row_of_the_lens_is_the_logits(name: str) -> None:
    model, record = traced(name)
    lens = list(logit_lens(model, record))
    assert len(lens) == len(record.stack) + 1
    assert torch.equal(lens[-1], model.logits(record.hidden))
    assert torch.equal(model.logits(record.hidden), case(name).outputs(model)) or FAMILIES[name].kind == "seq2seq"
    assert all("forward" not in vars(layer) for layer in model.layers), "a layer is left replaced"


@pytest.mark.parametrize("name", [n for n in TEXT if FAMILIES[n].kind != "encoder" and n not in POST_NORM + NO_STREAM])
def test_contributions_sum_to_the_logit(name: str) -> None:
    model, record = traced(name)
    with torch.no_grad():
        logits = model.logits(record.hidden)[1, 11]
    for versus, value in ((None, logits[5]), (9, logits[5] - logits[9])):
        parts = attribute(model, record, 5, versus=versus, position=11, row=1)
        assert sum(part.value for part in parts) == pytest.approx(float(value), abs=1e-4)
        names = [part.name for part in parts]
        assert names[0] == "embedding" and names[-1] == "rest" and len(set(names)) == len(names)
    bias = model.norm.bias if getattr(model.norm, "bias", None) is not None else torch.zeros(len(record.hidden[0, 0]))
    with torch.no_grad():
        uncapped = model.head(record.hidden[1, 11]) if name == "gemma2" else logits
        rest = model.head(bias)[5] - model.head(bias)[9] + (logits - uncapped)[5] - (logits - uncapped)[9]
    assert parts[-1].value == pytest.approx(float(rest), abs=2e-4), "something else is left over"


@torch.no_grad()
def test_a_cap_on_logits_is_in_the_rest() -> None:
    """A head of 60 times the size: the cap takes nearly all of the logit, and the parts sum to what was before it."""
    model = case("gemma2").tiny()
    model.head.weight.mul_(60)
    record = trace(model, tokens())
    before, after = model.head(record.hidden[0, -1]), model.logits(record.hidden[0, -1])
    token = int(before.argmax())
    *parts, rest = attribute(model, record, token)
    assert float(before[token]) > 200 and float(after[token]) == pytest.approx(30, abs=1e-2)
    assert sum(part.value for part in parts) == pytest.approx(float(before[token]), rel=1e-4)
    assert rest.value == pytest.approx(float(after[token] - before[token]), rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "gpt_oss"])
@torch.no_grad()
def test_a_head_contributes_what_its_ablation_takes_away(name: str) -> None:
    """The same pass with the head's mean of values at zero, through the norms at their points of the first pass; the
    other parts by what they wrote, each under its own name."""
    model, record = traced(name)
    values = {part.name: part.value for part in attribute(model, record, 5, position=11, row=1)}
    final = frozen_norm(model.norm, record.stack[-1].after[1, 11])

    def logit(vector: torch.Tensor) -> float:
        return float(final(vector) @ model.head.weight[5])

    assert values["embedding"] == pytest.approx(logit(record.stack[0].before[1, 11]), abs=1e-4)
    for number, layer in enumerate(record.stack):
        mixer, written = model.layers[number].mixer, layer.outputs["mixer"][1, 11]
        norm, ffn = {
            "gemma2": ("mixer_post_norm", "ffn_post_norm"), "olmo2": ("mixer_norm", "ffn_norm")
        }.get(name, (None, "ffn"))  # fmt: skip
        behind = frozen_norm(model.layers[number].get_submodule(norm) if norm else torch.nn.Identity(), written)
        for head in range(mixer.n_heads):
            site = Site(f"layers.{number}.mixer", head)
            with patched(model, {site: torch.zeros(2, 24, mixer.head_dim)}):
                without = trace(model, tokens()).stack[number].outputs["mixer"][1, 11]
            expected = logit(behind(written - without))
            assert values[f"layers.{number}.mixer.head.{head}"] == pytest.approx(expected, abs=1e-4)
        bias = torch.zeros(model.config.d_model) if mixer.o.bias is None else mixer.o.bias
        assert values[f"layers.{number}.mixer.bias"] == pytest.approx(logit(behind(bias)), abs=1e-4)
        assert values[f"layers.{number}.ffn"] == pytest.approx(logit(layer.outputs[ffn][1, 11]), abs=1e-4)
    assert len(values) == 2 + sum(2 + layer.mixer.n_heads for layer in model.layers)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_contributions_of_a_bfloat16_model_are_those_of_the_same_in_float32(name: str) -> None:
    model = case(name).tiny().to(torch.bfloat16)
    low = attribute(model, trace(model, tokens()), 5, versus=9)
    model = model.float()
    for part, expected in zip(low, attribute(model, trace(model, tokens()), 5, versus=9), strict=True):
        assert part.name == expected.name and part.value == pytest.approx(expected.value, abs=0.25)


@pytest.mark.parametrize("kind", ["lora", "int8", "nf4"])
def test_contributions_through_adapters_and_quantised_weights_sum_to_the_logit(kind: str) -> None:
    model = case("llama").tiny()
    if kind == "lora":
        for name in lora(model, LoRAOptions(rank=4), generator("lora", 0)):
            torch.nn.init.normal_(model.get_submodule(name).b, 0.0, 0.1, generator=generator(name, 0))
    else:
        quantize(model, kind=kind)
    record = trace(model, tokens())
    assert all(heads.weights().shape == (2, model.config.n_heads, 24, 24) for heads in record.heads)
    *parts, rest = attribute(model, record, 5)
    logits = model.logits(record.hidden).detach()
    assert sum(part.value for part in parts) == pytest.approx(float(logits[0, -1, 5]), abs=1e-3)
    assert rest.value == pytest.approx(0, abs=1e-3)
    assert torch.equal([*logit_lens(model, record)][-1], logits)


def test_a_replaced_forward_of_a_layer_is_there_again_after_the_lens() -> None:
    model, record = traced("llama")
    layer, calls = model.layers[0], []
    forward = layer.forward
    layer.forward = lambda x, ctx: calls.append(1) or forward(x, ctx)
    assert torch.equal([*logit_lens(model, record)][-1], model.logits(record.hidden)) and not calls
    model(tokens())
    assert calls == [1]


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    model, record = traced("llama")
    for bad in (dict(token=VOCAB), dict(token=-1), dict(token=5, versus=VOCAB)):
        with pytest.raises(InterpretError, match=f"give some of the {VOCAB} of the model, from 0 to {VOCAB - 1}"):
            attribute(model, record, **bad)


def test_post_norm_layers_are_no_sum_and_encoders_have_no_attribution() -> None:
    for name, says in (("gpt", "norm after each sum"), ("bert", "no decoder"), ("lstm", "does not add its parts")):
        model, record = traced(name)
        with pytest.raises(InterpretError, match=says):
            attribute(model, record, 5)


def test_a_frozen_norm_is_the_norm_at_its_point() -> None:
    norm = foundling.build("gpt2", **case("gpt2").fields()).norm
    x = torch.randn(64)
    assert torch.allclose(frozen_norm(norm, x)(x) + norm.bias, norm(x), atol=1e-6)
    with pytest.raises(InterpretError, match="GELU cannot be frozen"):
        frozen_norm(torch.nn.GELU(), x)


@pytest.mark.parametrize("name", ["clip", "unet"])
def test_what_reads_no_text_is_refused(name: str) -> None:
    with pytest.raises(InterpretError, match="reads no text"):
        trace(case(name).tiny(), tokens())


def test_a_source_is_asked_for_where_it_is_read() -> None:
    with pytest.raises(InterpretError, match="reads a source"):
        trace(case("t5").tiny(), tokens())
    with pytest.raises(InterpretError, match="reads no source"):
        trace(case("llama").tiny(), tokens(), source=tokens())


def test_documents_in_a_row_do_not_see_each_other() -> None:
    record = trace(case("llama").tiny(), tokens(), documents=(torch.arange(24) > 9).long().repeat(2, 1))
    assert not record.heads[0].weights()[:, :, 10:, :10].any()


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_maps_are_those_of_transformers(name: str, tmp_path) -> None:
    import transformers

    torch.manual_seed(0)
    small = dict(vocab_size=VOCAB, attn_implementation="eager")
    bert = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    made = {
        "llama": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**small, **bert, num_key_value_heads=2)
        ),
        "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**small, n_embd=32, n_layer=2, n_head=4)),
        "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**small, **bert)),
        "t5": lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(**small, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
        ),
    }  # fmt: skip
    theirs = randomise(made[name]())
    theirs.save_pretrained(tmp_path / "theirs")
    ours, x = foundling.load(tmp_path / "theirs"), tokens()
    more = {"decoder_input_ids": x} if name == "t5" else {}
    with torch.no_grad():
        answer = theirs(x, output_attentions=True, **more)
    record = trace(ours, x, **({"source": x} if name == "t5" else {}))
    if name == "t5":
        pairs = [(answer.decoder_attentions, record.heads)]
        for kind, part in (("encoder_attentions", "encoder.layers"), ("cross_attentions", ".cross")):
            pairs.append((answer[kind], [h for layer in record.layers for h in layer.heads if part in h.name]))
    else:
        pairs = [(answer.attentions, record.heads)]
    for expected, heads in pairs:
        assert len(expected) == len(heads) == 2
        for a, b in zip(expected, heads, strict=True):
            assert torch.allclose(a, b.weights(), atol=2e-6)
