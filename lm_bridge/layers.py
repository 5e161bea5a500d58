r"""The parts of a transformer block: linear maps, norms and the feed-forward layer.

A block is $x \leftarrow x + A(\mathrm{norm}(x))$, $x \leftarrow x + F(\mathrm{norm}(x))$
with attention $A$ and feed-forward layer $F$. Weights are stored (inputs, outputs),
query, key and value side by side, gate and up side by side: a block is four products.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from motes.lm_bridge.config import TransformerConfig

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
}


class Linear(eqx.Module):
    """An affine map; `*L` is the axis of stacked layers, if there is one."""

    weight: Float[Array, "*L I O"]
    bias: Float[Array, "*L O"] | None = None

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """Apply the map to the last axis."""
        y = x @ self.weight
        return y if self.bias is None else y + jnp.broadcast_to(self.bias, y.shape)


class Norm(eqx.Module):
    """Scale, and bias where the norm takes the mean away too."""

    scale: Float[Array, "*L D"]
    bias: Float[Array, "*L D"] | None = None

    def __call__(
        self, config: TransformerConfig, x: Float[Array, "*B D"]
    ) -> Float[Array, "*B D"]:
        """Normalize the last axis, in float32."""
        y = x.astype(jnp.float32)
        if config.norm == "layer":
            y = y - y.mean(-1, keepdims=True)
        y = y * lax.rsqrt((y * y).mean(-1, keepdims=True) + config.norm_eps)
        scale = self.scale.astype(jnp.float32) + config.norm_offset
        y = y * jnp.broadcast_to(scale, y.shape)
        if self.bias is not None:
            y = y + jnp.broadcast_to(self.bias.astype(jnp.float32), y.shape)
        return y.astype(x.dtype)


class Block(eqx.Module):
    """One layer's parameters."""

    attention_norm: Norm
    qkv: Linear
    query_norm: Norm | None
    key_norm: Norm | None
    output: Linear
    mlp_norm: Norm
    up: Linear
    down: Linear


def head_norm(config: TransformerConfig, norm: Norm | None, x: Array) -> Array:
    """Normalize each head of query or key, where the architecture does."""
    return x if norm is None else norm(config, x)


def split_heads(
    config: TransformerConfig, qkv: Float[Array, "*B W"]
) -> tuple[Float[Array, "*B H D"], Float[Array, "*B K D"], Float[Array, "*B K D"]]:
    """Split the fused projection into heads of query, key and value."""
    heads = qkv.reshape(*qkv.shape[:-1], -1, config.head_dim)
    first_value = config.num_heads + config.num_kv_heads
    query, key, value = jnp.split(heads, [config.num_heads, first_value], axis=-2)
    return query, key, value


def feed_forward(
    config: TransformerConfig, block: Block, x: Float[Array, "*B E"]
) -> Float[Array, "*B E"]:
    """Apply the feed-forward layer of `block`."""
    hidden = block.up(x)
    activate = ACTIVATIONS[config.activation]
    if config.gated:
        gate, hidden = jnp.split(hidden, 2, axis=-1)
        return block.down(activate(gate) * hidden)
    return block.down(activate(hidden))


def init_block(key: Key[Array, ""], config: TransformerConfig) -> Block:
    """Draw a layer: N(0, 0.02), with outputs divided by the root of their number."""
    keys = iter(jax.random.split(key, 4))
    width, hidden = config.hidden_size, config.intermediate_size
    query_size, key_size, value_size = config.qkv_sizes
    output_scale = 0.02 / (2 * config.num_layers) ** 0.5

    def linear(inputs: int, outputs: int, bias: bool, scale: float = 0.02) -> Linear:
        weight = scale * jax.random.normal(next(keys), (inputs, outputs), jnp.float32)
        return Linear(weight, jnp.zeros(outputs, jnp.float32) if bias else None)

    return Block(
        attention_norm=init_norm(config, width),
        qkv=linear(width, query_size + key_size + value_size, config.qkv_bias),
        query_norm=init_norm(config, config.head_dim) if config.qk_norm else None,
        key_norm=init_norm(config, config.head_dim) if config.qk_norm else None,
        output=linear(query_size, width, config.output_bias, output_scale),
        mlp_norm=init_norm(config, width),
        up=linear(width, hidden * (1 + config.gated), config.mlp_bias),
        down=linear(hidden, width, config.mlp_bias, output_scale),
    )


def init_norm(config: TransformerConfig, width: int) -> Norm:
    """Return a norm that changes nothing but the size."""
    scale = jnp.full(width, 1.0 - config.norm_offset, jnp.float32)
    has_bias = config.norm == "layer"
    return Norm(scale, jnp.zeros(width, jnp.float32) if has_bias else None)
