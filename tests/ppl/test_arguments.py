"""Arguments of the wrong type, kind or size are refused before any work."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from motes.inference.exact import enumerate_choices
from motes.inference.smc import importance_sampling
from motes.ppl import (
    AddressError,
    ShapeError,
    condition,
    do,
    factor,
    masked,
    model,
    render,
    sample,
    scope,
    select,
    unconstrained,
    vmap,
)
from tests.hook import unhooked


def normal():
    return sample("x", dist.Normal(0.0, 1.0))


@model
def walk():
    scale = sample("scale", dist.HalfNormal(1.0))
    with scope("arm"):
        vmap(lambda m: sample("steps", dist.Normal(m, scale)))(jnp.zeros(3))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (0, "got 0. Make it by"),
        (None, "got None"),
        (jax.random.split(jax.random.key(0)), r"got key<fry>\[2\]. .* jax.vmap"),
        (jnp.zeros(3), r"got float.*\[3\]"),
    ],
)
def test_keys_are_checked(key, given, words):
    trace = walk.simulate(key)
    calls = {
        "simulate": (),
        "generate": ({},),
        "update": (trace, {}),
        "regenerate": (trace, "arm"),
    }
    for name, rest in calls.items():
        with pytest.raises(TypeError, match=f"{name}: key must be one .*{words}"):
            unhooked(getattr(walk, name))(given, *rest)


@pytest.mark.parametrize(
    ("size", "error", "words"),
    [
        (-1, ValueError, "axis_size must be at least 0, got -1"),
        (2.0, TypeError, "axis_size must be an integer known when tracing, got"),
        (None, ShapeError, "one common size, got .*Pass axis_size"),
    ],
)
def test_lanes_are_counted(key, size, error, words):
    lanes = model(lambda: unhooked(vmap)(normal, axis_size=size)())
    with pytest.raises(error, match=f"vmap: .*{words}"):
        lanes.simulate(key)


@pytest.mark.parametrize("constraints", [None, [1.0], jax.random.key(0), "steps"])
def test_choices_are_dicts(key, constraints):
    trace = walk.simulate(key)
    words = r"choices must be a dict by address, got .*Give \{\} for none"
    calls = {
        "generate": lambda: unhooked(walk.generate)(key, constraints),
        "log_density": lambda: unhooked(walk.log_density)(constraints),
        "update": lambda: unhooked(walk.update)(key, trace, constraints),
        "condition": lambda: unhooked(condition)(walk, constraints),
        "do": lambda: unhooked(do)(walk, constraints),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name}: {words}"):
            call()


@pytest.mark.parametrize("target", [{"steps": jnp.zeros(3)}, jax.random.key(0), normal])
def test_targets_are_models(key, target):
    words = r"target must be a model or condition\(model, constraints\), got"
    calls = {
        "condition": lambda: unhooked(condition)(target, {}),
        "unconstrained": lambda: unhooked(unconstrained)(target),
        "enumerate_choices": lambda: unhooked(enumerate_choices)(target),
        "importance_sampling": lambda: unhooked(importance_sampling)(key, target, 10),
        "render": lambda: unhooked(render)(target),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name}: {words}"):
            call()


def test_interventions_come_before_conditions():
    target = condition(walk, {"scale": 1.0})
    with pytest.raises(
        TypeError, match="do: model must be .*, then condition the resu"
    ):
        unhooked(do)(target, {"steps": jnp.zeros(3)})


def test_what_is_conditioned_on_is_not_given_again(key):
    target = condition(walk, {"arm": {"steps": jnp.zeros(3)}})
    twice = {"scale": 1.0, "arm": {"steps": jnp.ones(3)}}
    words = "must leave out what is conditioned on, got a value at address 'arm/steps'"
    calls = {
        "log_density": lambda: target.log_density(twice),
        "generate": lambda: target.generate(key, twice),
        "condition": lambda: condition(target, twice),
    }
    for name, call in calls.items():
        with pytest.raises(AddressError, match=f"{name}: choices {words}"):
            call()
    joint = walk.log_density({"scale": 1.0, "arm": {"steps": jnp.zeros(3)}})
    assert target.log_density({"scale": 1.0}) == joint
    assert condition(target, {"scale": 1.0}).log_density({}) == joint


def test_densities_need_every_entry(key):
    steps = jnp.array([0.5, 0.1, -0.5])
    known = jnp.array([True, False, True])
    choices = {"scale": 1.0, "arm": {"steps": masked(steps, known)}}
    with pytest.raises(
        AddressError, match="given everywhere, got a mask .*'arm/steps'"
    ):
        walk.log_density(choices)
    whole = {"scale": 1.0, "arm": {"steps": masked(steps, known | True)}}
    joint = walk.log_density({"scale": 1.0, "arm": {"steps": steps}})
    assert walk.log_density(whole) == joint
    hidden = jax.jit(walk.log_density)(choices)
    assert hidden == -jnp.inf
    flat = unconstrained(condition(walk, {"arm": whole["arm"]}))
    assert flat.log_density(jnp.zeros(1)) == joint


def test_enumeration_needs_choices_that_are_fixed_whole():
    @model
    def coins():
        sample("x", dist.Bernoulli(0.3).expand([2]))

    def evidence(*known):
        data = {"x": masked(jnp.array([1, 0]), jnp.array(known))}
        return enumerate_choices(condition(coins, data)).log_evidence

    with pytest.raises(AddressError, match="everywhere or nowhere, got .* 'x'"):
        evidence(True, False)
    assert float(evidence(True, True)) == pytest.approx(jnp.log(0.3 * 0.7))


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("arm/steps", r"key 'arm/steps'. Write {'arm': {'steps': \.\.\.}}.$"),
        (("arm", "steps"), r"got the key .* Write {'arm': {'steps': \.\.\.}}.$"),
        (0, "must be dicts by name, nested by scope, got the key 0.$"),
        ((), r"must be dicts by name, nested by scope, got the key \(\).$"),
        ("steps", "'steps' must be an address .* Did you mean 'arm/steps'?"),
    ],
)
def test_keys_of_choices_are_names(key, choice, words):
    with pytest.raises(AddressError, match=words):
        unhooked(walk.generate)(key, {"scale": 1.0, choice: jnp.zeros(3)})


@pytest.mark.parametrize("dose", [-2.0, jnp.float64(-2.0), jnp.array(-2.0), -2])
def test_interventions_may_leave_the_support(key, dose):
    @model
    def trial():
        dose = sample("dose", dist.HalfNormal(1.0))
        return sample("effect", dist.Normal(3.0 * dose, 1.0))

    density = do(trial, {"dose": dose}).log_density({"effect": -5.0})
    assert float(density) == pytest.approx(dist.Normal(0.0, 1.0).log_prob(1.0))
    with pytest.raises(ValueError, match="generate: a value must lie in the support"):
        trial.generate(key, {"dose": dose})


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (jnp.zeros(2), ShapeError, r"do: a value must have shape \(\), got \(2,\)"),
        (1j, ShapeError, "do: a value must have dtype float64, got complex128"),
        (masked(1.0, True), ValueError, "do: values must not be masked"),
    ],
)
def test_interventions_have_the_shape_of_their_site(key, value, error, words):
    with pytest.raises(error, match=words):
        do(walk, {"scale": value}).simulate(key)


@pytest.mark.parametrize(
    ("position", "words"),
    [
        (jnp.zeros(3), r"vector of 4 real numbers, got float64\[3\]. Map over"),
        (jnp.zeros((4, 1)), r"got float64\[4, 1\]. Map over several"),
        (jnp.zeros(()), "got Array"),
        (1j * jnp.zeros(4), r"got complex128\[4\]"),
    ],
)
def test_positions_have_the_size_of_the_target(position, words):
    target = unconstrained(walk)
    for name in ("log_density", "constrain", "unravel"):
        with pytest.raises(ShapeError, match=f"{name}: position must be .*{words}"):
            unhooked(getattr(target, name))(position)


def test_positions_may_be_integers():
    target = unconstrained(walk)
    whole = unhooked(target.log_density)(jnp.arange(4))
    assert whole == target.log_density(jnp.arange(4.0))


@pytest.mark.parametrize("selection", [None, 0, [0], ("scale", 0), lambda path: True])
def test_selections_are_addresses(key, selection):
    trace = walk.simulate(key)
    words = "an address must be a name, a path of names or 'scope/name', got"
    for name, arguments in {"regenerate": (key, trace), "project": (trace,)}.items():
        with pytest.raises(TypeError, match=f"{name}: {words}"):
            getattr(walk, name)(*arguments, selection)
    with pytest.raises(TypeError, match=f"select: {words}"):
        select(selection)
    if not isinstance(selection, list):
        with pytest.raises(TypeError, match=f"trace: {words}"):
            unhooked(trace.__getitem__)(selection)


def test_traces_are_those_of_the_model(key):
    trace, other = walk.simulate(key), model(normal).simulate(key)
    calls = {
        "update": lambda trace: unhooked(walk.update)(key, trace, {}),
        "regenerate": lambda trace: unhooked(walk.regenerate)(key, trace, "scale"),
        "project": lambda trace: unhooked(walk.project)(trace, "scale"),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name}: trace must be a Trace, .*, got"):
            call(trace.choices)
    for name in ("regenerate", "project"):
        with pytest.raises(AddressError, match=f"{name}: .* none at address 'scale'"):
            calls[name](other)


@pytest.mark.parametrize(
    ("log_weight", "words"),
    [
        ("heavy", "log_weight must be an array, got 'heavy' at address 'f'"),
        (None, "log_weight must be an array, got None at address 'f'"),
        (1j, "log_weight must be real, got complex128 at address 'f'"),
    ],
)
def test_factors_are_real(key, log_weight, words):
    with pytest.raises(TypeError, match=f"factor: {words}"):
        model(lambda: factor("f", log_weight)).simulate(key)


@pytest.mark.parametrize("value", [None, "text", {"b": 1.0}, [[1.0], [2.0, 3.0]]])
def test_values_are_arrays(key, value):
    with pytest.raises(TypeError, match="a value must be an array, got .* 'scale'"):
        walk.generate(key, {"scale": value})


@pytest.mark.parametrize("argument", [3.0, [1.0, 2.0]])
def test_lanes_are_on_an_axis(key, argument):
    lanes = model(lambda: vmap(lambda *_: normal())(argument))
    words = r"mapped argument must have axis 0, got shape \(\). Give None in in_axes"
    with pytest.raises(ShapeError, match=f"vmap: a {words}"):
        lanes.simulate(key)


def test_positions_are_those_of_the_free_choices():
    steps = {"arm": {"steps": jnp.zeros(3)}}
    joint, target = unconstrained(walk), unconstrained(condition(walk, steps))
    with pytest.raises(AddressError, match="unconstrain: .* none at address 'scale'"):
        joint.unconstrain(steps)
    with pytest.raises(AddressError, match="unconstrain: .* everywhere, got a mask"):
        joint.unconstrain({"scale": masked(1.0, False), **steps})
    with pytest.raises(
        AddressError, match="unconstrain: .* leave out what is condition"
    ):
        target.unconstrain({"scale": 1.0, **steps})
