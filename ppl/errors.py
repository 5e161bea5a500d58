"""Domain errors, how addresses are written in messages, and checks that calls share.

An address is a path of names; the site `x` in the scope `arm` is `arm/x` in messages and
`trace["arm", "x"]` in code. See `motes.ppl.choices` for how paths nest into choices.
"""

import difflib
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

Path = tuple[str, ...]


class AddressError(KeyError):
    """An address is unknown, repeated, or not allowed where it stands."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ShapeError(ValueError):
    """A value does not have the shape or dtype that its address has."""


def format_path(path: Path) -> str:
    """Write a path as it appears in messages."""
    return "/".join(path)


def format_paths(paths: Iterable[Path]) -> str:
    """List paths, sorted, for a message."""
    names = sorted(format_path(path) for path in paths)
    return ", ".join(repr(name) for name in names) if names else "no address"


def unknown_address(call: str, path: Path, known: Iterable[Path]) -> AddressError:
    """Say that `path` is not an address, with the nearest name and the list."""
    known = list(known)
    name = format_path(path)
    near = difflib.get_close_matches(name, [format_path(p) for p in known], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return AddressError(
        f"{call}: {name!r} must be an address of the model, which has "
        f"{format_paths(known)}.{hint}"
    )


def read_path(call: str, address: Any) -> Path:
    """Read an address: a name, a tuple of names, or names joined by `/`."""
    path = address.split("/") if isinstance(address, str) else address
    if isinstance(path, list | tuple) and all(isinstance(name, str) for name in path):
        return tuple(path)
    raise TypeError(
        f"{call}: an address must be a name, a path of names or 'scope/name', got "
        f"{describe(address)}."
    )


def check_count(call: str, name: str, value: Any, least: int = 1) -> int:
    """Return a whole number that is known when tracing; refuse all else."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{call}: {name} must be an integer known when tracing, got "
            f"{describe(value)}."
        ) from None
    if count < least:
        raise ValueError(f"{call}: {name} must be at least {least}, got {count}.")
    return count


def check_functions(call: str, **functions: Any) -> None:
    """Raise unless all can be called."""
    for name, value in functions.items():
        if not callable(value):
            raise TypeError(
                f"{call}: {name} must be a function, got {describe(value)}."
            )


def read_array(call: str, name: str, value: Any, address: str) -> jax.Array:
    """Return a value at an address as an array; refuse what is none."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{call}: {name} must be an array, got {describe(value)} at address "
            f"{address!r}."
        ) from None


def check_key(call: str, key: Any) -> jax.Array:
    """Return a PRNG key as a typed one; refuse all else, such as seeds or many keys."""
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.shape == ():
            return key
    elif dtype == jnp.uint32 and key.ndim == 1:
        return jax.random.wrap_key_data(key)
    raise TypeError(
        f"{call}: key must be one PRNG key, got {describe(key)}. Make it by "
        "jax.random.key(seed); map over several with jax.vmap."
    )


def is_known(value: Any) -> bool:
    """Whether a value can be looked at: it is not traced, nor a shape alone."""
    return not isinstance(value, Tracer | jax.ShapeDtypeStruct)


def describe(value: Any) -> str:
    """Write a value of any type for a message: arrays by their type, others in short."""
    if hasattr(value, "dtype") and getattr(value, "shape", ()):
        return f"{value.dtype}{list(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
