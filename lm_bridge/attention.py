r"""Attention over texts, and of one token over several stretches of cache.

Both compute $\mathrm{softmax}(q k^\top / \sqrt{d})\, v$ with heads of query grouped by
the head of key and value that they share. The stretches of a decode step, the shared
prompt, the particle's own suffix and the token itself, meet in one softmax.
"""

from functools import reduce
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

FULL = 2**30
"""A window longer than any text."""


class Stretch(NamedTuple):
    """Keys and values that the particles share, or own, and which may be read."""

    keys: Float[Array, "P K S D"] | Float[Array, "P N K S D"]
    values: Float[Array, "P K S D"] | Float[Array, "P N K S D"]
    mask: Bool[Array, "P N S"]


def group_heads(query: Float[Array, "*B H D"], num_kv_heads: int) -> Array:
    r"""Return the query with its heads grouped, scaled by $1/\sqrt{d}$."""
    *batch, heads, dim = query.shape
    grouped = query.reshape(*batch, num_kv_heads, heads // num_kv_heads, dim)
    return grouped * jnp.asarray(dim**-0.5, query.dtype)


def attend_causal(
    query: Float[Array, "B T H D"],
    keys: Float[Array, "B K T D"],
    values: Float[Array, "B K T D"],
    window: int | Int[Array, ""],
) -> Float[Array, "B T W"]:
    """Let each position attend to itself and to the `window - 1` before it."""
    grouped = group_heads(query, keys.shape[1])
    scores = jnp.einsum("btkgd,bksd->bkgts", grouped, keys)
    position = jnp.arange(query.shape[1])
    distance = position[:, None] - position[None, :]
    mask = (distance >= 0) & (distance < window)
    scores = jnp.where(
        jnp.broadcast_to(mask, scores.shape), scores.astype(jnp.float32), -jnp.inf
    )
    weights = jax.nn.softmax(scores).astype(values.dtype)
    out = jnp.einsum("bkgts,bksd->btkgd", weights, values)
    return out.reshape(*query.shape[:2], -1)


def attend_stretches(
    query: Float[Array, "P N H D"], stretches: list[Stretch]
) -> Float[Array, "P N W"]:
    """Let each particle's token attend to all unmasked slots of all stretches."""
    grouped = group_heads(query, stretches[0].keys.shape[-3])
    scores = jnp.concatenate([_scores(grouped, s) for s in stretches], axis=-1)
    mask = jnp.concatenate([stretch.mask for stretch in stretches], axis=-1)
    mask = jnp.broadcast_to(mask[:, :, None, None, :], scores.shape)
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
    ends = list(accumulate(stretch.mask.shape[-1] for stretch in stretches))
    parts = jnp.split(weights, ends[:-1], axis=-1)
    out = reduce(jnp.add, map(_mix, parts, stretches))
    return out.astype(query.dtype).reshape(*query.shape[:2], -1)


def _mix(weights: Float[Array, "P N K G S"], stretch: Stretch) -> Array:
    """Return the weighted sum of one stretch's values, in float32."""
    weights, values = weights.astype(stretch.values.dtype), stretch.values
    if values.ndim == 5:
        mixed = jnp.einsum("pnkgs,pnksd->pnkgd", weights, values)
    else:
        mixed = _over_heads(weights, values)
    return mixed.astype(jnp.float32)


def _scores(grouped: Float[Array, "P N K G D"], stretch: Stretch) -> Array:
    """Return the scores of one stretch, in float32."""
    if stretch.keys.ndim == 5:
        scores = jnp.einsum("pnkgd,pnksd->pnkgs", grouped, stretch.keys)
    else:
        scores = _over_heads(grouped, stretch.keys.swapaxes(-1, -2))
    return scores.astype(jnp.float32)


def _over_heads(
    rows: Float[Array, "P N K G A"], matrices: Float[Array, "P K A B"]
) -> Float[Array, "P N K G B"]:
    """Multiply the rows of all particles by the matrix of their prompt and head."""
    num, groups = rows.shape[1], rows.shape[3]
    stacked = rows.swapaxes(1, 2).reshape(*matrices.shape[:2], num * groups, -1)
    product = stacked @ matrices
    return product.reshape(*matrices.shape[:2], num, groups, -1).swapaxes(1, 2)
