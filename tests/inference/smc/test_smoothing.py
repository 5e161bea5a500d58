"""Smoothers against exact smoothing distributions; the variance estimate."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from motes.inference.smc import (
    History,
    backward_sampling,
    bootstrap,
    derive,
    fixed_lag,
    genealogies,
    keep_ancestors,
    keep_history,
    multinomial,
    relative_variance,
    run,
    systematic,
)
from motes.inference.smc.transition import log_transition_of
from motes.ppl import AddressError, masked, model, sample
from tests.hook import unhooked
from tests.oracles import AR1, AR1_Y, ar1, ar1_initial, ar1_transition
from tests.statistics import assert_mean_is

PROGRAM = bootstrap(ar1_initial, ar1_transition, {"y": AR1_Y})


def log_transition(x, later):
    return dist.Normal(0.9 * x, 0.5).log_prob(later)


DERIVED = derive(ar1, {"y": AR1_Y}, 10)


def backward(key, particles, history):
    return backward_sampling(key, history, log_transition, 64).mean(1)


def ancestral(key, particles, history):
    return genealogies(history) @ particles.weights


def whole_lag(key, particles, history):
    return (fixed_lag(history, 9) * history.values).sum(1)


@pytest.mark.parametrize("smoother", [backward, ancestral, whole_lag])
def test_smoothed_means_match_kalman(key, smoother):
    def one(key):
        filter_key, smooth_key = jax.random.split(key)
        particles, history = run(filter_key, PROGRAM, 400, collect=keep_history)
        return smoother(smooth_key, particles, history)

    means = jax.jit(jax.vmap(one))(jax.random.split(key, 200))
    # Self-normalization leaves a bias of order 1/N: about 2e-3 at N = 400.
    assert_mean_is(AR1["smooth_mean"], means, num_sigmas=4, atol=4e-3)


def test_backward_sampling_has_the_smoothing_variance(key):
    particles, history = run(key, PROGRAM, 4000, collect=keep_history)
    paths = backward_sampling(key, history, log_transition, 2000)
    np.testing.assert_allclose(paths[5].var(), AR1["smooth_var_t5"][0], rtol=0.12)
    np.testing.assert_allclose(paths[0].var(), AR1["smooth_var_t0"][0], rtol=0.12)


def test_fixed_lag_zero_is_filtering(key):
    _, history = run(key, PROGRAM, 50, collect=keep_history)
    weights = jax.nn.softmax(history.log_weights, axis=1)
    np.testing.assert_allclose(fixed_lag(history, 0), weights, rtol=1e-12)


def test_fixed_lag_keeps_total_weight(key):
    _, history = run(key, PROGRAM, 50, collect=keep_history)
    np.testing.assert_allclose(fixed_lag(history, 3).sum(1), 1.0, rtol=1e-12)


def test_genealogies_end_at_the_last_population(key):
    particles, history = run(key, PROGRAM, 50, collect=keep_history)
    paths = genealogies(history)
    np.testing.assert_array_equal(paths[-1], particles.state)
    assert len(np.unique(paths[0])) < len(np.unique(paths[-1]))


def test_single_run_variance_estimate_is_unbiased(key):
    def one(key):
        particles, ancestors = run(
            key,
            PROGRAM,
            64,
            resample=multinomial,
            ess_threshold=1.0,
            collect=keep_ancestors,
        )
        evidence = jnp.exp(particles.log_evidence - AR1["log_likelihood"])
        return evidence, evidence**2 * relative_variance(particles, ancestors)

    evidence, estimate = jax.jit(jax.vmap(one))(jax.random.split(key, 20_000))
    squared_error = (evidence - 1.0) ** 2
    assert_mean_is(0.0, squared_error - estimate, num_sigmas=3)


def test_variance_estimate_is_near_for_multinomial_resampling_alone(key):
    @partial(jax.jit, static_argnums=0)
    def one(resample, keys):
        def single(key):
            options = {"resample": resample, "collect": keep_ancestors}
            particles, ancestors = run(key, PROGRAM, 100, **options)
            evidence = jnp.exp(particles.log_evidence - AR1["log_likelihood"])
            return evidence, relative_variance(particles, ancestors)

        return jax.vmap(single)(keys)

    ratios = {}
    for resample in (multinomial, systematic):
        evidence, estimate = one(resample, jax.random.split(key, 2500))
        ratios[resample] = float(estimate.mean() / evidence.var())
    # Standard errors are 0.04; systematic resampling keeps too many families.
    assert ratios[multinomial] == pytest.approx(1.0, abs=0.15)
    assert ratios[systematic] < 0.75


def test_bad_arguments_are_refused(key):
    _, history = run(key, PROGRAM, 5, collect=keep_history)
    with pytest.raises(ValueError, match="lag must be at least 0, got -1"):
        fixed_lag(history, -1)
    with pytest.raises(ValueError, match="num_paths must be at least 1, got 0"):
        backward_sampling(key, history, log_transition, 0)


def test_what_gives_no_transition_is_refused(key):
    _, history = run(key, PROGRAM, 5, collect=keep_history)
    with pytest.raises(
        TypeError, match="function of two states or a program of derive"
    ):
        unhooked(backward_sampling)(key, history, PROGRAM, 3)
    with pytest.raises(TypeError, match="must hold the states of the derived program"):
        backward_sampling(key, history, DERIVED, 3)


def test_a_derived_step_gives_its_transition_density(key):
    def one(key):
        filter_key, smooth_key = jax.random.split(key)
        _, history = run(filter_key, DERIVED, 400, collect=keep_history)
        return backward_sampling(smooth_key, history, DERIVED, 64).choices["x"].mean(1)

    means = jax.jit(jax.vmap(one))(jax.random.split(key, 200))
    assert_mean_is(AR1["smooth_mean"], means, num_sigmas=4, atol=4e-3)


@model
def drifting(num_steps):
    """Four moves of two dimensions; the observation sees both ends of each move."""

    def step(x, shift):
        moved = sample("x", dist.Normal(x + shift, 0.5).to_event(1))
        sample("y", dist.Normal(moved - 0.3 * x, 0.8).to_event(1))
        return jnp.tanh(moved), None

    x = sample("start", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    x, _ = jax.lax.scan(step, x, jnp.arange(num_steps * 2.0).reshape(num_steps, 2))
    sample("end", dist.Normal(x, 1.0).to_event(1))


def test_the_transition_density_is_that_of_the_model(key):
    data = {"y": masked(jnp.ones((4, 2)), jnp.arange(4) != 2), "end": jnp.ones(2)}
    program = derive(drifting, data, 4)
    _, history = run(key, program, 6, collect=keep_history)
    density = log_transition_of(program)
    for t in (1, 2):
        at = [jax.tree.map(lambda x, s=s: x[s, 3], history.values) for s in (t - 1, t)]
        found = density(*at, jax.tree.map(lambda x, t=t: x[t], program.inputs))
        x, moved = at[0].carry[0], at[1].choices["x"]
        exact = dist.Normal(x + jnp.array([2.0 * t, 2 * t + 1]), 0.5).log_prob(moved)
        y = at[1].choices["y"] if t == 2 else jnp.ones(2)
        exact += dist.Normal(moved - 0.3 * x, 0.8).log_prob(y)
        np.testing.assert_allclose(found, exact.sum(), rtol=1e-12)


def test_states_that_cannot_be_joined_are_refused(key):
    @model
    def summed(num_steps):
        def step(total, _):
            return total + sample("x", dist.Normal(0.0, 1.0)), None

        return jax.lax.scan(step, 0.0, None, length=num_steps)[0]

    @model
    def unknown_scale(num_steps):
        scale = sample("scale", dist.HalfNormal(1.0))

        def step(x, _):
            return sample("x", dist.Normal(x, scale)), None

        return jax.lax.scan(step, 0.0, None, length=num_steps)[0]

    for refused in (summed, unknown_scale):
        program = derive(refused, {}, 3)
        _, history = run(key, program, 4, collect=keep_history)
        with pytest.raises(AddressError, match="function of the step's choices alone"):
            backward_sampling(key, history, program, 2)


def test_rounding_draws_no_impossible_state(key):
    """Sums of many single-precision weights may grow at a weight of zero."""
    dead = jax.random.bernoulli(key, 0.5, (20_000,))
    log_weights = 2 * jax.random.normal(key, dead.shape, jnp.float32)
    log_weights = jnp.where(dead, -jnp.inf, log_weights)[None]
    history = History(dead[None], log_weights, jnp.arange(dead.size)[None])
    paths = backward_sampling(key, history, lambda x, y: jnp.zeros(()), 5_000_000)
    assert not paths.any()
