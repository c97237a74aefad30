# SPDX-License-Identifier: Apache-2.0
"""What a minute buys: held-out bits per byte of `foundling raise` and of a plain GPT-2 with nanoGPT's CPU settings.

python -m benchmarks.quality [--minutes 1.67] [--corpora reference,stdlib,headers] [--seeds 0,1,2]

Both have the same text, the same held-out documents and the same wall-clock time. The peer trains for as many seconds
as our whole command takes from its start to the held-out figure, with reading, tokenizer and probes; its own
preparation and evaluation are not counted. The peer's settings: characters, where one that is not in the training text
is its UTF-8 bytes; 4 layers × 128, 4 heads, context 64, batch 12, AdamW at 1e-3 (betas 0.9 and 0.99, decay 0.1),
warm-up and cosine to 1e-4 over its time (nanoGPT's README and config/train_shakespeare_char.py), with transformers.
"""

import argparse
import math
import time

import torch

from benchmarks.corpora import corpus_of
from benchmarks.prediction import errors, percent, raise_model
from foundling.data.ingest import Corpus
from foundling.runtime.device import available_threads
from foundling.runtime.rng import generator

SEQ_LEN, BATCH, D_MODEL, N_LAYERS, N_HEADS = 64, 12, 128, 4, 4
RATE, FINAL_RATE, WARMUP_SHARE = 1e-3, 1e-4, 0.05


class Characters:
    """One id for each character of the training text, and 256 for the bytes of all others."""

    def __init__(self, text: str) -> None:
        self.known = {c: 256 + i for i, c in enumerate(sorted(set(text)))}
        self.size = 256 + len(self.known)

    def __call__(self, text: str) -> torch.Tensor:
        ids: list[int] = []
        for c in text:
            if c in self.known:
                ids.append(self.known[c])
            else:
                ids.extend(c.encode())
        return torch.tensor(ids)


def train_peer(corpus: Corpus, seconds: float, seed: int) -> tuple[float, int]:
    """(held-out bits per byte, steps) after `seconds` of training."""
    import transformers

    torch.set_num_threads(available_threads())
    torch.manual_seed(seed)
    text = "".join(d.text for d in corpus.train())
    symbols = Characters(text)
    stream = symbols(text)
    config = transformers.GPT2Config(
        vocab_size=symbols.size, n_positions=SEQ_LEN, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=N_HEADS, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), fused=True)
    draw, steps, start = generator("peer", seed), 0, time.monotonic()
    while (progress := (time.monotonic() - start) / seconds) < 1:
        rate = FINAL_RATE + 0.5 * (RATE - FINAL_RATE) * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, progress / WARMUP_SHARE + 1e-3)
        starts = torch.randint(len(stream) - SEQ_LEN - 1, (BATCH,), generator=draw)
        rows = torch.stack([stream[s : s + SEQ_LEN + 1] for s in starts.tolist()])
        logits = model(rows[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    return held_out_bits(model.eval(), symbols, [d.text for d in corpus.held_out]), steps


@torch.inference_mode()
def held_out_bits(model: torch.nn.Module, symbols: Characters, texts: list[str]) -> float:
    """Total bits over total bytes. Windows overlap by half, and each symbol counts once; the first symbol of a text is
    predicted from a line break, as nanoGPT's samples begin."""
    nats, half = 0.0, SEQ_LEN // 2
    for text in texts:
        ids = torch.cat([symbols("\n"), symbols(text)])
        starts = range(0, max(1, len(ids) - 1 - half), half)
        for i in range(0, len(starts), 256):
            rows = [ids[s : s + SEQ_LEN + 1] for s in starts[i : i + 256]]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
            targets = padded[:, 1:].clone()
            for n, s in enumerate(starts[i : i + 256]):
                if s:
                    targets[n, :half] = -100
            logits = model(padded[:, :-1].clamp_min(0)).logits
            nats += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
    return nats / math.log(2) / sum(len(t.encode()) for t in texts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", default="1.67")
    parser.add_argument("--corpora", default="reference,stdlib,headers")
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    worst = math.inf
    for name in args.corpora.split(","):
        for seed in args.seeds.split(","):
            result = raise_model(name, ["--minutes", args.minutes, "--seed", seed])
            ours, seconds = result["actual"]["bits_per_byte"], result["actual"]["seconds"]
            theirs, steps = train_peer(corpus_of(name), seconds, int(seed))
            worst = min(worst, 1 - ours / theirs)
            print(
                f"{name:10} seed {seed}: {seconds:.0f} s each, ours {ours:.3f}, theirs {theirs:.3f} bits per byte "
                f"({steps} steps), {1 - ours / theirs:+.1%}; actual against predicted: {percent(errors(result))}",
                flush=True,
            )
    print(f"worst: {worst:+.1%}")


if __name__ == "__main__":
    main()
