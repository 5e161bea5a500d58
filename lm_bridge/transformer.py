r"""A decoder-only transformer: Llama, Qwen, Mistral, SmolLM, Gemma and GPT-2 in one.

`logits` reads whole texts; `read_prompt` also returns what `cache.decode_step` needs to
go on token by token. Layers are a tuple, unrolled by the compiler, or one block with a
leading layer axis, scanned: `stack_layers` and `unstack_layers` convert.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from motes.lm_bridge.attention import FULL, attend_causal
from motes.lm_bridge.config import TransformerConfig
from motes.lm_bridge.layers import (
    Block,
    Linear,
    Norm,
    feed_forward,
    head_norm,
    init_block,
    init_norm,
    split_heads,
)
from motes.lm_bridge.rope import rotate, sines


class Transformer(eqx.Module):
    """The parameters of a decoder-only transformer.

    Attributes:
        config: Its shape; static.
        embedding: One row for each token id.
        positions: One row for each position, where positions are learned.
        blocks: The layers: a tuple, or one block with a leading layer axis.
        final_norm: Norm before the head.
        head: The head; `None` where the embedding serves.
    """

    config: TransformerConfig = eqx.field(static=True)
    embedding: Float[Array, "V E"]
    positions: Float[Array, "M E"] | None
    blocks: tuple[Block, ...] | Block
    final_norm: Norm
    head: Linear | None


def init(key: Key[Array, ""], config: TransformerConfig) -> Transformer:
    """Draw the parameters of a new model, in float32."""
    embed_key, position_key, head_key, block_key = jax.random.split(key, 4)

    def table(key: Array, *shape: int) -> Array:
        return 0.02 * jax.random.normal(key, shape, jnp.float32)

    head = None
    if config.head != "lm" or not config.tied:
        bias = jnp.zeros(config.num_outputs, jnp.float32)
        weight = table(head_key, config.hidden_size, config.num_outputs)
        head = Linear(weight, bias if config.head_bias else None)
    learned = config.rope is None
    position_shape = (config.max_positions, config.hidden_size)
    return Transformer(
        config=config,
        embedding=table(embed_key, config.vocab_size, config.hidden_size),
        positions=table(position_key, *position_shape) if learned else None,
        blocks=tuple(
            init_block(k, config)
            for k in jax.random.split(block_key, config.num_layers)
        ),
        final_norm=init_norm(config, config.hidden_size),
        head=head,
    )


def stack_layers(model: Transformer) -> Transformer:
    """Return the model with one stacked block, which `lax.scan` runs: fast to compile."""
    if not isinstance(model.blocks, tuple):
        return model
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *model.blocks)
    return eqx.tree_at(lambda m: m.blocks, model, stacked)


def unstack_layers(model: Transformer) -> Transformer:
    """Return the model with a tuple of blocks, which run unrolled: fast on CPU."""
    if isinstance(model.blocks, tuple):
        return model
    blocks = tuple(
        jax.tree.map(lambda leaf: leaf[i], model.blocks)  # noqa: B023
        for i in range(model.config.num_layers)
    )
    return eqx.tree_at(lambda m: m.blocks, model, blocks)


def over_layers(
    body: Callable[..., tuple[Any, Any]], model: Transformer, x: Any, *layers: Any
) -> tuple[Any, Any]:
    """Run `body(x, block, kind, *layers) -> (x, y)` through the model's layers.

    Each of `layers` and the result `y` is a tuple with an entry for each layer where
    the blocks are one, else a pytree with a leading layer axis.
    """
    config = model.config
    windows = [w or FULL for w in config.windows or (None,) * config.num_layers]
    rotates = list(config.rope_layers or (True,) * config.num_layers)
    if not isinstance(model.blocks, tuple):
        kinds = (jnp.asarray(windows, jnp.int32), jnp.asarray(rotates))
        return lax.scan(lambda x, xs: body(x, *xs), x, (model.blocks, kinds, *layers))
    kinds = list(zip(windows, rotates, strict=True))
    ys = []
    for xs in zip(model.blocks, kinds, *layers, strict=True):
        x, y = body(x, *xs)
        ys.append(y)
    return x, tuple(ys)


def embed(
    model: Transformer, tokens: Int[Array, "*B"], positions: Int[Array, "*B"]
) -> Float[Array, "*B E"]:
    """Return the first layer's input."""
    x = model.embedding[tokens]
    if model.config.embed_scale != 1.0:
        x = x * jnp.asarray(model.config.embed_scale, x.dtype)
    return x if model.positions is None else x + model.positions[positions]


def project(
    model: Transformer,
    block: Block,
    rotates: bool | Array,
    x: Float[Array, "*B E"],
    angles: tuple[Array, Array] | None,
) -> tuple[Array, Array, Array]:
    """Return heads of query, key and value, with their positions turned in."""
    config = model.config
    qkv = block.qkv(block.attention_norm(config, x))
    query, key, value = split_heads(config, qkv)
    query = head_norm(config, block.query_norm, query)
    key = head_norm(config, block.key_norm, key)
    if angles is None or rotates is False:
        return query, key, value
    # Side by side, query and key turn in one pass over memory.
    heads = jnp.concatenate([query, key], axis=-2)
    turned = rotate(heads, *angles)
    # A layer of a stacked model learns only at run time whether it turns.
    heads = (
        turned if rotates is True else jnp.where(jnp.asarray(rotates), turned, heads)
    )
    query, key = jnp.split(heads, [config.num_heads], axis=-2)
    return query, key, value


def finish_block(
    config: TransformerConfig, block: Block, x: Array, attended: Array
) -> Array:
    """Add attention's output and the feed-forward layer's to the residual stream."""
    x = x + block.output(attended)
    return x + feed_forward(config, block, block.mlp_norm(config, x))


def angle_table(model: Transformer, reach: int) -> tuple[Array, Array] | None:
    """Return cosine and sine at positions below `reach`; `None` if those are learned."""
    config = model.config
    return config.rope and sines(config.rope, config.head_dim, jnp.arange(reach))


def forward(
    model: Transformer, tokens: Int[Array, "B T"]
) -> tuple[Float[Array, "B T E"], Any]:
    """Read whole texts; return the normed last layer, and all keys and values."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None, :], tokens.shape)
    angles = jax.tree.map(lambda t: t[positions], angle_table(model, tokens.shape[1]))

    def body(x: Array, block: Block, kind: Any) -> Any:
        window, rotates = kind
        query, key, value = project(model, block, rotates, x, angles)
        key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
        attended = attend_causal(query, key, value, window)
        return finish_block(model.config, block, x, attended), (key, value)

    x, layers = over_layers(body, model, embed(model, tokens, positions))
    return model.final_norm(model.config, x), layers


def apply_head(
    model: Transformer, hidden: Float[Array, "*B E"]
) -> Float[Array, "*B O"]:
    """Return the head's outputs, in float32."""
    if model.head is None:
        return jnp.einsum("...e,ve->...v", hidden, model.embedding).astype(jnp.float32)
    return model.head(hidden).astype(jnp.float32)


def logits(model: Transformer, tokens: Int[Array, "B T"]) -> Float[Array, "B T O"]:
    """Return the head's output at every position, from that token and those before.

    A language model gives the logits of the next token, a token classifier those of
    the labels. Texts of unequal length are padded on the right with any token: what
    follows a position does not change its output.
    """
    return apply_head(model, forward(model, tokens)[0])


def sequence_logits(
    model: Transformer, tokens: Int[Array, "B T"], lengths: Int[Array, " B"]
) -> Float[Array, "B O"]:
    """Return the head's output at the last of each text's first `lengths` tokens.

    For a sequence classifier these are the logits of its labels, or its reward.
    """
    hidden, _ = forward(model, tokens)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    return apply_head(model, last[:, 0])
