"""Sound files for every target of the fuzzing program, small and of many kinds."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import tiny_tokenizers as tiny
from raw_gguf import ARRAY, F32, I32, STRING, U16, U32, Shape, Type, sound
from safetensors.numpy import save

from abi_train import LlmTrainingConfig
from abi_train.chat import FORMATS, format_info

CONFIGS: list[dict[str, Any]] = [
    {"model_type": "llama"},
    {"model_type": "qwen2", "tie_word_embeddings": False},
    {"model_type": "qwen3", "head_dim": 16, "sliding_window": None},
    {"model_type": "mistral", "sliding_window": 16},
    {
        "model_type": "llama",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
    {
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "truncate": False},
        "layer_types": ["sliding_attention", "full_attention"],
        "quantization_config": {"quant_method": "mxfp4"},
    },
]
SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


def models() -> dict[str, bytes]:
    found = {}
    kinds = (Type.F32, Type.F16, Type.Q8_0, Type.Q4_0, Type.MXFP4)
    for name in ("llama", "qwen2", "qwen3", "gpt-oss"):
        for kind in kinds:
            shape = Shape(name, kind=int(kind), layers=1, inner=32, tied=kind != Type.F16)
            found[f"{name}-{kind.name}"] = sound(shape).data()
    wide = {"width": 256, "inner": 256, "heads": 4, "shared": 2, "head": 64}
    for kind in (Type.Q4_K, Type.Q6_K):
        shape = Shape(**wide, kind=int(kind), embedding_kind=int(kind))
        found[kind.name.lower()] = sound(shape).data()
    file = sound()
    file.alignment = 64
    found["aligned"] = file.put("general.alignment", U32, 64).data()
    file = sound()
    file.put("split.no", U16, 0).put("split.count", U16, 1).put("split.tensors.count", I32, 11)
    found["part"] = file.data()
    file = sound()
    file.put("llama.feed_forward_length", ARRAY, (U32, [64]))
    file.put("tokenizer.ggml.scores", ARRAY, (F32, [0.0] * 264))
    file.put("general.tags", ARRAY, (STRING, ["a", ""]))
    found["lists"] = file.data()
    return found


def tensors() -> dict[str, bytes]:
    rng = np.random.default_rng(1)
    plain = {"a.weight": rng.random((4, 8), np.float32), "b": np.zeros(3, np.float16)}
    return {
        "plain": save(plain, {"format": "pt"}),
        "kinds": save(
            {str(t): np.zeros((2, 2), t) for t in ("f8", "i4", "u1", "i8", "bool", "f4")}
        ),
        "empty": save({"none": np.zeros((0, 4), np.float32), "one": np.ones((), np.float32)}),
    }


def importance() -> dict[str, bytes]:
    legacy = struct.pack("<i", 2)
    for name in (b"blk.0.attn_q.weight", b"blk.0.ffn_down.weight"):
        legacy += struct.pack("<i", len(name)) + name + struct.pack("<ii", 3, 32)
        legacy += np.arange(32, dtype="<f4").tobytes()
    legacy += struct.pack("<i", 3) + struct.pack("<i", 4) + b"data"
    found = {"legacy": legacy}
    file = sound()
    file.keys = {
        "general.type": (STRING, "imatrix"),
        "imatrix.datasets": (ARRAY, (STRING, ["x"])),
        "imatrix.chunk_count": (U32, 3),
        "imatrix.chunk_size": (U32, 512),
    }
    raw = np.ones(32, "<f4").tobytes()
    t = file.tensors[0].__class__
    name = "blk.0.attn_q.weight"
    file.tensors = [t(f"{name}.in_sum2", (32, 1), 0, raw), t(f"{name}.counts", (1,), 0, raw[:4])]
    found["gguf"] = file.data()
    return found


def chats() -> dict[str, bytes]:
    call = {"name": "f", "arguments": {"x": [1, 2.5, None, "é"]}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello <|im_end|>"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": call}]},
        {"role": "tool", "content": "7", "tool_call_id": "1", "name": "f"},
        {"role": "assistant", "content": "Seven.", "thinking": "Hm."},
    ]
    schema = {"type": "object", "properties": {"x": {"type": "array"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    return {
        "list": json.dumps(messages[:2]).encode(),
        "tools": json.dumps({"messages": messages, "tools": tools}).encode(),
    }


def rows() -> dict[str, bytes]:
    lines = [
        {"instruction": "Say it.", "input": "", "output": "It."},
        {"prompt": "a", "completion": "b\u2028\ud83d\ude00"},
        {"text": "x" * 200},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ]
    plain = "".join(json.dumps(line) + "\n" for line in lines)
    first = "".join(json.dumps(line) + "\r\n" for line in [lines[0]] * 3)
    return {"rows": plain.encode(), "first": b"\xef\xbb\xbf" + first.encode()}


def tokenizers(folder: Path) -> dict[str, bytes]:
    found = {}
    for kind in tiny.KINDS:
        made = tiny.make_tokenizer(folder / kind, kind)
        raw = (made / "tokenizer.json").read_bytes()
        # Small ones: thousands of cases a second need them.
        found[kind] = raw if len(raw) < 60_000 else smaller(raw)
    return found


def smaller(raw: bytes) -> bytes:
    """The same tokenizer with few merges and the words those make."""
    words = json.loads(raw)
    model = words["model"]
    if not isinstance(model.get("vocab"), dict) or not model.get("merges"):
        return raw
    kept = model["merges"][:200]
    pairs = [m.split(" ") if isinstance(m, str) else m for m in kept]
    made = {left + right for left, right in pairs}
    model["merges"] = kept
    added = {token["content"] for token in words["added_tokens"]}
    names = [w for w in model["vocab"] if len(w) == 1 or w in made or w in added]
    names += [w for w in model["vocab"] if w.startswith("<0x")]
    model["vocab"] = {w: i for i, w in enumerate(dict.fromkeys(names))}
    for token in words["added_tokens"]:
        token["id"] = model["vocab"].setdefault(token["content"], len(model["vocab"]))
    return json.dumps(words).encode()


def write(folder: Path) -> dict[str, Path]:
    """A folder of seeds for each target."""
    models_found = models()
    encoded = {
        "gguf": models_found,
        "run": models_found,
        "imatrix": importance(),
        "safetensors": tensors(),
        "shard_index": {
            "two": json.dumps(
                {
                    "metadata": {"total_size": 64},
                    "weight_map": {
                        "a": "model-00001-of-00002.safetensors",
                        "b": "model-00002-of-00002.safetensors",
                    },
                }
            ).encode()
        },
        "model_config": {
            str(i): json.dumps({**SIZES, **config}).encode() for i, config in enumerate(CONFIGS)
        },
        "adapter_config": {
            "plain": json.dumps(
                {
                    "peft_type": "LORA",
                    "r": 8,
                    "lora_alpha": 16,
                    "target_modules": ["q_proj", "v_proj"],
                    "rank_pattern": {"q_proj": 4},
                    "alpha_pattern": {},
                    "target_parameters": ["mlp.experts.down_proj"],
                    "use_rslora": True,
                    "bias": "none",
                    "base_model_name_or_path": "x",
                }
            ).encode(),
            "all": json.dumps(
                {"peft_type": "LORA", "r": 2, "target_modules": "all-linear"}
            ).encode(),
        },
        "train_config": {"all": json.dumps(LlmTrainingConfig().to_dict()).encode()},
        "manifest": {
            "rows": json.dumps(
                {
                    "schema": "abi_train/token-bin/1",
                    "count": 600,
                    "rows": 50,
                    "mask": "rows.mask",
                    "idx": "rows.idx",
                }
            ).encode()
        },
        "tokenizer": tokenizers(folder / "made"),
        "jsonl": rows(),
        "chat": chats(),
        "template": {name: format_info(name).jinja.encode() for name in FORMATS},
        "ablc": {
            "ablc": struct.pack("<4sHQIQQIII", b"ABLC", 1, 7, 1, 9, 0, 4, 4, 4) + bytes(48),
            "abic": struct.pack("<4sHQQI", b"ABIC", 1, 7, 0, 4) + bytes(16),
        },
    }
    folders = {}
    for target, files in encoded.items():
        place = folder / "seeds" / target
        place.mkdir(parents=True, exist_ok=True)
        for name, raw in files.items():
            (place / name).write_bytes(raw)
        folders[target] = place
    return folders
