r"""The variance of the evidence, from the genealogy of a single run.

With $E_n$ the ancestor at time 0 of particle $n$, distinct families make the estimate
$\hat V = 1 - (N/(N-1))^{t+1} (1 - \sum_e (\sum_{n: E_n = e} W_n)^2)$.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from motes.inference.smc.particles import Particles


def keep_ancestors(particles: Particles) -> Int[Array, " N"]:
    """Collect the ancestors: pass it to `run` as `collect`."""
    return particles.ancestors


def first_ancestors(ancestors: Int[Array, "T N"]) -> Int[Array, " N"]:
    """Trace every particle to its ancestor in the first population."""

    def back(index: Array, row: Array) -> tuple[Array, None]:
        return row[index], None

    last = jnp.arange(ancestors.shape[1])
    return jax.lax.scan(back, last, ancestors, reverse=True)[0]


def relative_variance(
    particles: Particles,
    ancestors: Int[Array, "T N"],
    num_resamplings: int | Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    r"""Estimate the variance of $\hat Z / Z$ from one run.

    With multinomial resampling at every step the estimate times $\hat Z^2$ is unbiased
    for the variance of $\hat Z$; with multinomial resampling when the effective sample
    size is low it is near. Other schemes, as the default one of `run`, keep more families
    than chance would: then it is too small, and may be negative.

    Args:
        particles: The last population.
        ancestors: Ancestors of every resampling, as `keep_ancestors` collects them.
        num_resamplings: How often the population was resampled; by default the number of
            rows that moved a particle, which is too small where resampling may by chance
            keep all of very few.

    Raises:
        ValueError: If there is only one particle.

    References:
        Lee and Whiteley (2018), Equation 3 and Theorem 1.
    """
    num = particles.num_particles
    if num < 2:
        raise ValueError(
            f"relative_variance: particles must be at least 2, got {num}. One particle "
            "has no other to be compared with."
        )
    families = first_ancestors(ancestors)
    weights = particles.weights
    mass = jnp.zeros_like(weights).at[families].add(weights)
    if num_resamplings is None:
        num_resamplings = jnp.sum(jnp.any(ancestors != jnp.arange(num)[None], axis=1))
    factor = (num / (num - 1.0)) ** (num_resamplings + 1)
    return 1.0 - factor * (1.0 - jnp.sum(mass**2))


__all__: list[Any] = ["first_ancestors", "keep_ancestors", "relative_variance"]
