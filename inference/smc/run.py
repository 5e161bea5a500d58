"""The two drivers of Feynman-Kac programs, over one step.

`run` compiles the whole filter; `steps` is a generator with progress, checkpoints and
early stopping. They give the same answer for the same key.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from motes.inference.smc.feynman_kac import FeynmanKac, Finishes
from motes.inference.smc.particles import Particles, raise_if_dead, reweight
from motes.inference.smc.resampling import Resampler, systematic
from motes.inference.smc.step import Policy, advance, start
from motes.ppl.jaxprs import reads_inputs


def run(
    key: Key[Array, ""],
    program: FeynmanKac,
    num_particles: int,
    *,
    resample: Resampler = systematic,
    ess_threshold: float = 0.5,
    collect: Callable[[Particles], Any] | None = None,
) -> tuple[Particles, Any]:
    r"""Run a Feynman-Kac program, compiled as one loop.

    $\exp$ of the log evidence is an unbiased estimate of the evidence, for every scheme
    and threshold; weighted means are consistent. Memory does not grow with the number of
    steps, except by what `collect` returns.

    Args:
        key: PRNG key; consumed.
        program: The program, as a builder makes it.
        num_particles: Number of particles, $N$.
        resample: Resampling scheme.
        ess_threshold: Resample when the effective sample size is below this share of $N$.
        collect: What to keep of the population after each step; a function that stays the
            same between calls is compiled once.

    Returns:
        The last population (with ancestors, if `collect` reads them), and what was
        collected with the steps as leading axis.

    Raises:
        ValueError: If `num_particles` is less than one.
        DeadParticles: If all weights become zero; inside `jit` the evidence is zero and
            `dead_step` says where.

    References:
        Chopin and Papaspiliopoulos (2020), Algorithm 10.3.
    """
    _check(num_particles)
    particles, collected = _run(
        key, program, num_particles, Policy(resample, ess_threshold), collect
    )
    return raise_if_dead("run", particles), collected


@partial(jax.jit, static_argnames=("num_particles", "policy", "collect"))
def _run(
    key: Any, program: Any, num_particles: int, policy: Policy, collect: Any
) -> tuple[Particles, Any]:
    keep = collect or (lambda _: None)
    policy = policy._replace(
        keep_ancestors=_reads_ancestors(keep, key, program, num_particles)
    )
    particles = start(key, program, num_particles, policy)
    first = keep(particles)

    def body(particles: Particles, row: Any) -> tuple[Particles, Any]:
        step, inputs = row
        particles = advance(key, program, particles, step, inputs, policy)
        return particles, keep(particles)

    rows = (jnp.arange(1, program.num_steps + 1), program.inputs)
    particles, collected = jax.lax.scan(body, particles, rows)
    if program.init_is_step:
        collected = jax.tree.map(
            lambda x, xs: jnp.concatenate([x[None], xs]), first, collected
        )
    return _finish(key, program, particles), collected


def _reads_ancestors(keep: Any, key: Any, program: Any, num_particles: int) -> bool:
    """Whether `keep` reads the ancestors: carrying them through the loop has a cost."""
    particles = jax.eval_shape(lambda k: start(k, program, num_particles), key)
    reads = reads_inputs(keep, particles)
    return bool(reads.ancestors)


def _finish(key: Any, program: Any, particles: Particles) -> Particles:
    if not isinstance(program, Finishes):
        return particles
    step = program.num_steps + 1
    increments = program.finish(jax.random.fold_in(key, step), particles.state)
    return reweight(particles, increments, jnp.asarray(step))


def steps(
    key: Key[Array, ""],
    program: FeynmanKac,
    num_particles: int,
    *,
    resample: Resampler = systematic,
    ess_threshold: float = 0.5,
    jit: bool = True,
    progress: bool = False,
    checkpoint: str | os.PathLike | None = None,
) -> Iterator[Particles]:
    """Run a Feynman-Kac program step by step; yields the population after each.

    The last population equals that of `run` for the same key.

    Args:
        key: PRNG key; consumed.
        program: The program; with `jit=False` its methods may have effects outside JAX.
        num_particles: Number of particles.
        resample: Resampling scheme.
        ess_threshold: As in `run`.
        jit: Whether to compile the step.
        progress: Whether to show a progress bar (needs tqdm).
        checkpoint: File that the population is written to after every step, whole or not
            at all; a run that finds it goes on from there, bit for bit.

    Raises:
        DeadParticles: At the step after which all weights are zero.
        ValueError: If `checkpoint` is the file of a run with another key or size.
    """
    _check(num_particles)
    policy = Policy(resample, ess_threshold)
    wrap = _jitted if jit else (lambda fun: fun)
    particles = wrap(start)(key, program, num_particles)
    done = 0
    if checkpoint is not None and Path(checkpoint).exists():
        done, particles = _load(Path(checkpoint), key, particles)
    elif program.init_is_step:
        yield raise_if_dead("steps", particles)
    for step in _progress(range(done + 1, program.num_steps + 1), progress):
        inputs = jax.tree.map(lambda x, i=step - 1: x[i], program.inputs)
        particles = wrap(advance)(
            key, program, particles, jnp.asarray(step), inputs, policy
        )
        if step == program.num_steps:
            particles = wrap(_finish)(key, program, particles)
        if checkpoint is not None:
            _save(Path(checkpoint), key, step, particles)
        yield raise_if_dead("steps", particles)


_STEP = jax.jit(advance, static_argnames="policy")
_START = jax.jit(start, static_argnames="num_particles")
_FINISH = jax.jit(_finish)


def _jitted(fun: Callable) -> Callable:
    return {advance: _STEP, start: _START, _finish: _FINISH}[fun]


def _check(num_particles: int) -> None:
    if num_particles < 1:
        raise ValueError(f"run: num_particles must be at least 1, got {num_particles}.")


def _progress(steps: Any, progress: bool) -> Any:
    if not progress:
        return steps
    from tqdm.auto import tqdm

    return tqdm(steps, desc="smc", unit="step")


def _save(file: Path, key: Any, step: int, particles: Particles) -> None:
    leaves = [np.asarray(_raw(x)) for x in jax.tree.leaves(particles)]
    partial_file = file.with_suffix(".partial.npz")
    np.savez(partial_file, *leaves, key=np.asarray(_raw(key)), step=step)
    os.replace(partial_file, file)


def _load(file: Path, key: Any, like: Particles) -> tuple[int, Particles]:
    saved = np.load(file, allow_pickle=False)
    leaves, tree = jax.tree.flatten(like)
    old = [saved[f"arr_{i}"] for i in range(len(leaves)) if f"arr_{i}" in saved]
    same = [x.shape == np.asarray(_raw(y)).shape for x, y in zip(old, leaves)]  # noqa: B905
    if not np.array_equal(saved["key"], np.asarray(_raw(key))) or (
        len(old) != len(leaves) or not all(same)
    ):
        raise ValueError(
            f"steps: checkpoint must be of a run with this key and size, got {file}. "
            "Remove the file to start again."
        )
    restored = [
        jax.random.wrap_key_data(x) if _is_key(y) else jnp.asarray(x, y.dtype)
        for x, y in zip(old, leaves, strict=True)
    ]
    return int(saved["step"]), jax.tree.unflatten(tree, restored)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x
