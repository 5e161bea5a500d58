"""What may stand at a site: a density that can be drawn from and evaluated.

A `numpyro.distributions` object is one, and so is any pytree with the two methods of
`Density`; the density may be an unbiased estimate. `Packed` splits a density into array
leaves, which flow through JAX, and everything else, which is static.
"""

from functools import lru_cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Key

from motes.ppl import gamma_draws


@runtime_checkable
class Density(Protocol):
    """A distribution with an exact density or an unbiased estimate of it.

    An optional attribute `support`, a `numpyro.distributions.constraints` object, lets
    `unconstrained` and the check of constraints use it.
    """

    def sample_with_log_density(self, key: Key[Array, ""]) -> tuple[Any, Array]:
        """Draw a value; return it with its log density, in nats."""
        ...

    def log_density(self, key: Key[Array, ""], value: Any) -> Float[Array, ""]:
        """Return the log density of `value`; `key` is used only by estimates."""
        ...


class Packed(NamedTuple):
    """The static part of a density: structure, constants, which leaves are arrays."""

    treedef: Any
    constants: tuple[Any, ...]
    is_array: tuple[bool, ...]

    def unpack(self, arrays: Any) -> Any:
        """Rebuild the density around its array leaves."""
        arrays = iter(arrays)
        pairs = zip(self.constants, self.is_array, strict=True)
        leaves = [next(arrays) if flag else constant for constant, flag in pairs]
        return jax.tree.unflatten(self.treedef, leaves)


def pack(density: Any) -> tuple[list[Any], Packed]:
    """Split a density into array leaves and the static rest."""
    leaves, treedef = jax.tree.flatten(density)
    is_array = tuple(isinstance(x, jax.Array | np.ndarray) for x in leaves)
    pairs = list(zip(leaves, is_array, strict=True))
    constants = tuple(None if flag else x for x, flag in pairs)
    arrays = [jnp.asarray(x) for x, flag in pairs if flag]
    return arrays, Packed(treedef, constants, is_array)


def check_density(call: str, address: str, density: Any) -> None:
    """Raise unless `density` may stand at a site."""
    if isinstance(density, dist.Distribution) or isinstance(density, Density):
        return
    raise TypeError(
        f"{call}: density must be a numpyro distribution or have the methods "
        f"sample_with_log_density(key) and log_density(key, value), got "
        f"{type(density).__name__} at address {address!r}."
    )


def rank_promotion() -> Any:
    """Let distributions broadcast as they are written to, whatever the caller forbids."""
    return jax.numpy_rank_promotion("allow")


def is_distribution(density: Any) -> bool:
    """Whether a density is one of NumPyro's."""
    return isinstance(density, dist.Distribution)


def elementwise_log_density(density: Any, key: Any, value: Any) -> Array:
    """Return the log density with the batch shape of a distribution kept.

    A value outside the support has log density `-inf`, whatever the distribution's own
    formula says there.
    """
    if not is_distribution(density):
        return density.log_density(key, value)
    with rank_promotion():
        log_prob = density.log_prob(value)
        inside = in_support(density, value)
    if inside is None:
        return log_prob
    inside = jnp.broadcast_to(inside, jnp.shape(log_prob))
    return jnp.where(inside, log_prob, -jnp.inf)


def in_support(density: dist.Distribution, value: Any) -> Array | None:
    """Return which batch elements lie in the support, or None if all must."""
    support = density.support
    if support is None or _is_everything(support):
        return None
    return support(value)


def _is_everything(support: Any) -> bool:
    if isinstance(
        support, type(dist.constraints.independent(dist.constraints.real, 1))
    ):
        return _is_everything(support.base_constraint)
    return support in (dist.constraints.real, dist.constraints.real_vector)


def draw_with_log_density(draw: Any, density: Any, key: Any) -> tuple[Any, Array]:
    """Draw through `draw(key, density)` and evaluate the draw."""
    if is_distribution(density):
        (value,) = draw(key, density)
        with rank_promotion():
            return value, jnp.sum(density.log_prob(value))
    *value, log_density = draw(key, density)
    return value, log_density


def draw_shape(packed: Packed, avals: tuple[Any, ...]) -> Any:
    """Return the shape of a draw: the value, or `(value, log density)` if not NumPyro's."""
    return _draw_shape(packed, avals, jnp.result_type(float))


# Inside an abstract evaluation JAX has no trace that could make a key.
_KEY = jax.eval_shape(jax.random.key, 0)


@lru_cache(maxsize=4096)
def _draw_shape(packed: Packed, avals: tuple[Any, ...], precision: Any) -> Any:
    del precision  # the default dtype is part of the cache's key

    def draw(key: Any, arrays: Any) -> Any:
        density = packed.unpack(arrays)
        if is_distribution(density):
            return gamma_draws.sample(density, key)
        return density.sample_with_log_density(key)

    with rank_promotion():
        return jax.eval_shape(draw, _KEY, list(avals))


def value_shape(packed: Packed, arrays: Any) -> Any:
    """Return the shape and dtype of a density's values."""
    avals = tuple(jax.ShapeDtypeStruct(jnp.shape(x), x.dtype) for x in arrays)
    shape = draw_shape(packed, avals)
    return shape[0] if isinstance(shape, tuple) else shape
