"""A model of 1.2 billion random parameters in bf16, against the memory's bandwidth."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.harness import Row
from motes.lm_bridge import Rope, TransformerConfig, TransformerLM, transformer
from motes.lm_bridge.decode import decode
from motes.lm_bridge.transformer_lm import place_layers

CONFIG = TransformerConfig(
    vocab_size=32_000,
    hidden_size=2048,
    num_layers=22,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=5632,
    max_positions=4096,
    rope=Rope(),
)
NUM_PARTICLES, NUM_TOKENS = 64, 256


def median_seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bandwidth() -> float:
    """Return the bytes per second of adding one to a large array, read and written."""
    large = jnp.zeros(2**30, jnp.bfloat16)
    add = jax.jit(lambda x: x + 1)
    return 2 * large.nbytes / median_seconds(lambda: add(large))


def rows() -> list[Row]:
    """Compare a decode with the time to read weights and cache once for each token."""
    name = f"decode, 1.2 B parameters, N={NUM_PARTICLES}, T={NUM_TOKENS}"
    if jax.default_backend() != "gpu":
        empty = ("bandwidth", None, None, "", None, None)
        return [Row(f"{name} (no GPU)", *empty)]
    model = transformer.init(jax.random.key(0), CONFIG)
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
    lm = TransformerLM(place_layers(model), eos_ids=(1,))
    args = (lm, [5, 6, 7, 8], NUM_PARTICLES, NUM_TOKENS)
    key = jax.random.key(0)
    seconds = median_seconds(lambda: decode(key, *args).tokens)

    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(lm.model))
    entry = 2 * 2 * CONFIG.num_layers * CONFIG.num_kv_heads * CONFIG.head_dim
    cache = NUM_PARTICLES * entry * NUM_TOKENS / 2
    limit = NUM_TOKENS * (weights + cache) / bandwidth()
    share = limit / seconds
    return [Row(name, "bandwidth", seconds, limit, "s", 1 / share, share >= 0.6)]
