"""Draws that rest on gamma variables, against their distribution functions."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats
from scipy import special

from motes.ppl import gamma_draws, model, sample

NUM = 20_000
LEVEL = 1e-3
CASES = {
    "gamma, .05": (dist.Gamma(0.05, 3.0), scipy.stats.gamma(0.05, scale=1 / 3)),
    "gamma, .7": (dist.Gamma(0.7, 3.0), scipy.stats.gamma(0.7, scale=1 / 3)),
    "gamma, 1": (dist.Gamma(1.0), scipy.stats.expon()),
    "gamma, 2.5": (dist.Gamma(2.5, 0.5), scipy.stats.gamma(2.5, scale=2)),
    "gamma, 400": (dist.Gamma(400.0), scipy.stats.gamma(400)),
    "chi2": (dist.Chi2(1.5), scipy.stats.chi2(1.5)),
    "inverse gamma": (dist.InverseGamma(3.0, 2.0), scipy.stats.invgamma(3, scale=2)),
    "beta": (dist.Beta(0.3, 2.0), scipy.stats.beta(0.3, 2)),
    "dirichlet": (dist.Dirichlet(jnp.array([0.5, 1.0, 3.0])), scipy.stats.beta(0.5, 4)),
    "student": (dist.StudentT(3.0, 1.0, 2.0), scipy.stats.t(3, loc=1, scale=2)),
}


@pytest.mark.parametrize("lanes", ["one key", "keys"])
@pytest.mark.parametrize("name", CASES)
def test_draws_have_their_distribution(key, name, lanes):
    density, exact = CASES[name]
    if lanes == "one key":
        draws = jax.jit(lambda k: gamma_draws.sample(density, k, (NUM,)))(key)
    else:
        one = lambda k: gamma_draws.sample(density, k)  # noqa: E731
        draws = jax.jit(jax.vmap(one))(jax.random.split(key, NUM))
    assert draws.shape == (NUM, *density.event_shape)
    first = np.asarray(draws)[:, 0] if density.event_shape else np.asarray(draws)
    assert scipy.stats.kstest(first, exact.cdf).pvalue > LEVEL


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("concentration", [0.3, 1.0, 5.0])
def test_tangent_is_that_of_the_distribution_function(key, concentration, dtype):
    a = jnp.full((50,), concentration, dtype)
    (draw, log_draw), (slope, tangent) = jax.jvp(
        lambda x: gamma_draws.gamma(x, key), (a,), (jnp.ones_like(a),)
    )
    np.testing.assert_allclose(jnp.log(draw), log_draw, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, tangent * draw, rtol=1e-5)
    assert log_draw.dtype == tangent.dtype == dtype
    x, step = np.exp(np.asarray(log_draw, np.float64)), 1e-5
    low = special.gammainc(concentration - step, x)
    slope = (special.gammainc(concentration + step, x) - low) / (2 * step)
    exact = -slope / scipy.stats.gamma(concentration).pdf(x) / x
    np.testing.assert_allclose(
        tangent, exact, rtol=2e-3 if dtype == jnp.float32 else 1e-4
    )


def test_bad_concentrations_are_nan_and_end(key):
    bad = jnp.array([2.0, 0.0, -1.0, jnp.nan, jnp.inf])
    draws, _ = gamma_draws.gamma(bad, key)
    np.testing.assert_array_equal(jnp.isnan(draws), [False, True, True, True, True])


def test_lanes_are_independent_and_small_draws_stay_positive(key):
    @model
    def many():
        return sample("x", dist.Gamma(1e-3 * jnp.ones(2_000), 1.0))

    draws = many.simulate(key)["x"]
    assert (draws > 0).all()
    large, _ = gamma_draws.gamma(jnp.full((2, NUM), 2.0), key)
    correlation = np.corrcoef(large)[0, 1]
    assert abs(correlation) < 5 / np.sqrt(NUM)


def test_large_concentrations_are_right_in_single_precision(key):
    draws, _ = gamma_draws.gamma(jnp.full((NUM,), 1e9, jnp.float32), key)
    standard = (np.asarray(draws, np.float64) - 1e9) / 1e9**0.5
    assert scipy.stats.kstest(standard, scipy.stats.norm.cdf).pvalue > LEVEL
