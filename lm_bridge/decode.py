r"""Steered decoding: weighted texts from a language model under potentials.

`decode` runs the program of `decoding.py` in one compiled loop, `decode_batch` for many
prompts at once, `stream` token by token, and `reject` draws exact samples where it can.
All give unbiased evidence: $E[\hat Z] = \sum_y p_\text{LM}(y)\phi(y)$.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Key

from motes.inference.smc import (
    DeadParticles,
    Particles,
    Resampler,
    run,
    steps,
    systematic,
)
from motes.inference.smc.blocks import run_blocks
from motes.lm_bridge.checks import check_decode, check_options
from motes.lm_bridge.decoded import Decoded, History
from motes.lm_bridge.decoding import MIN_BUCKET, Decoding, Unit
from motes.lm_bridge.potentials.contract import Critic, Potential
from motes.lm_bridge.token_draws import Sampler, locally_constrained

TOKEN = Unit()


def decoding(
    lm: Any,
    prompt: Any,
    max_tokens: int,
    potential: Potential | None = None,
    *,
    critic: Critic | None = None,
    proposal: tuple[Any, Any] | None = None,
    sampler: Sampler = locally_constrained,
    unit: Unit = TOKEN,
    num_prompts: int = 1,
) -> Decoding:
    """Make the program of a decode, for `motes.inference.smc.run` or `steps`.

    The arguments are those of `decode`.

    Raises:
        TypeError: If a count is no integer, or the critic no `Critic`.
        ValueError: If a count is less than one, vocabularies or numbers of prompts differ,
            or no first token is possible.
    """
    max_tokens = check_decode(
        lm, prompt, max_tokens, potential, num_prompts=num_prompts
    )
    check_options(lm, critic, proposal, unit, num_prompts, max_tokens)
    check_decode(lm, prompt, max_tokens, critic, "critic")
    if potential is not None and not isinstance(potential, Critic):
        _check_first_token(potential, max_tokens)
    read = None if proposal is None else (proposal[0], proposal[0].prefill(proposal[1]))
    return Decoding(
        lm,
        lm.prefill(prompt),
        jnp.asarray(max_tokens, jnp.int32),
        potential,
        critic,
        read,
        None if unit.ends is None else jnp.asarray(unit.ends),
        _bucket(max_tokens),
        int(unit.max_tokens),
        sampler,
        num_prompts,
    )


def decode(
    key: Key[Array, ""],
    lm: Any,
    prompt: Any,
    num_particles: int,
    max_tokens: int,
    potential: Potential | None = None,
    *,
    critic: Critic | None = None,
    proposal: tuple[Any, Any] | None = None,
    sampler: Sampler = locally_constrained,
    unit: Unit = TOKEN,
    resample: Resampler = systematic,
    ess_threshold: float = 0.5,
) -> Decoded:
    """Draw weighted texts from a language model under a potential, all in one program.

    The evidence is unbiased and weighted texts are consistent for the posterior, for every
    sampler, unit and resampling scheme; `ess_threshold=0` is importance sampling. The end
    of a text is observed with its own probability, also after `max_tokens` tokens.

    Args:
        key: PRNG key; consumed.
        lm: A `LanguageModel`.
        prompt: Token ids.
        num_particles: Number of texts.
        max_tokens: Most tokens of a text.
        potential: What steers token by token; None for plain sampling.
        critic: What multiplies the potential but is asked only about drawn units: as a
            twist, multiplied in after a unit and divided out after the next.
        proposal: Another language model and its prompt, such as the same model with a
            hint: tokens are drawn from it and weighed by the ratio of probabilities. It
            must give every token that may follow a positive probability; where it seldom
            draws what is probable, no effective sample size tells.
        sampler: How a token is drawn: `locally_constrained`, `adaptive_rejection` or
            `weighed_after`.
        unit: What is drawn between two resampling steps; one token, if not given.
        resample: Resampling scheme.
        ess_threshold: As in `motes.inference.smc.run`.

    Raises:
        ValueError: If no text can satisfy the potential, or a log-weight is NaN or +inf.
        DeadParticles: If all texts met a dead end; it holds them and says at which step.

    References:
        Lew, Zhi-Xuan, Grand and Mansinghka (2023); Loula et al. (2025).
    """
    options: Any = {"critic": critic, "proposal": proposal, "sampler": sampler}
    program = decoding(lm, prompt, max_tokens, potential, unit=unit, **options)
    how: Any = {"resample": resample, "ess_threshold": ess_threshold}
    try:
        particles, history = run(key, program, num_particles, collect=_record, **how)
    except DeadParticles as error:
        raise _dead_end(program, error.particles) from None
    return _result(particles, history, max_tokens)


def decode_batch(
    key: Key[Array, ""],
    lm: Any,
    prompts: Sequence[Any],
    num_particles: int,
    max_tokens: int,
    potential: Potential | None = None,
    *,
    resample: Resampler = systematic,
    ess_threshold: float = 0.5,
    **options: Any,
) -> Decoded:
    """Draw weighted texts for many prompts in one batch; each resamples among its own.

    The result has the prompts as leading axis. A prompt whose texts all met a dead end
    has a log evidence of `-inf`; the others are not touched. `options` are `critic`,
    `proposal` (with as many prompts), `sampler` and `unit`, as in `decode`.

    Raises:
        ValueError: If there is no prompt, or no text can satisfy the potential.
    """
    if len(prompts) == 0:
        raise ValueError(
            "decode_batch: prompts must hold at least one prompt, got none."
        )
    shape = (len(prompts), num_particles)
    rows = [jnp.asarray(prompt, jnp.int32) for prompt in prompts]
    if any(row.ndim != 1 for row in rows):
        raise ValueError(
            "decode_batch: prompts must be rows of token ids, got one that is no row. "
            "For a single prompt use decode."
        )
    program = decoding(lm, rows, max_tokens, potential, num_prompts=shape[0], **options)
    how: Any = {"resample": resample, "ess_threshold": ess_threshold}
    particles, history = run_blocks(key, program, *shape, collect=_record, **how)
    found = _result(particles, _by_prompt(history, shape), max_tokens)
    columns = (found.tokens, found.lengths, found.finished)
    columns = [leaf.reshape(*shape, *leaf.shape[1:]) for leaf in columns]
    return Decoded(*columns, *found[3:])


def stream(
    key: Key[Array, ""],
    lm: Any,
    prompt: Any,
    num_particles: int,
    max_tokens: int,
    potential: Potential | None = None,
    *,
    resample: Resampler = systematic,
    ess_threshold: float = 0.5,
    **options: Any,
) -> Iterator[Decoded]:
    """Decode as `decode` does, and yield the weighted texts after each step.

    Weights and evidence are those of the unfinished texts; the last item equals what
    `decode` gives for the same key. `options` are `critic`, `proposal`, `sampler`, `unit`.

    Raises:
        ValueError: As in `decode`.
        DeadParticles: As in `decode`, at the step where it happens.
    """
    program = decoding(lm, prompt, max_tokens, potential, **options)
    records: list[History] = []
    how: Any = {"resample": resample, "ess_threshold": ess_threshold}
    try:
        for particles in steps(key, program, num_particles, **how):
            records.append(jax.tree.map(np.asarray, _record(particles)))
            history = jax.tree.map(lambda *leaves: np.stack(leaves), *records)
            yield _result(particles, history, max_tokens)
            if bool(particles.state.finished.all()):
                return
    except DeadParticles as error:
        raise _dead_end(program, error.particles) from None


def _record(particles: Particles) -> History:
    drawn, ancestors = particles.state.drawn, particles.ancestors
    assert ancestors is not None  # as `run` keeps what is collected
    return History(drawn, ancestors, particles.log_weights, particles.ess)


def _by_prompt(history: History, shape: tuple[int, int]) -> History:
    """Separate the prompts of the tokens, which are flat, and put the prompts first."""
    tokens = history.tokens
    history = history._replace(tokens=tokens.reshape(len(tokens), *shape, -1))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), history)


def _result(particles: Particles, history: Any, max_tokens: int) -> Decoded:
    """Leave out what the bucket has beyond `max_tokens` and beyond the last step.

    Inside a caller's `jit` the number of steps is not known: further ones draw nothing.
    """
    state, spent = particles.state, particles.state.spent
    if not isinstance(spent.steps, Tracer):
        if jnp.isnan(particles.log_evidence).any():
            raise ValueError(
                "decode: potential and critic must give log-weights below +inf, got NaN "
                "or +inf for some text. Check the function that weighs."
            )
        # By NumPy: on a device each number of steps would be compiled anew.
        used = (slice(None),) * (history.ess.ndim - 1) + (slice(int(spent.steps)),)
        history = jax.tree.map(lambda x: jax.device_put(np.asarray(x)[used]), history)
    else:
        unused = jnp.arange(history.tokens.shape[-3])[:, None, None] >= spent.steps
        unused = jnp.broadcast_to(unused, history.tokens.shape)
        history = history._replace(tokens=jnp.where(unused, -1, history.tokens))
    texts = (state.tokens[:, :max_tokens], state.lengths, state.finished)
    weights = (particles.log_weights, particles.log_evidence)
    return Decoded(*texts, *weights, history, spent)


def _dead_end(program: Decoding, particles: Particles) -> DeadParticles:
    """Say at which step, after which texts, and by what, all particles died."""
    state = particles.state
    culprit = program.critic if (state.drawn >= 0).any() else None
    culprit = program.potential if culprit is None else culprit
    name = "the model" if culprit is None else type(culprit).__name__
    rows = zip(np.asarray(state.tokens), np.asarray(state.lengths), strict=True)
    texts = sorted((row[:n].tolist() for row, n in rows), key=len)[-3:]
    return DeadParticles(
        f"decode: some text must stay possible, none is after step "
        f"{int(particles.dead_step)}, by {name}; the longest texts are "
        f"{texts}. Use more particles or a potential that sees dead ends earlier.",
        particles,
    )


def _bucket(max_tokens: int) -> int:
    """Return the length of the arrays: few lengths, so that few are compiled."""
    return max(MIN_BUCKET, 1 << (max_tokens - 1).bit_length())


def _check_first_token(potential: Potential, max_tokens: int) -> None:
    with jax.ensure_compile_time_eval():
        budget = jnp.full((1,), max_tokens, jnp.int32)
        first = potential.log_weights(potential.init(1, max_tokens), budget)
        impossible = jnp.all(jnp.isneginf(first))
    if not isinstance(impossible, Tracer) and impossible:
        raise ValueError(
            f"decoding: potential must allow some text of at most max_tokens="
            f"{max_tokens} tokens, forbids every first token."
        )
