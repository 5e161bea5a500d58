r"""Products, quotients and changes of vocabulary.

The log-weights of `a * b` are sums of those of `a` and `b`, those of `a / b` differences:
with a twist $\psi$ the telescoping factor $\psi(y_{1:t})/\psi(y_{1:t-1})$ is `psi` itself,
and dividing by it at the end restores the target. Read `contract.py` first.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from motes.lm_bridge.potentials.contract import Budget, Potential, difference
from motes.lm_bridge.potentials.table import TablePotential, intersect_tables

MAX_TABLE_STATES = 4096
"""Tables are multiplied into one table up to this bound on its number of states."""


class Product(Potential):
    """The product of two potentials; states are pairs."""

    left: Potential
    right: Potential
    vocab_size: int = eqx.field(static=True)
    eos_ids: tuple[int, ...] = eqx.field(static=True)

    def init(self, num_particles: int, max_tokens: int) -> Any:
        return tuple(p.init(num_particles, max_tokens) for p in (self.left, self.right))

    def log_weights(self, state: Any, budget: Budget) -> Float[Array, "N V"]:
        left = self.left.log_weights(state[0], budget)
        return left + self.right.log_weights(state[1], budget)

    def log_increment(
        self, state: Any, tokens: Int[Array, " N"], budget: Budget
    ) -> Float[Array, " N"]:
        left = self.left.log_increment(state[0], tokens, budget)
        return left + self.right.log_increment(state[1], tokens, budget)

    def step(
        self, state: Any, tokens: Int[Array, " N"], active: Bool[Array, " N"]
    ) -> Any:
        left = self.left.step(state[0], tokens, active)
        return left, self.right.step(state[1], tokens, active)

    def gather(self, state: Any, ancestors: Int[Array, " M"]) -> Any:
        left = self.left.gather(state[0], ancestors)
        return left, self.right.gather(state[1], ancestors)


class Quotient(Product):
    """The quotient of two potentials; a zero of the numerator stays zero."""

    def log_weights(self, state: Any, budget: Budget) -> Float[Array, "N V"]:
        left = self.left.log_weights(state[0], budget)
        return difference(left, self.right.log_weights(state[1], budget))

    def log_increment(
        self, state: Any, tokens: Int[Array, " N"], budget: Budget
    ) -> Float[Array, " N"]:
        left = self.left.log_increment(state[0], tokens, budget)
        return difference(left, self.right.log_increment(state[1], tokens, budget))


class Coerced(Potential):
    """A potential over one vocabulary, read through another.

    Attributes:
        inner: The potential over the inner vocabulary.
        spelling: Inner tokens of each outer token, padded with -1.
    """

    inner: Potential
    spelling: Int[Array, "V L"]
    vocab_size: int = eqx.field(static=True)
    eos_ids: tuple[int, ...] = eqx.field(static=True)

    def init(self, num_particles: int, max_tokens: int) -> Any:
        return self.inner.init(num_particles, max_tokens * self.spelling.shape[1])

    def log_weights(self, state: Any, budget: Budget) -> Float[Array, "N V"]:
        each = jnp.arange(self.vocab_size)
        ordinary = jax.vmap(lambda v: self._walk(state, v), out_axes=1)(each)
        ends = self.inner.log_weights(state, budget)[:, self.inner.eos_ids[0]]
        is_end = jnp.isin(each, jnp.asarray(self.eos_ids))[None, :]
        return jnp.where(is_end, ends[:, None], ordinary)

    def step(
        self, state: Any, tokens: Int[Array, " N"], active: Bool[Array, " N"]
    ) -> Any:
        for column in range(self.spelling.shape[1]):
            inner = self.spelling[tokens, column]
            grows = active & (inner >= 0)
            state = self.inner.step(state, jnp.maximum(inner, 0), grows)
        return state

    def gather(self, state: Any, ancestors: Int[Array, " M"]) -> Any:
        return self.inner.gather(state, ancestors)

    def _walk(self, state: Any, token: Int[Array, ""]) -> Float[Array, " N"]:
        """Weigh one outer token after every state; the inner budget never binds."""
        shape = jax.eval_shape(lambda s: self.inner.log_weights(s, 0), state).shape[:1]
        total = jnp.zeros(shape)
        for column in range(self.spelling.shape[1]):
            inner = jnp.broadcast_to(self.spelling[token, column], shape)
            used, safe = inner >= 0, jnp.maximum(inner, 0)
            weight = self.inner.log_increment(state, safe, 2**20)
            total = total + jnp.where(used, weight, 0.0)
            state = self.inner.step(state, safe, used)
        # Outer tokens without a spelling stand for no text.
        return jnp.where(self.spelling[token, 0] >= 0, total, -jnp.inf)


def product(left: Potential, right: Potential) -> Potential:
    """Return the product; two tables become one, whose distances are exact."""
    _check_same_vocabulary("product", left, right)
    if isinstance(left, TablePotential) and isinstance(right, TablePotential):
        if left.num_states * right.num_states <= MAX_TABLE_STATES:
            return intersect_tables(left, right)
    return Product(left, right, left.vocab_size, left.eos_ids)


def quotient(left: Potential, right: Potential) -> Potential:
    """Return the quotient of two potentials over one vocabulary."""
    _check_same_vocabulary("quotient", left, right)
    return Quotient(left, right, left.vocab_size, left.eos_ids)


def coerce(
    potential: Potential, spelling: Sequence[Sequence[int]], eos_ids: tuple[int, ...]
) -> Potential:
    """Return the potential over a vocabulary whose tokens are spelled in the inner one.

    Args:
        potential: A potential over the inner vocabulary.
        spelling: Inner tokens of each outer token; none for EOS and special tokens.
        eos_ids: Ids of the outer vocabulary that end a text.

    Raises:
        ValueError: If a spelling uses a token that the inner vocabulary lacks.
    """
    width = max(1, *(len(tokens) for tokens in spelling))
    padded = np.full((len(spelling), width), -1, np.int32)
    for token, inner in enumerate(spelling):
        padded[token, : len(inner)] = inner
    if padded.max() >= potential.vocab_size:
        raise ValueError(
            f"coerce: spelling must use tokens below {potential.vocab_size}, "
            f"got {padded.max()}."
        )
    return Coerced(potential, jnp.asarray(padded), len(spelling), tuple(eos_ids))


def _check_same_vocabulary(call: str, left: Potential, right: Potential) -> None:
    if (left.vocab_size, left.eos_ids) != (right.vocab_size, right.eos_ids):
        raise ValueError(
            f"{call}: potentials must share one vocabulary, got {left.vocab_size} tokens "
            f"with EOS {left.eos_ids} and {right.vocab_size} with {right.eos_ids}. "
            "Coerce one of them."
        )
