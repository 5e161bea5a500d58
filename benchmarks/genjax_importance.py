"""Importance sampling of a line in GenJAX, which needs an older JAX of its own.

`core.py` runs this file with the interpreter of an environment that has GenJAX. It reads
times and observations as JSON and writes seconds of the first call and of each later one.
"""

import json
import sys
import time

import genjax
import jax
import jax.numpy as jnp


@genjax.gen
def line(t):
    slope = genjax.normal(0.0, 1.0) @ "slope"
    intercept = genjax.normal(0.0, 2.0) @ "intercept"
    noise = genjax.gamma(2.0, 4.0) @ "noise"
    return genjax.mv_normal_diag(slope * t + intercept, noise * jnp.ones(t.size)) @ "y"


def main() -> None:
    data = json.load(sys.stdin)
    t, num = jnp.asarray(data["t"]), data["num_particles"]
    given = genjax.ChoiceMapBuilder["y"].set(jnp.asarray(data["y"]))

    def one(key):
        trace, log_weight = line.importance(key, given, (t,))
        choices = trace.get_choices()
        values = [choices[name] for name in ("slope", "intercept", "noise")]
        return values, trace.get_score(), log_weight

    @jax.jit
    def sample(key):
        values, scores, log_weights = jax.vmap(one)(jax.random.split(key, num))
        log_evidence = jax.nn.logsumexp(log_weights) - jnp.log(num)
        return values, scores, log_weights, log_evidence

    seconds = []
    for _ in range(data["repeats"] + 1):
        start = time.perf_counter()
        found = jax.block_until_ready(sample(jax.random.key(0)))
        seconds.append(time.perf_counter() - start)
    json.dump({"seconds": seconds, "log_evidence": float(found[-1])}, sys.stdout)


if __name__ == "__main__":
    main()
