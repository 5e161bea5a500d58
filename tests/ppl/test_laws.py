"""The laws of the operations on a zoo of models, in both precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motes.ppl import laws
from tests.ppl.zoo import ZOO


def test_the_zoo_is_large_enough():
    assert len(ZOO) >= 25


@pytest.mark.parametrize("name", ZOO)
def test_log_density_is_the_sum_by_hand(key, name):
    entry = ZOO[name]
    for k in jax.random.split(key, 3):
        trace = entry.model.simulate(k, *entry.args)
        np.testing.assert_allclose(
            trace.log_density, entry.density(trace.choices), rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("name", ZOO)
def test_laws_hold(key, name):
    entry = ZOO[name]
    laws.check_all(entry.model, entry.args, key, entry.selection)


@pytest.mark.parametrize("name", ZOO)
def test_laws_hold_in_single_precision(key, name):
    entry = ZOO[name]
    with jax.enable_x64(False):
        trace = entry.model.simulate(key, *entry.args)
        assert trace.log_density.dtype == jnp.float32
        laws.check_log_density(entry.model, entry.args, key)
        laws.check_update(entry.model, entry.args, key)
        laws.check_lanes(entry.model, entry.args, key)


def test_a_law_that_is_broken_is_reported(key):
    entry = ZOO["cond"]

    class Doubled(type(entry.model)):
        def update(self, *args):
            trace, log_weight, discarded = super().update(*args)
            return trace, 2 * log_weight, discarded

    broken = Doubled(entry.model.__wrapped__)
    with pytest.raises(AssertionError, match="update: the law gives"):
        laws.check_update(broken, entry.args, key)
