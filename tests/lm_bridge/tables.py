"""The small table of the exact checks, and potentials written out by hand."""

from typing import Any

import jax.numpy as jnp

from motes.lm_bridge.potentials.contract import Potential
from motes.lm_bridge.tabular import tabular_lm

A, B, C, END = range(4)
TABLE = tabular_lm(
    [0.5, 0.3, 0.15, 0.05],
    [[0.2, 0.4, 0.2, 0.2], [0.3, 0.1, 0.3, 0.3], [0.25] * 4],
    ["a", "b", "c"],
)


class LastToken(Potential):
    """A factor for each token given the one before; row 3 is for the first token."""

    factors: Any
    vocab_size: int = 4
    eos_ids: tuple[int, ...] = (END,)

    def init(self, num_particles, max_tokens):
        return jnp.full(num_particles, END, jnp.int32)

    def log_weights(self, state, budget):
        return jnp.log(jnp.asarray(self.factors))[state]

    def step(self, state, tokens, active):
        return jnp.where(active, tokens, state)


def last_token(change):
    """Build a table of factors from a function that changes one of ones."""
    factors = [[1.0] * 4 for _ in range(4)]
    change(factors)
    return LastToken(factors)


def _never_cc(factors):
    factors[C][C] = 0.0


def _likes_b(factors):
    for row in factors:
        row[B] *= float(jnp.exp(0.7))


def _both(factors):
    _never_cc(factors)
    _likes_b(factors)


def _ends_in_b(factors):
    for last in (A, C, END):
        factors[last][END] = 0.0


NEVER_CC, LIKES_B = last_token(_never_cc), last_token(_likes_b)
BOTH, ENDS_IN_B = last_token(_both), last_token(_ends_in_b)
NEVER_ENDS = last_token(lambda f: [row.__setitem__(END, 0.0) for row in f])
KNOWN = {
    "none": (None, 0.6961003125),
    "never cc": (NEVER_CC, 0.64578),
    "likes b": (LIKES_B, 1.2967080661),
    "ends in b": (ENDS_IN_B, 0.263488125),
    "never cc, likes b": (BOTH, 1.2168427556),
}
