# SPDX-License-Identifier: Apache-2.0
"""`foundling look`: the page holds what was read and does nothing else, and bad input is one line."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import foundling
from foundling.cli import main, parse
from foundling.diffusion.schedule import NoiseSchedule
from foundling.errors import InterpretError
from foundling.interpret.look import look, look_at, token_name
from foundling.report.look import HeadMap, LensRow, LookRecord, heads_svg, look_html, shown_token
from foundling.text import Tokenizer
from foundling.weights.convert.diffusers import save_denoiser
from tests.contract.cases import case
from tests.e2e.test_bad_input import fails
from tests.text.kinds import tokenizer

TEXT = "the model reads a token and the model learns"
NASTY = "</script><img src=x onerror=alert(1)>\x1b[2J\u202e"


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """Of each family of `made`: a tiny model and a tokenizer of 320 tokens."""
    root = tmp_path_factory.mktemp("look")
    trained = Tokenizer.train([TEXT * 3, "slow losses fall and rise again"], 320)
    for name in ("llama", "gpt", "mamba", "t5"):
        fields = case(name).family.module.sized(320, 64, 32, 2)
        torch.manual_seed(0)
        foundling.save(foundling.build(name, **fields), root / name)
        trained.save(root / name)
    torch.manual_seed(0)
    foundling.save(foundling.build("bert", **case("bert").family.module.sized(320, 64, 32, 2)), root / "bert")
    trained.naming(mask_token="<|spare_0|>").save(root / "bert")
    fields = case("llama").family.module.sized(320, 512, 32, 1)
    foundling.save(foundling.build("llama", **fields), root / "long")
    trained.save(root / "long")
    return root


class Page(HTMLParser):
    """Tags and what would load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset") or name[:2] == "on"]


def record(**changes) -> LookRecord:
    rows = ((1.0, 0.0), (0.25, 0.75))
    fields = dict(
        model=NASTY, family=NASTY, text=NASTY, ids=(3, 4), tokens=(NASTY, " b\n"), predicted=NASTY, position=1,
        place=NASTY,
        heads=tuple(HeadMap(0, head, rows, {"previous": 0.25, "induction": 0.0}) for head in (0, 1)),
        lens=(LensRow(NASTY, ((NASTY, 0.5),), 1),), contributions=((NASTY, 1.5), ("layers.0.ffn", -0.5)),
        notes=(NASTY,),
    )  # fmt: skip
    return LookRecord(**(fields | changes))


def test_untrusted_text_is_shown_and_does_nothing() -> None:
    text = look_html(record())
    page = Page(text)
    assert not page.loads and page.tags.count("script") == 1 and "img" not in page.tags
    assert "\x1b" not in text and "\u202e" not in text and "\\u202e" in text
    script = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text
    assert shown_token("  a\tb\n") == "··a⇥b↵" and "&lt;" in shown_token("<i>")
    drawing = heads_svg((NASTY, "b"), record().heads)
    assert "<img" not in drawing and drawing.count("<line") == 6 and "0.75</title>" in drawing


def test_weights_on_the_page_are_those_of_the_record() -> None:
    value = re.search(r'data-head="1" value="([^"]*)"', look_html(record()))
    assert value and list(base64.b64decode(value[1])) == [255, 0, 64, 191]


def test_a_page_without_heads_lens_and_contributions() -> None:
    page = Page(look_html(record(heads=(), lens=(), contributions=())))
    assert "script" not in page.tags and "svg" not in page.tags and "table" not in page.tags


def test_the_command(directory, tmp_path, capsys) -> None:
    out = tmp_path / "a page.html"
    with pytest.raises(SystemExit) as caught:
        main(["look", str(directory / "llama"), TEXT, "--out", str(out)])
    printed = capsys.readouterr().out
    assert caught.value.code == 0 and "rank      1" in printed and "embedding" in printed and f"page: {out}" in printed
    with pytest.raises(SystemExit):
        main(["look", str(directory / "llama"), TEXT, "--layer", "1", "--out", str(out), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["page"] == str(out) and {head["layer"] for head in answer["heads"]} == {1}
    assert answer["ids"] == Tokenizer.load(directory / "llama").encode_framed(TEXT) and len(answer["tokens"]) == len(
        answer["ids"]
    )
    assert len(answer["lens"]) == 3 and answer["lens"][-1]["rank"] == 1
    assert all(sum(row) == pytest.approx(1, abs=0.01) for head in answer["heads"] for row in head["rows"])
    page = out.read_text(encoding="utf-8")
    assert not Page(page).loads and str(directory) not in page and "llama, a llama" in page


def test_ids_and_a_model_in_memory_give_the_same_record(directory) -> None:
    record = look(directory / "llama", TEXT, layer=1)
    model, words = foundling.load(directory / "llama"), Tokenizer.load(directory / "llama")
    assert look_at(model, words, record.ids, layer=1, name="llama", text=TEXT).as_json() == record.as_json()
    for ids, says in (([], "the tokens are none"), ([320], "from 0 to 319"), ([1] * 65, "at most 64 can be looked at")):
        with pytest.raises(InterpretError, match=says):
            look_at(model, words, ids)


def test_weights_become_json_only_when_asked_for(directory, tmp_path) -> None:
    args = parse(["look", str(directory / "llama"), TEXT, "--out", str(tmp_path / "page.html")])
    assert args.run(args) == {}
    record = look(directory / "llama", TEXT)
    sizes = {row.itemsize * len(row) for head in record.heads for row in head.rows}
    assert sizes == {4 * len(record.ids)}, "four bytes a weight"
    first = record.as_json()["heads"][0]
    assert first["rows"][1] == [round(w, 4) for w in record.heads[0].rows[1]] and first["kinds"]


def test_bytes_have_names(directory) -> None:
    """The four bytes of an emoji and the two of a letter that the tokenizer never saw."""
    record = look(directory / "llama", "a 🦊é")
    assert "".join(record.tokens).endswith(" <0xF0><0x9F><0xA6><0x8A><0xC3><0xA9>") and "\ufffd" not in record.tokens
    falls_back = tokenizer("llama 2")
    assert token_name(falls_back, falls_back.backend.token_to_id("<0xF0>")) == "<0xF0>"


def test_the_page_says_where_the_prediction_stands(directory) -> None:
    for name, text, place in (
        ("llama", "the model", "after token {}"),
        ("t5", "the model", "as the first token of the answer"),
        ("bert", "the ___ reads", "for the gap at token {}"),
        ("bert", "the model reads", "at token {}"),
    ):
        record = look(directory / name, text)
        assert record.place == place.format(record.position)
        assert (
            look_html(record).count(f"redicted {record.place}") + look_html(record).count(f"predict {record.place} if")
            == 2
        )


def test_post_norm_models_and_encoder_decoders(directory) -> None:
    post_norm = look(directory / "gpt", TEXT)
    assert post_norm.lens and not post_norm.contributions and "no contributions" in post_norm.notes[0]
    answering = look(directory / "t5", TEXT)
    assert answering.heads[0].rows[0][-1] > 0, "an encoder's heads see what comes later"
    assert answering.position == 0 and answering.lens and answering.contributions


def test_an_encoder_is_looked_at_where_it_fills_the_first_gap(directory) -> None:
    filled = look(directory / "bert", "the ___ reads a ___ and learns", layer=0)
    assert filled.tokens.count("<|spare_0|>") == 2 and filled.tokens[filled.position] == "<|spare_0|>"
    assert "<|spare_0|>" not in filled.tokens[: filled.position]
    assert len(filled.lens) == 3 and not filled.contributions and {head.layer for head in filled.heads} == {0}


def test_bad_input(directory, tmp_path, capsys) -> None:
    here = directory / "llama"
    save_denoiser(case("unet").tiny(), NoiseSchedule(), tmp_path / "unet")
    for args, says in (
        ((tmp_path / "none", TEXT), str(tmp_path / "none")),
        ((here, ""), "the text is empty"),
        ((here, " \n "), "the text is empty"),
        ((here, TEXT * 50), "at most 64 can be looked at: shorten it"),
        ((directory / "long", TEXT * 100), "at most 256 can be looked at: shorten it"),
        ((here, TEXT, "--layer", "7"), "--layer 7: no such layer attends; choose one of 0, 1"),
        ((here, TEXT, "--layer", "one"), "invalid int value"),
        ((here, TEXT, "--out", tmp_path / "no" / "page.html"), "cannot be written"),
        ((here,), "text"),
        ((directory / "mamba", TEXT), "Mamba has no attention"),
        ((tmp_path / "unet", TEXT), "unet"),
    ):
        assert says in fails(capsys, "look", *args), args
    assert not (tmp_path / "look.html").exists()
