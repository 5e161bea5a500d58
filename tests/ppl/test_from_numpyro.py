"""NumPyro models keep their density and their shapes as models of motes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.infer.reparam import LocScaleReparam, TransformReparam
from numpyro.infer.util import log_density

from motes.ppl import condition, from_numpyro, masked

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
        topic = numpyro.sample("topic", dist.Categorical(jnp.asarray(move)[previous]))
        numpyro.sample("word", dist.Categorical(jnp.asarray(emit)[topic]), obs=word)
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
    exact = jax.jit(lambda values: numpyro_log_density(fn, values, *args, **kwargs))
    keys = jax.random.split(key, 2)
    with jax.numpy_rank_promotion("allow"):
        traces = [model.simulate(k, *args) for k in keys]
        theirs = numpyro_draw(fn, key, *args, **kwargs)
        for values in [theirs, *(flat(trace.choices) for trace in traces)]:
            ours = model.log_density(nested(values), *args)
            np.testing.assert_allclose(ours, exact(values), 1e-9)
    for trace in traces:
        values = flat(trace.choices)
        np.testing.assert_allclose(trace.log_density, exact(values), 1e-9)
        shapes = {name: (x.shape, x.dtype) for name, x in values.items()}
        assert shapes == {name: (x.shape, x.dtype) for name, x in theirs.items()}


def flat(choices, prefix=""):
    """Write choices as NumPyro does: by name, scopes in front."""
    out = {}
    for name, value in choices.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{name}/")
        else:
            out[prefix + name] = value
    return out


def nested(values):
    out = {}
    for name, value in values.items():
        *scopes, last = name.split("/")
        node = out
        for scope in scopes:
            node = node.setdefault(scope, {})
        node[last] = value
    return out


@pytest.mark.parametrize("name", MODELS)
def test_log_density_and_shapes_are_those_of_numpyro(name, key):
    fn, args, kwargs = MODELS[name]
    assert_same_model(fn, key, *args, **kwargs)


def scaled(y):
    mu = numpyro.param("mu", 0.5)
    with handlers.scale(scale=0.25):
        x = numpyro.sample("x", dist.Normal(mu, 1.0))
    with handlers.scale(scale=jnp.array([2.0, 3.0])), numpyro.plate("n", 2):
        numpyro.sample("z", dist.Gamma(2.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def partly_masked(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0), sample_shape=(3,))
    with handlers.mask(mask=jnp.array([True, False, True])):
        numpyro.sample("z", dist.Exponential(jnp.ones(3)))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
    seen = jnp.array([False, True, True])
    numpyro.sample("w", dist.Normal(x, 2.0), obs=y, obs_mask=seen)


def with_factors(y):
    with handlers.scope(prefix="inner"):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("potential", -0.1 * x**2 * jnp.arange(3.0))
    numpyro.sample("y", dist.Poisson(jnp.exp(x)), obs=y)


def branching(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))

    def near(loc):
        numpyro.sample("y", dist.Normal(loc, 1.0), obs=y)
        return numpyro.sample("z", dist.Normal(loc, 1.0))

    def far(loc):
        numpyro.sample("y", dist.Normal(loc, 9.0), obs=y)
        return numpyro.sample("z", dist.Normal(-loc, 9.0))

    return cond(x > 0, near, far, x)


def scaled_scan(y):
    def step(x, row):
        x = numpyro.sample("x", dist.Normal(0.5 * x, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=row)
        return x, x

    with handlers.scale(scale=0.5):
        return scan(step, 0.0, y)[1]


HANDLERS = {
    "scale": (scaled, jnp.array([0.3, 1.0])),
    "mask": (partly_masked, jnp.array([0.3, 1.0, -2.0])),
    "factor": (with_factors, 4),
    "cond": (branching, 0.7),
    "scaled_scan": (scaled_scan, jnp.array([0.3, 1.0, -2.0])),
    "conditioned": (handlers.condition(branching, {"x": 0.4}), 0.7),
    "substituted": (handlers.substitute(scaled, {"mu": -0.4}), jnp.ones(2)),
    "transformed": (
        handlers.reparam(
            lambda y: numpyro.sample("x", dist.LogNormal(0.1, y)),
            config={"x": TransformReparam()},
        ),
        2.0,
    ),
}


@pytest.mark.parametrize("name", HANDLERS)
def test_handlers_inside_a_model_keep_their_meaning(name, key):
    fn, y = HANDLERS[name]
    assert_same_model(fn, key, y)


def test_joint_model_conditioned_is_the_observed_model(key):
    trace = from_numpyro(eight_schools).simulate(key, SIGMA)
    values = {name: trace[name] for name in ("mu", "tau", "theta")}
    target = condition(from_numpyro(eight_schools), {"effects": EFFECTS})
    exact = numpyro_log_density(eight_schools, values, SIGMA, EFFECTS)
    np.testing.assert_allclose(target.log_density(values, SIGMA), exact, 1e-9)


def test_reverse_scan_keeps_rows_and_choices_together(key):
    def model(y):
        def step(x, row):
            x = numpyro.sample("x", dist.Normal(0.5 * x, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=row)
            return x, x

        return scan(step, 0.0, y, reverse=True)[1]

    y = jnp.array([0.3, 1.0, -2.0])
    trace = from_numpyro(model).simulate(key, y)
    x = trace["x"]
    later = jnp.append(x[1:], 0.0)
    exact = dist.Normal(0.5 * later, 1.0).log_prob(x) + dist.Normal(x, 1.0).log_prob(y)
    np.testing.assert_allclose(trace.log_density, exact.sum(), 1e-9)
    np.testing.assert_array_equal(trace.return_value, x)


def test_drawn_scaled_site_is_weighted_by_its_scale(key):
    """A draw from p under the target p^scale weighs (scale - 1) log p."""

    def model():
        with handlers.scale(scale=3.0):
            numpyro.sample("x", dist.Normal(0.0, 1.0))

    trace, log_weight = from_numpyro(model).generate(key, {})
    exact = 2.0 * dist.Normal(0.0, 1.0).log_prob(trace["x"])
    np.testing.assert_allclose(log_weight, exact, 1e-12)


def test_choices_of_a_scan_can_be_constrained_in_part(key):
    words = jnp.array([0, 3, 1, 2, 2])
    given = masked(jnp.array([2, 0, 0, 0, 1]), jnp.array([1, 0, 0, 0, 1], bool))
    with jax.numpy_rank_promotion("allow"):
        trace, _ = from_numpyro(hidden_markov).generate(key, {"topic": given}, words)
    assert trace["topic"][0] == 2 and trace["topic"][-1] == 1
    np.testing.assert_array_equal(trace.return_value, trace["topic"])


def test_handlers_around_the_caller_are_ignored(key):
    model = from_numpyro(eight_schools)
    with handlers.trace() as seen, handlers.condition(data={"mu": 3.0}):
        trace = model.simulate(key, SIGMA)
    assert not seen and trace["mu"] != 3.0


def test_a_failing_model_leaves_no_handler_behind(key):
    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0))
        raise RuntimeError("from the model")

    with pytest.raises(RuntimeError, match="from the model"):
        from_numpyro(model).simulate(key)
    assert numpyro.sample("x", dist.Normal(), obs=1.0) == 1.0
    assert not numpyro.primitives._PYRO_STACK


def test_log_density_is_differentiable_under_jit_and_vmap(key):
    model = from_numpyro(seasonal_series)
    choices = jax.vmap(lambda k: model.simulate(k, X).choices)(jax.random.split(key, 2))
    batch = jax.jit(jax.vmap(jax.grad(lambda c: model.log_density(c, X))))(choices)
    one = jax.grad(lambda v: numpyro_log_density(seasonal_series, v, X))(
        jax.tree.map(lambda x: x[1], choices)
    )
    for name, gradient in one.items():
        np.testing.assert_allclose(batch[name][1], gradient, 1e-8)


def test_subsampled_plate_is_refused(key):
    def model():
        with numpyro.plate("n", 5, subsample_size=2):
            numpyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="plate must not be subsampled, got 2 of 5"):
        from_numpyro(model).simulate(key)


def test_model_that_asks_for_a_key_is_refused(key):
    model = from_numpyro(lambda: numpyro.param("w", lambda k: jax.random.normal(k)))
    with pytest.raises(ValueError, match="must not ask for a PRNG key"):
        model.simulate(key)


@pytest.mark.parametrize(
    "around",
    [
        partial(handlers.mask, mask=np.array([True, False, True])),
        partial(handlers.scale, scale=np.ones(3)),
        partial(handlers.condition, data={"x": np.ones(3)}),
        partial(handlers.substitute, substitute_fn=lambda site: None),
    ],
)
def test_handler_along_the_time_axis_of_a_scan_is_refused(around, key):
    def step(x, _):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        return x, x

    model = from_numpyro(around(lambda: scan(step, 0.0, None, length=3)))
    with pytest.raises(ValueError, match="along its time axis.*address 'x'"):
        model.simulate(key)


def test_seeded_control_flow_is_refused(key):
    model = from_numpyro(handlers.seed(branching, 0))
    with pytest.raises(ValueError, match="must not be seeded"):
        model.simulate(key, 0.7)
