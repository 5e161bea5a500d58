"""Checkpoints keep every bit of any state, and refuse what is not theirs."""

import io
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from motes.inference.smc import DeadParticles, bootstrap, multinomial, steps
from motes.ppl import model, sample


class Walk(NamedTuple):
    """A walk whose state has all the types that a language model's has."""

    inputs: Any
    dtype: Any = jnp.bfloat16

    @property
    def num_steps(self):
        return self.inputs.shape[0]

    @property
    def init_is_step(self):
        return True

    def init(self, key, num_particles):
        state = {
            "half": jax.random.normal(key, (num_particles,), self.dtype),
            "keys": jax.random.split(jax.random.key(3, impl="rbg"), num_particles),
            "done": jnp.zeros((num_particles,), bool),
        }
        return state, jnp.zeros(num_particles)

    def step(self, key, state, row):
        noise = jax.random.normal(key, state["half"].shape, self.dtype)
        half = state["half"] + noise
        done = state["done"] | (half > 2)
        return {**state, "half": half, "done": done}, row * half.astype(float) ** 2


def walk(key, values, dtype=jnp.bfloat16, **options):
    # A dtype is no array, so the program cannot be an argument of compiled steps.
    program = Walk(jnp.asarray(values), dtype)
    return steps(key, program, 12, jit=False, **options)


def bits(particles):
    def raw(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return jax.tree.map(raw, particles)


VALUES = [0.3, -0.2, 1.0, 0.5]


def test_every_dtype_of_a_state_is_restored(key, tmp_path):
    file = tmp_path / "walk"
    whole = list(walk(key, VALUES))
    begun = walk(key, VALUES, checkpoint=file)
    for _ in range(3):
        next(begun)
    rest = list(walk(key, VALUES, checkpoint=file))
    assert len(rest) == 2 and rest[-1].state["half"].dtype == jnp.bfloat16
    assert str(jax.random.key_impl(rest[-1].state["keys"])) == "rbg"
    for resumed, expected in zip(rest, whole[3:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, bits(resumed), bits(expected))


def test_resuming_a_run_that_ended_yields_its_last_population(key, tmp_path):
    file = tmp_path / "walk"
    *_, last = walk(key, VALUES, checkpoint=file)
    (again,) = walk(key, VALUES, checkpoint=file)
    jax.tree.map(np.testing.assert_array_equal, bits(again), bits(last))


def test_a_state_of_another_type_is_refused(key, tmp_path):
    file = tmp_path / "walk"
    list(walk(key, VALUES, jnp.float32, checkpoint=file))
    with pytest.raises(ValueError, match="this key, size and state"):
        next(walk(key, VALUES, jnp.float64, checkpoint=file))


@pytest.mark.parametrize("other", [VALUES[:2], [*VALUES, 0.5], [0.1, *VALUES[1:]]])
def test_a_run_on_other_data_is_refused(key, tmp_path, other):
    file = tmp_path / "walk"
    list(walk(key, VALUES, checkpoint=file))
    with pytest.raises(ValueError, match="this program on these data"):
        next(walk(key, other, checkpoint=file))


@model
def first(scale):
    x = sample("x", dist.Normal(0.0, scale))
    sample("y", dist.Normal(x, 1.0))
    return x


@model
def move(x, scale):
    x = sample("x", dist.Normal(x, scale))
    sample("y", dist.Normal(x, 1.0))
    return x


@pytest.mark.parametrize(
    "other",
    [{"scale": 0.6}, {"resample": multinomial}, {"ess_threshold": 0.9}],
    ids=lambda other: next(iter(other)),
)
def test_a_run_with_other_numbers_or_resampling_is_refused(key, tmp_path, other):
    def walk(scale=0.5, **options):
        program = bootstrap(first, move, {"y": jnp.ones(3)}, scale)
        options |= {"checkpoint": tmp_path / "walk", "jit": False}
        return steps(key, program, 5, **options)

    list(walk())
    (again,) = walk()
    assert again.num_particles == 5
    with pytest.raises(ValueError, match="on these data resampled in this way"):
        next(walk(**other))


def test_a_dead_population_is_still_dead_when_resumed(key, tmp_path):
    file = tmp_path / "walk"
    for _ in range(2):
        with pytest.raises(DeadParticles, match="none after step 2"):
            list(walk(key, [0.0, -jnp.inf, 0.0], checkpoint=file))


class Spelling(NamedTuple):
    """Words on the host; each letter is asked of a service outside JAX."""

    asked: list
    dtype: Any
    inputs: Any = None
    num_steps: int = 4
    init_is_step: bool = False

    def init(self, key, num_particles):
        return np.full(num_particles, "", self.dtype), jnp.zeros(num_particles)

    def step(self, key, words, row):
        self.asked.append(len(words))
        letters = np.asarray(jax.random.bernoulli(key, 0.5, words.shape))
        grown = [w + "ba"[int(x)] for w, x in zip(words, letters, strict=True)]
        return np.array(grown, self.dtype), jnp.where(letters, 0.0, -jnp.inf)


def test_programs_outside_jax_keep_their_own_arrays(key):
    asked = []
    *_, last = steps(key, Spelling(asked, object), 32, jit=False)
    assert asked == [32] * 4
    alive = np.asarray(last.weights) > 0
    # Words with a "b" are impossible: resampling must have moved the words along.
    assert set(last.state[alive]) == {"aaaa"}


def test_growing_strings_resume(key, tmp_path):
    file = tmp_path / "words"
    *_, whole = steps(key, Spelling([], "U8"), 32, jit=False)
    begun = steps(key, Spelling([], "U8"), 32, jit=False, checkpoint=file)
    next(begun), next(begun)
    *_, last = steps(key, Spelling([], "U8"), 32, jit=False, checkpoint=file)
    assert last.state.tolist() == whole.state.tolist()


def test_objects_are_not_pickled(key, tmp_path):
    program = Spelling([], object)
    with pytest.raises(
        ValueError, match="numbers or strings .* got an array of objects"
    ):
        list(steps(key, program, 4, jit=False, checkpoint=tmp_path / "words"))
    assert not list(tmp_path.iterdir())


def written(save):
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


BROKEN = {
    "empty": lambda whole: b"",
    "text": lambda whole: b"no checkpoint",
    "cut short": lambda whole: whole[: len(whole) // 2],
    "one bit": lambda whole: whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
    "another archive": lambda whole: written(lambda f: np.savez(f, other=np.zeros(3))),
    "one array": lambda whole: written(lambda f: np.save(f, np.zeros(3))),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_files_that_are_no_checkpoints_are_refused(key, tmp_path, damage):
    file = tmp_path / "walk"
    list(walk(key, VALUES, checkpoint=file))
    file.write_bytes(BROKEN[damage](file.read_bytes()))
    with pytest.raises(ValueError, match="a file that steps wrote, got .*walk, which"):
        next(walk(key, VALUES, checkpoint=file))


def test_a_checkpoint_has_a_place_before_the_first_step(key, tmp_path):
    for place in (tmp_path, tmp_path / "missing" / "walk"):
        with pytest.raises(ValueError, match="folder that exists, got"):
            walk(key, VALUES, checkpoint=place)
