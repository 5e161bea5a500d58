r"""Importance sampling and sampling-importance-resampling, on whole traces.

Particles are traces with weight $p(x, y)/q(x)$; their mean is an unbiased estimate of the
evidence $p(y)$. It is the one-step case of the SMC engine.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from motes.inference.smc.particles import Particles, from_log_weights, raise_if_dead
from motes.inference.smc.proposals import check_models, generate_from
from motes.inference.smc.resampling import Resampler, systematic
from motes.ppl import Conditioned, Model, vmap_lanes
from motes.ppl.errors import check_count, check_key
from motes.ppl.transforms import as_target


def importance_sampling(
    key: Key[Array, ""],
    target: Model | Conditioned,
    num_particles: int,
    *args: Any,
    proposal: Model | None = None,
) -> Particles:
    """Draw weighted traces for a posterior.

    The exponential of the log evidence is unbiased; weighted means are consistent.

    Args:
        key: PRNG key; consumed.
        target: A model, or `condition(model, constraints)`.
        num_particles: Number of traces.
        *args: Arguments of the model.
        proposal: A model of some of the free choices, called with the same arguments; the
            others are drawn from the model. What it draws for a branch that the model
            does not take counts in neither density.

    Returns:
        Particles whose state is a batch of traces.

    Raises:
        ValueError: If `num_particles` is less than one, or the proposal has a factor.
        AddressError: If the proposal draws what the model has not or what is fixed.
        DeadParticles: If all weights are zero; inside `jit` the evidence is zero.

    References:
        Chopin and Papaspiliopoulos (2020), Section 8.3.
    """
    check_key("importance_sampling", key)
    num_particles = check_count("importance_sampling", "num_particles", num_particles)
    target = as_target("importance_sampling", target)

    if proposal is not None:
        check_models("importance_sampling", proposal=proposal)

    def lane() -> Any:
        if proposal is None:
            return target.generate(key, {}, *args)
        models = (target.model, args, proposal, args)
        return generate_from("importance_sampling", key, *models, target.constraints)

    traces, log_weights = vmap_lanes(lane, num_lanes=num_particles)()
    return raise_if_dead("importance_sampling", from_log_weights(traces, log_weights))


@partial(jax.jit, static_argnames=("num_draws", "resample"))
def resample_particles(
    key: Key[Array, ""],
    particles: Particles,
    num_draws: int,
    *,
    resample: Resampler = systematic,
) -> Particles:
    """Resample a population to `num_draws` particles; the evidence is unchanged.

    With `importance_sampling` this is sampling-importance-resampling (SIR).

    References:
        Rubin (1987); Chopin and Papaspiliopoulos (2020), Section 9.3.
    """
    ancestors, log_weights = resample(key, particles.log_weights, num_draws)
    return particles._replace(
        state=jax.tree.map(lambda x: x[ancestors], particles.state),
        log_weights=log_weights,
        ancestors=ancestors,
        ess=num_draws / jnp.mean(jnp.exp(2 * log_weights)),
    )
