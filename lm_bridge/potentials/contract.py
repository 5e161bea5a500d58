r"""The contract of potentials: what multiplies the language model.

A potential gives each prefix a weight $\phi(y_{1:t})$ and each finished text a weight
$\phi(y\,\mathrm{EOS})$; `log_weights` are the increments $\log\phi(y v) - \log\phi(y)$ of
every next token $v$. States are pytrees with the particles as leading axis, so the whole
decode is one compiled loop. Read `algebra.py` for products and `laws.py` for the laws.
"""

import abc
from collections.abc import Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Budget: TypeAlias = Int[Array, " N"] | Int[Array, ""] | int
"""Tokens that may still come before EOS: for each particle, or for all."""


class Potential(eqx.Module):
    """A weight on texts that grows token by token, batched over particles; a pytree."""

    vocab_size: eqx.AbstractVar[int]
    eos_ids: eqx.AbstractVar[tuple[int, ...]]

    @abc.abstractmethod
    def init(self, num_particles: int, max_tokens: int) -> Any:
        """Return the state of the empty text; at most `max_tokens` tokens will follow."""

    @abc.abstractmethod
    def log_weights(self, state: Any, budget: Budget) -> Float[Array, "N V"]:
        """Return the log-weight increment of each next token, in nats; `-inf` forbids it.

        EOS leads from the weight of the prefix to that of the finished text.

        Args:
            state: The state of each particle's text.
            budget: Tokens that may still come before EOS; where it is zero, only EOS
                may follow. A potential that knows its distance to acceptance forbids
                what cannot be finished; the others ignore it.
        """

    @abc.abstractmethod
    def step(
        self, state: Any, tokens: Int[Array, " N"], active: Bool[Array, " N"]
    ) -> Any:
        """Return the state after one token for each active particle."""

    def log_increment(
        self, state: Any, tokens: Int[Array, " N"], budget: Budget
    ) -> Float[Array, " N"]:
        """Return the log-weight increment of one token for each particle, in nats."""
        every = self.log_weights(state, budget)
        return jnp.take_along_axis(every, tokens[:, None], axis=1)[:, 0]

    def gather(self, state: Any, ancestors: Int[Array, " M"]) -> Any:
        """Return the states of the ancestors."""
        return jax.tree.map(lambda leaf: leaf[ancestors], state)

    def prefix(self, tokens: Sequence[int]) -> float:
        """Return the log-weight of a prefix, in nats: the sum of its increments."""
        return self._run(tokens)[1]

    def complete(self, tokens: Sequence[int]) -> float:
        """Return the log-weight of a finished text (given without its EOS), in nats."""
        state, total = self._run(tokens)
        return total + float(self.log_weights(state, 0)[0, self.eos_ids[0]])

    def _run(self, tokens: Sequence[int]) -> tuple[Any, float]:
        """Feed one text; the budget never binds."""
        state, total = self.init(1, len(tokens) + 1), 0.0
        unbound, active = jnp.full((1,), 2**20, jnp.int32), jnp.ones((1,), bool)
        for token in tokens:
            chosen = jnp.full((1,), token, jnp.int32)
            total += float(self.log_increment(state, chosen, unbound)[0])
            state = self.step(state, chosen, active)
        return state, total

    def __mul__(self, other: "Potential") -> "Potential":
        """Return the product: log-weights add."""
        from motes.lm_bridge.potentials.algebra import product

        return product(self, other)

    def __truediv__(self, other: "Potential") -> "Potential":
        """Return the quotient: a twist is multiplied in, and divided out at the end."""
        from motes.lm_bridge.potentials.algebra import quotient

        return quotient(self, other)


class Critic(Potential):
    r"""A potential that is evaluated on texts, not on all next tokens at once.

    Samplers draw first and weigh with `log_increment`. `log_weights` tries every token,
    which costs $V$ evaluations for each particle.
    """

    @abc.abstractmethod
    def log_prefix(self, state: Any) -> Float[Array, " N"]:
        """Return the log-weight of each unfinished text, in nats; of the empty one zero."""

    @abc.abstractmethod
    def log_complete(self, state: Any) -> Float[Array, " N"]:
        """Return the log-weight of each text if it ends here, in nats."""

    def log_increment(
        self, state: Any, tokens: Int[Array, " N"], budget: Budget
    ) -> Float[Array, " N"]:
        ends = is_any_of(tokens, self.eos_ids)
        longer = self.log_prefix(self.step(state, tokens, ~ends))
        after = jnp.where(ends, self.log_complete(state), longer)
        return difference(after, self.log_prefix(state))

    def log_weights(self, state: Any, budget: Budget) -> Float[Array, "N V"]:
        shape = self.log_prefix(state).shape

        def of_token(token: Int[Array, ""]) -> Float[Array, " N"]:
            return self.log_increment(state, jnp.broadcast_to(token, shape), budget)

        return jax.vmap(of_token, out_axes=1)(jnp.arange(self.vocab_size))


def is_any_of(tokens: Int[Array, " N"], ids: tuple[int, ...]) -> Bool[Array, " N"]:
    """Return which tokens are among the ids."""
    return (tokens[:, None] == jnp.asarray(ids)[None, :]).any(axis=1)


def difference(
    log_after: Float[Array, "*B"], log_before: Float[Array, "*B"]
) -> Float[Array, "*B"]:
    """Return the log of a ratio of weights; zero over zero is zero."""
    dead = log_after == -jnp.inf
    return jnp.where(dead, -jnp.inf, log_after - jnp.where(dead, 0.0, log_before))
