r"""Particles whose texts grow on a remote endpoint.

The target is that of `decode`: $\gamma(y) = p(y\,\mathrm{EOS})\,\phi(y)$ over texts of at
most `max_tokens` tokens; the end is observed with its own probability, so a text whose
next draw after `max_tokens` tokens is not its end has weight zero. The server's own draws
are the proposal, hence weights are ratios of $\phi$ alone. Read `remote_texts.py` next.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from motes.inference.smc import (
    DeadParticles,
    Particles,
    Resampler,
    start,
    steps,
    systematic,
)
from motes.lm_bridge.endpoint import Endpoint, EndpointError
from motes.lm_bridge.journal import Journal
from motes.lm_bridge.remote_texts import LogScore, RemoteBudget, RemoteTexts
from motes.ppl.errors import check_count


class RemoteDecoded(NamedTuple):
    """Weighted texts.

    Attributes:
        texts: What follows the prompt.
        finished: Which texts have ended; the others have weight zero, or are still
            growing where an `EndpointError` holds them.
        log_weights: Log-weights with mean weight one.
        log_evidence: Log of an unbiased estimate of the total weight of all texts, nats.
        ess: Effective sample size after each step.
        budget: What was used.
    """

    texts: tuple[str, ...]
    finished: Bool[np.ndarray, " N"]
    log_weights: Float[Array, " N"]
    log_evidence: Float[Array, ""]
    ess: Float[np.ndarray, " S"]
    budget: RemoteBudget

    @property
    def weights(self) -> Float[Array, " N"]:
        """Normalized weights."""
        return jnp.exp(self.log_weights) / self.log_weights.shape[0]

    def posterior(self) -> dict[str, float]:
        """Return the weight of each distinct text."""
        total: dict[str, float] = {}
        for text, weight in zip(self.texts, np.asarray(self.weights), strict=True):
            total[text] = total.get(text, 0.0) + float(weight)
        return dict(sorted(total.items(), key=lambda item: -item[1]))


def decode_remote(
    key: Key[Array, ""],
    endpoint: Endpoint,
    prompt: str,
    num_particles: int,
    max_tokens: int,
    log_score: LogScore | None = None,
    *,
    tokens_per_step: int = 16,
    unit_ends: Sequence[str] = (),
    resample: Resampler = systematic,
    ess_threshold: float = 0.5,
    checkpoint: str | os.PathLike | None = None,
) -> RemoteDecoded:
    """Draw weighted texts from a served model under a score of texts.

    The evidence is unbiased and weighted texts are consistent for the posterior, if the
    server reads a text back as the tokens that it had drawn. For a server that honors
    seeds the result is a function of the key, whatever faults there were.

    Args:
        key: PRNG key; consumed.
        endpoint: Where the model is served.
        prompt: What all texts continue.
        num_particles: Number of texts.
        max_tokens: Most tokens of a text.
        log_score: What steers; None for plain sampling. Must be a pure function.
        tokens_per_step: Most tokens between two resampling steps.
        unit_ends: Strings that end a step early, such as a line's end; what the server
            drew beyond is dropped, which changes nothing but the cost.
        resample: Resampling scheme.
        ess_threshold: As in `motes.inference.smc.run`.
        checkpoint: File that keeps all answers. A run that finds it repeats what it
            holds bit for bit, and asks the endpoint only for what is missing.

    Raises:
        ValueError: If a count is less than one, a score is no number, or `checkpoint` is
            of another run.
        EndpointError: If an answer can not be had; its `particles` are a `RemoteDecoded`.
        DeadParticles: If no text can go on.
    """
    num_particles = check_count("decode_remote", "num_particles", num_particles)
    max_tokens = check_count("decode_remote", "max_tokens", max_tokens)
    tokens_per_step = check_count("decode_remote", "tokens_per_step", tokens_per_step)
    settings = {"num_particles": num_particles, "max_tokens": max_tokens}
    settings |= {"prompt": prompt, "tokens_per_step": tokens_per_step}
    settings |= {"unit_ends": list(unit_ends), "model": endpoint.model}
    journal = Journal(
        checkpoint, {"key": np.asarray(jax.random.key_data(key)).tolist()} | settings
    )
    unit = tokens_per_step, tuple(unit_ends)
    program = RemoteTexts(endpoint, prompt, max_tokens, log_score, *unit, journal)
    particles = start(key, program, num_particles)
    history: list[float] = []
    options = {"resample": resample, "ess_threshold": ess_threshold}
    try:
        for particles in steps(key, program, num_particles, jit=False, **options):
            history.append(float(particles.ess))
            if program.has_ended(particles.state):
                break
    except EndpointError as error:
        error.particles = _result(program, particles, history)
        raise
    except DeadParticles as error:
        raise _dead_end(error.particles) from None
    return _result(program, particles, history)


def _result(
    program: RemoteTexts, particles: Particles, history: list[float]
) -> RemoteDecoded:
    state = particles.state
    return RemoteDecoded(
        tuple(state.texts),
        state.finished,
        particles.log_weights,
        particles.log_evidence,
        np.asarray(history, float),
        program.budget,
    )


def _dead_end(particles: Particles) -> DeadParticles:
    texts = sorted(particles.state.texts, key=len)[-3:]
    return DeadParticles(
        f"decode_remote: some text must stay possible, none is after step "
        f"{int(particles.dead_step)}, by log_score or as none ended within max_tokens; "
        f"the longest texts are {texts}. Use more particles or a larger max_tokens.",
        particles,
    )
