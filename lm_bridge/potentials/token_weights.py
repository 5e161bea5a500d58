"""Factors on single tokens and on the number of tokens.

`TokenWeights` multiplies a weight for each occurrence of each token; `ban_tokens` is its
hard form and `LengthWindow` counts. Read `contract.py` first.
"""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from motes.lm_bridge.potentials.contract import Budget, Potential


class TokenWeights(Potential):
    """A factor for each occurrence of each token; `-inf` bans it.

    Attributes:
        log_factors: Log factor of each token id, in nats.
        vocab_size: Number of token ids.
        eos_ids: Ids that end a text.
    """

    log_factors: Float[Array, " V"]
    vocab_size: int = eqx.field(static=True)
    eos_ids: tuple[int, ...] = eqx.field(static=True)

    def init(self, num_particles: int, max_tokens: int) -> Int[Array, " N"]:
        return jnp.zeros(num_particles, jnp.int32)

    def log_weights(
        self, state: Int[Array, " N"], budget: Budget
    ) -> Float[Array, "N V"]:
        shape = (state.shape[0], self.vocab_size)
        return jnp.broadcast_to(self.log_factors[None], shape)

    def step(
        self,
        state: Int[Array, " N"],
        tokens: Int[Array, " N"],
        active: Bool[Array, " N"],
    ) -> Int[Array, " N"]:
        return state


def ban_tokens(
    ids: Sequence[int], vocab_size: int, eos_ids: tuple[int, ...]
) -> TokenWeights:
    """Forbid tokens.

    Raises:
        ValueError: If an id is none of the vocabulary, or no text could end.
    """
    if not all(0 <= token < vocab_size for token in ids):
        raise ValueError(
            f"ban_tokens: ids must be in [0, {vocab_size}), got {sorted(ids)}."
        )
    if set(eos_ids) <= set(ids):
        raise ValueError(
            f"ban_tokens: ids must leave one of {eos_ids} to end a text, got all of them."
        )
    factors = jnp.zeros(vocab_size).at[jnp.asarray(list(ids), int)].set(-jnp.inf)
    return TokenWeights(factors, vocab_size, tuple(eos_ids))


class LengthWindow(Potential):
    """Only texts whose number of tokens, EOS not counted, is in a window.

    Attributes:
        min_tokens: Least number of tokens.
        max_tokens: Greatest number of tokens.
        vocab_size: Number of token ids.
        eos_ids: Ids that end a text.
    """

    min_tokens: int = eqx.field(static=True)
    max_tokens: int = eqx.field(static=True)
    vocab_size: int = eqx.field(static=True)
    eos_ids: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise ValueError(
                f"LengthWindow: min_tokens must be in [0, max_tokens], got "
                f"{self.min_tokens} and {self.max_tokens}."
            )

    def init(self, num_particles: int, max_tokens: int) -> Int[Array, " N"]:
        return jnp.zeros(num_particles, jnp.int32)

    def log_weights(
        self, state: Int[Array, " N"], budget: Budget
    ) -> Float[Array, "N V"]:
        left = jnp.broadcast_to(jnp.asarray(budget), state.shape)
        ends = jnp.zeros(self.vocab_size, bool).at[jnp.asarray(self.eos_ids)].set(True)
        grows = (
            (state < self.max_tokens) & (state + left >= self.min_tokens) & (left > 0)
        )
        may_end = state >= self.min_tokens
        allowed = jnp.where(ends[None], may_end[:, None], grows[:, None])
        return jnp.where(allowed, 0.0, -jnp.inf)

    def step(
        self,
        state: Int[Array, " N"],
        tokens: Int[Array, " N"],
        active: Bool[Array, " N"],
    ) -> Int[Array, " N"]:
        return state + active
