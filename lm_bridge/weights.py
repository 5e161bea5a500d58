"""From named tensors to a `Transformer`.

`assemble` asks for each tensor by its Hugging Face name with the shape that the
configuration implies, turns it to (inputs, outputs) and puts neighbors side by side.
A tensor that is missing, of another shape, or left over is an error that names it.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from motes.lm_bridge.config import TransformerConfig
from motes.lm_bridge.layers import Block, Linear, Norm
from motes.lm_bridge.transformer import Transformer

IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Buffers that old checkpoints hold beside their weights."""


class Tensors:
    """Named tensors that remember which were used, and where they came from."""

    def __init__(
        self, tensors: Mapping[str, np.ndarray], source: str, dtype: DTypeLike | None
    ) -> None:
        self.tensors, self.source, self.dtype = tensors, source, dtype
        self.used: set[str] = set()

    def prefix(self, name: str) -> str:
        """Return `name` if tensors have it as their prefix, as all but bare models do."""
        return name if any(t.startswith(name) for t in self.tensors) else ""

    def __call__(self, name: str, *shape: int) -> np.ndarray:
        """Return the tensor `name`, which must have this shape."""
        if name not in self.tensors:
            raise ValueError(
                f"load_checkpoint: {self.source} must hold the tensor {name} of shape "
                f"{shape}, got no such tensor."
            )
        tensor = self.tensors[name]
        if tensor.shape != shape:
            raise ValueError(
                f"load_checkpoint: the tensor {name} must have shape {shape}, as "
                f"config.json implies, got {tensor.shape}, in {self.source}."
            )
        self.used.add(name)
        return tensor

    def array(self, tensor: np.ndarray) -> jnp.ndarray:
        """Return the tensor on the device, in the type that was asked for."""
        return jnp.asarray(tensor, self.dtype or tensor.dtype)

    def linear(
        self, name: str, inputs: int, sizes: dict[str, int], bias: bool
    ) -> Linear:
        """Return the maps `name.format(part)` for all parts, side by side."""
        pairs = [(name.format(part), size) for part, size in sizes.items()]
        weight = [self(f"{full}.weight", size, inputs).T for full, size in pairs]
        biases = [self(f"{full}.bias", size) for full, size in pairs if bias]
        return Linear(
            self.array(np.concatenate(weight, axis=1)),
            self.array(np.concatenate(biases)) if bias else None,
        )

    def conv1d(self, name: str, inputs: int, outputs: int) -> Linear:
        """Return one of GPT-2's maps, which are stored (inputs, outputs)."""
        weight = self(f"{name}.weight", inputs, outputs)
        return Linear(self.array(weight), self.array(self(f"{name}.bias", outputs)))

    def norm(self, name: str, width: int, bias: bool = False) -> Norm:
        """Return a norm."""
        scale = self.array(self(f"{name}.weight", width))
        return Norm(scale, self.array(self(f"{name}.bias", width)) if bias else None)

    def check_all_used(self) -> None:
        """Refuse tensors that the model has no place for."""
        left = set(self.tensors) - self.used - {"lm_head.weight"}
        left = sorted(name for name in left if not name.endswith(IGNORED))
        if left:
            raise ValueError(
                f"load_checkpoint: {self.source} must hold only the tensors of the "
                f"architecture in config.json, got {len(left)} others, such as {left[0]}."
            )


def assemble(config: TransformerConfig, tensors: Tensors) -> Transformer:
    """Return the transformer made of `tensors`."""
    gpt2 = config.rope is None
    prefix = tensors.prefix("transformer." if gpt2 else "model.")
    names = ("wte", "h", "ln_f") if gpt2 else ("embed_tokens", "layers", "norm")
    token, layer, final = (prefix + name for name in names)
    width, block = config.hidden_size, _gpt2_block if gpt2 else _llama_block
    positions = None
    if gpt2:
        table = tensors(f"{prefix}wpe.weight", config.max_positions, width)
        positions = tensors.array(table)
    model = Transformer(
        config=config,
        embedding=tensors.array(tensors(f"{token}.weight", config.vocab_size, width)),
        positions=positions,
        blocks=tuple(
            block(config, tensors, f"{layer}.{i}") for i in range(config.num_layers)
        ),
        final_norm=tensors.norm(final, width, gpt2),
        head=_head(config, tensors, gpt2),
    )
    tensors.check_all_used()
    return model


def _head(config: TransformerConfig, tensors: Tensors, gpt2: bool) -> Linear | None:
    width, outputs = config.hidden_size, {"": config.num_outputs}
    if config.head == "lm":
        return None if config.tied else tensors.linear("lm_head", width, outputs, False)
    name = "classifier" if gpt2 and config.head == "token" else "score"
    return tensors.linear(name, width, outputs, config.head_bias)


def _llama_block(config: TransformerConfig, tensors: Tensors, name: str) -> Block:
    width, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    attention, mlp = f"{name}.self_attn", f"{name}.mlp"
    qkv = dict(zip("qkv", config.qkv_sizes, strict=True))
    normed = config.qk_norm
    return Block(
        attention_norm=tensors.norm(f"{name}.input_layernorm", width),
        qkv=tensors.linear(attention + ".{}_proj", width, qkv, config.qkv_bias),
        query_norm=tensors.norm(f"{attention}.q_norm", dim) if normed else None,
        key_norm=tensors.norm(f"{attention}.k_norm", dim) if normed else None,
        output=tensors.linear(
            attention + ".{}_proj", qkv["q"], {"o": width}, config.output_bias
        ),
        mlp_norm=tensors.norm(f"{name}.post_attention_layernorm", width),
        up=tensors.linear(
            mlp + ".{}_proj", width, {"gate": inner, "up": inner}, config.mlp_bias
        ),
        down=tensors.linear(mlp + ".{}_proj", inner, {"down": width}, config.mlp_bias),
    )


def _gpt2_block(config: TransformerConfig, tensors: Tensors, name: str) -> Block:
    width, inner = config.hidden_size, config.intermediate_size
    return Block(
        attention_norm=tensors.norm(f"{name}.ln_1", width, bias=True),
        qkv=tensors.conv1d(f"{name}.attn.c_attn", width, 3 * width),
        query_norm=None,
        key_norm=None,
        output=tensors.conv1d(f"{name}.attn.c_proj", width, width),
        mlp_norm=tensors.norm(f"{name}.ln_2", width, bias=True),
        up=tensors.conv1d(f"{name}.mlp.c_fc", width, inner),
        down=tensors.conv1d(f"{name}.mlp.c_proj", inner, width),
    )
