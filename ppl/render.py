"""Pictures of models: the dependency graph with its plates and scans as nested boxes.

An ellipse is a choice, a box a factor; shaded ones are observed, dashed outlines stand
in some branch only. A dashed edge comes from an earlier step of a scan.
"""

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from motes.ppl.choices import read_entries
from motes.ppl.dataflow import Frame
from motes.ppl.errors import format_path
from motes.ppl.layout import Box, Layout, Point, layout
from motes.ppl.model import Model
from motes.ppl.nesting import Choices, merge
from motes.ppl.structure import SiteRow, Sites, sites
from motes.ppl.transforms import Conditioned, as_target

_MARGIN = 12.0
_LOOP_ROOM = 26.0
_FILLS = {None: "white", False: "#ececec", True: "#c9c9c9"}


@dataclass(frozen=True)
class Graph:
    """The dependency graph of a model; notebooks show it as a picture.

    Attributes:
        sites: The sites, with their parents and the plates and scans around them.
        observed: Addresses that are fixed: True everywhere, False only in part.
    """

    sites: Sites
    observed: Mapping[str, bool]

    @property
    def source(self) -> str:
        """The graph in Graphviz's language."""
        names = {address: f"n{i}" for i, address in enumerate(self.sites)}
        lines = ["digraph model {", *_dot_cluster(self, names, list(self.sites), 0)]
        for parent, child, is_previous in _edges(self.sites):
            style = " [style=dashed, constraint=false]" if is_previous else ""
            lines.append(f"  {names[parent]} -> {names[child]}{style};")
        return "\n".join([*lines, "}"])

    @property
    def svg(self) -> str:
        """The graph as a picture; made here, without Graphviz."""
        rows = self.sites.rows
        sizes = {address: _size(row) for address, row in rows.items()}
        edges = dict.fromkeys(
            _downwards(self.sites, a, b) for a, b, _ in _edges(self.sites)
        )
        edges = [(a, b) for a, b in edges if a != b]
        placed = layout(
            sizes, {a: row.frames for a, row in rows.items()}, edges, _rooms(self.sites)
        )
        return _svg(self, placed)

    def _repr_svg_(self) -> str:
        return self.svg


def render(
    model: Model | Conditioned, *args: Any, constraints: Choices | None = None
) -> Graph:
    """Draw the dependency graph of a model, computed from its jaxpr.

    Args:
        model: A model, or `condition(model, constraints)`.
        *args: Its arguments.
        constraints: Choices to show as observed.

    Raises:
        AddressError: If a constraint is on an unknown address.
    """
    constraints = constraints or {}
    target = as_target("render", model)
    model, constraints = target.model, merge(target.constraints, constraints)
    entries = read_entries("render", constraints, model.program(*args).sites)
    observed = {format_path(path): e.mask is None for path, e in entries.items()}
    return Graph(sites(model, *args), observed)


def _edges(table: Sites) -> list[tuple[str, str, bool]]:
    """List parent, child, and whether the edge comes from an earlier step."""
    edges = []
    for child, row in table.rows.items():
        edges += [(parent, child, False) for parent in row.current]
        edges += [(parent, child, True) for parent in row.previous]
    return edges


def _downwards(table: Sites, parent: str, child: str) -> tuple[str, str]:
    """Order the ends of an edge as the model does: only earlier steps point back."""
    order = list(table)
    is_down = order.index(parent) <= order.index(child)
    return (parent, child) if is_down else (child, parent)


def _rooms(table: Sites) -> dict[Frame, float]:
    """Keep space for loops at the right side of scans."""
    loops = [row for address, row in table.rows.items() if address in row.previous]
    return {frame: _LOOP_ROOM / 2 for row in loops for frame in row.frames[-1:]}


def _size(row: SiteRow) -> tuple[float, float]:
    text = max(7.6 * len(row.address), 6.2 * len(row.density))
    return text + 30.0, 42.0 if row.density else 26.0


def _dot_cluster(
    graph: Graph, names: dict, members: list[str], depth: int
) -> list[str]:
    lines, done = [], set()
    indent = "  " * (depth + 1)
    for address in members:
        frames = graph.sites[address].frames
        if len(frames) == depth:
            lines.append(f"{indent}{names[address]} [{_dot_style(graph, address)}];")
        elif frames[depth] not in done:
            frame = frames[depth]
            done.add(frame)
            inside = [a for a in members if frame in graph.sites[a].frames]
            lines.append(f"{indent}subgraph cluster_{frame.number} {{")
            lines.append(f'{indent}  label="{frame}"; labeljust=r; labelloc=b;')
            lines += _dot_cluster(graph, names, inside, depth + 1)
            lines.append(f"{indent}}}")
    return lines


def _dot_style(graph: Graph, address: str) -> str:
    row = graph.sites[address]
    label = address.replace("\\", "\\\\").replace('"', '\\"')
    label = f"{label}\\n{row.density}" if row.density else label
    shape = "ellipse" if row.kind == "sample" else "box"
    style = "filled,dashed" if row.conditional else "filled"
    fill = _FILLS[graph.observed.get(address)]
    return f'label="{label}", shape={shape}, style="{style}", fillcolor="{fill}"'


def _svg(graph: Graph, placed: Layout) -> str:
    width, height = placed.width + 2 * _MARGIN, placed.height + 2 * _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
        'font-family="Helvetica, Arial, sans-serif" text-anchor="middle">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0.5 L8,4 L0,7.5 z"/></marker>'
        "</defs>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<g transform="translate({_MARGIN:g} {_MARGIN:g})">',
    ]
    parts += [_svg_cluster(frame, box) for frame, box in placed.clusters.items()]
    parts += [_svg_edge(graph, placed, *edge) for edge in _edges(graph.sites)]
    parts += [_svg_label(frame, box) for frame, box in placed.clusters.items()]
    parts += [_svg_node(graph, address, box) for address, box in placed.nodes.items()]
    return "\n".join([*parts, "</g></svg>"])


def _svg_cluster(frame: Frame, box: Box) -> str:
    left, top = box.x - box.width / 2, box.y - box.height / 2
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" '
        f'height="{box.height:.1f}" rx="8" fill="none" stroke="#777"/>'
    )


def _svg_label(frame: Frame, box: Box) -> str:
    x, y = box.x + box.width / 2 - 8, box.y + box.height / 2 - 8
    text = f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" text-anchor="end"'
    halo = f'{text} stroke="white" stroke-width="4">{frame}</text>'
    return f'{halo}{text} fill="#555">{frame}</text>'


def _svg_edge(
    graph: Graph, placed: Layout, parent: str, child: str, is_previous: bool
) -> str:
    bends = placed.bends.get(_downwards(graph.sites, parent, child), [])
    ends = placed.nodes[parent], placed.nodes[child]
    shift = 9.0 if is_previous else 0.0  # beside the edge of the same step
    path = _loop(ends[0]) if parent == child else _path(*ends, bends, shift)
    dash = ' stroke-dasharray="4 3"' if is_previous else ""
    return f'<path d="{path}" fill="none" stroke="#333"{dash} marker-end="url(#tip)"/>'


def _svg_node(graph: Graph, address: str, box: Box) -> str:
    row = graph.sites[address]
    dash = ' stroke-dasharray="5 3"' if row.conditional else ""
    look = f'fill="{_FILLS[graph.observed.get(address)]}" stroke="black"{dash}'
    rx, ry = box.width / 2, box.height / 2
    if row.kind == "sample":
        shape = (
            f'<ellipse cx="{box.x:.1f}" cy="{box.y:.1f}" rx="{rx:.1f}" ry="{ry:.1f}"'
        )
    else:
        shape = (
            f'<rect x="{box.x - rx:.1f}" y="{box.y - ry:.1f}" '
            f'width="{box.width:.1f}" height="{box.height:.1f}"'
        )
    top = box.y - 1 if row.density else box.y + 5
    text = f'<text x="{box.x:.1f}" y="{top:.1f}" font-size="14">'
    texts = [f"{text}{html.escape(address)}</text>"]
    if row.density:
        texts.append(
            f'<text x="{box.x:.1f}" y="{box.y + 13:.1f}" font-size="10.5" '
            f'fill="#555">{html.escape(row.density)}</text>'
        )
    return f"<g>{shape} {look}/>{''.join(texts)}</g>"


def _path(start: Box, end: Box, bends: list[Point], shift: float) -> str:
    """Go from the rim of one node to the rim of another, along the way given."""
    down = 1.0 if start.y < end.y else -1.0
    bends = [(x + shift, y) for x, y in (bends if down > 0 else bends[::-1])]
    before = bends[-1] if bends else (start.x, start.y)
    lean = max(-1.0, min(1.0, (before[0] - end.x) / 120.0)) * end.width / 5
    points = [_rim(start, shift, down), *bends, _rim(end, lean + shift, -down)]
    path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        middle = (y0 + y1) / 2
        path += f" C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}"
    return path


def _rim(box: Box, dx: float, side: float) -> Point:
    flat = math.sqrt(max(0.0, 1.0 - (2.0 * dx / box.width) ** 2))
    return box.x + dx, box.y + side * flat * box.height / 2


def _loop(box: Box) -> str:
    """Go from a node to itself, along its right side."""
    edge = box.x + box.width / 2
    return (
        f"M{edge - 3:.1f},{box.y + 9:.1f} C{edge + _LOOP_ROOM:.1f},{box.y + 22:.1f} "
        f"{edge + _LOOP_ROOM:.1f},{box.y - 22:.1f} {edge - 3:.1f},{box.y - 9:.1f}"
    )
