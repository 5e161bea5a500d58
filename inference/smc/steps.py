"""The driver of Feynman-Kac programs that stops after each step.

A generator with a progress bar, checkpoints and early stopping, also for programs with
effects outside JAX. It gives the same answer as `run` for the same key.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from motes.inference.smc.checkpoint import check_folder, identify, load, save
from motes.inference.smc.feynman_kac import FeynmanKac
from motes.inference.smc.particles import Particles, raise_if_dead
from motes.inference.smc.resampling import Resampler, systematic
from motes.inference.smc.step import Policy, advance, check_run, finish, start
from motes.ppl.errors import check_count


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
        program: The program; with `jit=False` its methods may have effects outside JAX
            and its states may be NumPy arrays, of objects too.
        num_particles: Number of particles.
        resample: Resampling scheme.
        ess_threshold: As in `run`.
        jit: Whether to compile the step.
        progress: Whether to show a progress bar (needs tqdm).
        checkpoint: File that the population is written to after every step, whole or not
            at all. A run of the same program that finds it goes on from there, bit for
            bit; if that run had ended, it yields the last population again.

    Raises:
        DeadParticles: At the step after which all weights are zero.
        ValueError: If `num_particles` is less than one, or `checkpoint` is the file of a
            run with another key, program, data, size or state, or no place for a file.
    """
    policy = check_run("steps", key, program, Policy(resample, ess_threshold))
    num_particles = check_count("steps", "num_particles", num_particles)
    file = None if checkpoint is None else Path(checkpoint)
    if file is not None:
        check_folder(file)
    return _walk(key, program, num_particles, policy, jit, progress, file)


def _walk(
    key: Any,
    program: Any,
    num_particles: int,
    policy: Policy,
    jit: bool,
    progress: bool,
    file: Path | None,
) -> Iterator[Particles]:
    begin, move, end = _COMPILED if jit else (start, advance, finish)
    name: Any = None if file is None else identify(key, program, policy)
    particles, done = begin(key, program, num_particles), 0
    if file is not None and file.exists():
        done, particles = load(file, name, particles)
        raise_if_dead("steps", particles)
        if done == program.num_steps:
            yield particles
    elif program.num_steps == 0:
        yield raise_if_dead("steps", end(key, program, particles))
    elif program.init_is_step:
        yield raise_if_dead("steps", particles)
    for step in _progress(done, program.num_steps, progress):
        row = jax.tree.map(lambda x, i=step - 1: x[i], program.inputs)
        particles = move(key, program, particles, jnp.asarray(step), row, policy)
        if step == program.num_steps:
            particles = end(key, program, particles)
        if file is not None:
            save(file, name, step, particles)
        yield raise_if_dead("steps", particles)


_COMPILED = (
    jax.jit(start, static_argnames="num_particles"),
    jax.jit(advance, static_argnames="policy"),
    jax.jit(finish),
)


def _progress(done: int, num_steps: int, progress: bool) -> Any:
    remaining = range(done + 1, num_steps + 1)
    if not progress:
        return remaining
    from tqdm.auto import tqdm

    return tqdm(remaining, desc="smc", unit="step", initial=done, total=num_steps)
