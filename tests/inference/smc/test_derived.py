"""Programs derived from one model against forward-backward and enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from motes.inference.exact import enumerate_choices
from motes.inference.smc import (
    backward_sampling,
    derive,
    genealogies,
    keep_history,
    run,
)
from motes.ppl import condition, factor, masked, model, plate, sample, scope
from tests.oracles import HMM, HMM_Y, hmm
from tests.statistics import assert_log_evidence_unbiased, assert_mean_is


def coin(name, p):
    return sample(name, dist.Bernoulli(p))


def smoothed(key, program, names, num_particles, num_runs):
    """Evidence, and means of choices over time by both smoothers, of many runs."""

    @jax.jit
    @jax.vmap
    def one(key):
        filter_key, smooth_key = jax.random.split(key)
        last, history = run(filter_key, program, num_particles, collect=keep_history)
        backward = backward_sampling(smooth_key, history, program, 16).choices
        paths, weights = genealogies(history).choices, last.weights
        means = {name: backward[name].astype(float).mean(1) for name in names}
        lines = {
            name: jnp.tensordot(weights, paths[name].astype(float), (0, 1))
            for name in names
        }
        return last.log_evidence, means, lines

    return one(jax.random.split(key, num_runs))


def test_smoothing_of_a_hidden_chain_matches_forward_backward(key):
    data = {"y0": HMM_Y[0], "y": HMM_Y[1:]}
    program = derive(hmm, data, 6)

    @jax.jit
    @jax.vmap
    def one(key):
        filter_key, smooth_key = jax.random.split(key)
        last, history = run(filter_key, program, 400, collect=keep_history)
        backward = backward_sampling(smooth_key, history, program, 64).choices["z"]
        lines = jax.nn.one_hot(genealogies(history).choices["z"], 3)
        shares = jax.nn.one_hot(backward, 3).mean(1)
        return shares, jnp.einsum("tnk,n->tk", lines, last.weights)

    for shares in one(jax.random.split(key, 100)):
        # Row t is time t + 1 of the chain; a ratio of means has a bias of order 1/N.
        assert_mean_is(HMM["smooth_t3"], shares[:, 2], num_sigmas=4, atol=6e-3)
        assert_mean_is(HMM["filter_T"], shares[:, -1], num_sigmas=4, atol=2e-3)


@model
def weighed_at_the_end(num_steps):
    """Two chains; data see both ends of a move, the last states and a draw from them."""
    first = coin("z0", 0.4), coin("k0", 0.6)

    def step(carry, _):
        z, k = carry
        moved = coin("z", jnp.where(z == 1, 0.8, 0.25))
        k = coin("k", jnp.where(k == moved, 0.7, 0.2))
        coin("y", 0.1 + 0.3 * moved + 0.2 * z + 0.3 * k)
        return (moved, k), None

    (z, k), _ = jax.lax.scan(step, first, None, length=num_steps)
    drawn = coin("drawn", 0.1 + 0.8 * k)
    sample("end", dist.Normal(2.0 * z - drawn, 0.5))
    factor("tilt", 1.0 * drawn)


@model
def in_lanes(num_steps):
    """A plate of states and choices that no step passes on."""

    def step(z, t):
        z = plate(lambda q: coin("z", 0.2 + 0.6 * q))(z)
        k = coin("k", 0.3 + 0.2 * z[0])
        coin("y", 0.1 + 0.2 * z[0] + 0.3 * z[1] + 0.2 * k + 0.1 * t)
        return z, z.sum()

    z, _ = jax.lax.scan(step, jnp.zeros(2, int), 0.5 * jnp.arange(num_steps))
    sample("end", dist.Normal(1.0 * z.sum(), 0.5))


END_CASES = {
    "two chains": (weighed_at_the_end, {"y": [1, 0, 0, 1], "end": 1.6}),
    "lanes": (in_lanes, {"y": [0, 1, 1], "end": 0.1}),
}


@pytest.mark.parametrize("case", END_CASES)
def test_data_after_the_scan_count_in_smoothing(key, case):
    target, data = END_CASES[case]
    data = {name: jnp.array(value) for name, value in data.items()}
    num_steps = len(data["y"])
    exact = enumerate_choices(condition(target, data), num_steps)
    program = derive(target, data, num_steps)

    log_evidence, *found = smoothed(key, program, ["z", "k"], 200, 80)

    assert_log_evidence_unbiased(exact.log_evidence, log_evidence)
    for name in ("z", "k"):
        mean = exact.mean(exact.choices[name].astype(float))
        for means in found:
            assert_mean_is(mean, means[name], num_sigmas=4, atol=6e-3)


@model
def read_on(num_steps):
    """A draw that another site reads, and data that the next step reads."""

    def step(carry, _):
        z, y = carry
        moved = coin("z", 0.2 + 0.5 * z + 0.2 * y)
        w = coin("w", 0.3 + 0.4 * z)
        y = coin("y", 0.1 + 0.6 * w + 0.2 * moved)
        return (moved, y), None

    jax.lax.scan(step, (0, 0), None, length=num_steps)


def test_missing_data_are_smoothed_with_the_states(key):
    values = {"w": jnp.array([1, 0, 0, 1]), "y": jnp.array([1, 0, 1, 1])}
    seen = {"w": jnp.arange(4) == 2, "y": jnp.arange(4) != 1}
    exact = enumerate_choices(condition(read_on, {}), 4)
    fits = True
    for name, value in values.items():
        same = (exact.choices[name] == value[None]) | ~seen[name][None]
        fits = fits & jnp.all(same, axis=1)
    weights = jax.nn.softmax(jnp.where(fits, exact.log_weights, -jnp.inf))

    data = {name: masked(value, seen[name]) for name, value in values.items()}
    _, *found = smoothed(key, derive(read_on, data, 4), ["z", "w", "y"], 200, 80)

    for name in ("z", "w", "y"):
        mean = jnp.tensordot(weights, exact.choices[name].astype(float), 1)
        for means in found:
            assert_mean_is(mean, means[name], num_sigmas=4, atol=6e-3)


@model
def sites_everywhere(num_steps):
    """Sites before and after, in branches and in an inner scan; time runs backwards."""
    s = coin("s", 0.3)
    coin("early", 0.2 + 0.6 * s)

    def step(carry, t):
        z, total = carry
        z = coin("z", jnp.where(z == 1, 0.8, 0.25) - 0.2 * s)
        jump = jax.lax.cond(t < 1, lambda: coin("j", 0.4), lambda: 0)

        def inner(v, _):
            return coin("v", jnp.where(v == 1, 0.6, 0.3)), None

        v, _ = jax.lax.scan(inner, z, None, length=2)
        coin("y", 0.1 + 0.2 * z + 0.2 * jump + 0.3 * v)
        factor("f", 0.6 * v * t)
        return (z, total + v), z

    start = (s, jnp.zeros((), int))
    times = jnp.arange(num_steps)
    (z, total), _ = jax.lax.scan(step, start, times, reverse=True)
    coin("late", 0.1 + 0.2 * total + 0.1 * s)


@pytest.mark.parametrize("num_particles", [1, 6])
def test_evidence_of_sites_everywhere_matches_enumeration(key, num_particles):
    data = {"early": 1, "late": 0}
    y, seen = jnp.array([1, 0, 0]), jnp.array([True, True, False])
    exact = enumerate_choices(condition(sites_everywhere, data), 3)
    fits = jnp.all((exact.choices["y"] == y[None]) | ~seen[None], axis=1)
    exact = jax.nn.logsumexp(jnp.where(fits, exact.log_weights, -jnp.inf))

    program = derive(sites_everywhere, {**data, "y": masked(y, seen)}, 3)
    evidence = jax.jit(
        jax.vmap(lambda k: run(k, program, num_particles)[0].log_evidence)
    )
    draws = evidence(jax.random.split(key, 24_000 // num_particles))
    assert_log_evidence_unbiased(exact, draws)


@model
def scoped(num_steps):
    """Choices before the scan, of the step and in the carry share a scope."""
    with scope("a"):
        start = sample("start", dist.Normal(0.0, 1.0))

    def step(x, _):
        with scope("a"):
            x = sample("x", dist.Normal(x, 1.0))
            sample("z", dist.Normal(x, 1.0))
        return x, None

    return jax.lax.scan(step, start, None, length=num_steps)[0]


def test_choices_of_one_scope_are_all_kept(key):
    program = derive(scoped, {}, 3)
    last, history = run(key, program, 4, collect=keep_history)
    assert set(last.state.choices["a"]) == {"start", "x", "z"}
    paths = backward_sampling(key, history, program, 5).choices["a"]
    shapes = {name: value.shape for name, value in paths.items()}
    assert shapes == dict.fromkeys(["start", "x", "z"], (3, 5))
    np.testing.assert_array_equal(last.state.carry[0], last.state.choices["a"]["x"])
