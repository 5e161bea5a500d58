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

    Properly weighted if the order is that of draws without replacement.
    """
    rejected, log_weight = 0.0, 0.0
    for place, token in enumerate(order):
        share = min(probs[token] / (1.0 - rejected), 1.0) if rejected < 1.0 else 1.0
        if allows(token):
            if place + 1 == len(order):
                return Draw(token, log_weight, place + 1)
            if not allows(order[place + 1]):
                log_weight += float(np.log(share))
            return Draw(token, log_weight, place + 2)
        if place + 1 == len(order):
            break
        log_weight += float(np.log1p(-share))
        rejected += probs[token]
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
    """One particle's visit: the order's remaining scores, and what it has found."""

    scores: Float[Array, " V"]
    rejected: Float[Array, ""]
    log_weight: Float[Array, ""]
    token: Int[Array, ""]
    share: Float[Array, ""]
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
    zero = jnp.zeros((), log_probs.dtype)
    none = jnp.full((), -1, jnp.int32)
    start = _Visit(scores, zero, zero, none, zero, jnp.zeros((), jnp.int32), zero > 0)

    def check_next(visit: _Visit) -> _Visit:
        token = jnp.argmax(visit.scores).astype(jnp.int32)
        exhausted = jnp.isneginf(visit.scores[token])
        passes, found = allowed[token] & ~exhausted, visit.token >= 0
        left = jnp.maximum(1.0 - visit.rejected, jnp.finfo(log_probs.dtype).tiny)
        share = jnp.minimum(jnp.exp(log_probs[token]) / left, 1.0)
        # The second check only says whether the first share is to be multiplied in.
        second = jnp.where(passes | exhausted, 0.0, jnp.log(visit.share))
        first = jnp.where(passes, 0.0, jnp.log1p(-share))
        first = jnp.where(exhausted, -jnp.inf, first)
        rejects = ~found & ~passes
        return _Visit(
            visit.scores.at[token].set(-jnp.inf),
            visit.rejected + jnp.where(rejects, jnp.exp(log_probs[token]), 0.0),
            visit.log_weight + jnp.where(found, second, first),
            jnp.where(~found & passes, token, visit.token),
            jnp.where(found, visit.share, share),
            visit.num_checks + ~exhausted,
            found | exhausted,
        )

    end = jax.lax.while_loop(lambda visit: ~visit.done, check_next, start)
    return jnp.maximum(end.token, 0), end.log_weight, end.num_checks
