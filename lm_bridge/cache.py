r"""The memory of a decode: a prompt stored once, and a suffix for each particle.

In each layer a step writes the new token's keys and values behind the suffix, then
attends to prompt and suffix in one softmax. A suffix lies in pages of which only those
in use are read. Read `pages.py` for what resampling does to them.
"""

from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from motes.lm_bridge.attention import Stretch, attend_stretches
from motes.lm_bridge.pages import page_sizes, settle, write
from motes.lm_bridge.transformer import (
    Block,
    Transformer,
    angle_table,
    apply_head,
    embed,
    finish_block,
    forward,
    over_layers,
    project,
)


class PromptCache(NamedTuple):
    """What the model keeps of $P$ prompts, padded on the right to one length.

    Attributes:
        layers: Keys and values of each layer, `(P, heads, length, head_dim)`.
        lengths: Number of tokens of each prompt.
        hidden: Last layer at the last token of each.
    """

    layers: Any
    lengths: Int[Array, " P"]
    hidden: Float[Array, "P E"]


class DecodeState(NamedTuple):
    """The state of $N$ particles in $P$ blocks, one for each prompt.

    Attributes:
        prompt: Shared by the particles of a block; resampling never touches it.
        layers: Keys and values of each layer, each in pages `(N, heads, size, head_dim)`.
        rows: The row of the pages that each particle continues.
        shared: Whether particles may share rows, as after resampling.
        lengths: Number of tokens after the prompt; the suffix beyond is garbage.
        hidden: Last layer at the last token.
        angles: Cosine and sine at every position that a text may reach, or None: XLA would
            compute them for each head of each layer anew.
    """

    prompt: PromptCache
    layers: Any
    rows: Int[Array, " N"]
    shared: Bool[Array, ""]
    lengths: Int[Array, " N"]
    hidden: Float[Array, "N E"]
    angles: tuple[Float[Array, "M R"], Float[Array, "M R"]] | None


def read_prompt(
    model: Transformer, tokens: Int[Array, "P T"], lengths: Int[Array, " P"]
) -> PromptCache:
    """Read prompts, padded on the right with any token, in one pass."""
    hidden, layers = forward(model, tokens)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    return PromptCache(layers, lengths.astype(jnp.int32), last[:, 0])


def init_decode(
    model: Transformer, prompt: PromptCache, num_particles: int, max_tokens: int
) -> DecodeState:
    """Return `num_particles` empty suffixes for each prompt."""
    config, dtype = model.config, model.embedding.dtype
    num_lanes = prompt.lengths.shape[0] * num_particles
    blocks = model.blocks if isinstance(model.blocks, tuple) else None
    leading = (num_lanes,) if blocks else (config.num_layers, num_lanes)
    prompt_size = jax.tree.leaves(prompt.layers)[0].shape[-2]

    def pages() -> tuple[Array, ...]:
        heads, sizes = config.num_kv_heads, page_sizes(max_tokens)
        shapes = [(*leading, heads, size, config.head_dim) for size in sizes]
        return tuple(jnp.zeros(shape, dtype) for shape in shapes)

    return DecodeState(
        prompt,
        tuple((pages(), pages()) for _ in blocks) if blocks else (pages(), pages()),
        jnp.arange(num_lanes, dtype=jnp.int32),
        jnp.zeros((), bool),
        jnp.zeros(num_lanes, jnp.int32),
        jnp.repeat(prompt.hidden, num_particles, axis=0),
        angle_table(model, prompt_size + max_tokens),
    )


def next_log_probs(model: Transformer, state: DecodeState) -> Float[Array, "N V"]:
    """Return the log-probabilities of the next token, in nats."""
    return jax.nn.log_softmax(apply_head(model, state.hidden))


def decode_step(
    model: Transformer,
    state: DecodeState,
    tokens: Int[Array, " N"],
    active: Bool[Array, " N"],
) -> DecodeState:
    """Append a token to each active particle; one forward pass for all.

    A particle that grows beyond `max_tokens` gets NaN as its log-probabilities.
    """
    layers, rows = settle(state.layers, state.rows, state.shared)
    particle = (
        jnp.zeros_like(rows).at[rows].set(jnp.arange(len(rows), dtype=rows.dtype))
    )
    hidden, layers = _forward(
        model,
        state.prompt,
        layers,
        state.lengths[particle],
        tokens[particle],
        active[particle],
        state.angles,
    )
    grown = state.lengths + active
    hidden = jnp.where((grown <= _starts(layers)[-1])[:, None], hidden[rows], jnp.nan)
    hidden = jnp.where(active[:, None], hidden, state.hidden)
    return state._replace(
        layers=layers,
        rows=rows,
        shared=jnp.zeros((), bool),
        lengths=grown,
        hidden=hidden,
    )


def gather(state: DecodeState, ancestors: Int[Array, " N"]) -> DecodeState:
    """Return the state whose particle `n` is a copy of particle `ancestors[n]`.

    Nothing is moved, unless the number of particles changes, as in an enumeration.
    """
    rows, layers, shared = state.rows[ancestors], state.layers, True
    if rows.shape != state.rows.shape:
        layers = jax.tree.map(lambda page: jnp.take(page, rows, axis=-4), layers)
        rows, shared = jnp.arange(rows.shape[0], dtype=rows.dtype), False
    return state._replace(
        layers=layers,
        rows=rows,
        shared=jnp.asarray(shared),
        lengths=state.lengths[ancestors],
        hidden=state.hidden[ancestors],
    )


def _forward(
    model: Transformer,
    prompt: PromptCache,
    layers: Any,
    lengths: Int[Array, " N"],
    tokens: Int[Array, " N"],
    active: Bool[Array, " N"],
    angles: Any,
) -> tuple[Float[Array, "N E"], Any]:
    """Read one token for each row of the pages; return the last layer, and the pages."""
    starts = _starts(layers)
    slots = jnp.where(active, lengths, starts[-1])
    in_use = jnp.sum(
        jnp.max(lengths, initial=0) >= jnp.asarray(starts[1:-1], jnp.int32)
    )
    blocks = (prompt.lengths.shape[0], -1)
    tokens, lengths = tokens.reshape(blocks), lengths.reshape(blocks)
    positions = prompt.lengths[:, None] + lengths
    angles = jax.tree.map(lambda table: table[positions], angles)

    def body(x: Array, block: Block, kind: Any, shared: Any, suffix: Any) -> Any:
        window, rotates = kind
        query, *new = project(model, block, rotates, x, angles)
        # Writing before reading lets XLA update the cache in place.
        suffix = tuple(map(partial(_write, starts, slots), suffix, new))
        stretches = [_prompt_stretch(shared, prompt.lengths, positions, window)]
        for start, *page in zip(starts, *suffix, strict=False):
            stretches.append(_suffix_stretch(page, lengths - start, window))
        branches = [
            partial(attend_stretches, query, stretches[: n + 1])
            for n in range(1, len(stretches))
        ]
        attended = lax.switch(in_use, branches)
        return finish_block(model.config, block, x, attended), suffix

    x = embed(model, tokens, positions)
    x, layers = over_layers(body, model, x, prompt.layers, layers)
    hidden = model.final_norm(model.config, x)
    return hidden.reshape(slots.shape[0], -1), layers


def _starts(layers: Any) -> list[int]:
    """Return the position of each page's first token, then the number of all."""
    keys = layers[0] if isinstance(layers[0][0], jax.Array) else layers[0][0]
    return [0, *accumulate(page.shape[-2] for page in keys)]


def _write(
    starts: list[int], slots: Int[Array, " N"], pages: tuple[Array, ...], new: Array
) -> tuple[Array, ...]:
    """Write each row's new key or value into the page that has its slot."""
    rows = new.reshape(slots.shape[0], *new.shape[2:])
    return tuple(
        write(page, rows, slots - start)
        for page, start in zip(pages, starts, strict=False)
    )


def _prompt_stretch(
    layer: Any, prompt_lengths: Array, positions: Int[Array, "P n"], window: Any
) -> Stretch:
    """Return the shared stretch, which each particle sees through its own window."""
    keys, values = layer
    slot = jnp.arange(keys.shape[2])[None, None, :]
    mask = slot < prompt_lengths[:, None, None]
    return Stretch(keys, values, mask & (positions[:, :, None] - slot < window))


def _suffix_stretch(page: Any, lengths: Int[Array, "P n"], window: Any) -> Stretch:
    """Return a page of the particles' own stretches."""
    keys, values = (leaf.reshape(*lengths.shape, *leaf.shape[1:]) for leaf in page)
    distance = lengths[:, :, None] - jnp.arange(keys.shape[3])[None, None, :]
    return Stretch(keys, values, (distance >= 0) & (distance < window))
