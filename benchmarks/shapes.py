"""Model shapes the benchmarks train. Tied unless said otherwise, random initialisation."""

from __future__ import annotations

from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    # For the tests: finishes in a second.
    "tiny": {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "4m": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    # SmolLM2-135M's shape.
    "135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "174m": {
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    # TinyLlama-1.1B's shape.
    "1b": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}


def model_config(shape: str, vocab_size: int = 0) -> dict[str, Any]:
    """`config.json` of a shape, as a dictionary. vocab_size: another one; 0: the shape's."""
    sizes = {**SHAPES[shape], **({"vocab_size": vocab_size} if vocab_size else {})}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": sizes["hidden_size"] // sizes["num_attention_heads"],
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **sizes,
    }


def parameter_count(shape: str, vocab_size: int = 0) -> int:
    """Number of weights, a tied embedding counted once."""
    c = model_config(shape, vocab_size)
    hidden, heads, kv = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"]
    attention = hidden * c["head_dim"] * (2 * heads + 2 * kv)
    layer = attention + 3 * hidden * c["intermediate_size"] + 2 * hidden
    embeddings = (1 if c["tie_word_embeddings"] else 2) * c["vocab_size"] * hidden
    return int(embeddings + c["num_hidden_layers"] * layer + hidden)


def step_gflop(shape: str, batch: int, length: int) -> float:
    """Operations of matrix products that one step cannot do without, in 10^9.

    Six a weight and token (a tied embedding counts once, as the head), and attention over the
    visible half of its scores: two products forward, five back. Norms are no products. What is
    computed a second time to save memory does not count.
    """
    c = model_config(shape)
    layers, tokens = c["num_hidden_layers"], batch * length
    weights = parameter_count(shape) - (2 * layers + 1) * c["hidden_size"]
    seen = batch * length * (length + 1) / 2
    attention = 14 * seen * c["num_attention_heads"] * c["head_dim"] * layers
    return float(6 * weights * tokens + attention) * 1e-9


def bench_arguments(shape: str, vocab_size: int = 0) -> list[str]:
    """The shape as options of the Zig benchmark `step`."""
    c = model_config(shape, vocab_size)
    options = {
        "vocab": "vocab_size",
        "hidden": "hidden_size",
        "intermediate": "intermediate_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv-heads": "num_key_value_heads",
    }
    return [word for flag, key in options.items() for word in (f"--{flag}", str(c[key]))]
