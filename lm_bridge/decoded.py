"""What a decode gives: weighted texts, the history of their particles, and the account.

All are pytrees of arrays; `Decoded.posterior` sums the weights of equal texts. Read
`decode.py` for what makes them.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from motes.lm_bridge.decoding import Budget


@runtime_checkable
class Spells(Protocol):
    """What turns token ids into text, as a `Tokenizer` does."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some tokens."""
        ...


class History(NamedTuple):
    """What happened to the particles; with several prompts these are the leading axis.

    Attributes:
        tokens: Tokens drawn in each step, -1 where none was.
        ancestors: Particle `n` of step `s` continues particle `ancestors[s, n]` of the
            step before.
        log_weights: Log-weights after each step, with mean weight one.
        ess: Effective sample size after each step.
    """

    tokens: Int[Array, "*P S N U"]
    ancestors: Int[Array, "*P S N"]
    log_weights: Float[Array, "*P S N"]
    ess: Float[Array, "*P S"]


class Decoded(NamedTuple):
    """Weighted texts; with several prompts these are the leading axis.

    Attributes:
        tokens: Token ids, padded with an id that ends a text.
        lengths: Number of tokens of each, the end not counted.
        finished: Which texts have ended; all have, but in the midst of a `stream`.
        log_weights: Log-weights with mean weight one.
        log_evidence: Log of an unbiased estimate of the total weight of all texts, nats.
        history: Each step; None where there are none.
        budget: What was used, for all prompts together.
    """

    tokens: Int[Array, "*P N T"]
    lengths: Int[Array, "*P N"]
    finished: Bool[Array, "*P N"]
    log_weights: Float[Array, "*P N"]
    log_evidence: Float[Array, "*P"]
    history: History | None
    budget: Budget

    @property
    def weights(self) -> Float[Array, "*P N"]:
        """Normalized weights; zero if all texts met a dead end."""
        return jnp.exp(self.log_weights) / self.log_weights.shape[-1]

    @property
    def ess(self) -> Float[Array, "*P S"]:
        """Effective sample size after each step."""
        if self.history is None:
            raise ValueError(
                "Decoded.ess: exact samples have no steps; all texts count."
            )
        return self.history.ess

    def of_prompt(self, index: int) -> "Decoded":
        """Return the texts of one prompt of several; the budget stays that of all."""
        own = jax.tree.map(lambda leaf: leaf[index], self._replace(budget=None))
        return own._replace(budget=self.budget)

    def texts(self, tokenizer: Spells) -> list[str]:
        """Return the texts of one prompt's particles."""
        return [tokenizer.decode(text) for text in self._rows()]

    def posterior(self, tokenizer: Spells | None = None) -> dict[Any, float]:
        """Return the weight of each distinct text, by its token ids or as a string."""
        texts = self._rows() if tokenizer is None else self.texts(tokenizer)
        total: dict[Any, float] = defaultdict(float)
        for text, weight in zip(texts, np.asarray(self.weights), strict=True):
            total[text] += float(weight)
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def _rows(self) -> list[tuple[int, ...]]:
        rows, lengths = np.asarray(self.tokens), np.asarray(self.lengths)
        return [tuple(row[:n].tolist()) for row, n in zip(rows, lengths, strict=True)]
