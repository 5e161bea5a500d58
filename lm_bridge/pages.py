r"""Rows of memory for particles that are resampled, in pages along their texts.

A page has a row for each particle, and all pages share the rows. Resampling only notes
which row each particle continues; `settle` then copies rows of parents with several
children over rows of the childless, in place.

To resample the cache of four layers once (128 particles, 32 tokens, one core) takes 1.3 ms
if only such rows are copied, 4.7 ms if all rows are gathered; to read through a table of
ancestors costs 4.9 ms at every step: `benchmarks/lm_cache.py`. Accelerators scatter.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

MIN_PAGE = 16
"""Number of tokens in the first page."""


def page_sizes(max_tokens: int) -> list[int]:
    """Return sizes of pages: each as large as all before it, the last what is left."""
    sizes = [min(MIN_PAGE, max_tokens)]
    while sum(sizes) < max_tokens:
        sizes.append(min(sum(sizes), max_tokens - sum(sizes)))
    return sizes


def write(
    page: Float[Array, "N K S D"], new: Float[Array, "N K D"], slots: Int[Array, " N"]
) -> Float[Array, "N K S D"]:
    """Write each row's entry at its own slot; a slot out of range writes nothing."""
    size = page.shape[2]
    # Negative slots would count from the end.
    slots = jnp.where(slots < 0, size, slots)

    def write_row(row: Array, entry: Array, slot: Array) -> Array:
        return row.at[:, slot].set(entry, mode="drop")

    return jax.vmap(write_row)(page, new, slots)


def settle(
    pages: Any, rows: Int[Array, " N"], shared: Bool[Array, ""]
) -> tuple[Any, Int[Array, " N"]]:
    """Give each particle a row of its own, if some are shared.

    Args:
        pages: A pytree of `(N, K, S, D)` arrays, or with further leading axes.
        rows: The row that each particle continues.
        shared: Whether particles may share a row.

    Returns:
        The pages, and rows that are all different.
    """

    def move(carry: tuple[Any, Array, Array]) -> tuple[Any, Array, Array]:
        pages, rows, _ = carry
        sources, targets, rows = _moves(rows)
        moved = jax.tree.map(lambda page: _copy_rows(page, sources, targets), pages)
        return moved, rows, jnp.zeros((), bool)

    # A loop of at most one turn: what passes through a `cond` is copied, here it is not.
    carry = lax.while_loop(lambda carry: carry[2], move, (pages, rows, shared))
    return carry[0], carry[1]


def _moves(rows: Int[Array, " N"]) -> tuple[Array, Array, Array]:
    """Return which rows to copy, where to (N for none), and each particle's own row.

    The first child of a row keeps it. The others and the free rows are both in order, so
    in consecutive blocks of particles rows stay within their block.
    """
    num = rows.shape[0]
    index = jnp.arange(num, dtype=rows.dtype)
    heirs = jnp.full(num, num, rows.dtype).at[rows].min(index)
    homeless = jnp.flatnonzero(heirs[rows] != index, size=num, fill_value=num)
    free = jnp.flatnonzero(heirs == num, size=num, fill_value=num).astype(rows.dtype)
    sources = rows.at[homeless].get(mode="clip")
    return sources, free, rows.at[homeless].set(free, mode="drop")


def _copy_rows(page: Array, sources: Array, targets: Array) -> Array:
    """Copy rows of a page; no target is a source."""
    axis = page.ndim - 4
    scatter = partial(_scatter_rows, axis)
    if jax.default_backend() != "cpu":
        return scatter(page, sources, targets)
    copy = custom_vmap(partial(_copy_one_by_one, axis))

    @copy.def_vmap
    def _(size: int, batched: Any, *operands: Array) -> tuple[Array, bool]:
        # A batched number of turns would select between whole pages in each.
        axes = [0 if is_batched else None for is_batched in batched]
        return jax.vmap(scatter, axes, axis_size=size)(*operands), True

    return copy(page, sources, targets)


def _copy_one_by_one(axis: int, page: Array, sources: Array, targets: Array) -> Array:
    def copy(i: Array, page: Array) -> Array:
        row = lax.dynamic_index_in_dim(page, sources[i], axis)
        return lax.dynamic_update_slice_in_dim(page, row, targets[i], axis)

    return lax.fori_loop(0, jnp.sum(targets < page.shape[axis]), copy, page)


def _scatter_rows(axis: int, page: Array, sources: Array, targets: Array) -> Array:
    taken = jnp.take(page, sources, axis=axis, mode="clip")
    at = (slice(None),) * axis + (targets,)
    return page.at[at].set(taken, mode="drop", unique_indices=True)
