# SPDX-License-Identifier: Apache-2.0
"""Models of transformers and diffusers with random weights, several shapes a family, and how each is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundling.contracts.denoise import Condition
from tests.rounding import bound


class Reference(NamedTuple):
    make: Callable[[], Any]
    theirs: Callable[[Any], Tensor]
    ours: Callable[[Any], Tensor]


def transformers() -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


def tokens(seed: int = 1, length: int = 31) -> Tensor:
    return torch.randint(3, 60, (3, length), generator=torch.Generator().manual_seed(seed))


def _decoder(model: str, config: str, **fields: Any) -> Reference:
    def make() -> Any:
        return getattr(transformers(), model)(getattr(transformers(), config)(**fields))

    return Reference(make, lambda m: m(tokens()).logits, lambda m: m.logits(m(tokens()).hidden))


def gpt2(**fields: Any) -> Reference:
    return _decoder("GPT2LMHeadModel", "GPT2Config", **(dict(vocab_size=64, attn_pdrop=0.1) | fields))


def gpt(**fields: Any) -> Reference:
    return _decoder("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", **(dict(vocab_size=64, n_layer=2) | fields))


def llama(**fields: Any) -> Reference:
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    base = dict(vocab_size=64, num_hidden_layers=3, max_position_embeddings=64, rope_parameters=rope)
    return _decoder("LlamaForCausalLM", "LlamaConfig", **(base | fields))


def like_llama(name: str, config: str = "Config", **fields: Any) -> Reference:
    base = dict(
        vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return _decoder(f"{name}ForCausalLM", f"{name}{config}", **(base | fields))


def gemma3(**fields: Any) -> Reference:
    return like_llama("Gemma3", "TextConfig", **fields)


def opt(**fields: Any) -> Reference:
    base = dict(
        vocab_size=64, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, dropout=0.0, pad_token_id=1,
    )  # fmt: skip
    return _decoder("OPTForCausalLM", "OPTConfig", **(base | fields))


def bloom(**fields: Any) -> Reference:
    return _decoder(
        "BloomForCausalLM", "BloomConfig", **(dict(vocab_size=64, hidden_size=32, n_head=4, n_layer=2) | fields)
    )


def gpt_neox(**fields: Any) -> Reference:
    base = dict(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    return _decoder("GPTNeoXForCausalLM", "GPTNeoXConfig", **(base | fields))


def mixtral(**fields: Any) -> Reference:
    base = dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    return _decoder("MixtralForCausalLM", "MixtralConfig", **(base | fields))


def qwen3_moe(**fields: Any) -> Reference:
    base: dict[str, Any] = dict(moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2)
    return like_llama("Qwen3Moe", **(base | fields))


def gpt_oss(**fields: Any) -> Reference:
    base: dict[str, Any] = dict(num_local_experts=4, num_experts_per_tok=2, head_dim=16, sliding_window=5)
    return like_llama("GptOss", **(base | fields))


def mamba(**fields: Any) -> Reference:
    base = dict(vocab_size=64, hidden_size=32, state_size=8, num_hidden_layers=2)
    return _decoder("MambaForCausalLM", "MambaConfig", **(base | fields))


def jamba(**fields: Any) -> Reference:
    base = dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, num_experts=4, attn_layer_period=3, attn_layer_offset=1, mamba_d_state=8,
    )  # fmt: skip
    return _decoder("JambaForCausalLM", "JambaConfig", **(base | fields))


def llama4(**fields: Any) -> Reference:
    base = dict(
        intermediate_size_mlp=80, num_local_experts=4, attention_chunk_size=9, no_rope_layer_interval=2,
        interleave_moe_layer_step=2, floor_scale=5, head_dim=12, num_hidden_layers=4,
    )  # fmt: skip
    return like_llama("Llama4", "TextConfig", **(base | fields))


def mamba2(**fields: Any) -> Reference:
    base = dict(vocab_size=64, hidden_size=32, num_heads=4, head_dim=16, state_size=8, n_groups=2, num_hidden_layers=2,
                chunk_size=8)  # fmt: skip
    return _decoder("Mamba2ForCausalLM", "Mamba2Config", **(base | fields))


def rwkv(**fields: Any) -> Reference:
    base = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, context_length=64)
    return _decoder("RwkvForCausalLM", "RwkvConfig", **(base | fields))


def t5(*, head: bool = False, **fields: Any) -> Reference:
    base = dict(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=3, num_heads=4,
                relative_attention_num_buckets=8, relative_attention_max_distance=16)  # fmt: skip

    def make() -> Any:
        model = transformers().T5ForConditionalGeneration(transformers().T5Config(**(base | fields)))
        if head:  # version 1.1: transformers calls it tied and keeps a head of its own
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        return model

    return _reading(make)


def bart(*, head: bool = False, **fields: Any) -> Reference:
    base = dict(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=40,
    )  # fmt: skip

    def make() -> Any:
        model = transformers().BartForConditionalGeneration(transformers().BartConfig(**(base | fields)))
        if head:
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        return model

    return _reading(make)


def _reading(make: Callable[[], Any]) -> Reference:
    """An encoder-decoder: a source and what is answered so far."""
    answers = tokens(2, 17)
    return Reference(
        make,
        lambda m: m(input_ids=tokens(), decoder_input_ids=answers).logits,
        lambda m: m.logits(m(answers, memory=m.encode(tokens())).hidden),
    )


def encoder(name: str, **fields: Any) -> Reference:
    base = dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=40,
    )  # fmt: skip
    return _decoder(name, name.partition("For")[0] + "Config", **(base | fields))


def distilbert(**fields: Any) -> Reference:
    base = dict(vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=40)
    return _decoder("DistilBertForMaskedLM", "DistilBertConfig", **(base | fields))


def albert(**fields: Any) -> Reference:
    return encoder("AlbertForMaskedLM", **(dict(embedding_size=12) | fields))


def modernbert(**fields: Any) -> Reference:
    return encoder("ModernBertForMaskedLM", **(dict(pad_token_id=0) | fields))


def clip(eos: int, width: int, channels: int) -> Reference:
    text = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=16, eos_token_id=eos, bos_token_id=0)  # fmt: skip
    vision = dict(hidden_size=width, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=16,
                  patch_size=4, num_channels=channels)  # fmt: skip

    def make() -> Any:
        config = transformers().CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        return transformers().CLIPModel(config)

    pixels = torch.randn(3, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    texts = tokens(3, 12)
    texts[0, 5] = texts[1, 11] = texts[2, 7] = 63

    def theirs(m: Any) -> Tensor:
        out = m(input_ids=texts, pixel_values=pixels)
        return torch.cat([out.image_embeds, out.text_embeds, out.logits_per_image], dim=1)

    def ours(m: Any) -> Tensor:
        image, text = m.embed_image(pixels), m.embed_text(texts)
        return torch.cat([image, text, image @ text.T * m.scale.exp()], dim=1)

    return Reference(make, theirs, ours)


def unet(widths: tuple[int, ...], attends: tuple[bool, ...], blocks: int, channels: int = 1) -> Reference:
    def make() -> Any:
        import diffusers

        return diffusers.UNet2DModel(
            sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=widths,
            layers_per_block=blocks, num_class_embeds=5, norm_num_groups=8, attention_head_dim=8,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        )  # fmt: skip

    x = torch.randn(3, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    t, classes = torch.tensor([0, 500, 999]), torch.tensor([0, 3, 4])
    condition = Condition(torch.tensor([0, 3, 1]), keep=torch.tensor([True, True, False]))  # 4 is the null class
    return Reference(make, lambda m: m(x, t, class_labels=classes).sample, lambda m: m(x, t, condition))


def randomise(model: Any) -> Any:
    """The usual start of 0.02 hides mistakes of position, grouping and scale: every weight shows in the output."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=draw)
            if name.endswith("A_log"):
                p.copy_(noise.abs())
            elif name.endswith(("dt_bias", "dt_proj.bias")):
                p.copy_(noise - 1)
            elif name.endswith("Attention.q.weight"):  # T5 divides by no √d_kv; sharp scores multiply roundings by ten
                p.copy_(noise * 0.25 * 8**-0.5)
            else:
                size = p[0].numel() ** -0.5 if p.ndim == 4 else 0.25 if p.ndim > 1 else 0.3
                p.copy_(noise * size + (p.ndim == 1))
    return model.eval()


SLOW = [1.0, 1.5, 2.25, 3.0, 1.25, 4.5, 8.0, 9.5]
"""factors of longrope"""
REFERENCES: dict[str, list[Reference]] = {
    "gpt": [
        gpt(n_embd=48, n_head=3, n_positions=40, vocab_size=97),
        gpt(n_embd=64, n_head=1, n_layer=3, n_positions=33),
        gpt(n_embd=32, n_head=8, n_positions=64, tie_word_embeddings=False),
    ],
    "gpt2": [
        gpt2(n_embd=48, n_head=3, n_layer=2, n_positions=40, vocab_size=97),
        gpt2(n_embd=64, n_head=1, n_layer=3, n_positions=33, n_inner=100),
        gpt2(n_embd=32, n_head=8, n_layer=1, n_positions=64, tie_word_embeddings=False),
    ],
    "llama": [
        llama(hidden_size=48, num_attention_heads=4, num_key_value_heads=1, head_dim=12, intermediate_size=64),
        llama(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, intermediate_size=100,
              rope_parameters={"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
                               "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),
        llama(hidden_size=64, num_attention_heads=4, num_key_value_heads=4, intermediate_size=96,
              tie_word_embeddings=True),
    ],
    "llama4": [
        llama4(),
        llama4(interleave_moe_layer_step=1, num_experts_per_tok=2, use_qk_norm=False, no_rope_layer_interval=3),
        llama4(num_key_value_heads=4, head_dim=16, attn_temperature_tuning=False, tie_word_embeddings=True,
               attention_chunk_size=40, num_local_experts=3,
               rope_parameters={"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
                                "high_freq_factor": 1.0, "original_max_position_embeddings": 16}),
    ],
    "mistral": [
        like_llama("Mistral", sliding_window=7),
        like_llama("Mistral", sliding_window=None, head_dim=16),
        like_llama("Mistral", num_key_value_heads=1, tie_word_embeddings=True, sliding_window=3),
    ],
    "qwen3": [
        like_llama("Qwen3", head_dim=16),
        like_llama("Qwen3", head_dim=32, num_key_value_heads=4, tie_word_embeddings=True),
        like_llama("Qwen3", head_dim=8, num_key_value_heads=1),
    ],
    "qwen3_moe": [
        qwen3_moe(head_dim=16, norm_topk_prob=True),
        qwen3_moe(decoder_sparse_step=2, mlp_only_layers=[1], num_hidden_layers=4, num_key_value_heads=1),
        qwen3_moe(num_experts=3, num_experts_per_tok=1, tie_word_embeddings=True, mlp_only_layers=[0], head_dim=8),
    ],
    "qwen2": [
        like_llama("Qwen2"),
        like_llama("Qwen2", tie_word_embeddings=True, use_sliding_window=True, sliding_window=7, max_window_layers=1),
        like_llama("Qwen2", num_key_value_heads=1, rope_parameters={
            "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}),
    ],
    "phi3": [
        like_llama("Phi3", sliding_window=9),
        like_llama("Phi3", num_key_value_heads=1, original_max_position_embeddings=40, rope_parameters={
            "rope_type": "longrope", "rope_theta": 500.0, "partial_rotary_factor": 0.67, "short_factor": SLOW[:4],
            "long_factor": SLOW[4:]}),
        like_llama("Phi3", num_key_value_heads=4, original_max_position_embeddings=16, tie_word_embeddings=True,
                   rope_parameters={"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": SLOW[2:]}),
    ],
    "gemma": [
        like_llama("Gemma", head_dim=16),
        like_llama("Gemma", head_dim=12, num_key_value_heads=1, tie_word_embeddings=False),
        like_llama("Gemma", head_dim=32, num_key_value_heads=4),
    ],
    "olmo2": [
        like_llama("Olmo2"),
        like_llama("Olmo2", num_key_value_heads=1, tie_word_embeddings=True),
        like_llama("Olmo2", hidden_size=64, num_attention_heads=2, num_key_value_heads=2),
    ],
    "gpt_neox": [
        gpt_neox(),
        gpt_neox(rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}),
        gpt_neox(use_parallel_residual=False, tie_word_embeddings=True, num_attention_heads=2),
    ],
    "gpt_oss": [
        gpt_oss(sliding_window=7),
        gpt_oss(num_local_experts=3, num_experts_per_tok=1, num_key_value_heads=4, swiglu_alpha=1.3, swiglu_limit=0.5,
                rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
        gpt_oss(num_hidden_layers=2, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, rope_parameters={
            "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}),
    ],
    "gemma2": [
        like_llama("Gemma2", head_dim=16, sliding_window=7, query_pre_attn_scalar=10),
        like_llama("Gemma2", head_dim=8, sliding_window=30, num_key_value_heads=1, attn_logit_softcapping=5.0,
                   final_logit_softcapping=3.0),
        like_llama("Gemma2", head_dim=12, num_key_value_heads=4, attn_logit_softcapping=None,
                   final_logit_softcapping=None),
    ],
    "gemma3": [
        gemma3(num_hidden_layers=7, head_dim=16, sliding_window=7),
        gemma3(head_dim=8, sliding_window=5, num_key_value_heads=1, sliding_window_pattern=2),
        gemma3(head_dim=12, num_key_value_heads=4, sliding_window_pattern=1, rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}),
    ],
    "opt": [opt(), opt(num_attention_heads=1, ffn_dim=50), opt(tie_word_embeddings=False, num_attention_heads=8)],
    "bloom": [bloom(), bloom(n_head=3, hidden_size=24), bloom(n_head=12, hidden_size=48, tie_word_embeddings=False)],
    "mixtral": [mixtral(), mixtral(num_local_experts=3, num_experts_per_tok=1, head_dim=16), mixtral(hidden_size=64)],
    "mamba": [
        mamba(),
        mamba(expand=3, conv_kernel=2, time_step_rank=5, tie_word_embeddings=False),
        mamba(hidden_size=48, state_size=16, num_hidden_layers=3, chunk_size=8),
    ],
    "jamba": [
        jamba(),
        jamba(attn_layer_period=2, attn_layer_offset=0, expert_layer_period=3, expert_layer_offset=2, num_experts=3,
              num_experts_per_tok=1, tie_word_embeddings=True),
        jamba(hidden_size=64, num_key_value_heads=1, mamba_dt_rank=7, mamba_expand=1, mamba_d_conv=3, chunk_size=5),
    ],
    "mamba2": [
        mamba2(),
        mamba2(n_groups=1, chunk_size=256, tie_word_embeddings=True),
        mamba2(n_groups=4, conv_kernel=2, chunk_size=5, state_size=16),
    ],
    "rwkv": [
        rwkv(rescale_every=0),
        rwkv(hidden_size=48, intermediate_size=40, tie_word_embeddings=True, rescale_every=0),
        rwkv(num_hidden_layers=3, rescale_every=2, layer_norm_epsilon=1e-6),
    ],
    "t5": [t5(), t5(head=True, feed_forward_proj="gated-gelu", tie_word_embeddings=False), t5(d_kv=16, num_heads=3)],
    "bert": [
        encoder("BertForMaskedLM"),
        encoder("BertForMaskedLM", num_attention_heads=1, type_vocab_size=1, num_hidden_layers=3),
        encoder("BertForMaskedLM", num_attention_heads=8, vocab_size=61, layer_norm_eps=1e-5),
    ],
    "roberta": [
        encoder("RobertaForMaskedLM", type_vocab_size=1),
        encoder("RobertaForMaskedLM", num_attention_heads=1, num_hidden_layers=3),
        encoder("RobertaForMaskedLM", num_attention_heads=8, vocab_size=61, layer_norm_eps=1e-5),
    ],
    "distilbert": [distilbert(), distilbert(n_heads=1, n_layers=3), distilbert(n_heads=8, tie_word_embeddings=False)],
    "albert": [
        albert(),
        albert(hidden_act="gelu", num_hidden_layers=3),
        albert(num_hidden_groups=2, num_hidden_layers=4),
    ],
    "modernbert": [
        modernbert(num_hidden_layers=5, local_attention=12),
        modernbert(num_attention_heads=1, local_attention=7, layer_types=["full_attention", "sliding_attention"],
                   tie_word_embeddings=False),
        modernbert(num_attention_heads=8, vocab_size=61, norm_eps=1e-3, rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 90.0}}),
    ],
    "bart": [
        bart(),
        bart(head=True, encoder_attention_heads=1, decoder_attention_heads=1, scale_embedding=True),
        bart(d_model=48, encoder_ffn_dim=50, decoder_ffn_dim=70, encoder_layers=1, encoder_attention_heads=8,
             decoder_attention_heads=3, pad_token_id=0),
    ],
    "unet": [
        unet((16, 32), (False, True), 1),
        unet((16, 16, 32), (True, False, True), 2, channels=3),
        unet((24, 8), (False, False), 3),
    ],
    "clip": [clip(63, 32, 3), clip(63, 48, 1), clip(2, 64, 3)],
}  # fmt: skip
TOLERANCE = {name: bound(depth=32) for name in ("mixtral", "jamba", "llama4", "qwen3_moe", "gpt_oss")}
"""A router's weights multiply what its experts add: twice as many sums in a row as elsewhere."""
