"""Many GGUF files through llama.cpp: taken or refused, what it listed, what it computed.

``read_all(paths, ids)`` loads the files one after another in few processes. A file that ends a
process (an assertion in llama.cpp) counts as refused, and the next process goes on behind it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOADED = re.compile(
    r"loaded meta data with \d+ key-value pairs and \d+ tensors from (.*) \(version"
)
KEY = re.compile(r"llama_model_loader: - kv +\d+: +(\S+) (\S+) += ")
COUNT = re.compile(r"llama_model_loader: - type +(\S+): +(\d+) tensors")


@dataclass
class Read:
    """What llama.cpp made of one file."""

    taken: bool = False
    died: bool = False
    #: name -> type, as llama.cpp lists them: str, u32, arr[str,264]
    keys: dict[str, str] = field(default_factory=dict)
    #: type -> number of tensors
    types: dict[str, int] = field(default_factory=dict)
    #: log-probability of every id behind the given ones
    log_probs: list[float] | None = None
    said: str = ""


def read_all(paths: Sequence[Path], ids: Sequence[int], *, batch: int = 25) -> list[Read]:
    out = {str(path): Read() for path in paths}
    left = [str(path) for path in paths]
    while left:
        now = left[:batch]
        done = subprocess.run(
            [sys.executable, __file__],
            input=json.dumps({"paths": now, "ids": list(ids)}),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=600,
            check=False,
        )
        lines = [json.loads(x[7:]) for x in done.stdout.splitlines() if x.startswith("RESULT ")]
        for answer in lines:
            read = out[answer["path"]]
            read.taken = answer["taken"]
            read.log_probs = answer["log_probs"]
        listed(done.stderr, out)
        if len(lines) < len(now):
            died = out[now[len(lines)]]
            died.died, died.said = True, done.stderr[-1500:]
        left = left[min(len(lines) + (len(lines) < len(now)), len(now)) :]
    return [out[str(path)] for path in paths]


def listed(log: str, out: dict[str, Read]) -> None:
    """Keys and types from the log, which says first of which file."""
    read = Read()
    for line in log.splitlines():
        if found := LOADED.search(line):
            read = out.get(found[1], Read())
        elif found := KEY.search(line):
            read.keys[found[1]] = found[2]
        elif found := COUNT.search(line):
            read.types[found[1]] = int(found[2])
        elif " E " in line:
            read.said += line + "\n"


def _one(path: str, ids: list[int]) -> dict[str, Any]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 64
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.warmup = False
    params.verbosity = 5
    params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    answer: dict[str, Any] = {"path": path, "taken": False, "log_probs": None}
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        return answer
    KEPT.append(server)
    answer["taken"] = True
    size = 4096
    request = {"prompt": ids, "max_tokens": 1, "temperature": 0.0, "logprobs": size}
    out = server.handle_completions({**request, "n_probs": size})
    found = out["choices"][0].get("logprobs") if "choices" in out else None
    if found and found["content"]:
        top = found["content"][0]["top_logprobs"]
        values = {entry["id"]: entry["logprob"] for entry in top}
        answer["log_probs"] = [values.get(i, float("-inf")) for i in range(max(values) + 1)]
    return answer


#: Servers have threads that do not end by themselves.
KEPT: list[Any] = []

if __name__ == "__main__":
    given = json.load(sys.stdin)
    for name in given["paths"]:
        print("RESULT " + json.dumps(_one(name, given["ids"])), flush=True)
    os._exit(0)
