"""Drivers compile by the options of a program; inside `jit` the caller's hold."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from motes.inference.smc import run, run_blocks, steps


class Still(NamedTuple):
    """A program that asks for what no compiler knows."""

    inputs: Any

    num_steps = property(lambda self: self.inputs.shape[0])
    init_is_step = property(lambda self: False)
    compiler_options = property(lambda self: {"xla_no_such_option": "1"})

    def init(self, key, num_particles):
        return jnp.zeros(num_particles), jnp.zeros(num_particles)

    def step(self, key, state, inputs):
        return state, state + inputs


PROGRAM = Still(jnp.ones(2))
DRIVERS = {
    "run": lambda key: run(key, PROGRAM, 4)[0],
    "run_blocks": lambda key: run_blocks(key, PROGRAM, 1, 4)[0],
    "steps": lambda key: list(steps(key, PROGRAM, 4))[-1],
}


@pytest.mark.parametrize("name", DRIVERS)
def test_the_compiler_gets_the_options(key, name):
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        DRIVERS[name](key)


@pytest.mark.parametrize("name", ["run", "run_blocks"])
@pytest.mark.parametrize("transform", [jax.jit, jax.vmap], ids=["jit", "vmap"])
def test_under_a_transformation_they_are_not_read(key, name, transform):
    keys = key if transform is jax.jit else jax.random.split(key, 2)
    found = transform(lambda key: DRIVERS[name](key).log_evidence)(keys)
    assert jnp.allclose(found, 2.0)
