"""Proposals that draw more, or less, than the model makes: against enumeration."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from motes.inference.exact import enumerate_choices
from motes.inference.smc import (
    auxiliary,
    bootstrap,
    derive,
    guided,
    importance_sampling,
    run,
)
from motes.ppl import condition, factor, masked, model, plate, sample, scope
from motes.ppl.errors import AddressError
from tests.hook import unhooked
from tests.oracles import AR1_Y, ar1
from tests.statistics import assert_log_evidence_unbiased, assert_mean_is


def coin(name, p):
    return sample(name, dist.Bernoulli(p))


@model
def step(z):
    """Either `a` or `b`, lanes that toss `c` or nothing, and an observation."""
    z = coin("z", jnp.where(z == 1, 0.8, 0.25))
    k = jax.lax.cond(z == 1, lambda: coin("a", 0.4), lambda: coin("b", 0.7))

    def lane(p):
        u = coin("u", p)
        return jax.lax.cond(u == 1, lambda: u + coin("c", 0.3), lambda: u)

    lanes = plate(lane)(jnp.array([0.2, 0.6]))
    coin("y", 0.1 + 0.2 * z + 0.2 * k + 0.1 * lanes.sum())
    return (z + k) % 2


@model
def all_branches(z, observed):
    """Draws what no run makes all of; `a` tells on `z`."""
    a = coin("a", 0.2 + 0.5 * observed["y"])
    coin("z", 0.3 + 0.4 * a)
    coin("b", 0.6)
    plate(lambda p: coin("c", p))(jnp.array([0.5, 0.2]))


@model
def some_branches(z, observed):
    """Draws `a` by a condition of its own, in one lane of two."""
    u = plate(lambda p: coin("u", p))(jnp.array([0.7, 0.3]))
    jax.lax.cond(u[0] == 1, lambda: coin("a", 0.8), lambda: 0)


@model
def same_branches(z, observed):
    z = coin("z", 0.5)
    jax.lax.cond(z == 1, lambda: coin("a", 0.6), lambda: coin("b", 0.3))


PROPOSALS = [all_branches, some_branches, same_branches]


@pytest.mark.parametrize("proposal", PROPOSALS, ids=lambda p: p.__name__)
def test_unmade_choices_count_in_neither_density(key, proposal):
    target = condition(step, {"y": 1})

    @model
    def given_all(z):
        proposal(z, {"y": 1.0})

    particles = importance_sampling(key, target, 100_000, 1, proposal=given_all)
    weights = jnp.exp(particles.log_weights + particles.log_evidence)
    exact = enumerate_choices(target, 1)
    assert_mean_is(jnp.exp(exact.log_evidence), weights, num_sigmas=4)
    joint = jnp.exp(exact.log_evidence) * exact.mean(exact.choices["z"].astype(float))
    assert_mean_is(joint, weights * particles.state["z"], num_sigmas=4)


@model
def first():
    z = coin("z", 0.4)
    coin("y", 0.2 + 0.6 * z)
    return z


@model
def two_steps():
    z = first()
    for name in ("one", "two"):
        with scope(name):
            z = step(z)


@pytest.mark.parametrize("missing", [False, True])
def test_guided_filter_of_branches_is_unbiased(key, missing):
    seen = jnp.array([True, not missing, True])
    data = {
        "y": masked(jnp.array([0, 1, 1]), seen) if missing else jnp.array([0, 1, 1])
    }

    @model
    def proposal(z, observed):
        y = observed["y"].value if missing else observed["y"]
        all_branches(z, {"y": 1.0 * y})

    program = guided(first, step, proposal, data)
    evidence = jax.jit(jax.vmap(lambda k: run(k, program, 4)[0].log_evidence))
    given = {"y": 0, "two": {"y": 1}} | ({} if missing else {"one": {"y": 1}})
    exact = enumerate_choices(condition(two_steps, given)).log_evidence
    assert_log_evidence_unbiased(exact, evidence(jax.random.split(key, 4000)))


@model
def with_factor(z, observed):
    coin("z", 0.5)
    factor("tilt", -1.0)


@model
def of_data(z, observed):
    coin("z", 0.5)
    coin("y", 0.5)


@model
def misspelt(z, observed):
    coin("zz", 0.5)


@pytest.mark.parametrize(
    ("proposal", "error", "words"),
    [
        (with_factor, ValueError, "normalized density, got a factor at address 'tilt'"),
        (of_data, AddressError, "free choices only, got 'y', which is observed"),
        (misspelt, AddressError, "guided: 'zz' must be an address .* mean 'z'"),
    ],
    ids=["factor", "data", "misspelt"],
)
def test_what_is_no_proposal_is_refused(key, proposal, error, words):
    program = guided(first, step, proposal, {"y": jnp.array([0, 1])})
    with pytest.raises(error, match=words):
        run(key, program, 4)


def test_filters_are_made_of_models(key):
    data, plain = {"y": jnp.array([0, 1])}, step.simulate
    with pytest.raises(
        TypeError, match="bootstrap: initial must be a model, got <bound"
    ):
        unhooked(bootstrap)(plain, step, data)
    with pytest.raises(TypeError, match="guided: proposal must be a model"):
        unhooked(guided)(first, step, plain, data)
    with pytest.raises(TypeError, match="guided: first_proposal must be a model"):
        unhooked(guided)(first, step, of_data, data, first_proposal=plain)
    with pytest.raises(TypeError, match="derive: model must be a model, got Condit"):
        unhooked(derive)(condition(ar1, {"y": AR1_Y}), {}, 10)
    with pytest.raises(
        TypeError, match="importance_sampling: proposal must be a model"
    ):
        unhooked(importance_sampling)(key, first, 3, proposal=plain)
    with pytest.raises(TypeError, match="bootstrap or guided filter, got Derived"):
        unhooked(auxiliary)(derive(ar1, {"y": AR1_Y}, 10), lambda x, y: 0.0)
