# SPDX-License-Identifier: Apache-2.0
"""What a minute buys: held-out bits per byte of `foundling raise` and of a plain GPT-2 with nanoGPT's CPU setting.

python -m benchmarks.quality [--minutes 1.67] [--corpora reference,stdlib,headers] [--seeds 0,1,2]

Same text, same held-out documents, same wall-clock: the peer trains for as many seconds as our whole command took from
its start to the held-out figure (reading, tokenizer, probes and all), and is measured afterwards at no cost. The peer:
characters, those unseen in training spelled as byte symbols; 4 layers × 128, 4 heads, context 64, batch 12, AdamW at
1e-3 (betas 0.9 and 0.99, decay 0.1), warm-up and cosine to 1e-4 over its time (nanoGPT's README and its
config/train_shakespeare_char.py), by transformers.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.corpora import path_of
from benchmarks.prediction import errors, raised, shown
from foundling.recipes import corpus
from foundling.runtime.device import available_threads
from foundling.runtime.rng import generator

CONTEXT, BATCH, WIDTH, LAYERS, HEADS = 64, 12, 128, 4, 4
RATE, LEAST_RATE, WARMUP_SHARE = 1e-3, 1e-4, 0.05


class Characters:
    """One symbol for each character of the training text, 256 for the bytes of all others."""

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


def peer(data: str, seconds: float, seed: int) -> tuple[float, int]:
    """(held-out bits per byte, steps) after so many seconds of training."""
    import transformers

    torch.set_num_threads(available_threads())
    torch.manual_seed(seed)
    found, _ = corpus.read(data, "text")
    text = "".join(d.text for d in found.train())
    symbols = Characters(text)
    stream = symbols(text)
    config = transformers.GPT2Config(
        vocab_size=symbols.size, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), fused=True)
    chance, steps, begin = generator("peer", seed), 0, time.monotonic()
    while (gone := (time.monotonic() - begin) / seconds) < 1:
        rate = LEAST_RATE + 0.5 * (RATE - LEAST_RATE) * (1 + math.cos(math.pi * gone))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, gone / WARMUP_SHARE + 1e-3)
        starts = torch.randint(len(stream) - CONTEXT - 1, (BATCH,), generator=chance)
        rows = torch.stack([stream[s : s + CONTEXT + 1] for s in starts.tolist()])
        logits = model(rows[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    return held_out_bits(model.eval(), symbols, [d.text for d in found.held_out]), steps


@torch.inference_mode()
def held_out_bits(model: torch.nn.Module, symbols: Characters, texts: list[str]) -> float:
    """Total nats over total bytes: windows overlap by half, each symbol counted once; a text's first symbol is told
    from a line break, as nanoGPT's samples begin."""
    nats, half = 0.0, CONTEXT // 2
    for text in texts:
        ids = torch.cat([symbols("\n"), symbols(text)])
        starts = range(0, max(1, len(ids) - 1 - half), half)
        for i in range(0, len(starts), 256):
            rows = [ids[s : s + CONTEXT + 1] for s in starts[i : i + 256]]
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
    directory, worst = Path(tempfile.gettempdir()) / "foundling-benchmarks", math.inf
    for name in args.corpora.split(","):
        data = path_of(name, directory)
        for seed in args.seeds.split(","):
            found = raised(name, args.minutes, seed)
            ours, seconds = found["actual"]["bits_per_byte"], found["actual"]["seconds"]
            theirs, steps = peer(data, seconds, int(seed))
            worst = min(worst, 1 - ours / theirs)
            print(
                f"{name:10} seed {seed}: {seconds:.0f} s each, ours {ours:.3f}, theirs {theirs:.3f} bits per byte "
                f"({steps} steps), {1 - ours / theirs:+.1%}; predicted against "
                f"actual: {shown(errors(found))}",
                flush=True,
            )
    print(f"worst: {worst:+.1%}")


if __name__ == "__main__":
    main()
