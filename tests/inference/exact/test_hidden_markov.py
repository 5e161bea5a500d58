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
from motes.ppl import ShapeError, condition, model, sample
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
    with pytest.raises(ValueError, match=r"must have shape \(7,\), got \(2,\)"):
        hmm_smoother(CHAIN, HMM_Y[:2])


def enumerated(observed):
    """Paths of the first steps of C1, with their joint densities with what was seen."""
    paths = np.array(list(itertools.product(range(3), repeat=len(observed))))
    moves = np.array(HMM["A"])[paths[:, :-1], paths[:, 1:]].prod(1)
    gaps = (np.asarray(observed) - np.array(HMM["mu"])[paths]) / HMM["sd"]
    likelihoods = np.exp(-0.5 * gaps**2) / (HMM["sd"] * (2 * np.pi) ** 0.5)
    seen = np.where(np.isnan(gaps), 1.0, likelihoods).prod(1)
    return paths, np.array(HMM["pi"])[paths[:, 0]] * moves * seen


@pytest.mark.parametrize("gaps", [[0], [2], [1, 3], [0, 1, 2, 3]])
def test_missing_observations_are_summed_out(key, gaps):
    chain = HiddenMarkov(CHAIN.initial, CHAIN.transition, CHAIN.emission, 4)
    y = HMM_Y[:4].at[jnp.array(gaps)].set(jnp.nan)
    paths, joint = enumerated(y)
    smoothed, (path, log_joint) = hmm_smoother(chain, y), viterbi(chain, y)
    occupancy = [np.bincount(z, joint, 3) / joint.sum() for z in paths.T]
    np.testing.assert_allclose(smoothed.log_evidence, np.log(joint.sum()), atol=1e-9)
    np.testing.assert_allclose(smoothed.probabilities, occupancy, atol=1e-9)
    np.testing.assert_allclose(
        hmm_filter(chain, y).probabilities[-1], occupancy[-1], atol=1e-9
    )
    np.testing.assert_allclose(log_joint, np.log(joint.max()), atol=1e-9)
    np.testing.assert_allclose(
        joint[(paths == np.asarray(path)).all(1)], joint.max(), atol=1e-12
    )
    site = model(lambda: sample("y", chain))
    np.testing.assert_allclose(site.log_density({"y": y}), np.log(joint.sum()))


def test_gradients_pass_missing_observations():
    y = HMM_Y.at[jnp.array([0, 3])].set(jnp.nan)

    def log_evidence(means):
        emission = dist.Normal(means, HMM["sd"])
        chain = HiddenMarkov(CHAIN.initial, CHAIN.transition, emission, 7)
        return hmm_filter(chain, y).log_evidence

    means = jnp.array(HMM["mu"])
    gradient = jax.grad(log_evidence)(means)
    steps = 1e-5 * jnp.eye(3)
    slopes = [(log_evidence(means + h) - log_evidence(means - h)) / 2e-5 for h in steps]
    np.testing.assert_allclose(gradient, jnp.stack(slopes), rtol=1e-6)


def test_observations_are_missing_whole():
    emission = dist.Normal(jnp.zeros((3, 2)), 1.0).to_event(1)
    chain = HiddenMarkov(CHAIN.initial, CHAIN.transition, emission, 2)
    whole = jnp.array([[0.3, -0.4], [jnp.nan, jnp.nan]])
    exact = dist.Normal(0.0, 1.0).log_prob(whole[0]).sum()
    np.testing.assert_allclose(hmm_filter(chain, whole).log_evidence, exact)
    partly = whole.at[1, 0].set(0.0)
    with pytest.raises(ValueError, match=r"missing whole .* got \[ 0. nan\] in row 1"):
        hmm_filter(chain, partly)
    hidden = jax.jit(lambda y: hmm_filter(chain, y).log_evidence)(partly)
    assert hidden == -jnp.inf


def test_supports_that_differ_between_states_are_left_to_the_density():
    emission = dist.Uniform(jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 2.0, 3.0]))
    chain = HiddenMarkov(CHAIN.initial, CHAIN.transition, emission, 2)
    site = model(lambda: sample("y", chain))
    exact = np.log(HMM["pi"][0] * HMM["A"][0][1])
    found = site.log_density({"y": jnp.array([0.5, 1.5])})
    assert float(found) == pytest.approx(exact)


PARTS = {
    "initial": CHAIN.initial,
    "transition": CHAIN.transition,
    "emission": CHAIN.emission,
    "num_steps": 7,
}


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ({"initial": jnp.array([0.5, 0.9, 0.1])}, ValueError, r"initial .* \[0.5 0.9"),
        ({"initial": jnp.full(3, jnp.nan)}, ValueError, "initial must hold probab"),
        (
            {"initial": jnp.array([1.5, -0.5, 0.0])},
            ValueError,
            "sum to one in each row",
        ),
        ({"transition": CHAIN.transition.T}, ValueError, "transition must hold probab"),
        ({"transition": jnp.ones((3, 2)) / 2}, ShapeError, r"\(3, 3\), got \(3, 2\)"),
        ({"initial": jnp.ones(1)}, ShapeError, r"\(1, 1\), got \(3, 3\)"),
        ({"emission": dist.Normal(0.0, 1.0)}, ShapeError, r"\(3,\), got \(\)"),
        ({"emission": None}, ShapeError, r"batch shape \(3,\), got None"),
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1, got 0"),
        ({"num_steps": 7.0}, TypeError, "num_steps must be an integer"),
    ],
)
def test_parts_that_make_no_chain_are_refused(parts, error, words):
    # Without its types the class can be made of what the import hook would refuse.
    untyped = type("HiddenMarkov", (HiddenMarkov,), {"__annotations__": {}})
    with pytest.raises(error, match=f"HiddenMarkov: .*{words}"):
        untyped(**PARTS | parts)


def test_rows_in_jit_are_not_looked_at():
    def log_evidence(rows):
        chain = HiddenMarkov(CHAIN.initial, rows, CHAIN.emission, 7)
        return hmm_filter(chain, HMM_Y).log_evidence

    found = jax.jit(log_evidence)(CHAIN.transition)
    assert float(found) == pytest.approx(HMM["log_likelihood"], abs=1e-9)
