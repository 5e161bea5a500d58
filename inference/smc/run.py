"""The compiled driver of Feynman-Kac programs: one loop over one step.

`steps`, in the file beside this one, is the other driver. They give the same answer for
the same key.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from motes.inference.smc.feynman_kac import FeynmanKac
from motes.inference.smc.particles import Particles, raise_if_dead
from motes.inference.smc.resampling import Resampler, systematic
from motes.inference.smc.step import Policy, advance, check_run, finish, start
from motes.ppl.errors import check_count
from motes.ppl.jaxprs import reads_inputs


def run(
    key: Key[Array, ""],
    program: FeynmanKac,
    num_particles: int,
    *,
    resample: Resampler = systematic,
    ess_threshold: float = 0.5,
    collect: Callable[[Particles], Any] | None = None,
) -> tuple[Particles, Any]:
    r"""Run a Feynman-Kac program, compiled as one loop.

    $\exp$ of the log evidence is an unbiased estimate of the evidence, for every scheme
    and threshold; weighted means are consistent. Memory does not grow with the number of
    steps, except by what `collect` returns. Under `jax.vmap` over keys or programs each
    lane resamples among its own particles, and states are moved at every step.

    Args:
        key: PRNG key; consumed.
        program: The program, as a builder makes it.
        num_particles: Number of particles, $N$.
        resample: Resampling scheme.
        ess_threshold: Resample when the effective sample size is below this share of $N$,
            from 0 (never) to 1 (at every step).
        collect: What to keep of the population after each step; a function that stays the
            same between calls is compiled once.

    Returns:
        The last population (with ancestors, if `collect` reads them), and what was
        collected with the steps as leading axis.

    Raises:
        ValueError: If `num_particles` is less than one, or `ess_threshold` no share.
        DeadParticles: If all weights become zero; inside `jit` the evidence is zero and
            `dead_step` says where.

    References:
        Chopin and Papaspiliopoulos (2020), Algorithm 10.3.
    """
    policy = check_run("run", key, program, Policy(resample, ess_threshold))
    num_particles = check_count("run", "num_particles", num_particles)
    particles, collected = _run(key, program, num_particles, policy, collect)
    return raise_if_dead("run", particles), collected


@partial(jax.jit, static_argnames=("num_particles", "policy", "collect"))
def _run(
    key: Any, program: Any, num_particles: int, policy: Policy, collect: Any
) -> tuple[Particles, Any]:
    keep = collect or (lambda _: None)
    policy = policy._replace(
        keep_ancestors=_reads_ancestors(keep, key, program, num_particles)
    )
    particles = start(key, program, num_particles, policy)
    first = keep(particles)

    def body(particles: Particles, row: Any) -> tuple[Particles, Any]:
        step, inputs = row
        particles = advance(key, program, particles, step, inputs, policy)
        return particles, keep(particles)

    rows = (jnp.arange(1, program.num_steps + 1), program.inputs)
    particles, collected = jax.lax.scan(body, particles, rows)
    return finish(key, program, particles), with_first(program, first, collected)


def with_first(program: FeynmanKac, first: Any, collected: Any) -> Any:
    """Put what was kept of the first population in front, if it has seen data."""
    if not program.init_is_step:
        return collected
    return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, collected)


def _reads_ancestors(keep: Any, key: Any, program: Any, num_particles: int) -> bool:
    """Whether `keep` reads the ancestors: carrying them through the loop has a cost."""
    particles = jax.eval_shape(lambda k: start(k, program, num_particles), key)
    reads = reads_inputs(keep, particles)
    return bool(reads.ancestors)
