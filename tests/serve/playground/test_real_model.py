# SPDX-License-Identifier: Apache-2.0
"""The page with a real model: SmolLM2-135M-Instruct, imported from its GGUF file."""

import json

import pytest
from playwright.sync_api import Browser, expect

from tests.serve.playground.conftest import ask, next_logits, paged, set_options, show_tokens, visit


@pytest.mark.slow
def test_a_real_model_is_talked_to_and_looked_into(browser: Browser, watch) -> None:
    from benchmarks.chat_task import smollm2

    with paged({"smollm2": smollm2()}) as site:
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        watch.follow(page)
        visit(page, site.url)
        page.set_default_timeout(120_000)
        set_options(page, max_tokens=24, seed=None, temperature=0)
        article = ask(page, "What is the capital of France? Answer in one sentence.")
        expect(article.locator("> .text")).to_contain_text("Paris")
        tokens = show_tokens(article)
        at = tokens.locator(".text").all_inner_texts().index("·Paris")
        tokens.nth(at).click()
        expect(page.locator(".distribution tr.own")).to_contain_text("·Paris", timeout=60_000)
        served = site.model("smollm2")
        text = page.evaluate("localStorage.getItem(Object.keys(localStorage)[0])")
        ids = [token["id"] for token in json.loads(text)["nodes"]["2"]["tokens"][:at]]
        prompt = served.framing.chat(
            [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
        )
        logits = next_logits(served, [*prompt, *ids])
        numbers = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts()))
        assert float(numbers["logit"]) == pytest.approx(float(logits.max()), abs=2e-3) and numbers["rank"] == "1"
        page.locator("summary", has_text="Logit lens").click()
        rows = page.locator(".inside table tbody tr")
        expect(rows).to_have_count(served.model.config.n_layers + 1, timeout=120_000)
        assert rows.last.locator("td").first.inner_text() == "1" and "·Paris" in rows.last.inner_text()
        assert int(rows.first.locator("td").first.inner_text().replace(",", "")) > 1
        page.locator(".distribution tr:not(.own) .alternative").first.click()
        expect(page.locator("article.assistant .versions")).to_contain_text("2/2")
        page.context.close()
