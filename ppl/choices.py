"""Choices and constraints: nested dicts of arrays, one entry per address.

`masked(value, mask)` marks an entry that counts only where `mask` is true: a choice that
some branch did not make, or a constraint on part of an array (missing data).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from motes.ppl.errors import (
    AddressError,
    Path,
    ShapeError,
    describe,
    format_path,
    is_known,
    read_array,
    unknown_address,
)
from motes.ppl.nesting import Choices, check_choices, check_name, nest
from motes.ppl.site_table import Site, SiteTable

_INDEPENDENT = type(constraints.independent(constraints.real, 1))


class Masked(NamedTuple):
    """A value that counts only where `mask` is true.

    Attributes:
        value: The value, of the site's full shape.
        mask: Booleans whose shape is a prefix of the shape of `value`.
    """

    value: Any
    mask: Any


def masked(value: Any, mask: Any) -> Masked:
    """Constrain, or read, only the part of `value` where `mask` is true.

    Args:
        value: Array of the site's shape; entries where the mask is false are ignored and
            may be anything finite.
        mask: Booleans whose shape is a prefix of the shape of `value`.
    """
    flags = None if mask is None else jnp.asarray(mask)
    if flags is None or flags.dtype != bool:
        raise TypeError(
            f"masked: mask must hold booleans, got {describe(mask)}. The value is first."
        )
    return Masked(value, flags)


class Entry(NamedTuple):
    """A value at an address, inside the library; `mask` None means everywhere."""

    value: Any
    mask: Any = None


Entries = dict[Path, Entry]


def to_choices(entries: Entries) -> Choices:
    """Write entries as choices, conditional ones as `Masked`."""
    return nest(
        {
            path: entry.value if entry.mask is None else Masked(*entry)
            for path, entry in entries.items()
        }
    )


def read_entries(
    call: str, choices: Any, table: SiteTable, any_value: bool = False
) -> Entries:
    """Check choices against the sites of a model and bring them to its dtypes.

    With `any_value` they may lie outside the supports.

    Raises:
        AddressError: If an address is not one of the model.
        ShapeError: If a value has not the shape or the kind of dtype of its site.
        ValueError: If a concrete value lies outside a support that is known.
    """
    check_choices(call, choices)
    entries: Entries = {}
    _collect(call, choices, table, (), entries)
    for path, entry in () if any_value else entries.items():
        _check_support(call, entry.value, entry.mask, table[path])
    return entries


def require_all(call: str, entries: Entries, table: SiteTable) -> None:
    """Raise unless every site that is always made has a value."""
    for path, site in table.items():
        if not (site.is_factor or site.conditional or path in entries):
            raise AddressError(
                f"{call}: choices must give every address, got none at address "
                f"{format_path(path)!r}. Use generate to fill in what is missing."
            )


def require_whole(call: str, entries: Entries, table: SiteTable) -> None:
    """Raise if a site that is always made is known to have a value only in part."""
    for path, entry in entries.items():
        if table[path].conditional or entry.mask is None or not is_known(entry.mask):
            continue
        if not is_whole(entry):
            raise AddressError(
                f"{call}: choices must be given everywhere, got a mask that is not true "
                f"throughout at address {format_path(path)!r}. Use generate to fill in "
                "what is missing."
            )


def is_whole(entry: Entry) -> bool:
    """Whether an entry is known to count everywhere."""
    mask = entry.mask
    return mask is None or (is_known(mask) and bool(np.all(mask)))


def _collect(call: str, node: Any, table: SiteTable, path: Path, out: Entries) -> None:
    if path in table:
        out[path] = _read_entry(call, node, table[path], table)
        return
    if not isinstance(node, Mapping):
        raise unknown_address(call, path, _choice_paths(table))
    prefixes = {known[: len(path) + 1] for known in table}
    for name, child in node.items():
        inner = (*path, name)
        if inner not in prefixes:
            check_name(call, name)
            raise unknown_address(call, inner, _choice_paths(table))
        _collect(call, child, table, inner, out)


def _choice_paths(table: SiteTable) -> list[Path]:
    return [path for path, site in table.items() if not site.is_factor]


def _read_entry(call: str, given: Any, site: Site, table: SiteTable) -> Entry:
    if site.is_factor:
        raise AddressError(
            f"{call}: a factor has no value to give, got one at address "
            f"{format_path(site.path)!r}. The choices are "
            f"{_list(_choice_paths(table))}."
        )
    value, mask = given if isinstance(given, Masked) else (given, None)
    leaves, tree = jax.tree.flatten(site.value)
    if len(leaves) == 1 and jax.tree.structure(0) == tree:
        given_leaves = [value]
    else:
        given_leaves = _match_tree(call, value, tree, site)
    arrays = [
        _read_array(call, x, want, site)
        for x, want in zip(given_leaves, leaves, strict=True)
    ]
    mask = None if mask is None else _read_mask(call, mask, leaves, site)
    return Entry(jax.tree.unflatten(tree, arrays), mask)


def _list(paths: list[Path]) -> str:
    return ", ".join(repr(format_path(path)) for path in sorted(paths))


def _match_tree(call: str, value: Any, tree: Any, site: Site) -> list[Any]:
    if jax.tree.structure(value) != tree:
        raise ShapeError(
            f"{call}: a value must have the structure of its site, got "
            f"{jax.tree.structure(value)} instead of {tree} at address "
            f"{format_path(site.path)!r}."
        )
    return jax.tree.leaves(value)


def _read_array(call: str, given: Any, want: Any, site: Site) -> jax.Array:
    array = read_array(call, "a value", given, format_path(site.path))
    if array.shape != want.shape:
        raise ShapeError(
            f"{call}: a value must have shape {want.shape}, got {array.shape} at "
            f"address {format_path(site.path)!r}."
        )
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    rank = [next(i for i, k in enumerate(kinds) if jnp.issubdtype(d, k))
            for d in (array.dtype, want.dtype)]  # fmt: skip
    if rank[0] > rank[1]:
        raise ShapeError(
            f"{call}: a value must have dtype {want.dtype}, got {array.dtype} at "
            f"address {format_path(site.path)!r}."
        )
    return array.astype(want.dtype)


def _read_mask(call: str, mask: Any, leaves: list[Any], site: Site) -> jax.Array:
    mask = jnp.asarray(mask, bool)
    shape = leaves[0].shape
    lanes = site.lane_shape
    if mask.shape != shape[: mask.ndim]:
        raise ShapeError(
            f"{call}: a mask must have a shape that is a prefix of {shape}, got "
            f"{mask.shape} at address {format_path(site.path)!r}."
        )
    if mask.ndim < len(lanes):
        mask = mask.reshape(mask.shape + (1,) * (len(lanes) - mask.ndim))
        mask = jnp.broadcast_to(mask, lanes)
    batch = getattr(site.density, "batch_shape", ())
    if mask.ndim > len(lanes) + len(batch):
        raise ShapeError(
            f"{call}: a mask must not split an event, got shape {mask.shape} for batch "
            f"shape {(*lanes, *batch)} at address {format_path(site.path)!r}."
        )
    return mask


def _check_support(call: str, value: Any, mask: Any, site: Site) -> None:
    support = site.support
    concrete = all(map(is_known, jax.tree.leaves((value, mask))))
    if support is None or not concrete or not is_fixed(support):
        return
    elementwise = support
    while isinstance(elementwise, _INDEPENDENT):
        elementwise = elementwise.base_constraint
    with jax.ensure_compile_time_eval():  # on NumPy arrays most checks compile nothing
        inside = np.asarray(elementwise(jax.tree.map(np.asarray, value)))
    if mask is not None:
        mask = np.asarray(mask)
        extra = inside.ndim - mask.ndim
        inside = inside | ~mask.reshape(mask.shape + (1,) * extra)
    if not inside.all():
        raise ValueError(
            f"{call}: a value must lie in the support {support}, got "
            + _first_outside(np.asarray(jax.tree.leaves(value)[0]), inside, site.path)
        )


def _first_outside(value: np.ndarray, inside: np.ndarray, path: Path) -> str:
    """Describe the first entry outside a support, and say how many there are."""
    index = tuple(int(i[0]) for i in np.nonzero(~inside)) if inside.ndim else ()
    entry = value[index]
    text = f"{entry} at address {format_path(path)!r}"
    if index:
        text += f", index {index}, the first of {(~inside).sum()} among {inside.size}"
    if np.isnan(entry).any():
        text += ". Mark missing data with masked(value, mask)"
    return f"{text}."


def is_fixed(support: Any) -> bool:
    """Whether a constraint's bounds are known before the model runs."""
    return all(map(is_known, jax.tree.leaves(support)))
