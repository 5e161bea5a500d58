"""Populations side by side, and programs that end early."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motes.inference.smc import (
    SCHEMES,
    auxiliary,
    bootstrap,
    genealogies,
    keep_history,
    multinomial,
    relative_variance,
    run,
    run_blocks,
    steps,
)
from motes.inference.smc.feynman_kac import Ends
from tests.oracles import AR1_Y, ar1_initial, ar1_look_ahead, ar1_transition
from tests.statistics import assert_log_evidence_unbiased, assert_mean_is

FIRST = jnp.array([0.2, 0.8])
MATRIX = jnp.array([[0.7, 0.3], [0.1, 0.9]])
# Rows are times; blocks see different data, and only the second is hard.
LIKELIHOODS = jnp.array(
    [
        [[0.5, 0.6], [0.9, 0.01], [0.3, 0.3]],
        [[0.4, 0.5], [0.02, 0.8], [0.9, 0.1]],
        [[0.5, 0.5], [0.7, 0.05], [0.2, 0.4]],
    ]
)
END = jnp.array([0.1, 0.9])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks:
    """Two-state chains; the particles of a block weigh by its own likelihoods."""

    likelihoods: Any
    init_is_step: bool = field(default=True, metadata={"static": True})

    @property
    def inputs(self):
        return self.likelihoods[1:]

    @property
    def num_steps(self):
        return self.likelihoods.shape[0] - 1

    def init(self, key, num_particles):
        num_blocks = self.likelihoods.shape[1]
        block = jnp.repeat(jnp.arange(num_blocks), num_particles // num_blocks)
        z = jax.random.categorical(key, jnp.log(FIRST), shape=(num_particles,))
        return (block, z), jnp.log(self.likelihoods[0])[block, z]

    def step(self, key, state, inputs):
        block, z = state
        z = jax.random.categorical(key, jnp.log(MATRIX)[z])
        return (block, z), jnp.log(inputs)[block, z]

    def finish(self, key, state):
        return jnp.log(END)[state[1]]


def forward(block):
    alpha = FIRST * LIKELIHOODS[0, block]
    for row in LIKELIHOODS[1:, block]:
        alpha = (alpha @ MATRIX) * row
    return alpha * END


@pytest.mark.parametrize(
    ("scheme", "threshold"), [("systematic", 0.5), ("optimal", 1.0)]
)
def test_each_population_is_unbiased_for_its_own_data(key, scheme, threshold):
    how: Any = {"resample": SCHEMES[scheme], "ess_threshold": threshold}

    @jax.jit
    @jax.vmap
    def one(key):
        particles, _ = run_blocks(key, Blocks(LIKELIHOODS), 3, 4, **how)
        block, z = (x.reshape(3, 4) for x in particles.state)
        weights = jnp.exp(particles.log_weights + particles.log_evidence[:, None])
        return particles.log_evidence, (weights * z).mean(1), block

    log_evidence, second, blocks = one(jax.random.split(key, 4000))
    assert np.all(np.asarray(blocks) == np.arange(3)[:, None])
    for block in range(3):
        exact = forward(block)
        assert_log_evidence_unbiased(jnp.log(exact.sum()), log_evidence[:, block])
        assert_mean_is(exact[1], second[:, block], num_sigmas=4)


def test_one_population_is_that_of_run(key):
    """Without resampling both drivers draw the same, and collect the same steps."""
    program = Blocks(LIKELIHOODS[:, :1])

    def keep(particles):
        return particles.state, particles.ess

    alone, rows = run(key, program, 6, ess_threshold=0.0, collect=keep)
    blocks, kept = run_blocks(key, program, 1, 6, ess_threshold=0.0, collect=keep)

    np.testing.assert_allclose(blocks.log_evidence[0], alone.log_evidence)
    jax.tree.map(np.testing.assert_array_equal, kept[0], rows[0])
    np.testing.assert_allclose(kept[1][:, 0], rows[1])


def test_populations_resample_when_they_need_it_and_independently(key):
    even = jnp.ones((4, 2))
    hard = jnp.array([[1.0, 1e-3]]) * even

    def ancestors(rows, threshold):
        how: Any = {"resample": multinomial, "ess_threshold": threshold}
        program = Blocks(jnp.stack(rows, axis=1))
        keep = lambda particles: particles.ancestors  # noqa: E731
        return np.asarray(run_blocks(key, program, 2, 20, collect=keep, **how)[1])

    adaptive = ancestors([even, hard], 0.5)
    assert np.all(adaptive[:, 0] == np.arange(20))
    assert np.any(adaptive[:, 1] != np.arange(20))
    always = ancestors([even, even], 1.0)
    assert np.any(always[1:, 0] != always[1:, 1])


def test_a_dead_population_leaves_the_others_alone(key):
    impossible = LIKELIHOODS.at[1, 0].set(0.0)
    dead, _ = run_blocks(key, Blocks(impossible), 3, 8)
    alive, _ = run_blocks(key, Blocks(LIKELIHOODS), 3, 8)
    assert dead.dead_step.tolist() == [1, -1, -1]
    assert np.all(np.isneginf(dead.log_weights[0])) and np.isneginf(
        dead.log_evidence[0]
    )
    np.testing.assert_array_equal(dead.log_evidence[1:], alive.log_evidence[1:])
    np.testing.assert_array_equal(dead.log_weights[1:], alive.log_weights[1:])


def test_a_program_that_looks_ahead_is_refused(key):
    program = bootstrap(ar1_initial, ar1_transition, {"y": AR1_Y})
    with pytest.raises(TypeError, match="must not look ahead, got .* Auxiliary"):
        run_blocks(key, auxiliary(program, ar1_look_ahead), 2, 3)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stopped(Blocks):
    """The chains, until the step in `last` has been done."""

    last: Any = 0

    def init(self, key, num_particles):
        state, log_weights = super().init(key, num_particles)
        return (*state, jnp.zeros(num_particles, int)), log_weights

    def step(self, key, state, inputs):
        moved, increments = super().step(key, state[:2], inputs)
        return (*moved, state[2] + 1), increments

    def has_ended(self, state):
        return state[2][0] >= self.last


LONG = jnp.tile(LIKELIHOODS[1:2], (6, 1, 1))
ENDED, SHORT = Stopped(LONG, last=jnp.array(2)), Stopped(LONG[:3], last=jnp.array(9))


def finished(particles):
    """Without what was weighed at the end, whose key is of the last step."""
    return particles.state, particles.dead_step


def test_nothing_happens_after_the_end(key):
    assert isinstance(ENDED, Ends)
    how: Any = {"ess_threshold": 1.0, "collect": keep_history}
    ended, long = run(key, ENDED, 12, **how)
    short, history = run(key, SHORT, 12, **how)

    jax.tree.map(np.testing.assert_array_equal, finished(ended), finished(short))
    np.testing.assert_allclose(ended.log_evidence, short.log_evidence, rtol=1e-12)
    for paths, shorter in zip(genealogies(long), genealogies(history), strict=True):
        np.testing.assert_array_equal(paths[:3], shorter)
        np.testing.assert_array_equal(paths[3:], np.tile(shorter[2], (3, 1)))
    np.testing.assert_array_equal(
        relative_variance(ended, long.ancestors),
        relative_variance(short, history.ancestors),
    )


def test_steps_after_the_end_change_nothing(key):
    populations = list(steps(key, ENDED, 12, ess_threshold=1.0, jit=False))
    *_, before, _ = populations
    assert len(populations) == 6
    np.testing.assert_array_equal(before.ancestors, np.arange(12))
    jax.tree.map(np.testing.assert_array_equal, before.state, populations[2].state)
    np.testing.assert_array_equal(before.log_weights, populations[2].log_weights)


def test_populations_that_ended_keep_their_places(key):
    how: Any = {"ess_threshold": 1.0, "collect": lambda particles: particles.ancestors}
    ended, ancestors = run_blocks(key, ENDED, 3, 4, **how)
    short, fewer = run_blocks(key, SHORT, 3, 4, **how)
    jax.tree.map(np.testing.assert_array_equal, finished(ended), finished(short))
    np.testing.assert_allclose(ended.log_evidence, short.log_evidence, rtol=1e-12)
    np.testing.assert_array_equal(ancestors[:3], fewer)
    assert np.any(np.asarray(fewer[2]) != np.arange(4))
    assert np.all(np.asarray(ancestors[3:]) == np.arange(4))
