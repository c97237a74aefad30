# SPDX-License-Identifier: Apache-2.0
"""The other parts of the page: attention and lens, tokenizer, two answers side by side, filling in, JSON schemas."""

import json
import re

import pytest
import torch
from playwright.sync_api import Page, Request, Route, expect

import foundling
from foundling.interpret.look import look_at
from tests.serve.playground.conftest import ask, finished, next_logits, set_options, show_tokens
from tests.serve.servers import Live

SCHEMA = {
    "type": "object", "required": ["n", "ok"], "additionalProperties": False,
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
}  # fmt: skip


def test_attention_and_lens_are_those_of_the_model(page: Page, site: Live) -> None:
    set_options(page)
    article = ask(page, "the model")
    show_tokens(article).nth(6).click()
    looks = list[Request]()
    page.on("request", lambda one: looks.append(one) if one.url.endswith("/look") else None)
    page.evaluate("document.querySelectorAll('.inside details').forEach((one) => { one.open = true; })")
    keys = page.locator(".key")
    expect(keys.first).to_be_visible()
    assert len(looks) == 1, "one forward pass for both parts"
    served = site.model("chatty")
    prompt = served.framing.chat([{"role": "user", "content": "the model"}])
    ids = page.evaluate(
        """async () => {
          const { load } = await import("/static/library.js"), { path } = await import("/static/conversation.js");
          return path(load()[0]).at(-1).tokens.map(({ id }) => id);
        }"""
    )
    record = look_at(served.model, served.tokenizer, [*prompt, *ids[:6]], layer=1)
    assert keys.count() == len(record.tokens) and page.locator("select[aria-label=Layer]").input_value() == "1"
    shown = [float(title) for title in keys.evaluate_all("all => all.map((one) => one.title)")]
    torch.testing.assert_close(torch.tensor(shown), torch.tensor(list(record.heads[0].rows[-1])), atol=6e-3, rtol=0)
    page.locator(".key").last.focus()
    page.keyboard.press("ArrowLeft")  # the token before reads now
    shown = [float(title) for title in keys.evaluate_all("all => all.map((one) => one.title)")]
    torch.testing.assert_close(torch.tensor(shown), torch.tensor(list(record.heads[0].rows[-2])), atol=6e-3, rtol=0)
    page.select_option("select[aria-label=Layer]", "0")
    expect(page.locator(".attention")).to_contain_text("Layer 0, head 0")
    rows = page.locator(".inside table tbody tr")
    expect(rows).to_have_count(3)
    assert rows.last.locator("td").first.inner_text() == "1"
    assert rows.first.locator("th").evaluate("one => one.offsetHeight") < 60, "a name stands on one line"
    assert [row.split("\t")[0] for row in rows.all_inner_texts()] == [row.name for row in record.lens]


@pytest.mark.slow
def test_the_map_of_a_head_has_a_pixel_for_each_pair_of_tokens(page: Page, site: Live) -> None:
    """Of a text longer than a map is wide; and of two layers, that which was chosen last is shown."""
    page.select_option("#model", "plain")
    page.fill("#draft", "the model reads a token and the model learns " * 12)
    page.click("#show-next")
    page.locator("summary", has_text="Attention").click()
    canvas = page.locator(".thumb canvas").first
    expect(canvas).to_be_visible()
    n = page.locator(".key").count()
    assert n > 64
    last = canvas.evaluate(
        """(canvas) => {
          const { width, height } = canvas, pixels = canvas.getContext("2d").getImageData(0, height - 1, width, 1).data;
          return [width, height, Array.from({ length: width }, (_, at) => pixels[4 * at + 3] / 255)];
        }"""
    )
    served, text = site.model("plain"), page.input_value("#draft")
    row = look_at(served.model, served.tokenizer, served.framing.prompt(text), layer=1).heads[0].rows[-1]
    shown = [weight**0.5 if weight >= 0.005 else 0 for weight in row]
    assert last[:2] == [n, n] and last[2] == pytest.approx(shown, abs=0.03)
    pending = list[Route]()
    page.route("**/playground/look", lambda route: pending.append(route), times=1)
    with page.expect_request("**/playground/look"):
        page.select_option("select[aria-label=Layer]", "0")
    page.select_option("select[aria-label=Layer]", "1")
    for route in pending:
        route.continue_()
    expect(page.locator(".attention")).to_contain_text("Layer 1, head 0")
    page.wait_for_timeout(200)
    expect(page.locator(".attention")).to_contain_text("Layer 1, head 0")


def test_a_space_at_the_beginning_stays_where_text_is_continued(page: Page, site: Live) -> None:
    served = site.model("plain")
    page.select_option("#model", "plain")
    set_options(page, max_tokens=4)
    for draft in ("the", "a", "model", "token", "reads", "and", "slow", "losses", "rise", "fall", "again", "learns"):
        best = next_logits(served, served.framing.prompt(draft)).topk(8).indices.tolist()
        if (at := next((k for k, i in enumerate(best) if served.tokenizer.piece(i).startswith(" ")), None)) is not None:
            break
    else:
        raise AssertionError("no likely token begins with a space")
    page.fill("#draft", draft)
    page.click("#show-next")
    page.locator(".alternative").nth(at).click()
    finished(page)
    answer = page.evaluate(
        """async () => {
          const { load } = await import("/static/library.js"), { path } = await import("/static/conversation.js");
          return path(load()[0]).at(-1).text;
        }"""
    )
    assert answer.startswith(served.tokenizer.piece(best[at]))


def test_the_next_token_of_a_draft(page: Page, site: Live) -> None:
    """What would begin the answer to a message that is not sent; choosing one sends it."""
    set_options(page)
    page.fill("#draft", "the model")
    page.click("#show-next")
    expect(page.locator(".distribution")).to_be_visible()
    first = page.locator(".alternative").nth(2)
    text = first.inner_text()
    first.click()
    article = finished(page)
    expect(page.locator("article")).to_have_count(2)
    assert show_tokens(article).first.locator(".text").inner_text() == text
    assert page.input_value("#draft") == ""


def test_the_tokenizer_view(page: Page, site: Live, watch) -> None:
    tokenizer = site.model("chatty").tokenizer
    page.click("#tab-tokenizer")
    page.get_by_label("Text", exact=True).fill("the model\nreads é 3<b>")
    ids = tokenizer.encode("the model\nreads é 3<b>")
    tokens = page.locator("#view-tokenizer .column:first-child > .tokens > span")
    expect(tokens).to_have_count(len(ids))
    page.get_by_role("button", name="Show ids").click()
    assert [int(text) for text in tokens.locator("small").all_inner_texts()] == ids
    assert "<C3>" in tokens.locator("span").all_inner_texts(), "a byte of é, which this tokenizer never saw"
    article = page.evaluate("""async () => (await import("/static/languages.js")).ARTICLE""")
    rows = page.locator(".languages tbody tr")
    expect(rows).to_have_count(10)
    counts = [int(text) for text in rows.locator("td:nth-of-type(1)").all_inner_texts()]
    assert counts == [len(tokenizer.encode(one["text"])) for one in article]
    page.get_by_label("Word").fill("learns")
    expect(page.locator(".spelling .tokens").nth(2)).to_have_text(
        "".join(tokenizer.piece(i) for i in tokenizer.encode("snrael"))
    )
    watch.expect("net::ERR_FAILED")
    page.route("**/tokenize", lambda route: route.abort())
    page.get_by_label("Word").fill("learn")
    expect(page.locator("#notice")).to_contain_text("cannot be reached")
    page.unroute("**/tokenize")
    page.get_by_label("Word").fill("learns")
    n = len(tokenizer.encode("learns"))
    expect(page.locator(".spelling ~ p")).to_contain_text(f"The model reads {n} number")


def test_two_answers_side_by_side(page: Page) -> None:
    page.click("#tab-compare")
    page.get_by_label("Message", exact=True).last.fill("the model")
    page.fill("#compare-length", "12")
    for side in ("left", "right"):
        page.fill(f"#{side}-seed", "1")
        page.select_option(f"#{side}-model", "chatty")
        page.get_by_label(f"{side} Temperature, exact").fill("1")
    page.get_by_role("button", name="Ask both").click()
    verdict = page.locator("#view-compare > p[role=status]")
    expect(verdict).to_have_text("Both answers are the same, token for token.")
    page.fill("#right-seed", "2")
    page.get_by_role("button", name="Ask both").click()
    expect(verdict).to_contain_text(re.compile("part at the one that is outlined|differ from the first token"))
    left, right = (page.locator(".side").nth(at).locator(".token .text").all_inner_texts() for at in (0, 1))
    first = next(at for at, (a, b) in enumerate(zip(left, right)) if a != b)
    for at in (0, 1):
        assert page.locator(".side").nth(at).locator(".token.parts").get_attribute("data-at") == str(first)
        side = page.locator(".side").nth(at)
        expect(side.locator(".foot")).to_contain_text("12 tokens")
        expect(side.locator(".text.plain")).to_be_hidden()
        side.get_by_role("button", name="Tokens").click()
        expect(side.locator(".text.plain")).to_be_visible()  # as it reads
        expect(side.locator(".token").first).to_be_hidden()


def test_filling_in_the_middle(page: Page, site: Live) -> None:
    page.select_option("#model", "plain")
    set_options(page, max_tokens=9, temperature=0)
    page.click("#tab-fill")
    expect(page.locator("#view-fill")).to_contain_text("temperature 0, top-k off")
    expect(page.locator("#view-fill")).to_contain_text("at most 9 tokens, seed 1")
    page.get_by_label("Before the gap").fill("the model ")
    page.get_by_label("After the gap").fill(" learns")
    page.get_by_role("button", name="Fill in", exact=True).click()
    expect(page.locator(".filled")).to_be_visible()
    served = site.model("plain")
    prompt = served.framing.fill_in_the_middle("the model ", " learns")
    (answer,) = foundling.generate(served.model, [prompt], max_tokens=9, temperature=0.0, stop=served.framing.ends)
    middle = served.framing.answer(prompt)(answer.tokens)
    assert page.locator(".filled mark").text_content() == middle
    assert page.locator(".filled").text_content() == f"the model {middle} learns"


def test_an_answer_follows_its_schema(page: Page) -> None:
    set_options(page, max_tokens=60)
    page.click(".options > summary")
    box = page.get_by_label("JSON schema of the answer")
    box.fill('{"type": ')
    expect(page.locator("#schema-state")).to_contain_text("Invalid JSON: ")
    for text in ('{"type": ', "null", "3"):
        box.fill(text)
        page.fill("#draft", "the model")
        page.press("#draft", "Enter")
        expect(page.locator("#notice")).to_contain_text("Nothing was sent")
        assert page.input_value("#draft") == "the model" and page.locator("article").count() == 0
    expect(page.locator("#schema-state")).to_contain_text("a schema is an object, true or false")
    box.fill(json.dumps(SCHEMA))
    expect(page.locator("#schema-state")).to_contain_text("Answers follow this schema")
    article = ask(page, "the model")
    expect(article.locator(".foot")).to_contain_text("✓ follows the schema")
    value = json.loads(article.locator("> .text").inner_text())
    assert value.keys() == {"n", "ok"} and 0 <= value["n"] <= 99
    page.fill("#max-tokens", "3")
    article = ask(page, "the model")
    expect(article.locator(".foot")).to_contain_text("✗ does not follow the schema: it was cut at max tokens")
    article.get_by_role("button", name="Continue").click()
    expect(article.locator(".foot")).to_contain_text("A continuation is free")


@pytest.mark.parametrize("n_shown", [pytest.param(0, marks=pytest.mark.slow), 20])
def test_a_server_that_caps_logprobs(n_shown: int, models, browser, watch) -> None:
    from tests.serve.playground.conftest import paged, visit

    watch.expect("400")
    with paged(models, max_logprobs=n_shown) as site:
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        watch.follow(page)
        visit(page, site.url)
        set_options(page)
        article = ask(page, "the model")
        status = page.locator("#inspector > [role=status]")
        if n_shown == 0:
            expect(article.get_by_role("button", name="Tokens", exact=True)).to_have_count(0)
            page.fill("#draft", "reads")
            page.click("#show-next")
            expect(status).to_contain_text("This server gives no log-probabilities")
        else:
            page.locator("#inspector").get_by_label("Temperature, exact").fill("0.5")
            show_tokens(article).nth(2).click()
            expect(status).to_have_text(re.compile("shows only 20 logits .* top-k up to 20"))
            page.locator("#inspector").get_by_label("Top-k, exact").fill("7")
            expect(status).to_have_text("7 of 7 tokens can be sampled.")
            page.locator("summary", has_text="Attention").click()
            expect(page.locator(".attention")).to_contain_text("--max-logprobs 1000")
            page.click(".options > summary")
            page.get_by_label("JSON schema of the answer").fill(json.dumps(SCHEMA))
            page.fill("#max-tokens", "60")  # log-probabilities of what a schema forces are refused: none are asked for
            expect(ask(page, "reads").locator(".foot")).to_contain_text("✓ follows the schema")
        page.context.close()
