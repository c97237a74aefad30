# SPDX-License-Identifier: Apache-2.0
"""Whoever reads the page: by keyboard, by ear, on a phone, in the dark. And the form that asks for a key."""

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.serve.playground.conftest import ask, paged, set_options, show_tokens, visit
from tests.serve.servers import KEY, Live

VIEWS = ("chat", "compare", "tokenizer", "fill")
# every text that is shown, with its colour and the colours behind it, from the inside out
TEXTS = """() => {
  const seen = new Map(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const add = (element, text, color) => {
    const behind = [];
    for (let one = element; one; one = one.parentElement) behind.push(getComputedStyle(one).backgroundColor);
    const size = parseFloat(getComputedStyle(element).fontSize), key = [color, ...behind].join("|");
    if (!seen.has(key)) seen.set(key, { text, color, behind, size });
  };
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest("option, :disabled, .unseen, .skip")) continue;
    add(element, text.slice(0, 40), getComputedStyle(element).color);
  }
  for (const box of document.querySelectorAll("input, textarea, select")) {
    if (!box.checkVisibility()) continue;
    add(box, box.id, getComputedStyle(box).color);
    if (box.placeholder) add(box, box.placeholder, getComputedStyle(box, "::placeholder").color);
  }
  return [...seen.values()];
}"""
BORDERS = """() => [...document.querySelectorAll("button, input[type=number], textarea, select")]
  .filter((one) => one.checkVisibility() && !one.disabled && one.closest(".controls, .composer, .bar, .column"))
  .map((one) => [getComputedStyle(one).borderTopColor, one.id || one.textContent])"""


FOCUSED = """() => {
  const one = document.activeElement;
  return one.id || one.className || one.textContent.slice(0, 20) || one.localName;
}"""
WIDE = """document.scrollingElement.scrollWidth > innerWidth
  || document.getElementById('inspector').scrollWidth > innerWidth"""


def rgb(color: str) -> tuple[list[float], float]:
    """Of what getComputedStyle writes: channels from 0 to 1, and opacity."""
    numbers = [float(number) for number in re.findall(r"[\d.]+(?:e-?\d+)?", color.partition("(")[2])]
    channels = numbers[:3] if color.startswith("color(") else [number / 255 for number in numbers[:3]]
    return channels, numbers[3] if len(numbers) > 3 else 1.0


def luminance(channels: list[float]) -> float:
    """WCAG 2.2, relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: list[float], b: list[float]) -> float:
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def over(color: str, behind: list[float]) -> list[float]:
    channels, opacity = rgb(color)
    return [opacity * c + (1 - opacity) * b for c, b in zip(channels, behind)]


def test_contrast_is_computed_as_wcag_defines_it() -> None:
    assert contrast([0, 0, 0], [1, 1, 1]) == pytest.approx(21)
    assert contrast(*(rgb(color)[0] for color in ("rgb(119, 119, 119)", "rgb(255, 255, 255)"))) == pytest.approx(
        4.48, abs=0.01
    )
    assert over("rgba(0, 0, 0, 0.5)", [1, 1, 1]) == [0.5, 0.5, 0.5] and rgb("color(srgb 1 0.5 0 / 0.25)") == (
        [1, 0.5, 0],
        0.25,
    )


def open_everything(page: Page) -> None:
    """An answer with its tokens, one of them chosen, with attention and lens."""
    set_options(page)
    article = ask(page, "the model `reads`")
    show_tokens(article).nth(3).click()
    page.locator("summary", has_text="Attention").click()
    expect(page.locator(".key").first).to_be_visible()
    page.locator("summary", has_text="Logit lens").click()


def check_contrast(page: Page, place: str) -> int:
    """4.5 for texts, 3 for the borders of controls (WCAG 2.2 AA, 1.4.3 and 1.4.11), in light and dark; how many."""
    n = 0
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for one in page.evaluate(TEXTS):
            background = [1.0, 1.0, 1.0]
            for color in reversed(one["behind"]):
                background = over(color, background)
            ratio = contrast(over(one["color"], background), background)
            assert ratio >= 4.5, (place, scheme, one, round(ratio, 2))
            n += 1
        paper = rgb(page.evaluate("getComputedStyle(document.body).backgroundColor"))[0]
        for color, name in page.evaluate(BORDERS):
            assert rgb(color)[1] == 0 or contrast(over(color, paper), paper) >= 3, (place, scheme, name, color)
    return n


def test_every_text_has_contrast(page: Page) -> None:
    page.click(".options > summary")
    page.fill("#schema", "no JSON")
    expect(page.locator("#schema-state")).to_contain_text("Invalid JSON")
    n = 0
    for view in VIEWS:
        page.click(f"#tab-{view}")
        if view == "chat":
            page.fill("#schema", "")
            page.click(".options > summary")
            open_everything(page)
            page.click(".options > summary")
            page.fill("#schema", "no JSON")
            expect(page.locator("#schema-state")).to_contain_text("Invalid JSON")
        if view == "tokenizer":
            expect(page.locator(".languages tbody tr")).to_have_count(10)
        n += check_contrast(page, view)
    assert n > 50


def test_every_control_has_a_name_and_ids_are_unique(page: Page) -> None:
    open_everything(page)
    for view in VIEWS:
        page.click(f"#tab-{view}")
        tree = page.locator("body").aria_snapshot()
        for role in (
            "button",
            "textbox",
            "combobox",
            "slider",
            "spinbutton",
            "tab",
            "link",
            "log",
            "tabpanel",
            "checkbox",
        ):
            nameless = [line for line in tree.splitlines() if re.match(rf"\s*- {role}\b(?! \"[^\"])", line)]
            assert not nameless, (view, nameless)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))
    for attribute in ("aria-controls", "aria-labelledby", "aria-describedby", "for"):
        for name in page.evaluate(
            f"[...document.querySelectorAll('[{attribute}]')].map((one) => one.getAttribute('{attribute}'))"
        ):
            assert name in ids, (attribute, name)
    headings = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((one) => one.localName)")
    assert headings[0] == "h1" and headings.count("h1") == 1


def test_everything_is_reached_by_keyboard_in_order(page: Page) -> None:
    set_options(page)
    ask(page, "the model")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    page.evaluate("document.querySelector('.assistant .buttons button').click()")  # tokens, without moving the focus
    page.keyboard.press("Tab")
    order = list[str]()
    for _ in range(60):
        name = page.evaluate(FOCUSED)
        order.append(name)
        assert page.evaluate("document.activeElement.matches(':focus-visible')"), name
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
    expected = [
        "skip",
        "model",
        "tab-chat",
        "conversations",
        "new-chat",
        "delete-chats",
        "token",
        "draft",
        "send",
        "temperature",
        "min_p",
        "show-next",
    ]
    places = [order.index(name) for name in expected]
    assert places == sorted(places), order
    assert order.count("token") == 1, "one stop for all tokens"
    page.locator(".token").first.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.locator(".token[aria-pressed]").get_attribute("data-at") == "14"
    page.locator("#tab-chat").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#view-compare")).to_be_visible()
    assert (
        page.locator("#tab-compare").get_attribute("aria-selected") == "true" and page.locator("#view-chat").is_hidden()
    )


def test_a_phone(browser: Browser, site: Live, watch) -> None:
    """390 × 844: nothing is wider than the screen, and the numbers of a token lie over the end of the chat."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    watch.follow(page)
    visit(page, site.url)
    expect(page.locator("#inspector")).to_be_hidden()
    page.evaluate("document.documentElement.style.setProperty('font-size', '106%')")
    set_options(page)
    article = ask(page, "the model " + "reads" * 40)
    tokens = show_tokens(article)
    tokens.nth(2).tap()
    expect(page.locator(".distribution")).to_be_visible()
    expect(page.locator("#inspector-title")).to_be_focused()
    assert tokens.nth(2).bounding_box()["y"] < page.locator("#inspector").bounding_box()["y"] - 10
    page.locator("summary", has_text="Attention").tap()
    expect(page.locator(".key").first).to_be_visible()
    assert not page.evaluate(WIDE)
    page.get_by_role("button", name="Close").tap()
    expect(page.locator("#inspector")).to_be_hidden()
    expect(tokens.nth(2)).to_be_focused()
    opener = page.locator("#open-inspector")
    assert opener.get_attribute("aria-controls") == "inspector" and opener.get_attribute("aria-expanded") == "false"
    opener.click()
    expect(page.locator("#temperature")).to_be_visible()
    expect(page.locator("#inspector-title")).to_be_focused()
    assert opener.get_attribute("aria-expanded") == "true"
    page.keyboard.press("Escape")
    expect(opener).to_be_focused()
    for view in VIEWS:
        page.locator(f"#tab-{view}").tap()
        expect(page.locator(f"#view-{view}")).to_be_visible()
        assert not page.evaluate(WIDE), view
    context.close()


@pytest.mark.slow
def test_less_motion_is_respected(page: Page) -> None:
    set_options(page)
    show_tokens(ask(page, "the model")).nth(1).click()
    expect(page.locator(".distribution")).to_be_visible()
    style = "one => [getComputedStyle(one).transitionDuration, getComputedStyle(one).animationName]"
    assert page.locator(".drawn i").first.evaluate(style) == ["0s", "none"]
    page.emulate_media(reduced_motion="no-preference")
    assert page.locator(".drawn i").first.evaluate(style)[0] == "0.12s"


def test_the_form_that_asks_for_a_key(browser: Browser, models, watch) -> None:
    watch.expect("401")
    with paged(models, keys=[KEY]) as site:
        context = browser.new_context(viewport={"width": 390, "height": 844})
        page = context.new_page()
        watch.follow(page)
        page.goto(site.url)
        assert check_contrast(page, "login") >= 8
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        page.get_by_label("Key").fill("a-wrong-key")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("This key is not valid.")
        page.get_by_label("Key").fill(KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("html[data-ready]")
        assert page.evaluate("document.cookie") == "" and page.evaluate("localStorage.length") == 0
        (cookie,) = context.cookies()
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and KEY not in cookie["value"]
        set_options(page)
        ask(page, "the model")
        context.clear_cookies()  # as when the session has ended
        page.fill("#draft", "more")
        page.press("#draft", "Enter")
        notice = page.locator("article.assistant .notice")
        expect(notice).to_contain_text("Sign in to go on")
        notice.get_by_role("button", name="Sign in").click()
        page.get_by_label("Key").fill(KEY)
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Key")).to_be_visible()
        assert context.cookies() == []
        context.close()
        context = browser.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(site.url)
        page.get_by_label("Key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#draft")).to_be_attached()
        assert page.url == f"{site.url}/", "a key in an address would stand in logs and histories"
        context.close()
