"""Importance sampling of a line by ours, by hand-written JAX, and by GenJAX."""

import json
import os
import statistics
import subprocess
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.stats import norm

from benchmarks.harness import Row, compare, compare_first_call, missing
from motes.inference.smc import importance_sampling
from motes.ppl import condition, model, sample

KEY = jax.random.key(0)


@model
def line(t):
    """A line with unknown slope, intercept and noise."""
    slope = sample("slope", dist.Normal(0.0, 1.0))
    intercept = sample("intercept", dist.Normal(0.0, 2.0))
    noise = sample("noise", dist.Gamma(2.0, 4.0))
    sample("y", dist.Normal(slope * t + intercept, noise))


@partial(jax.jit, static_argnums=3)
def hand_importance(key, t, y, num):
    k1, k2, k3 = jax.random.split(key, 3)
    slope = jax.random.normal(k1, (num,))
    intercept = 2.0 * jax.random.normal(k2, (num,))
    noise = jax.random.gamma(k3, 2.0, (num,)) / 4.0
    means = slope[:, None] * t + intercept[:, None]
    log_weights = norm.logpdf(y, means, noise[:, None]).sum(1)
    # What a user of importance sampling reads: traces with their log densities.
    prior = norm.logpdf(slope) + norm.logpdf(intercept, 0.0, 2.0)
    prior += jax.scipy.stats.gamma.logpdf(noise, 2.0, 0.0, 0.25)
    log_evidence = jax.nn.logsumexp(log_weights) - jnp.log(num)
    return slope, intercept, noise, prior + log_weights, log_weights, log_evidence


def importance_rows(repeats: int) -> list[Row]:
    t = jnp.linspace(-1.0, 1.0, 10)
    y = line.simulate(KEY, t)["y"]
    target = condition(line, {"y": y})

    def make_ours():
        return partial(
            jax.jit(lambda key: importance_sampling(key, target, 100_000, t)), KEY
        )

    def make_theirs():
        return partial(hand_importance, KEY, t, y, 100_000)

    name = "importance sampling, N=100,000"
    return [
        compare(name, "hand", make_ours(), make_theirs(), 1.05, repeats),
        compare_first_call(name, make_ours, make_theirs, 1.5, 3),
    ]


def genjax_rows(repeats: int) -> list[Row]:
    """The same importance sampling by GenJAX, in a process of its own."""
    name, python = "importance sampling, N=100,000", os.environ.get("GENJAX_PYTHON")
    if python is None:
        return [missing(name, "genjax")]
    t = jnp.linspace(-1.0, 1.0, 10)
    y = line.simulate(KEY, t)["y"]
    data = {"t": t.tolist(), "y": y.tolist(), "num_particles": 100_000}
    file = Path(__file__).with_name("genjax_importance.py")
    answer = subprocess.run(
        [python, str(file)],
        input=json.dumps(data | {"repeats": repeats}),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    theirs = json.loads(answer.stdout)
    target = condition(line, {"y": y})
    ours = jax.jit(lambda key: importance_sampling(key, target, 100_000, t))
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        found = jax.block_until_ready(ours(KEY))
        seconds.append(time.perf_counter() - start)
    # Both rest on about a hundred effective draws.
    assert abs(float(found.log_evidence) - theirs["log_evidence"]) < 0.7
    pairs = [_first_and_median(s) for s in (seconds, theirs["seconds"])]
    first, later = zip(*pairs, strict=True)
    return [
        Row(
            name,
            "genjax",
            *(1e3 * x for x in later),
            "ms",
            later[0] / later[1],
            later[0] <= later[1],
        ),
        Row(
            f"{name}, first call",
            "genjax",
            *first,
            "s",
            first[0] / first[1],
            first[0] <= first[1],
        ),
    ]


def _first_and_median(seconds: list[float]) -> tuple[float, float]:
    return seconds[0], statistics.median(seconds[1:])
