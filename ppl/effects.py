"""The effects of a model: `sample`, `factor` and the names they stand under.

Each effect binds one JAX primitive, so a traced model is an ordinary jaxpr with named
sites in it. `motes.ppl.interpreter` gives the sites a meaning.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.interpreters import batching
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

from motes.ppl import jaxprs
from motes.ppl.densities import check_density, pack, value_shape
from motes.ppl.errors import AddressError, Path, ShapeError, format_path, read_array
from motes.ppl.plates import native_vmap_error

jaxprs.hide_frames(__file__)

# Part of JAX's own tracing context: a cached trace is never reused under another scope.
_scope = jax.make_user_context(())


def current_path() -> Path:
    """Return the names of the scopes around the code that is being traced."""
    return _scope.value


@contextmanager
def scope(*names: str) -> Iterator[None]:
    """Put the sites inside under `names`: `x` in `scope("arm")` is `arm/x`."""
    for name in names:
        _check_name("scope", name)
    with _scope(current_path() + names):
        yield


def root_scope() -> Any:
    """Return a context without scopes: a model is traced in one of its own."""
    return _scope(())


def sample(address: str, density: Any) -> Any:
    """Make the random choice `address` of the model.

    A custom derivative (`jax.custom_jvp`, `jax.custom_vjp`) around a site does not apply:
    operations differentiate the function's body. Around code without sites it does.

    Args:
        address: Name of the choice, unique in its scope, without `/`.
        density: A `numpyro.distributions` object, or a pytree with the methods
            `sample_with_log_density(key)` and `log_density(key, value)`.

    Returns:
        The value of the choice, decided by the operation that runs the model.

    Raises:
        AddressError: If the site stands outside any model or under `jax.vmap`.
        TypeError: If `density` is neither of the two kinds.
    """
    _check_name("sample", address)
    check_density("sample", address, density)
    arrays, packed = pack(density)
    leaves, tree = jax.tree.flatten(value_shape(packed, arrays))
    values = sample_p.bind(
        *arrays,
        path=(*current_path(), address),
        packed=packed,
        tree=tree,
        shapes=tuple((leaf.shape, leaf.dtype) for leaf in leaves),
    )
    return jax.tree.unflatten(tree, values)


def factor(address: str, log_weight: Any) -> None:
    """Multiply the density of the model by `exp(log_weight)`, in nats.

    Raises:
        ShapeError: If `log_weight` is not a scalar.
        TypeError: If it is not a real number.
    """
    _check_name("factor", address)
    log_weight = read_array("factor", "log_weight", log_weight, address)
    if jnp.issubdtype(log_weight.dtype, jnp.complexfloating):
        raise TypeError(
            f"factor: log_weight must be real, got {log_weight.dtype} at address "
            f"{address!r}."
        )
    log_weight = log_weight.astype(jnp.result_type(float, log_weight))
    if log_weight.shape != ():
        raise ShapeError(
            f"factor: log_weight must be a scalar, got shape {log_weight.shape} at "
            f"address {address!r}. Sum it, or put the factor under motes.ppl.vmap."
        )
    factor_p.bind(log_weight, path=(*current_path(), address))


def _check_name(call: str, name: Any) -> None:
    if not isinstance(name, str) or not name or "/" in name:
        raise AddressError(
            f"{call}: address must be a non-empty string without '/', got {name!r}."
        )


def _outside(*_: Any, path: Path, **__: Any) -> Any:
    raise AddressError(
        f"sample: a site must stand in a model that an operation runs, got address "
        f"{format_path(path)!r} outside. Decorate the function with @model and call "
        "simulate, generate or log_density."
    )


def _under_vmap(_: Any, __: Any, ___: Any, *, path: Path, **____: Any) -> Any:
    raise native_vmap_error(path)


def _under_grad(*_: Any, path: Path, **__: Any) -> Any:
    raise AddressError(
        f"sample: a site must not be differentiated inside a model, got one at address "
        f"{format_path(path)!r}. Differentiate log_density, outside the model."
    )


def _refuse(primitive: Primitive) -> None:
    primitive.def_impl(_outside)
    lowering: Callable = lambda _, *args, **params: _outside(*args, **params)  # noqa: E731
    mlir.register_lowering(primitive, lowering)
    batching.fancy_primitive_batchers[primitive] = _under_vmap
    ad.primitive_jvps[primitive] = _under_grad


sample_p = Primitive("sample")
sample_p.multiple_results = True
factor_p = Primitive("factor")
factor_p.multiple_results = True
_refuse(sample_p)
_refuse(factor_p)


@sample_p.def_abstract_eval
def _sample_shapes(*_: Any, shapes: Any, **__: Any) -> list[Any]:
    return [jax.core.ShapedArray(shape, dtype) for shape, dtype in shapes]


@factor_p.def_effectful_abstract_eval
def _factor_shapes(_: Any, *, path: Path) -> tuple[list[Any], Any]:
    return [], frozenset()
