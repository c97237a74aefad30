# SPDX-License-Identifier: Apache-2.0
"""What is stored and what is shown stay right: two windows, deletions, actions that meet, a browser that is full."""

import json
import re

import pytest
from playwright.sync_api import Page, expect

from tests.serve.playground.conftest import ask, finished, set_options, show_tokens, visit
from tests.serve.servers import Live

STORED = """async () => {
  const { load } = await import("/static/library.js");
  return load().map(({ nodes }) => Object.values(nodes).filter(({ role }) => role === "user").map(({ text }) => text));
}"""


def begin(page: Page, text: str) -> None:
    """Sends a message whose answer does not come until it is stopped."""
    page.route("**/v1/chat/completions", lambda route: None, times=1)
    page.fill("#draft", text)
    page.click("#send")
    expect(page.locator("#stop")).to_be_visible()


def test_two_windows_lose_nothing_of_each_other(page: Page, site: Live, watch) -> None:
    set_options(page)
    ask(page, "one")
    other = page.context.new_page()
    watch.follow(other)
    visit(other, site.url)
    set_options(other)
    ask(other, "two")
    expect(page.locator("article.user")).to_have_text([re.compile("one"), re.compile("two")])
    begin(page, "three")
    other.bring_to_front()
    expect(other.locator("article.user")).to_have_count(3)
    ask(other, "four")
    page.bring_to_front()
    page.click("#stop")
    expect(page.locator("#notice")).to_contain_text("Another window has changed this conversation")
    stored = page.evaluate(STORED)
    assert sorted(stored) == [["one", "two", "three"], ["one", "two", "three", "four"]]
    other.reload()
    other.wait_for_selector("html[data-ready]")
    assert page.evaluate(STORED) == stored, "a window that closes writes nothing that it has not changed"
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#delete-chats")
    expect(other.locator("article")).to_have_count(0)
    other.close(run_before_unload=True)
    assert page.evaluate("localStorage.length") == 0


def test_an_answer_that_is_deleted_while_it_arrives_stays_deleted(page: Page) -> None:
    begin(page, "the model")
    page.fill("#draft", "unsent")
    page.press("#draft", "Enter")
    assert page.input_value("#draft") == "unsent", "it is not sent, and not lost"
    user = page.locator("article.user")
    user.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit the message").fill("not yet")
    expect(page.get_by_role("button", name="Send as a version")).to_be_disabled()
    page.keyboard.press("Escape")
    expect(page.get_by_label("Edit the message")).to_have_count(0)
    expect(page.locator("#stop")).to_be_visible()  # that key closed the form, and stopped nothing
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#delete-chats")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("article")).to_have_count(0)
    assert page.evaluate("localStorage.length") == 0
    set_options(page)
    ask(page, "one")
    page.click("#new-chat")
    ask(page, "two")
    page.click("#delete-chat")
    expect(user).to_have_text(re.compile("one"))
    assert page.evaluate(STORED) == [["one"]]


def test_a_full_browser_keeps_what_it_has(page: Page) -> None:
    outcomes = page.evaluate(
        """async () => {
          const { save, load } = await import("/static/library.js");
          const { create, add, ROOT } = await import("/static/conversation.js");
          const of = (changed, n) => {
            const one = create(), tokens = [{ id: 1, text: "x", logprob: -0.123456789 }];
            add(one, ROOT, { role: "assistant", text: "x".repeat(n), tokens });
            one.changed = changed;
            return one;
          };
          for (let at = 0; at < 8; at += 1) save(of(at, 150000));
          const first = localStorage.getItem(Object.keys(localStorage)[0]);
          const outcomes = [save(of(99, 4100000)), load().length];
          localStorage.setItem("of another page", "x".repeat(3000000));
          outcomes.push(save(of(99, 3500000)), load().length, save(of(99, 1500000)), load().length);
          return [...outcomes, first.includes('"logprob":-0.1235}')];
        }"""
    )
    assert outcomes[:4] == ["full", 8, "full", 8], "what cannot be stored takes nothing away"
    assert outcomes[4] == "saved" and 1 < outcomes[5] < 9 and outcomes[6]


@pytest.mark.slow
def test_a_browser_that_stores_nothing(page: Page, site: Live) -> None:
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    visit(page, site.url)
    set_options(page)
    ask(page, "the model")
    expect(page.locator("#notice")).to_contain_text("keeps nothing for this page")


def test_numbers_are_those_of_their_model_and_place(page: Page) -> None:
    set_options(page)
    article = ask(page, "the model")
    table, status = page.locator(".distribution"), page.locator("#inspector > [role=status]")
    tokens = show_tokens(article)
    tokens.nth(3).click()
    expect(table).to_be_visible()
    page.route("**/playground/next", lambda route: None, times=1)
    tokens.nth(5).click()
    expect(status).to_have_text("Reading the logits …")
    expect(table).to_be_hidden()
    page.select_option("#model", "plain")
    with page.expect_request("**/playground/next") as sent:  # after an answer of another model than the chosen one
        page.click("#show-next")
    body = sent.value.post_data_json
    assert body["model"] == "chatty"
    expect(table).to_be_visible()
    (node,) = (one for one in stored_nodes(page) if one["role"] == "assistant")
    assert body["tokens"][-16:] == [token["id"] for token in node["tokens"]]
    page.fill("#draft", "reads")
    expect(table).to_be_hidden()
    with page.expect_request("**/playground/next") as sent:
        page.click("#show-next")
    assert sent.value.post_data_json["model"] == "plain"
    expect(table).to_be_visible()
    page.select_option("#model", "chatty")
    expect(table).to_be_hidden()
    expect(status).to_contain_text("Choose a token")


def stored_nodes(page: Page) -> list[dict]:
    text = page.evaluate("localStorage.getItem(Object.keys(localStorage)[0])")
    return list(json.loads(text)["nodes"].values())


def test_the_focus_stays_with_whoever_uses_the_keyboard(page: Page) -> None:
    focused = "() => document.activeElement.id || document.activeElement.textContent"
    set_options(page, max_tokens=200, seed=None)
    page.fill("#draft", "the model")
    page.press("#draft", "Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_focused()
    article = finished(page)
    expect(page.locator("#send")).to_be_focused()
    article.get_by_role("button", name="Regenerate").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_focused()
    page.keyboard.press("Enter")
    article = finished(page)
    assert page.evaluate(focused) in ("Tokens", "Copy")
    article.get_by_role("button", name="Version before").focus()
    page.keyboard.press("Enter")
    expect(article.locator(".versions")).to_contain_text("1/2")
    assert page.evaluate(focused) == "›", "there is no version before the first"
    copied = page.evaluate(
        """async () => {
          const { copyText } = await import("/static/dom.js");
          Object.defineProperty(navigator, "clipboard", { value: undefined });
          return copyText("a");
        }"""
    )
    assert copied and page.evaluate(focused) == "›"
