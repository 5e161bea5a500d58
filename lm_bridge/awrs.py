r"""Adaptive weighted rejection sampling of a token under a constraint.

Tokens are visited in Gumbel order, $q = p(v)/(1-R)$ with $R$ the mass rejected so far, and
only those that are visited are checked. With $1(v)$ the constraint, token $x$ and weight
$w$ satisfy $E[w\,1\{x=v\}] = p(v)1(v)$: properly weighted, with few checks. `draw_token`
asks Python; `draw_tokens` asks a table on the device.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

GEOMETRIC_FROM = 2 / 3
"""From this largest probability on, draws with replacement need fewer checks."""


class Draw(NamedTuple):
    """A token, its log-weight in nats, and the number of checks that it took.

    Where nothing passes, the log-weight is `-inf` and the token means nothing.
    """

    token: int
    log_weight: float
    num_checks: int


def draw_token(
    key: Key[Array, ""],
    log_probs: np.ndarray,
    allows: Callable[[int], bool],
    num_accepts: int = 2,
) -> Draw:
    """Draw one properly weighted token, asking a Python predicate about few.

    Args:
        key: PRNG key; consumed.
        log_probs: Normalized log-probabilities of the tokens, in nats.
        allows: Whether a token may follow; called at most once for each token.
        num_accepts: Accepted draws that the weight rests on; more than two lower its
            variance and cost checks.

    Raises:
        ValueError: If `num_accepts` is less than two.

    References:
        Lipkin et al. (2025), fast controlled generation from language models.
    """
    if num_accepts < 2:
        raise ValueError(
            f"draw_token: num_accepts must be at least 2, got {num_accepts}."
        )
    seed = np.asarray(jax.random.bits(key, (4,), jnp.uint32)).tolist()
    return draw_with(np.random.default_rng(seed), log_probs, allows, num_accepts)


def draw_with(
    random: np.random.Generator,
    log_probs: np.ndarray,
    allows: Callable[[int], bool],
    num_accepts: int = 2,
) -> Draw:
    """Draw as `draw_token` does, with NumPy's random numbers: for callbacks."""
    probs = np.exp(np.asarray(log_probs, float))
    if probs.max() >= GEOMETRIC_FROM or num_accepts > 2:
        return _draw_geometric(random, probs, allows, num_accepts)
    possible = np.flatnonzero(probs)
    gumbels = np.log(probs[possible]) + random.gumbel(size=possible.size)
    return visit_in_order(probs, allows, possible[np.argsort(-gumbels)].tolist())


def visit_in_order(
    probs: np.ndarray, allows: Callable[[int], bool], order: Sequence[int]
) -> Draw:
    """Take the first token of the order that passes; weigh by what came before.

    The weight is the mass that was not rejected, or the token's own where the next in the
    order fails. Properly weighted if the order is that of draws without replacement.
    """
    for place, token in enumerate(order):
        if not allows(token):
            continue
        if place + 1 < len(order) and not allows(order[place + 1]):
            return Draw(token, float(np.log(probs[token])), place + 2)
        left = probs[np.asarray(order[place:])].sum()
        return Draw(token, float(np.log(left)), min(place + 2, len(order)))
    return Draw(-1, -np.inf, len(order))


def _draw_geometric(
    random: np.random.Generator,
    probs: np.ndarray,
    allows: Callable[[int], bool],
    num_accepts: int,
) -> Draw:
    r"""Draw with replacement until `num_accepts` pass, $r$ of $n$: weight $(r-1)/(n-1)$.

    Draws that would repeat a rejected token are counted, by one geometric number.
    """
    verdicts: dict[int, bool] = {}
    accepted: list[int] = []
    left, num_draws = probs.copy(), 0
    while len(accepted) < num_accepts:
        mass = left.sum()
        if mass <= 0.0:
            return Draw(-1, -np.inf, len(verdicts))
        num_draws += int(random.geometric(min(mass / probs.sum(), 1.0)))
        token = int(random.choice(left.size, p=left / mass))
        if token not in verdicts:
            verdicts[token] = bool(allows(token))
        if verdicts[token]:
            accepted.append(token)
        else:
            left[token] = 0.0
    log_weight = float(np.log(num_accepts - 1) - np.log(num_draws - 1))
    return Draw(accepted[0], log_weight, len(verdicts))


def draw_tokens(
    key: Key[Array, ""],
    log_probs: Float[Array, "N V"],
    log_weights: Float[Array, "N V"],
) -> tuple[Int[Array, " N"], Float[Array, " N"], Int[Array, " N"]]:
    """Draw one properly weighted token for each particle, on the device.

    Args:
        key: PRNG key; consumed.
        log_probs: Normalized log-probabilities of the tokens, in nats.
        log_weights: Of a constraint: zero where a token may follow, else `-inf`.

    Returns:
        Tokens, log-weights (`-inf` where nothing passes) and numbers of checks.
    """
    gumbels = jax.random.gumbel(key, log_probs.shape, log_probs.dtype)
    allowed = ~jnp.isneginf(log_weights)
    return jax.vmap(_visit)(log_probs, gumbels + log_probs, allowed)


def _visit(
    log_probs: Array, scores: Array, allowed: Array
) -> tuple[Array, Array, Array]:
    """Find what a visit in the order of `scores` would, without visiting."""
    ids, possible = jnp.arange(log_probs.shape[0]), ~jnp.isneginf(scores)
    passes = allowed & possible
    token = jnp.argmax(jnp.where(passes, scores, -jnp.inf))
    level = scores[token]
    is_before = (scores > level) | ((scores == level) & (ids < token))
    is_after = possible & ~is_before & (ids != token)
    after = jnp.argmax(jnp.where(is_after, scores, -jnp.inf))
    next_fails = is_after.any() & ~allowed[after]
    # Summed anew: one minus what was rejected would leave nothing but rounding.
    log_left = jax.nn.logsumexp(log_probs, where=~is_before)
    log_weight = jnp.where(next_fails, log_probs[token], log_left)
    num_visited = is_before.sum() + 1 + is_after.any()
    return (
        token.astype(jnp.int32),
        jnp.where(passes.any(), log_weight, -jnp.inf),
        jnp.where(passes.any(), num_visited, possible.sum()).astype(jnp.int32),
    )
