# SPDX-License-Identifier: Apache-2.0
"""Serve models over HTTP, as OpenAI's clients ask, with a page to talk to them and look inside."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foundling.cli.flags import add_field_flags
from foundling.cli.stdio import flush, note, say
from foundling.config import nearest
from foundling.errors import ConfigError
from foundling.serve.options import ServeOptions

EXAMPLES = [
    "foundling serve runs/notes",
    "foundling serve chat=runs/notes --adapter polite=runs/polite --port 9000",
    "FOUNDLING_API_KEY=… foundling serve runs/notes --host 0.0.0.0",
    "foundling serve runs/notes --keys keys.sqlite --price notes=0.1,0.4 --max-logprobs 5",
    "foundling serve runs/notes --upstream big=openai:gpt-4o --record answers.jsonl --answer-cache exact",
    "foundling serve runs/notes --state runs/serve --evaluate-jobs    # clients may fine-tune it",
]
KEY_VARIABLE = "FOUNDLING_API_KEY"
LIMITS = ("max_logprobs", "max_queue", "max_num_seqs", "deterministic", "weights", "device")
RARE = (
    "queue_timeout", "request_timeout", "max_body", "max_upload", "max_n", "max_prompts", "max_tokens",
    "max_connections", "shutdown_seconds",
)  # fmt: skip
NEEDS = {
    "cache_embedder": "answer_cache", "cache_threshold": "answer_cache", "cache_every": "answer_cache",
    "record": "upstream", "job_method": "state", "evaluate_jobs": "state", "max_fine_tuned": "state",
}  # fmt: skip
"""an option that does nothing without another"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dir", nargs="*", metavar="[NAME=]DIR",
        help="model directories or hf://ORG/NAME; NAME is what clients call it (default: DIR's own)",
    )  # fmt: skip
    add_field_flags(parser, ServeOptions, ("host", "port"))
    _add_list(
        parser, "--adapter", "NAME=DIR", "a LoRA adapter of the first model; MODEL/NAME=DIR: of MODEL; can be repeated"
    )
    parser.add_argument("--reward", metavar="DIR", help="a classifier or regression model that chooses for best_of")
    _add_others(parser.add_argument_group("moderations, models behind other APIs, cached answers"))
    keys = parser.add_argument_group("keys", f"without any, only this machine may ask; {KEY_VARIABLE} gives one too")
    warning = f"visible to other users of this machine; rather set {KEY_VARIABLE}"
    _add_list(keys, "--api-key", "KEY", f"a key that clients must send ({warning})")
    keys.add_argument("--keys", metavar="FILE", help="file of keys made by `foundling key`")
    about = "dollars for a million tokens of prompts, of completions; in usage and the log"
    _add_list(keys, "--price", "NAME=IN,OUT", about)
    _add_jobs(parser.add_argument_group("fine-tuning", "files and jobs of clients, one job at a time"))
    limits = parser.add_argument_group("limits")
    defaults = {"max_logprobs": "20 with keys, else no cap", "device": "auto: a GPU where there is one"}
    add_field_flags(limits, ServeOptions, LIMITS, defaults)
    about = f"GiB of keys and values of a model (default {ServeOptions.cache_memory / (1 << 30):g})"
    _add_optional(limits, "--cache-gib", about, type=float, metavar="GIB")
    add_field_flags(parser.add_argument_group("limits that are rarely changed"), ServeOptions, RARE)


def _add_list(group: Any, flag: str, metavar: str, about: str) -> None:
    group.add_argument(flag, action="append", default=[], metavar=metavar, help=about)


def _add_optional(group: Any, flag: str, about: str, **options: Any) -> None:
    """An option that sets nothing where it is not given."""
    group.add_argument(flag, default=argparse.SUPPRESS, help=about, **options)


def _add_others(others: Any) -> None:
    add_field_flags(others, ServeOptions, ("harmless", "flag_threshold"))
    about = "serve a model of another API as NAME: NAME=PROVIDER:MODEL, or NAME=MODEL@https://HOST/v1"
    _add_list(others, "--upstream", "NAME=MODEL", about)
    about = "environment variable with the key of that API (default: the provider's own; MODEL@URL: none)"
    _add_list(others, "--upstream-key-env", "NAME=VAR", about)
    about = "record answers of other APIs there, and ask for no recorded one again"
    _add_optional(others, "--record", about, metavar="FILE")
    others.add_argument(
        "--answer-cache", choices=["exact", "meaning"],
        help="give a key the same answer again to the same request, or to one that means the same, if it has a "
        "temperature of 0 or a seed",
    )  # fmt: skip
    _add_optional(others, "--cache-embedder", "the model that says what texts mean", metavar="DIR")
    _add_optional(others, "--cache-threshold", "cosine of equal texts (default 0.95)", type=float, metavar="COS")
    _add_optional(others, "--cache-every", "cache answers that are sampled without a seed too", action="store_true")


def _add_jobs(jobs: Any) -> None:
    about = "keep uploaded files and fine-tuning jobs here (default: take none)"
    jobs.add_argument("--state", metavar="DIR", help=about)
    _add_optional(jobs, "--job-method", "what a job trains and writes (default lora)", choices=["lora", "full"])
    _add_optional(
        jobs, "--evaluate-jobs", "serve a fine-tuned model only where its held-out loss is at most RATIO (1 without a "
        "number) times that of its base", type=float, nargs="?", const=1.0, metavar="RATIO",
    )  # fmt: skip
    about = "fine-tuned models in memory at once (default 4)"
    _add_optional(jobs, "--max-fine-tuned", about, type=int, metavar="N")


def run(args: argparse.Namespace) -> dict[str, Any]:
    _check_needs(args)
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
    pool = ModelPool(options, prices := _prices(args.price))
    _tell(pool, args)
    server = Server(options, pool, store, reward=_reward(args.reward, options))
    _use_others(server, args)
    if strange := sorted(prices.keys() - set(pool.names)):
        raise ConfigError(f"--price names {strange[0]!r}, which is not served; {nearest(strange[0], pool.names)}")
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


def _check_needs(args: argparse.Namespace) -> None:
    """ConfigError for an option that would do nothing."""
    for name, other in NEEDS.items():
        if name in args and not getattr(args, other):
            raise ConfigError(f"--{name} does nothing without --{other}; give both, or leave it out".replace("_", "-"))
    for name in ("cache_embedder", "cache_threshold"):
        if name in args and args.answer_cache == "exact":
            raise ConfigError(f"--{name.replace('_', '-')} is for --answer-cache meaning; leave it out")


def _given(args: argparse.Namespace, **options: str) -> dict[str, Any]:
    """field -> the value of its option, where that was given."""
    return {field: getattr(args, option) for field, option in options.items() if option in args}


def _state(args: argparse.Namespace) -> Any:
    from foundling.serve.job_options import JobOptions
    from foundling.serve.jobs import ServerState

    if not args.state:
        return None
    given = _given(args, method="job_method", max_loss_ratio="evaluate_jobs", max_loaded="max_fine_tuned")
    return ServerState(JobOptions(Path(args.state), **given))


def _options(args: argparse.Namespace, has_keys: bool) -> ServeOptions:
    from foundling.limits import check_number
    from foundling.runtime.device import resolve_device

    given = _given(args, **{field.name: field.name for field in fields(ServeOptions)})
    given |= {"device": resolve_device(given.get("device", "auto")), "harmless": tuple(given.get("harmless", ()))}
    if has_keys:
        given.setdefault("max_logprobs", 20)
    if "cache_gib" in args:
        given["cache_memory"] = int(check_number(args.cache_gib, "--cache-gib", 0, 1 << 20) * (1 << 30))
    return ServeOptions(**given)


def _use_others(server: Any, args: argparse.Namespace) -> None:
    """Models behind other APIs, and the answer cache."""
    from foundling.errors import WeightsError
    from foundling.serve.answer_cache import CacheOptions
    from foundling.serve.cached import use_answer_cache
    from foundling.serve.models import EmbeddingModel, load_served
    from foundling.serve.upstream import load_upstreams

    record = Path(args.record) if "record" in args else None
    for served in load_upstreams(
        args.upstream, server.options, key_envs=args.upstream_key_env, record=record, prices=server.pool.prices
    ):
        server.pool.add_remote(served)
    if not server.pool.names:
        raise ConfigError("nothing to serve; give a model directory, or --upstream NAME=PROVIDER:MODEL")
    if args.answer_cache is None:
        return
    directory = getattr(args, "cache_embedder", None)
    embedder = load_served("cache-embedder", directory, server.options) if directory else None
    if embedder is not None and not isinstance(embedder, EmbeddingModel):
        raise WeightsError(f"--cache-embedder {directory}: expected a model that embeds texts")
    options = CacheOptions(args.answer_cache, **_given(args, threshold="cache_threshold", every="cache_every"))
    use_answer_cache(server, options, embedder and embedder.embedder)


def _tell(pool: Any, args: argparse.Namespace) -> None:
    """Names the models and adapters to the pool."""
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
