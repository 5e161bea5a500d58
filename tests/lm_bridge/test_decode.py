"""Steered decoding against all texts of a small model, enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motes.inference.smc import SCHEMES, DeadParticles, run, steps
from motes.lm_bridge.decode import decode, decode_batch, decoding
from motes.lm_bridge.rejection import reject
from motes.lm_bridge.tabular import enumerate_posterior
from tests.lm_bridge.tables import (
    BOTH,
    END,
    ENDS_IN_B,
    KNOWN,
    NEVER_CC,
    NEVER_ENDS,
    TABLE,
    A,
    last_token,
)
from tests.statistics import (
    assert_log_evidence_unbiased,
    assert_mean_is,
)


@pytest.mark.parametrize("name", KNOWN)
def test_enumeration_gives_the_known_evidence(name):
    potential, exact = KNOWN[name]
    texts = enumerate_posterior(TABLE, potential, 4)
    assert np.exp(texts.log_evidence) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("num_particles", [2, 8, 32])
@pytest.mark.parametrize("name", ["never cc", "ends in b", "never cc, likes b"])
def test_evidence_is_unbiased(key, name, num_particles, threshold):
    potential, exact = KNOWN[name]

    def one(key):
        return decode(
            key, TABLE, (), num_particles, 4, potential, ess_threshold=threshold
        ).log_evidence

    draws = jax.jit(jax.vmap(one))(jax.random.split(key, 4000))
    assert_log_evidence_unbiased(np.log(exact), draws)


def _codes(texts):
    return [int(np.dot((*t, *[3] * (4 - len(t))), [64, 16, 4, 1])) for t in texts]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weighted_texts_have_the_exact_posterior(key, scheme):
    exact = enumerate_posterior(TABLE, BOTH, 4)

    def one(key):
        found = decode(
            key, TABLE, (), 8, 4, BOTH, resample=SCHEMES[scheme], ess_threshold=0.9
        )
        codes = found.tokens @ jnp.array([64, 16, 4, 1])
        mass = jnp.zeros(256).at[codes].add(found.weights)
        return jnp.exp(found.log_evidence - exact.log_evidence) * mass

    draws = jax.jit(jax.vmap(one))(jax.random.split(key, 4000))
    found = np.asarray(draws)[:, _codes(exact.texts)]
    assert_mean_is(exact.probabilities, found, num_sigmas=5)
    assert_mean_is(1.0, np.asarray(draws).sum(1), num_sigmas=4)


def test_distance_to_the_posterior_falls_as_one_over_root_n(key):
    exact = enumerate_posterior(TABLE, NEVER_CC, 4).as_dict()
    distances = []
    for num in (100, 1600):
        gaps = []
        for k in jax.random.split(key, 12):
            found = decode(k, TABLE, (), num, 4, NEVER_CC).posterior()
            gaps.append(0.5 * sum(abs(exact[t] - found.get(t, 0.0)) for t in exact))
        distances.append(np.mean(gaps))
    # Sixteen times the particles: a quarter of the distance.
    assert 2.8 < distances[0] / distances[1] < 5.6


def test_finished_texts_keep_their_weight(key):
    found = decode(key, TABLE, (), 500, 4, ess_threshold=0.0)
    # Without a potential only texts at the limit are weighed, by their end.
    early = np.asarray(found.log_weights)[np.asarray(found.lengths) < 4]
    np.testing.assert_allclose(early, early.max())
    assert np.all(np.asarray(found.log_weights) <= early.max() + 1e-12)
    assert int(found.budget.generated) == int((found.lengths + 1).sum())


def test_particle_by_particle_driver_agrees(key):
    program = decoding(TABLE, (), 4, BOTH)
    (*_, last) = steps(key, program, 6)
    whole, _ = run(key, program, 6)
    np.testing.assert_array_equal(last.state.tokens, whole.state.tokens)
    np.testing.assert_allclose(last.log_evidence, whole.log_evidence)


def test_impossible_requests_are_found_before_the_first_token(key):
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        decoding(TABLE, (), 0)
    with pytest.raises(ValueError, match="forbids every first token"):
        decoding(TABLE, (), 2, type(ENDS_IN_B)([[0.0] * 4] * 4))
    with pytest.raises(ValueError, match="vocabulary of the model, 4 tokens, got 9"):
        decoding(TABLE, (), 2, type(ENDS_IN_B)([[1.0] * 4] * 4, vocab_size=9))


def test_prompts_of_a_batch_are_rows(key):
    assert decode(key, TABLE, [], 3, 4).tokens.shape == (3, 4)
    with pytest.raises(ValueError, match="must be rows of token ids"):
        decode_batch(key, TABLE, [0, 1], 3, 4)
    with pytest.raises(ValueError, match="at least one prompt"):
        decode_batch(key, TABLE, [], 3, 4)


@pytest.mark.parametrize("factor", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(key, factor):
    broken = last_token(lambda f: f[END].__setitem__(A, factor))
    for draw in (decode, reject):
        with pytest.raises(ValueError, match="got NaN or .inf"):
            draw(key, TABLE, (), 10, 4, broken)


def test_dead_ends_are_reported_with_the_texts(key):
    with pytest.raises(
        DeadParticles, match="none is after step 4, by LastToken; the longest"
    ):
        decode(key, TABLE, (), 10, 3, NEVER_ENDS)
