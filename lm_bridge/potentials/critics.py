r"""Potentials that read the text: classifiers in JAX and predicates in Python.

Both remember the tokens so far. A `Classifier` is a compiled function of them; a
`Predicate` calls Python back from the device, once for each particle and token that is
asked about. Read `awrs.py` for the sampler that asks about few.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from motes.lm_bridge.potentials.contract import Critic


class Written(NamedTuple):
    """Texts so far; the tokens beyond a length are zero."""

    tokens: Int[Array, "N T"]
    lengths: Int[Array, " N"]


class Reader(Critic):
    """A critic whose state is the text itself."""

    def init(self, num_particles: int, max_tokens: int) -> Written:
        tokens = jnp.zeros((num_particles, max(max_tokens, 1)), jnp.int32)
        return Written(tokens, jnp.zeros(num_particles, jnp.int32))

    def step(
        self, state: Written, tokens: Int[Array, " N"], active: Bool[Array, " N"]
    ) -> Written:
        here = jnp.arange(state.tokens.shape[1])[None, :] == state.lengths[:, None]
        written = jnp.where(here & active[:, None], tokens[:, None], state.tokens)
        return Written(written.astype(jnp.int32), state.lengths + active)


def _unless_empty(state: Written, log_weights: Array) -> Array:
    return jnp.where(state.lengths == 0, 0.0, log_weights)


def _as_pytree(function: Callable) -> Callable:
    """Make a plain function, which JAX takes for a leaf, a part of the structure."""
    is_leaf = jax.tree.leaves(function) == [function]
    return jax.tree_util.Partial(function) if is_leaf else function


class Classifier(Reader):
    """A JAX function of the tokens as a log-weight.

    Attributes:
        log_score: From tokens `(N, T)` and lengths `(N,)` to log-weights `(N,)`, in nats; a
            function, or a module with parameters.
        vocab_size: Number of token ids.
        eos_ids: Ids that end a text.
        on_completion: Whether only finished texts are weighed; prefixes then have
            weight one, as the empty prefix always has.
    """

    log_score: Callable[[Array, Array], Array] = eqx.field(converter=_as_pytree)
    vocab_size: int = eqx.field(static=True)
    eos_ids: tuple[int, ...] = eqx.field(static=True)
    on_completion: bool = eqx.field(static=True, default=True)

    def log_prefix(self, state: Written) -> Float[Array, " N"]:
        if self.on_completion:
            return jnp.zeros(state.lengths.shape)
        return _unless_empty(state, self.log_score(state.tokens, state.lengths))

    def log_complete(self, state: Written) -> Float[Array, " N"]:
        return self.log_score(state.tokens, state.lengths)


class Predicate(Reader):
    """A Python predicate on the bytes of a text, asked on the host.

    Attributes:
        accepts: From the bytes of a finished text to whether it is allowed.
        token_bytes: The bytes of each token id.
        vocab_size: Number of token ids.
        eos_ids: Ids that end a text.
        allows_prefix: From the bytes of an unfinished text to whether it may go on; it
            must hold for every prefix of an accepted text. None: all may.
    """

    accepts: Callable[[bytes], bool] = eqx.field(static=True)
    token_bytes: tuple[bytes, ...] = eqx.field(static=True)
    vocab_size: int = eqx.field(static=True)
    eos_ids: tuple[int, ...] = eqx.field(static=True)
    allows_prefix: Callable[[bytes], bool] | None = eqx.field(static=True, default=None)

    def allows(self, tokens: Any, token: int) -> bool:
        """Return whether a token may follow, without a device: for `awrs.draw_token`."""
        text = self._spell(tokens)
        if token in self.eos_ids:
            return bool(self.accepts(text))
        longer = text + self.token_bytes[token]
        return self.allows_prefix is None or bool(self.allows_prefix(longer))

    def log_prefix(self, state: Written) -> Float[Array, " N"]:
        if self.allows_prefix is None:
            return jnp.zeros(state.lengths.shape)
        return _unless_empty(state, self._ask(self.allows_prefix, state))

    def log_complete(self, state: Written) -> Float[Array, " N"]:
        return self._ask(self.accepts, state)

    def _spell(self, tokens: Any) -> bytes:
        return b"".join(self.token_bytes[int(token)] for token in tokens)

    def _ask(self, question: Callable[[bytes], bool], state: Written) -> Array:
        def answer(tokens: Any, lengths: Any) -> np.ndarray:
            rows = zip(np.asarray(tokens), np.asarray(lengths), strict=True)
            return np.array([bool(question(self._spell(r[:n]))) for r, n in rows], bool)

        shape = jax.ShapeDtypeStruct(state.lengths.shape, bool)
        allowed = jax.pure_callback(answer, shape, *state, vmap_method="sequential")
        return jnp.where(allowed, 0.0, -jnp.inf)
