"""Plates: independent lanes of a computation, each site drawn once for all lanes.

`vmap` repeats part of a model and is a structured primitive, because JAX's own batching
erases what a site in it means. `vmap_lanes` maps algorithms over lanes; draws recognize
its axis, so one unsplit key serves every lane.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax._src.interpreters import batching
from jax.api_util import flatten_axes
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

from motes.ppl import jaxprs
from motes.ppl.errors import AddressError, ShapeError, check_count, check_functions

LANE_AXIS = "motes.lane"

plate_p = Primitive("plate")
plate_p.multiple_results = True
lane_key_p = Primitive("lane_key")


def vmap(fun: Callable, in_axes: Any = 0, axis_size: int | None = None) -> Callable:
    """Repeat a part of a model over independent lanes.

    Each site inside has one leading axis more: its lanes are independent, whether or not
    its parameters differ between lanes. Use it in a model wherever you would use
    `jax.vmap`; a function without sites is mapped by `jax.vmap` itself.

    Args:
        fun: The function for one lane.
        in_axes: For each argument, the axis to map over or None, as in `jax.vmap`.
        axis_size: Number of lanes; needed when no argument is mapped.

    Raises:
        ShapeError: If the mapped axes have different sizes or there is none.
    """
    check_functions("vmap", fun=fun)
    if axis_size is not None:
        axis_size = check_count("vmap", "axis_size", axis_size, least=0)

    def mapped(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        axes = _flat_axes(in_axes, args)
        size = _lane_count(leaves, axes, axis_size)
        leaves = [
            x if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(leaves, axes, strict=True)
        ]
        is_mapped = [axis is not None for axis in axes]
        body, out_tree = jaxprs.trace(
            lambda *xs: fun(*jax.tree.unflatten(tree, xs)),
            *map(_lane_shape, leaves, is_mapped),
        )
        if not any(jaxprs.has_sites(eqn) for eqn in body.eqns):
            return jax.vmap(fun, in_axes=in_axes, axis_size=size)(*args)
        outs = plate_p.bind(
            *body.consts,
            *leaves,
            body=jaxprs.Block(body.jaxpr, ()),
            num_consts=len(body.consts),
            mapped=(*(False for _ in body.consts), *is_mapped),
            size=size,
        )
        return jax.tree.unflatten(out_tree, outs)

    return mapped


def vmap_lanes(
    fun: Callable, in_axes: Any = 0, num_lanes: int | None = None
) -> Callable:
    """Map an algorithm over lanes that share one key.

    Like `jax.vmap`, but operations of models inside `fun` may use one key from outside:
    each site then draws all its lanes in one call, and lanes are independent. This is
    how inference algorithms hold particles.

    Args:
        fun: The computation for one lane; it may close over a PRNG key.
        in_axes: As in `jax.vmap`.
        num_lanes: Number of lanes; needed when no argument is mapped.
    """
    if num_lanes is not None:
        num_lanes = check_count("vmap_lanes", "num_lanes", num_lanes, least=0)
    return jax.vmap(fun, in_axes, axis_size=num_lanes, axis_name=LANE_AXIS)


def lane_key(key: jax.Array) -> jax.Array:
    """Return a key that differs between the lanes of every surrounding plate."""
    return lane_key_p.bind(key)


def is_lane_axis(axis_data: Any) -> bool:
    """Whether a batching rule was called for a plate, not for a caller's own vmap."""
    return axis_data.name == LANE_AXIS


def _flat_axes(in_axes: Any, args: tuple) -> list[int | None]:
    axes = in_axes if isinstance(in_axes, tuple | list) else (in_axes,) * len(args)
    if len(axes) != len(args):
        raise ShapeError(
            f"vmap: in_axes must have one entry per argument, got {len(axes)} entries "
            f"for {len(args)} arguments."
        )
    tree = jax.tree.structure(args)
    return list(flatten_axes("vmap in_axes", tree, tuple(axes)))


def _lane_shape(leaf: Any, is_mapped: bool) -> Any:
    """Return the type that one lane sees; there may be no lane at all."""
    whole = jax.typeof(leaf)
    shape = whole.shape[1:] if is_mapped else whole.shape
    return jax.ShapeDtypeStruct(shape, whole.dtype, weak_type=whole.weak_type)


def _lane_count(leaves: list, axes: list, axis_size: int | None) -> int:
    pairs = zip(leaves, axes, strict=True)
    mapped = [(jnp.shape(x), axis) for x, axis in pairs if axis is not None]
    for shape, axis in mapped:
        if not -len(shape) <= axis < len(shape):
            raise ShapeError(
                f"vmap: a mapped argument must have axis {axis}, got shape {shape}. Give "
                "None in in_axes to map over none of its axes."
            )
    sizes = {shape[axis] for shape, axis in mapped}
    if axis_size is not None:
        sizes.add(axis_size)
    if len(sizes) != 1:
        raise ShapeError(
            f"vmap: the mapped axes must have one common size, got {sorted(sizes)}. "
            "Pass axis_size when no argument is mapped."
        )
    return sizes.pop()


def _outside_model(*args: Any, body: jaxprs.Block, **_: Any) -> list:
    # Reached only when a plate with sites is run as ordinary JAX: its sites complain.
    return jaxprs.evaluate(body, args)


@plate_p.def_abstract_eval
def _plate_shapes(*_: Any, body: jaxprs.Block, size: int, **__: Any) -> list:
    return [v.aval.update(shape=(size, *v.aval.shape)) for v in body.jaxpr.outvars]


def _refuse_batching(_: Any, __: Any, ___: Any, body: jaxprs.Block, **____: Any) -> Any:
    site = jaxprs.first_site(body)
    raise native_vmap_error(site.params["path"], site)


def native_vmap_error(path: tuple[str, ...], eqn: Any = None) -> AddressError:
    """Say that a site stands under JAX's own vmap inside a model."""
    where = f" ({jaxprs.source(eqn)})" if eqn is not None else ""
    return AddressError(
        f"sample: a site must not be under jax.vmap inside a model, got one at address "
        f"{'/'.join(path)!r}{where}. Use motes.ppl.vmap there."
    )


plate_p.def_impl(_outside_model)
mlir.register_lowering(plate_p, mlir.lower_fun(_outside_model, multiple_results=True))
batching.fancy_primitive_batchers[plate_p] = _refuse_batching

lane_key_p.def_impl(lambda key: key)
lane_key_p.def_abstract_eval(lambda key: key)
mlir.register_lowering(lane_key_p, lambda _, key: [key])


def keys_of_lanes(keys: jax.Array) -> jax.Array:
    """Make the keys of lanes differ: a branch under a batched predicate copies its key."""

    def lane(keys: jax.Array, index: jax.Array) -> jax.Array:
        fold = jax.vmap(jax.random.fold_in, (0, None))
        return fold(keys.reshape(-1), index).reshape(keys.shape)

    return jax.vmap(lane)(keys, jnp.arange(keys.shape[0]))


def _batch_lane_key(axis_data: Any, args: Any, dims: Any) -> tuple[Any, Any]:
    (key,), (dim,) = args, dims
    key = lane_key_p.bind(key)
    if not is_lane_axis(axis_data):
        return key, dim
    if dim is None:
        return jax.random.split(key, axis_data.size), 0
    return keys_of_lanes(jnp.moveaxis(key, dim, 0)), 0


batching.fancy_primitive_batchers[lane_key_p] = _batch_lane_key
ad.primitive_jvps[lane_key_p] = lambda keys, dots: (lane_key_p.bind(*keys), dots[0])
