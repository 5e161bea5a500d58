"""The run-time check of shapes is on: a negative control."""

import jax
import jax.numpy as jnp
import pytest

from motes.inference.smc import systematic


def test_wrong_shape_is_rejected_by_the_import_hook(key):
    with pytest.raises(Exception, match="Type-check error|type-check"):
        systematic(key, jnp.zeros((2, 2)), 3)


def test_double_precision_is_on():
    assert jax.numpy.zeros(()).dtype == jnp.float64
