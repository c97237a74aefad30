# SPDX-License-Identifier: Apache-2.0
"""Serve models over HTTP, as OpenAI's clients ask, with a page to talk to them and look inside."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foundling.cli.stdio import flush, note, say

EXAMPLES = [
    "foundling serve runs/notes",
    "foundling serve chat=runs/notes --adapter polite=runs/polite --port 9000",
    "FOUNDLING_API_KEY=… foundling serve runs/notes --host 0.0.0.0",
    "foundling serve runs/notes --keys keys.sqlite --price notes=0.1,0.4 --max-logprobs 5",
    "foundling serve runs/notes --upstream big=openai:gpt-4o --record answers.jsonl --answer-cache exact",
    "foundling serve runs/notes --state runs/serve --evaluate-jobs    # clients may fine-tune it",
]
KEY_VARIABLE = "FOUNDLING_API_KEY"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dir",
        nargs="*",
        metavar="[NAME=]DIR",
        help="model directories or hf://ORG/NAME; NAME is what clients call it (default: DIR's own)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port (default 8000; 0 takes a free one)")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a LoRA adapter of the first model; MODEL/NAME=DIR: of MODEL; can be repeated",
    )
    parser.add_argument("--reward", metavar="DIR", help="a classifier or regression model that chooses for best_of")
    _add_others(parser)
    keys = parser.add_argument_group("keys", f"without any, only this machine may ask; {KEY_VARIABLE} gives one too")
    keys.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"a key that clients must send (visible to other users of this machine; rather set {KEY_VARIABLE})",
    )
    keys.add_argument("--keys", metavar="FILE", help="file of keys made by `foundling key`")
    keys.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="NAME=IN,OUT",
        help="dollars for a million tokens of prompts, of completions; in usage and the log",
    )
    _add_jobs(parser.add_argument_group("fine-tuning", "files and jobs of clients, one job at a time"))
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-logprobs",
        type=int,
        metavar="N",
        help="most likely tokens beside each token; 0: no log-probabilities, which reveal parts of the "
        "model (default: 20 with keys, else no cap)",
    )
    limits.add_argument("--max-queue", type=int, default=256, help="completions that run or wait (default 256)")
    limits.add_argument("--max-num-seqs", type=int, default=32, help="completions computed at once (default 32)")
    limits.add_argument("--cache-gib", type=float, default=1.0, help="GiB of keys and values of a model (default 1)")
    limits.add_argument(
        "--deterministic",
        action="store_true",
        help="the same request with the same seed gets the same bytes under any load",
    )
    limits.add_argument(
        "--weights",
        choices=["float32", "bfloat16", "int8", "int4"],
        help="use native code with weights of this type: faster on a CPU, compiled once; on a GPU float32 or bfloat16",
    )
    limits.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto: a GPU where there is one)")


def _add_others(parser: argparse.ArgumentParser) -> None:
    others = parser.add_argument_group("moderations, models behind other APIs, cached answers")
    others.add_argument(
        "--harmless",
        action="append",
        default=[],
        metavar="LABEL",
        help="the label of a classifier that a moderation does not flag (default: ok, safe, harmless, none or ham)",
    )
    others.add_argument(
        "--flag-threshold", type=float, default=0.5, metavar="P", help="flag from this probability on (default 0.5)"
    )
    others.add_argument(
        "--upstream",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="serve a model of another API as NAME: NAME=PROVIDER:MODEL, or NAME=MODEL@https://HOST/v1",
    )
    others.add_argument(
        "--upstream-key-env",
        action="append",
        default=[],
        metavar="NAME=VAR",
        help="environment variable with the key of that API (default: the provider's own; MODEL@URL: none)",
    )
    others.add_argument(
        "--record", metavar="FILE", help="record answers of other APIs there, and ask for no recorded one again"
    )
    others.add_argument(
        "--answer-cache",
        choices=["exact", "meaning"],
        help="give a key the same answer again to the same request, or to one that means the same, if it has a "
        "temperature of 0 or a seed",
    )
    others.add_argument("--cache-embedder", metavar="DIR", help="the model that says what texts mean")
    others.add_argument(
        "--cache-threshold", type=float, default=0.95, metavar="COS", help="cosine of equal texts (default 0.95)"
    )
    others.add_argument("--cache-every", action="store_true", help="cache answers that are sampled without a seed too")


def _add_jobs(jobs: Any) -> None:
    jobs.add_argument(
        "--state", metavar="DIR", help="keep uploaded files and fine-tuning jobs here (default: take none)"
    )
    jobs.add_argument(
        "--job-method", choices=["lora", "full"], default="lora", help="what a job trains and writes (default lora)"
    )
    jobs.add_argument(
        "--evaluate-jobs", type=float, nargs="?", const=1.0, metavar="RATIO",
        help="serve a fine-tuned model only where its held-out loss is at most RATIO (1 without a number) times that "
        "of its base",
    )  # fmt: skip
    jobs.add_argument(
        "--max-fine-tuned", type=int, default=4, metavar="N", help="fine-tuned models in memory at once (default 4)"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.errors import ConfigError

    if missing := [
        name for name in ("fastapi", "uvicorn", "prometheus_client", "python_multipart") if find_spec(name) is None
    ]:
        raise ConfigError(f"serving needs {missing[0]}: pip install 'foundling[serve]'")
    from foundling.serve.app import build_app, watch_metrics
    from foundling.serve.jobs import jobs_router
    from foundling.serve.key_file import KeyFile
    from foundling.serve.keys import KeyStore
    from foundling.serve.log import LogWriter
    from foundling.serve.playground import playground_router
    from foundling.serve.pool import ModelPool
    from foundling.serve.run import check_exposure, listen, serve
    from foundling.serve.server import Server

    api_keys = [*args.api_key, *filter(None, [os.environ.get(KEY_VARIABLE)])]
    store = KeyStore(api_keys, KeyFile(Path(args.keys)) if args.keys else None)
    options = _options(args, store.required)
    check_exposure(options, store.required)
    pool = ModelPool(options, _prices(args.price))
    _tell(pool, args)
    server = Server(options, pool, store, reward=_reward(args.reward, options))
    _use_others(server, args)
    watch_metrics(server)
    state = _state(args)
    listener = listen(options)

    def ready(url: str) -> None:
        say(f"serving {', '.join(pool.names)} at {url}" + ("" if store.required else " (this machine alone)"))
        flush()  # or a program that reads our stdout would not learn the port

    log = LogWriter(note)
    try:
        serve(
            server, build_app(server, [jobs_router(server, state), playground_router(server)], log=log), listener, ready
        )
    finally:
        written = log.close()
    if not written:
        flush()
        os._exit(0)  # nobody reads stderr, which the end of an interpreter would wait for
    return {"models": pool.names}


def _state(args: argparse.Namespace) -> Any:
    from foundling.errors import ConfigError
    from foundling.serve.job_options import JobOptions
    from foundling.serve.jobs import ServerState

    if not args.state:
        if args.evaluate_jobs is not None:
            raise ConfigError("--evaluate-jobs is for fine-tuning jobs; give --state DIR too, or leave it out")
        return None
    return ServerState(JobOptions(Path(args.state), args.job_method, args.evaluate_jobs, args.max_fine_tuned))


def _options(args: argparse.Namespace, has_keys: bool) -> Any:
    from foundling.limits import check_number
    from foundling.runtime.device import resolve_device
    from foundling.serve.options import ServeOptions

    cap = 20 if args.max_logprobs is None and has_keys else args.max_logprobs
    memory = int(check_number(args.cache_gib, "--cache-gib", 0, 1 << 20) * (1 << 30))
    return ServeOptions(
        host=args.host,
        port=args.port,
        max_logprobs=cap,
        max_queue=args.max_queue,
        max_num_seqs=args.max_num_seqs,
        cache_memory=memory,
        deterministic=args.deterministic,
        weights=args.weights,
        device=resolve_device(args.device),
        harmless=tuple(args.harmless),
        flag_threshold=args.flag_threshold,
    )


def _use_others(server: Any, args: argparse.Namespace) -> None:
    """Models behind other APIs, and the answer cache."""
    from foundling.errors import ConfigError, WeightsError
    from foundling.serve.answer_cache import CacheOptions
    from foundling.serve.cached import use_answer_cache
    from foundling.serve.models import EmbeddingModel, load_served
    from foundling.serve.upstream import load_upstreams

    record = Path(args.record) if args.record else None
    for served in load_upstreams(
        args.upstream, server.options, key_envs=args.upstream_key_env, record=record, prices=server.pool.prices
    ):
        server.pool.add_remote(served)
    if not server.pool.names:
        raise ConfigError("nothing to serve; give a model directory, or --upstream NAME=PROVIDER:MODEL")
    if args.answer_cache is None:
        return
    embedder = load_served("cache-embedder", args.cache_embedder, server.options) if args.cache_embedder else None
    if embedder is not None and not isinstance(embedder, EmbeddingModel):
        raise WeightsError(f"--cache-embedder {args.cache_embedder}: expected a model that embeds texts")
    options = CacheOptions(args.answer_cache, args.cache_threshold, every=args.cache_every)
    use_answer_cache(server, options, embedder and embedder.embedder)


def _tell(pool: Any, args: argparse.Namespace) -> None:
    """Names the models and adapters to the pool."""
    from foundling.errors import ConfigError
    from foundling.serve.pool import parse_place

    places = [parse_place(text) for text in args.dir]
    adapters: dict[str, dict[str, str]] = {name: {} for name, _ in places}
    for text in args.adapter:
        name, equals, directory = text.partition("=")
        model, slash, adapter = name.rpartition("/")
        model = model if slash else next(iter(adapters), "")
        if not equals or not adapter or not directory or model not in adapters:
            raise ConfigError(f"--adapter {text!r}: expected NAME=DIR, or MODEL/NAME=DIR of {', '.join(adapters)}")
        adapters[model][adapter] = directory
    for name, directory in places:
        pool.add(name, directory, adapters[name])


def _prices(texts: list[str]) -> dict[str, Any]:
    from foundling.errors import ConfigError
    from foundling.limits import check_number
    from foundling.serve.models import Price

    prices = {}
    for text in texts:
        name, _, numbers = text.rpartition("=")
        try:
            values = [float(number) for number in numbers.split(",")]
        except ValueError:
            values = []
        if not name or len(values) != 2:
            raise ConfigError(f"--price {text!r}: expected NAME=IN,OUT, such as notes=0.1,0.4")
        prices[name] = Price(*(check_number(value, "--price", 0) for value in values))
    return prices


def _reward(directory: str | None, options: Any) -> Any:
    from foundling.errors import WeightsError
    from foundling.serve.models import ClassifierModel, load_served

    if directory is None:
        return None
    reward = load_served("reward", directory, options)
    if not isinstance(reward, ClassifierModel) or reward.classifier.task == "tag":
        raise WeightsError(
            f"--reward {directory}: expected a model with a head that classifies texts or predicts a value"
        )
    return reward
