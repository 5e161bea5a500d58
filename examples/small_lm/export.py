"""Write a trained model in the Hugging Face format, as a Llama checkpoint."""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from small_lm.corpus import BOS, EOS

from motes.lm_bridge.config import TransformerConfig
from motes.lm_bridge.layers import Block
from motes.lm_bridge.tokenizer import Tokenizer
from motes.lm_bridge.transformer import Transformer

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
)
"""The model knows no roles: a question goes on a line of its own."""


def write(folder: Path, model: Transformer, tokenizer: Path) -> None:
    """Write configuration, weights and tokenizer; 13 MB for 3.2 million parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    tokens = {
        "bos_token": BOS,
        "eos_token": EOS,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", tokens)
    spelled = Tokenizer(tokenizer, tokens)
    ids = {"bos_token_id": spelled.bos_id, "eos_token_id": spelled.eos_ids[0]}
    _write_json(folder / "config.json", hf_config(model.config) | ids)
    save_file(tensors(model), folder / "model.safetensors", metadata={"format": "pt"})


def hf_config(config: TransformerConfig) -> dict:
    """Return the configuration in the words of `transformers`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope.theta,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": config.activation,
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
    }


def tensors(model: Transformer) -> dict[str, np.ndarray]:
    """Return the weights under their Hugging Face names, (outputs, inputs)."""
    named = {
        "model.embed_tokens.weight": model.embedding,
        "model.norm.weight": model.final_norm.scale,
    }
    for i, block in enumerate(model.blocks):
        for name, value in _block_tensors(model.config, block).items():
            named[f"model.layers.{i}.{name}.weight"] = value
    return {name: np.ascontiguousarray(value) for name, value in named.items()}


def _block_tensors(config: TransformerConfig, block: Block) -> dict[str, np.ndarray]:
    query_size, key_size, _ = config.qkv_sizes
    splits = [query_size, query_size + key_size]
    query, key, value = np.split(np.asarray(block.qkv.weight).T, splits)
    gate, up = np.split(np.asarray(block.up.weight).T, 2)
    return {
        "input_layernorm": block.attention_norm.scale,
        "self_attn.q_proj": query,
        "self_attn.k_proj": key,
        "self_attn.v_proj": value,
        "self_attn.o_proj": block.output.weight.T,
        "post_attention_layernorm": block.mlp_norm.scale,
        "mlp.gate_proj": gate,
        "mlp.up_proj": up,
        "mlp.down_proj": block.down.weight.T,
    }


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
