"""Negative controls: the settings that tests rely on are on."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motes.inference.smc import systematic
from tests.statistics import assert_log_evidence_unbiased, assert_mean_is


def test_wrong_shape_is_rejected_by_the_import_hook(key):
    with pytest.raises(Exception, match="(?i)type-check error"):
        systematic(key, jnp.zeros((2, 2)), 3)


def test_double_precision_is_on():
    assert jnp.zeros(()).dtype == jnp.float64


def test_rank_promotion_is_an_error():
    with pytest.raises(ValueError, match="rank"):
        jnp.add(jnp.zeros((2, 3)), jnp.zeros(3))


def test_warnings_are_errors():
    with pytest.raises(UserWarning, match="a warning"):
        warnings.warn("a warning", stacklevel=1)


def test_keys_differ_between_tests(key, request):
    again = request.getfixturevalue("key")
    assert key == again and key != jax.random.key(0)


def test_mean_assertion_sees_a_bias_of_two_percent(key):
    draws = np.asarray(jax.random.exponential(key, (100_000,)))
    assert_mean_is(1.0, draws)
    with pytest.raises(AssertionError, match="mean is off"):
        assert_mean_is(1.02, draws)


def test_evidence_assertion_works_far_from_one(key):
    noise = 0.3 * jax.random.normal(key, (10_000,)) - 0.045
    for log_evidence in (-5000.0, 0.0, 5000.0):
        assert_log_evidence_unbiased(log_evidence, log_evidence + noise)
        with pytest.raises(AssertionError, match="mean is off"):
            assert_log_evidence_unbiased(log_evidence + 0.02, log_evidence + noise)
