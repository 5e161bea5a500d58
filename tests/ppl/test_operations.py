"""What operations promise beyond their laws: statistics, derivatives, batches."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from motes.inference.exact import enumerate_choices
from motes.ppl import condition, factor, masked, model, sample, select, vmap
from tests.statistics import assert_counts_fit, assert_log_evidence_unbiased

Y = 0.7


@model
def branches():
    """A coin decides which discrete choice is made; all of it can be enumerated."""
    z = sample("z", dist.Bernoulli(0.3))
    level = jax.lax.cond(
        z == 1,
        lambda: 1.0 * sample("a", dist.Categorical(jnp.array([0.5, 0.3, 0.2]))),
        lambda: 2.0 - 3.0 * sample("b", dist.Bernoulli(0.6)),
    )
    sample("y", dist.Normal(level, 1.0))


BRANCHES = [(1, 0), (1, 1), (1, 2), (0, 0), (0, 1)]


def _log_joint():
    """The log density of each state of `branches` with `Y`, by hand."""
    coins = np.log([0.3] * 3 + [0.7] * 2)
    choices = np.log([0.5, 0.3, 0.2, 0.4, 0.6])
    levels = np.array([0.0, 1.0, 2.0, 2.0, -1.0])
    return coins + choices - 0.5 * (Y - levels) ** 2 - 0.5 * np.log(2 * np.pi)


def _states(num, key):
    """Draw exactly from the posterior, as traces."""
    joint = _log_joint()
    rows = jax.random.choice(key, 5, (num,), p=jnp.exp(joint) / jnp.exp(joint).sum())
    z, chosen = jnp.array(BRANCHES)[rows].T

    def trace(z, chosen):
        given = {"z": z, "a": chosen, "b": jnp.minimum(chosen, 1), "y": Y}
        return branches.generate(jax.random.key(0), given)[0]

    return jax.vmap(trace)(z, chosen)


def _counts(traces):
    """Count the states of many traces."""
    a, b = traces["a"], traces["b"]
    row = jnp.where(traces["z"] == 1, a.value, 3 + b.value)
    assert jnp.all(a.mask == (traces["z"] == 1)) and jnp.all(b.mask != a.mask)
    return np.bincount(row, minlength=5)


def test_enumeration_agrees_with_the_sum_by_hand():
    exact = enumerate_choices(condition(branches, {"y": Y}))
    np.testing.assert_allclose(exact.log_evidence, np.log(np.exp(_log_joint()).sum()))


def test_generate_is_unbiased_for_the_evidence(key):
    def weight(key):
        return branches.generate(key, {"y": Y})[1]

    log_weights = jax.jit(jax.vmap(weight))(jax.random.split(key, 20_000))
    assert_log_evidence_unbiased(np.log(np.exp(_log_joint()).sum()), log_weights)


def test_update_that_flips_a_branch_weighs_by_the_full_ratio(key):
    trace, _ = branches.generate(key, {"z": 1, "a": 2, "y": Y})
    joint = _log_joint()
    new, log_weight, discarded = branches.update(key, trace, {"z": 0, "b": 1})
    np.testing.assert_allclose(log_weight, joint[4] - joint[2], rtol=1e-6)
    np.testing.assert_allclose(new.log_density, joint[4], rtol=1e-6)
    assert discarded["z"] == 1 and discarded["a"].value == 2
    back, back_weight, _ = branches.update(key, new, discarded)
    np.testing.assert_allclose(back_weight, -log_weight, rtol=1e-6)
    np.testing.assert_allclose(back.log_density, trace.log_density, rtol=1e-6)
    # What the new branch draws afresh is divided by its own density.
    new, log_weight, _ = branches.update(key, trace, {"z": 0})
    fresh = np.log([0.4, 0.6])[int(new["b"].value)]
    np.testing.assert_allclose(
        log_weight, new.log_density - fresh - trace.log_density, rtol=1e-6
    )


def _metropolis(key, trace):
    """Flip the coin; the branch it opens is drawn from the model."""
    draw_key, accept_key = jax.random.split(key)
    new, log_weight, _ = branches.update(draw_key, trace, {"z": 1 - trace["z"]})
    # The way back would draw what the old branch held.
    log_ratio = log_weight + branches.project(trace, select("a", "b"))
    return _choose(accept_key, log_ratio, new, trace)


def _regenerate(key, trace):
    draw_key, accept_key = jax.random.split(key)
    new, log_weight = branches.regenerate(draw_key, trace, select("z", "a", "b"))
    return _choose(accept_key, log_weight, new, trace)


def _choose(key, log_ratio, new, old):
    accepts = jnp.log(jax.random.uniform(key)) < log_ratio
    return jax.tree.map(lambda x, y: jnp.where(accepts, x, y), new, old)


@pytest.mark.parametrize("kernel", [_metropolis, _regenerate])
def test_metropolis_over_branches_leaves_the_posterior_invariant(key, kernel):
    start_key, move_key = jax.random.split(key)
    traces = _states(20_000, start_key)
    moved = jax.jit(jax.vmap(kernel))(jax.random.split(move_key, 20_000), traces)
    joint = np.exp(_log_joint())
    assert_counts_fit(joint / joint.sum(), _counts(traces))
    assert_counts_fit(joint / joint.sum(), _counts(moved))
    assert 0.1 < float(jnp.mean(moved["z"] != traces["z"])) < 0.9


@model
def chain(slope, scale):
    def step(x, t):
        mean = jax.lax.cond(t % 2 == 0, lambda: slope * x, lambda: jnp.sin(slope * x))
        x = jax.jit(lambda m: sample("x", dist.Normal(m, scale)))(mean)
        return x, None

    return jax.lax.scan(step, 0.5, jnp.arange(4))[0]


def test_derivatives_go_through_scan_cond_and_jit(key):
    x = jax.random.normal(key, (4,))

    def by_hand(x, slope, scale):
        before = jnp.concatenate([jnp.array([0.5]), x[:-1]])
        even = jnp.arange(4) % 2 == 0
        mean = jnp.where(even, slope * before, jnp.sin(slope * before))
        return dist.Normal(mean, scale).log_prob(x).sum()

    def ours(x, slope, scale):
        return chain.log_density({"x": x}, slope, scale)

    for derivative in (jax.grad, jax.jacfwd, jax.hessian):
        found = derivative(ours, (0, 1, 2))(x, 0.8, 1.3)
        expected = derivative(by_hand, (0, 1, 2))(x, 0.8, 1.3)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b), found, expected)


def test_vmap_over_keys_is_a_loop_over_keys(key):
    keys = jax.random.split(key, 5)
    given = {"x": masked(jnp.array([0.0, 1.0, 0.0, 0.0]), jnp.arange(4) == 1)}
    for operation in (
        lambda k: chain.simulate(k, 0.8, 1.3),
        lambda k: chain.generate(k, given, 0.8, 1.3),
    ):
        batch = jax.vmap(operation)(keys)
        loop = jax.tree.map(lambda *x: jnp.stack(x), *[operation(k) for k in keys])
        jax.tree.map(np.testing.assert_allclose, batch, loop)


@model
def panel(num_lanes):
    mean = sample("mean", dist.Normal(0.0, 1.0))

    def lane(x):
        y = sample("y", dist.Normal(mean + x, 1.0))
        sample("pair", dist.MultivariateNormal(jnp.stack([y, x]), jnp.eye(2)))
        factor("f", y)
        lanes = vmap(lambda: sample("inner", dist.Bernoulli(0.3)), axis_size=num_lanes)
        return y + lanes().sum()

    return vmap(lane)(jnp.zeros(num_lanes)).sum()


def test_a_plate_without_lanes_counts_nothing(key):
    trace = panel.simulate(key, 0)
    assert trace["y"].shape == (0,) and trace["pair"].shape == (0, 2)
    assert trace["inner"].shape == (0, 0) and trace.return_value == 0.0
    alone = dist.Normal(0.0, 1.0).log_prob
    np.testing.assert_allclose(trace.log_density, alone(trace["mean"]))
    np.testing.assert_allclose(panel.log_density(trace.choices, 0), trace.log_density)
    _, log_weight = panel.generate(key, {"mean": 0.5, "y": jnp.zeros(0)}, 0)
    np.testing.assert_allclose(log_weight, alone(0.5))
    assert panel.regenerate(key, trace, "y")[1] == 0.0
