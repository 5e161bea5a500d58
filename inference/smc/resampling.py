r"""Resampling schemes.

A scheme turns weights into offspring: it draws $M$ ancestors and gives them weights so
that the expected weight of the copies of particle $n$ is $W_n$. All but `optimal` give
equal weights.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from motes.inference.smc.cumulative import (
    from_cumulative,
    repeat,
    running_sum,
    search,
)
from motes.ppl.errors import check_count


class Resampled(NamedTuple):
    """Offspring of a population.

    Attributes:
        ancestors: Index of the parent of each.
        log_weights: Log-weights with mean weight one.
    """

    ancestors: Int[Array, " M"]
    log_weights: Float[Array, " M"]


@runtime_checkable
class Resampler(Protocol):
    """A resampling scheme."""

    def __call__(
        self, key: Key[Array, ""], log_weights: Float[Array, " N"], num_draws: int
    ) -> Resampled:
        """Draw offspring, unbiased: expected total weight is proportional to weight."""
        ...


def systematic(
    key: Key[Array, ""], log_weights: Float[Array, " N"], num_draws: int
) -> Resampled:
    r"""Resample on a grid that one uniform $U$ places at $(m + U)/M$.

    Particle $n$ has one offspring for each grid point in its slice of the cumulative
    weights, so $\lfloor M W_n \rfloor$ or one more.

    Args:
        key: PRNG key; consumed.
        log_weights: Log-weights in nats, any scale; `-inf` is allowed.
        num_draws: Number of offspring, $M$.

    References:
        Chopin and Papaspiliopoulos (2020), Algorithm 9.3.
    """
    weights = _normalize("systematic", log_weights, num_draws)
    below = _on_grid(key, num_draws * weights)
    return _equal(from_cumulative(below, weights > 0, num_draws), weights)


def stratified(
    key: Key[Array, ""], log_weights: Float[Array, " N"], num_draws: int
) -> Resampled:
    r"""Resample on a jittered grid, one uniform in each cell $[m/M, (m+1)/M)$.

    References:
        Chopin and Papaspiliopoulos (2020), Section 9.6.
    """
    weights = _normalize("stratified", log_weights, num_draws)
    edges = num_draws * running_sum(weights)
    cell = jnp.floor(edges).astype(int).clip(0, num_draws - 1)
    jitter = jax.random.uniform(key, (num_draws,), weights.dtype)
    below = cell + (jitter[cell] < edges - cell)
    return _equal(from_cumulative(below, weights > 0, num_draws), weights)


def multinomial(
    key: Key[Array, ""], log_weights: Float[Array, " N"], num_draws: int
) -> Resampled:
    """Resample independently; sorted uniforms are made from exponential spacings.

    References:
        Chopin and Papaspiliopoulos (2020), Algorithms 9.1 and 9.2.
    """
    weights = _normalize("multinomial", log_weights, num_draws)
    spacings = jax.random.exponential(key, (num_draws + 1,), weights.dtype)
    cumulative = jnp.cumsum(spacings)
    ordered = cumulative[:-1] / cumulative[-1]
    return _equal(search(weights, ordered), weights)


def residual(
    key: Key[Array, ""], log_weights: Float[Array, " N"], num_draws: int
) -> Resampled:
    r"""Keep $\lfloor M W_n \rfloor$ copies of each; draw the rest independently.

    References:
        Chopin and Papaspiliopoulos (2020), Section 9.5.
    """
    weights = _normalize("residual", log_weights, num_draws)
    scaled = num_draws * weights
    whole = jnp.floor(scaled)
    points = jax.random.uniform(key, (num_draws,), weights.dtype)
    counts = whole.astype(int)
    rest = num_draws - jnp.sum(counts)
    extra = (jnp.arange(num_draws) < rest).astype(int)
    counts = counts.at[search(scaled - whole, points)].add(extra)
    return _equal(repeat(counts, num_draws), weights)


def killing(
    key: Key[Array, ""], log_weights: Float[Array, " N"], num_draws: int
) -> Resampled:
    r"""Let particle $n$ survive with probability $W_n / \max W$, else replace it.

    Survivors keep their place; the others are drawn from the weights.

    Raises:
        ValueError: If `num_draws` is not the number of particles.

    References:
        Del Moral (2004), Section 2.5.2.
    """
    weights = _normalize("killing", log_weights, num_draws)
    num = weights.shape[0]
    if num_draws != num:
        raise ValueError(
            f"killing: num_draws must be the number of particles {num}, got {num_draws}."
        )
    survive_key, draw_key = jax.random.split(key)
    survives = jax.random.uniform(survive_key, (num,), weights.dtype) < (
        weights / jnp.max(weights)
    )
    points = jax.random.uniform(draw_key, (num,), weights.dtype)
    drawn = search(weights, points)
    return _equal(jnp.where(survives, jnp.arange(num), drawn), weights)


def ssp(
    key: Key[Array, ""], log_weights: Float[Array, " N"], num_draws: int
) -> Resampled:
    r"""Resample by the Srinivasan sampling process.

    Fractions of $M W_n$ are paired off and rounded one by one: counts are
    $\lfloor M W_n \rfloor$ or one more, and negatively associated.

    References:
        Gerber, Chopin and Whiteley (2019), Algorithm 1.
    """
    weights = _normalize("ssp", log_weights, num_draws)
    scaled = num_draws * weights
    whole = jnp.floor(scaled)
    uniforms = jax.random.uniform(key, weights.shape, weights.dtype)

    def pair(carry: tuple, row: tuple) -> tuple[tuple, tuple]:
        holder, fraction = carry
        index, other, uniform = row
        total = fraction + other
        fits = total < 1.0
        # One of the two is rounded: down to 0 if they fit together, else up to 1.
        gain = jnp.where(fits, other, 1.0 - other)
        loss = jnp.where(fits, fraction, 1.0 - fraction)
        stays = uniform * (gain + loss) < jnp.where(fits, fraction, gain)
        stays = jnp.where(gain + loss > 0, stays, True)
        kept = jnp.where(fits, stays, ~stays)
        settled = jnp.where(kept, index, holder)
        next_holder = jnp.where(kept, holder, index)
        left = jnp.where(fits, total, total - 1.0)
        return (next_holder, left), (settled, ~fits)

    rows = (jnp.arange(1, weights.shape[0]), (scaled - whole)[1:], uniforms[1:])
    (last, left), (settled, rounded_up) = jax.lax.scan(
        pair, (jnp.zeros((), int), (scaled - whole)[0]), rows
    )
    counts = whole.astype(int).at[settled].add(rounded_up.astype(int))
    counts = counts.at[last].add((left > 0.5).astype(int))
    return _equal(repeat(counts, num_draws), weights)


def optimal(
    key: Key[Array, ""], log_weights: Float[Array, " N"], num_draws: int
) -> Resampled:
    r"""Resample without replacement, keeping heavy particles with their weights.

    With $c$ such that $\sum_n \min(1, c W_n) = M$, particles with $c W_n \geq 1$ are kept
    at weight $W_n$; the others survive with probability $c W_n$ at weight $1/c$. Among
    unbiased schemes it minimizes the expected squared change of the weights.

    References:
        Fearnhead and Clifford (2003), Section 4.
    """
    weights = _normalize("optimal", log_weights, num_draws)
    scale = fearnhead_clifford_scale(weights, num_draws)
    scaled = jnp.where(weights > 0, weights * scale, 0.0)
    heavy = scaled >= 1.0
    below = _on_grid(key, jnp.where(heavy, 0.0, scaled))
    counts = jnp.diff(below, prepend=0).clip(0) * (weights > 0) + heavy
    ancestors = repeat(counts, num_draws)
    new = jnp.where(heavy[ancestors], weights[ancestors], 1.0 / scale)
    new = jnp.where(jnp.arange(num_draws) < jnp.sum(counts), new, 0.0)
    return Resampled(ancestors, jnp.log(new) + jnp.log(float(num_draws)))


def fearnhead_clifford_scale(
    weights: Float[Array, " N"], num_draws: int
) -> Float[Array, ""]:
    r"""Solve $\sum_n \min(1, c W_n) = M$ for $c$; infinite if nothing need be dropped.

    The solution with the heavy particles of the last iterate increases to $c$, and stops
    moving after a few passes over the weights; nothing is sorted.
    """
    size = jnp.sum(weights > 0)

    def scale_of(heavy: Array) -> Array:
        light = jnp.sum(jnp.where(heavy, 0.0, weights))
        room = (num_draws - jnp.sum(heavy)).astype(weights.dtype)
        # The light ones lie below 1/c, so room for them all means that none is dropped.
        drops = (room > 0) & (light > 0) & (size > num_draws)
        return jnp.where(drops, room / jnp.where(drops, light, 1.0), jnp.inf)

    def grow(carry: tuple) -> tuple:
        heavy, _ = carry
        scaled = jnp.where(weights > 0, weights * scale_of(heavy), 0.0)
        grown = heavy | (scaled >= 1.0)
        return grown, jnp.any(grown != heavy)

    start = (jnp.zeros_like(weights, bool), jnp.array(True))
    heavy, _ = jax.lax.while_loop(lambda carry: carry[1], grow, start)
    return scale_of(heavy)


SCHEMES: dict[str, Resampler] = {
    "systematic": systematic,
    "stratified": stratified,
    "multinomial": multinomial,
    "residual": residual,
    "killing": killing,
    "ssp": ssp,
    "optimal": optimal,
}


def _normalize(call: str, log_weights: Array, num_draws: Any) -> Array:
    check_count(call, "num_draws", num_draws)
    top = jnp.max(log_weights)
    # A dead population is resampled uniformly; its evidence stays zero.
    shifted = jnp.where(jnp.isneginf(top), 0.0, log_weights - top)
    weights = jnp.exp(shifted)
    return weights / jnp.sum(weights)


def _equal(ancestors: Array, weights: Array) -> Resampled:
    return Resampled(ancestors, jnp.zeros(ancestors.shape, weights.dtype))


def _on_grid(key: Array, scaled: Array) -> Array:
    """Count the points of a random unit grid below each cumulative sum."""
    offset = jax.random.uniform(key, (), scaled.dtype)
    return jnp.ceil(running_sum(scaled) - offset).astype(jnp.int32)
