"""Memory of a filter of a million particles: a process of its own for each length.

`python benchmarks/memory.py STEPS` runs one and prints the gigabytes that it took.
"""

import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.harness import Row  # noqa: E402
from motes.inference.smc import derive, run  # noqa: E402
from motes.ppl import model, sample  # noqa: E402

NUM_PARTICLES = 1_000_000
MOST_GIGABYTES = 2.0


@model
def volatility(num_steps):
    """Stochastic volatility."""

    def step(x, _):
        x = sample("x", dist.Normal(0.95 * x - 0.05, 0.25))
        sample("y", dist.Normal(0.0, jnp.exp(x / 2)))
        return x, None

    return jax.lax.scan(step, -1.0, None, length=num_steps)[0]


def memory_rows() -> list[Row]:
    """Compare 100 steps with the bar, and 200 steps with 100."""
    short, long = (_gigabytes(num_steps) for num_steps in (100, 200))
    name = f"memory of a filter, N={NUM_PARTICLES:,}"
    return [
        Row(f"{name}, T=100", "the bar", short, MOST_GIGABYTES, "GB",
            short / MOST_GIGABYTES, short <= MOST_GIGABYTES),
        Row(f"{name}, T=200", "T=100", long, short, "GB",
            long / short, long <= 1.05 * short),
    ]  # fmt: skip


def _gigabytes(num_steps: int) -> float:
    command = [sys.executable, str(Path(__file__)), str(num_steps)]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def main() -> None:
    num_steps = int(sys.argv[1])
    data = np.random.default_rng(0).normal(size=num_steps)
    program = derive(volatility, {"y": jnp.asarray(data)}, num_steps)
    jax.block_until_ready(run(jax.random.key(0), program, NUM_PARTICLES)[0])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


if __name__ == "__main__":
    main()
