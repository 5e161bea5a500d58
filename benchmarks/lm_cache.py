"""Ways to resample a cache of keys and values: what each costs.

`pages.settle` copies the rows of parents with several children over those of the childless.
A dense gather writes all rows anew; a table of ancestors moves nothing, and reads each
entry through the table at every step, of which one is timed.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.harness import Row
from motes.inference.smc import systematic
from motes.lm_bridge.pages import settle

NUM, LENGTH, HEADS, DIM, NUM_PAGES = 128, 32, 8, 32, 8


def dense(pages: Any, ancestors: Any) -> Any:
    return jax.tree.map(lambda page: page[ancestors], pages)


def in_place(pages: Any, ancestors: Any) -> Any:
    return settle(pages, ancestors, jnp.array(True))[0]


def through_table(pages: Any, ancestors: Any) -> Any:
    """Read all entries, each from the row of its own ancestor."""
    table = jnp.broadcast_to(ancestors[:, None], (NUM, LENGTH))
    slots = jnp.arange(LENGTH)[None, :]
    return jax.tree.map(lambda page: page[table, :, slots].swapaxes(1, 2), pages)


def seconds(move: Callable[[Any, Any], Any], ancestors: Any, repeats: int) -> float:
    """Return the median CPU time of resampling the cache of four layers once."""

    @jax.jit
    def many_times(pages: Any) -> Any:
        # As in a decode, where memory is reused from step to step.
        return jax.lax.fori_loop(0, 20, lambda _, pages: move(pages, ancestors), pages)

    shape = (NUM, HEADS, LENGTH, DIM)
    pages = [jnp.ones(shape, jnp.float32) for _ in range(NUM_PAGES)]
    jax.block_until_ready(many_times(pages))
    times = []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(many_times(pages))
        times.append((time.process_time() - start) / 20)
    return statistics.median(times)


def rows(repeats: int) -> list[Row]:
    key = jax.random.key(0)
    # An effective sample size of half the particles, where resampling sets in.
    log_weights = 0.83 * jax.random.normal(key, (NUM,))
    ancestors = systematic(key, log_weights, NUM).ancestors.astype(jnp.int32)
    ours = 1e3 * seconds(in_place, ancestors, repeats)
    found = []
    for rival, move in (("gather", dense), ("table", through_table)):
        theirs = 1e3 * seconds(move, ancestors, repeats)
        name = f"resampling the cache, N={NUM}, T={LENGTH}"
        ratio = ours / theirs
        found.append(Row(name, rival, ours, theirs, "cpu ms", ratio, ratio <= 1))
    return found
