# SPDX-License-Identifier: Apache-2.0
"""What a server counts, in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from foundling.serve.models import GenerativeModel
from foundling.serve.pool import ModelPool

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


FINE_TUNED = "fine-tuned"
"""the label of all models that are one key's alone: their names are nobody else's business"""


def label_of(name: str, pool: ModelPool) -> str:
    entry = pool.entry_of(name)
    public = name in pool.remotes if entry is None else entry.owner is None
    return name if public else FINE_TUNED


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def named(kind, name, about, labels=(), **options):
            return kind(f"foundling_{name}", about, labels, registry=self.registry, **options)

        self.requests = named(Counter, "requests", "requests by route and status", ("route", "status"))
        self.seconds = named(Histogram, "request_seconds", "duration of a request", ("route",), buckets=SECONDS)
        self.tokens = named(Counter, "tokens", "tokens by model and kind", ("model", "kind"))
        self.first = named(
            Histogram, "time_to_first_token_seconds", "from a request to its first token", ("model",), buckets=SECONDS
        )
        self.between = named(
            Histogram, "time_between_tokens_seconds", "between two steps of a completion", ("model",),
            buckets=STEP_SECONDS,
        )  # fmt: skip
        self.queue = named(Gauge, "completions_open", "completions that run or wait", ("model",))
        self.running = named(Gauge, "completions_running", "completions that are computed", ("model",))
        self.cache = named(Gauge, "cache_used_ratio", "share of the blocks of keys and values in use", ("model",))
        self.cancelled = named(Counter, "completions_cancelled", "completions whose client has gone", ("model",))
        self.upstream = named(
            Counter, "upstream_requests", "requests for models behind other APIs, asked there or recorded before",
            ("model", "source"),
        )  # fmt: skip
        self.connections = named(Gauge, "requests_running", "requests that are answered now")

    def watch(self, served: GenerativeModel, label: str) -> None:
        """Takes the times of a model's worker."""
        stats = served.worker.stats
        stats.to_first_token = self.first.labels(label).observe
        stats.between_tokens = self.between.labels(label).observe
        stats.on_cancelled = self.cancelled.labels(label).inc

    def count_request(self, route: str, status: int, seconds: float) -> None:
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def count_tokens(self, label: str, n_prompt: int, n_completion: int) -> None:
        self.tokens.labels(label, "prompt").inc(n_prompt)
        self.tokens.labels(label, "completion").inc(n_completion)

    def text(self, pool: ModelPool) -> bytes:
        """Gauges are of the models that are loaded now, of one key's models together."""
        for gauge in (self.queue, self.running, self.cache):
            gauge.clear()
        n_used = dict[str, list[int]]()
        for served in pool.loaded:
            if isinstance(served, GenerativeModel) and served.adapter is None:
                engine, label = served.worker.engine, label_of(served.name, pool)
                self.queue.labels(label).inc(served.worker.n_open)
                self.running.labels(label).inc(len(engine.scheduler.running))
                n_used.setdefault(label, []).append(engine.blocks.n_used)
                n_used[label].append(engine.blocks.n_blocks)
        for label, counts in n_used.items():
            self.cache.labels(label).set(sum(counts[::2]) / max(1, sum(counts[1::2])))
        return generate_latest(self.registry)
