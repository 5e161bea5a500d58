"""Log densities, importance sampling and filters against hand-written JAX and `particles`.

Run `python benchmarks/core.py`; `--quick` takes under 50 s. Times are medians of
alternating runs in one process; first calls include tracing and compiling. GenJAX needs
an older JAX: name the interpreter of its environment as `GENJAX_PYTHON`.
"""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.stats import norm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import (  # noqa: E402
    Row,
    arguments,
    compare,
    compare_first_call,
    has,
    missing,
    report,
)
from benchmarks.importance import genjax_rows, importance_rows  # noqa: E402
from benchmarks.memory import memory_rows  # noqa: E402
from motes.inference.smc import derive, run  # noqa: E402
from motes.ppl import model, sample  # noqa: E402

KEY = jax.random.key(0)
MEAN, RHO, SCALE = -1.0, 0.95, 0.25
STATIONARY = SCALE / (1 - RHO**2) ** 0.5


@model
def logistic(x):
    """Logistic regression with standard normal coefficients."""
    beta = sample("beta", dist.Normal(0.0, 1.0).expand([20]))
    sample("y", dist.Bernoulli(logits=x @ beta))


def hand_logistic(beta, x, y):
    # The same density, at infinite logits too: `softplus` would save 5 % and give NaN.
    likelihood = dist.Bernoulli(logits=x @ beta)
    return jnp.sum(norm.logpdf(beta)) + jnp.sum(likelihood.log_prob(y))


@model
def volatility(num_steps):
    """Stochastic volatility."""

    def step(x, _):
        x = sample("x", dist.Normal(MEAN + RHO * (x - MEAN), SCALE))
        sample("y", dist.Normal(0.0, jnp.exp(x / 2)))
        return x, None

    start = sample("start", dist.Normal(MEAN, STATIONARY))
    return jax.lax.scan(step, start, None, length=num_steps)[0]


def hand_volatility(start, xs, ys):
    def step(carry, row):
        previous, total = carry
        x, y = row
        move = norm.logpdf(x, MEAN + RHO * (previous - MEAN), SCALE)
        return (x, total + move + norm.logpdf(y, 0.0, jnp.exp(x / 2))), None

    first = norm.logpdf(start, MEAN, STATIONARY)
    return jax.lax.scan(step, (start, first), (xs, ys))[0][1]


def hand_filter(key, ys, num):
    def systematic(key, log_weights):
        weights = jnp.exp(log_weights)
        grid = num * jnp.cumsum(weights / weights.sum()) - jax.random.uniform(key)
        ends = jnp.ceil(grid).astype(jnp.int32).clip(0, num)
        counts = jnp.diff(ends, prepend=0)
        return jnp.repeat(jnp.arange(num), counts, total_repeat_length=num)

    def step(carry, y):
        x, log_weights, log_evidence, ess, key = carry
        key, resample_key, move_key = jax.random.split(key, 3)
        x, log_weights = jax.lax.cond(
            ess < 0.5 * num,
            lambda: (x[systematic(resample_key, log_weights)], jnp.zeros(num)),
            lambda: (x, log_weights),
        )
        x = MEAN + RHO * (x - MEAN) + SCALE * jax.random.normal(move_key, (num,))
        log_weights = log_weights + norm.logpdf(y, 0.0, jnp.exp(x / 2))
        top = log_weights.max()
        weights = jnp.exp(log_weights - top)
        total = weights.sum()
        log_mean = top + jnp.log(total / num)
        ess = total**2 / (weights**2).sum()
        return (x, log_weights - log_mean, log_evidence + log_mean, ess, key), None

    x = MEAN + STATIONARY * jax.random.normal(jax.random.fold_in(key, 0), (num,))
    start = (x, jnp.zeros(num), jnp.zeros(()), jnp.full((), float(num)), key)
    return jax.lax.scan(step, start, ys)[0]


def log_density_rows(repeats: int) -> list[Row]:
    x = jax.random.normal(KEY, (1000, 20))
    y = logistic.simulate(KEY, x)["y"]
    beta = 0.1 * jnp.ones(20)
    trace = volatility.simulate(KEY, 1000)
    start, xs, ys = trace["start"], trace["x"], trace["y"]
    cases = {
        "logistic regression 1000x20": (
            lambda b: logistic.log_density({"beta": b, "y": y}, x),
            lambda b: hand_logistic(b, x, y),
            beta,
        ),
        "stochastic volatility T=1000": (
            lambda z: volatility.log_density({"start": start, "x": z, "y": ys}, 1000),
            lambda z: hand_volatility(start, z, ys),
            xs,
        ),
    }
    rows = []
    for name, (ours, theirs, at) in cases.items():
        for label, wrap in (
            ("log density", lambda f: f),
            ("gradient", jax.value_and_grad),
        ):
            fast, hand = jax.jit(wrap(ours)), jax.jit(wrap(theirs))
            rows.append(
                compare(
                    f"{label}, {name}",
                    "hand",
                    lambda f=fast, a=at: f(a),
                    lambda f=hand, a=at: f(a),
                    1.02,
                    repeats,
                    inner=100,
                )
            )
    rows.append(
        compare_first_call(
            "gradient, stochastic volatility T=1000",
            lambda: partial(jax.jit(jax.value_and_grad(ours)), xs),
            lambda: partial(jax.jit(jax.value_and_grad(theirs)), xs),
            1.5,
            3,
        )
    )
    return rows


def filter_rows(repeats: int, quick: bool) -> list[Row]:
    ys = volatility.simulate(KEY, 1000)["y"]
    sizes = [("bootstrap filter", 100, 10_000, 1.05)]
    sizes += [("adaptive filter", 200 if quick else 1000, 100_000, 1.1)]
    rows = []
    for name, num_steps, num, bar in sizes:
        data = ys[:num_steps]
        program = derive(volatility, {"y": data}, num_steps)
        hand = jax.jit(hand_filter, static_argnums=2)
        name = f"{name}, T={num_steps}, N={num:,}"
        turns = repeats if num_steps * num < 1e8 else 5
        ours = lambda p=program, n=num: run(KEY, p, n)[0]  # noqa: E731
        theirs = lambda d=data, n=num, h=hand: h(KEY, d, n)  # noqa: E731
        rows.append(compare(name, "hand", ours, theirs, bar, turns))
        if num_steps == 100:
            rows.append(
                compare_first_call(
                    name,
                    lambda o=ours: o,
                    lambda d=data, n=num: partial(
                        jax.jit(hand_filter, static_argnums=2), KEY, d, n
                    ),
                    1.5,
                    3,
                )
            )
        elif has("particles"):
            other = particles_filter(np.asarray(data), num)
            rows.append(compare(name, "particles", ours, other, 0.25, 3))
        else:
            rows.append(missing(name, "particles"))
    return rows


def particles_filter(data: np.ndarray, num: int):
    """The same filter in the `particles` package."""
    import particles
    from particles import state_space_models as ssm

    volatility = ssm.StochVol(mu=MEAN, rho=RHO, sigma=SCALE)

    def once():
        model = ssm.Bootstrap(ssm=volatility, data=data)
        smc = particles.SMC(fk=model, N=num, resampling="systematic", ESSrmin=0.5)
        smc.run()
        return smc.logLt

    return once


def main() -> None:
    options = arguments((__doc__ or "").splitlines()[0])
    repeats = 11 if options.quick else 41
    # First, since a process counts the memory of the one that started it.
    rows = [] if options.quick else memory_rows()
    rows += log_density_rows(101) + importance_rows(repeats)
    rows += filter_rows(repeats, options.quick) + genjax_rows(repeats)
    report(rows, options.json)


if __name__ == "__main__":
    main()
