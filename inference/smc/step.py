"""One step of sequential Monte Carlo: resample when needed, move, weigh.

It is a pure function over `Particles`, and the one core of both drivers.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from motes.inference.smc.feynman_kac import FeynmanKac, LooksAhead
from motes.inference.smc.particles import (
    Particles,
    from_log_weights,
    log_mean_and_ess,
    reweight,
)
from motes.inference.smc.resampling import Resampler, systematic


class Policy(NamedTuple):
    """When and how to resample.

    Attributes:
        resample: The scheme.
        ess_threshold: Resample when the effective sample size is below this share of the
            particles; 1 resamples at every step, 0 never.
    """

    resample: Resampler = systematic
    ess_threshold: float = 0.5


def start(key: Key[Array, ""], program: FeynmanKac, num_particles: int) -> Particles:
    """Draw the first population."""
    state, log_weights = program.init(jax.random.fold_in(key, 0), num_particles)
    return from_log_weights(state, log_weights)


def advance(
    key: Key[Array, ""],
    program: FeynmanKac,
    particles: Particles,
    step: Any,
    inputs: Any,
    policy: Policy = Policy(),
) -> Particles:
    """Resample if the policy says so, then move and weigh.

    Args:
        key: The key of the whole run; the step's own is folded out of it.
        program: The program.
        particles: The population before the step.
        step: Number of the step, from 1.
        inputs: The data of this step.
        policy: When and how to resample.
    """
    resample_key, step_key = jax.random.split(jax.random.fold_in(key, step))
    if isinstance(program, LooksAhead):
        scores = program.look_ahead(particles.state, inputs)
        particles = resample_ahead(resample_key, particles, scores, policy)
    else:
        particles = resample_if_needed(resample_key, particles, policy)
    state, log_increments = program.step(step_key, particles.state, inputs)
    return reweight(replace(particles, state=state), log_increments, jnp.asarray(step))


def resample_if_needed(
    key: Key[Array, ""], particles: Particles, policy: Policy
) -> Particles:
    """Resample when the effective sample size is low; the evidence is unchanged.

    States are moved only when resampling happens (under `jax.vmap` over runs, always).
    """

    def offspring(particles: Particles) -> Particles:
        ancestors, log_weights = policy.resample(
            key, particles.log_weights, particles.num_particles
        )
        return _select(particles, ancestors, log_weights)

    return _when_low(particles.ess, offspring, particles, policy)


def resample_ahead(
    key: Key[Array, ""], particles: Particles, scores: Array, policy: Policy
) -> Particles:
    """Resample by weights times `exp(scores)`, and divide the scores out again.

    References:
        Chopin and Papaspiliopoulos (2020), Algorithm 10.6.
    """
    tilted = particles.log_weights + scores
    log_mean, ess = log_mean_and_ess(tilted)

    def offspring(particles: Particles) -> Particles:
        ancestors, log_weights = policy.resample(key, tilted, particles.num_particles)
        log_weights = log_weights - scores[ancestors] + log_mean
        return _select(particles, ancestors, log_weights)

    return _when_low(ess, offspring, particles, policy)


def _when_low(ess: Array, offspring: Any, particles: Particles, policy: Policy) -> Particles:
    threshold = policy.ess_threshold
    num = particles.num_particles
    particles = replace(particles, ancestors=jnp.arange(num))
    if isinstance(threshold, int | float) and threshold >= 1:
        return offspring(particles)
    if isinstance(threshold, int | float) and threshold <= 0:
        return particles
    return jax.lax.cond(ess < threshold * num, offspring, lambda p: p, particles)


def _select(particles: Particles, ancestors: Array, log_weights: Array) -> Particles:
    state = jax.tree.map(lambda x: x[ancestors], particles.state)
    ancestors = ancestors.astype(particles.ancestors.dtype)
    log_weights = log_weights.astype(particles.log_weights.dtype)
    return replace(particles, state=state, ancestors=ancestors, log_weights=log_weights)
