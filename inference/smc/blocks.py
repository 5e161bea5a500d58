"""Several populations that are moved as one batch and resampled each among its own.

The program sees one state of `num_blocks * num_particles` particles in consecutive blocks,
as a language model that reads many prompts at once; weights, evidence and effective sizes
have the blocks as leading axis. Read `run.py` for the one-population driver.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from motes.inference.smc.feynman_kac import (
    FeynmanKac,
    Finishes,
    Gathers,
    LooksAhead,
)
from motes.inference.smc.particles import Particles, from_log_weights, reweight
from motes.inference.smc.resampling import Resampler, systematic
from motes.inference.smc.run import with_first
from motes.inference.smc.step import Policy, check_run, take, unless_ended
from motes.ppl.errors import check_count


def run_blocks(
    key: Key[Array, ""],
    program: FeynmanKac,
    num_blocks: int,
    num_particles: int,
    *,
    resample: Resampler = systematic,
    ess_threshold: float = 0.5,
    collect: Callable[[Particles], Any] | None = None,
) -> tuple[Particles, Any]:
    """Run a program over independent populations; each evidence is unbiased.

    States are moved when some population resamples. A population whose weights are all
    zero gets an evidence of zero and its `dead_step`; the others go on.

    Args:
        key: PRNG key; consumed.
        program: The program; its `init` is asked for all particles.
        num_blocks: Number of populations, $P$.
        num_particles: Particles of each population, $N$.
        resample: Resampling scheme.
        ess_threshold: As in `run`.
        collect: As in `run`; its weights are `(P, N)`, its states flat.

    Raises:
        TypeError: If the program looks ahead.
    """
    policy = check_run("run_blocks", key, program, Policy(resample, ess_threshold))
    if isinstance(program, LooksAhead):
        raise TypeError(
            "run_blocks: program must not look ahead, got one that does: "
            f"{type(program).__name__}. Map `run` over keys instead."
        )
    shape = (
        check_count("run_blocks", "num_blocks", num_blocks),
        check_count("run_blocks", "num_particles", num_particles),
    )
    return _run(key, program, shape, policy, collect)


@partial(jax.jit, static_argnames=("shape", "policy", "collect"))
def _run(
    key: Any, program: Any, shape: tuple[int, int], policy: Policy, collect: Any
) -> tuple[Particles, Any]:
    keep = collect or (lambda _: None)
    state, log_weights = program.init(jax.random.fold_in(key, 0), shape[0] * shape[1])
    weigh = jax.vmap(partial(from_log_weights, None))
    particles = weigh(log_weights.reshape(shape))._replace(state=state)

    def body(particles: Particles, row: Any) -> tuple[Particles, Any]:
        particles = _advance(key, program, particles, *row, policy)
        return particles, keep(particles)

    first = keep(particles)
    rows = (jnp.arange(1, program.num_steps + 1), program.inputs)
    particles, collected = jax.lax.scan(body, particles, rows)
    particles = _finish(key, program, particles)
    return particles, with_first(program, first, collected)


def _advance(
    key: Any, program: Any, particles: Particles, step: Any, inputs: Any, policy: Policy
) -> Particles:
    """Resample the populations that need it, then move and weigh all."""

    def move(particles: Particles) -> Particles:
        resample_key, step_key = jax.random.split(jax.random.fold_in(key, step))
        resampled = _resample(resample_key, program, particles, policy)
        state, increments = program.step(step_key, resampled.state, inputs)
        return _reweight(resampled, state, increments, step)

    return unless_ended(program, particles, move)


def _finish(key: Any, program: FeynmanKac, particles: Particles) -> Particles:
    if not isinstance(program, Finishes):
        return particles
    step = jnp.asarray(program.num_steps + 1)
    increments = program.finish(jax.random.fold_in(key, step), particles.state)
    return _reweight(particles, particles.state, increments, step)


def _reweight(particles: Particles, state: Any, increments: Array, step: Any) -> Any:
    """Give the particles their new states, and each population its new weights."""
    increments = increments.reshape(particles.log_weights.shape)
    weigh = jax.vmap(reweight, (0, 0, None))
    return weigh(particles._replace(state=None), increments, step)._replace(state=state)


def _resample(
    key: Any, program: Any, particles: Particles, policy: Policy
) -> Particles:
    log_weights = particles.log_weights
    num_blocks, num = log_weights.shape
    gather = program.gather if isinstance(program, Gathers) else take
    # A threshold of one resamples always, as the one-population driver does.
    low = particles.ess < policy.ess_threshold * num
    low = (low | (policy.ess_threshold >= 1)) & (particles.dead_step < 0)
    stay = jnp.broadcast_to(jnp.arange(num)[None], log_weights.shape)

    def move() -> tuple[Any, Array, Array]:
        draw = partial(policy.resample, num_draws=num)
        keys = jax.random.split(key, num_blocks)
        ancestors, moved = jax.vmap(lambda k, w: draw(k, w))(keys, log_weights)
        ancestors = jnp.where(low[:, None], ancestors, stay)
        flat = ancestors + num * jnp.arange(num_blocks)[:, None]
        weights = jnp.where(low[:, None], moved, log_weights)
        return gather(particles.state, flat.reshape(-1)), weights, ancestors

    state, log_weights, ancestors = jax.lax.cond(
        jnp.any(low), move, lambda: (particles.state, log_weights, stay)
    )
    return particles._replace(state=state, log_weights=log_weights, ancestors=ancestors)
