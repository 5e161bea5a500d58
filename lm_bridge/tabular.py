r"""A language model that is a table, and exact posteriors by enumeration.

`TabularLM` is a first-order Markov chain over a tiny vocabulary. With a potential $\phi$
its target over texts of at most $T$ tokens, $\gamma(y) = p(y\,\mathrm{EOS})\,\phi(y)$, is
a finite sum: `enumerate_posterior` returns all of it, and every sampler is tested on it.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from motes.lm_bridge.language_model import LanguageModel


class TabularLM(eqx.Module):
    """A language model whose next token depends on the last one alone.

    Attributes:
        log_table: Log-probabilities of the next token after each token; the last row is
            that of the first token.
        eos_ids: Ids that end a text.
        token_bytes: What each token stands for; EOS stands for nothing.
    """

    log_table: Float[Array, "V1 V"]
    eos_ids: tuple[int, ...] = eqx.field(static=True)
    token_bytes: tuple[bytes, ...] = eqx.field(static=True)

    @property
    def vocab_size(self) -> int:
        """Return the number of tokens, EOS included."""
        return self.log_table.shape[1]

    def prefill(self, prompt_tokens: Any) -> Int[Array, " P"]:
        """Return the row that follows each prompt; an empty prompt is the start."""
        rows = isinstance(prompt_tokens, list) and len(prompt_tokens) > 0
        several = rows and np.ndim(prompt_tokens[0]) == 1
        prompts = prompt_tokens if several else [prompt_tokens]
        start = jnp.full(1, self.vocab_size)
        last = [jnp.append(start, jnp.asarray(prompt))[-1] for prompt in prompts]
        return jnp.stack(last).astype(jnp.int32)

    def init_state(
        self, prefilled: Int[Array, " P"], num_particles: int, max_tokens: int
    ) -> Int[Array, " N"]:
        """Return the row of each prompt's particles; `max_tokens` is not needed."""
        return jnp.repeat(prefilled, num_particles)

    def next_log_probs(self, state: Int[Array, " N"]) -> Float[Array, "N V"]:
        """Return the log-probabilities of the next token, in nats."""
        return self.log_table[state]

    def append(
        self,
        state: Int[Array, " N"],
        tokens: Int[Array, " N"],
        active: Bool[Array, " N"],
    ) -> Int[Array, " N"]:
        """Move the active particles to the row of their token."""
        return jnp.where(active, tokens.astype(state.dtype), state)

    def gather(
        self, state: Int[Array, " N"], ancestors: Int[Array, " M"]
    ) -> Int[Array, " M"]:
        """Return the rows of the ancestors."""
        return state[ancestors]


def tabular_lm(first: Any, rows: Any, tokens: Sequence[str | bytes]) -> TabularLM:
    """Build a `TabularLM`; EOS is the last token of every row.

    Args:
        first: Probabilities of the first token, EOS last.
        rows: Probabilities after each token but EOS.
        tokens: What each token but EOS stands for.

    Raises:
        ValueError: If the shapes disagree or a row does not sum to one.
    """
    table = np.vstack(
        [np.atleast_2d(np.asarray(rows, float)), np.asarray(first, float)]
    )
    num_tokens = len(tokens)
    if table.shape != (num_tokens + 1, num_tokens + 1):
        raise ValueError(
            f"tabular_lm: rows must have one row for each of the {num_tokens} tokens and "
            f"one column more for EOS, got shape {(table.shape[0] - 1, table.shape[1])}."
        )
    if (table < 0).any() or not np.allclose(table.sum(axis=1), 1.0):
        raise ValueError(
            f"tabular_lm: rows must be probabilities that sum to one, got sums "
            f"{table.sum(axis=1).tolist()}."
        )
    end = np.eye(num_tokens + 1)[-1:]
    table = np.vstack([table[:-1], end, table[-1:]])
    with np.errstate(divide="ignore"):
        log_table = jnp.asarray(np.log(table), jnp.result_type(float))
    spelled = [t.encode() if isinstance(t, str) else t for t in tokens]
    return TabularLM(log_table, (num_tokens,), (*spelled, b""))


class ExactPosterior(NamedTuple):
    """Every text of positive weight, without its EOS.

    Attributes:
        texts: Token ids of each text; once for each id that may end it.
        log_joint: Log of model probability times potential, in nats.
        log_evidence: Log of the sum of the joint, in nats.
    """

    texts: list[tuple[int, ...]]
    log_joint: np.ndarray
    log_evidence: float

    @property
    def probabilities(self) -> np.ndarray:
        """Posterior probability of each text."""
        return np.exp(self.log_joint - self.log_evidence)

    def as_dict(self) -> dict[tuple[int, ...], float]:
        """Return the posterior probability of each text, by its tokens, over all ends."""
        total: dict[tuple[int, ...], float] = defaultdict(float)
        for text, probability in zip(self.texts, self.probabilities, strict=True):
            total[text] += float(probability)
        return dict(total)


def enumerate_posterior(
    lm: LanguageModel, potential: Any, max_tokens: int, prompt_tokens: Any = ()
) -> ExactPosterior:
    """Return the exact posterior over texts of at most `max_tokens` tokens.

    The EOS is observed with its own probability, at the limit too, and is not counted in
    `max_tokens`. The cost grows as the vocabulary to the power of `max_tokens`.

    Args:
        lm: Any language model whose `gather` may change the number of particles.
        potential: A potential over the same vocabulary, or None.
        max_tokens: Most tokens before EOS.
        prompt_tokens: What all texts continue.
    """
    if max_tokens < 0:
        raise ValueError(
            f"enumerate_posterior: max_tokens must be at least 0, got {max_tokens}."
        )
    prompt = jnp.asarray(prompt_tokens, jnp.int32)
    lm_state = lm.init_state(lm.prefill(prompt), 1, max_tokens + 1)
    state = None if potential is None else potential.init(1, max_tokens)
    texts, log_joint = [], []
    prefixes, log_prefix = [()], np.zeros(1)
    for used in range(max_tokens + 1):
        scores = log_prefix[:, None] + np.asarray(lm.next_log_probs(lm_state), float)
        if potential is not None:
            budget = jnp.full((len(prefixes),), max_tokens - used, jnp.int32)
            scores = scores + np.asarray(potential.log_weights(state, budget), float)
        for eos in lm.eos_ids:
            ended = np.flatnonzero(scores[:, eos] > -np.inf)
            texts += [prefixes[n] for n in ended]
            log_joint += scores[ended, eos].tolist()
        scores[:, list(lm.eos_ids)] = -np.inf
        parents, tokens = np.nonzero(scores > -np.inf)
        if used == max_tokens or parents.size == 0:
            break
        rows = jnp.asarray(parents), jnp.asarray(tokens, jnp.int32)
        lm_state = _grow(lm, type(lm).append, lm_state, *rows)
        if potential is not None:
            state = _grow(potential, type(potential).step, state, *rows)
        log_prefix = scores[parents, tokens]
        prefixes = [
            (*prefixes[n], int(v)) for n, v in zip(parents, tokens, strict=True)
        ]
    joint = np.asarray(log_joint, float)
    log_evidence = float(jax.scipy.special.logsumexp(joint)) if joint.size else -np.inf
    return ExactPosterior(texts, joint, log_evidence)


@eqx.filter_jit
def _grow(one: Any, extend: Any, state: Any, parents: Array, tokens: Array) -> Any:
    """Copy the states of the parents and extend each by a token."""
    state = one.gather(state, parents)
    return extend(one, state, tokens, jnp.ones(parents.shape, bool))
