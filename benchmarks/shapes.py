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
    # A gpt-oss of 9.2 million weights.
    "moe": {
        "model_type": "gpt_oss",
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": 128,
        "tie_word_embeddings": False,
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
    if sizes.get("model_type") == "gpt_oss":
        return _mixture_config(sizes)
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


def _mixture_config(sizes: dict[str, Any]) -> dict[str, Any]:
    kinds = ("sliding_attention", "full_attention")
    return {
        "architectures": ["GptOssForCausalLM"],
        "max_position_embeddings": 131072,
        "initial_context_length": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 4096,
            "truncate": False,
        },
        "layer_types": [kinds[layer % 2] for layer in range(sizes["num_hidden_layers"])],
        "attention_bias": True,
        "swiglu_limit": 7.0,
        "router_aux_loss_coef": 0.0,
        "output_router_logits": False,
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
    if experts := c.get("num_local_experts", 0):
        wide = heads * c["head_dim"]
        layer = attention + wide + 2 * kv * c["head_dim"] + hidden + heads + 2 * hidden
        layer += experts * (hidden + 1)
        layer += experts * (
            3 * hidden * c["intermediate_size"] + 2 * c["intermediate_size"] + hidden
        )
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
    if experts := c.get("num_local_experts", 0):
        idle = experts - c["num_experts_per_tok"]  # of a token
        weights -= layers * idle * 3 * c["hidden_size"] * c["intermediate_size"]
        weights -= c["vocab_size"] * c["hidden_size"]  # untied: the embedding is no product
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
    if "num_local_experts" in c:
        options |= {
            "head-dim": "head_dim",
            "experts": "num_local_experts",
            "chosen": "num_experts_per_tok",
            "window": "sliding_window",
        }
    return [word for flag, key in options.items() for word in (f"--{flag}", str(c[key]))]
