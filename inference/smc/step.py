"""One step of sequential Monte Carlo: resample when needed, move, weigh.

It is a pure function over `Particles`, and the one core of both drivers.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Key

from motes.inference.smc.feynman_kac import (
    Ends,
    FeynmanKac,
    Finishes,
    Gathers,
    LooksAhead,
)
from motes.inference.smc.particles import (
    Particles,
    from_log_weights,
    log_mean_and_ess,
    reweight,
)
from motes.inference.smc.resampling import Resampler, systematic
from motes.ppl.errors import check_key, describe


class Policy(NamedTuple):
    """When and how to resample.

    Attributes:
        resample: The scheme.
        ess_threshold: Resample when the effective sample size is below this share of the
            particles; 1 resamples at every step, 0 never.
        keep_ancestors: Whether populations hold their ancestors; else these are None.
    """

    resample: Resampler = systematic
    ess_threshold: float = 0.5
    keep_ancestors: bool = True


ADAPTIVE = Policy()


def start(
    key: Key[Array, ""],
    program: FeynmanKac,
    num_particles: int,
    policy: Policy = ADAPTIVE,
) -> Particles:
    """Draw the first population."""
    state, log_weights = program.init(jax.random.fold_in(key, 0), num_particles)
    particles = from_log_weights(state, log_weights)
    ancestors = particles.ancestors if policy.keep_ancestors else None
    return particles._replace(ancestors=ancestors)


def advance(
    key: Key[Array, ""],
    program: FeynmanKac,
    particles: Particles,
    step: Any,
    inputs: Any,
    policy: Policy = ADAPTIVE,
) -> Particles:
    """Resample if the policy says so, then move and weigh.

    Loops of your own may compile it with `donate_argnames="particles"`, which lets the
    new population take the memory of the old.

    Args:
        key: The key of the whole run; the step's own is folded out of it.
        program: The program.
        particles: The population before the step.
        step: Number of the step, from 1.
        inputs: The data of this step.
        policy: When and how to resample.
    """

    def move(particles: Particles) -> Particles:
        resample_key, step_key = jax.random.split(jax.random.fold_in(key, step))
        resampled = _resample(resample_key, program, particles, inputs, policy)
        state, log_increments = program.step(step_key, resampled.state, inputs)
        moved = resampled._replace(state=state)
        return reweight(moved, log_increments, jnp.asarray(step))

    return unless_ended(program, particles, move)


def unless_ended(
    program: FeynmanKac, particles: Particles, move: Callable[[Particles], Particles]
) -> Particles:
    """Move the particles, unless the program says that it has ended."""
    if not isinstance(program, Ends):
        return move(particles)
    if particles.ancestors is not None:  # where nothing moves, each is its own parent
        stay = jnp.arange(particles.log_weights.shape[-1])
        stay = jnp.broadcast_to(stay, particles.ancestors.shape)
        stay = stay.astype(particles.ancestors.dtype)
        particles = particles._replace(ancestors=stay)
    return in_place_if(~program.has_ended(particles.state), move, particles)


def in_place_if(flag: Any, change: Callable[[Any], Any], carry: Any) -> Any:
    """Change the carry if the flag is set, where it lies in memory.

    For large states: a `cond` copies what one of its branches leaves as it is; a loop of
    at most one turn does not. It has no derivative in reverse mode.
    """
    if not isinstance(flag, Tracer):
        return change(carry) if flag else carry
    _, carry = jax.lax.while_loop(
        lambda pair: pair[0],
        lambda pair: (jnp.zeros_like(pair[0]), change(pair[1])),
        (flag, carry),
    )
    return carry


def _resample(
    key: Any, program: FeynmanKac, particles: Particles, inputs: Any, policy: Policy
) -> Particles:
    gather = program.gather if isinstance(program, Gathers) else take
    if not isinstance(program, LooksAhead):
        return resample_if_needed(key, particles, policy, gather)
    scores = program.look_ahead(particles.state, inputs)
    return resample_ahead(key, particles, scores, policy, gather)


def finish(key: Key[Array, ""], program: FeynmanKac, particles: Particles) -> Particles:
    """Weigh by what comes after the last step, for a program that has it."""
    if not isinstance(program, Finishes):
        return particles
    step = program.num_steps + 1
    increments = program.finish(jax.random.fold_in(key, step), particles.state)
    return reweight(particles, increments, jnp.asarray(step))


def check_run(call: str, key: Any, program: Any, policy: Policy) -> Policy:
    """Refuse what no run could use, before any work; return the policy."""
    check_key(call, key)
    if not isinstance(program, FeynmanKac):
        raise TypeError(
            f"{call}: program must be a Feynman-Kac program, got {describe(program)}. "
            "Make one of a model with derive, or of two with bootstrap."
        )
    if not callable(policy.resample):
        raise TypeError(
            f"{call}: resample must be a resampling scheme, got "
            f"{describe(policy.resample)}. Schemes are functions, by name in SCHEMES."
        )
    is_number = issubclass(type(policy.ess_threshold), numbers.Real)
    if not is_number or not 0 <= policy.ess_threshold <= 1:
        raise (ValueError if is_number else TypeError)(
            f"{call}: ess_threshold must be a number between 0 and 1, got "
            f"{describe(policy.ess_threshold)}."
        )
    return policy


def take(state: Any, ancestors: Array) -> Any:
    """Copy particles in every leaf of a state."""
    return jax.tree.map(lambda x: _take(x, ancestors), state)


def resample_if_needed(
    key: Key[Array, ""], particles: Particles, policy: Policy, gather: Callable = take
) -> Particles:
    """Resample when the effective sample size is low; the evidence is unchanged.

    States are moved only when resampling happens (under `jax.vmap` over runs, always).
    """

    def offspring() -> Offspring:
        return policy.resample(key, particles.log_weights, particles.num_particles)

    return _when_low(particles.ess, offspring, particles, policy, gather)


def resample_ahead(
    key: Key[Array, ""],
    particles: Particles,
    scores: Array,
    policy: Policy,
    gather: Callable = take,
) -> Particles:
    """Resample by weights times `exp(scores)`, and divide the scores out again.

    References:
        Chopin and Papaspiliopoulos (2020), Algorithm 10.6.
    """
    tilted = particles.log_weights + scores
    log_mean, ess = log_mean_and_ess(tilted)

    def offspring() -> Offspring:
        ancestors, log_weights = policy.resample(key, tilted, particles.num_particles)
        return ancestors, log_weights - scores[ancestors] + log_mean

    return _when_low(ess, offspring, particles, policy, gather)


Offspring = tuple[Array, Array]


def _when_low(
    ess: Array,
    offspring: Callable[[], Offspring],
    particles: Particles,
    policy: Policy,
    gather: Callable,
) -> Particles:
    num, threshold = particles.num_particles, policy.ess_threshold
    dtypes = jnp.arange(num).dtype, particles.log_weights.dtype

    def move(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        ancestors, log_weights = offspring()
        state = gather(carry[0], ancestors)
        kept = ancestors.astype(dtypes[0]) if policy.keep_ancestors else None
        return state, log_weights.astype(dtypes[1]), kept

    kept = jnp.arange(num) if policy.keep_ancestors else None
    carry = (particles.state, particles.log_weights, kept)
    is_low = ess < threshold * num
    if threshold >= 1:
        carry = move(carry)
    elif threshold > 0 and (gather is not take or not isinstance(is_low, Tracer)):
        # Outside `jit` states may be arrays that JAX cannot trace, such as strings.
        carry = in_place_if(is_low, move, carry)
    elif threshold > 0:
        carry = jax.lax.cond(is_low, move, lambda carry: carry, carry)
    state, log_weights, ancestors = carry
    return particles._replace(state=state, log_weights=log_weights, ancestors=ancestors)


def _take(values: Any, ancestors: Array) -> Any:
    if isinstance(values, np.ndarray) and not isinstance(ancestors, Tracer):
        return values[np.asarray(ancestors)]
    return jnp.asarray(values)[ancestors]
