"""Forward-backward against reference numbers and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from motes.inference.exact import (
    HiddenMarkov,
    enumerate_choices,
    hmm_filter,
    hmm_smoother,
    sample_posterior,
    viterbi,
)
from motes.ppl import condition, model, sample
from tests.oracles import HMM, HMM_Y, TINY, hmm
from tests.statistics import assert_counts_fit

CHAIN = HiddenMarkov(
    jnp.array(HMM["pi"]),
    jnp.array(HMM["A"]),
    dist.Normal(jnp.array(HMM["mu"]), HMM["sd"]),
    num_steps=7,
)


def test_filter_smoother_and_path_match_the_reference():
    filtered, smoothed = hmm_filter(CHAIN, HMM_Y), hmm_smoother(CHAIN, HMM_Y)
    assert float(filtered.log_evidence) == pytest.approx(
        HMM["log_likelihood"], abs=1e-9
    )
    np.testing.assert_allclose(filtered.probabilities[-1], HMM["filter_T"], atol=1e-9)
    np.testing.assert_allclose(smoothed.probabilities[0], HMM["smooth_t0"], atol=1e-9)
    np.testing.assert_allclose(smoothed.probabilities[3], HMM["smooth_t3"], atol=1e-9)
    path, log_joint = viterbi(CHAIN, HMM_Y)
    assert path.tolist() == HMM["viterbi"]
    assert float(log_joint) == pytest.approx(HMM["viterbi_log_joint"], abs=1e-9)


def test_forward_agrees_with_enumeration_of_the_same_model():
    target = condition(hmm, {"y0": HMM_Y[0], "y": HMM_Y[1:]})
    exact = enumerate_choices(target, 6)
    assert float(exact.log_evidence) == pytest.approx(HMM["log_likelihood"], abs=1e-9)
    occupancy = exact.mean(jax.nn.one_hot(exact.choices["z"][:, 2], 3))
    np.testing.assert_allclose(occupancy, HMM["smooth_t3"], atol=1e-9)


def test_posterior_paths_have_their_exact_distribution(key):
    table = jnp.array(TINY["obs_prob"])
    emission = dist.Bernoulli(table[0])
    chain = HiddenMarkov(
        jnp.array(TINY["pi"]), jnp.array(TINY["A"]), emission, num_steps=3
    )
    ones = jnp.ones(3, int)
    paths = jax.vmap(lambda k: sample_posterior(k, chain, ones))(
        jax.random.split(key, 20_000)
    )
    joint = [
        TINY["pi"][z[0]]
        * TINY["A"][z[0]][z[1]]
        * TINY["A"][z[1]][z[2]]
        * np.prod([TINY["obs_prob"][0][s] for s in z])
        for z in itertools.product(range(2), repeat=3)
    ]
    codes = np.asarray(paths) @ np.array([4, 2, 1])
    assert_counts_fit(joint / np.sum(joint), np.bincount(codes, minlength=8))


def test_marginalized_chain_is_a_site(key):
    @model
    def regime():
        sd = sample("sd", dist.HalfNormal(1.0))
        emission = dist.Normal(jnp.array(HMM["mu"]), sd)
        sample("y", HiddenMarkov(CHAIN.initial, CHAIN.transition, emission, 7))

    log_prior = dist.HalfNormal(1.0).log_prob(0.6)
    found = regime.log_density({"sd": 0.6, "y": HMM_Y})
    assert float(found - log_prior) == pytest.approx(HMM["log_likelihood"])
    assert regime.simulate(key)["y"].shape == (7,)


def test_number_of_observations_is_checked():
    with pytest.raises(ValueError, match="must have 7 rows, got 2"):
        hmm_smoother(CHAIN, HMM_Y[:2])
