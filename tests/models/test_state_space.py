"""Models in both forms against hand sums, exact marginals and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from motes.inference.exact import enumerate_choices
from motes.inference.smc import bootstrap, derive, run
from motes.models import (
    bearings_only,
    hidden_markov,
    linear_gaussian,
    local_level,
    state_space,
    stochastic_volatility,
    theta_logistic,
)
from motes.ppl import condition
from tests.oracles import AR1, AR1_Y, TRUTH
from tests.statistics import assert_log_evidence_unbiased, assert_mean_is

NUM_STEPS = 4
HMM = TRUTH["C1_hmm_gaussian"]

LEVEL = local_level.LocalLevel(0.3, 1.5, 0.7, 0.4)
GAUSSIAN = linear_gaussian.LinearGaussianParameters(
    initial_mean=jnp.array([0.5, -1.0]),
    initial_scale=jnp.array([[1.0, 0.0], [0.3, 0.8]]),
    transition=jnp.array([[0.9, 0.2], [-0.1, 0.7]]),
    transition_scale=jnp.array([[0.5, 0.0], [0.2, 0.4]]),
    observation=jnp.array([[1.0, 0.5]]),
    observation_scale=jnp.array([[0.6]]),
)
MARKOV = hidden_markov.HiddenMarkovParameters(
    jnp.array(HMM["pi"]),
    jnp.array(HMM["A"]),
    dist.Normal(jnp.array(HMM["mu"]), jnp.full(3, HMM["sd"])),
)
VOLATILITY = stochastic_volatility.StochasticVolatility(-0.5, 0.9, 0.4)
LEVERAGE = stochastic_volatility.StochasticVolatility(-0.5, 0.9, 0.4, -0.6)
GROWTH = theta_logistic.ThetaLogistic()
BEARINGS = bearings_only.BearingsOnly(
    jnp.array([1.0, 0.5, -0.2, 0.3]), jnp.array([0.3, 0.2, 0.1, 0.1]), 0.1, 20.0
)
ZOO = {
    "local_level": (local_level, LEVEL),
    "linear_gaussian": (linear_gaussian, GAUSSIAN),
    "hidden_markov": (hidden_markov, MARKOV),
    "stochastic_volatility": (stochastic_volatility, VOLATILITY),
    "leverage": (stochastic_volatility, LEVERAGE),
    "theta_logistic": (theta_logistic, GROWTH),
    "bearings_only": (bearings_only, BEARINGS),
}


def hand_local_level(x, y, p):
    previous = np.r_[p.initial_mean, x[:-1]]
    scales = np.r_[p.initial_scale, np.full(len(x) - 1, p.level_scale)]
    moves = stats.norm.logpdf(x, previous, scales).sum()
    return moves + stats.norm.logpdf(y, x, p.noise_scale).sum()


def hand_linear_gaussian(x, y, p):
    def normal(value, mean, scale):
        return stats.multivariate_normal.logpdf(value, mean, scale @ scale.T)

    total = normal(x[0], p.initial_mean, p.initial_scale)
    for t in range(1, len(x)):
        total += normal(x[t], p.transition @ x[t - 1], p.transition_scale)
    for row, value in zip(x, y, strict=True):
        total += normal(value, p.observation @ row, p.observation_scale)
    return total


def hand_hidden_markov(x, y, p):
    moves = np.log(p.initial[x[0]]) + np.log(p.transition[x[:-1], x[1:]]).sum()
    return moves + stats.norm.logpdf(y, np.array(HMM["mu"])[x], HMM["sd"]).sum()


def hand_volatility(x, y, p):
    # The joint of the return's shock and the next change, correlated as defined.
    rho = 0.0 if p.leverage is None else p.leverage
    spread = p.scale / (1 - p.persistence**2) ** 0.5
    total = stats.norm.logpdf(x[0], p.mean, spread)
    for t in range(len(x)):
        shock = y[t] / np.exp(x[t] / 2)
        total += stats.norm.logpdf(shock) - x[t] / 2
        if t + 1 < len(x):
            change = (x[t + 1] - p.mean - p.persistence * (x[t] - p.mean)) / p.scale
            pair = stats.multivariate_normal([0, 0], [[1, rho], [rho, 1]])
            given = pair.logpdf([shock, change]) - stats.norm.logpdf(shock)
            total += given - np.log(p.scale)
    return total


def hand_theta_logistic(x, y, p):
    drift = x[:-1] + p.growth - p.capacity * np.exp(p.shape * x[:-1])
    total = stats.norm.logpdf(x[0], p.initial_mean, p.initial_scale)
    total += stats.norm.logpdf(x[1:], drift, p.process_scale).sum()
    return total + stats.norm.logpdf(y, x, p.noise_scale).sum()


def hand_bearings_only(x, y, p):
    first = stats.norm.logpdf(x[0], p.initial_mean, p.initial_scale).sum()
    cov = p.acceleration**2 * np.kron([[1 / 3, 1 / 2], [1 / 2, 1]], np.eye(2))
    still = np.kron([[1, 1], [0, 1]], np.eye(2))
    moves = sum(
        stats.multivariate_normal.logpdf(x[t], still @ x[t - 1], cov)
        for t in range(1, len(x))
    )
    angles = np.arctan2(x[:, 1], x[:, 0])
    return first + moves + stats.vonmises.logpdf(y, p.concentration, angles).sum()


HANDS = {
    "local_level": hand_local_level,
    "linear_gaussian": hand_linear_gaussian,
    "hidden_markov": hand_hidden_markov,
    "stochastic_volatility": hand_volatility,
    "leverage": hand_volatility,
    "theta_logistic": hand_theta_logistic,
    "bearings_only": hand_bearings_only,
}


@pytest.mark.parametrize("name", ZOO)
def test_log_density_is_the_hand_sum(name, key):
    module, parameters = ZOO[name]
    trace = module.chain.simulate(key, NUM_STEPS, parameters)
    p = jax.tree.map(np.asarray, parameters)
    exact = HANDS[name](np.asarray(trace["x"]), np.asarray(trace["y"]), p)
    np.testing.assert_allclose(trace.log_density, exact, rtol=1e-9)
    density = module.chain.log_density(trace.choices, NUM_STEPS, parameters)
    np.testing.assert_allclose(density, exact, rtol=1e-9)


@pytest.mark.parametrize("name", ZOO)
def test_pair_has_the_density_of_the_chain(name, key):
    module, parameters = ZOO[name]
    trace = module.chain.simulate(key, NUM_STEPS, parameters)
    total, state = 0.0, None
    for t in range(NUM_STEPS):
        choices = {"x": trace["x"][t], "y": trace["y"][t]}
        step = module.transition if t else module.initial
        args = (state, parameters) if t else (parameters,)
        made, log_weight = step.generate(key, choices, *args)
        total, state = total + log_weight, made.return_value
    np.testing.assert_allclose(total, trace.log_density, rtol=1e-9)
    jax.tree.map(np.testing.assert_allclose, state, trace.return_value)


@pytest.mark.parametrize("name", ["local_level", "linear_gaussian"])
def test_marginal_integrates_the_states_out(name, key):
    module, parameters = ZOO[name]
    trace = module.chain.simulate(key, NUM_STEPS, parameters)
    x, y = trace["x"], trace["y"]

    def joint(flat):
        choices = {"x": flat.reshape(x.shape), "y": y}
        return module.chain.log_density(choices, NUM_STEPS, parameters)

    # The joint is exactly quadratic in the states: one Newton step and its curvature.
    flat = x.ravel()
    curvature = -jax.hessian(joint)(flat)
    mode = flat + jnp.linalg.solve(curvature, jax.grad(joint)(flat))
    log_det = jnp.linalg.slogdet(curvature)[1]
    exact = joint(mode) + 0.5 * (flat.size * jnp.log(2 * jnp.pi) - log_det)
    marginal = module.marginal(NUM_STEPS, parameters)
    got = marginal.log_density(key, y.reshape(NUM_STEPS, -1))
    np.testing.assert_allclose(got, exact, rtol=1e-9)


def test_ar1_marginal_has_the_reference_evidence(key):
    one = jnp.ones((1, 1))
    parameters = linear_gaussian.LinearGaussianParameters(
        jnp.zeros(1), 0.5 / 0.19**0.5 * one, 0.9 * one, 0.5 * one, one, 0.8 * one
    )
    got = linear_gaussian.marginal(10, parameters).log_density(key, AR1_Y[:, None])
    np.testing.assert_allclose(got, AR1["log_likelihood"], rtol=1e-9)


def test_hidden_markov_marginal_sums_the_states_out(key):
    y = jnp.array(HMM["y"])
    marginal = hidden_markov.marginal(len(y), MARKOV)
    np.testing.assert_allclose(
        marginal.log_density(key, y), HMM["log_likelihood"], rtol=1e-9
    )
    target = condition(hidden_markov.chain, {"y": y})
    enumerated = enumerate_choices(target, len(y), MARKOV)
    np.testing.assert_allclose(
        enumerated.log_evidence, HMM["log_likelihood"], rtol=1e-9
    )


@pytest.mark.parametrize(
    "emission, y",
    [
        (dist.Poisson(jnp.array([0.5, 2.0, 6.0])), jnp.array([1, 4])),
        (dist.CategoricalProbs(jnp.array(HMM["A"])), jnp.array([2, 0])),
        (dist.Bernoulli(probs=jnp.array([0.1, 0.5, 0.8])), jnp.array([1, 0])),
    ],
    ids=["poisson", "categorical", "bernoulli"],
)
def test_hidden_markov_takes_other_emissions(emission, y, key):
    parameters = MARKOV._replace(emission=emission)
    target = condition(hidden_markov.chain, {"y": y})
    enumerated = enumerate_choices(target, 2, parameters)
    marginal = hidden_markov.marginal(2, parameters).log_density(key, y)
    np.testing.assert_allclose(enumerated.log_evidence, marginal, rtol=1e-9)


def programs(module, parameters, y):
    data = {"y": y}
    yield derive(module.chain, data, len(y), parameters)
    yield bootstrap(module.initial, module.transition, data, parameters)


def log_evidences(key, program, num_runs, num_particles=8):
    keys = jax.random.split(key, num_runs)
    return jax.vmap(lambda k: run(k, program, num_particles)[0].log_evidence)(keys)


def test_filters_of_both_forms_are_unbiased_for_the_local_level(key):
    y = local_level.chain.simulate(key, NUM_STEPS, LEVEL)["y"]
    exact = local_level.marginal(NUM_STEPS, LEVEL).log_density(key, y[:, None])
    for program in programs(local_level, LEVEL, y):
        assert_log_evidence_unbiased(exact, log_evidences(key, program, 2000))


def grid_log_evidence(name, y, low, high, size=400):
    """Evidence of a scalar chain by quadrature, from the hand-written joint density."""
    _, parameters = ZOO[name]
    hand = HANDS[name]
    x = np.linspace(low, high, size)
    width = x[1] - x[0]
    log_joint = np.array(
        [[hand(np.array([a, b]), y, parameters) for b in x] for a in x]
    )
    return np.logaddexp.reduce(log_joint.ravel()) + 2 * np.log(width)


@pytest.mark.parametrize(
    "name, low, high", [("leverage", -4.5, 3.5), ("theta_logistic", -3.0, 3.0)]
)
def test_filters_of_both_forms_are_unbiased_for_nonlinear_chains(name, low, high, key):
    module, parameters = ZOO[name]
    y = jnp.array([0.9, -0.6])
    exact = grid_log_evidence(name, np.asarray(y), low, high, 60)
    for program in programs(module, parameters, y):
        assert_log_evidence_unbiased(exact, log_evidences(key, program, 2000))


def test_forms_agree_on_the_evidence_of_bearings(key):
    y = bearings_only.chain.simulate(key, 3, BEARINGS)["y"]
    first, second = (
        log_evidences(key, program, 400, 16)
        for program in programs(bearings_only, BEARINGS, y)
    )
    scale = first.max()
    assert_mean_is(0.0, jnp.exp(first - scale) - jnp.exp(second - scale))


@pytest.mark.parametrize("name", ZOO)
def test_single_precision_stays_single(name, key):
    module, parameters = ZOO[name]
    with jax.enable_x64(False):
        parameters = jax.tree.map(
            lambda p: p if isinstance(p, float) else p.astype(jnp.float32), parameters
        )
        trace = module.chain.simulate(jax.random.key(0), NUM_STEPS, parameters)
    dtypes = {x.dtype for x in jax.tree.leaves(trace.choices)}
    assert dtypes <= {jnp.dtype("float32"), jnp.dtype("int32")}


def test_families_of_first_and_move_must_agree(key):
    broken = state_space(
        lambda p: dist.Normal(0.0, 1.0),
        lambda x, p: dist.Laplace(x, 1.0),
        lambda x, p: dist.Normal(x, 1.0),
    )
    with pytest.raises(
        ValueError, match="one family and shape, got Normal and Laplace"
    ):
        broken.chain.simulate(key, 3, 1.0)
