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


class _Visit(NamedTuple):
    """One particle's visit: scores of what is not visited, and -1 or what was found."""

    scores: Float[Array, " V"]
    token: Int[Array, ""]
    after: Int[Array, ""]
    num_checks: Int[Array, ""]
    done: Array


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
    none, ids = jnp.full((), -1, jnp.int32), jnp.arange(log_probs.shape[0])
    start = _Visit(scores, none, none, jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def check_next(visit: _Visit) -> _Visit:
        token = jnp.argmax(visit.scores).astype(jnp.int32)
        exhausted = jnp.isneginf(visit.scores[token])
        passes, found = allowed[token] & ~exhausted, visit.token >= 0
        return _Visit(
            visit.scores.at[token].set(-jnp.inf),
            jnp.where(~found & passes, token, visit.token),
            jnp.where(found & ~exhausted, token, visit.after),
            visit.num_checks + ~exhausted,
            found | exhausted,
        )

    end = jax.lax.while_loop(lambda visit: ~visit.done, check_next, start)
    # Summed anew: one minus what was rejected would leave nothing but rounding.
    is_left = ~jnp.isneginf(end.scores) | (ids == end.token) | (ids == end.after)
    log_left = jax.nn.logsumexp(log_probs, where=is_left)
    next_fails = (end.after >= 0) & ~allowed[end.after]
    log_weight = jnp.where(next_fails, log_probs[end.token], log_left)
    log_weight = jnp.where(end.token < 0, -jnp.inf, log_weight)
    return jnp.maximum(end.token, 0), log_weight, end.num_checks
