"""llama.cpp as a witness, in a process of its own.

``ask(path, questions)`` loads the GGUF file, with a LoRA adapter's where one is given, and answers
each question in order. A question is a dictionary with ``kind``:

- ``tokenize``: ``text``, ``add_special`` → list of ids
- ``template``: ``messages`` and ``tools`` → prompt text; with ``then`` "tokenize" also its ids
- ``logprobs``: ``ids``, ``vocab_size`` → log-probability of every next id, or None when the first
  answer ends the text
- ``greedy``: ``ids``, ``count`` → ids
- ``chat``: ``messages``, ``count`` → the answer's text, and why it ended (``stop``: by itself)

The key/value cache is kept in f32 here: llama.cpp's default of f16 alone moves log-probabilities
by 1e-2.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class LlamaCppError(AssertionError):
    """llama.cpp refused the file or died; the text is the end of its log."""


def ask(
    path: Path | str,
    questions: Sequence[dict[str, Any]],
    *,
    adapter: Path | str | None = None,
    timeout_s: float = 120,
) -> list[Any]:
    """Answers of llama.cpp to the questions, in order. Raises ``LlamaCppError``."""
    done = subprocess.run(
        [sys.executable, __file__, str(path), *([] if adapter is None else [str(adapter)])],
        input=json.dumps(list(questions)),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("ANSWERS "):
            answers: list[Any] = json.loads(line.removeprefix("ANSWERS "))
            return answers
    raise LlamaCppError(f"llama.cpp gave no answer for {path}:\n{done.stderr[-2000:]}")


def _serve(path: str, questions: list[dict[str, Any]], adapter: str | None = None) -> list[Any]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 256
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.warmup = False
    params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter is not None:
        lora = xllamacpp.CommonAdapterLoraInfo()
        lora.path = adapter
        lora.scale = 1.0
        params.lora_adapters = [lora]
    server = xllamacpp.Server(params)

    def post(route: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            server.listening_address + route,
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def answer(question: dict[str, Any]) -> Any:
        kind = question["kind"]
        if kind == "tokenize":
            body = {
                "content": question["text"],
                "add_special": question.get("add_special", False),
                "parse_special": True,
            }
            return post("/tokenize", body)["tokens"]
        if kind == "template":
            body = {"messages": question["messages"]}
            if question.get("tools"):
                body["tools"] = question["tools"]
            prompt = post("/apply-template", body)["prompt"]
            if question.get("then") != "tokenize":
                return prompt
            body = {"content": prompt, "add_special": False, "parse_special": True}
            return [prompt, post("/tokenize", body)["tokens"]]
        if kind == "chat":
            body = {
                "messages": question["messages"],
                "max_tokens": question["count"],
                "temperature": 0,
            }
            choice = post("/v1/chat/completions", body)["choices"][0]
            return [choice["message"]["content"], choice["finish_reason"]]
        if kind == "greedy":
            body = {
                "prompt": question["ids"],
                "n_predict": question["count"],
                "temperature": 0,
                "return_tokens": True,
                "ignore_eos": True,
            }
            return post("/completion", body)["tokens"]
        size = question["vocab_size"]
        out = server.handle_completions(
            {
                "prompt": question["ids"],
                "max_tokens": 1,
                "temperature": 0.0,
                "logprobs": size,
                "n_probs": size,
            }
        )
        logprobs = out["choices"][0].get("logprobs")
        if not logprobs or not logprobs["content"]:
            return None
        values = [float("-inf")] * size
        for entry in logprobs["content"][0]["top_logprobs"]:
            values[entry["id"]] = entry["logprob"]
        return values

    return [answer(question) for question in questions]


if __name__ == "__main__":
    print(
        "ANSWERS " + json.dumps(_serve(sys.argv[1], json.load(sys.stdin), *sys.argv[2:])),
        flush=True,
    )
    os._exit(0)  # The server has threads that do not end by themselves.
