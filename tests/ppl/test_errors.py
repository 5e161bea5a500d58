"""What is wrong with a model or its inputs is said when it is traced."""

import functools

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from motes.ppl import (
    AddressError,
    ShapeError,
    factor,
    from_numpyro,
    masked,
    model,
    sample,
    vmap,
    vmap_lanes,
)
from tests.hook import unhooked


def normal(name="x"):
    return sample(name, dist.Normal(0.0, 1.0))


@model
def walk():
    scale = sample("scale", dist.HalfNormal(1.0))
    return vmap(lambda m: sample("steps", dist.Normal(m, scale)))(jnp.zeros(3))


@model
def twice():
    normal()
    normal()


@model
def under_native_vmap():
    jax.vmap(lambda m: sample("x", dist.Normal(m, 1.0)))(jnp.zeros(3))


@model
def in_while_loop():
    jax.lax.while_loop(lambda x: x < 3, lambda x: x + normal(), 0.0)


@model
def two_shapes():
    jax.lax.cond(
        True,
        lambda: sample("x", dist.Normal(jnp.zeros(2), 1.0)).sum(),
        normal,
    )


@model
def differentiated():
    jax.grad(lambda m: sample("x", dist.Normal(m, 1.0)))(1.0)


@model
def wide_factor():
    factor("f", jnp.zeros(2))


@pytest.mark.parametrize(
    ("program", "error", "words"),
    [
        (twice, AddressError, r"used once, got 'x' at .*test_errors.py.* and again at"),
        (under_native_vmap, AddressError, r"under jax.vmap.*'x'.*motes.ppl.vmap"),
        (in_while_loop, AddressError, r"inside lax.while_loop.*'x'.*lax.scan"),
        (two_shapes, ShapeError, r"'x' one shape and dtype, got .*test_errors.py"),
        (differentiated, AddressError, r"must not be differentiated.*'x'"),
        (wide_factor, ShapeError, r"log_weight must be a scalar, got shape \(2,\)"),
    ],
)
def test_ill_formed_models_are_refused_when_traced(key, program, error, words):
    with pytest.raises(error, match=words):
        program.simulate(key)


def test_sites_outside_a_model_are_refused():
    with pytest.raises(AddressError, match="must stand in a model.*'x' outside"):
        normal()
    with pytest.raises(AddressError, match="must stand in a model.*'x' outside"):
        jax.jit(normal)()


@pytest.mark.parametrize(
    ("constraints", "error", "words"),
    [
        ({"step": jnp.zeros(3)}, AddressError, "'scale', 'steps'.*mean 'steps'"),
        ({"steps": jnp.zeros(2)}, ShapeError, r"shape \(3,\), got \(2,\) .* 'steps'"),
        ({"steps": jnp.zeros((3, 1))}, ShapeError, r"shape \(3,\), got \(3, 1\)"),
        ({"steps": 1j * jnp.zeros(3)}, ShapeError, "dtype float64, got complex128"),
        (
            {"scale": -1.0},
            ValueError,
            "must lie in the support.*-1.0 at address 'scale'",
        ),
        (
            {"steps": masked(jnp.zeros(3), jnp.ones(2, bool))},
            ShapeError,
            "mask must have",
        ),
    ],
)
def test_bad_constraints_are_refused(key, constraints, error, words):
    with pytest.raises(error, match=words):
        walk.generate(key, constraints)


def test_the_first_entry_outside_a_support_is_shown(key):
    @model
    def scales():
        sample("scale", dist.HalfNormal(1.0).expand([2, 3]).to_event(2))
        sample("x", dist.Normal(0.0, 1.0).expand([4]))

    bad = jnp.ones((2, 3)).at[1, 1:].set(-2.5)
    words = r"got -2.5 at address 'scale', index \(1, 1\), the first of 2 among 6\.$"
    with pytest.raises(ValueError, match=words):
        scales.generate(key, {"scale": bad})
    words = r"got nan at address 'x', index \(3,\), .* among 4. Mark missing data"
    with pytest.raises(ValueError, match=words):
        scales.generate(key, {"x": jnp.zeros(4).at[3].set(jnp.nan)})


def test_missing_choices_are_named(key):
    with pytest.raises(AddressError, match="none at address 'steps'"):
        walk.log_density({"scale": 1.0})


@pytest.mark.parametrize("mask", [jnp.zeros(3), jnp.ones(3, int), None])
def test_masks_are_booleans(mask):
    with pytest.raises(TypeError, match="masked: mask must hold booleans, got"):
        masked(jnp.ones(3, bool), mask)


def test_masked_data_weigh_only_where_known(key):
    steps = jnp.array([0.5, jnp.nan, -0.5])
    mask = jnp.array([True, False, True])
    data = {"scale": 1.0, "steps": masked(steps, mask)}
    trace, log_weight = walk.generate(key, data)
    exact = dist.HalfNormal(1.0).log_prob(1.0)
    exact += dist.Normal(0.0, 1.0).log_prob(steps[jnp.array([0, 2])]).sum()
    assert float(log_weight) == pytest.approx(float(exact))
    assert jnp.isfinite(trace["steps"]).all()


def test_an_exception_leaves_nothing_behind(key):
    @model
    def broken():
        normal()
        raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        broken.simulate(key)
    assert walk.simulate(key)["steps"].shape == (3,)


def test_changed_closures_are_seen():
    means = [1.0]

    @model
    def shifted():
        sample("x", dist.Normal(means[0], 1.0))

    first = shifted.log_density({"x": 0.0})
    means[0] = 2.0
    second = shifted.log_density({"x": 0.0})
    assert float(first - second) == pytest.approx(1.5)


def wrapped(state):
    def wrapper(fun):
        @functools.wraps(fun)
        def scaled(*args):
            return state[0] * fun(*args)

        return scaled

    return wrapper


class Scaled:
    """A callable object that wraps a function and has state of its own."""

    def __init__(self, state, fun):
        functools.update_wrapper(self, fun)
        self.state, self.fun = state, fun

    def __call__(self, *args):
        return self.state[0] * self.fun(*args)


def called(state):
    return lambda fun: Scaled(state, fun)


@pytest.mark.parametrize("decorator", [wrapped, called])
def test_changed_wrappers_are_seen(decorator):
    state = [1.0]
    location = decorator(state)(lambda x: x)

    @model
    def shifted():
        sample("x", dist.Normal(location(1.0), 1.0))

    first = shifted.log_density({"x": 0.0})
    state[0] = 2.0
    assert float(first - shifted.log_density({"x": 0.0})) == pytest.approx(1.5)


def custom_rule(slope):
    @jax.custom_jvp
    def same(x):
        return x

    @same.defjvp
    def same_jvp(primals, tangents):
        return primals[0], slope[0] * tangents[0]

    return same


def test_custom_derivatives_are_kept_where_no_site_is_inside():
    slope = [7.0]
    same = custom_rule(slope)

    @model
    def location(mean):
        def step(x, _):
            return sample("x", dist.Normal(same(x), 1.0)), None

        jax.lax.scan(step, mean, None, length=2)

    gradient = jax.grad(lambda mean: location.log_density({"x": jnp.ones(2)}, mean))
    assert float(gradient(0.5)) == pytest.approx(7.0 * 0.5)
    slope[0] = -1.0
    assert float(gradient(0.5)) == pytest.approx(-0.5)


def test_custom_derivatives_around_sites_differentiate_the_body():
    @jax.custom_jvp
    def around(mean):
        return sample("x", dist.Normal(mean, 1.0))

    around.defjvp(lambda primals, tangents: (primals[0], 7.0 * tangents[0]))
    location = model(lambda mean: around(mean))
    gradient = jax.grad(lambda mean: location.log_density({"x": 1.0}, mean))(0.5)
    assert float(gradient) == pytest.approx(0.5)


def test_models_and_lanes_are_made_of_functions():
    for call, name in [(model, "fun"), (from_numpyro, "fn"), (vmap, "fun")]:
        words = f"{call.__name__}: {name} must be a function, got 3.0"
        with pytest.raises(TypeError, match=words):
            unhooked(call)(3.0)
    with pytest.raises(TypeError, match="num_lanes must be an integer .*, got 2.0"):
        unhooked(vmap_lanes)(normal, num_lanes=2.0)
