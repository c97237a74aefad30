# SPDX-License-Identifier: Apache-2.0
"""Make comparisons without people: a model answers each prompt several times, rewards or an AI judge rank the
answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from foundling.cli.common import progress_for
from foundling.cli.stdio import note, say

EXAMPLES = [
    "foundling preferences runs/sft prompts.jsonl --by maths --out comparisons.jsonl       # rows with an answer",
    "foundling preferences runs/sft prompts.jsonl --by runs/reward --n 8 --pairs --out comparisons.jsonl",
    "foundling preferences runs/sft prompts.jsonl --by judge:openai:gpt-4.1-mini --constitution principles.txt "
    "--out comparisons.jsonl",
    "foundling preferences runs/sft prompts.jsonl --by judge:runs/large --logprobs --gold instructions "
    "--out comparisons.jsonl",
    "foundling preferences runs/sft prompts.jsonl --by maths --best --at-least 1 --out demonstrations.jsonl",
    "foundling preferences runs/sft prompts.jsonl --by runs/reward --gold maths --n 64 --curve curve.json "
    "--out comparisons.jsonl",
]
JUDGE = "judge:"


def add(parser: argparse.ArgumentParser) -> None:
    from foundling.cli.generate import sampling
    from foundling.cli.subjects import SUBJECT, add_price, add_upstream

    parser.add_argument("dir", help="model directory that answers, or hf://ORG/NAME[@REVISION]")
    parser.add_argument("prompts", help='rows of {"prompt": text or messages, …}; checkers read the other fields')
    parser.add_argument(
        "--by", action="append", required=True, metavar="WHAT",
        help="what ranks the answers: maths, instructions, json, matches:REGEX, the directory of a reward model, each "
        f"with an optional weight 0.5*NAME and several together; or {JUDGE}SUBJECT ({SUBJECT})",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="FILE", help="rows for `foundling align`, as JSON lines")
    parser.add_argument("--n", type=int, default=4, metavar="N", help="answers to each prompt (default 4)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--pairs", action="store_true", help="write the best and the worst answer alone")
    form.add_argument("--best", action="store_true", help="write the best answer alone, as a demonstration")
    parser.add_argument("--at-least", type=float, metavar="X",
                        help="with --best: only where its reward, or the share of its wins, is X or more")  # fmt: skip
    parser.add_argument("--whole", action="store_true", help="leave out answers that were cut at --max-tokens")
    parser.add_argument("--field", metavar="NAME", help="column of the prompts (default: prompt, question, messages …)")
    parser.add_argument("--target", metavar="NAME", help="column of what is right (default: answer)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--max-tokens", type=int, metavar="N",
                        help="maximum number of new tokens (default: as `foundling generate`)")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=32, metavar="N",
                        help="answers under way at once (default 32), which changes no result")  # fmt: skip
    sampling(parser)
    truth = parser.add_argument_group("how far to trust it")
    truth.add_argument("--gold", action="append", metavar="NAME", help="a reward that is taken for the truth")
    truth.add_argument("--agreement", metavar="FILE", help="comparisons whose better answers are known")
    truth.add_argument("--curve", metavar="FILE",
                       help="with --gold: both rewards of the best of 1 … N answers, as JSON and a page")  # fmt: skip
    judge = parser.add_argument_group("a judge")
    judge.add_argument("--constitution", metavar="FILE", help="principles to judge by, one a line")
    judge.add_argument("--draw", action="store_true", help="one principle for each pair, drawn by --seed, and not all")
    judge.add_argument("--logprobs", action="store_true",
                       help="take the likelier verdict instead of a written one: suits small models")  # fmt: skip
    add_price(parser)
    add_upstream(parser)


class Ranking(NamedTuple):
    """What ranks the answers."""

    rewards: Any = None
    judge: Any = None
    """PairJudge"""
    meter: Any = None
    """Metered, of the judge"""


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.errors import Interrupted
    from foundling.evaluate.answers import read_comparisons, read_prompts
    from foundling.evaluate.comparison_rows import check_free
    from foundling.runtime.files import lock

    out, work = Path(args.out), Path(f"{args.out}.work")
    _check(args)
    if args.curve:
        _check_curve(Path(args.curve))
    truth = read_comparisons(args.agreement) if args.agreement else []
    prompts, skipped = read_prompts(args.prompts, args.field, args.target)
    with lock(work):
        check_free(out, work)
        try:
            return _run(args, out, work, prompts[: args.limit], skipped, truth)
        except Interrupted as stop:
            raise Interrupted(stop.number, "while answering or judging", "give the same command again") from None


def _run(args: argparse.Namespace, out: Path, work: Path, prompts: Any, skipped: Any, truth: Any) -> dict[str, Any]:
    from foundling.errors import DataError
    from foundling.evaluate.answers import answer_all
    from foundling.evaluate.comparison_rows import make_rows, write_rows
    from foundling.evaluate.preferences import usable
    from foundling.evaluate.rewards import build_rewards

    ranking, truths = _ranking(args, work), build_rewards(args.gold) if args.gold else None
    for rewards in filter(None, (ranking.rewards, truths)):
        rewards.check([prompt.fields for prompt in prompts])  # before hours of answers
    sampler = _sampler(args)
    with progress_for(args).bar("answers", len(prompts) * args.n, unit="answers") as bar:
        samples, more = answer_all(
            sampler, prompts, work / "answers.jsonl", n=args.n, seed=args.seed, max_tokens=args.max_tokens,
            stop=args.stop, on_answer=bar.advance,
        )  # fmt: skip
    places = [usable(one, whole=args.whole) for one in samples]
    groups = [(one.prompt, [one.answers[i].text for i in some]) for one, some in zip(samples, places, strict=True)]
    gold = _rewards_of(args, samples, truths, work, "gold rewards") if truths else None
    if ranking.judge is not None:
        values, figures = _judged(args, ranking, groups, gold and _pick(gold, places), truth)
    else:
        proxy = _rewards_of(args, samples, ranking.rewards, work, "rewards")
        values = _pick(proxy, places)
        figures = _agreements(values, gold and _pick(gold, places), truth, ranking.rewards, args.seed)
        if args.curve:
            figures["curve"] = _curve(args, samples, proxy, gold)
    form = "best" if args.best else "pairs" if args.pairs else "ranked"
    rows, without = make_rows(groups, values, form, args.at_least)
    skipped = skipped + more + without
    if not rows:
        reasons = ", ".join(f"{reason}: {n:,}" for reason, n in skipped.most_common())
        raise DataError(
            f"none of {len(prompts):,} prompts gave a row ({reasons}); give a larger --n, a higher --temperature or "
            f"another --by (the answers stay in {work})"
        )
    write_rows(rows, out, work)
    every = [answer for one in samples for answer in one.answers]
    counts = {"prompts": len(prompts), "answers": len(every), "cut": sum(answer.cut for answer in every)}
    counts |= {"usable": sum(map(len, places)), "rows": len(rows)}
    return _shown(args, counts, skipped, figures, out, work)


# --- checks -----------------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> None:
    """ConfigError for options that exclude each other, before anything is loaded."""
    from foundling.errors import ConfigError, GenerationError
    from foundling.evaluate.rewards import check_names
    from foundling.limits import COMPLETIONS, ITEMS, SEED, SEQUENCES, check_number

    COMPLETIONS.check(args.n, "--n", GenerationError)
    SEED.check(args.seed, "--seed", GenerationError)
    SEQUENCES.check(args.batch_size, "--batch-size", GenerationError)
    if args.limit is not None:
        ITEMS.check(args.limit, "--limit")
    judges = [name for name in args.by if name.startswith(JUDGE)]
    if args.n < 2 and (judges or not args.best):
        raise ConfigError("--n 1 leaves nothing to compare; give 2 or more, or --best with a checker or a reward model")
    if judges and len(args.by) > 1:
        raise ConfigError(f"--by {judges[0]} and {len(args.by) - 1} more: a judge ranks alone; give one")
    for name, value in (("constitution", args.constitution), ("logprobs", args.logprobs), ("price", args.price)):
        if value and not judges:
            raise ConfigError(f"--{name} is for a judge: --by {JUDGE}SUBJECT")
    if args.draw and not args.constitution:
        raise ConfigError("--draw draws from --constitution FILE; give one")
    if args.curve and (judges or not args.gold):
        raise ConfigError("--curve needs two rewards of each answer: --by a checker or a reward model, and --gold NAME")
    if args.at_least is not None:
        check_number(args.at_least, "--at-least")
        if not args.best:
            raise ConfigError("--at-least is for --best, which writes one answer")
    check_names([*(args.gold or []), *([] if judges else args.by)])


# --- parts ------------------------------------------------------------------------------------------------------------


def _sampler(args: argparse.Namespace) -> Any:
    from foundling.cli.generate import writer_for
    from foundling.evaluate.answers import Sampler

    generator = writer_for(args)
    if generator.sampling.temperature == 0 and args.temperature is None and args.n > 1:
        args.temperature = 1.0
        note("note: the directory asks for greedy answers, which are all equal: --temperature is 1 here")
        generator = writer_for(args)
    if not generator.chats:
        note("note: the model was never taught to answer; foundling align sft teaches it")
    name = Path(args.dir).resolve().name
    return Sampler(generator, name=name, weights=args.weights, batch_size=args.batch_size)


def _ranking(args: argparse.Namespace, work: Path) -> Ranking:
    from foundling.cli.subjects import chats, load_subject
    from foundling.decode.engine.engine import EngineOptions
    from foundling.errors import ConfigError
    from foundling.evaluate.judge import Judge
    from foundling.evaluate.local import LocalModel
    from foundling.evaluate.preferences import Metered, PairJudge
    from foundling.evaluate.recorded import Recorded
    from foundling.evaluate.rewards import build_rewards
    from foundling.evaluate.upstream import Upstream

    if not args.by[0].startswith(JUDGE):
        return Ranking(build_rewards(args.by))
    spec = args.by[0].removeprefix(JUDGE)
    alone = argparse.Namespace(**vars(args) | {"base_model": None, "weights": None})  # those of the model that answers
    subject = load_subject(spec, alone)
    if isinstance(subject, LocalModel):  # a verdict does not depend on what else is asked
        subject.engine_options = EngineOptions(deterministic=True)
    elif not isinstance(subject, Upstream | Recorded):
        raise ConfigError(f"--by {JUDGE}{spec}: generates no text, so it is no judge; a reward model is --by {spec}")
    meter = Metered(Recorded(work / "verdicts.jsonl", subject), alone=isinstance(subject, LocalModel))
    judge = Judge(meter, by="logprobs" if args.logprobs else "text", chat=chats(subject))
    return Ranking(None, PairJudge(judge, _principles(args.constitution), args.draw, args.seed), meter)


def _principles(path: str | None) -> list[str]:
    from foundling.errors import DataError
    from foundling.limits import PRINCIPLES, RECIPE_BYTES

    if path is None:
        return []
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(RECIPE_BYTES.high + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected a text of principles, one a line") from None
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    RECIPE_BYTES.check(max(1, len(text)), f"{path}: the length", DataError)
    PRINCIPLES.check(len(lines), f"{path}: the number of principles", DataError)
    return lines


def _rewards_of(args: argparse.Namespace, samples: Any, rewards: Any, work: Path, title: str) -> list[list[float]]:
    from foundling.evaluate.preferences import identity, reward_all

    with progress_for(args).bar(title, len(samples), unit="prompts") as bar:
        return reward_all(rewards, samples, work / "rewards.jsonl", identity(rewards), bar.advance)


def _pick(values: list[list[float]], places: list[list[int]]) -> list[list[float]]:
    return [[row[i] for i in some] for row, some in zip(values, places, strict=True)]


def _judged(
    args: argparse.Namespace, ranking: Ranking, groups: Any, gold: Any, truth: Any
) -> tuple[list[list[float]], dict[str, Any]]:
    """The share of its wins of each answer, and what is to say of the judge."""
    from foundling.cli.subjects import price_of
    from foundling.evaluate.preferences import judge_all, judge_figures
    from foundling.evaluate.ranking import n_pairs
    from foundling.evaluate.truth import judge_against_gold, judge_agreement, labelled_pairs

    pairs, labels = labelled_pairs(truth, args.seed)
    total = len(pairs) + sum(n_pairs(len(texts)) for _, texts in groups)
    with progress_for(args).bar("judged", total, unit="pairs") as bar:
        judged = judge_all(ranking.judge, groups, bar.advance)
        compared = ranking.judge.compare(pairs, bar.advance)
    figures = {"judge": judge_figures(ranking.judge, judged, compared, ranking.meter)}
    cost, price = figures["judge"]["cost"], price_of(args)
    cost["recorded"] = ranking.meter.subject.n_replayed
    cost["dollars"] = price and (cost["prompt_tokens"] * price[0] + cost["new_tokens"] * price[1]) / 1e6
    if gold:
        figures["gold"] = _plain(judge_against_gold(ranking.judge, judged, gold))
    if truth:
        figures["agreement"] = _plain(judge_agreement(ranking.judge, compared, labels))
    return judged.shares, figures


def _agreements(values: Any, gold: Any, truth: Any, rewards: Any, seed: int) -> dict[str, Any]:
    from foundling.evaluate.truth import labelled_pairs, rewards_against_gold, rewards_agreement

    figures = dict[str, Any]()
    if gold:
        figures["gold"] = _plain(rewards_against_gold(values, gold))
    if truth:
        figures["agreement"] = _plain(rewards_agreement(rewards, *labelled_pairs(truth, seed)))
    return figures


def _plain(agreement: Any) -> dict[str, Any]:
    return {key: value._asdict() if hasattr(value, "_asdict") else value for key, value in agreement._asdict().items()}


def _check_curve(file: Path) -> None:
    """Nothing but a curve and its page is replaced."""
    from foundling.errors import ConfigError, FoundlingError, OutputError
    from foundling.limits import shown
    from foundling.runtime.files import read_json

    if file.suffix != ".json":
        raise ConfigError(f"--curve is {shown(str(file))}; give a file .json, beside which a page .html is written")
    page, ours = file.with_suffix(".html"), False
    if file.exists():
        try:
            ours = {"points", "prompts"} <= read_json(file).keys()
        except FoundlingError:
            ours = False
    if (file.exists() or page.exists()) and not ours:
        raise OutputError(f"{file if file.exists() else page}: exists and is no curve of this command; move it away")


def _curve(args: argparse.Namespace, samples: Any, proxy: Any, gold: Any) -> dict[str, Any]:
    """Writes the curve and its page; what it says at its ends."""
    from foundling.evaluate.best_of_n import curve
    from foundling.report.best_of_n import best_of_n_page
    from foundling.report.pages import write_page
    from foundling.runtime.files import write_json

    texts = [[answer.text for answer in one.answers] for one in samples]
    value, page = curve((" + ".join(args.by), " + ".join(args.gold)), texts, proxy, gold), Path(args.curve)
    write_json(page, value)
    write_page(best_of_n_page(value), page.with_suffix(".html"))
    points = value["points"]
    ends = {"first": points[0], "last": points[-1], "highest_gold": max(points, key=lambda point: point["gold"])}
    return {"file": str(page), "page": str(page.with_suffix(".html")), "prompts": value["prompts"],
            "distinct_answers": value["distinct_answers"], **ends}  # fmt: skip


# --- result -----------------------------------------------------------------------------------------------------------


def _shown(
    args: argparse.Namespace, counts: dict[str, int], skipped: Any, figures: dict[str, Any], out: Path, work: Path
) -> dict[str, Any]:
    if counts["cut"]:
        way = "they are left out" if args.whole else "--whole leaves them out, --max-tokens lets them end"
        note(f"note: {counts['cut']:,} of {counts['answers']:,} answers were cut at their length; {way}")
    if not args.json:
        what = "demonstrations" if args.best else "comparisons"
        say(f"{counts['rows']:,} {what} of {counts['prompts']:,} prompts with {args.n} answers each")
        for reason, n in skipped.most_common():
            say(f"skipped: {n:,} ({reason})")
        for line in _lines(figures):
            say(line)
        say(f"results: {out}")
    places = {"out": str(out), "work": str(work)}
    return {"model_dir": args.dir, "by": args.by, "n": args.n, **counts, "skipped": dict(skipped), **figures, **places}


def _lines(figures: dict[str, Any]) -> list[str]:
    lines = list[str]()
    if judge := figures.get("judge"):
        cost = judge["cost"]
        dollars = "" if cost["dollars"] is None else f", ${cost['dollars']:.4f}"
        lines.append(
            f"judge {judge['name']}: {judge['pairs']:,} pairs, {cost['requests']:,} requests ({cost['recorded']:,} "
            f"recorded before), {cost['prompt_tokens']:,} + {cost['new_tokens']:,} tokens{dollars}"
        )
    if judge and judge["pairs"]:
        bias = judge["position_bias"]["value"]
        lines.append(
            f"ties: {judge['ties']:,}; verdicts that change with the order: {judge['contradicted']:,}"
            f"{'' if bias is None else f' ({bias:.1%})'}; not read: {judge['unread']:,}; in cycles: "
            f"{judge['in_cycles']:,} answers; signs of an injection: {judge['attacks']:,} pairs"
        )
    for name, title in (("gold", "agreement with gold"), ("agreement", "agreement with the comparisons")):
        if name in figures:
            lines.append(f"{title}: {_agreement_line(figures[name])}")
    if curve := figures.get("curve"):
        first, last, best = curve["first"], curve["last"], curve["highest_gold"]
        lines.append(
            f"best of {last['n']}: proxy {first['proxy']:.3f} to {last['proxy']:.3f}, gold {first['gold']:.3f} to "
            f"{last['gold']:.3f}, highest {best['gold']:.3f} at N = {best['n']}; KL at most {last['kl']:.2f} nats; "
            f"{curve['page']}"
        )
    return lines


def _agreement_line(figure: dict[str, Any]) -> str:
    share, kappa, one = (figure[name] for name in ("share", "kappa", "one_order"))
    if share["value"] is None:
        return "no pair has both a verdict and a known better answer"
    text = f"{_interval(share, '.1%')} of {figure['pairs']:,} pairs, kappa {_interval(kappa, '.2f')}"
    text += f", {figure['ties']:,} ties" if figure["ties"] else ""
    text += f", {figure['unread']:,} not read" if figure["unread"] else ""
    return text if one["value"] is None else f"{text}; by one order alone {one['value']:.1%}"


def _interval(figure: dict[str, Any], form: str) -> str:
    ends = "" if figure["low"] is None else f" ({figure['low']:{form}} to {figure['high']:{form}})"
    return f"{figure['value']:{form}}{ends}"
