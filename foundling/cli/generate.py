# SPDX-License-Identifier: Apache-2.0
"""Generate text: continue a prompt, or with an encoder–decoder, read it and write the output."""

from __future__ import annotations

import argparse
from typing import Any

from foundling.cli.stdio import note, say, say_text

EXAMPLES = [
    'foundling generate runs/notes --prompt "def main("',
    'foundling generate runs/notes --prompt "Dear" --temperature 0 --max-tokens 50 --json',
    'foundling generate runs/notes --prompt "Dear" --stop "." --n 4 --logprobs 3 --json',
    'foundling generate runs/notes --prompt "Dear" --weights int8',
    'foundling generate runs/code --prompt "def area(r):" --suffix "return a"',
    'foundling generate runs/notes --prompt "Ada, 36: " --json-schema person.json',
    'foundling generate runs/notes --prompt "Is it good? " --choice yes --choice no',
]


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", help="model directory, or hf://ORG/NAME[@REVISION]")
    parser.add_argument("--prompt", default="", help="text to continue (default: empty, which starts a new document)")
    parser.add_argument("--suffix", help="text after the gap: fill in the middle (for a model trained with --fim-rate)")
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=None,
        help="maximum number of new tokens (default: 100, or what the context length leaves)",
    )
    parser.add_argument("--n", type=int, default=1, metavar="N", help="number of completions (default 1)")
    parser.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        help="with --json: the log-probability of each token, and the N most likely tokens at its position",
    )
    constraints(parser)
    sampling(parser)


def constraints(parser: argparse.ArgumentParser) -> None:
    """Options of structured output, shared with chat."""
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--json-schema", metavar="FILE", help="answer with JSON that this JSON Schema accepts")
    one.add_argument("--regex", metavar="PATTERN", help="answer with a text that the whole pattern matches")
    one.add_argument("--grammar", metavar="FILE", help="answer with a text of this Lark grammar")
    one.add_argument(
        "--choice", action="append", metavar="TEXT", help="answer with this text, or another --choice; can be repeated"
    )
    one.add_argument(
        "--sql", metavar="DATABASE", help="answer with a SELECT over the tables and columns of this SQLite database"
    )


def read_constraint(args: argparse.Namespace) -> Any:
    """The constraint that the options ask for, or None. It is compiled before the model is loaded."""
    if not any(value is not None for value in (args.json_schema, args.regex, args.grammar, args.choice, args.sql)):
        return None
    from foundling.decode.constrain import constraint
    from foundling.decode.constrain.compilation import check_compiles
    from foundling.decode.constrain.files import read_grammar, read_schema
    from foundling.decode.constrain.sql import sql_select
    from foundling.verify import sql
    from foundling.verify.structured import check_schemas_can_be_checked

    if args.json_schema is not None:
        check_schemas_can_be_checked()
        result = constraint.json_schema(read_schema(args.json_schema))
    elif args.grammar is not None:
        result = constraint.grammar(read_grammar(args.grammar))
    elif args.sql is not None:
        result = sql_select(sql.read_schema(args.sql))
    else:
        result = constraint.regex(args.regex) if args.regex is not None else constraint.choice(args.choice)
    check_compiles(result)
    return result


def check_answer(answer: dict[str, Any], constraint: Any) -> None:
    """Adds to an answer whether it follows the constraint, and why not."""
    from foundling.verify.structured import matches_constraint

    verdict = matches_constraint(answer["text"], constraint)
    answer["valid"] = None if verdict.stopped else verdict.follows
    if verdict:
        return
    answer["reason"] = verdict.reason
    if verdict.stopped:
        note(f"note: whether the answer follows {constraint.name} is unknown: {verdict.reason}")
        return
    cuts = {"length": f"it is cut at {answer['tokens']} tokens", "stop": "it is cut by --stop"}
    note(f"note: the answer does not follow {constraint.name}: {cuts.get(answer['finish_reason'], verdict.reason)}")


def check_query(answer: dict[str, Any], database: str) -> None:
    """Adds to a query that is valid its columns and how many rows it has, or why it cannot be executed."""
    from foundling.errors import QueryError
    from foundling.verify.sql import execute

    try:
        result = execute(database, answer["text"])
        answer |= {"columns": result.columns, "rows": len(result.rows)}
    except QueryError as error:
        answer["query_error"] = str(error)
        note(f"note: the query cannot be executed: {error}")


def sampling(parser: argparse.ArgumentParser) -> None:
    """Options shared with chat. The default of each is that of the model's generation_config.json."""
    parser.add_argument("--temperature", type=float, help="sampling temperature; 0 is greedy")
    parser.add_argument("--top-k", type=int, help="sample only from the k most likely tokens; 0 is off")
    parser.add_argument(
        "--top-p", type=float, help="sample only from the most likely tokens whose probabilities sum to p; 1 is off"
    )
    parser.add_argument(
        "--min-p",
        type=float,
        help="sample only from tokens at least p times as likely as the most likely one; 0 is off",
    )
    parser.add_argument("--repetition-penalty", type=float, help="above 1 makes repetition less likely; 1 is off")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="stop before this text; can be repeated"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")
    parser.add_argument("--base-model", metavar="DIR", help="of an adapter's directory: where its base is now")
    parser.add_argument(
        "--weights",
        choices=["float32", "bfloat16", "int8", "int4"],
        help="use native code with weights of this type: faster on a CPU, compiled once (default: torch)",
    )


def writer_for(args: argparse.Namespace) -> Any:
    from foundling.decode.text import TextGenerator

    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    given = {name: getattr(args, name) for name in names}
    generator = TextGenerator.load(args.dir, weights=args.weights, base=args.base_model, **given)
    for text in generator.notes:
        note(f"note: {text}")
    return generator


def run(args: argparse.Namespace) -> dict[str, Any]:
    from foundling.errors import GenerationError
    from foundling.limits import COMPLETIONS, SEED

    COMPLETIONS.check(args.n, "--n", GenerationError)
    SEED.check(args.seed, "--seed", GenerationError)
    constraint = read_constraint(args)
    generator = writer_for(args)
    if args.suffix is not None and generator.framing.spec.fills_middle is False:
        note("note: this model was raised without --fim-rate: it was never taught to fill in the middle")
    answers = generator.generate(
        args.prompt,
        suffix=args.suffix,
        n=args.n,
        max_tokens=args.max_tokens,
        seed=args.seed,
        stop_strings=args.stop,
        logprobs=args.logprobs,
        constraint=constraint,
    )
    for answer in answers if constraint else ():
        check_answer(answer, constraint)
        if args.sql is not None and answer["valid"]:
            check_query(answer, args.sql)
    if not args.json:
        for number, answer in enumerate(answers):
            if args.n > 1:
                say(f"--- {number + 1}")
            say_text(args.prompt + answer["text"] + (args.suffix or ""))
    return {"model_dir": args.dir, "prompt": args.prompt, "answers": answers}
