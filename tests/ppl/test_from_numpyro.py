"""NumPyro models keep their density and their shapes as models of motes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from motes.ppl import condition, from_numpyro, masked
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from numpyro.infer.util import log_density

rng = np.random.default_rng(0)


def eight_schools(sigma, effects=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", sigma.shape[0]):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("effects", dist.Normal(theta, sigma), obs=effects)


def batting(at_bats, hits=None):
    success = numpyro.sample("success", dist.Uniform(0.0, 1.0))
    concentration = numpyro.sample("concentration", dist.Pareto(1.0, 1.5))
    with numpyro.plate("players", at_bats.shape[0]):
        shape = success * concentration
        rate = numpyro.sample("rate", dist.Beta(shape, concentration - shape))
        numpyro.sample("hits", dist.Binomial(at_bats, probs=rate), obs=hits)


def stochastic_volatility(returns):
    sigma = numpyro.sample("sigma", dist.Exponential(50.0))
    walk = dist.GaussianRandomWalk(sigma, num_steps=returns.shape[0])
    s = numpyro.sample("s", walk)
    nu = numpyro.sample("nu", dist.Exponential(0.1))
    scale = numpyro.deterministic("scale", jnp.exp(s))
    numpyro.sample("r", dist.StudentT(nu, 0.0, scale), obs=returns)
    return scale


def hidden_markov(words):
    with numpyro.plate("topics", 3):
        move = numpyro.sample("move", dist.Dirichlet(jnp.ones(3)))
        emit = numpyro.sample("emit", dist.Dirichlet(jnp.full(4, 0.5)))

    def step(previous, word):
        topic = numpyro.sample("topic", dist.Categorical(move[previous]))
        numpyro.sample("word", dist.Categorical(emit[topic]), obs=word)
        return topic, topic

    return scan(step, 0, words)[1]


def horseshoe_regression(features, labels):
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
    with numpyro.plate("features", features.shape[1]):
        local = numpyro.sample("local", dist.HalfCauchy(1.0))
        weights = numpyro.sample("weights", dist.Normal(0.0, tau * local))
    with numpyro.plate("rows", features.shape[0]):
        numpyro.sample("label", dist.Bernoulli(logits=features @ weights), obs=labels)


def varying_slopes(group, x, y=None, *, num_groups):
    with numpyro.plate("coefficients", 2, dim=-2):
        center = numpyro.sample("center", dist.Normal(0.0, 1.0))
        spread = numpyro.sample("spread", dist.HalfNormal(1.0))
        with numpyro.plate("groups", num_groups, dim=-1):
            slope = numpyro.sample("slope", dist.Normal(center, spread))
    noise = numpyro.sample("noise", dist.HalfCauchy(2.0))
    with numpyro.plate("rows", x.shape[0], subsample_size=None):
        loc = slope[0, group] + slope[1, group] * x
        numpyro.sample("y", dist.Normal(loc, noise), obs=y)


def seasonal_series(y, season=3):
    level0 = numpyro.sample("level0", dist.Normal(0.0, 5.0))
    with numpyro.plate("season", season):
        seasonal0 = numpyro.sample("seasonal0", dist.Normal(0.0, 1.0))
    rate = numpyro.sample("rate", dist.Beta(1.0, 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))

    def step(carry, observed):
        level, seasonal = carry
        step = numpyro.sample("step", dist.Normal(0.0, 0.1))
        mean = level + seasonal[0]
        drawn = numpyro.sample("y", dist.Normal(mean, noise), obs=observed)
        level = rate * (drawn - seasonal[0]) + (1 - rate) * level + step
        seasonal = jnp.concatenate([seasonal[1:], (drawn - level)[None]])
        return (level, seasonal), numpyro.deterministic("mean", mean)

    return scan(step, (level0, seasonal0), y)[1]


def gaussian_process(x, y):
    variance = numpyro.sample("variance", dist.LogNormal(0.0, 1.0))
    length = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
    gap = (x[:, None] - x[None, :]) / length
    kernel = variance * jnp.exp(-0.5 * gap**2) + noise * jnp.eye(x.shape[0])
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(x.shape[0]), kernel), obs=y)


def ordinal_regression(x, rating=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    spacing = numpyro.sample("spacing", dist.Dirichlet(jnp.ones(4)))
    cuts = jax.scipy.special.logit(jnp.cumsum(spacing)[:-1])
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("rating", dist.OrderedLogistic(slope * x, cuts), obs=rating)


def gaussian_mixture(y):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    locs = numpyro.sample("locs", dist.Normal(0.0, 5.0).expand([3]).to_event(1))
    scale = numpyro.sample("scale", dist.InverseGamma(3.0, 2.0))
    parts = dist.Normal(locs, jnp.broadcast_to(scale, (3,)))
    with numpyro.plate("rows", y.shape[0]):
        mixture = dist.MixtureSameFamily(dist.Categorical(weights), parts)
        numpyro.sample("y", mixture, obs=y)


def lotka_steps(counts):
    rates = numpyro.sample("rates", dist.TruncatedNormal(jnp.ones(2), 0.3, low=0.0))
    start = numpyro.sample("start", dist.LogNormal(1.0, 0.5).expand([2]).to_event(1))

    def step(state, row):
        growth = jnp.stack([1.0 - 0.1 * state[1], 0.1 * state[0] - rates[1]])
        state = state * jnp.exp(0.1 * rates * growth)
        with numpyro.plate("species", 2):
            numpyro.sample("count", dist.Poisson(state), obs=row)
        return state, state

    return scan(step, start, counts)[1]


centered = handlers.reparam(
    eight_schools, config={"theta": LocScaleReparam(0.0), "mu": LocScaleReparam(0.4)}
)

SIGMA = jnp.array([15.0, 10.0, 16.0, 11.0])
EFFECTS = jnp.array([28.0, 8.0, -3.0, 7.0])
X = jnp.asarray(rng.normal(size=5))
MODELS = {
    "eight_schools": (eight_schools, (SIGMA, EFFECTS), {}),
    "eight_schools_joint": (eight_schools, (SIGMA,), {}),
    "eight_schools_reparam": (centered, (SIGMA, EFFECTS), {}),
    "batting": (batting, (jnp.array([45, 44, 40]), jnp.array([18, 17, 11])), {}),
    "batting_joint": (batting, (jnp.array([45, 44, 40]),), {}),
    "stochastic_volatility": (stochastic_volatility, (0.1 * X,), {}),
    "hidden_markov": (hidden_markov, (jnp.array([0, 3, 1, 2, 2]),), {}),
    "horseshoe": (
        horseshoe_regression,
        (jnp.asarray(rng.normal(size=(4, 3))), jnp.array([0, 1, 1, 0])),
        {},
    ),
    "varying_slopes": (
        varying_slopes,
        (jnp.array([0, 1, 2, 1, 0]), X, 2 * X),
        {"num_groups": 3},
    ),
    "seasonal_series": (seasonal_series, (X,), {}),
    "gaussian_process": (gaussian_process, (X, jnp.sin(X)), {}),
    "ordinal_regression": (ordinal_regression, (X, jnp.array([0, 3, 1, 2, 2])), {}),
    "gaussian_mixture": (gaussian_mixture, (X,), {}),
    "lotka_steps": (lotka_steps, (jnp.array([[3, 4], [2, 5], [4, 4]]),), {}),
}


def numpyro_draw(fn, key, *args, **kwargs):
    """Draw the latent sites of a NumPyro model with NumPyro."""
    with jax.numpy_rank_promotion("allow"):
        sites = handlers.trace(handlers.seed(fn, key)).get_trace(*args, **kwargs)
    is_latent = {name: s["type"] == "sample" and not s["is_observed"]
                 for name, s in sites.items()}  # fmt: skip
    return {name: sites[name]["value"] for name in sites if is_latent[name]}


def numpyro_log_density(fn, values, *args, **kwargs):
    with jax.numpy_rank_promotion("allow"):
        return log_density(fn, args, kwargs, values)[0]


def assert_same_model(fn, key, *args, **kwargs):
    """Assert that densities agree at draws of both, and so do names and shapes."""
    model = from_numpyro(fn, **kwargs)
    theirs = [numpyro_draw(fn, k, *args, **kwargs) for k in jax.random.split(key, 2)]
    with jax.numpy_rank_promotion("allow"):
        traces = [model.simulate(k, *args) for k in jax.random.split(key, 2)]
        for values in [*theirs, *(trace.choices for trace in traces)]:
            exact = numpyro_log_density(fn, values, *args, **kwargs)
            np.testing.assert_allclose(model.log_density(values, *args), exact, 1e-9)
    for trace in traces:
        exact = numpyro_log_density(fn, trace.choices, *args, **kwargs)
        np.testing.assert_allclose(trace.log_density, exact, 1e-9)
        shapes = {name: (x.shape, x.dtype) for name, x in trace.choices.items()}
        assert shapes == {name: (x.shape, x.dtype) for name, x in theirs[0].items()}


@pytest.mark.parametrize("name", MODELS)
def test_log_density_and_shapes_are_those_of_numpyro(name, key):
    fn, args, kwargs = MODELS[name]
    assert_same_model(fn, key, *args, **kwargs)
