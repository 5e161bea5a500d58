"""The sites of a traced model, read off its jaxpr before anything runs.

A site's full shape is its own shape behind the axes of the plates and scans around it.
The walk also finds what makes a model ill-formed: repeated addresses, sites in while
loops, branches that give one address two shapes.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from motes.ppl import jaxprs
from motes.ppl.densities import Packed
from motes.ppl.errors import AddressError, Path, ShapeError, format_path
from motes.ppl.jaxprs import Block


class Axis(NamedTuple):
    """One leading axis of a site: a plate's lanes or a scan's steps."""

    kind: str
    size: int


class Site(NamedTuple):
    """What is known about a site before the model runs.

    Attributes:
        path: Address with its scopes.
        axes: Plates and scans around the site, outermost first.
        value: Full shape and dtype of the value: a pytree of `ShapeDtypeStruct`.
        conditional: Whether only some branch of a `cond` or `switch` has the site.
        density: The density with array leaves replaced by what is known of them; None
            for a factor.
        source: Where the site was written.
    """

    path: Path
    axes: tuple[Axis, ...]
    value: Any
    conditional: bool
    density: Any
    source: str

    @property
    def is_factor(self) -> bool:
        return self.density is None

    @property
    def lane_shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def support(self) -> Any:
        """The support as a NumPyro constraint, or None where it is not declared."""
        try:
            return getattr(self.density, "support", None)
        except (TypeError, AttributeError, NotImplementedError, ValueError):
            return None  # it depends on parameters in a way that needs their values

    @property
    def is_discrete(self) -> bool:
        return getattr(self.support, "is_discrete", False) is True


SiteTable = dict[Path, Site]


def site_table(body: Block, axes: tuple[Axis, ...] = ()) -> SiteTable:
    """List the sites of a block.

    Raises:
        AddressError: If an address is repeated, is both a site and a scope, or stands in
            a construct without a fixed set of choices.
        ShapeError: If branches give one address two shapes or dtypes.
    """
    table: SiteTable = {}
    known = dict(zip(getattr(body.jaxpr, "constvars", ()), body.consts, strict=False))
    for eqn in body.eqns:
        if jaxprs.has_sites(eqn):
            for site in _sites_of(eqn, axes, known):
                _add(table, site)
    return table


def sites_in(eqn: Any) -> SiteTable:
    """List the sites inside one equation, with axes relative to it."""
    return {site.path: site for site in _sites_of(eqn, (), {})}


def _sites_of(eqn: Any, axes: tuple[Axis, ...], known: dict) -> Iterator[Site]:
    name = eqn.primitive.name
    if name in jaxprs.SITES:
        yield _site(eqn, axes, known)
    elif name == "scan":
        loop = jaxprs.loop(eqn)
        yield from _inside(loop.body, (*axes, Axis("scan", loop.length)))
    elif name == "plate":
        plate = Axis("plate", eqn.params["size"])
        yield from _inside(eqn.params["body"], (*axes, plate))
    elif name == "cond":
        yield from _branch_sites(jaxprs.branches(eqn), axes)
    elif name in jaxprs.INLINED:
        yield from _inside(jaxprs.called(eqn), axes)
    elif name in jaxprs.CHECKPOINT:
        yield from _inside(jaxprs.sub_blocks(eqn)[0], axes)
    else:
        raise _unsupported(eqn)


def _inside(body: Block, axes: tuple[Axis, ...]) -> Iterator[Site]:
    yield from site_table(body, axes).values()


def _site(eqn: Any, axes: tuple[Axis, ...], known: dict) -> Site:
    path, source = eqn.params["path"], jaxprs.source(eqn)
    if eqn.primitive.name == "factor":
        return Site(path, axes, None, False, None, source)
    packed: Packed = eqn.params["packed"]
    sizes = tuple(axis.size for axis in axes)
    leaves = [
        jax.ShapeDtypeStruct((*sizes, *shape), dtype)
        for shape, dtype in eqn.params["shapes"]
    ]
    value = jax.tree.unflatten(eqn.params["tree"], leaves)
    density = packed.unpack([_known_value(atom, known) for atom in eqn.invars])
    return Site(path, axes, value, False, density, source)


def _known_value(atom: Any, known: dict) -> Any:
    if (value := jaxprs.literal_value(atom)) is not None:
        return value
    value = known.get(atom)
    if value is None or isinstance(value, jax.core.Tracer):
        return jaxprs.avals([atom])[0]
    return value


def _branch_sites(bodies: list[Block], axes: tuple[Axis, ...]) -> Iterator[Site]:
    tables = [site_table(body, axes) for body in bodies]
    merged: SiteTable = {}
    for table in tables:
        for path, site in table.items():
            other = merged.setdefault(path, site)
            if _signature(other) != _signature(site):
                raise ShapeError(
                    f"sample: branches must give address {format_path(path)!r} one "
                    f"shape and dtype, got {_describe(other)} at {other.source} and "
                    f"{_describe(site)} at {site.source}. Use two addresses."
                )
    for path, site in merged.items():
        everywhere = all(path in table for table in tables)
        partly = any(table[path].conditional for table in tables if path in table)
        yield site._replace(conditional=partly or not everywhere)


def _signature(site: Site) -> Any:
    leaves, tree = jax.tree.flatten(site.value)
    return tree, [(x.shape, x.dtype) for x in leaves], site.is_factor, site.axes


def _describe(site: Site) -> str:
    if site.is_factor:
        return "a factor"
    return ", ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(site.value))


def _add(table: SiteTable, site: Site) -> None:
    if site.path in table:
        raise AddressError(
            f"sample: an address must be used once, got {format_path(site.path)!r} at "
            f"{table[site.path].source} and again at {site.source}. Rename one, or put "
            "one under motes.ppl.scope."
        )
    for other in table:
        size = min(len(other), len(site.path))
        if other[:size] == site.path[:size]:
            raise AddressError(
                f"sample: an address must not also be a scope, got "
                f"{format_path(other)!r} at {table[other].source} and "
                f"{format_path(site.path)!r} at {site.source}. Rename one."
            )
    table[site.path] = site


def _unsupported(eqn: Any) -> AddressError:
    inner = jaxprs.first_site_of(eqn)
    name = eqn.primitive.name
    what = "lax.while_loop" if name == "while" else name
    cure = (
        " Its number of choices is not fixed; use lax.scan with a lax.cond inside."
        if name == "while"
        else " Move the site out of it."
    )
    return AddressError(
        f"sample: a site must not be inside {what}, got one at address "
        f"{format_path(inner.params['path'])!r} ({jaxprs.source(inner)}).{cure}"
    )


def over_time(table: SiteTable, num_steps: int) -> SiteTable:
    """Return the sites of a step as they are in a scan of so many steps."""
    return {
        path: site._replace(
            axes=(Axis("scan", num_steps), *site.axes),
            value=jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((num_steps, *x.shape), x.dtype),
                site.value,
            ),
        )
        for path, site in table.items()
    }


def num_elements(site: Site) -> int:
    """Number of scalars in a site's value."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(site.value))
