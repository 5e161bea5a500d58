"""Random programs with random nesting, against a walk through the same program in Python.

A program passes one number through its statements. `emit` writes it as a model in JAX;
`walk` follows it with floats, reads each choice where it was made, and sums densities.
"""

from dataclasses import dataclass, replace
from itertools import count
from math import log, tanh
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from hypothesis import given, settings, strategies as st
from scipy import stats

from motes.ppl import Masked, factor, model, plate, sample, scope

MAX_DEPTH = 4


@dataclass(frozen=True)
class Statement:
    """One statement; `bodies` are the programs that it contains."""

    kind: str
    size: int = 0
    bodies: tuple[tuple["Statement", ...], ...] = ()
    name: str = ""


LEAVES = ["normal", "coin", "factor"]
WRAPPERS = ["jit", "checkpoint", "scope", "call"]
LOOPS = ["scan", "fori", "map", "plate"]
CHOICES = {"cond": 2, "switch": 3}


@st.composite
def statements(draw, depth):
    kinds = LEAVES if depth == 0 else [*LEAVES, *WRAPPERS, *LOOPS, *LOOPS, *CHOICES]
    kind = draw(st.sampled_from(kinds))
    if kind in LEAVES:
        return Statement(kind)
    bodies = tuple(draw(programs(depth - 1)) for _ in range(CHOICES.get(kind, 1)))
    return Statement(kind, draw(st.integers(1, 3)), bodies)


@st.composite
def programs(draw, depth):
    return tuple(draw(st.lists(statements(depth), min_size=1, max_size=2)))


def named(program, numbers):
    """Give every statement a name of its own."""
    return tuple(
        replace(
            s,
            name=f"{s.kind}{next(numbers)}",
            bodies=tuple(named(body, numbers) for body in s.bodies),
        )
        for s in program
    )


def emit(program, x):
    for s in program:
        x = EMIT[s.kind](s, x)
    return x


def _emit_coin(s, x):
    p = 0.5 + 0.4 * jnp.tanh(x)
    return x + sample(s.name, dist.Bernoulli(p)) - 0.5


def _emit_factor(s, x):
    factor(s.name, 0.3 * jnp.tanh(x))
    return 0.9 * x


def _emit_scope(s, x):
    with scope(s.name):
        return emit(s.bodies[0], x)


def _emit_scan(s, x):
    return jax.lax.scan(
        lambda x, _: (emit(s.bodies[0], x), None), x, None, length=s.size
    )[0]


def _starts(s, x):
    return x + 0.7 * jnp.arange(s.size) - 0.5


def _emit_switch(s, x):
    index = jnp.int32(x > -0.5) + jnp.int32(x > 0.5)
    return jax.lax.switch(index, [lambda x, b=b: emit(b, x) for b in s.bodies], x)


EMIT = {
    "normal": lambda s, x: sample(s.name, dist.Normal(jnp.tanh(x), 1.5)),
    "coin": _emit_coin,
    "factor": _emit_factor,
    "jit": lambda s, x: jax.jit(lambda x: emit(s.bodies[0], x))(x),
    "checkpoint": lambda s, x: jax.checkpoint(lambda x: emit(s.bodies[0], x))(x),
    "scope": _emit_scope,
    "call": lambda s, x: model(lambda x: emit(s.bodies[0], x))(x, address=s.name),
    "scan": _emit_scan,
    "fori": lambda s, x: jax.lax.fori_loop(
        0, s.size, lambda _, x: emit(s.bodies[0], x), x
    ),
    "map": lambda s, x: jnp.mean(
        jax.lax.map(lambda x: emit(s.bodies[0], x), _starts(s, x))
    ),
    "plate": lambda s, x: jnp.mean(
        plate(lambda x: emit(s.bodies[0], x))(_starts(s, x))
    ),
    "cond": lambda s, x: jax.lax.cond(
        x > 0, *(lambda x, b=b: emit(b, x) for b in s.bodies), x
    ),
    "switch": _emit_switch,
}


@dataclass
class Walk:
    """A walk through a program along the choices of a trace."""

    choices: Any
    total: float = 0.0
    num_read: int = 0

    def read(self, path, index):
        entry = self.choices
        for name in path:
            entry = entry[name]
        if isinstance(entry, Masked):
            assert np.asarray(entry.mask)[index], f"{path} was made at {index}"
            entry = entry.value
        assert np.ndim(entry) == len(index), f"{path} has one axis for each loop"
        self.num_read += 1
        return float(np.asarray(entry)[index])

    def program(self, program, x, path=(), index=()):
        for s in program:
            x = self.statement(s, x, path, index)
        return x

    def statement(self, s, x, path, index):
        if s.kind == "normal":
            value = self.read((*path, s.name), index)
            self.total += stats.norm.logpdf(value, tanh(x), 1.5)
            return value
        if s.kind == "coin":
            value, p = self.read((*path, s.name), index), 0.5 + 0.4 * tanh(x)
            self.total += log(p if value else 1 - p)
            return x + value - 0.5
        if s.kind == "factor":
            self.total += 0.3 * tanh(x)
            return 0.9 * x
        if s.kind in ("scope", "call"):
            return self.program(s.bodies[0], x, (*path, s.name), index)
        if s.kind in ("jit", "checkpoint"):
            return self.program(s.bodies[0], x, path, index)
        if s.kind in ("scan", "fori"):
            for i in range(s.size):
                x = self.program(s.bodies[0], x, path, (*index, i))
            return x
        if s.kind in ("map", "plate"):
            starts = [x + 0.7 * i - 0.5 for i in range(s.size)]
            ends = [
                self.program(s.bodies[0], start, path, (*index, i))
                for i, start in enumerate(starts)
            ]
            return sum(ends) / s.size
        branch = int(not x > 0) if s.kind == "cond" else int(x > -0.5) + int(x > 0.5)
        return self.program(s.bodies[branch], x, path, index)


def _num_made(choices):
    """Count the choices that were made."""
    leaves = jax.tree.leaves(choices, is_leaf=lambda x: isinstance(x, Masked))
    return sum(int(x.mask.sum()) if isinstance(x, Masked) else x.size for x in leaves)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(programs(MAX_DEPTH), st.integers(0, 2**31 - 1))
def test_log_density_is_the_sum_along_the_program(program, seed):
    program = named(program, count())

    @model
    def random_model():
        return emit(program, jnp.asarray(0.1))

    trace = random_model.simulate(jax.random.key(seed))
    walk = Walk(trace.choices)
    end = walk.program(program, 0.1)
    assert walk.num_read == _num_made(trace.choices)
    np.testing.assert_allclose(trace.return_value, end, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(trace.log_density, walk.total, rtol=1e-9, atol=1e-9)
    again = random_model.log_density(trace.choices)
    np.testing.assert_allclose(again, walk.total, rtol=1e-9, atol=1e-9)
