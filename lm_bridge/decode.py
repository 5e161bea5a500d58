r"""Decoding as a Feynman-Kac program: text is steered by the engine that filters series.

The target is $p_\text{LM}(y)\phi(y)$ over texts that end. A step draws
$v \sim p(v | y)\phi(v | y) / \sum$ and weighs by the sum, which is locally optimal;
finished particles are absorbing: they keep their weight and are resampled with the others.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from motes.inference.smc import DeadParticles, Particles, Resampler, run, systematic


class DecodeState(NamedTuple):
    """Texts while they grow.

    Attributes:
        tokens: Token ids; what is beyond a text's length is an id that ends it.
        lengths: Number of tokens, the end not counted.
        finished: Which texts have ended.
        lm: The language model's memory.
        potential: The potential's memory.
    """

    tokens: Int[Array, "N T"]
    lengths: Int[Array, " N"]
    finished: Array
    lm: Any
    potential: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoding:
    """The Feynman-Kac program of a decode; as `decoding` makes it."""

    lm: Any
    prefilled: Any
    potential: Any
    inputs: Any
    max_tokens: int = field(metadata={"static": True})
    init_is_step: bool = field(default=False, metadata={"static": True})

    @property
    def num_steps(self) -> int:
        return self.max_tokens + 1

    def init(self, key: Key[Array, ""], num_particles: int) -> Any:
        shape = (num_particles, self.max_tokens)
        memory = None
        if self.potential is not None:
            memory = self.potential.init(num_particles, self.max_tokens)
        state = DecodeState(
            jnp.full(shape, self.lm.eos_ids[0], jnp.int32),
            jnp.zeros(num_particles, jnp.int32),
            jnp.zeros(num_particles, bool),
            # One token more than the text: the last forward pass is of the last token.
            self.lm.init_state(self.prefilled, num_particles, self.max_tokens + 1),
            memory,
        )
        return state, jnp.zeros(num_particles, self._scores(state, 0)[0].dtype)

    def gather(self, state: DecodeState, ancestors: Int[Array, " N"]) -> DecodeState:
        """Copy particles; what the model's particles share, as the prompt, stays."""
        memory = state.potential
        if self.potential is not None:
            memory = self.potential.gather(memory, ancestors)
        return DecodeState(
            state.tokens[ancestors],
            state.lengths[ancestors],
            state.finished[ancestors],
            self.lm.gather(state.lm, ancestors),
            memory,
        )

    def step(self, key: Key[Array, ""], state: DecodeState, inputs: Any) -> Any:
        """Draw one token for each unfinished text; at the limit only the end is left."""
        scores, ends = self._scores(state, self.max_tokens - inputs)
        is_last = inputs == self.max_tokens
        scores = jnp.where(is_last & ~ends[None], -jnp.inf, scores)
        tokens, log_sums = draw_tokens(key, scores)
        active = ~state.finished
        goes_on = active & ~ends[tokens] & ~jnp.isneginf(log_sums)
        state = self._extend(state, tokens, goes_on, inputs)
        return state, jnp.where(active, log_sums, 0.0)

    def _extend(
        self, state: DecodeState, tokens: Array, goes_on: Array, at: Any
    ) -> Any:
        column = at.clip(max=self.max_tokens - 1)
        written = jnp.where(goes_on, tokens, state.tokens[:, column])
        memory = state.potential
        if self.potential is not None:
            memory = self.potential.step(memory, tokens, goes_on)
        return DecodeState(
            state.tokens.at[:, column].set(written.astype(jnp.int32)),
            state.lengths + goes_on,
            state.finished | ~goes_on,
            self.lm.append(state.lm, tokens, goes_on),
            memory,
        )

    def _scores(self, state: DecodeState, remaining: Any) -> tuple[Array, Array]:
        scores = self.lm.next_log_probs(state.lm)
        if self.potential is not None:
            budget = jnp.broadcast_to(
                jnp.asarray(remaining, jnp.int32), scores.shape[:1]
            )
            scores = scores + self.potential.log_weights(state.potential, budget)
        ends = jnp.zeros(scores.shape[1], bool).at[jnp.array(self.lm.eos_ids)].set(True)
        return scores, ends


def draw_tokens(
    key: Key[Array, ""], scores: Float[Array, "N V"]
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """Draw one token of each row, proportionally to `exp(scores)`, by inverse CDF.

    Returns:
        Tokens, and the log of each row's sum in nats; where that is `-inf` the token means
        nothing.
    """
    top = jnp.max(scores, axis=1)
    shift = jnp.where(jnp.isneginf(top), 0.0, top)
    cdf = jnp.cumsum(jnp.exp(scores - shift[:, None]), axis=1)
    totals = cdf[:, -1]
    points = jax.random.uniform(key, totals.shape, totals.dtype) * totals
    tokens = jnp.sum(cdf <= points[:, None], axis=1)
    # Rounding must not pick a token of weight zero at the upper end.
    possible = ~jnp.isneginf(scores)
    last = scores.shape[1] - 1 - jnp.argmax(possible[:, ::-1], axis=1)
    return jnp.minimum(tokens, last), jnp.log(totals) + shift


class Decoded(NamedTuple):
    """Weighted texts.

    Attributes:
        tokens: Token ids, padded with an id that ends a text.
        lengths: Number of tokens of each, the end not counted.
        log_weights: Log-weights with mean weight one.
        log_evidence: Log of an unbiased estimate of the total weight of all texts, nats.
        ess: Effective sample size after each step.
        num_generated: Tokens drawn for unfinished texts, the budget that was used.
    """

    tokens: Int[Array, "N T"]
    lengths: Int[Array, " N"]
    log_weights: Float[Array, " N"]
    log_evidence: Float[Array, ""]
    ess: Float[Array, " S"]
    num_generated: Int[Array, ""]

    @property
    def weights(self) -> Float[Array, " N"]:
        """Normalized weights."""
        return jax.nn.softmax(self.log_weights)

    def posterior(self) -> dict[tuple[int, ...], float]:
        """Return the weight of each distinct text, by its token ids."""
        total: dict[tuple[int, ...], float] = defaultdict(float)
        rows, lengths = np.asarray(self.tokens), np.asarray(self.lengths)
        for row, length, weight in zip(rows, lengths, self.weights, strict=True):
            total[tuple(row[:length].tolist())] += float(weight)
        return dict(sorted(total.items(), key=lambda item: -item[1]))


def decoding(lm: Any, prompt: Any, max_tokens: int, potential: Any = None) -> Decoding:
    """Make the program of a decode, for `motes.inference.smc.run` or `steps`.

    Raises:
        ValueError: If `max_tokens` is less than one or no first token is possible.
    """
    if max_tokens < 1:
        raise ValueError(f"decoding: max_tokens must be at least 1, got {max_tokens}.")
    if potential is not None:
        _check_first_token(lm, potential, max_tokens)
    inputs = jnp.arange(max_tokens + 1)
    return Decoding(lm, lm.prefill(prompt), potential, inputs, max_tokens)


def _check_first_token(lm: Any, potential: Any, max_tokens: int) -> None:
    if potential.vocab_size != lm.vocab_size:
        raise ValueError(
            f"decoding: potential must have the vocabulary of the model, "
            f"{lm.vocab_size} tokens, got {potential.vocab_size}."
        )
    with jax.ensure_compile_time_eval():
        budget = jnp.full((1,), max_tokens, jnp.int32)
        first = potential.log_weights(potential.init(1, max_tokens), budget)
        impossible = jnp.all(jnp.isneginf(first))
    if not isinstance(impossible, jax.core.Tracer) and impossible:
        raise ValueError(
            f"decoding: potential must allow some text of at most max_tokens="
            f"{max_tokens} tokens, forbids every first token."
        )


def decode(
    key: Key[Array, ""],
    lm: Any,
    prompt: Any,
    num_particles: int,
    max_tokens: int,
    potential: Any = None,
    *,
    resample: Resampler = systematic,
    ess_threshold: float = 0.5,
) -> Decoded:
    """Draw weighted texts from a language model under a potential, all in one program.

    The evidence is unbiased and weighted texts are consistent for the posterior, for every
    resampling scheme; `ess_threshold=0` is importance sampling. The end of a text is
    observed with its own probability, also after `max_tokens` tokens.

    Args:
        key: PRNG key; consumed.
        lm: A `LanguageModel`.
        prompt: Token ids.
        num_particles: Number of texts.
        max_tokens: Most tokens of a text.
        potential: What steers; None for plain sampling.
        resample: Resampling scheme.
        ess_threshold: As in `motes.inference.smc.run`.

    Raises:
        ValueError: If no text can satisfy the potential.
        DeadParticles: If all texts met a dead end; it holds them and says at which step.

    References:
        Lew, Zhi-Xuan, Grand and Mansinghka (2023); Loula et al. (2025).
    """
    program = decoding(lm, prompt, max_tokens, potential)
    try:
        particles, collected = run(
            key,
            program,
            num_particles,
            resample=resample,
            ess_threshold=ess_threshold,
            collect=_progress,
        )
    except DeadParticles as error:
        state = error.particles.state
        raise DeadParticles(
            f"decode: some text must stay possible, none is after token "
            f"{int(error.particles.dead_step)}; the longest has "
            f"{int(state.lengths.max())} tokens. Use more particles or a potential that "
            "sees dead ends earlier.",
            error.particles,
        ) from None
    return _result(particles, *collected)


def _progress(particles: Particles) -> tuple[Array, Array]:
    return particles.ess, jnp.sum(~particles.state.finished)


@partial(jax.jit)
def _result(particles: Particles, ess: Array, unfinished: Array) -> Decoded:
    state = particles.state
    num = particles.log_weights.shape[0]
    return Decoded(
        state.tokens,
        state.lengths,
        particles.log_weights,
        particles.log_evidence,
        ess,
        num + jnp.sum(unfinished[:-1]),
    )
