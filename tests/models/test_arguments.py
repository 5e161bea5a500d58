"""Models are told what they are made of and how long they are."""

import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from motes.models import hidden_markov, local_level, state_space
from motes.ppl import ShapeError
from tests.hook import unhooked

LEVEL = local_level.LocalLevel()


@pytest.mark.parametrize("num_steps", [3.0, LEVEL, None])
def test_numbers_of_steps_are_integers(num_steps, key):
    with pytest.raises(TypeError, match="chain: num_steps must be an integer"):
        local_level.chain.simulate(key, num_steps, LEVEL)
    with pytest.raises(
        ValueError, match="LinearGaussian: num_steps must be at least 1"
    ):
        local_level.marginal(0, LEVEL)


def test_parts_of_models_are_functions():
    with pytest.raises(
        TypeError, match="state_space: observe must be a function, got 1"
    ):
        unhooked(state_space)(dist.Normal, dist.Normal, 1)


def markov(emission):
    initial, transition = jnp.ones(3) / 3, jnp.ones((3, 3)) / 3
    return hidden_markov.HiddenMarkovParameters(initial, transition, emission)


@pytest.mark.parametrize("mean", [jnp.zeros(()), jnp.zeros(2)])
def test_emissions_have_a_row_for_each_state(key, mean):
    words = "parameter loc of emission must have the 3 states as first axis, got shape"
    with pytest.raises(ShapeError, match=words):
        hidden_markov.chain.simulate(key, 2, markov(dist.Normal(mean)))
    with pytest.raises(ShapeError, match="HiddenMarkov: emission must have the states"):
        hidden_markov.marginal(2, markov(dist.Normal(mean)))


def test_states_may_share_a_parameter_of_the_emission():
    means = jnp.array([-1.0, 0.0, 2.0])
    choices = {"x": jnp.array([0, 2]), "y": jnp.array([-0.7, 1.1])}
    shared, repeated = (
        hidden_markov.chain.log_density(choices, 2, markov(dist.Normal(means, scale)))
        for scale in (0.5, jnp.full(3, 0.5))
    )
    assert shared == repeated
