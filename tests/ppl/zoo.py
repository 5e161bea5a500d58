"""A model for every nesting of control flow, each with its log density by hand.

`density(choices)` sums scalar log densities in Python; it knows nothing of the library.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy import stats

from motes.ppl import Model, Selection, do, factor, model, sample, scope, select, vmap


class Entry(NamedTuple):
    """A model, its arguments, sites to select, and the log density of its choices."""

    model: Model
    args: tuple
    selection: Selection
    density: Callable[[Any], float]


ZOO: dict[str, Entry] = {}


def add(args=(), selection="x"):
    def keep(fun):
        built, density = fun()
        ZOO[fun.__name__] = Entry(built, args, select(selection), density)
        return fun

    return keep


def normal(x, mean=0.0, sd=1.0):
    return float(np.sum(stats.norm.logpdf(np.asarray(x, float), mean, sd)))


def coin(x, p):
    return float(np.sum(stats.bernoulli.logpmf(np.asarray(x), p)))


def made(entry):
    return np.asarray(entry.value, float), np.asarray(entry.mask)


@add()
def straight_line():
    @model
    def f():
        x = sample("x", dist.Normal(0.0, 1.0))
        return sample("y", dist.Normal(2 * x, 0.5))

    return f, lambda c: normal(c["x"]) + normal(c["y"], 2 * c["x"], 0.5)


@add(args=(3, 0.5), selection="y")
def static_and_traced_arguments():
    @model
    def f(n, sd):
        x = sample("x", dist.Normal(0.0, sd).expand([n]))
        sample("y", dist.Normal(x.sum(), 1.0))

    return f, lambda c: normal(c["x"], 0, 0.5) + normal(c["y"], np.sum(c["x"]), 1.0)


@add(selection="unused")
def sites_that_nothing_uses():
    @model
    def f():
        sample("unused", dist.Normal(1.0, 1.0))

        def step(carry, _):
            sample("x", dist.Normal(0.0, 1.0))
            factor("f", 0.25)
            return carry, None

        jax.lax.scan(step, 0.0, None, length=2)
        jax.jit(lambda: sample("z", dist.Normal(0.0, 2.0)))()
        jax.checkpoint(lambda: factor("g", -0.5))()
        jax.lax.cond(True, lambda: factor("h", 0.125), lambda: None)

    return (
        f,
        lambda c: (
            normal(c["unused"], 1) + normal(c["x"]) + normal(c["z"], 0, 2) + 0.5 - 0.375
        ),
    )


@add()
def scan():
    @model
    def f():
        def step(x, _):
            x = sample("x", dist.Normal(0.9 * x, 0.5))
            sample("y", dist.Normal(x, 1.0))
            return x, x

        return jax.lax.scan(step, 1.0, None, length=4)[1]

    def density(c):
        before = np.concatenate([[1.0], np.asarray(c["x"])[:-1]])
        return normal(c["x"], 0.9 * before, 0.5) + normal(c["y"], c["x"])

    return f, density


@add()
def reversed_scan_over_rows():
    @model
    def f():
        def step(x, row):
            return sample("x", dist.Normal(x + row, 1.0)), None

        return jax.lax.scan(step, 0.0, jnp.arange(3.0), reverse=True)[0]

    def density(c):
        x = np.asarray(c["x"])
        return normal(x, np.append(x[1:], 0.0) + np.arange(3.0))

    return f, density


@add()
def lax_map():
    @model
    def f():
        return jax.lax.map(lambda m: sample("x", dist.Normal(m, 1.0)), jnp.arange(3.0))

    return f, lambda c: normal(c["x"], np.arange(3.0))


@add()
def static_fori_loop():
    @model
    def f():
        return jax.lax.fori_loop(
            0, 3, lambda i, x: x + sample("x", dist.Normal(x, 1.0 + i)), 0.0
        )

    def density(c):
        x = np.asarray(c["x"])
        return normal(x, np.cumsum(x) - x, 1.0 + np.arange(3))

    return f, density


@add(selection="b")
def cond():
    @model
    def f():
        b = sample("b", dist.Bernoulli(0.4))
        return jax.lax.cond(
            b == 1,
            lambda: sample("x", dist.Normal(3.0, 1.0)) + sample("only", dist.Normal()),
            lambda: sample("x", dist.Normal(-3.0, 2.0)),
        )

    def density(c):
        only, mask = made(c["only"])
        if c["b"] == 1:
            return coin(1, 0.4) + normal(c["x"], 3.0) + normal(only)
        return coin(0, 0.4) + normal(c["x"], -3.0, 2.0)

    return f, density


@add(selection="k")
def switch():
    @model
    def f():
        k = sample("k", dist.Categorical(jnp.array([0.2, 0.3, 0.5])))
        branches = [
            lambda: sample("x", dist.Normal(0.0, 1.0)),
            lambda: sample("y", dist.Gamma(2.0, 1.0)),
            lambda: jnp.zeros(()),
        ]
        sample("z", dist.Normal(jax.lax.switch(k, branches), 1.0))

    def density(c):
        k = int(c["k"])
        x, y = made(c["x"])[0], made(c["y"])[0]
        total = np.log([0.2, 0.3, 0.5])[k]
        total += normal(x) if k == 0 else 0.0
        total += stats.gamma.logpdf(y, 2.0) if k == 1 else 0.0
        return total + normal(c["z"], [x, y, 0.0][k])

    return f, density


@add(selection=("a", "x"))
def jit_under_two_scopes():
    inner = jax.jit(lambda m: sample("x", dist.Normal(m, 1.0)))

    @model
    def f():
        with scope("a"):
            x = inner(1.0)
        with scope("b"):
            return inner(x)

    return f, lambda c: normal(c["a"]["x"], 1) + normal(c["b"]["x"], c["a"]["x"])


@add()
def checkpoint():
    @model
    def f():
        @jax.checkpoint
        def block(m):
            x = sample("x", dist.Normal(m, 1.0))
            return jnp.sin(x)

        sample("y", dist.Normal(block(0.5), 1.0))

    return f, lambda c: normal(c["x"], 0.5) + normal(c["y"], np.sin(c["x"]))


@add()
def custom_derivatives():
    @jax.custom_jvp
    def soft(m):
        return m + sample("x", dist.Normal(m, 1.0))

    soft.defjvp(lambda p, t: (soft(*p), t[0]))

    @jax.custom_vjp
    def hard(m):
        return m * sample("y", dist.Normal(m, 2.0))

    hard.defvjp(lambda m: (hard(m), None), lambda _, g: (g,))

    @model
    def f():
        return hard(soft(0.3))

    return f, lambda c: normal(c["x"], 0.3) + normal(c["y"], 0.3 + c["x"], 2.0)


@add(selection="w")
def equinox_module():
    def make():
        return eqx.nn.Linear(2, 1, key=jax.random.key(0))

    @model
    def f():
        layer = make()
        w = sample("w", dist.Normal(0.0, 1.0).expand([2]))
        sample("y", dist.Normal(layer(w)[0], 1.0))

    def density(c):
        layer = make()
        mean = np.asarray(layer.weight) @ np.asarray(c["w"]) + np.asarray(layer.bias)
        return normal(c["w"]) + normal(c["y"], mean[0])

    return f, density


@add()
def plate():
    @model
    def f():
        mu = sample("mu", dist.Normal(0.0, 1.0))
        x = vmap(lambda s: sample("x", dist.Normal(mu, s)))(jnp.array([0.5, 1.0, 2.0]))
        vmap(lambda: sample("free", dist.Normal(0.0, 1.0)), axis_size=3)()
        sample("y", dist.Normal(x.sum(), 1.0))

    return (
        f,
        lambda c: (
            normal(c["mu"])
            + normal(c["x"], c["mu"], np.array([0.5, 1.0, 2.0]))
            + normal(c["free"])
            + normal(c["y"], np.sum(c["x"]))
        ),
    )


@add()
def plate_of_scan():
    @model
    def f():
        def lane(m):
            def step(x, _):
                return sample("x", dist.Normal(x + m, 1.0)), None

            return jax.lax.scan(step, 0.0, None, length=3)[0]

        return vmap(lane)(jnp.array([0.0, 2.0]))

    def density(c):
        x = np.asarray(c["x"])
        assert x.shape == (2, 3)
        before = np.concatenate([np.zeros((2, 1)), x[:, :-1]], 1)
        return normal(x, before + np.array([[0.0], [2.0]]))

    return f, density


@add()
def scan_of_plate():
    @model
    def f():
        def step(x, _):
            return vmap(lambda m: sample("x", dist.Normal(m, 1.0)))(x), None

        return jax.lax.scan(step, jnp.zeros(2), None, length=3)[0]

    def density(c):
        x = np.asarray(c["x"])
        assert x.shape == (3, 2)
        return normal(x, np.concatenate([np.zeros((1, 2)), x[:-1]]))

    return f, density


@add(selection="b")
def branch_per_lane():
    @model
    def f():
        def lane(m):
            b = sample("b", dist.Bernoulli(0.5))
            return jax.lax.cond(
                b == 1,
                lambda: sample("x", dist.Normal(m, 1.0)),
                lambda: sample("y", dist.Exponential(2.0)) + 0.0 * m,
            )

        return vmap(lane)(jnp.array([0.0, 1.0, 2.0]))

    def density(c):
        total = coin(c["b"], 0.5)
        (x, _), (y, _) = made(c["x"]), made(c["y"])
        for lane, b in enumerate(np.asarray(c["b"])):
            total += normal(x[lane], lane) if b else stats.expon.logpdf(y[lane], 0, 0.5)
        return total

    return f, density


@add()
def nested_plates_of_equal_sizes():
    rows = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]

    @model
    def f():
        mu = sample("mu", dist.Normal(jnp.array([1.0, 2.0, 3.0]), 1.0))

        def outer(row):
            return vmap(lambda m, r: sample("x", dist.Normal(m + r, 0.1)))(mu, row)

        vmap(outer)(jnp.asarray(rows))
        vmap(lambda m: sample("y", dist.Normal(mu, 0.1 + 0 * m)), axis_size=3)(mu)

    def density(c):
        mu, x = np.asarray(c["mu"]), np.asarray(c["x"])
        total = normal(mu, np.array([1.0, 2.0, 3.0]))
        for i in range(3):
            for j in range(3):
                total += normal(x[i, j], mu[j] + rows[i][j], 0.1)
                total += normal(c["y"][i, j], mu[j], 0.1)
        return total

    return f, density


@add()
def scan_in_cond_in_scan():
    @model
    def f():
        def inner(x, _):
            return sample("x", dist.Normal(x, 1.0)), None

        def step(x, t):
            x = jax.lax.cond(
                t % 2 == 0,
                lambda: jax.lax.scan(inner, x, None, length=2)[0],
                lambda: x + sample("jump", dist.Normal(0.0, 3.0)),
            )
            return x, None

        return jax.lax.scan(step, 0.0, jnp.arange(3))[0]

    def density(c):
        (x, _), (jump, _) = made(c["x"]), made(c["jump"])
        total = normal(x[0, 0]) + normal(x[0, 1], x[0, 0]) + normal(jump[1], 0, 3)
        start = x[0, 1] + jump[1]
        return total + normal(x[2, 0], start) + normal(x[2, 1], x[2, 0])

    return f, density


@add(selection="inner")
def models_in_models():
    @model
    def leaf(m):
        x = sample("x", dist.Normal(m, 1.0))
        return x + sample("y", dist.Normal(x, 1.0))

    @model
    def f():
        first = leaf(0.0)
        second = leaf(first, address="inner")
        with scope("outer"):
            return leaf(second, address="deep")

    def density(c):
        def pair(d, m):
            return normal(d["x"], m) + normal(d["y"], d["x"]), d["x"] + d["y"]

        one, first = pair(c, 0.0)
        two, second = pair(c["inner"], first)
        return one + two + pair(c["outer"]["deep"], second)[0]

    return f, density


@add()
def factors_in_every_nesting():
    @model
    def f():
        x = sample("x", dist.Normal(0.0, 1.0))
        factor("top", 2 * x)
        jax.lax.scan(
            lambda c, r: (factor("s", r * x), (c, None))[1], 0.0, jnp.arange(3.0)
        )
        vmap(lambda m: factor("p", m * x))(jnp.arange(4.0))
        jax.lax.cond(x > 0, lambda: factor("c", x), lambda: factor("c", -3.0))

    def density(c):
        x = float(c["x"])
        return normal(x) + 2 * x + 3 * x + 6 * x + (x if x > 0 else -3.0)

    return f, density


class Shifted(eqx.Module):
    """A density of one's own: a normal moved by one."""

    mean: Any

    @property
    def support(self):
        return dist.constraints.real

    def sample_with_log_density(self, key):
        value = self.mean + 1 + jax.random.normal(key, ())
        return value, self.log_density(key, value)

    def log_density(self, key, value):
        return jax.scipy.stats.norm.logpdf(value, self.mean + 1)


@add()
def density_of_ones_own():
    @model
    def f():
        x = sample("x", Shifted(jnp.zeros(())))
        y = vmap(lambda m: sample("y", Shifted(m)))(jnp.arange(3.0))

        def step(z, _):
            return sample("z", Shifted(z)), None

        return x + y.sum() + jax.lax.scan(step, x, None, length=2)[0]

    def density(c):
        z = np.asarray(c["z"])
        return (
            normal(c["x"], 1.0)
            + normal(c["y"], np.arange(3.0) + 1)
            + normal(z, np.array([c["x"], z[0]]) + 1)
        )

    return f, density


@add()
def vector_and_discrete_sites():
    @model
    def f():
        x = sample("x", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
        p = sample("p", dist.Dirichlet(jnp.ones(3)))
        k = vmap(lambda: sample("k", dist.Categorical(p)), axis_size=4)()
        n = sample("n", dist.Poisson(jnp.exp(0.1 * x[0])))
        sample("y", dist.StudentT(3.0, k.sum() + n + x[1], 2.0))

    def density(c):
        x, p = np.asarray(c["x"]), np.asarray(c["p"], float)
        total = normal(x) + stats.dirichlet.logpdf(p / p.sum(), np.ones(3))
        total += np.log(p)[np.asarray(c["k"])].sum()
        total += stats.poisson.logpmf(int(c["n"]), np.exp(0.1 * x[0]))
        location = np.sum(c["k"]) + c["n"] + x[1]
        return total + stats.t.logpdf(float(c["y"]), 3.0, float(location), 2.0)

    return f, density


@add()
def expanded_under_plates():
    @model
    def f():
        def lane(m):
            base = dist.Normal(m, 1.0)
            x = sample("x", base.expand([2]))
            sample("y", dist.StudentT(4.0, m, 1.0).expand([2]).to_event(1))
            return x

        vmap(lambda m: vmap(lane)(m + jnp.arange(2.0)))(jnp.array([0.0, 5.0]))

    def density(c):
        means = np.array([[0.0, 1.0], [5.0, 6.0]])[..., None]
        x, y = np.asarray(c["x"]), np.asarray(c["y"])
        assert x.shape == y.shape == (2, 2, 2)
        return normal(x, means) + float(stats.t.logpdf(y, 4.0, means).sum())

    return f, density


@add(selection="y")
def intervention():
    @model
    def base():
        x = sample("x", dist.Normal(0.0, 1.0))
        z = vmap(lambda m: sample("z", dist.Normal(m + x, 1.0)))(jnp.arange(2.0))
        sample("y", dist.Normal(x + z.sum(), 1.0))

    def density(c):
        return normal(c["z"], np.arange(2.0) + 2.0) + normal(
            c["y"], 2.0 + np.sum(c["z"])
        )

    return do(base, {"x": 2.0}), density


@add()
def supports_that_depend_on_choices():
    @model
    def f():
        x = sample("x", dist.Gamma(3.0, 1.0))
        u = sample("u", dist.Uniform(0.0, x))
        sample("y", dist.LogNormal(u, 1.0))

    def density(c):
        total = stats.gamma.logpdf(c["x"], 3.0) - np.log(c["x"])
        return total + stats.lognorm.logpdf(c["y"], 1.0, 0.0, np.exp(c["u"]))

    return f, density


@add()
def plate_of_cond_of_plate():
    @model
    def f():
        def lane(m):
            b = sample("b", dist.Bernoulli(0.5))

            def many():
                return vmap(lambda j: sample("x", dist.Normal(m + j, 1.0)))(
                    jnp.arange(2.0)
                )

            return jax.lax.cond(b == 1, many, lambda: jnp.zeros(2)).sum()

        return vmap(lane)(jnp.array([0.0, 10.0]))

    def density(c):
        x, mask = made(c["x"])
        total = coin(c["b"], 0.5)
        for lane, b in enumerate(np.asarray(c["b"])):
            total += normal(x[lane], 10.0 * lane + np.arange(2.0)) if b else 0.0
        return total

    return f, density
