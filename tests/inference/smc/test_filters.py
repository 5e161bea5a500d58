"""Filters against the Kalman filter and forward-backward."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motes.inference.smc import (
    SCHEMES,
    auxiliary,
    bootstrap,
    derive,
    guided,
    multinomial,
    run,
)
from tests.oracles import (
    AR1,
    AR1_Y,
    HMM,
    HMM_Y,
    TINY,
    ar1,
    ar1_initial,
    ar1_look_ahead,
    ar1_proposal,
    ar1_transition,
    hmm,
    tiny_initial,
    tiny_transition,
)
from tests.statistics import assert_log_evidence_unbiased, assert_mean_is

BOOTSTRAP = bootstrap(ar1_initial, ar1_transition, {"y": AR1_Y})
PROGRAMS = {
    "bootstrap": BOOTSTRAP,
    "guided": guided(ar1_initial, ar1_transition, ar1_proposal, {"y": AR1_Y}),
    "auxiliary": auxiliary(BOOTSTRAP, ar1_look_ahead),
    "derived": derive(ar1, {"y": AR1_Y}, 10),
}


def mean_state(particles):
    state = particles.state
    return particles.mean(state if hasattr(state, "shape") else state.choices["x"])


def evidences(program, keys, num_particles, scheme, threshold):
    def one(key):
        return run(
            key, program, num_particles, resample=scheme, ess_threshold=threshold
        )[0].log_evidence

    return jax.jit(jax.vmap(one))(keys)


# At threshold zero nothing is resampled: the scheme plays no part.
POLICIES = [("systematic", 0.0), *product(SCHEMES, [0.5, 0.9, 1.0])]


@pytest.mark.parametrize(("scheme", "threshold"), POLICIES)
@pytest.mark.parametrize("builder", PROGRAMS)
def test_evidence_is_unbiased(key, builder, scheme, threshold):
    keys = jax.random.split(key, 2000)
    draws = evidences(PROGRAMS[builder], keys, 16, SCHEMES[scheme], threshold)
    assert_log_evidence_unbiased(AR1["log_likelihood"], draws)


@pytest.mark.parametrize("num_particles", [1, 2, 3])
def test_evidence_is_unbiased_with_few_particles(key, num_particles):
    program = bootstrap(tiny_initial, tiny_transition, {"y": jnp.ones(3, int)})
    keys = jax.random.split(key, 20_000)
    draws = evidences(program, keys, num_particles, multinomial, 1.0)
    assert_log_evidence_unbiased(TINY["log_Z"], draws)


def test_evidence_times_mean_is_unbiased_with_two_particles(key):
    program = bootstrap(tiny_initial, tiny_transition, {"y": jnp.ones(3, int)})

    def one(key):
        particles, _ = run(key, program, 2, resample=multinomial, ess_threshold=1.0)
        last = particles.mean(particles.state[0].astype(float))
        return jnp.exp(particles.log_evidence) * last

    draws = jax.jit(jax.vmap(one))(jax.random.split(key, 40_000))
    assert_mean_is(TINY["E_Zhat_times_est_P_x2_1"], draws, num_sigmas=3)


@pytest.mark.parametrize("builder", PROGRAMS)
def test_filter_means_match_kalman(key, builder):
    def one(key):
        return run(key, PROGRAMS[builder], 1000, collect=mean_state)[1]

    means = jax.jit(jax.vmap(one))(jax.random.split(key, 100))
    # The mean of a self-normalized estimate has a bias of order 1/N, far below this.
    assert_mean_is(AR1["filter_mean"], means, num_sigmas=4, atol=1e-3)


def test_filter_of_a_discrete_chain_matches_forward_backward(key):
    program = derive(hmm, {"y0": HMM_Y[0], "y": HMM_Y[1:]}, 6)

    def occupancy(particles):
        return particles.mean(jax.nn.one_hot(particles.state.choices["z"], 3))

    def one(key):
        particles, history = run(key, program, 1000, collect=occupancy)
        return particles.log_evidence, history[-1]

    log_evidence, last = jax.jit(jax.vmap(one))(jax.random.split(key, 200))
    assert_log_evidence_unbiased(HMM["log_likelihood"], log_evidence)
    assert_mean_is(HMM["filter_T"], last, num_sigmas=4, atol=1e-3)


def test_single_precision_agrees_with_double(key):
    program = bootstrap(ar1_initial, ar1_transition, {"y": AR1_Y})
    expected = run(key, program, 100_000)[0].log_evidence
    with jax.enable_x64(False):
        single = bootstrap(
            ar1_initial, ar1_transition, {"y": jnp.asarray(AR1_Y, jnp.float32)}
        )
        log_evidence = run(key, single, 100_000)[0].log_evidence
        assert log_evidence.dtype == jnp.float32
    assert float(log_evidence) == pytest.approx(float(expected), abs=0.05)


def test_gradient_of_the_evidence_flows_through_the_filter(key):
    def log_evidence(scale):
        program = bootstrap(ar1_initial, ar1_transition, {"y": scale * AR1_Y})
        return run(key, program, 64, ess_threshold=0.0)[0].log_evidence

    slope = jax.grad(log_evidence)(1.0)
    step = 1e-5
    numeric = (log_evidence(1 + step) - log_evidence(1 - step)) / (2 * step)
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)
