"""Drawing as a primitive that knows its plates.

Under a plate, a draw gains a lane instead of a key: `Draw` records the lanes and which
parameters vary over them, and all lanes come from one call of the distribution. Under a
caller's own `jax.vmap` over keys it does what JAX users expect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax._src.interpreters import batching
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir
from numpyro.distributions.batch_util import promote_batch_shape

from motes.ppl import gamma_draws
from motes.ppl.densities import (
    Packed,
    draw_shape,
    is_distribution,
    pack,
    rank_promotion,
)
from motes.ppl.jaxprs import random_size
from motes.ppl.plates import is_lane_axis, keys_of_lanes, lane_key

draw_p = Primitive("draw")
draw_p.multiple_results = True


class Lane(NamedTuple):
    """One batch axis of a draw: outermost first in `Draw.lanes`."""

    size: int
    has_keys: bool
    varies: tuple[bool, ...]  # which array leaves of the density have this axis


@dataclass(frozen=True)
class Draw:
    """A draw from a packed density over some lanes."""

    packed: Packed
    lanes: tuple[Lane, ...] = ()

    def __call__(self, key: Any, arrays: Sequence[Any]) -> list[Any]:
        """Return the flat values, each with the lanes' axes in front."""
        if not all(lane.size for lane in self.lanes):
            shapes = _draw_shapes(key, *arrays, draw=self)
            return [jnp.zeros(s.shape, s.dtype) for s in shapes]
        with rank_promotion():
            return self._values(key, arrays)

    def _values(self, key: Any, arrays: Sequence[Any]) -> list[Any]:
        if not self.lanes:
            return _draw_once(key, self.packed.unpack(arrays))
        if not any(lane.has_keys for lane in self.lanes):
            values = self._draw_together(key, arrays)
            if values is not None:
                return values
        outer, inner = self.lanes[0], Draw(self.packed, self.lanes[1:])
        keys = key if outer.has_keys else jax.random.split(key, outer.size)
        axes = [0 if varies else None for varies in outer.varies]
        return jax.vmap(inner, in_axes=(0, axes))(keys, list(arrays))

    def _draw_together(self, key: Any, arrays: Sequence[Any]) -> list[Any] | None:
        """Draw all lanes in one call, or return None where that is not possible."""
        density = self.packed.unpack(arrays)
        if not is_distribution(density):
            return None
        sizes = tuple(lane.size for lane in self.lanes)
        if not any(any(lane.varies) for lane in self.lanes):
            return [gamma_draws.sample(density, key, sizes)]
        arrays = [self._spread(i, x, sizes) for i, x in enumerate(arrays)]
        try:
            batched = promote_batch_shape(self.packed.unpack(arrays))
            shape, drawn = random_size(partial(gamma_draws.sample, batched))
        except (NotImplementedError, ValueError, TypeError):
            return None
        # A distribution may have the right shape and yet spread one draw over lanes.
        first = self._first_lane(arrays)
        lane_shape, needed = random_size(partial(gamma_draws.sample, first))
        if shape != sizes + lane_shape or drawn < math.prod(sizes) * needed:
            return None
        return [gamma_draws.sample(batched, key)]

    def _first_lane(self, arrays: Sequence[Any]) -> Any:
        """Return the density of the first lane, from arrays that were spread."""
        first = (0,) * len(self.lanes)
        varies = zip(*(lane.varies for lane in self.lanes), strict=True)
        pairs = zip(arrays, varies, strict=True)
        return self.packed.unpack([x[first] if any(v) else x for x, v in pairs])

    def _spread(self, index: int, array: Any, sizes: tuple[int, ...]) -> Any:
        """Give a leaf that varies over some lanes an axis for every lane."""
        present = [lane.varies[index] for lane in self.lanes]
        if not any(present):
            return array
        own = array.shape[sum(present) :]
        lanes = tuple(n if has else 1 for n, has in zip(sizes, present, strict=True))
        return jnp.broadcast_to(array.reshape(*lanes, *own), (*sizes, *own))


def draw(key: Any, density: Any) -> list[Any]:
    """Draw from a density: `[value]` of a distribution, else `[value, log density]`.

    Values of several arrays come flat; `motes.ppl.interpreter` restores their structure.
    """
    arrays, packed = pack(density)
    return draw_p.bind(key, *arrays, draw=Draw(packed))


def _draw_once(key: Any, density: Any) -> list[Any]:
    if is_distribution(density):
        return [gamma_draws.sample(density, key)]
    return jax.tree.leaves(density.sample_with_log_density(key))


def _evaluate(key: Any, *arrays: Any, draw: Draw) -> list[Any]:
    # Some families draw another dtype in a batch than alone: the declared one counts.
    declared = _draw_shapes(key, *arrays, draw=draw)
    values = draw(key, arrays)
    return [x.astype(s.dtype) for x, s in zip(values, declared, strict=True)]


def _draw_shapes(_: Any, *arrays: Any, draw: Draw) -> list[Any]:
    sizes = tuple(lane.size for lane in draw.lanes)
    own = tuple(
        jax.ShapeDtypeStruct(
            a.shape[sum(lane.varies[i] for lane in draw.lanes) :], a.dtype
        )
        for i, a in enumerate(arrays)
    )
    drawn = jax.tree.leaves(draw_shape(draw.packed, own))
    return [jax.core.ShapedArray((*sizes, *s.shape), s.dtype) for s in drawn]


def _batch_draw(axis_data: Any, args: Any, dims: Any, *, draw: Draw) -> Any:
    moved = [
        x if dim is None else jnp.moveaxis(x, dim, 0)
        for x, dim in zip(args, dims, strict=True)
    ]
    has_keys = dims[0] is not None
    if not has_keys and not is_lane_axis(axis_data):
        return _batch_with_one_key(axis_data, moved, dims, draw)
    if has_keys and is_lane_axis(axis_data):
        moved[0] = keys_of_lanes(moved[0])
    varies = tuple(dim is not None for dim in dims[1:])
    lane = Lane(axis_data.size, has_keys, varies)
    values = draw_p.bind(*moved, draw=replace(draw, lanes=(lane, *draw.lanes)))
    return values, [0] * len(values)


def _batch_with_one_key(axis_data: Any, args: Any, dims: Any, draw: Draw) -> Any:
    """Under a caller's own vmap that does not map the key, every lane has that key."""
    if all(dim is None for dim in dims):
        values = draw_p.bind(*args, draw=draw)
        return values, [None] * len(values)
    keys = jax.numpy.broadcast_to(args[0], (axis_data.size, *args[0].shape))
    lane = Lane(axis_data.size, True, tuple(dim is not None for dim in dims[1:]))
    values = draw_p.bind(keys, *args[1:], draw=replace(draw, lanes=(lane, *draw.lanes)))
    return values, [0] * len(values)


def _differentiate(primals: Any, tangents: Any, *, draw: Draw) -> Any:
    """Differentiate pathwise; lanes of plates outside keep independent draws."""
    key, *arrays = primals
    key = lane_key(key)
    dots = [ad.instantiate_zeros(t) for t in tangents[1:]]
    return jax.jvp(lambda *xs: draw(key, xs), arrays, dots)


draw_p.def_abstract_eval(_draw_shapes)
draw_p.def_impl(jax.jit(_evaluate, static_argnames="draw"))
mlir.register_lowering(draw_p, mlir.lower_fun(_evaluate, multiple_results=True))
batching.fancy_primitive_batchers[draw_p] = _batch_draw
ad.primitive_jvps[draw_p] = _differentiate
