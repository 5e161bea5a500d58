"""Importance sampling against conjugate answers."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from motes.inference.smc import (
    SCHEMES,
    DeadParticles,
    importance_sampling,
    resample_particles,
)
from motes.inference.smc.particles import from_log_weights
from motes.ppl import ShapeError, condition, model, sample
from tests.oracles import TRUTH
from tests.statistics import assert_log_evidence_unbiased, assert_mean_is

COIN, NORMAL = TRUTH["A1_beta_bernoulli"], TRUTH["A2_normal_known_var"]


@model
def coin():
    p = sample("p", dist.Beta(2.0, 3.0))
    sample("y", dist.Bernoulli(p).expand([10]))


@model
def normal():
    mu = sample("mu", dist.Normal(0.0, 2.0))
    sample("y", dist.Normal(mu, 1.5).expand([5]))


@model
def near_posterior():
    sample("mu", dist.Normal(1.2, 0.7))


POSTERIORS = {
    "coin": (condition(coin, {"y": jnp.array(COIN["y"])}), None, COIN, "p", "mean"),
    "normal": (
        condition(normal, {"y": jnp.array(NORMAL["y"])}),
        None,
        NORMAL,
        "mu",
        "post_mean",
    ),
    "proposal": (
        condition(normal, {"y": jnp.array(NORMAL["y"])}),
        near_posterior,
        NORMAL,
        "mu",
        "post_mean",
    ),
}


@pytest.mark.parametrize("case", POSTERIORS)
def test_evidence_and_mean_match_conjugacy(key, case):
    target, proposal, truth, name, mean = POSTERIORS[case]

    def one(key):
        particles = importance_sampling(key, target, 100, proposal=proposal)
        ratio = jnp.exp(particles.log_evidence - truth["log_evidence"])
        return particles.log_evidence, ratio * particles.mean(particles.state[name])

    log_evidence, products = jax.jit(jax.vmap(one))(jax.random.split(key, 2000))
    assert_log_evidence_unbiased(truth["log_evidence"], log_evidence)
    assert_mean_is(truth[mean], products, num_sigmas=3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_resampled_traces_have_the_same_mean(key, scheme):
    target = POSTERIORS["coin"][0]

    def one(key):
        first, second = jax.random.split(key)
        particles = importance_sampling(first, target, 50)
        again = resample_particles(second, particles, 50, resample=SCHEMES[scheme])
        gap = again.mean(again.state["p"]) - particles.mean(particles.state["p"])
        return gap, again.log_evidence - particles.log_evidence

    gap, change = jax.jit(jax.vmap(one))(jax.random.split(key, 1000))
    assert_mean_is(0.0, gap, num_sigmas=4)
    assert jnp.all(change == 0)


def test_exact_proposal_gives_constant_weights(key):
    @model
    def posterior():
        sample("mu", dist.Normal(NORMAL["post_mean"], NORMAL["post_sd"]))

    target = POSTERIORS["normal"][0]
    particles = importance_sampling(key, target, 20, proposal=posterior)
    assert float(particles.ess) == pytest.approx(20.0)
    assert float(particles.log_evidence) == pytest.approx(NORMAL["log_evidence"])


def test_impossible_data_are_reported(key):
    @model
    def uniform():
        x = sample("x", dist.Uniform(0.0, 1.0))
        sample("y", dist.Uniform(x, x + 1.0))

    with pytest.raises(DeadParticles, match="importance_sampling: some particle"):
        importance_sampling(key, condition(uniform, {"y": 9.0}), 10)


def test_number_of_particles_is_checked(key):
    with pytest.raises(ValueError, match="num_particles must be at least 1"):
        importance_sampling(key, normal, 0)


@pytest.mark.parametrize("values", [jnp.zeros(3), jnp.zeros(()), [1.0, 2.0]])
def test_means_are_over_particles(values):
    particles = from_log_weights(jnp.zeros(4), jnp.zeros(4))
    with pytest.raises(
        ShapeError, match="mean: values must have the 4 particles as lea"
    ):
        particles.mean(values)


def test_quantiles_count_weights_of_any_real_values():
    weights = jnp.array([0.0, 0.3, 0.2, 0.5])
    particles = from_log_weights(None, jnp.log(weights))
    values = jnp.array([-9, 3, 1, 2])
    found = [int(particles.quantile(values, q)) for q in (0.0, 0.19, 0.4, 0.71, 1.0)]
    assert found == [1, 1, 2, 3, 3]
    assert int(jax.jit(particles.quantile)(values, 0.4)) == 2
    with pytest.raises(ValueError, match=r"values must have shape \(4,\).* got \(3,\)"):
        particles.quantile(values[:3], 0.5)
    with pytest.raises(ValueError, match="q must lie between 0 and 1, got 50"):
        particles.quantile(values, 50.0)
