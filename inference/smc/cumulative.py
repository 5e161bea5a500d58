"""From cumulative weights to ancestors, in linear time and without revived particles.

Sums in floating point that are made in parallel may fall, or rise at a weight of zero,
which would give offspring to dead particles. Read `resampling.py` for the schemes.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num


def from_cumulative(
    below: Int[Array, " N"], alive: Bool[Array, " N"], num_draws: int
) -> Int[Array, " M"]:
    """Turn the number of offspring of particles up to each into ancestors."""
    below = below.clip(0, num_draws)
    cpu, default = (partial(f, num_draws=num_draws) for f in (count, mark))
    return jax.lax.platform_dependent(below, alive, cpu=cpu, default=default)


def count(
    below: Int[Array, " N"], alive: Bool[Array, " N"], num_draws: int
) -> Int[Array, " M"]:
    """Count, for each slot, the particles that come before its own; best on a CPU."""
    slots = jnp.minimum(_count_below(below, num_draws), _last(alive))
    return slots.astype(jnp.int32)


def mark(
    below: Int[Array, " N"], alive: Bool[Array, " N"], num_draws: int
) -> Int[Array, " M"]:
    """Mark the first slot of each particle, and fill the others; for sums in parallel."""
    # Where sums are rounded one by one they may grow at a weight of zero: only live
    # particles are marked, and the one before takes what is left.
    starts = jnp.concatenate([jnp.zeros((1,), below.dtype), below[:-1]])
    where = jnp.where(alive & (starts < below), starts, num_draws)
    index = jnp.arange(below.shape[0], dtype=jnp.int32)
    marks = jnp.zeros((num_draws,), jnp.int32)
    return jax.lax.cummax(marks.at[where].max(index, mode="drop"))


def running_sum(values: Num[Array, " N"]) -> Num[Array, " N"]:
    """Return cumulative sums; on a CPU they never fall, and rest where a value is zero."""
    parallel = partial(jnp.cumsum, dtype=values.dtype)
    return jax.lax.platform_dependent(values, cpu=_sum_in_order, default=parallel)


def _sum_in_order(values: Array) -> Array:
    """Add one by one: blocks beside one another first, then what comes before each."""
    size = math.isqrt(max(values.shape[0] - 1, 0)) + 1
    blocks = jnp.pad(values, (0, size**2 - values.shape[0])).reshape(size, size)

    def add(total: Array, value: Array) -> tuple[Array, Array]:
        return total + value, total + value

    totals, sums = jax.lax.scan(add, jnp.zeros(size, values.dtype), blocks.T)
    zero = jnp.zeros((), values.dtype)
    _, ends = jax.lax.scan(add, zero, totals)
    before = jnp.concatenate([zero[None], ends[:-1]])
    return (before[:, None] + sums.T).reshape(-1)[: values.shape[0]]


def repeat(counts: Int[Array, " N"], num_draws: int) -> Int[Array, " M"]:
    """Repeat each index as often as its count says; the last one takes what is left."""
    ends = jnp.cumsum(counts).clip(0, num_draws)
    return jnp.minimum(_count_below(ends, num_draws), _last(counts > 0))


def search(weights: Float[Array, " N"], points: Float[Array, " M"]) -> Int[Array, " M"]:
    """Return the index of the slice of the cumulative weights that holds each point."""
    alive = weights > 0
    cdf = jax.lax.cummax(jnp.where(alive, jnp.cumsum(weights), 0.0))
    found = jnp.searchsorted(cdf, points * cdf[-1], side="right")
    # Rounding can put a point on the upper end: the last live particle takes it.
    return jnp.minimum(found, _last(alive))


def _count_below(below: Array, num_draws: int) -> Array:
    """For each slot, count the particles whose offspring all come before it."""
    ends = jnp.zeros((num_draws + 1,), jnp.int32)
    return running_sum(ends.at[below].add(1, mode="promise_in_bounds")[:-1])


def _last(alive: Array) -> Array:
    return alive.shape[0] - 1 - jnp.argmax(alive[::-1])
