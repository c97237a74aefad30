# SPDX-License-Identifier: Apache-2.0
"""`foundling label` in a real browser: ranked and written by keyboard, reloaded, gone on with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.serve.labelling import Labelling, labelling, write
from tests.serve.playground.conftest import Proxy, Watch
from tests.serve.playground.test_access import check_contrast

PAIRS = [{"prompt": f"question {i}", "completions": [f"good {i}", f"bad {i}"]} for i in range(4)]
Open = Callable[..., tuple[Page, Labelling]]


@pytest.fixture
def opened(browser: Browser, watch: Watch, tmp_path: Path) -> Iterator[Open]:
    """Serves rows, and opens their page."""
    leave = list[Any]()

    def open_page(rows: list[dict[str, Any]], **context: Any) -> tuple[Page, Labelling]:
        server = labelling(write(tmp_path / "data.jsonl", rows), tmp_path / "labels.jsonl")
        live = server.__enter__()
        leave.append(lambda: server.__exit__(None, None, None))
        window = browser.new_context(**({"viewport": {"width": 1200, "height": 800}} | context))
        leave.append(window.close)
        page = window.new_page()
        watch.follow(page)
        page.set_default_timeout(15_000)
        page.goto(live.url)
        armed(page)
        return page, live

    yield open_page
    for close in reversed(leave):
        close()


def armed(page: Page) -> None:
    """Waits until the item that is shown takes a judgement."""
    page.wait_for_selector("html[data-ready] body[data-armed]:not([aria-busy])")


def press(page: Page, key: str, message: str) -> None:
    armed(page)
    page.keyboard.press(key)
    expect(page.locator("#status")).to_contain_text(message)


def test_two_answers_are_judged_by_keyboard_and_after_a_reload(opened: Open) -> None:
    page, live = opened(PAIRS)
    shown = [page.locator(".answer .text").nth(i).inner_text() for i in (0, 1)]
    press(page, "2", "Saved: answer 2 is better")
    expect(page.locator("#progress")).to_contain_text("item 2 of 4, 1 labelled")
    press(page, "=", "Saved: both are equal")
    press(page, "s", "Saved: skipped")
    assert [line["state"] for line in live.lines] == ["judged", "judged", "skipped"]
    item, line = live.book.items[0], live.lines[0]
    assert item.completions[line["ranking"][0][0]] == shown[1] and live.lines[1]["ranking"] == [[0, 1]]
    assert 0 < line["seconds"] < 60
    page.reload()
    armed(page)
    expect(page.locator("#progress")).to_contain_text("item 4 of 4, 3 labelled · 1 skipped")
    page.keyboard.press("u")
    expect(page.locator("#progress")).to_contain_text("item 3 of 4, 2 labelled")
    page.keyboard.press("p")
    expect(page.locator("#status")).to_contain_text("You judged this item before: 1 = 2")
    press(page, "1", "Saved: answer 1 is better")
    press(page, "f", "Saved: flagged")
    press(page, "1", "Everything is labelled")
    expect(page.locator("#done")).to_contain_text("anna: 3 judged, 0 skipped, 1 flagged")
    page.keyboard.press("p")
    expect(page.locator("#answer-1 .rank")).to_have_text("your choice")


def test_a_second_press_and_a_key_that_is_kept_down_judge_nothing(opened: Open) -> None:
    page, live = opened(PAIRS)
    page.keyboard.press("1")
    page.keyboard.press("1")
    expect(page.locator("#progress")).to_contain_text("item 2 of 4")
    page.keyboard.press("1")  # meant for the item before
    armed(page)
    page.keyboard.down("1")
    for _ in range(20):
        page.keyboard.down("1")  # repeats, as of a key that is kept down
    expect(page.locator("#progress")).to_contain_text("item 3 of 4")
    armed(page)
    for _ in range(5):
        page.keyboard.down("1")
    page.keyboard.up("1")
    press(page, "s", "Saved: skipped")
    assert [line["state"] for line in live.lines] == ["judged", "judged", "skipped"]


def test_several_answers_are_put_in_order(opened: Open) -> None:
    page, live = opened([{"prompt": "name a fruit", "completions": ["fig", "kiwi", "pear", "plum"]}] * 1)
    shown = [page.locator(".answer .text").nth(i).inner_text() for i in range(4)]
    press(page, "3", "3")
    press(page, "=", "3 = …")
    press(page, "1", "3 = 1")
    press(page, "Backspace", "3")
    press(page, "Enter", "Every answer needs a place")
    press(page, "1", "3 > 1")
    press(page, "4", "3 > 1 > 4 > 2 · Enter saves")
    expect(page.locator("#answer-2 .rank")).to_have_text("place 4")
    press(page, "=", "3 > 1 > 4 = 2")
    press(page, "Enter", "Saved: 3 > 1 > 4 = 2")
    item, (line,) = live.book.items[0], live.lines
    groups = [sorted(item.completions[i] for i in group) for group in line["ranking"]]
    assert groups == [[shown[2]], [shown[0]], sorted([shown[3], shown[1]])]


def test_a_demonstration_is_written_and_its_draft_outlives_a_reload(opened: Open) -> None:
    page, live = opened([{"prompt": "Greet the reader."}, {"prompt": "Say goodbye."}])
    page.fill("#text", "")
    page.focus("#text")
    page.keyboard.type("us supper, 1 = 1")  # u, s, p and f are letters here
    page.reload()
    armed(page)
    expect(page.locator("#text")).to_have_value("us supper, 1 = 1")
    page.focus("#text")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("Saved: your answer")
    armed(page)
    page.keyboard.press("Escape")
    page.keyboard.press("p")
    expect(page.locator("#status")).to_contain_text("You wrote this answer before")
    expect(page.locator("#text")).to_have_value("us supper, 1 = 1")
    assert [(line["text"], line["task"]) for line in live.lines] == [("us supper, 1 = 1", "write")]


def test_a_lost_connection_loses_no_judgement(opened: Open, watch: Watch, tmp_path: Path) -> None:
    """The connection breaks, and comes back: the decision is on the disk once."""
    watch.expect("ERR_")
    page, live = opened(PAIRS)
    proxy = Proxy(live.port)
    page.goto(f"{proxy.url}/{live.token}/")
    armed(page)
    port = int(proxy.url.rpartition(":")[2])
    proxy.cut()
    page.keyboard.press("1")
    expect(page.locator("#notice")).to_contain_text("Not saved yet: the server cannot be reached")
    page.keyboard.press("2")
    page.keyboard.press("n")
    expect(page.locator("#progress")).to_contain_text("item 1 of 4")
    assert live.lines == []
    again = Proxy(live.port, port)
    page.get_by_role("button", name="Try again now").click()
    expect(page.locator("#status")).to_contain_text("Saved: answer 1 is better")
    expect(page.locator("#notice")).to_be_hidden()
    assert len(live.lines) == 1
    again.cut()


@pytest.mark.slow
def test_a_second_tab_changes_nothing_unseen(opened: Open, watch: Watch) -> None:
    watch.expect("409")
    page, live = opened(PAIRS)
    other = page.context.new_page()
    watch.follow(other)
    other.goto(live.url)
    press(page, "1", "Saved")
    press(other, "2", "judged in another window; nothing was changed. You judged this item before")
    assert len(live.lines) == 1
    press(other, "2", "Saved: answer 2 is better")  # now it was seen
    assert live.lines[1]["replaces"] == live.lines[0]["id"]


HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
LONG = "word " * 20_000
RTL = "שלום עולם, 2 = 1"


@pytest.mark.slow
def test_texts_are_shown_as_they_are(opened: Open) -> None:
    code = "before *bold*\n```python\nif a < b:\n    print('<b>')\n```\nafter"
    page, _ = opened(
        [{"prompt": HOSTILE, "completions": [code, f"{RTL}\n\n{LONG}"]}], viewport={"width": 375, "height": 700}
    )
    assert page.locator("main img, main script").count() == 0 and "owned" not in page.title()
    expect(page.locator("#asked .text")).to_have_text(HOSTILE)
    block = page.locator(".answer pre code")
    assert block.text_content() == "if a < b:\n    print('<b>')"
    assert "before *bold*" in page.locator(".answer").filter(has=page.locator("pre")).inner_text()
    rtl = page.locator(".answer p", has_text="שלום")
    assert rtl.evaluate("one => getComputedStyle(one).direction") == "rtl" and len(rtl.text_content() or "") > 90_000
    assert not page.evaluate("document.scrollingElement.scrollWidth > innerWidth")
    for button in page.locator(".actions button:visible").all():
        box = button.bounding_box()
        assert box and box["height"] >= 32 and box["y"] + box["height"] <= 700 and box["x"] + box["width"] <= 375


@pytest.mark.slow
def test_the_page_is_readable_named_and_explains_its_keys(opened: Open) -> None:
    page, _ = opened([{"prompt": "a", "completions": ["b", "c", "d"]}], reduced_motion="reduce")
    press(page, "1", "1")
    assert check_contrast(page, "label") > 10
    names = re.findall(r"- button(?! \")", page.locator("body").aria_snapshot())
    assert names == [] and page.locator("[role=status]").count() == 1
    page.keyboard.press("Tab")
    style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid"
    page.keyboard.press("?")
    help_box = page.get_by_role("dialog", name="Keys")
    expect(help_box).to_be_visible()
    for text in ("undo the last judgement", "skip", "flag", "previous item"):
        expect(help_box).to_contain_text(text)
    page.keyboard.press("s")  # not while the keys are read
    page.keyboard.press("Escape")
    expect(help_box).to_be_hidden()
    expect(page.locator("#progress")).to_contain_text("item 1 of 1, 0 labelled")
