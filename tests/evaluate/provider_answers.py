# SPDX-License-Identifier: Apache-2.0
"""One answer and one error of each provider, in the layouts that their documentation shows (2026-11): what differs is
the usage, the place of reasoning, the content, the finish reason, and how an error is told."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.evaluate.servers import Reply, chat


class Shape(NamedTuple):
    answer: dict[str, Any]
    text: str
    cut: bool
    tokens: tuple[int, int]
    error: Reply
    reason: str
    """what the error says"""


def choice(message: dict[str, Any], finish: Any = "stop", **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, **more}]}


def openai_error(message: str, status: int = 401, **more: Any) -> Reply:
    return Reply({"error": {"message": message, "type": "invalid_request_error", "param": None, **more}}, status)


PLAIN = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
REASONED = PLAIN | {"completion_tokens_details": {"reasoning_tokens": 2}}
SHAPES: dict[str, Shape] = {
    "openai": Shape(
        chat("Paris.", usage=REASONED, service_tier="default"), "Paris.", False, (12, 3),
        openai_error("Incorrect API key provided", code="invalid_api_key"), "Incorrect API key",
    ),
    "anthropic": Shape(  # no fingerprint, empty refusal fields left out
        {"id": "msg_1", "object": "chat.completion", "model": "claude", "usage": PLAIN}
        | choice({"content": "Paris."}, "length"), "Paris.", True, (12, 3),
        Reply({"error": {"code": "authentication_error", "message": "invalid x-api-key", "type": "x"}}, 401),
        "invalid x-api-key",
    ),
    "google": Shape(  # an answer that reasoning used up has no content; errors come in a list
        {"object": "chat.completion", "model": "gemini", "usage": {"prompt_tokens": 9, "total_tokens": 90}}
        | choice({}, "length"), "", True, (9, 0),
        Reply([{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}], 400),
        "API key not valid.",
    ),
    "mistral": Shape(  # the content of reasoning models is a list of chunks
        {"object": "chat.completion", "model": "magistral", "usage": PLAIN}
        | choice({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "The capital…"}]},
                              {"type": "text", "text": "Par"}, {"type": "text", "text": "is."}],
                  "tool_calls": None}, "model_length"), "Paris.", True, (12, 3),
        Reply({"object": "error", "message": "Extra inputs are not permitted", "type": "invalid_request_error",
               "param": None, "code": None}, 422), "Extra inputs",
    ),
    "groq": Shape(
        chat("Paris.", x_groq={"id": "req_1"}, usage=PLAIN | {"queue_time": 0.02, "total_time": 0.1})
        | choice({"content": "Paris.", "reasoning": "France…"}), "Paris.", False, (12, 3),
        openai_error("Invalid API Key", code="invalid_api_key"), "Invalid API Key",
    ),
    "together": Shape(
        {"id": "x", "object": "chat.completion", "model": "llama", "prompt": [], "usage": PLAIN}
        | choice({"content": "Paris.", "tool_calls": []}, "eos", seed=1, logprobs=None), "Paris.", False, (12, 3),
        openai_error("Unable to access model", 404, code="model_not_available"), "Unable to access model",
    ),
    "openrouter": Shape(  # an error of the model's server comes with status 200
        {"id": "gen-1", "provider": "X", "object": "chat.completion", "model": "a/b", "usage": PLAIN}
        | choice({"content": "Paris.", "refusal": None, "reasoning": "France…"}, native_finish_reason="STOP"),
        "Paris.", False, (12, 3),
        Reply({"error": {"code": 402, "message": "Insufficient credits", "metadata": {}}}, 200), "Insufficient credits",
    ),
    "deepseek": Shape(
        chat("Paris.", usage=PLAIN | {"prompt_cache_hit_tokens": 0, "prompt_cache_miss_tokens": 12})
        | choice({"content": "Paris.", "reasoning_content": "France…"}), "Paris.", False, (12, 3),
        openai_error("Insufficient Balance", 402, code="invalid_request_error"), "Insufficient Balance",
    ),
    "xai": Shape(
        chat("Paris.", usage=REASONED) | choice({"content": "Paris.", "reasoning_content": "…", "refusal": None}),
        "Paris.", False, (12, 3),
        Reply({"code": "Client specified an invalid argument", "error": "Incorrect API key provided"}, 400),
        "Incorrect API key provided",
    ),
    "fireworks": Shape(
        {"id": "x", "object": "chat.completion", "model": "accounts/fireworks/models/m", "usage": PLAIN}
        | choice({"content": "Paris."}), "Paris.", False, (12, 3),
        Reply({"error": {"object": "error", "type": "error", "message": "Model not found"}}, 404), "Model not found",
    ),
    "cerebras": Shape(
        chat("Paris.", time_info={"queue_time": 0.1}), "Paris.", False, (12, 3),
        Reply({"message": "Wrong API Key", "type": "invalid_request_error", "code": "wrong_api_key"}, 401), "Wrong API",
    ),
    "huggingface": Shape(  # usage is that of the provider behind the router, and may be missing
        {"object": "chat.completion", "model": "m:x", "usage": None} | choice({"content": "Paris."}, "eos_token"),
        "Paris.", False, (0, 0), Reply({"error": "Invalid username or password."}, 401), "Invalid username",
    ),
    "ollama": Shape(
        chat("Paris.", system_fingerprint="fp_ollama"), "Paris.", False, (12, 3),
        openai_error("model 'm' not found", 404, type="api_error"), "model 'm' not found",
    ),
    "vllm": Shape(
        {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "prompt_logprobs": None, "usage": PLAIN}
        | choice({"content": None, "reasoning_content": "It asks…", "tool_calls": []}, "length", stop_reason=None),
        "", True, (12, 3),
        Reply({"error": {"message": "The model `m` does not exist.", "type": "NotFoundError", "code": 404}}, 404),
        "does not exist",
    ),
    "llama-server": Shape(
        chat("Paris.", system_fingerprint="b8681-Debian", timings={"prompt_n": 12, "predicted_n": 3}), "Paris.", False,
        (12, 3), Reply({"error": {"code": 400, "message": "the request exceeds the context", "type": "x"}}, 400),
        "exceeds the context",
    ),
    "lmstudio": Shape(
        chat("Paris.", stats={}, system_fingerprint="m"), "Paris.", False, (12, 3),
        Reply({"error": "No models loaded. Please load a model."}, 400), "No models loaded",
    ),
}  # fmt: skip
