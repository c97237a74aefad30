# SPDX-License-Identifier: Apache-2.0
"""The contract that every family meets. A family joins by its line in FAMILIES; nothing here names one."""

import pytest
import torch

from foundling.adapt.lora import LoRAOptions, lora
from foundling.adapt.quantize import quantize
from foundling.blocks.init import initialise, roles
from foundling.contracts.cache import State
from foundling.contracts.denoise import Denoiser as DenoiserProtocol
from foundling.contracts.model import DualEncoder as DualEncoderProtocol
from foundling.contracts.model import Encoder as EncoderProtocol
from foundling.contracts.model import LanguageModel, layers_of
from foundling.models import FAMILIES, build, count_parameters, family, family_of
from foundling.runtime.device import Runtime
from foundling.runtime.rng import generator
from foundling.train.loop import train
from foundling.train.options import TrainOptions
from foundling.train.schedule import Schedule
from foundling.weights.directory import load, save, weights_hash
from foundling.weights.manifest import check
from tests.contract.cases import VOCAB, Counted, Data, T, case, close, tokens
from tests.contract.matrix import MECHANISMS, UNLIKE, covers
from tests.rounding import bound

each = pytest.mark.parametrize("name", FAMILIES)


@each
def test_shapes_and_protocol(name: str) -> None:
    of = case(name)
    model = of.tiny()
    assert family_of(model).name == name and layers_of(model)
    if of.family.kind == "dual_encoder":
        assert isinstance(model, DualEncoderProtocol)
        both = of.outputs(model)
        assert both.shape[0] == 2 and both.isfinite().all()
    elif of.family.kind == "encoder":
        assert isinstance(model, EncoderProtocol)
        memory = model.encode(tokens())
        assert memory.states.shape == (2, T, 64) and memory.documents is None
        assert model.logits(model(tokens()).hidden).shape == (2, T, VOCAB)
    elif of.family.kind == "denoiser":
        assert isinstance(model, DenoiserProtocol)
        assert of.outputs(model).shape == of.batch(0, 2)["pixels"].shape == (2, *model.sample_shape)
    else:
        assert isinstance(model, LanguageModel)
        hidden = of.hidden(model, tokens())
        assert hidden.shape == (2, T, model.config.d_model)
        assert model.logits(hidden).shape == (2, T, VOCAB)
        close(of.hidden(model, model.embed_tokens(tokens())), hidden)


@covers("packing", only=[n for n, e in FAMILIES.items() if e.kind in ("decoder", "seq2seq")])
def test_later_tokens_change_nothing_earlier(name: str) -> None:
    of = case(name)
    model, x = of.tiny(), tokens()
    other = x.clone()
    other[:, 15:] = (other[:, 15:] + 1) % VOCAB
    a, b = of.hidden(model, x), of.hidden(model, other)
    # experts see another number of rows, products of other shapes may round otherwise, an FFT rounds all of a row
    close(a[:, :15], b[:, :15])
    assert (a[:, 15:] - b[:, 15:]).abs().amax(-1).min() > 0


@covers("packing", only=[n for n, e in FAMILIES.items() if e.kind == "encoder"])
def test_each_token_sees_both_sides(name: str) -> None:
    of = case(name)
    model, x = of.tiny(), tokens()
    other = x.clone()
    other[:, 15] = (other[:, 15] + 1) % VOCAB
    changed = (of.hidden(model, x) - of.hidden(model, other)).abs().amax(-1) > 0
    if name == "elmo":
        changed[:, 15] = True  # what predicts a token has not read it
    assert changed.all()


@covers("packing")
def test_packed_documents_equal_documents_apart(name: str) -> None:
    of = case(name)
    model, x = of.tiny(), tokens(1, 30)
    documents = torch.tensor([[0] * 7 + [1] * 1 + [2] * 12 + [3] * 10])
    packed = of.hidden(model, x, documents=documents)
    for i in range(4):
        places = documents[0] == i
        close(packed[:, places], of.hidden(model, x[:, places]))


@covers("packing", only=[n for n, e in FAMILIES.items() if e.kind == "seq2seq"])
def test_packed_documents_read_their_own_source(name: str) -> None:
    model, x, source = case(name).tiny(), tokens(1, 20), tokens(1, 15, seed=4)
    documents, source_documents = (torch.arange(20) > 12).long()[None], (torch.arange(15) > 8).long()[None]
    memory = model.encode(source, documents=source_documents)
    packed = model(x, documents=documents, memory=memory).hidden
    for i in range(2):
        apart = model(x[documents == i][None], memory=model.encode(source[source_documents == i][None])).hidden
        close(packed[documents == i], apart[0])


@covers("padding")
def test_padding_on_the_right_changes_nothing(name: str) -> None:
    of = case(name)
    model, x = of.tiny(), tokens(2, 14)
    documents = torch.zeros(2, 14, dtype=torch.int64)
    documents[1, 9:] = -1
    if of.family.kind == "dual_encoder":
        x[0, 13] = x[1, 8] = VOCAB - 1  # where a text ends
        text = model.embed_text(x, documents=documents)
        close(text[1], model.embed_text(x[1:, :9])[0])
        close(text[0], model.embed_text(x[:1])[0])
        return
    hidden = of.hidden(model, x, documents=documents)
    close(hidden[0], of.hidden(model, x[:1])[0])
    close(hidden[1, :9], of.hidden(model, x[1:, :9])[0])
    assert hidden.isfinite().all()
    if of.family.kind == "seq2seq":  # and of the source
        y = tokens(2, 6, seed=5)
        padded = model(y, memory=model.encode(x, documents=documents)).hidden
        close(padded[1], model(y[1:], memory=model.encode(x[1:, :9])).hidden[0])


def new_cache(of, model, rows: int, length: int):
    if of.family.kind != "seq2seq":
        return model.new_cache(rows, length)
    return model.new_cache(rows, length, model.encode(of.source(1).expand(rows, -1)))


@covers("cache")
def test_cache_equals_reading_at_once(name: str) -> None:
    """Rows of different lengths, read in uneven parts, reordered in between."""
    of = case(name)
    model, x = of.tiny(), tokens(3, 24)
    whole = of.hidden(model, x)
    cache, lengths = new_cache(of, model, 3, 24), [9, 4, 6]
    documents = torch.tensor([[0] * n + [-1] * (9 - n) for n in lengths])
    first = model(x[:, :9], documents=documents, cache=cache).hidden
    for row, n in enumerate(lengths):
        close(first[row, :n], whole[row, :n])
    order = torch.tensor([2, 0, 0, 1])
    cache = cache.select(order)
    assert cache.lengths.tolist() == [6, 9, 9, 4]
    for step in range(5):
        at = cache.lengths.clone()
        size = 1 + step % 3
        part = torch.stack([x[row, n : n + size] for row, n in zip(order, at, strict=True)])
        out = model(part, cache=cache).hidden
        expected = torch.stack([whole[row, n : n + size] for row, n in zip(order, at, strict=True)])
        close(out, expected)
        assert cache.lengths.tolist() == (at + size).tolist(), step


@covers("recurrent")
def test_the_chunked_form_equals_the_recurrent_form(name: str) -> None:
    """Token by token against all at once, over several chunks, with a document's border inside one."""
    of = case(name)
    chunks = {"chunk_size": 8} if "chunk_size" in of.family.config.__dataclass_fields__ else {}
    model, x = of.tiny(**chunks), tokens(2, 30)
    documents = torch.tensor([[0] * 11 + [1] * 19, [0] * 30])
    whole = of.hidden(model, x, documents=documents)
    cache = new_cache(of, model, 2, 30)
    steps = [model(x[:, n : n + 1], documents=documents[:, n : n + 1], cache=cache).hidden for n in range(30)]
    close(torch.cat(steps, 1), whole, bound(depth=30))  # a state goes through 30 steps
    assert any(isinstance(slot, State) for slots in model.cache_spec() for slot in slots)


@covers("gradients")
def test_every_parameter_gets_a_gradient(name: str) -> None:
    of = case(name)
    model, objective = of.tiny(), of.objective()
    objective(model, of.batch(0))["loss"].sum.backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, parameter


@each
def test_every_parameter_has_a_role_and_a_start(name: str) -> None:
    of = case(name)
    model = of.fresh()
    assert roles(model).keys() == dict(model.named_parameters()).keys()
    first = weights_hash(model)
    initialise(model, generator("init", 1))
    assert weights_hash(model) != first
    initialise(model, generator("init", 0))
    assert weights_hash(model) == first
    outputs = of.outputs(model)
    assert outputs.isfinite().all()
    if of.family.kind in ("decoder", "encoder", "seq2seq"):
        assert torch.softmax(outputs, -1).max() < 0.2, "a fresh model is nearly uniform"


@covers("bf16")
def test_bfloat16_stays_near(name: str) -> None:
    """Autocast's own rounding is 2^-9, and a router or a sharp softmax may choose otherwise in single places: half of
    all places stay within a few per cent."""
    of = case(name)
    model = of.tiny()
    exact = of.outputs(model)
    places = exact.flatten(0, -2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = of.outputs(model).float()
    cast = of.outputs(model.to(torch.bfloat16)).float()  # as inference loads it
    for rounded in (trained, cast):
        errors = (rounded.flatten(0, -2) - places).norm(dim=-1) / places.norm(dim=-1)
        assert errors.median() < 0.05 and rounded.isfinite().all(), errors


@covers("directory")
def test_save_and_load_are_bitwise(name: str, tmp_path) -> None:
    of = case(name)
    ties = (True, False) if "tie_embeddings" in of.family.config.__dataclass_fields__ else (None,)
    for tie in ties:
        model = of.tiny(**({} if tie is None else {"tie_embeddings": tie}))
        save(model, tmp_path / str(tie))
        again = load(tmp_path / str(tie))
        assert again.config == model.config and check(tmp_path / str(tie))["ok"]
        assert weights_hash(again) == weights_hash(model)
        assert torch.equal(of.outputs(again), of.outputs(model))


class Same(Data):
    """One batch, over and over."""

    def __getitem__(self, n: int):
        return super().__getitem__(0)


def losses(name: str, *, micro: int, steps: int = 6, optimizer="muon", compile: bool = False) -> list[float]:
    of = case(name)
    state, objective = of.state(optimizer), Counted(of.objective())
    options, runtime = TrainOptions(micro), Runtime(compile=compile)
    return [s.loss for s in train(state, objective, Same(of), Schedule(steps), options, runtime)]


@covers("pretrain", quick=set(MECHANISMS) - {"s4", "albert"})
def test_learns_and_accumulation_changes_nothing(name: str) -> None:
    learns_whatever_the_micro_batches(name, "muon")


@covers("pretrain", quick=("llama", "clip", "unet"))
def test_adamw_learns_and_accumulation_changes_nothing(name: str) -> None:
    learns_whatever_the_micro_batches(name, "adamw")


def learns_whatever_the_micro_batches(name: str, optimizer: str) -> None:
    whole, parts = losses(name, micro=8, optimizer=optimizer), losses(name, micro=3, optimizer=optimizer)
    assert whole[-1] < whole[0] * 0.99
    # a sum of gradients in another order is off by some `bound()`, which a step of the optimizer may multiply by ten
    assert whole[0] == pytest.approx(parts[0], rel=bound())
    assert whole[1] == pytest.approx(parts[1], rel=10 * bound()) and whole == pytest.approx(parts, rel=1e-3)


def distinct_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The first layer of each structure: its list, the types, options and shapes inside it."""
    paths, found = {module: path for path, module in model.named_modules()}, {}
    for layer in layers_of(model):
        options = [{k: v for k, v in vars(m).items() if isinstance(v, bool | str)} for m in layer.modules()]
        shapes = [(name, tuple(p.shape)) for name, p in layer.named_parameters()]
        types = [(name, type(module)) for name, module in layer.named_modules()]
        found.setdefault(repr((paths[layer].rpartition(".")[0], types, options, shapes)), layer)
    return list(found.values())


@pytest.mark.parametrize(
    ("name", "count"), [("llama", 1), ("gemma2", 2), ("llama4", 2), ("jamba", 2), ("t5", 2), ("clip", 2), ("unet", 5)]
)
def test_distinct_layers_are_found(name: str, count: int) -> None:
    model = case(name).tiny()
    assert len(distinct_layers(model)) == count <= len(layers_of(model))


def compiled(name: str, backend: str) -> tuple[float, float, dict[str, float]]:
    """The losses of a plain and a compiled model, and how far each gradient is off."""
    of = case(name)
    plain, model = of.tiny(), of.tiny()
    torch.compiler.reset()  # what other families left: shared blocks may be compiled some eight ways in a process
    for layer in distinct_layers(model) if backend == "inductor" else layers_of(model):  # seconds a layer
        layer.compile(backend=backend, fullgraph=True, dynamic=False)
    batch, objective = of.batch(0), of.objective()
    sums = []
    for one in (plain, model):
        loss = objective(one, batch)["loss"].sum
        loss.backward()
        sums.append(float(loss.detach()))
    pairs = zip(plain.named_parameters(), model.parameters(), strict=True)
    # some gradients are nothing but rounding: a key's bias moves all scores alike, a norm takes a constant away
    least = 1e-4 * max(float(p.grad.norm()) for p in plain.parameters())
    return *sums, {n: float((p.grad - q.grad).norm() / p.grad.norm().clamp_min(least)) for (n, p), q in pairs}


@covers("compile", quick=UNLIKE)
def test_compiles_without_a_break(name: str) -> None:
    """aot_eager traces everything that inductor would; a graph break would raise."""
    plain, model, gradients = compiled(name, "aot_eager")
    assert model == pytest.approx(plain, rel=1e-5)
    assert max(gradients.values()) < 1e-3, gradients


@covers("inductor", quick=("llama",))
def test_compiled_by_inductor_is_the_same(name: str) -> None:
    plain, model, gradients = compiled(name, "inductor")
    assert model == pytest.approx(plain, rel=1e-5)
    assert max(gradients.values()) < 1e-3, gradients


PUBLISHED = {
    "gpt": 116_534_784,
    "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200,
    "llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248, "mixtral-8x7b": 46_702_792_704, "mixtral-8x22b": 140_630_071_296,
    "mamba2-130m": 128_989_632, "mamba2-370m": 368_346_624, "mamba2-780m": 780_161_280, "mamba2-1.3b": 1_343_757_312,
    "mamba2-2.7b": 2_702_599_680, "t5-small": 60_506_624, "t5-base": 222_903_552, "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336, "t5-11b": 11_307_321_344, "t5-v1.1-small": 76_961_152, "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080, "t5-v1.1-xl": 2_849_757_184, "t5-v1.1-xxl": 11_135_332_352,
    "clip-vit-base-patch32": 151_277_313, "clip-vit-base-patch16": 149_620_737, "clip-vit-large-patch14": 427_616_513,
    "llama-3.1-8b": 8_030_261_248, "llama-3.1-70b": 70_553_706_496, "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824, "mistral-7b-v0.1": 7_241_732_096, "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400, "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360, "qwen3-32b": 32_762_123_264, "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560, "olmo-2-1b": 1_484_916_736, "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400, "olmo-2-32b": 32_234_279_936, "gpt-neox-20b": 20_554_567_680,
    "pythia-70m": 70_426_624, "pythia-160m": 162_322_944, "pythia-410m": 405_334_016, "pythia-1.4b": 1_414_647_808,
    "pythia-6.9b": 6_857_302_016, "pythia-12b": 11_846_072_320, "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984, "gemma-2-27b": 27_227_128_320, "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 3_880_263_168, "opt-125m": 125_239_296, "opt-1.3b": 1_315_758_080, "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984, "opt-13b": 12_853_473_280, "opt-30b": 29_974_540_288, "bloom-560m": 559_214_592,
    "bloom-1b1": 1_065_314_304, "bloom-1b7": 1_722_408_960, "bloom-3b": 3_002_557_440, "bloom-7b1": 7_069_016_064,
    "bloom": 176_247_271_424,
    "bert-base": 110_106_428, "bert-large": 336_226_108, "minilm-l6": 22_713_216,
    "roberta-base": 124_697_433, "roberta-large": 355_412_057, "distilbert-base": 66_985_530,
    "albert-base": 11_813_810, "albert-large": 17_847_474, "albert-xlarge": 59_021_490, "albert-xxlarge": 223_158_450,
    "gpt-oss-20b": 20_914_757_184, "gpt-oss-120b": 116_829_156_672,
    "modernbert-base": 149_655_232, "modernbert-large": 395_881_664,
    "mamba-130m": 129_135_360, "mamba-370m": 371_516_416, "mamba-790m": 793_204_224, "mamba-1.4b": 1_372_178_432,
    "mamba-2.8b": 2_768_345_600, "jamba-v0.1": 51_570_323_328, "jamba-1.5-mini": 51_570_323_328,
    "rwkv-4-169m": 169_342_464, "rwkv-4-430m": 430_397_440, "rwkv-4-1b5": 1_515_106_304,
    "rwkv-4-3b": 2_984_627_200, "rwkv-4-7b": 7_392_649_216, "rwkv-4-14b": 14_148_597_760,
    "h3-125m": 126_387_456,
    "llama-3-70b": 70_553_706_496, "llama-3.1-405b": 405_853_388_800, "llama-3.3-70b": 70_553_706_496,
    "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512, "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648, "qwen3-4b": 4_022_468_096, "qwen3-14b": 14_768_307_200,
    "gemma-2b": 2_506_172_416, "gemma-7b": 8_537_680_896, "phi-3-mini-4k": 3_821_079_552,
    "phi-3-medium-4k": 13_960_238_080, "phi-4": 14_659_507_200,
    "bart-base": 139_420_416, "bart-large": 406_291_456,
    "transformer-base": 63_082_496,  # nobody's; its shapes and 37,000 tokens make this, table 3 says 65 million
    "unet-32": 35_751_939,  # nobody's but ours; as many as diffusers' UNet2DModel of that shape has
}  # fmt: skip
"""Parameters of the released checkpoints: "Model size" of their pages on the Hugging Face hub, which counts the
tensors of the files; a tied head once."""
ROUNDED = {
    "opt-66b": 66e9, "opt-175b": 175e9, "gopher-280b": 280e9, "chinchilla-70b": 70e9, "poro-34b": 34.2e9,
    "gpt3-125m": 125e6, "gpt3-350m": 356e6, "gpt3-760m": 760e6, "gpt3-1.3b": 1.32e9, "gpt3-2.7b": 2.65e9,
    "gpt3-6.7b": 6.66e9, "gpt3-13b": 12.9e9, "gpt3-175b": 175e9,  # Brown et al. 2020, table D.1
    "llama-4-scout": 109e9 - 0.9e9, "llama-4-maverick": 401e9 - 0.9e9,  # less the encoder of images and its adapter
    "ada": 356e6, "babbage": 1.32e9, "curie": 6.66e9, "davinci": 175e9, "jamba-1.5-large": 398e9,
    "transformer-big": 213e6, "awd-lstm": 24e6,  # Merity et al. 2018, table 1
    "elmo": 93.6e6,  # of the released model, without its softmax
}  # fmt: skip
"""as papers state them"""
ACTIVE = {
    "mixtral-8x7b": 12_879_925_248, "mixtral-8x22b": 39_161_468_928, "llama-4-scout": 17e9, "llama-4-maverick": 17e9,
    "qwen3-30b-a3b": 3_353_032_704, "qwen3-235b-a22b": 22_190_763_520, "gpt-oss-20b": 4_187_440_704,
    "gpt-oss-120b": 5_711_982_912,
    "jamba-v0.1": 12_110_311_296, "jamba-1.5-mini": 12_110_311_296, "jamba-1.5-large": 94e9,
}  # fmt: skip
"""of which a token meets: published as 12.9 and 39 billion, 17, 3.3 and 22, 3.6 and 5.1 (without the embedding's 0.6),
12 and 94"""


@each
def test_the_smallest_preset_has_its_published_size(name: str) -> None:
    presets = family(name).module.PRESETS
    assert presets.keys() <= PUBLISHED.keys() | ROUNDED.keys(), "write down the published size of each preset"
    smallest = min(presets, key=lambda preset: (PUBLISHED | ROUNDED)[preset], default=None)
    has_published_sizes(name, {smallest: presets[smallest]} if smallest else {})


@pytest.mark.slow
@each
def test_presets_have_their_published_size(name: str) -> None:
    has_published_sizes(name, family(name).module.PRESETS)


def has_published_sizes(name: str, presets: dict[str, dict]) -> None:
    for preset, fields in presets.items():
        sizes = count_parameters(build(name, device="meta", **fields))
        if preset in ROUNDED:
            assert sizes["total"] == pytest.approx(ROUNDED[preset], rel=0.01), preset
            assert sizes["active"] == pytest.approx(ACTIVE.get(preset, sizes["total"]), rel=0.02), preset
            continue
        assert sizes["total"] == PUBLISHED[preset], preset
        assert sizes["active"] == ACTIVE.get(preset, sizes["total"]), preset


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_parameters_of_an_adapted_and_of_a_quantised_mixture_are_counted(name: str) -> None:
    model = case(name).tiny()
    before, c = count_parameters(model), model.config
    # what a token does not meet: rows of three matrices a layer, and of their biases
    biases = 2 * c.d_expert + c.d_model if name == "gpt_oss" else 0
    assert before["total"] - before["active"] == 2 * (8 - 2) * (3 * c.d_model * c.d_expert + biases)
    lora(model, LoRAOptions("*layers.*.ffn.down", rank=3), generator("lora"))
    after = count_parameters(model)
    row = 3 * (c.d_model + c.d_expert)
    assert (after["total"] - before["total"], after["active"] - before["active"]) == (2 * 8 * row, 2 * 2 * row)
    rounded = case(name).tiny()
    quantize(rounded, "*layers.*.ffn.*")
    counted = count_parameters(rounded)
    assert counted["total"] - counted["active"] == 2 * (8 - 2) * biases, "integers are no parameters"
