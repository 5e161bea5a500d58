"""`run` and `steps` agree; checkpoints resume bit for bit; failures say where."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from motes.inference.smc import (
    DeadParticles,
    bootstrap,
    derive,
    keep_history,
    run,
    steps,
)
from motes.inference.smc.particles import Particles
from motes.ppl import AddressError, ShapeError, model, sample
from tests.oracles import AR1_Y, ar1, ar1_initial, ar1_transition

PROGRAM = bootstrap(ar1_initial, ar1_transition, {"y": AR1_Y})
DERIVED = derive(ar1, {"y": AR1_Y}, 10)


def assert_same(first: Particles, second: Particles):
    first, second = first._replace(ancestors=None), second._replace(ancestors=None)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("program", [PROGRAM, DERIVED], ids=["pair", "derived"])
def test_steps_give_the_answer_of_run(key, program):
    last, history = run(key, program, 50, collect=keep_history)
    populations = list(steps(key, program, 50))
    assert len(populations) == 10
    assert_same(populations[-1], last)
    for moment, population in enumerate(populations):
        np.testing.assert_array_equal(population.ancestors, history.ancestors[moment])
        np.testing.assert_array_equal(
            population.log_weights, history.log_weights[moment]
        )


def test_uncompiled_steps_agree(key):
    (*_, last) = steps(key, PROGRAM, 8, jit=False)
    np.testing.assert_allclose(last.log_evidence, run(key, PROGRAM, 8)[0].log_evidence)


def test_a_run_resumes_bit_for_bit(key, tmp_path):
    file = tmp_path / "filter.npz"
    whole = list(steps(key, PROGRAM, 20))
    first = steps(key, PROGRAM, 20, checkpoint=file)
    for _ in range(4):
        next(first)
    first.close()
    rest = list(steps(key, PROGRAM, 20, checkpoint=file))
    assert len(rest) == 6
    for resumed, expected in zip(rest, whole[4:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, resumed, expected)


def test_a_checkpoint_of_another_run_is_refused(key, tmp_path):
    file = tmp_path / "filter.npz"
    list(steps(key, PROGRAM, 20, checkpoint=file))
    with pytest.raises(ValueError, match="checkpoint must be of a run with this key"):
        list(steps(jax.random.key(1), PROGRAM, 20, checkpoint=file))
    with pytest.raises(ValueError, match="checkpoint must be of a run with this key"):
        list(steps(key, PROGRAM, 21, checkpoint=file))


def test_progress_bar_counts_the_steps(key, capfd):
    list(steps(key, PROGRAM, 5, progress=True))
    assert "9/9" in capfd.readouterr().err


@model
def bounded_initial():
    x = sample("x", dist.Normal(0.0, 1.0))
    sample("y", dist.Uniform(x, x + 1.0))
    return x


@model
def bounded_transition(x):
    x = sample("x", dist.Normal(x, 0.01))
    sample("y", dist.Uniform(x, x + 1.0))
    return x


IMPOSSIBLE = bootstrap(
    bounded_initial, bounded_transition, {"y": jnp.array([0.5, 0.5, 90.0, 0.5])}
)


def test_dead_particles_say_at_which_step(key):
    with pytest.raises(DeadParticles, match="none after step 2") as caught:
        run(key, IMPOSSIBLE, 30)
    assert caught.value.particles.num_particles == 30
    seen = []
    with pytest.raises(DeadParticles, match="none after step 2"):
        for population in steps(key, IMPOSSIBLE, 30):
            seen.append(population)
    assert len(seen) == 2


def test_dead_particles_inside_jit_have_zero_evidence(key):
    particles = jax.jit(lambda k: run(k, IMPOSSIBLE, 30)[0])(key)
    assert particles.log_evidence == -jnp.inf
    assert particles.dead_step == 2
    assert not jnp.isnan(particles.log_weights).any()


def test_runs_can_be_mapped_over_keys_and_data(key):
    keys = jax.random.split(key, 3)
    scales = jnp.array([0.5, 1.0, 2.0])

    def log_evidence(k, scale):
        program = bootstrap(ar1_initial, ar1_transition, {"y": scale * AR1_Y})
        return run(k, program, 40)[0].log_evidence

    mapped = jax.vmap(log_evidence)(keys, scales)
    alone = [log_evidence(k, s) for k, s in zip(keys, scales, strict=True)]
    np.testing.assert_allclose(mapped, jnp.stack(alone), rtol=1e-10)


def test_a_repeated_call_compiles_nothing(key):
    traced = []

    @model
    def moving(x):
        traced.append(1)
        x = sample("x", dist.Normal(0.9 * x, 0.5))
        sample("y", dist.Normal(x, 0.8))
        return x

    for seed in range(3):
        program = bootstrap(ar1_initial, moving, {"y": AR1_Y})
        run(jax.random.key(seed), program, 11)
    assert len(traced) == 1


@model
def unknown_scale(num_steps):
    """Scale before the scan, a mask in it, a site after it."""
    scale = sample("scale", dist.HalfNormal(1.0))

    def step(x, t):
        x = sample("x", dist.Normal(x, scale))
        extra = jax.lax.cond(
            t % 2 == 0,
            lambda: sample("jump", dist.Normal(0.0, 0.1)),
            lambda: jnp.zeros(()),
        )
        sample("y", dist.Normal(x + extra, 0.5))
        return x, x

    x, _ = jax.lax.scan(step, jnp.zeros(()), jnp.arange(num_steps))
    sample("end", dist.Normal(x, 0.1))


def test_derived_filter_weighs_sites_around_the_scan(key):
    """Given all choices, filter weights multiply up to the joint density."""
    data = {"scale": 0.7, "y": jnp.array([0.2, -0.1, 0.4]), "end": 0.3}
    x, jump = jnp.array([0.1, 0.0, 0.2]), jnp.array([0.3, 0.0, -0.1])
    everything = {**data, "x": x, "jump": jump}
    particles, _ = run(key, derive(unknown_scale, everything, 3), 4)
    exact = unknown_scale.log_density(everything, 3)
    np.testing.assert_allclose(particles.log_evidence, exact, rtol=1e-10)
    partial, _ = run(key, derive(unknown_scale, data, 3), 4)
    choices = partial.state.choices
    assert choices["jump"].mask.all() and choices["x"].shape == (4,)


def test_derived_filter_says_what_it_cannot_do():
    @model
    def no_time():
        sample("x", dist.Normal())

    @model
    def reads_rows(num_steps):
        def step(x, _):
            x = sample("x", dist.Normal(x, 1.0))
            return x, x

        _, path = jax.lax.scan(step, jnp.zeros(()), None, length=num_steps)
        sample("y", dist.Normal(path.sum(), 1.0))

    with pytest.raises(AddressError, match=r"exactly one lax.scan of sites.*got 0"):
        derive(no_time, {})
    with pytest.raises(AddressError, match="final carry only, got 'y'"):
        derive(reads_rows, {"y": 0.0}, 3)
    with pytest.raises(AddressError, match="Did you mean 'y'"):
        derive(ar1, {"yy": AR1_Y}, 10)
    with pytest.raises(ShapeError, match="shape"):
        derive(ar1, {"y": AR1_Y[:3]}, 10)


def test_bad_arguments_are_refused(key):
    with pytest.raises(ValueError, match="num_particles must be at least 1, got 0"):
        run(key, PROGRAM, 0)
    with pytest.raises(ShapeError, match="one leading axis of length T >= 1"):
        bootstrap(ar1_initial, ar1_transition, {"y": jnp.zeros(())})
    with pytest.raises(ShapeError, match="one leading axis"):
        bootstrap(ar1_initial, ar1_transition, {"y": AR1_Y, "z": AR1_Y[:2]})


def test_memory_of_a_long_run_does_not_grow_with_time(key):
    """The compiled loop's temporaries are the same for any number of steps."""
    from motes.inference.smc.run import _run
    from motes.inference.smc.step import Policy

    def temporaries(num_steps):
        program = bootstrap(ar1_initial, ar1_transition, {"y": jnp.zeros(num_steps)})
        compiled = _run.lower(key, program, 1000, Policy(), None).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(1000) <= temporaries(10) + 8 * 1000
