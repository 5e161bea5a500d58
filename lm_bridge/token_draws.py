r"""Ways to draw the next token; all are properly weighted.

For log-probabilities $p$, a proposal $q$ and a potential's increments $\phi$, a sampler
gives a token $x$ and a weight $w$ with $E[w\,1\{x=v\}] = q(v)\phi(v)$; the decode then
multiplies by $p(x)/q(x)$. Read `decoding.py` for what asks.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from motes.lm_bridge import awrs
from motes.lm_bridge.potentials.contract import Potential
from motes.lm_bridge.potentials.critics import Predicate

BLOCK = 64
"""Tokens whose weights are summed before a draw looks at single ones."""


class Context(NamedTuple):
    """What a sampler may look at.

    Attributes:
        potential: The potential, or None.
        state: The potential's memory.
        tokens: Texts so far.
        lengths: Their lengths.
        budget: Tokens that may still come before the end.
        ends: Which token ids end a text.
        active: Which texts are drawn for; what is drawn for the others is ignored.
    """

    potential: Potential | None
    state: Any
    tokens: Int[Array, "N T"]
    lengths: Int[Array, " N"]
    budget: Int[Array, " N"]
    ends: Bool[Array, " V"]
    active: Bool[Array, " N"]


class Drawn(NamedTuple):
    """A token for each text, log-weights in nats, and the number of tokens checked.

    Where nothing can follow, the log-weight is `-inf` and the token means nothing.
    """

    tokens: Int[Array, " N"]
    log_weights: Float[Array, " N"]
    num_checks: Int[Array, ""]


@runtime_checkable
class Sampler(Protocol):
    """A way to draw one token for each text."""

    def __call__(
        self, key: Key[Array, ""], log_probs: Float[Array, "N V"], context: Context
    ) -> Drawn:
        """Draw from `exp(log_probs)` times the potential's increments."""
        ...


def locally_constrained(
    key: Key[Array, ""], log_probs: Float[Array, "N V"], context: Context
) -> Drawn:
    r"""Draw $v \sim q(v)\phi(v)/\sum$ and weigh by the sum: the least variance.

    The potential is asked about every token.
    """
    scores = _at_limit(log_probs, context)
    if context.potential is not None:
        scores = scores + context.potential.log_weights(context.state, context.budget)
    checked = 0 if context.potential is None else log_probs.shape[1]
    return Drawn(*draw_tokens(key, scores), checked * jnp.sum(context.active))


def weighed_after(
    key: Key[Array, ""], log_probs: Float[Array, "N V"], context: Context
) -> Drawn:
    r"""Draw $v \sim q(v)$ and weigh by $\phi(v)$, asked about the drawn token alone."""
    tokens, log_weights = draw_tokens(key, _at_limit(log_probs, context))
    if context.potential is None:
        return Drawn(tokens, log_weights, jnp.zeros((), int))
    weigh = context.potential.log_increment
    log_weights = log_weights + weigh(context.state, tokens, context.budget)
    return Drawn(tokens, log_weights, jnp.sum(context.active))


def adaptive_rejection(
    key: Key[Array, ""], log_probs: Float[Array, "N V"], context: Context
) -> Drawn:
    """Draw by adaptive weighted rejection: few tokens are checked, in random order.

    A `Predicate` is asked on the host, about the tokens that are visited; any other
    potential on the device, with weights that are not zero or one multiplied in after.

    References:
        Lipkin et al. (2025), fast controlled generation from language models.
    """
    if isinstance(context.potential, Predicate):
        return _ask_host(key, log_probs, context, context.potential)
    allowed = jnp.zeros_like(log_probs)
    if context.potential is not None:
        allowed = context.potential.log_weights(context.state, context.budget)
    tokens, log_weights, num_checks = awrs.draw_tokens(
        key, log_probs, _at_limit(allowed, context)
    )
    soft = jnp.take_along_axis(allowed, tokens[:, None], axis=1)[:, 0]
    log_weights = jnp.where(jnp.isneginf(log_weights), -jnp.inf, log_weights + soft)
    return Drawn(tokens, log_weights, jnp.sum(num_checks * context.active))


def draw_tokens(
    key: Key[Array, ""], scores: Float[Array, "N V"]
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """Draw one token of each row, proportionally to `exp(scores)`, by inverse CDF.

    First a block of tokens is drawn by the blocks' sums, then a token of the block.

    Returns:
        Tokens, and the log of each row's sum in nats; where that is `-inf` the token means
        nothing.
    """
    top = jnp.max(scores, axis=1)
    shift = jnp.where(jnp.isneginf(top), 0.0, top)
    weights = jnp.exp(scores - shift[:, None])
    padding = -scores.shape[1] % BLOCK
    blocks = jnp.pad(weights, ((0, 0), (0, padding))).reshape(len(top), -1, BLOCK)
    sums = blocks.sum(axis=2)
    totals = sums.sum(axis=1)
    points = jax.random.uniform(key, totals.shape, totals.dtype) * totals
    block, points = _invert(sums, points)
    rows = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    within, _ = _invert(rows, points)
    tokens = jnp.minimum(block * BLOCK + within, scores.shape[1] - 1)
    return tokens, jnp.log(totals) + shift


def _invert(
    weights: Float[Array, "N K"], points: Float[Array, " N"]
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """Return where cumulative weights pass the points, and what is left of these.

    Rounding never leads to an entry of weight zero, unless all are.
    """
    cdf = jnp.cumsum(weights, axis=1)
    possible = weights > 0
    passed = possible & (cdf > points[:, None])
    last = weights.shape[1] - 1 - jnp.argmax(possible[:, ::-1], axis=1)
    index = jnp.where(passed.any(axis=1), jnp.argmax(passed, axis=1), last)
    before = jnp.take_along_axis(cdf - weights, index[:, None], axis=1)[:, 0]
    return index, jnp.maximum(points - before, 0.0)


def _at_limit(scores: Float[Array, "N V"], context: Context) -> Float[Array, "N V"]:
    """Leave only the end to texts that may not grow."""
    is_last = context.budget <= 0
    return jnp.where(is_last[:, None] & ~context.ends[None, :], -jnp.inf, scores)


def _ask_host(
    key: Key[Array, ""],
    log_probs: Float[Array, "N V"],
    context: Context,
    predicate: Predicate,
) -> Drawn:
    num = log_probs.shape[0]
    bits = jax.random.bits(key, (num, 4), jnp.uint32)

    def draw(bits: Any, log_probs: Any, context: Any) -> tuple[np.ndarray, ...]:
        texts, lengths, budget, ends, active = (np.asarray(leaf) for leaf in context)
        draws = [awrs.Draw(0, 0.0, 0)] * num
        for n in np.flatnonzero(active):
            text, at_limit = texts[n, : lengths[n]], budget[n] <= 0

            def allows(token: int, text: Any = text, at_limit: Any = at_limit) -> bool:
                possible = ends[token] or not at_limit
                return bool(possible) and predicate.allows(text, token)

            random = np.random.default_rng(np.asarray(bits[n]).tolist())
            draws[n] = awrs.draw_with(random, np.asarray(log_probs[n]), allows)
        tokens, weights, checks = (
            np.array(column) for column in zip(*draws, strict=True)
        )
        tokens = np.maximum(tokens, 0).astype(np.int32)
        return (
            tokens,
            weights.astype(log_probs.dtype),
            np.asarray(checks.sum(), np.int32),
        )

    shapes = (
        jax.ShapeDtypeStruct((num,), jnp.int32),
        jax.ShapeDtypeStruct((num,), log_probs.dtype),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    seen = (
        context.tokens,
        context.lengths,
        context.budget,
        context.ends,
        context.active,
    )
    return Drawn(
        *jax.pure_callback(
            draw, shapes, bits, log_probs, seen, vmap_method="sequential"
        )
    )
