"""The structure of a model as a table: its sites and what each one depends on.

Site p is a parent of q if a value drawn at p flows into the density of q, or into the
predicate of a branch around q, through no other site; `motes.ppl.dataflow` finds them.
`motes.ppl.render` draws the graph.
"""

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from motes.ppl.dataflow import Flow, Frame, site_flow
from motes.ppl.errors import Path, format_path, unknown_address
from motes.ppl.site_table import Site


class SiteRow(NamedTuple):
    """What the structure says of one site.

    Attributes:
        address: Address with its scopes, `arm/x`.
        kind: `sample` or `factor`.
        density: Name of the density; empty for a factor.
        shape: Full shape, with the axes of plates and scans in front; a tuple of shapes
            if the value has several arrays.
        dtype: Dtype of the value; empty for a factor.
        support: The support as a NumPyro constraint, or None where it is not declared.
        current: Parents in the same step, in the order of the model.
        previous: Parents in an earlier step of a scan around both.
        frames: Plates and scans around the site, outermost first.
        conditional: Whether only some branch of a `cond` or `switch` has the site.
        source: Where the site was written.
    """

    address: str
    kind: str
    density: str
    shape: tuple
    dtype: str
    support: Any
    current: tuple[str, ...]
    previous: tuple[str, ...]
    frames: tuple[Frame, ...]
    conditional: bool
    source: str

    @property
    def parents(self) -> tuple[str, ...]:
        """Addresses of all parents; a site may be its own, in an earlier step."""
        return tuple(dict.fromkeys(self.current + self.previous))

    def cells(self) -> tuple[str, ...]:
        """Return the row as texts, one per column of the table."""
        inside = [str(frame) for frame in self.frames] + ["branch"] * self.conditional
        parents = [*self.current, *(f"{name}[t-1]" for name in self.previous)]
        shape = str(self.shape).replace(",)", ")") if self.kind == "sample" else ""
        support = format_support(self.support) if self.kind == "sample" else ""
        kind = self.density or self.kind
        columns = (self.address, kind, shape, self.dtype, support)
        return *columns, ", ".join(inside), ", ".join(parents)


_HEADER = ("address", "density", "shape", "dtype", "support", "inside", "parents")


@dataclass(frozen=True)
class Sites(Mapping):
    """The sites of a model by address, in program order; its repr is a table."""

    rows: dict[str, SiteRow]

    def __getitem__(self, address: str) -> SiteRow:
        if address not in self.rows:
            known = [tuple(name.split("/")) for name in self.rows]
            raise unknown_address("sites", tuple(address.split("/")), known)
        return self.rows[address]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        table = [_HEADER, *(row.cells() for row in self.rows.values())]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(n) for cell, n in zip(cells, widths, strict=True))
            for cells in table
        ]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _HEADER)
        body = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(c)}</td>" for c in row.cells())
            + "</tr>"
            for row in self.rows.values()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def sites(model: Any, *args: Any) -> Sites:
    """Tabulate the sites of a model: shapes, supports, parents, plates and scans.

    The table is read off the jaxpr; nothing is drawn.

    Args:
        model: A model.
        *args: Its arguments, or `jax.ShapeDtypeStruct`s in place of arrays.
    """
    program = model.program(*args)
    flow = site_flow(program.body)
    order = list(program.sites)
    rows = (_row(site, flow, order) for site in program.sites.values())
    return Sites({row.address: row for row in rows})


def _row(site: Site, flow: Flow, order: list[Path]) -> SiteRow:
    sources = flow.parents[site.path]
    previous = {path for path, delays in sources if delays}
    current = {path for path, delays in sources if not delays}
    leaves = jax.tree.leaves(site.value)
    shapes = tuple(leaf.shape for leaf in leaves)
    return SiteRow(
        format_path(site.path),
        "factor" if site.is_factor else "sample",
        "" if site.is_factor else density_name(site.density),
        shapes[0] if len(shapes) == 1 else shapes,
        ", ".join(dict.fromkeys(str(leaf.dtype) for leaf in leaves)),
        site.support,
        tuple(format_path(path) for path in order if path in current),
        tuple(format_path(path) for path in order if path in previous),
        flow.frames[site.path],
        site.conditional,
        site.source,
    )


def density_name(density: Any) -> str:
    """Name a density, without the wrappers that only change its batch shape."""
    wrappers = ("ExpandedDistribution", "Independent", "MaskedDistribution")
    while type(density).__name__ in wrappers:
        density = density.base_dist
    name = type(density).__name__.removesuffix("Distribution")
    return name.removesuffix("Probs").removesuffix("Logits")


def format_support(support: Any) -> str:
    """Write a support in a few letters; a bound that is not known yet is `?`."""
    if support is None:
        return "?"
    name = type(support).__name__.removeprefix("_")
    if name == "IndependentConstraint":
        return format_support(support.base_constraint)
    bounds = [
        (end, getattr(support, f"{end}_bound"))
        for end in ("lower", "upper")
        if hasattr(support, f"{end}_bound")
    ]
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
    if not bounds or words in ("positive", "nonnegative", "integer nonnegative"):
        return words
    return f"{words} ({', '.join(_bound(value) for _, value in bounds)})"


def _bound(value: Any) -> str:
    known = isinstance(value, int | float) or jnp.ndim(value) == 0
    is_shape = isinstance(value, jax.ShapeDtypeStruct | Tracer)
    return f"{float(value):g}" if known and not is_shape else "?"
