"""Reading a Hugging Face `config.json`.

`read_config` turns the dictionary into a `TransformerConfig`, architecture by
architecture. What the transformer does not do is refused here, by name, before any
weight is read.
"""

from typing import Any

from motes.lm_bridge.config import TransformerConfig
from motes.lm_bridge.rope import Rope

HEADS = {
    "ForCausalLM": "lm",
    "LMHeadModel": "lm",
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
}
ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma")
SIZES = (
    *("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads"),
    *("head_dim", "intermediate_size", "max_positions"),
)
ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


def read_config(config: dict[str, Any]) -> TransformerConfig:
    """Return the transformer that a Hugging Face configuration describes.

    Raises:
        ValueError: If the architecture, or one of its settings, is not supported.
    """
    config = _Fields(config)
    kind = config.get("model_type")
    if "quantization_config" in config:
        raise _unsupported("quantization_config", "absent: weights in floating point")
    if kind == "gpt2":
        return _checked(_gpt2(config) | _head(config, bias_of="token"))
    if kind not in LLAMA_LIKE:
        raise ValueError(
            f"load_checkpoint: model_type must be one of "
            f"{', '.join(('gpt2', *LLAMA_LIKE))}, got {kind!r}."
        )
    return _checked(_llama_like(kind, config) | _head(config, "token"))


class _Fields(dict[str, Any]):
    """A configuration that says which field it lacks."""

    def __missing__(self, name: str) -> Any:
        raise ValueError(
            f"load_checkpoint: config.json must have the field {name}, got none."
        )


def _checked(fields: dict[str, Any]) -> TransformerConfig:
    """Return the configuration, unless its sizes make no transformer."""
    for name in SIZES:
        size = fields[name]
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(
                f"load_checkpoint: {name} of config.json must be a positive integer, got "
                f"{size!r}."
            )
    if fields["num_heads"] % fields["num_kv_heads"] != 0:
        raise ValueError(
            f"load_checkpoint: the number of key and value heads must divide that of "
            f"query heads, got {fields['num_kv_heads']} and {fields['num_heads']}."
        )
    for name in ("windows", "rope_layers"):
        layers = fields.get(name)
        if layers is not None and len(layers) != fields["num_layers"]:
            raise ValueError(
                f"load_checkpoint: {name} of config.json must say something of each of "
                f"{fields['num_layers']} layers, got {len(layers)}."
            )
    return TransformerConfig(**fields)


def _head(config: dict[str, Any], bias_of: str) -> dict[str, Any]:
    """Return the fields of the head, from the name of the architecture."""
    name = (config.get("architectures") or ["ForCausalLM"])[0]
    head = next((h for suffix, h in HEADS.items() if name.endswith(suffix)), None)
    if head is None:
        raise ValueError(
            f"load_checkpoint: architectures must end in one of {', '.join(HEADS)}, "
            f"got {name!r}."
        )
    if head == "lm":
        return {"head": head}
    labels = config.get("id2label")
    num_labels = len(labels) if labels else config.get("num_labels", 2)
    return {"head": head, "num_labels": num_labels, "head_bias": head == bias_of}


def _gpt2(config: dict[str, Any]) -> dict[str, Any]:
    if not config.get("scale_attn_weights", True):
        raise _unsupported("scale_attn_weights", "true")
    if config.get("scale_attn_by_inverse_layer_idx", False):
        raise _unsupported("scale_attn_by_inverse_layer_idx", "false")
    width, heads = config["n_embd"], config["n_head"]
    head_dim = _split(width, heads)
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": width,
        "num_layers": config["n_layer"],
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": head_dim,
        "intermediate_size": config.get("n_inner") or 4 * width,
        "max_positions": config["n_positions"],
        "rope": None,
        "norm": "layer",
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "activation": _activation(config.get("activation_function", "gelu_new")),
        "gated": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "tied": config.get("tie_word_embeddings", True),
    }


def _llama_like(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    heads, gemma = config["num_attention_heads"], kind == "gemma"
    head_dim = config.get("head_dim") or _split(config["hidden_size"], heads)
    activation = config.get("hidden_activation") or config.get("hidden_act", "silu")
    bias = bool(config.get("attention_bias", False))
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "intermediate_size": config["intermediate_size"],
        "max_positions": config["max_position_embeddings"],
        "rope": _rope(config),
        "rope_layers": _rope_layers(kind, config),
        "windows": _windows(kind, config),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "norm_offset": 1.0 if gemma else 0.0,
        # Gemma was trained with the tangent form, whatever `hidden_act` says.
        "activation": "gelu_tanh" if gemma else _activation(activation),
        "qkv_bias": kind == "qwen2" or bias,
        "output_bias": bias,
        "mlp_bias": bool(config.get("mlp_bias", False)),
        "qk_norm": kind == "qwen3",
        "embed_scale": config["hidden_size"] ** 0.5 if gemma else 1.0,
        "tied": config.get("tie_word_embeddings", kind in ("gemma", "smollm3")),
    }


def _rope(config: dict[str, Any]) -> Rope:
    """Return the rotary positions, as written before or since transformers 5."""
    given = {
        "rope_theta": config.get("rope_theta", 10_000.0),
        **(config.get("rope_scaling") or {}),
        **(config.get("rope_parameters") or {}),
    }
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise _unsupported(f"rope_type {kind!r}", f"one of {', '.join(ROPE_TYPES)}")
    if kind != "default" and "factor" not in given:
        raise ValueError(
            f"load_checkpoint: rotary positions of type {kind!r} must have a factor, got "
            "none in config.json."
        )
    for name in ("mscale", "mscale_all_dim"):
        if given.get(name) is not None:
            raise _unsupported(name, "absent")
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise _unsupported("partial_rotary_factor", "1")
    longest = config["max_position_embeddings"]
    original = given.get("original_max_position_embeddings") or longest
    names = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
    names = (*names, "attention_factor", "truncate")
    settings = {name: given[name] for name in names if given.get(name) is not None}
    return Rope(given["rope_theta"], kind, original_max_positions=original, **settings)


def _rope_layers(kind: str, config: dict[str, Any]) -> tuple[bool, ...] | None:
    """Return which layers rotate; SmolLM3 leaves every fourth without positions."""
    if kind != "smollm3":
        return None
    flags = config.get("no_rope_layers")
    interval = config.get("no_rope_layer_interval", 4)
    num_layers = config["num_hidden_layers"]
    flags = flags or [(i + 1) % interval != 0 for i in range(num_layers)]
    return tuple(bool(flag) for flag in flags)


def _windows(kind: str, config: dict[str, Any]) -> tuple[int | None, ...] | None:
    """Return each layer's sliding window."""
    window, num_layers = config.get("sliding_window"), config["num_hidden_layers"]
    if kind in ("llama", "gemma") or window is None:
        return None
    if kind == "mistral":
        return (window,) * num_layers
    if not config.get("use_sliding_window", False):
        return None
    first = config.get("max_window_layers", 0)
    default = ["full_attention"] * first + ["sliding_attention"] * (num_layers - first)
    kinds = config.get("layer_types") or default[:num_layers]
    return tuple(window if k == "sliding_attention" else None for k in kinds)


def _split(width: Any, heads: Any) -> int:
    """Return the width of a head, where the checkpoint does not say it."""
    whole = isinstance(width, int) and isinstance(heads, int) and heads > 0
    if not whole or width % heads != 0:
        raise ValueError(
            f"load_checkpoint: the width must be a multiple of the number of heads, got "
            f"{width!r} and {heads!r}."
        )
    return width // heads


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise _unsupported(f"activation {name!r}", f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _unsupported(setting: str, rule: str) -> ValueError:
    return ValueError(
        f"load_checkpoint: {setting} must be {rule}; it is not supported."
    )
