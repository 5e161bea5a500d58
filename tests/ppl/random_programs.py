"""Small syntax trees of probabilistic programs, each with two readings.

`run` emits a tree as JAX code with sites. `read` walks it in plain Python over the
concrete choices of a trace, with loops and log densities by hand, and knows nothing of
the library. `shapes` says which sites there are.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from motes.ppl import Masked, factor, model, sample, scope, vmap

Shapes = Iterator[tuple[tuple[str, ...], tuple[int, ...]]]


class Family(NamedTuple):
    """A distribution with a parameter, its log density by hand, its shape."""

    density: Callable[[Any], Any]
    by_hand: Callable[[float, Any], float]
    shape: tuple[int, ...] = ()


def log_normal_pdf(v, mean, sd):
    z = (np.asarray(v) - mean) / sd
    return float(np.sum(-0.5 * z**2 - np.log(sd) - 0.5 * np.log(2 * np.pi)))


def log_bernoulli_pmf(v, p):
    return math.log(p if v == 1 else 1 - p)


def log_softmax(k, logits):
    return logits[k] - math.log(sum(math.exp(a) for a in logits))


FAMILIES = {
    "normal": Family(
        lambda x: dist.Normal(jnp.tanh(x), 0.5 + x**2 / (1 + x**2)),
        lambda x, v: log_normal_pdf(v, math.tanh(x), 0.5 + x**2 / (1 + x**2)),
    ),
    "exponential": Family(
        lambda x: dist.Exponential(1 + x**2),
        lambda x, v: math.log(1 + x**2) - (1 + x**2) * v,
    ),
    "uniform": Family(lambda x: dist.Uniform(x, x + 2), lambda x, v: math.log(0.5)),
    "bernoulli": Family(
        lambda x: dist.Bernoulli(0.5 + 0.4 * jnp.tanh(x)),
        lambda x, v: log_bernoulli_pmf(v, 0.5 + 0.4 * math.tanh(x)),
    ),
    "categorical": Family(
        lambda x: dist.Categorical(logits=jnp.stack([x, 0 * x, -x])),
        lambda x, v: log_softmax(int(v), [x, 0.0, -x]),
    ),
    "pair": Family(
        lambda x: dist.Normal(x + jnp.arange(2.0), 0.5).to_event(1),
        lambda x, v: log_normal_pdf(v, x + np.arange(2.0), 0.5),
        (2,),
    ),
    "expanded": Family(
        lambda x: dist.Normal(x, 2.0).expand([2]),
        lambda x, v: log_normal_pdf(v, x, 2.0),
        (2,),
    ),
}
REAL = ["normal", "exponential", "uniform"]


class Place(NamedTuple):
    """Where a reader is: the names of scopes and the indices of loops around it."""

    scopes: tuple[str, ...] = ()
    index: tuple[int, ...] = ()

    def scope(self, name: str) -> "Place":
        return self._replace(scopes=(*self.scopes, name))

    def at(self, i: int) -> "Place":
        return self._replace(index=(*self.index, i))


class Hand:
    """The sum by hand: the log density so far and the choices that it met."""

    def __init__(self, choices):
        self.choices, self.total, self.met = choices, 0.0, set()

    def value(self, place, name):
        entry = self.choices
        for part in (*place.scopes, name):
            entry = entry[part]
        if isinstance(entry, Masked):
            self.met.add(((*place.scopes, name), place.index))
            assert np.asarray(entry.mask)[place.index], "a choice made is masked"
            entry = entry.value
        return np.asarray(entry)[place.index]


class Site(NamedTuple):
    family: str

    def run(self, x, name):
        value = sample(name, FAMILIES[self.family].density(x))
        return jnp.sin(x) + 0.4 * jnp.sum(value)

    def read(self, x, name, hand, place):
        value = hand.value(place, name)
        hand.total += FAMILIES[self.family].by_hand(x, value)
        return math.sin(x) + 0.4 * float(np.sum(value))

    def shapes(self, name, place) -> Shapes:
        yield (*place.scopes, name), place.index + FAMILIES[self.family].shape


class Factor(NamedTuple):
    slope: float

    def run(self, x, name):
        factor(name, self.slope * jnp.cos(x))
        return x

    def read(self, x, name, hand, place):
        hand.total += self.slope * math.cos(x)
        return x

    def shapes(self, name, place) -> Shapes:
        yield from ()


class Sequence(NamedTuple):
    parts: tuple

    def run(self, x, name):
        for i, part in enumerate(self.parts):
            x = part.run(x, f"{name}{i}")
        return x

    def read(self, x, name, hand, place):
        for i, part in enumerate(self.parts):
            x = part.read(x, f"{name}{i}", hand, place)
        return x

    def shapes(self, name, place) -> Shapes:
        for i, part in enumerate(self.parts):
            yield from part.shapes(f"{name}{i}", place)


class Around(NamedTuple):
    """A construct that runs its body once: `CALLS` has them."""

    kind: str
    body: Any

    def run(self, x, name):
        return CALLS[self.kind](lambda x: self.body.run(x, name), name)(x)

    def read(self, x, name, hand, place):
        inner = place.scope(name) if "scope" in self.kind else place
        return self.body.read(x, name, hand, inner)

    def shapes(self, name, place) -> Shapes:
        inner = place.scope(name) if "scope" in self.kind else place
        return self.body.shapes(name, inner)


def in_scope(fun, name):
    def scoped(x):
        with scope(name):
            return fun(x)

    return scoped


CALLS = {
    "jit": lambda fun, name: jax.jit(fun),
    "checkpoint": lambda fun, name: jax.checkpoint(fun),
    "scope": in_scope,
    "model": lambda fun, name: model(fun),
    "model in scope": lambda fun, name: lambda x: model(fun)(x, address=name),
}


class Twice(NamedTuple):
    """One compiled function called in two scopes."""

    body: Any

    def run(self, x, name):
        fun = jax.jit(lambda x: self.body.run(x, name))
        return in_scope(fun, f"{name}r")(in_scope(fun, f"{name}l")(x))

    def read(self, x, name, hand, place):
        x = self.body.read(x, name, hand, place.scope(f"{name}l"))
        return self.body.read(x, name, hand, place.scope(f"{name}r"))

    def shapes(self, name, place) -> Shapes:
        for side in "lr":
            yield from self.body.shapes(name, place.scope(name + side))


class Carried(NamedTuple):
    """A loop that hands its state on."""

    kind: str
    size: int
    body: Any

    def run(self, x, name):
        def step(x, t):
            x = self.body.run(x + 0.3 * t, name)
            return x, x

        if self.kind == "fori_loop":
            return jax.lax.fori_loop(0, self.size, lambda t, x: step(x, t)[0], x)
        times, reverse = jnp.arange(float(self.size)), self.kind == "reverse"
        x, outs = jax.lax.scan(step, x, times, reverse=reverse)
        return x + 0.1 * (times * outs).sum()

    def read(self, x, name, hand, place):
        order = range(self.size)
        total = 0.0
        for t in reversed(order) if self.kind == "reverse" else order:
            x = self.body.read(x + 0.3 * t, name, hand, place.at(t))
            total += 0.1 * t * x
        return x if self.kind == "fori_loop" else x + total

    def shapes(self, name, place) -> Shapes:
        return self.body.shapes(name, place.at(self.size))


class Mapped(NamedTuple):
    """Independent lanes; those of `same` differ in nothing but their draws."""

    kind: str
    size: int
    body: Any

    def run(self, x, name):
        times = jnp.arange(float(self.size))
        lane = lambda x, t: self.body.run(x + 0.3 * t, name)  # noqa: E731
        if self.kind == "map":
            outs = jax.lax.map(lambda t: lane(x, t), times)
        elif self.kind == "plate":
            outs = vmap(lane, in_axes=(None, 0))(x, times)
        else:
            outs = vmap(lambda: self.body.run(x, name), axis_size=self.size)()
        return jnp.sum((1 + times) * outs) / self.size

    def read(self, x, name, hand, place):
        total = 0.0
        for t in range(self.size):
            start = x if self.kind == "same" else x + 0.3 * t
            total += (1 + t) * self.body.read(start, name, hand, place.at(t))
        return total / self.size

    def shapes(self, name, place) -> Shapes:
        return self.body.shapes(name, place.at(self.size))


class Branches(NamedTuple):
    """A `cond` of two or a `switch` of three; all may use one address."""

    shared: bool
    bodies: tuple

    def names(self, name):
        return [name if self.shared else f"{name}{i}" for i in range(len(self.bodies))]

    def run(self, x, name):
        funs = [
            lambda x, body=body, own=own: body.run(x, own)
            for body, own in zip(self.bodies, self.names(name), strict=True)
        ]
        if len(funs) == 2:
            return jax.lax.cond(x < 0.5, *funs, x)
        return jax.lax.switch((x > 0.2).astype(int) + (x > 0.8), funs, x)

    def read(self, x, name, hand, place):
        taken = int(x >= 0.5) if len(self.bodies) == 2 else (x > 0.2) + (x > 0.8)
        return self.bodies[taken].read(x, self.names(name)[taken], hand, place)

    def shapes(self, name, place) -> Shapes:
        for body, own in zip(self.bodies, self.names(name), strict=True):
            yield from body.shapes(own, place)
