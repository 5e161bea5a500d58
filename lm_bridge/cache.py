r"""The memory of a decode: a prompt stored once, and a suffix for each particle.

In each layer a step writes the new token's keys and values behind the suffix, then
attends to prompt and suffix in one softmax. The suffix is read only up to the shortest
of a few static lengths that covers all of it.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from motes.lm_bridge.attention import Stretch, attend_stretches
from motes.lm_bridge.transformer import (
    Block,
    Transformer,
    angles_at,
    apply_head,
    embed,
    finish_block,
    forward,
    over_layers,
    project,
)

MIN_BUCKET = 32
"""The shortest length of suffix that a step reads."""


class PromptCache(NamedTuple):
    """What the model keeps of $P$ prompts, padded on the right to one length.

    Attributes:
        layers: Keys and values of each layer, `(P, heads, length, head_dim)`.
        lengths: Number of tokens of each prompt.
        log_probs: Log-probabilities of the token after each prompt, in nats.
    """

    layers: Any
    lengths: Int[Array, " P"]
    log_probs: Float[Array, "P V"]


class DecodeState(NamedTuple):
    """The state of $N$ particles in $P$ blocks, one for each prompt.

    Attributes:
        prompt: Shared by the particles of a block; resampling never touches it.
        layers: Keys and values of each layer, `(N, heads, max_tokens, head_dim)`.
        lengths: Number of tokens after the prompt; the suffix beyond is garbage.
        log_probs: Log-probabilities of the next token, in nats.
    """

    prompt: PromptCache
    layers: Any
    lengths: Int[Array, " N"]
    log_probs: Float[Array, "N V"]


def read_prompt(
    model: Transformer, tokens: Int[Array, "P T"], lengths: Int[Array, " P"]
) -> PromptCache:
    """Read prompts, padded on the right with any token, in one pass."""
    hidden, layers = forward(model, tokens)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    log_probs = jax.nn.log_softmax(apply_head(model, last[:, 0]))
    return PromptCache(layers, lengths.astype(jnp.int32), log_probs)


def init_decode(
    model: Transformer, prompt: PromptCache, num_particles: int, max_tokens: int
) -> DecodeState:
    """Return `num_particles` empty suffixes for each prompt."""
    config, dtype = model.config, model.embedding.dtype
    num_lanes = prompt.lengths.shape[0] * num_particles
    shape = (num_lanes, config.num_kv_heads, max_tokens, config.head_dim)
    if isinstance(model.blocks, tuple):
        layers = tuple(
            (jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in model.blocks
        )
    else:
        stacked = (config.num_layers, *shape)
        layers = (jnp.zeros(stacked, dtype), jnp.zeros(stacked, dtype))
    lengths = jnp.zeros(num_lanes, jnp.int32)
    log_probs = jnp.repeat(prompt.log_probs, num_particles, axis=0)
    return DecodeState(prompt, layers, lengths, log_probs)


def decode_step(
    model: Transformer,
    state: DecodeState,
    tokens: Int[Array, " N"],
    active: Bool[Array, " N"],
) -> DecodeState:
    """Append a token to each active particle; one forward pass for all.

    A particle that grows beyond `max_tokens` gets NaN as its log-probabilities.
    """
    num_prompts, num_lanes = state.prompt.lengths.shape[0], tokens.shape[0]
    block_shape = (num_prompts, num_lanes // num_prompts)
    positions = jnp.repeat(state.prompt.lengths, block_shape[1]) + state.lengths
    positions = positions.reshape(block_shape)
    lengths = state.lengths.reshape(block_shape)
    angles = angles_at(model, positions)
    max_tokens = suffix_slots(state)
    bucket = bucket_index(jnp.max(state.lengths, initial=0) + 1, max_tokens)
    slots = jnp.where(active, state.lengths, max_tokens)

    def body(x: Array, block: Block, kind: Any, prompt: Any, suffix: Any) -> Any:
        window, rotates = kind
        query, key, value = project(model, block, rotates, x, angles)
        # Writing before reading lets XLA update the cache in place.
        suffix = (_write(suffix[0], key, slots), _write(suffix[1], value, slots))

        def attend(size: int) -> Array:
            own = _suffix_stretch(suffix, lengths, window, size)
            shared = _prompt_stretch(prompt, state.prompt.lengths, positions, window)
            return attend_stretches(query, [shared, own])

        branches = [partial(attend, size) for size in bucket_sizes(max_tokens)]
        attended = lax.switch(bucket, branches)
        return finish_block(model.config, block, x, attended), suffix

    x = embed(model, tokens.reshape(block_shape), positions)
    x, layers = over_layers(body, model, x, state.prompt.layers, state.layers)
    hidden = model.final_norm(model.config, x).reshape(num_lanes, -1)
    log_probs = jax.nn.log_softmax(apply_head(model, hidden))
    grown = state.lengths + active
    log_probs = jnp.where((grown <= max_tokens)[:, None], log_probs, jnp.nan)
    return DecodeState(
        prompt=state.prompt,
        layers=layers,
        lengths=grown,
        log_probs=jnp.where(active[:, None], log_probs, state.log_probs),
    )


def gather(state: DecodeState, ancestors: Int[Array, " N"]) -> DecodeState:
    """Return the state whose particle `n` is a copy of particle `ancestors[n]`."""

    def take(leaf: Array, axis: int = 0) -> Array:
        return jnp.take(leaf, ancestors, axis=axis, mode="clip")

    # The particles are the first axis but for that of stacked layers.
    return DecodeState(
        prompt=state.prompt,
        layers=jax.tree.map(lambda leaf: take(leaf, leaf.ndim - 4), state.layers),
        lengths=take(state.lengths),
        log_probs=take(state.log_probs),
    )


def bucket_sizes(max_tokens: int) -> list[int]:
    """Return the lengths of suffix that a step may read: doubling, then all."""
    sizes = [MIN_BUCKET]
    while sizes[-1] < max_tokens:
        sizes.append(2 * sizes[-1])
    return [*sizes[:-1], max_tokens]


def bucket_index(length: Int[Array, ""], max_tokens: int) -> Int[Array, ""]:
    """Return the first of `bucket_sizes` that covers `length` tokens."""
    sizes = jnp.asarray(bucket_sizes(max_tokens)[:-1], jnp.int32)
    return jnp.sum(length > sizes, dtype=jnp.int32)


def suffix_slots(state: DecodeState) -> int:
    """Return the number of tokens that the suffix has room for."""
    return jax.tree.leaves(state.layers)[0].shape[-2]


def _prompt_stretch(
    layer: Any, prompt_lengths: Array, positions: Int[Array, "P n"], window: Any
) -> Stretch:
    """Return the shared stretch, which each particle sees through its own window."""
    keys, values = layer
    slot = jnp.arange(keys.shape[2])[None, None, :]
    mask = slot < prompt_lengths[:, None, None]
    return Stretch(keys, values, mask & (positions[:, :, None] - slot < window))


def _suffix_stretch(
    layer: Any, lengths: Int[Array, "P n"], window: Any, size: int
) -> Stretch:
    """Return the first `size` slots of the particles' own stretches."""
    keys, values = (
        leaf[:, :, :size].reshape(*lengths.shape, leaf.shape[1], size, leaf.shape[3])
        for leaf in layer
    )
    distance = lengths[:, :, None] - jnp.arange(size)[None, None, :]
    return Stretch(keys, values, (distance >= 0) & (distance < window))


def _write(
    leaf: Float[Array, "N K T D"], new: Float[Array, "P n K D"], slots: Int[Array, " N"]
) -> Float[Array, "N K T D"]:
    """Write each particle's row at its own slot; a slot out of range writes nothing."""
    rows = new.reshape(leaf.shape[0], leaf.shape[1], leaf.shape[3])

    def write(own: Array, row: Array, slot: Array) -> Array:
        return own.at[:, slot].set(row, mode="drop")

    return jax.vmap(write)(leaf, rows, slots)
