"""Enumeration against discrete networks that others solved."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from motes.inference.exact import enumerate_choices
from motes.ppl import AddressError, condition, factor, model, sample, vmap
from tests.oracles import TRUTH


@model
def alarm():
    b = sample("b", dist.Bernoulli(0.001))
    e = sample("e", dist.Bernoulli(0.002))
    table = jnp.array([[0.001, 0.29], [0.94, 0.95]])
    a = sample("a", dist.Bernoulli(table[b, e]))
    sample("j", dist.Bernoulli(jnp.array([0.05, 0.9])[a]))
    sample("m", dist.Bernoulli(jnp.array([0.01, 0.7])[a]))


@model
def sprinkler():
    rain = sample("rain", dist.Bernoulli(0.3))
    on = sample("sprinkler", dist.Bernoulli(jnp.where(rain == 1, 0.1, 0.4)))
    table = jnp.array([[0.0, 0.9], [0.8, 0.98]])
    sample("wet", dist.Bernoulli(table[rain, on]))


def test_burglary_matches_the_reference():
    truth = TRUTH["B1_burglary_alarm"]
    exact = enumerate_choices(condition(alarm, {"j": 1, "m": 1}))
    assert float(exact.log_evidence) == pytest.approx(truth["log_evidence"], abs=1e-9)
    mean = exact.mean()
    assert float(mean["b"]) == pytest.approx(truth["P_burglary"], abs=1e-9)
    assert float(mean["e"]) == pytest.approx(truth["P_earthquake"], abs=1e-9)
    assert float(mean["a"]) == pytest.approx(truth["P_alarm"], abs=1e-9)


def test_sprinkler_matches_the_reference():
    truth = TRUTH["B2_sprinkler"]
    exact = enumerate_choices(condition(sprinkler, {"wet": 1}))
    assert float(jnp.exp(exact.log_evidence)) == pytest.approx(truth["evidence"])
    assert float(exact.mean()["rain"]) == pytest.approx(truth["P_rain_given_wet"])


def test_plates_factors_and_branches_are_summed_once():
    @model
    def mixed():
        flips = vmap(lambda p: sample("flip", dist.Bernoulli(p)))(jnp.array([0.2, 0.7]))
        chosen = jax.lax.cond(
            flips[0] == 1,
            lambda: sample("die", dist.Categorical(jnp.array([0.2, 0.3, 0.5]))),
            lambda: jnp.zeros((), int),
        )
        factor("score", 0.5 * chosen)

    exact = enumerate_choices(mixed)
    die = 0.2 + 0.3 * np.exp(0.5) + 0.5 * np.exp(1.0)
    assert float(jnp.exp(exact.log_evidence)) == pytest.approx(0.8 + 0.2 * die)
    assert float(exact.probabilities.sum()) == pytest.approx(1.0)


def test_continuous_choices_are_refused():
    @model
    def continuous():
        sample("x", dist.Normal())

    with pytest.raises(AddressError, match="finite support.*Normal at address 'x'"):
        enumerate_choices(continuous)


def test_too_many_assignments_are_refused():
    @model
    def many():
        sample("x", dist.Bernoulli(0.5).expand([30]))

    with pytest.raises(ValueError, match="at most 1000000 assignments, got 1073741824"):
        enumerate_choices(many)
