"""Exact answers that tests compare with, and the models they belong to."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from motes.ppl import model, sample

TRUTH = json.loads((Path(__file__).parent / "data" / "ground_truth.json").read_text())

AR1 = TRUTH["D1_lgssm_ar1"]
AR1_Y = jnp.array(AR1["y"])
STATIONARY = 0.5 / (1 - 0.81) ** 0.5


@model
def ar1_initial():
    """First state and observation of the AR(1) model D1."""
    x = sample("x", dist.Normal(0.0, STATIONARY))
    sample("y", dist.Normal(x, 0.8))
    return x


@model
def ar1_transition(x):
    """Next state and observation of the AR(1) model D1."""
    x = sample("x", dist.Normal(0.9 * x, 0.5))
    sample("y", dist.Normal(x, 0.8))
    return x


@model
def ar1(num_steps):
    """The AR(1) model D1 as one program: the scan is time."""

    def step(x, _):
        x = sample("x", dist.Normal(0.9 * x, 0.5))
        sample("y", dist.Normal(x, 0.8))
        return x, None

    # A stationary x_{-1} makes the first state stationary.
    x = sample("start", dist.Normal(0.0, STATIONARY))
    return jax.lax.scan(step, x, None, length=num_steps)[0]


@model
def ar1_proposal(x, observed):
    """The locally optimal proposal for `ar1_transition`."""
    variance = 1 / (1 / 0.25 + 1 / 0.64)
    mean = variance * (0.9 * x / 0.25 + observed["y"] / 0.64)
    sample("x", dist.Normal(mean, variance**0.5))


def ar1_look_ahead(x, observed):
    """Log density of the next observation given the state."""
    return dist.Normal(0.9 * x, (0.25 + 0.64) ** 0.5).log_prob(observed["y"])


HMM = TRUTH["C1_hmm_gaussian"]
HMM_Y = jnp.array(HMM["y"])


@model
def hmm(num_steps):
    """The hidden Markov model C1 as one program."""
    matrix, means = jnp.array(HMM["A"]), jnp.array(HMM["mu"])
    first = sample("z0", dist.Categorical(jnp.array(HMM["pi"])))
    sample("y0", dist.Normal(means[first], HMM["sd"]))

    def step(z, _):
        z = sample("z", dist.Categorical(matrix[z]))
        sample("y", dist.Normal(means[z], HMM["sd"]))
        return z, None

    return jax.lax.scan(step, first, None, length=num_steps)[0]


TINY = TRUTH["I1_smc_unbiased_tiny_hmm"]


@model
def tiny_initial():
    """First state of the two-state chain I1; `w` weighs by the data."""
    z = sample("z", dist.Categorical(jnp.array(TINY["pi"])))
    sample("y", dist.Bernoulli(jnp.array(TINY["obs_prob"])[0][z]))
    return z, jnp.ones((), int)


@model
def tiny_transition(state):
    """Next state of the two-state chain I1."""
    z, t = state
    z = sample("z", dist.Categorical(jnp.array(TINY["A"])[z]))
    sample("y", dist.Bernoulli(jnp.array(TINY["obs_prob"])[t][z]))
    return z, t + 1
