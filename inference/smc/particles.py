r"""Weighted particles.

A population of $N$ particles with log-weights $\log w_n$ kept at mean weight one; the
normalizing constant that was divided out is `log_evidence`. Every SMC method returns one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from motes.ppl import ShapeError


class DeadParticles(RuntimeError):
    """All particles have weight zero; `particles` holds the population at that step."""

    def __init__(self, message: str, particles: "Particles"):
        super().__init__(message)
        self.particles = particles


class Particles(NamedTuple):
    r"""A weighted population.

    Attributes:
        state: Any pytree whose leaves have the particles as leading axis.
        log_weights: Log-weights in nats, shifted so that the mean weight is one.
        log_evidence: Log of an unbiased estimate of the evidence so far, in nats.
        ess: Effective sample size $(\sum w)^2 / \sum w^2$.
        ancestors: For each particle, the index of its parent in the last step; None where
            a driver was not asked to keep it.
        dead_step: The first step after which all weights were zero, or -1.
    """

    state: Any
    log_weights: Float[Array, " N"]
    log_evidence: Float[Array, ""]
    ess: Float[Array, ""]
    ancestors: Int[Array, " N"] | None
    dead_step: Int[Array, ""]

    @property
    def num_particles(self) -> int:
        return self.log_weights.shape[0]

    @property
    def weights(self) -> Float[Array, " N"]:
        """Normalized weights."""
        return jnp.exp(self.log_weights) / self.num_particles

    def mean(self, values: Any = None) -> Any:
        """Return the weighted mean of `values` (of the state, if None), by leaf.

        The mean is a consistent estimate of the posterior mean; times the evidence it is
        an unbiased estimate of the unnormalized one.
        """
        weights = self.weights
        values = self.state if values is None else values
        for shape in map(jnp.shape, jax.tree.leaves(values)):
            if shape[:1] != weights.shape:
                raise ShapeError(
                    f"mean: values must have the {weights.shape[0]} particles as leading "
                    f"axis, got shape {shape}."
                )
        return jax.tree.map(lambda x: jnp.tensordot(weights, x, 1), values)

    def quantile(
        self, values: Real[Array, " M"], q: float | Float[Array, ""]
    ) -> Real[Array, ""]:
        """Return the weighted quantile `q` of one scalar per particle.

        It is the least value that carries weight and has at least the share `q` of the
        weight at or below it; a consistent estimate of the posterior's quantile.

        Raises:
            ValueError: If there is not one value per particle, or a concrete `q` is not
                between 0 and 1.
        """
        if values.shape != self.log_weights.shape:
            raise ValueError(
                f"quantile: values must have shape {self.log_weights.shape}, one per "
                f"particle, got {values.shape}."
            )
        if not isinstance(q, jax.core.Tracer) and not 0 <= q <= 1:
            raise ValueError(f"quantile: q must lie between 0 and 1, got {q}.")
        order = jnp.argsort(values)
        cdf = jnp.cumsum(self.weights[order])
        share = jnp.maximum(q * cdf[-1], jnp.finfo(cdf.dtype).tiny)
        index = jnp.searchsorted(cdf, share).clip(max=values.shape[0] - 1)
        return values[order][index]


def from_log_weights(state: Any, log_weights: Float[Array, " N"]) -> Particles:
    """Make a population from raw importance weights; the evidence is their mean."""
    num = log_weights.shape[0]
    return reweight(
        Particles(
            state,
            jnp.zeros_like(log_weights),
            jnp.zeros((), log_weights.dtype),
            jnp.full((), num, log_weights.dtype),
            jnp.arange(num),
            jnp.full((), -1),
        ),
        log_weights,
        jnp.zeros((), int),
    )


def reweight(
    particles: Particles, log_increments: Float[Array, " N"], step: Int[Array, ""]
) -> Particles:
    """Multiply the weights and move their mean into the evidence."""
    log_weights = particles.log_weights + log_increments
    log_mean, ess = log_mean_and_ess(log_weights)
    is_dead = jnp.isneginf(log_mean)
    shift = jnp.where(is_dead, 0.0, log_mean).astype(log_weights.dtype)
    first = is_dead & (particles.dead_step < 0)
    return particles._replace(
        log_weights=log_weights - shift,
        log_evidence=particles.log_evidence + log_mean,
        ess=ess,
        dead_step=jnp.where(first, step, particles.dead_step),
    )


def log_mean_and_ess(log_weights: Float[Array, " N"]) -> tuple[Array, Array]:
    """Return the log of the mean weight and the effective sample size, in one pass."""
    top = jnp.max(log_weights)
    finite_top = jnp.where(jnp.isneginf(top), 0.0, top)
    weights = jnp.exp(log_weights - finite_top)
    total = jnp.sum(weights)
    ess = total**2 / jnp.maximum(jnp.sum(weights**2), jnp.finfo(total.dtype).tiny)
    return finite_top + jnp.log(total / log_weights.shape[0]), ess


def raise_if_dead(call: str, particles: Particles) -> Particles:
    """Raise `DeadParticles` if the population is known, outside `jit`, to be dead."""
    step = particles.dead_step
    if isinstance(step, jax.core.Tracer) or jnp.max(step) < 0:
        return particles
    raise DeadParticles(
        f"{call}: some particle must have positive weight, got none after step "
        f"{int(jnp.max(step))}. The observations are impossible under the model there, "
        "or more particles are needed.",
        particles,
    )
