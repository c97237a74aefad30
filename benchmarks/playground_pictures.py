# SPDX-License-Identifier: Apache-2.0
"""The pictures of docs/playground.md: `foundling serve` with SmolLM2-135M-Instruct, and Chromium before it.

python -m benchmarks.playground_pictures [--only NAME] [--out docs/playground]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.chat_task import smollm2

OUT = Path(__file__).resolve().parents[1] / "docs" / "playground"
MAX_BYTES = 200_000
DESKTOP, TALL, PHONE = (1280, 880), (1280, 960), (390, 844)


class Picture(NamedTuple):
    name: str
    scheme: str
    size: tuple[int, int]
    draw: Callable[[Page], None]


@contextlib.contextmanager
def served(directory: Path) -> Iterator[str]:
    """The URL of a server with the model."""
    options = ["--port", "0", "--price", "smollm2=0.1,0.4", "--weights", "float32"]
    command = [sys.executable, "-m", "foundling", "serve", f"smollm2={directory}", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            url = next(match[0] for line in process.stdout if (match := re.search(r"http://\S+", line)))
            yield url
        finally:
            process.terminate()


# --- what is done before a picture -----------------------------------------------------------------------------------


def set_up(page: Page, max_tokens: int = 60) -> None:
    """Greedy answers."""
    page.click(".options > summary")
    page.fill("#max-tokens", str(max_tokens))
    page.click(".options > summary")
    sample(page, Temperature="0")


def sample(page: Page, **values: str) -> None:
    if page.locator("#open-inspector").is_visible():
        page.click("#open-inspector")
    for name, value in values.items():
        page.locator("#inspector").get_by_label(f"{name.replace('_', '-')}, exact").fill(value)
    page.keyboard.press("Escape")


def ask(page: Page, text: str) -> Any:
    page.fill("#draft", text)
    page.press("#draft", "Enter")
    page.wait_for_selector("#messages[aria-busy=false] article.assistant:last-child .facts")
    return page.locator("article.assistant").last


def choose_token(page: Page, at: int) -> None:
    page.locator("article.assistant").last.get_by_role("button", name="Tokens", exact=True).click()
    page.locator("article.assistant").last.locator(".token").nth(at).click()
    page.wait_for_selector(".distribution:visible")


def draw_chat(page: Page) -> None:
    """A second turn, whose answer has another version from one of its tokens on."""
    set_up(page)
    ask(page, "Give me two tips for a good night's sleep.")
    ask(page, "Write a haiku about the sea.")
    choose_token(page, 7)
    page.locator(".distribution tbody tr:not(.own) .alternative").nth(1).click()
    page.wait_for_selector("#messages[aria-busy=false] article.assistant:last-child .facts")
    choose_token(page, 7)
    sample(page, Temperature="0.8")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")


def draw_sampling(page: Page) -> None:
    set_up(page)
    ask(page, "Write a haiku about the sea.")
    choose_token(page, 7)
    sample(page, Temperature="1.4", Top_k="40", Top_p="0.9", Min_p="0.02")
    if page.locator("#open-inspector").is_visible():
        page.click("#open-inspector")
    else:
        page.evaluate("scrollTo(0, 0)")


def draw_inside(page: Page) -> None:
    set_up(page, 24)
    ask(page, "Write a haiku about the sea.")
    choose_token(page, 4)
    sample(page, Temperature="0.8")
    page.locator("summary", has_text="Attention").click()
    page.wait_for_selector(".thumb")
    page.select_option("select[aria-label=Layer]", "20")
    page.wait_for_selector("text=Layer 20")
    page.locator(".thumb").nth(3).click()
    page.locator("summary", has_text="Logit lens").click()
    page.wait_for_selector(".inside table tbody tr")
    page.locator("#inspector").evaluate("one => { one.scrollTop = one.querySelector('.inside').offsetTop - 8; }")


def draw_tokenizer(page: Page) -> None:
    page.click("#tab-tokenizer")
    page.get_by_label("Text", exact=True).fill(
        "The quick brown fox jumps over 12345 lazy dogs.\nUnbelievable: naïve café, Привет, def f(x): return x"
    )
    page.wait_for_selector(".languages tbody tr:nth-child(10)")
    page.get_by_role("button", name="Show ids").click()
    page.wait_for_timeout(600)


def draw_compare(page: Page) -> None:
    page.click("#tab-compare")
    page.locator("#compare-prompt").fill("Write a haiku about the sea.")
    page.fill("#compare-length", "48")
    page.fill("#left-seed", "5")
    page.get_by_role("button", name="Ask both").click()
    page.wait_for_selector("#view-compare > p:not(:empty)")


def draw_phone_chat(page: Page) -> None:
    set_up(page)
    ask(page, "Give me two tips for a good night's sleep.")
    page.evaluate("scrollTo(0, 0)")


PICTURES = [
    *(Picture(f"chat-{scheme}", scheme, DESKTOP, draw_chat) for scheme in ("light", "dark")),
    Picture("sampling-light", "light", DESKTOP, draw_sampling),
    *(Picture(f"attention-{scheme}", scheme, DESKTOP, draw_inside) for scheme in ("light", "dark")),
    *(Picture(f"tokenizer-{scheme}", scheme, TALL, draw_tokenizer) for scheme in ("light", "dark")),
    Picture("compare-light", "light", DESKTOP, draw_compare),
    Picture("phone-chat-dark", "dark", PHONE, draw_phone_chat),
    Picture("phone-token-light", "light", PHONE, draw_sampling),
    Picture("phone-tokenizer-light", "light", PHONE, draw_tokenizer),
]


def take(browser: Browser, url: str, picture: Picture, out: Path) -> None:
    phone = picture.size == PHONE
    context = browser.new_context(
        viewport={"width": picture.size[0], "height": picture.size[1]}, color_scheme=picture.scheme, is_mobile=phone,
        has_touch=phone, device_scale_factor=2 if phone else 1, reduced_motion="reduce",
    )  # fmt: skip
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.on("pageerror", lambda error: sys.exit(f"{picture.name}: {error}"))
    page.goto(url)
    page.wait_for_selector("html[data-ready]")
    picture.draw(page)
    page.evaluate("document.activeElement.blur()")
    image = Image.open(io.BytesIO(page.screenshot()))
    context.close()
    file = out / f"{picture.name}.png"
    image.convert("RGB").quantize(128).save(file, optimize=True)
    assert file.stat().st_size <= MAX_BYTES, f"{file.name} has {file.stat().st_size:,} bytes"
    print(f"{file.name}: {file.stat().st_size // 1000} kB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="pictures whose names contain this")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with served(smollm2()) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for picture in PICTURES:
            if args.only in picture.name:
                take(browser, url, picture, args.out)


if __name__ == "__main__":
    main()
