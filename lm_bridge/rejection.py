r"""Rejection sampling of texts: exact and independent, where weights have a bound.

A text drawn with a weight $w \le B$ is accepted with probability $w/B$, which leaves
exactly the posterior; the rate of acceptance estimates the evidence.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from motes.inference.smc import DeadParticles
from motes.lm_bridge.decode import decode
from motes.lm_bridge.decoded import Decoded
from motes.ppl.errors import check_count

ROUNDING = 1e-4
"""How far in nats rounding may carry a weight over its bound."""


def reject(
    key: Key[Array, ""],
    lm: Any,
    prompt: Any,
    num_texts: int,
    max_tokens: int,
    potential: Any = None,
    *,
    log_bound: float = 0.0,
    batch: int = 256,
    max_tries: int = 100_000,
    **options: Any,
) -> Decoded:
    r"""Draw independent texts exactly from the posterior.

    Texts are drawn as by `decode` without resampling. With $n$ tries for $k$ texts the
    evidence estimate $B (k - 1)/(n - 1)$ is unbiased for two texts or more.

    Args:
        key: PRNG key; consumed.
        lm: A `LanguageModel`.
        prompt: Token ids.
        num_texts: Number of texts, $k$.
        max_tokens: Most tokens of a text.
        potential: What steers; a constraint's weights are at most one.
        log_bound: Log of the largest weight of a text, $B$, in nats.
        batch: Tries that are drawn at once.
        max_tries: Most tries.
        **options: `critic`, `proposal`, `sampler` and `unit` of `decode`.

    Raises:
        ValueError: If a weight is above the bound, or `num_texts` is less than one.
        RuntimeError: If `max_tries` were not enough.
    """
    num_texts = check_count("reject", "num_texts", num_texts)

    def tries(key: Any) -> Decoded:
        return decode(
            key, lm, prompt, batch, max_tokens, potential, ess_threshold=0.0, **options
        )

    kept: list[Any] = []
    budget: Any = None
    num_tries, missing = 0, num_texts
    while missing:
        if num_tries >= max_tries:
            raise RuntimeError(
                f"reject: num_texts must be accepted within max_tries={max_tries}, got "
                f"{num_texts - missing} of {num_texts}. Use decode, or a sharper sampler."
            )
        key, draw_key, accept_key = jax.random.split(key, 3)
        drawn, spent, rows = _accept(draw_key, accept_key, tries, log_bound)
        rows = rows[:missing]
        num_tries += int(rows[-1]) + 1 if len(rows) == missing else batch
        missing -= len(rows)
        if len(rows) > 0:
            kept.append([np.asarray(leaf)[rows] for leaf in drawn])
        budget = spent if budget is None else jax.tree.map(jnp.add, budget, spent)
    # By NumPy: on a device each list of sizes would be compiled anew.
    joined = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    tokens, lengths, finished = (jax.device_put(leaf) for leaf in joined)
    rate = (num_texts - 1) / (num_tries - 1) if num_texts > 1 else 1 / num_tries
    log_evidence = jnp.asarray(log_bound + np.log(rate))
    weights = jnp.zeros(num_texts, log_evidence.dtype)
    return Decoded(tokens, lengths, finished, weights, log_evidence, None, budget)


def _accept(
    draw_key: Any, accept_key: Any, tries: Callable[[Any], Decoded], log_bound: float
) -> tuple[Any, Any, np.ndarray]:
    """Draw a batch; return its texts, what was used, and which rows are accepted."""
    try:
        found = tries(draw_key)
    except DeadParticles as error:
        state = error.particles.state
        nobody = np.zeros(0, int)
        return (state.tokens, state.lengths, state.finished), state.spent, nobody
    log_ratio = np.asarray(found.log_weights + found.log_evidence) - log_bound
    if log_ratio.max() > ROUNDING:
        raise ValueError(
            f"reject: log_bound must bound the log-weight of every text, got {log_bound} "
            f"and a text with {log_ratio.max() + log_bound}."
        )
    uniforms = np.asarray(jax.random.uniform(accept_key, log_ratio.shape))
    texts = (found.tokens, found.lengths, found.finished)
    return texts, found.budget, np.flatnonzero(np.log(uniforms) < log_ratio)
