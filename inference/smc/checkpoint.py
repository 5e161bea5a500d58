"""Populations in files.

A checkpoint is a NumPy archive of arrays: it holds no code and no pickles, and it is
replaced whole or not at all. `steps` writes one after each step.
"""

import os
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from motes.inference.smc.particles import Particles
from motes.inference.smc.step import Policy


def identify(key: Key[Array, ""], program: Any, policy: Policy) -> np.ndarray:
    """Return a digest of what makes a run: key, number of steps, resampling and data.

    Data are the arrays, numbers and strings of the program, with their names.
    """
    scheme = getattr(policy.resample, "__name__", type(policy.resample).__name__)
    digest = sha256(_raw(key).tobytes() + str(program.num_steps).encode())
    digest.update(f"{scheme}{float(policy.ess_threshold)}".encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(program):
        if isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int | str):
            raw = _raw(leaf if hasattr(leaf, "dtype") else np.asarray(leaf))
            if raw.dtype != object:
                name = f"{jax.tree_util.keystr(path)}{raw.shape}{raw.dtype}"
                digest.update(name.encode() + raw.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def save(file: Path, run: np.ndarray, step: int, particles: Particles) -> None:
    """Write the population after a step of the run that `identify` has named.

    Raises:
        ValueError: If the state holds Python objects.
    """
    leaves = [_raw(x) for x in jax.tree.leaves(particles)]
    if any(x.dtype == object for x in leaves):
        raise ValueError(
            "steps: the state must be of numbers or strings to be written to a "
            f"checkpoint, got an array of objects for {file}. Use a string dtype."
        )
    unfinished = file.with_name(file.name + ".partial")
    with unfinished.open("wb") as stream:
        np.savez(stream, *leaves, run=run, step=step)
    os.replace(unfinished, file)


def load(file: Path, run: np.ndarray, like: Particles) -> tuple[int, Particles]:
    """Read the step and the population; `like` is one of the same run.

    Raises:
        ValueError: If the file is damaged, none that `save` wrote, or of a run with another
            key, program, data or size.
    """
    leaves, tree = jax.tree.flatten(like)
    step, saved_run, arrays = _read(file)
    same = np.array_equal(saved_run, run) and len(arrays) == len(leaves)
    if not same or not all(map(_matches, arrays, leaves)):
        raise ValueError(
            "steps: checkpoint must be of a run with this key, size and state, of this "
            f"program on these data resampled in this way, got {file}. Remove the file to "
            "start again."
        )
    restored = [_restore(x, y) for x, y in zip(arrays, leaves, strict=True)]
    return step, jax.tree.unflatten(tree, restored)


def _read(file: Path) -> tuple[int, np.ndarray, list[np.ndarray]]:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as saved:
            arrays = [saved[f"arr_{i}"] for i in range(len(saved.files) - 2)]
            return int(saved["step"]), saved["run"], arrays
    except (ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(
            f"steps: checkpoint must be a file that steps wrote, got {file}, which cannot "
            "be read. Remove the file to start again."
        ) from error


def check_folder(file: Path) -> None:
    """Raise unless a checkpoint can be in this place."""
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise ValueError(
            f"steps: checkpoint must be a file in a folder that exists, got {file}."
        )


def _matches(array: np.ndarray, like: Any) -> bool:
    raw = _raw(like)
    if isinstance(like, np.ndarray):
        # States on the host may grow, and strings get longer.
        return array.dtype.kind == raw.dtype.kind and array.shape[:1] == raw.shape[:1]
    return array.dtype == raw.dtype and array.shape == raw.shape


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(x: Any) -> np.ndarray:
    """Return the bits of an array in a type that NumPy's files know."""
    array = np.asarray(jax.random.key_data(x) if _is_key(x) else x)
    # bfloat16 and other types of machine learning have no name in the file format.
    return array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array


def _restore(array: np.ndarray, like: Any) -> Any:
    if isinstance(like, np.ndarray):
        return array
    if _is_key(like):
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
    return jnp.asarray(array.view(like.dtype))
