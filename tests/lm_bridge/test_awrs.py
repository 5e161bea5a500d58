"""Adaptive weighted rejection sampling, exactly and by its draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motes.lm_bridge.awrs import _visit, draw_token, draw_tokens, visit_in_order
from tests.statistics import assert_mean_is

VISIT = jax.jit(_visit)
PROBS = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
CASES = {
    "all pass": (np.array([1, 1, 1, 1, 1]), 2.00),
    "top fails": (np.array([0, 1, 1, 1, 1]), 2.50),
    "only the last passes": (np.array([0, 0, 0, 0, 1]), 4.5773370),
}


def _over_all_orders(passes):
    """Expected checks and E[w 1{x=v}], over the orders of draws without replacement."""
    checks, weights = 0.0, np.zeros(5)
    for order in itertools.permutations(range(5)):
        chance, left = 1.0, 1.0
        for token in order:
            chance *= PROBS[token] / left
            left -= PROBS[token]
        draw = visit_in_order(PROBS, lambda v: bool(passes[v]), order)
        checks += chance * draw.num_checks
        weights[draw.token] += chance * np.exp(draw.log_weight)
    return checks, weights


@pytest.mark.parametrize("case", CASES)
def test_checks_and_weights_are_exact(case):
    passes, expected = CASES[case]
    checks, weights = _over_all_orders(passes)
    assert checks == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(weights, PROBS * passes, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_device_form_is_properly_weighted(key, case):
    passes, expected = CASES[case]
    log_probs = jnp.broadcast_to(jnp.log(PROBS), (40_000, 5))
    mask = jnp.broadcast_to(jnp.log(jnp.asarray(passes, float)), (40_000, 5))
    tokens, log_weights, checks = jax.jit(draw_tokens)(key, log_probs, mask)
    hits = np.exp(log_weights)[:, None] * (np.asarray(tokens)[:, None] == np.arange(5))
    assert_mean_is(PROBS * passes, hits)
    assert_mean_is(expected, checks, atol=5e-3)


def test_device_form_finds_what_a_visit_finds():
    """For the same order; equal scores are visited by their ids."""
    random = np.random.default_rng(0)
    for _ in range(300):
        probs = random.choice([0.0, 0.1, 0.2, 0.4], 6)
        scores = np.where(probs > 0, random.integers(0, 4, 6), -np.inf)
        passes = random.random(6) < random.random()
        order = [int(v) for v in np.argsort(-scores, kind="stable") if probs[v] > 0]
        expected = visit_in_order(probs, lambda v, passes=passes: passes[v], order)
        with np.errstate(divide="ignore"):
            found = VISIT(np.log(probs), scores, passes)
        assert found[2] == expected.num_checks
        np.testing.assert_allclose(found[1], expected.log_weight, atol=1e-12)
        assert np.isneginf(found[1]) or found[0] == expected.token


@pytest.mark.parametrize("num_accepts", [2, 3])
@pytest.mark.parametrize("passes", [[1, 0, 1], [0, 1, 1]])
def test_geometric_form_is_properly_weighted(key, passes, num_accepts):
    probs = np.array([0.7, 0.2, 0.1])
    draws = [
        draw_token(k, np.log(probs), lambda v: bool(passes[v]), num_accepts)
        for k in jax.random.split(key, 3000)
    ]
    hits = np.array([np.exp(d.log_weight) * (d.token == np.arange(3)) for d in draws])
    assert_mean_is(probs * passes, hits)
    assert max(d.num_checks for d in draws) <= 3


def test_nothing_that_passes_has_weight_zero(key):
    for probs in (PROBS, np.array([0.9, 0.1, 0.0])):
        assert (
            draw_token(key, np.log(probs + 1e-300), lambda v: False).log_weight
            == -np.inf
        )
    shape = (3, 5)
    log_probs = jnp.broadcast_to(jnp.log(PROBS), shape)
    _, log_weights, _ = draw_tokens(key, log_probs, jnp.full(shape, -jnp.inf))
    assert jnp.isneginf(log_weights).all()


def test_little_mass_is_weighed_to_the_precision_of_the_model(key):
    """What is left is far below the rounding of one minus what was rejected."""
    probs = np.full(1000, 1e-3).astype(np.float32)
    probs[:2] = 1e-9
    log_probs, passes = np.log(probs), np.arange(1000) < 2
    mask = jnp.where(passes, 0.0, -jnp.inf).astype(jnp.float32)
    rows = (jnp.broadcast_to(row, (50, 1000)) for row in (jnp.asarray(log_probs), mask))
    _, log_weights, _ = draw_tokens(key, *rows)
    np.testing.assert_allclose(log_weights, np.log(2e-9), rtol=1e-6)
    asked = draw_token(key, log_probs, lambda v: bool(passes[v]))
    np.testing.assert_allclose(asked.log_weight, np.log(2e-9), rtol=1e-6)


def test_too_few_accepts_are_refused(key):
    with pytest.raises(ValueError, match="num_accepts"):
        draw_token(key, np.log(PROBS), lambda v: True, 1)
