"""The step that drivers share, on a program written by hand."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motes.inference.smc import (
    SCHEMES,
    FeynmanKac,
    Policy,
    advance,
    backward_sampling,
    genealogies,
    keep_ancestors,
    keep_history,
    multinomial,
    relative_variance,
    run,
    start,
    steps,
)
from tests.oracles import HMM, HMM_Y, TINY
from tests.statistics import assert_log_evidence_unbiased, assert_mean_is


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chain:
    """A hidden Markov chain; `likelihoods` has a row for each time."""

    first: Any
    matrix: Any
    likelihoods: Any
    init_is_step: bool = field(default=True, metadata={"static": True})

    @property
    def inputs(self):
        return self.likelihoods[1:]

    @property
    def num_steps(self):
        return self.likelihoods.shape[0] - 1

    def init(self, key, num_particles):
        z = jax.random.categorical(key, jnp.log(self.first), shape=(num_particles,))
        return z, jnp.log(self.likelihoods[0])[z]

    def step(self, key, state, inputs):
        z = jax.random.categorical(key, jnp.log(self.matrix)[state])
        return z, jnp.log(inputs)[z]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ChainWithEnd(Chain):
    """The same, with weights at the end."""

    def finish(self, key, state):
        return jnp.log(jnp.array([0.2, 0.7]))[state]


def gaussian_chain():
    z = (HMM_Y[:, None] - jnp.array(HMM["mu"])[None]) / HMM["sd"]
    density = jnp.exp(-0.5 * z**2) / (HMM["sd"] * (2 * jnp.pi) ** 0.5)
    return Chain(jnp.array(HMM["pi"]), jnp.array(HMM["A"]), density)


TINY_CHAIN = Chain(*(jnp.array(TINY[x]) for x in ("pi", "A", "obs_prob")))
GAUSSIAN_CHAIN = gaussian_chain()


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_program_is_what_has_the_methods():
    assert isinstance(TINY_CHAIN, FeynmanKac)
    assert not isinstance(object(), FeynmanKac)


@pytest.mark.parametrize("threshold", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_evidence_of_a_hand_written_chain_is_unbiased(key, scheme, threshold):
    @jax.jit
    @jax.vmap
    def one(key):
        particles, _ = run(
            key,
            GAUSSIAN_CHAIN,
            8,
            resample=SCHEMES[scheme],
            ess_threshold=threshold,
        )
        ratio = jnp.exp(particles.log_evidence - HMM["log_likelihood"])
        occupancy = particles.mean(jax.nn.one_hot(particles.state, 3))
        return particles.log_evidence, ratio * occupancy

    log_evidence, products = one(jax.random.split(key, 4000))
    assert_log_evidence_unbiased(HMM["log_likelihood"], log_evidence)
    # Without selection the evidence would be off by 2% only; these see it at once.
    assert_mean_is(HMM["filter_T"], products, num_sigmas=4)


@pytest.mark.parametrize("num_steps", [0, 2])
def test_the_end_weighs_after_any_number_of_steps(key, num_steps):
    likelihoods = jnp.array(TINY["obs_prob"])[: num_steps + 1]
    program = ChainWithEnd(TINY_CHAIN.first, TINY_CHAIN.matrix, likelihoods)
    forward = program.first * likelihoods[0]
    for row in likelihoods[1:]:
        forward = (forward @ program.matrix) * row
    exact = jnp.log(forward @ jnp.array([0.2, 0.7]))

    particles = run(key, program, 20_000)[0]
    *_, last = steps(key, program, 20_000)

    assert particles.log_evidence == last.log_evidence
    assert float(last.log_evidence) == pytest.approx(float(exact), abs=0.03)


def test_groups_resample_among_their_own(key):
    """Many groups in one call draw what each of them draws alone."""
    keys = jax.random.split(key, 5)
    scales = jnp.array([0.2, 0.5, 1.0, 2.0, 4.0])

    def one(key, scale):
        likelihoods = GAUSSIAN_CHAIN.likelihoods**scale
        program = Chain(GAUSSIAN_CHAIN.first, GAUSSIAN_CHAIN.matrix, likelihoods)
        particles, history = run(key, program, 16, collect=keep_history)
        return particles.state, history.ancestors

    together = jax.vmap(one)(keys, scales)
    alone = [one(k, s) for k, s in zip(keys, scales, strict=True)]
    for group, expected in enumerate(alone):
        assert_same(jax.tree.map(lambda x, g=group: x[g], together), expected)


def test_a_step_runs_in_loops_of_others(key):
    """As language models decode: a while loop that stops early."""
    policy = Policy(keep_ancestors=False)

    def go(carry):
        step, particles = carry
        row = TINY_CHAIN.inputs[step - 1]
        return step + 1, advance(key, TINY_CHAIN, particles, step, row, policy)

    @jax.jit
    def loop(key):
        first = (jnp.array(1), start(key, TINY_CHAIN, 30, policy))
        return jax.lax.while_loop(lambda c: c[0] <= 2, go, first)[1]

    assert_same(loop(key), run(key, TINY_CHAIN, 30)[0])


def test_a_step_may_take_the_memory_of_the_last(key):
    step = jax.jit(advance, static_argnames="policy", donate_argnames="particles")
    policy = Policy(keep_ancestors=False)
    particles = start(key, TINY_CHAIN, 30, policy)
    for number, row in enumerate(TINY_CHAIN.inputs, 1):
        old = particles
        particles = step(key, TINY_CHAIN, particles, number, row, policy)
        assert old.state.is_deleted() and old.log_weights.is_deleted()
    assert_same(particles, run(key, TINY_CHAIN, 30)[0])


def smooth_backward(key, history, weights):
    log_matrix = jnp.log(GAUSSIAN_CHAIN.matrix)
    paths = backward_sampling(key, history, lambda x, y: log_matrix[x, y], 64)
    return jax.nn.one_hot(paths, 3).mean(1)


def smooth_genealogy(key, history, weights):
    one_hot = jax.nn.one_hot(genealogies(history), 3)
    return jnp.einsum("tnk,n->tk", one_hot, weights)


@pytest.mark.parametrize("smoother", [smooth_backward, smooth_genealogy])
def test_smoothing_matches_forward_backward(key, smoother):
    @jax.jit
    @jax.vmap
    def one(key):
        filter_key, smooth_key = jax.random.split(key)
        particles, history = run(filter_key, GAUSSIAN_CHAIN, 500, collect=keep_history)
        return smoother(smooth_key, history, particles.weights)

    shares = one(jax.random.split(key, 200))
    # Self-normalization leaves a bias of order 1/N.
    assert_mean_is(HMM["smooth_t0"], shares[:, 0], num_sigmas=4, atol=2e-3)
    assert_mean_is(HMM["smooth_t3"], shares[:, 3], num_sigmas=4, atol=4e-3)


@pytest.mark.parametrize("num_particles", [2, 3])
def test_variance_estimate_is_unbiased_with_few_particles(key, num_particles):
    @jax.jit
    @jax.vmap
    def one(key):
        particles, ancestors = run(
            key,
            TINY_CHAIN,
            num_particles,
            resample=multinomial,
            ess_threshold=1.0,
            collect=keep_ancestors,
        )
        ratio = jnp.exp(particles.log_evidence - TINY["log_Z"])
        return ratio, ratio**2 * relative_variance(particles, ancestors, 2)

    ratio, estimate = one(jax.random.split(key, 40_000))
    assert_mean_is(0.0, (ratio - 1.0) ** 2 - estimate, num_sigmas=4)


def test_variance_needs_two_particles(key):
    particles, ancestors = run(key, TINY_CHAIN, 1, collect=keep_ancestors)
    with pytest.raises(ValueError, match="particles must be at least 2, got 1"):
        relative_variance(particles, ancestors)


def test_steps_names_itself_before_it_starts(key):
    with pytest.raises(ValueError, match="steps: num_particles must be at least 1"):
        steps(key, TINY_CHAIN, 0)
