"""Every scheme is unbiased, and each has the properties it is chosen for."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motes.inference.smc import SCHEMES, optimal, systematic
from motes.inference.smc.cumulative import count, mark
from motes.inference.smc.resampling import fearnhead_clifford_scale
from tests.oracles import TRUTH
from tests.statistics import assert_mean_is

WEIGHTS = jnp.array([0.1, 0.02, 0.28, 0.0, 0.35, 0.25])


def new_weights(scheme, keys, weights, num_draws):
    def one(key):
        ancestors, log_weights = scheme(key, jnp.log(weights), num_draws)
        shares = jnp.exp(log_weights) / num_draws
        return jnp.zeros(weights.shape).at[ancestors].add(shares)

    return jax.jit(jax.vmap(one))(keys)


# Killing keeps the number of particles.
DRAWS = [("killing", 6), *product(SCHEMES.keys() - {"killing"}, [3, 6, 11])]


@pytest.mark.parametrize(("name", "num_draws"), sorted(DRAWS))
def test_expected_weight_of_offspring_is_the_weight(key, name, num_draws):
    keys = jax.random.split(key, 4000)
    assert_mean_is(WEIGHTS, new_weights(SCHEMES[name], keys, WEIGHTS, num_draws))


@pytest.mark.parametrize("name", ["systematic", "ssp"])
def test_counts_differ_from_expectation_by_less_than_one(key, name):
    shares = new_weights(SCHEMES[name], jax.random.split(key, 500), WEIGHTS, 7)
    counts, expected = np.round(np.asarray(shares) * 7), np.asarray(WEIGHTS) * 7
    assert np.all(np.abs(counts - expected) < 1)


def test_systematic_puts_a_grid_on_the_cumulative_weights():
    case = TRUTH["J4_systematic"]
    weights = np.array(case["weights"])
    grid = (np.arange(case["N"]) + case["u"]) / case["N"]
    assert np.searchsorted(weights.cumsum(), grid).tolist() == case["indices"]
    for seed in range(20):
        key = jax.random.key(seed)
        drawn = systematic(key, jnp.log(jnp.array(weights)), 5).ancestors
        u = float(jax.random.uniform(key))
        grid = (np.arange(5) + u) / 5
        assert drawn.tolist() == np.searchsorted(weights.cumsum(), grid).tolist()


def test_optimal_scale_solves_its_equation():
    weights = jnp.array([0.1, 0.15, 0.35, 0.4])
    scale = fearnhead_clifford_scale(weights, 3)
    assert scale == pytest.approx(4.0)
    assert float(jnp.minimum(1.0, scale * weights).sum()) == pytest.approx(3.0)


def test_optimal_keeps_heavy_particles_and_total_weight(key):
    weights = jnp.array([0.1, 0.15, 0.35, 0.4])
    shares = new_weights(optimal, jax.random.split(key, 3000), weights, 3)
    np.testing.assert_allclose(
        shares[:, 2:], np.array([[0.35, 0.4]] * 3000), rtol=1e-12
    )
    np.testing.assert_allclose(shares.sum(1), 1.0, rtol=1e-12)
    assert_mean_is(weights, shares)


@pytest.mark.parametrize("name", SCHEMES)
def test_dead_particles_have_no_offspring(key, name):
    log_weights = jnp.array([-jnp.inf, 0.0, -jnp.inf, -1.0, -jnp.inf])
    for k in jax.random.split(key, 20):
        ancestors, new = SCHEMES[name](k, log_weights, 5)
        alive = np.asarray(ancestors)[~np.isneginf(np.asarray(new))]
        assert set(alive.tolist()) <= {1, 3}


@pytest.mark.parametrize("name", sorted(SCHEMES.keys() - {"ssp"}))
def test_rounding_revives_no_dead_particle(key, name):
    """Sums of many single-precision weights may grow at a weight of zero."""
    num, (dead_key, weight_key, *keys) = 20_000, jax.random.split(key, 102)
    dead = jax.random.bernoulli(dead_key, 0.5, (num,)).at[-50:].set(True)
    log_weights = 2 * jax.random.normal(weight_key, (num,), jnp.float32)

    @jax.jit
    def num_revived(key, log_weights):
        ancestors, new = SCHEMES[name](key, log_weights, num)
        return jnp.sum(jnp.isneginf(log_weights)[ancestors] & ~jnp.isneginf(new))

    log_weights = jnp.where(dead, -jnp.inf, log_weights)
    assert sum(int(num_revived(k, log_weights)) for k in keys) == 0


@pytest.mark.parametrize("ancestors", [count, mark])
def test_both_ways_from_sums_to_ancestors_give_live_ones(key, ancestors):
    """One is for a CPU, the other for sums that may grow at a weight of zero."""
    num, (dead_key, count_key) = 500, jax.random.split(key)
    dead = jax.random.bernoulli(dead_key, 0.5, (num,)).at[jnp.array([0, -1])].set(True)
    counts = jnp.where(dead, 0, jax.random.poisson(count_key, 2.0, (num,)))
    exact = jnp.repeat(jnp.arange(num), counts)
    # Rounding may leave two slots over: the last of all takes them.
    found = ancestors(jnp.cumsum(counts), ~dead, exact.size + 2)
    np.testing.assert_array_equal(found[:-2], exact)
    assert not np.asarray(dead)[np.asarray(found)].any()


def test_slots_that_rounding_gives_to_the_dead_go_to_the_one_before():
    alive = jnp.array([False, True, False, True, False])
    found = mark(jnp.array([0, 2, 3, 4, 5]), alive, 5)
    assert found.tolist() == [1, 1, 1, 3, 3]


def sorted_scale(weights, num_draws):
    """The same by its definition: keep the k heaviest, for the least k that fits."""
    ordered = np.sort(weights)[::-1]
    for kept in range(num_draws):
        scale = (num_draws - kept) / ordered[kept:].sum()
        if scale * ordered[kept] < 1:
            return scale
    raise AssertionError


def test_optimal_scale_needs_no_sorting(key):
    generator = np.random.default_rng(0)
    scale_of = jax.jit(fearnhead_clifford_scale, static_argnums=1)
    for num_draws in np.repeat([1, 3, 7], 100).tolist():
        weights = generator.gamma(0.2, size=12) * (generator.random(12) < 0.8)
        weights /= weights.sum()
        drops = (weights > 0).sum() > num_draws
        exact = sorted_scale(weights, num_draws) if drops else np.inf
        assert scale_of(jnp.array(weights), num_draws) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("name", SCHEMES)
def test_gradients_pass_through_weights(key, name):
    def loss(log_weights):
        return jnp.sum(jnp.exp(SCHEMES[name](key, log_weights, 6).log_weights) ** 2)

    assert np.isfinite(jax.grad(loss)(jnp.log(WEIGHTS + 0.01))).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_single_precision_and_huge_log_weights(key, name):
    log_weights = jnp.array([-1e4, -1e4 + 1, -1e4 + 2], jnp.float32)
    ancestors, new = SCHEMES[name](key, log_weights, 3)
    assert new.dtype == jnp.float32 and np.all(np.asarray(ancestors) < 3)


@pytest.mark.parametrize("name", SCHEMES)
def test_number_of_draws_is_checked(key, name):
    with pytest.raises(ValueError, match="num_draws must be at least 1"):
        SCHEMES[name](key, jnp.zeros(3), 0)


def test_killing_rejects_another_number_of_draws(key):
    with pytest.raises(ValueError, match="number of particles 3, got 4"):
        SCHEMES["killing"](key, jnp.zeros(3), 4)
