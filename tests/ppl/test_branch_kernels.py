"""What the operations promise, checked by enumeration, by hand and by statistics.

`arms` has a discrete hidden state, a branch in a scan and two observations, so that its
evidence and its posterior are finite sums; kernels start at exact draws of the posterior.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from motes.ppl import masked, model, sample, vmap
from tests.ppl.zoo import coin, normal
from tests.statistics import assert_counts_fit, assert_log_evidence_unbiased

SEEN = np.array([1, 0])
NUM_CHAINS = 20_000


@model
def arms():
    """A chain of bits; where the bit is one, a second bit moves the observation."""

    def step(z, _):
        z = sample("z", dist.Bernoulli(0.25 + 0.55 * z))
        w = jax.lax.cond(
            z == 1, lambda: sample("w", dist.Bernoulli(0.6)), lambda: jnp.zeros_like(z)
        )
        sample("y", dist.Bernoulli(0.1 + 0.5 * z + 0.3 * w))
        return z, None

    b = sample("b", dist.Bernoulli(0.3))
    jax.lax.scan(step, b, None, length=2)


def joint_by_hand():
    """Probability of `SEEN` with each state, at the state's number."""
    table = np.zeros(32)
    for b, z0, z1 in itertools.product((0, 1), repeat=3):
        for w0, w1 in itertools.product(range(1 + z0), range(1 + z1)):
            log_p = coin(b, 0.3)
            for before, z, w, y in ((b, z0, w0, 1), (z0, z1, w1, 0)):
                log_p += coin(z, 0.25 + 0.55 * before) + coin(
                    y, 0.1 + 0.5 * z + 0.3 * w
                )
                log_p += coin(w, 0.6) if z else 0.0
            table[number([b, z0, z1, w0, w1])] = np.exp(log_p)
    return table


def number(bits):
    return sum(2**i * bit for i, bit in enumerate(bits))


def state(trace):
    w = jnp.where(trace["w"].mask, trace["w"].value, 0)
    return number([trace["b"], *trace["z"], *w])


def posterior_trace(key):
    """A trace whose state is an exact draw from the posterior."""
    first, second = jax.random.split(key)
    with np.errstate(divide="ignore"):
        drawn = jax.random.categorical(first, jnp.asarray(np.log(joint_by_hand())))
    b, z0, z1, w0, w1 = [drawn // 2**i % 2 for i in range(5)]
    choices = {"b": b, "z": jnp.stack([z0, z1]), "w": jnp.stack([w0, w1]), "y": SEEN}
    return arms.generate(second, choices)[0]


def assert_invariant(key, kernel):
    """Move exact draws one step; they must still come from the posterior."""

    @jax.jit
    @jax.vmap
    def step(key):
        first, second, third = jax.random.split(key, 3)
        old = posterior_trace(first)
        new, log_ratio = kernel(second, old)
        accept = jnp.log(jax.random.uniform(third)) < log_ratio
        return state(old), jnp.where(accept, state(new), state(old))

    old, new = map(np.asarray, step(jax.random.split(key, NUM_CHAINS)))
    exact = joint_by_hand() / joint_by_hand().sum()
    assert_counts_fit(exact, np.bincount(old, minlength=32))
    assert_counts_fit(exact, np.bincount(new, minlength=32))
    assert (old != new).mean() > 0.1, "the kernel hardly moves"


def test_generate_is_unbiased_for_the_evidence(key):
    weigh = jax.jit(jax.vmap(lambda k: arms.generate(k, {"y": SEEN})[1]))
    log_weights = weigh(jax.random.split(key, 20_000))
    assert len(np.unique(log_weights)) > 3
    assert_log_evidence_unbiased(np.log(joint_by_hand().sum()), log_weights)


def test_a_metropolis_kernel_that_flips_branches_keeps_the_posterior(key):
    def flip(key, old):
        first, second = jax.random.split(key)
        t = jax.random.randint(first, (), 0, 2)
        z = old["z"].at[t].set(1 - old["z"][t])
        new, log_weight, discarded = arms.update(second, old, {"z": z})
        # What the way back would draw: a bit that is discarded in its scan's step.
        value, mask = discarded["w"]
        gone = jnp.where(value == 1, np.log(0.6), np.log(0.4))
        return new, log_weight + jnp.sum(jnp.where(mask, gone, 0.0))

    assert_invariant(key, flip)


@pytest.mark.parametrize("selection", ["z", "b", ("b", "z", "w")])
def test_accepted_regenerations_keep_the_posterior(key, selection):
    chosen = selection if isinstance(selection, str) else list(selection)
    assert_invariant(key, lambda k, old: arms.regenerate(k, old, chosen))


@model
def branches():
    b = sample("b", dist.Bernoulli(0.4))
    x = jax.lax.cond(
        b == 1,
        lambda: (
            sample("x", dist.Normal(3.0, 1.0)) + sample("up", dist.Normal(1.0, 1.0))
        ),
        lambda: (
            sample("x", dist.Normal(-3.0, 2.0)) - sample("down", dist.Normal(0.0, 3.0))
        ),
    )
    sample("y", dist.Normal(x, 1.0))


def up(x, up, y):
    return coin(1, 0.4) + normal(x, 3.0) + normal(up, 1.0) + normal(y, x + up)


def down(x, down, y):
    return (
        coin(0, 0.4)
        + normal(x, -3.0, 2.0)
        + normal(down, 0.0, 3.0)
        + normal(y, x - down)
    )


def test_update_of_a_branch_weighs_the_ratio_of_densities(key):
    old, _ = branches.generate(key, {"b": 1, "x": 2.0, "up": 0.5, "y": 1.5})
    np.testing.assert_allclose(old.log_density, up(2.0, 0.5, 1.5))
    new, log_weight, discarded = branches.update(key, old, {"b": 0})
    drawn = float(new["down"].value)
    assert bool(new["down"].mask) and not bool(new["up"].mask)
    np.testing.assert_allclose(new.log_density, down(2.0, drawn, 1.5))
    ratio = down(2.0, drawn, 1.5) - up(2.0, 0.5, 1.5)
    np.testing.assert_allclose(log_weight, ratio - normal(drawn, 0.0, 3.0))
    assert discarded["b"] == 1 and float(discarded["up"].value) == 0.5
    assert bool(discarded["up"].mask) and not bool(discarded["down"].mask)
    assert discarded.keys() == {"b", "up", "down"}


def test_discarded_choices_take_a_change_of_branch_back(key):
    old, _ = branches.generate(key, {"b": 1, "x": 2.0, "up": 0.5, "y": 1.5})
    new, log_weight, gone = branches.update(key, old, {"b": 0, "down": -1.0})
    np.testing.assert_allclose(log_weight, down(2.0, -1.0, 1.5) - up(2.0, 0.5, 1.5))
    back, reverse, regained = branches.update(key, new, gone)
    np.testing.assert_allclose(reverse, -log_weight)
    np.testing.assert_allclose(back.log_density, old.log_density)
    assert float(back["up"].value) == 0.5 and bool(back["up"].mask)
    assert int(regained["b"]) == 0 and float(regained["down"].value) == -1.0


@model
def regression(theta):
    def step(x, _):
        return sample("x", dist.Normal(theta * x, 1.0)), None

    last, _ = jax.lax.scan(step, jnp.ones(()), None, length=3)
    jax.lax.cond(
        last > 0,
        lambda: sample("y", dist.Normal(theta, 1.0)),
        lambda: sample("y", dist.Normal(theta**2, 2.0)),
    )
    jax.jit(lambda m: sample("z", dist.Normal(m, 1.0)))(jnp.sin(theta))


@pytest.mark.parametrize("last", [0.4, -0.4])
def test_gradients_are_those_by_hand(last):
    x, y, z, theta = np.array([0.5, -1.2, last]), 0.7, -0.3, 0.8
    density = lambda c, t: regression.log_density(c, t)  # noqa: E731
    choices = {"x": jnp.asarray(x), "y": jnp.asarray(y), "z": jnp.asarray(z)}
    by_choice, by_theta = jax.jit(jax.grad(density, (0, 1)))(choices, theta)
    before = np.array([1.0, *x[:-1]])
    error = x - theta * before
    mean, var, slope = (theta, 1.0, 1.0) if last > 0 else (theta**2, 4.0, 2 * theta)
    expected = (before * error).sum() + (y - mean) / var * slope
    expected += (z - np.sin(theta)) * np.cos(theta)
    np.testing.assert_allclose(by_theta, expected)
    np.testing.assert_allclose(
        by_choice["x"], theta * np.append(error[1:], 0.0) - error
    )
    np.testing.assert_allclose(by_choice["y"], -(y - mean) / var)
    np.testing.assert_allclose(by_choice["z"], np.sin(theta) - z)


@model
def mixed():
    mu = sample("mu", dist.Normal(0.0, 1.0))
    vmap(lambda m: sample("lane", dist.Normal(m + mu, 1.0)))(jnp.arange(2.0))

    def step(x, _):
        x = sample("x", dist.Normal(x, 1.0))
        jax.lax.cond(x > 0, lambda: sample("pos", dist.Gamma(2.0, 1.0)), lambda: x)
        return x, None

    jax.lax.scan(step, mu, None, length=2)


@pytest.mark.parametrize("operation", ["simulate", "generate"])
def test_a_users_vmap_over_keys_is_a_loop_over_keys(key, operation):
    given = {"lane": masked(jnp.ones(2), jnp.array([True, False]))}
    run = {
        "simulate": mixed.simulate,
        "generate": lambda k: mixed.generate(k, given),
    }[operation]
    keys = jax.random.split(key, 4)
    lanes = jax.vmap(run)(keys)
    loop = jax.tree.map(lambda *xs: jnp.stack(xs), *map(run, keys))
    same = partial(np.testing.assert_allclose, rtol=1e-12)  # compiled apart: they round
    jax.tree.map(same, lanes, loop)
    trace = lanes if operation == "simulate" else lanes[0]
    assert len(np.unique(trace["mu"])) == 4
