# SPDX-License-Identifier: Apache-2.0
"""The limits of what this library takes from a user, a file or a request, in one table.

Each is checked before anything of that size is allocated. A limit is far above what models in use need and far below
what a machine would choke on; what a machine or a model can do is checked beyond it, where that is known.
"""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

from foundling.errors import ConfigError, FoundlingError


class Limit(NamedTuple):
    """Whole numbers from `low` to `high`. `unit`: what is counted; `way`: what a user can do who needs more. Both are a
    part of the message."""

    high: int
    unit: str
    way: str = ""
    low: int = 1

    def check(self, value: Any, name: str, error: type[FoundlingError] = ConfigError) -> int:
        """`value` as an int, if it is a whole number within the limit (NumPy's and torch's count as well, a bool does
        not); else `error`, naming the argument."""
        try:
            number = operator.index(value)
        except TypeError:
            number = None
        if number is None or isinstance(value, bool) or not self.low <= number <= self.high:
            raise error(f"{name} is {shown(value)}; expected {self}")
        return number

    def __str__(self) -> str:
        about = "; ".join(filter(None, (self.unit, self.way)))
        return f"a whole number, at least {self.low:,} and at most {self.high:,} ({about})"


MAX_SHOWN = 120
"""characters of a value that an error message repeats"""


def shown(value: Any) -> str:
    """A value as an error message repeats it: on one line, and no longer than MAX_SHOWN."""
    try:
        text = repr(value)
    except ValueError:  # more digits than Python agrees to write
        return f"a number of {value.bit_length():,} bits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text):,} characters)"


def check_number(
    value: Any, name: str, low: float = -math.inf, high: float = math.inf, error: type[FoundlingError] = ConfigError
) -> float:
    """`value`, if it is a finite number from `low` to `high`; else `error`, naming the argument."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_within(value, low, high):
        bounds = "" if low == -math.inf else f", {low:g} or more" if high == math.inf else f" from {low:g} to {high:g}"
        raise error(f"{name} is {shown(value)}; expected a finite number{bounds}")
    return value


def _is_within(value: float, low: float, high: float) -> bool:
    try:
        return math.isfinite(value) and low <= value <= high
    except OverflowError:  # an int beyond all floats
        return False


def limit_of_size(name: str) -> Limit:
    """Of a field of a family's configuration, by its name."""
    own = {"vocab_size": TOKENS, "max_word_len": WORD_LEN, "n_highway": FILTER_WIDTHS}
    return own.get(name, LAYERS if name.endswith(("_layers", "_blocks")) else SIZE)


# --- files -----------------------------------------------------------------------------------------------------------

JSON_BYTES = Limit(32 << 20, "bytes of a configuration, an index or a manifest")
COMPANION_BYTES = Limit(64 << 20, "bytes of a tokenizer's file or a text that is copied along")
RECIPE_BYTES = Limit(1 << 20, "bytes of a YAML recipe")
MAX_LINE_BYTES = 64 << 20
"""of a line of a JSON Lines file: an example, an answer"""
ITEMS_BYTES = Limit(1 << 30, "bytes of the items of one task of an evaluation")
EVALUATION_ITEMS = Limit(1 << 20, "items of one task of an evaluation")
HEADER_BYTES = Limit(64 << 20, "bytes of the header of a safetensors or GGUF file")
JSON_DEPTH = Limit(64, "arrays and objects inside each other; the files of models in use have fewer than ten")
SHARD_BYTES = Limit(1 << 50, "bytes of tensors in one file that is written")
SHARDS = Limit(4096, "files that an index may list")
TOKENS = Limit(1 << 21, "tokens of a vocabulary; the largest in use have a quarter of a million", "--vocab-size 65536")
MERGES = Limit(1 << 21, "merges of a tokenizer in a GGUF file; the longest list in use has a quarter of a million")
HEADER_TEXTS = Limit(1 << 22, "texts in the header of a GGUF file: keys, names, tokens, merges")
TOKEN_CHARS = Limit(1024, "characters of a token that SentencePiece joins; the longest in use have about a hundred")
PAIR_CHARS = Limit(
    1 << 30, "squares of the lengths of all tokens together, about a second; the largest in use have 1 << 25"
)
TOKEN_ID = Limit((1 << 31) - 1, "an id of a token in a file", low=0)

# --- sizes of a model ------------------------------------------------------------------------------------------------

LAYERS = Limit(1 << 12, "layers or blocks of a stack; the deepest models in use have about two hundred")
SIZE = Limit(1 << 24, "widths, heads, experts, rows, positions and other sizes of a model")

WORD_LEN = Limit(256, "bytes of a word that is read by its characters; those in use have fifty", low=3)
FILTER_WIDTHS = Limit(64, "widths of convolutions over characters, or highways above them")
FILTERS = Limit(1 << 16, "convolutions of one width over characters")
LABELS = Limit(1 << 16, "labels of a head; one has a row of the projection")

# --- a run -----------------------------------------------------------------------------------------------------------

EXAMPLE_CHARS = Limit(1 << 20, "characters of an example that is learnt as a whole", "shorten it, or use --as text")
CLASSES = Limit(1 << 16, "classes of a classifier")
BUILTIN_ITEMS = Limit(1 << 20, "rows of a built-in task")
SEED = Limit((1 << 63) - 1, "what a generator takes as a seed", low=0)
THREADS = Limit(1024, "CPU threads; torch aborts the process where the system has no more")
RANKS = Limit(1 << 16, "processes of a training run")
ROWS = Limit(1 << 20, "rows of a batch")
STEP_ROWS_TOKENS = Limit(1 << 27, "tokens of a step, which are in memory at once", "take more steps")
SEQ_LEN = Limit(1 << 24, "tokens in a row")
STEPS = Limit(1 << 40, "optimiser steps, or steps between checkpoints")

QUESTION_TEXT_BYTES = Limit(32 << 20, "characters of a corpus in which questions are looked for")
QUESTIONS = Limit(1 << 16, "chats that a model is aligned by", "use foundling align for more")

# --- adapting --------------------------------------------------------------------------------------------------------

VIRTUAL_TOKENS = Limit(1 << 14, "virtual tokens of a soft prompt or a prefix; those in use have about a hundred")
NEW_TOKENS = Limit(1 << 16, "tokens added to a vocabulary at once")

# --- decoding --------------------------------------------------------------------------------------------------------

COMPLETIONS = Limit(4096, "completions of one prompt", "call again with another seed for more")
REQUESTS = Limit(1 << 20, "completions of one call")
MAX_TOKENS = Limit(1 << 24, "tokens of a completion")
TOP_LOGPROBS = Limit(1000, "most likely tokens beside each token", low=0)
ANSWER_LOGPROBS = Limit(1 << 22, "log-probabilities of one answer of a server")
TOP_K = Limit(1 << 31, "tokens that are sampled from; 0 is off", low=0)
BEAMS = Limit(256, "beams of a search")
DRAFT_TOKENS = Limit(64, "tokens that a draft proposes at a time")
LOOKUP = Limit(64, "tokens that prompt lookup proposes; 0 is off", low=0)
SEQUENCES = Limit(4096, "sequences that an engine runs at once")
STEP_TOKENS = Limit(1 << 20, "tokens that an engine computes in one step")
CACHE_BYTES = Limit(1 << 50, "bytes of an engine's keys and values", low=0)
CONSTRAINTS = Limit(32, "compiled constraints that a model keeps")
CONSTRAINT_BYTES = Limit(512 << 20, "bytes of memory of the process that compiles a constraint first")
COMPILATIONS = Limit(16, "constraints that a server compiles or that wait for it")
CHECKS = Limit(64, "answers that a server checks or that wait for it; most take a millisecond")
CONSTRAINT_SECONDS = Limit(2, "seconds of processor time that compiling a constraint takes; most take milliseconds")
SCHEMA_COUNT = Limit(1 << 16, "characters, items or properties that a JSON Schema counts", low=0)
CHOICES = Limit(1 << 14, "texts that an answer is chosen from")
TOOL_CALLS = Limit(256, "calls of tools in one answer")
TOOLS = Limit(128, "tools that an answer may call", low=0)
SQL_TABLES = Limit(256, "tables of a database that a query is constrained to")
SQL_COLUMNS = Limit(4096, "columns of a database that a query is constrained to")
GROUP_DEPTH = Limit(64, "groups of a regular expression inside each other")
REPETITIONS = Limit(10_000, "repetitions in a regular expression")
PREDICTIONS = Limit(1000, "most likely tokens for a gap")
TEXTS_AT_ONCE = Limit(4096, "texts that are classified at once")

# --- evaluating -------------------------------------------------------------------------------------------------------

ITEMS = Limit(1 << 22, "items of a task")
SHOTS = Limit(1024, "solved examples in a prompt", low=0)
PRINCIPLES = Limit(1000, "principles of a constitution, one a line")
DOCUMENTS = Limit(1 << 20, "documents of a retrieval task, whose vectors are in memory at once")
MASKED_POSITIONS = Limit(1 << 20, "positions of a text that are masked in turn")
PICTURE_BYTES = Limit(64 << 20, "bytes of the file of a picture")
PICTURE_PIXELS = Limit(1 << 26, "pixels of a picture")

# --- models behind an API ---------------------------------------------------------------------------------------------

RESPONSE_BYTES = Limit(32 << 20, "bytes of one answer of a server")
WORKERS = Limit(256, "requests to a server, or programs, at once")

# --- looking inside ---------------------------------------------------------------------------------------------------

LOOK_TOKENS = Limit(256, "tokens of a text that is looked at", "shorten it")
NEXT_TOKENS = Limit(1 << 12, "tokens whose next one the playground shows", "choose an earlier place")
LOOK_WEIGHTS = Limit(1 << 24, "attention weights on a page", "choose one --layer, or shorten the text")

LINEAGE_FOLDERS = Limit(20_000, "folders that are searched for models", "name the folders of the models themselves")

# --- verifying answers --------------------------------------------------------------------------------------------

ANSWER_CHARS = Limit(1 << 20, "characters of an answer that is checked", low=0)
PATTERN_CHARS = Limit(1 << 16, "characters of a regular expression, a grammar or a schema", low=0)
INSTRUCTIONS = Limit(100, "instructions of one prompt")
REWARDS = Limit(16, "rewards that are summed")
INSTRUCTION_COUNT = Limit(1_000_000, "words, sentences or other things that an instruction counts", low=0)
INSTRUCTION_CHARS = Limit(1 << 16, "characters of an instruction's argument", low=0)

# --- programs in a model directory ------------------------------------------------------------------------------------

TEMPLATE_CHARS = Limit(1 << 20, "characters of a chat template")
RENDERED_CHARS = Limit(1 << 24, "characters that a chat template renders")
TEMPLATE_BYTES = Limit(256 << 20, "bytes of memory of the process that renders chat templates")
TEMPLATE_SECONDS = Limit(1, "seconds of processor time that a chat template takes; one in use takes a millisecond")
GROWTH = Limit(1024, "characters that a tokenizer makes of one character, before or after encoding")

# --- programs that a model wrote -------------------------------------------------------------------------------------

SANDBOX_SECONDS = (0.05, 3600.0)
"""of wall-clock time of one program"""
SANDBOX_MEMORY = Limit(1 << 40, "bytes of memory of a program; Python itself takes 20 MB", low=32 << 20)
SANDBOX_PROCESSES = Limit(1024, "processes and threads of a program")
SANDBOX_OUTPUT = Limit(64 << 20, "bytes of what a program prints on stdout, and as many on stderr")
SANDBOX_DISK = Limit(1 << 34, "bytes of the files of a program", low=1 << 16)
SANDBOX_FILES = Limit(4096, "files and folders of a program")
SANDBOX_INPUT = Limit(64 << 20, "bytes of a program, its input and its files")
VERIFY_LINE = Limit(16 << 20, "bytes of a line of tasks or samples")
VERIFY_LINES = Limit(10_000_000, "lines of tasks or samples")
QUERY_CHARS = Limit(1 << 20, "characters of a query")
QUERY_ROWS = Limit(10_000_000, "rows of the answer to a query")
QUERY_BYTES = Limit(1 << 30, "bytes of the answer to a query, or of one value", low=1 << 10)
QUERY_MEMORY = Limit(1 << 36, "bytes of memory of a query", low=16 << 20)

# --- serving ---------------------------------------------------------------------------------------------------------

PORT = Limit(65535, "a port; 0 is a free one", low=0)
QUEUE = Limit(1 << 20, "completions that run or wait")
CONNECTIONS = Limit(1 << 16, "connections at once")
BODY_BYTES = Limit(1 << 30, "bytes of a request")
UPLOAD_BYTES = Limit(1 << 40, "bytes of an uploaded file")
SERVED_COMPLETIONS = Limit(4096, "completions or texts of one request")
SERVED_TOKENS = Limit(1 << 24, "tokens of one completion")
SERVED_LOGPROBS = Limit(TOP_LOGPROBS.high, "most likely tokens beside each token; 0 is none at all", low=0)
STOPS = Limit(16, "strings that end a completion", low=0)
STOP_CHARS = Limit(256, "characters of a string that ends a completion")
MESSAGES = Limit(4096, "messages of a conversation")
MESSAGE_PARTS = Limit(256, "parts of a message")
BIASES = Limit(1024, "tokens of a logit_bias", low=0)
BIAS = 100.0
"""of one token, up or down, as in OpenAI's API"""
MODEL_NAME_CHARS = Limit(256, "characters of a model's name")
CACHED_ANSWERS = Limit(1 << 20, "answers in a cache")
CACHED_BYTES = Limit(1 << 36, "bytes of the answers in a cache")
KEY_NAME_CHARS = Limit(128, "characters of the name of a key")
KEY_TOKENS = Limit(1 << 60, "tokens that a key may use", low=0)
REQUESTS_PER_MINUTE = Limit(1 << 20, "requests a minute")
FILES = Limit(1 << 16, "files that a key, or all keys together, may keep")
STORED_BYTES = Limit(1 << 44, "bytes of the files that a key, or all keys together, may keep")
JOBS = Limit(1 << 16, "fine-tuning jobs of a key, or of all keys together")
LOADED_MODELS = Limit(1 << 16, "fine-tuned models in memory")
UPLOADED_LINE_BYTES = Limit(4 << 20, "bytes of a line of an uploaded file")
FORM_FIELD_BYTES = Limit(1024, "bytes of a field of an uploaded form, its file aside")
FILE_NAME_CHARS = Limit(256, "characters of a file's name")
JOB_EPOCHS = Limit(50, "epochs of a fine-tuning job")
JOB_BATCH_SIZE = Limit(4096, "rows of a step of a fine-tuning job")
SOURCE_TOKENS = Limit(2048, "tokens of a source, where the model itself has no limit")
TOKENIZED = Limit(1 << 16, "tokens of a text that is tokenized, or of ids that become a text", "send it in parts")
METADATA = Limit(16, "keys of the metadata of a fine-tuning job", low=0)

# --- labelling by people ----------------------------------------------------------------------------------------------

LABEL_ITEMS = Limit(1 << 17, "rows of prompts that are labelled", "label them in parts")
LABEL_CHARS = Limit(1 << 20, "characters of a prompt and its answers, written as JSON")
LABEL_LINE = Limit(8 << 20, "bytes of a judgement")
LABELLER_CHARS = Limit(64, "characters of a labeller's name")
LABELLERS = Limit(256, "labellers whose agreement is measured")
RANKED_ANSWERS = Limit(9, "answers that are ranked at once, one for each digit of a keyboard", low=2)
LABEL_SECONDS = Limit(86400, "seconds that an item is looked at", low=0)
DEMONSTRATION_CHARS = Limit(1 << 18, "characters of an answer that a person writes")
PLANNED_LABELS = Limit(10**9, "labels that are paid for")
