# SPDX-License-Identifier: Apache-2.0
"""The chat in a real browser: answers and their tokens, versions, what is stored, long chats, and errors."""

import json
import re

import pytest
import torch
from playwright.sync_api import Page, expect

import foundling
from foundling.decode.sampling import DistributionParams, compute_probs
from tests.serve.playground.conftest import Proxy, ask, finished, next_logits, set_options, show_tokens, visit
from tests.serve.servers import Live

NASTY = """<img src=x onerror=alert(1)> **bold** `code` <script>alert(2)</script>

- one
- two

```js
let a = 1;
```
[a](javascript:alert(3))"""


def path_of(page: Page) -> list[dict]:
    """The chosen messages of the newest conversation, as they are stored."""
    return page.evaluate(
        """async () => {
          const { load } = await import("/static/library.js"), { path } = await import("/static/conversation.js");
          return path(load()[0]);
        }"""
    )


def prefix_of(site: Live, node: dict, at: int) -> list[int]:
    served = site.model("chatty")
    prompt = served.framing.chat([{"role": "user", "content": "the model"}])
    return [*prompt, *(token["id"] for token in node["tokens"][:at])]


def test_the_numbers_of_a_token_are_those_of_the_model(page: Page, site: Live) -> None:
    expect(page.get_by_role("button", name="Sign out")).to_have_count(0)  # this server asks for no key
    set_options(page)
    article = ask(page, "the model")
    expect(article.locator(".facts")).to_contain_text("tokens/s")
    expect(article.locator(".facts")).to_contain_text("$0.0000")  # two dollars for a million tokens
    tokens, node = show_tokens(article), path_of(page)[-1]
    assert tokens.count() == len(node["tokens"]) == 16
    tokens.nth(3).click()
    expect(page.locator("#inspector .status, #inspector [role=status]").first).to_contain_text("can be sampled")
    logits = next_logits(site.model("chatty"), prefix_of(site, node, 3))
    chosen = node["tokens"][3]["id"]
    numbers = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts()))
    assert float(numbers["logit"]) == pytest.approx(float(logits[chosen]), abs=6e-4)
    logprob = float(logits.log_softmax(-1)[chosen])
    assert float(numbers["log-probability"]) == pytest.approx(logprob, abs=6e-4)
    assert numbers["id"] == str(chosen) and int(numbers["rank"]) == 1 + int((logits > logits[chosen]).sum())
    shown = page.locator(".distribution tbody tr:not(.own)").count() + page.locator(".distribution tr.own").count()
    assert shown in (8, 9)


def test_sliders_redraw_the_distribution_of_the_server(page: Page, site: Live) -> None:
    set_options(page)
    article = ask(page, "the model")
    show_tokens(article).nth(5).click()
    expect(page.locator(".distribution")).to_be_visible()
    logits = next_logits(site.model("chatty"), prefix_of(site, path_of(page)[-1], 5))
    for params in (
        (1.3, 0, 1.0, 0.0),
        (0.6, 5, 1.0, 0.0),
        (1.0, 0, 0.5, 0.0),
        (2.0, 40, 0.9, 0.05),
        (0.0, 0, 1.0, 0.0),
    ):
        for name, value in zip(("Temperature", "Top-k", "Top-p", "Min-p"), params):
            page.locator("#inspector").get_by_label(f"{name}, exact").fill(str(value))
        probs = compute_probs(logits[None], DistributionParams(params[0], int(params[1]), *params[2:]))[0]
        drawn = page.locator(".distribution tbody td.drawn").evaluate_all(
            "all => all.map((one) => Number(one.dataset.p))"
        )
        ranked = probs[logits.argsort(descending=True, stable=True)]
        torch.testing.assert_close(torch.tensor(drawn[:8], dtype=torch.float32), ranked[:8], atol=2e-6, rtol=1e-5)
        n = int((probs > 0).sum())
        expected = "Only the most likely token" if n == 1 else f"{n} of 320"
        expect(page.locator("#inspector > [role=status]")).to_contain_text(expected)
    page.locator("#temperature").focus()
    before = page.locator("td.drawn").first.get_attribute("data-p")
    page.keyboard.press("End")  # the slider itself, by keyboard
    assert page.locator("#inspector").get_by_label("Temperature, exact").input_value() == "2"
    assert page.locator("td.drawn").first.get_attribute("data-p") != before


def test_the_page_computes_probabilities_as_the_server_does(page: Page) -> None:
    """Its module against compute_probs: ties, forbidden tokens, all combinations."""
    torch.manual_seed(3)
    logits = torch.randn(700) * 4
    logits[40:44] = logits[40]  # ties
    logits[:7] = float("-inf")
    cases = [
        dict(temperature=t, top_k=k, top_p=p, min_p=m)
        for t in (0.0, 0.05, 0.7, 1.0, 2.0) for k in (0, 1, 3, 50, 700, 900)
        for p in (0.1, 0.9, 1.0) for m in (0.0, 0.02, 0.9)
    ]  # fmt: skip
    text = page.evaluate(
        """async (text) => {
          const [logits, cases] = JSON.parse(text);
          const { Distribution } = await import("/static/sampling.js");
          const values = Float32Array.from(logits, (value) => value ?? -Infinity);
          const ids = Uint32Array.from(values.keys());
          const normalizer = Math.log(values.reduce((sum, value) => sum + Math.exp(value), 0));
          const whole = new Distribution(ids, values, normalizer, true);
          return JSON.stringify(cases.map((params) => {
            const { n, probs } = whole.draw(params), all = Array(values.length).fill(0);
            for (let rank = 0; rank < n; rank += 1) all[whole.ids[rank]] = probs[rank];
            return all;
          }));
        }""",
        json.dumps([[None if value == float("-inf") else value for value in logits.tolist()], cases]),
    )
    answers = json.loads(text)
    assert len(answers) == len(cases) == 270
    for params, answer in zip(cases, answers):
        expected = compute_probs(logits[None], DistributionParams(**params))[0]
        torch.testing.assert_close(
            torch.tensor(answer, dtype=torch.float32), expected, atol=1e-6, rtol=1e-5, msg=str(params)
        )


def test_an_alternative_begins_a_version_of_the_answer(page: Page, site: Live) -> None:
    set_options(page)
    article = ask(page, "the model")
    first = path_of(page)[-1]
    show_tokens(article).nth(4).click()
    row = page.locator(".distribution tbody tr:not(.own) .alternative").first
    expect(row).to_be_visible()
    label = row.inner_text()
    row.focus()
    page.keyboard.press("Enter")
    expect(page.locator("article.assistant .versions")).to_contain_text("2/2")
    article = finished(page)
    second = path_of(page)[-1]
    assert [t["id"] for t in second["tokens"][:4]] == [t["id"] for t in first["tokens"][:4]]
    assert second["tokens"][4]["id"] != first["tokens"][4]["id"] and len(second["tokens"]) > 5
    assert show_tokens(article).nth(4).locator(".text").inner_text() == label
    # what followed is the continuation of these very ids
    served = site.model("chatty")
    logprobs = next_logits(served, prefix_of(site, second, 9)).log_softmax(-1)
    assert second["tokens"][9]["logprob"] == pytest.approx(float(logprobs[second["tokens"][9]["id"]]), abs=2e-4)
    page.get_by_role("button", name="Version before").click()
    expect(page.locator("article.assistant .versions")).to_contain_text("1/2")
    assert path_of(page)[-1]["text"] == first["text"]


def test_edit_regenerate_and_the_tree(page: Page) -> None:
    set_options(page, seed=None)
    ask(page, "the model")
    ask(page, "reads")
    again = page.locator("article.assistant").last.get_by_role("button", name="Regenerate")
    again.evaluate("one => { one.click(); one.click(); }")  # the second one comes while an answer arrives
    expect(page.locator("article.assistant").last.locator(".versions")).to_contain_text("2/2")
    finished(page)
    page.locator("article.user").first.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit the message").fill("the token")
    page.get_by_role("button", name="Send as a version").click()
    expect(page.locator("article")).to_have_count(2)
    finished(page)
    expect(page.locator("article.user .versions")).to_contain_text("2/2")
    page.get_by_role("button", name="Version before").click()
    expect(page.locator("article")).to_have_count(4)
    assert [node["text"] for node in path_of(page)][::2] == ["the model", "reads"]
    with page.expect_download() as download:
        page.click("#export-chat")
    exported = json.loads(download.value.path().read_text())
    assert [m["role"] for m in exported["messages"]] == ["user", "assistant"] * 2
    assert sum(node["role"] == "user" and node["parent"] == "0" for node in exported["nodes"]) == 2


def test_stop_keeps_what_came_and_continue_goes_on(page: Page) -> None:
    set_options(page, max_tokens=1500, temperature=0)
    page.fill("#draft", "the model")
    page.press("#draft", "Enter")
    expect(page.locator("article.assistant .text")).not_to_be_empty()
    page.keyboard.press("Escape")
    finished(page)
    article = page.locator("article.assistant").first
    expect(article.locator(".foot")).to_contain_text("stopped")
    n = len(path_of(page)[-1]["tokens"])
    assert 0 < n < 1500
    set_options(page, max_tokens=5)
    article.get_by_role("button", name="Continue").click()
    expect(show_tokens(finished(page)).nth(n)).to_be_visible()
    assert n < len(path_of(page)[-1]["tokens"]) <= n + 5 and page.locator("article").count() == 2
    expect(article.get_by_role("button", name="Continue")).to_be_visible()
    ask(page, "reads")
    expect(article.get_by_role("button", name="Continue")).to_have_count(0)  # it has been answered


def test_a_model_that_continues_text(page: Page, site: Live) -> None:
    page.select_option("#model", "plain")
    expect(page.locator("#model-facts")).to_contain_text("continues text")
    set_options(page, temperature=0)
    ask(page, "the model reads")
    node = path_of(page)[-1]
    generator = site.model("plain").generator
    expected = foundling.generate(
        generator.model, [generator.framing.prompt("the model reads")], max_tokens=16, temperature=0.0,
        stop=generator.framing.ends,
    )  # fmt: skip
    assert [token["id"] for token in node["tokens"]] == expected[0].tokens


def test_conversations_stay_until_they_are_deleted(page: Page, site: Live) -> None:
    set_options(page)
    ask(page, "the model")
    page.click("#new-chat")
    ask(page, "a token")
    visit(page, site.url)
    expect(page.locator("article.user")).to_have_text(re.compile("a token"))
    assert page.locator("#conversations option").all_inner_texts() == ["a token", "the model"]
    page.select_option("#conversations", label="the model")
    expect(page.locator("article.user")).to_have_text(re.compile("the model"))
    keys = page.evaluate("[...Object.keys(localStorage), ...Object.keys(sessionStorage), document.cookie]")
    assert len(keys) == 3 and all(key.startswith("foundling.conversation.") for key in keys[:2]) and keys[2] == ""
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#delete-chats")
    expect(page.locator("article")).to_have_count(0)
    assert page.evaluate("localStorage.length") == 0


def test_storage_has_a_cap(page: Page) -> None:
    sizes = page.evaluate(
        """async () => {
          const { save, load } = await import("/static/library.js");
          const { create, add, ROOT } = await import("/static/conversation.js");
          for (let at = 0; at < 60; at += 1) {
            const one = create({ changed: at });
            add(one, ROOT, { text: "x".repeat(150000) });
            one.changed = at;
            save(one);
          }
          return [load().length, load()[0].changed, JSON.stringify(localStorage).length];
        }"""
    )
    assert 10 < sizes[0] <= 50 and sizes[1] == 59 and sizes[2] < 4_400_000


def test_text_of_a_model_is_text(page: Page, watch) -> None:
    """However it arrives: nothing but the nodes of light Markdown, and no script, picture or link."""
    watch.expect("TrustedHTML")
    for parts in ([NASTY], list(NASTY), re.findall(".{1,7}", NASTY, re.S)):
        shown = page.evaluate(
            """async (parts) => {
              const { MarkdownView } = await import("/static/markdown.js");
              const place = document.createElement("div");
              document.body.append(place);
              const view = new MarkdownView(place);
              for (const part of parts) view.append(part);
              const names = [...place.querySelectorAll("*")].map((one) => one.localName);
              const answer = [names, place.textContent, place.querySelector("pre").textContent];
              place.remove();
              return answer;
            }""",
            parts,
        )
        assert shown[0] == ["p", "strong", "code", "ul", "li", "li", "pre", "code", "p"]
        assert "<img src=x onerror=alert(1)>" in shown[1] and "[a](javascript:alert(3))" in shown[1]
        assert shown[2] == "let a = 1;"
    set_options(page)
    ask(page, NASTY)
    page.locator("article.assistant").get_by_role("button", name="Edit").click()
    page.get_by_label("Edit the message").fill(NASTY)
    page.get_by_role("button", name="Save as a version").click()
    expect(page.locator("article.assistant .versions")).to_contain_text("2/2")
    assert page.locator("#messages :is(img, script, a, iframe)").count() == 0
    assert "<img src=x onerror=alert(1)>" in page.locator("#conversations option").first.inner_text()
    assert (
        page.evaluate("() => { try { document.body.innerHTML = ''; } catch (error) { return error.name; } }")
        == "TypeError"
    )


@pytest.mark.slow
def test_a_long_chat_changes_only_its_end(page: Page) -> None:
    """500 messages: while an answer arrives, no other message is touched, and what is out of sight is not laid out."""
    page.evaluate(
        """async () => {
          const { create, add, ROOT } = await import("/static/conversation.js");
          const { save } = await import("/static/library.js");
          const chat = create(), tokens = Array(40).fill({ id: 5, text: "a", logprob: -1 });
          const answer = { role: "assistant", model: "plain", text: "**a**", tokens };
          let last = ROOT;
          for (let at = 0; at < 500; at += 1) last = add(chat, last, at % 2 ? answer : { text: "e" }).id;
          save(chat);
        }"""
    )
    page.reload()
    page.wait_for_selector("html[data-ready]")
    page.select_option("#model", "plain")
    expect(page.locator("article")).to_have_count(500)
    assert page.locator(".token").count() == 0, "10,000 buttons that nobody has asked for"
    set_options(page, max_tokens=40)
    page.evaluate(
        """() => {
          window.touched = new Map();
          new MutationObserver((records) => records.forEach(({ target, addedNodes, removedNodes }) => {
            const article = (target.nodeType === 1 ? target : target.parentElement).closest("article");
            const key = article ? article.dataset.id : "list";
            touched.set(key, (touched.get(key) ?? 0) + addedNodes.length + removedNodes.length);
          })).observe(document.getElementById("messages"), { childList: true, characterData: true, subtree: true });
        }"""
    )
    ask(page, "slow")
    touched = page.evaluate("Object.fromEntries(touched)")
    n_tokens = len(path_of(page)[-1]["tokens"])
    assert touched.pop("list") == 2, "two articles were added"
    (answer,) = touched
    assert answer == "502" and 0 < touched[answer] < 8 * n_tokens + 40
    assert page.locator("article").first.evaluate("one => getComputedStyle(one).contentVisibility") == "auto"
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(50)
    assert not page.locator("article .text").first.evaluate(
        "one => one.checkVisibility({ contentVisibilityAuto: true })"
    )


# --- errors ----------------------------------------------------------------------------------------------------------


def test_a_lost_connection_keeps_what_had_arrived(page: Page, site: Live, watch) -> None:
    watch.expect("net::ERR_")
    proxy = Proxy(site.port)
    visit(page, proxy.url)
    set_options(page, max_tokens=2000, temperature=0)
    page.fill("#draft", "the model")
    page.press("#draft", "Enter")
    expect(page.locator("article.assistant .text")).to_contain_text(re.compile(".{40}", re.S))
    proxy.cut()
    notice = page.locator("article.assistant .notice")
    expect(notice).to_contain_text("The connection was lost. What had arrived is kept.")
    expect(notice.get_by_role("button", name="Try again")).to_be_visible()
    node = path_of_offline(page)
    assert len(node["tokens"]) >= 5 and node["finish"] == "cut" and node["text"]
    notice.get_by_role("button", name="Try again").click()
    expect(notice).to_contain_text("The server cannot be reached")
    assert path_of_offline(page)["text"] == node["text"]


def path_of_offline(page: Page) -> dict:
    """The last message in storage, where no module can be loaded any more."""
    text = page.evaluate("localStorage.getItem(Object.keys(localStorage)[0])")
    return json.loads(text)["nodes"]["2"]


@pytest.mark.slow
def test_a_busy_server_says_when_to_try_again(page: Page, site: Live, watch) -> None:
    watch.expect("429")
    worker = site.model("chatty").worker
    set_options(page)
    before, worker.max_queue = worker.max_queue, 0
    try:
        page.fill("#draft", "the model")
        page.press("#draft", "Enter")
        notice = page.locator("article.assistant .notice")
        expect(notice).to_contain_text(re.compile(r"The server is busy\. Try again in \d s\."))
        expect(notice.locator("[aria-hidden=true]")).to_have_text(re.compile(r"^ ?Try again in \d s\.$"))
    finally:
        worker.max_queue = before
    notice.get_by_role("button", name="Try again").click()
    finished(page)
    expect(page.locator("article")).to_have_count(2)
    expect(notice).to_have_count(0)


def test_a_model_that_is_unloaded(page: Page, site: Live, watch) -> None:
    watch.expect("503")
    set_options(page)
    entry = site.server.pool.entries["chatty"]
    served, entry.served = entry.served, {}
    try:
        page.fill("#draft", "the model")
        page.press("#draft", "Enter")
        expect(page.locator("article.assistant .notice")).to_contain_text("is not loaded")
    finally:
        entry.served = served
