"""Smoothers against exact smoothing distributions; the variance estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from motes.inference.smc import (
    backward_sampling,
    bootstrap,
    fixed_lag,
    genealogies,
    keep_ancestors,
    keep_history,
    multinomial,
    relative_variance,
    run,
)
from tests.oracles import AR1, AR1_Y, ar1_initial, ar1_transition
from tests.statistics import assert_mean_is

PROGRAM = bootstrap(ar1_initial, ar1_transition, {"y": AR1_Y})


def log_transition(x, later):
    return dist.Normal(0.9 * x, 0.5).log_prob(later)


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


def test_bad_arguments_are_refused(key):
    _, history = run(key, PROGRAM, 5, collect=keep_history)
    with pytest.raises(ValueError, match="lag must not be negative, got -1"):
        fixed_lag(history, -1)
    with pytest.raises(ValueError, match="num_paths must be at least 1, got 0"):
        backward_sampling(key, history, log_transition, 0)
