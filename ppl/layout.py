"""Layered layout of a directed graph with nested clusters.

Nodes stand in layers below what they depend on, ordered by barycenters to avoid
crossings (Sugiyama, Tagawa and Toda, 1981). A cluster is laid out on its own and is
then one box of the level around it. `motes.ppl.render` draws the result.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Point = tuple[float, float]
_GAP_X, _GAP_Y = 22.0, 34.0
_PAD, _LABEL = 16.0, 14.0
_NUM_SWEEPS = 8


class Box(NamedTuple):
    """A rectangle; `x` and `y` are its center."""

    x: float
    y: float
    width: float
    height: float


@dataclass
class Layout:
    """Where things stand, in pixels from the top left corner.

    Attributes:
        width: Width of the whole.
        height: Height of the whole.
        nodes: Boxes of the nodes.
        clusters: Boxes of the clusters, outer ones first.
        bends: Points that an edge passes on its way through other layers.
    """

    width: float = 0.0
    height: float = 0.0
    nodes: dict[Any, Box] = field(default_factory=dict)
    clusters: dict[Any, Box] = field(default_factory=dict)
    bends: dict[tuple, list[Point]] = field(default_factory=dict)

    def moved(self, dx: float, dy: float) -> "Layout":
        """Return the layout moved by an offset."""
        nodes, clusters = (
            {k: b._replace(x=b.x + dx, y=b.y + dy) for k, b in group.items()}
            for group in (self.nodes, self.clusters)
        )
        bends = {
            edge: [(x + dx, y + dy) for x, y in way] for edge, way in self.bends.items()
        }
        return Layout(self.width, self.height, nodes, clusters, bends)


def layout(
    sizes: Mapping[Any, tuple[float, float]],
    clusters: Mapping[Any, tuple],
    edges: Iterable[tuple[Any, Any]],
    room: Mapping[Any, float] | None = None,
    depth: int = 0,
) -> Layout:
    """Lay out a graph.

    Args:
        sizes: Width and height of each node, in an order in which no edge points back.
        clusters: For each node, the clusters around it, outermost first.
        edges: Pairs of nodes, from upper to lower. Edges that enter or leave the graph
            get a way around the layers between the node and the border.
        room: Space to keep free at the right of a cluster's content.
        depth: How many clusters are around the whole graph.
    """
    if not sizes:
        return Layout()
    owner = {
        node: clusters[node][depth] if len(clusters[node]) > depth else node
        for node in sizes
    }
    result, inner = Layout(), {}
    extents = {item: sizes.get(item, (0.0, 0.0)) for item in owner.values()}
    for item in [item for item in extents if item not in sizes]:
        own = {node: size for node, size in sizes.items() if owner[node] == item}
        touching = [edge for edge in edges if edge[0] in own or edge[1] in own]
        inner[item] = layout(own, clusters, touching, room, depth + 1)
        width = inner[item].width + 2 * _PAD + (room or {}).get(item, 0.0)
        extents[item] = width, inner[item].height + 2 * _PAD + _LABEL

    # An end outside the graph stands for itself: it has no place in a layer.
    lifted = {edge: tuple(owner.get(n, ("outside", n)) for n in edge) for edge in edges}
    links = {link: None for link in lifted.values() if link[0] != link[1]}
    boxes, paths, result.width, result.height = _level(extents, list(links))
    for item, box in boxes.items():
        if item in sizes:
            result.nodes[item] = box
        else:
            result.clusters[item] = box
            left, top = box.x - box.width / 2, box.y - box.height / 2
            inner[item] = inner[item].moved(left + _PAD, top + _PAD)
            result.nodes |= inner[item].nodes
            result.clusters |= inner[item].clusters
    for edge, (first, last) in lifted.items():
        before, after = (
            inner[end].bends.get(edge, []) if end in inner else []
            for end in (first, last)
        )
        inside = before if first == last else [*before, *paths[first, last], *after]
        result.bends[edge] = inside
    return result


def _level(extents: dict, links: list[tuple]) -> tuple[dict, dict, float, float]:
    """Lay out boxes without regard to what is in them; return them and edges' ways."""
    ranks = _ranks(
        list(extents), [k for k in links if k[0] in extents and k[1] in extents]
    )
    layers: list[list] = [[] for _ in range(max(ranks.values()) + 1)]
    for item, rank in ranks.items():
        layers[rank].append(item)
    widths = {item: extent[0] for item, extent in extents.items()}
    neighbors: dict[Any, list] = {item: [] for item in extents}
    chains: dict[tuple, list] = {}
    for link in links:
        first, last = ranks.get(link[0], -1), ranks.get(link[1], len(layers))
        # An edge over several layers holds a narrow place in each that it passes.
        chains[link] = [("bend", link, rank) for rank in range(first + 1, last)]
        for bend in chains[link]:
            layers[bend[2]].append(bend)
            widths[bend], neighbors[bend] = 6.0, []
        stops = [stop for stop in (link[0], *chains[link], link[1]) if stop in widths]
        for a, b in zip(stops, stops[1:], strict=False):
            neighbors[a].append(b)
            neighbors[b].append(a)
    centers = _columns(layers, neighbors, widths)

    left = min(center - widths[item] / 2 for item, center in centers.items())
    right = max(center + widths[item] / 2 for item, center in centers.items())
    boxes, spans, y = {}, [], 0.0
    for layer in layers:
        tall = max(extents[item][1] for item in layer if item in extents)
        spans.append((y, y + tall))
        for item in layer:
            if item in extents:
                boxes[item] = Box(centers[item] - left, y + tall / 2, *extents[item])
        y += tall + _GAP_Y
    paths = {
        link: [
            (centers[bend] - left, edge) for bend in chain for edge in spans[bend[2]]
        ]
        for link, chain in chains.items()
    }
    return boxes, paths, right - left, y - _GAP_Y


def _ranks(items: list, links: list[tuple]) -> dict[Any, int]:
    """Put each item below its parents, and those without parents close to a child."""
    ranks = dict.fromkeys(items, 0)
    for item in items:  # parents come first
        above = [ranks[a] for a, b in links if b == item]
        ranks[item] = max(above, default=-1) + 1
    for item in items:
        below = [ranks[b] for a, b in links if a == item]
        if below and not any(b == item for _, b in links):
            ranks[item] = min(below) - 1
    return ranks


def _columns(layers: list[list], neighbors: dict, widths: dict) -> dict[Any, float]:
    """Order each layer and give every item the center of its column."""
    centers: dict[Any, float] = {}
    for layer in layers:
        centers.update(_pack(layer, dict.fromkeys(layer, 0.0), widths))
    for sweep in range(_NUM_SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = {}
            for item in layer:
                near = [centers[other] for other in neighbors[item]]
                wanted[item] = sum(near) / len(near) if near else centers[item]
            layer.sort(key=wanted.__getitem__)
            centers.update(_pack(layer, wanted, widths))
    return centers


def _pack(layer: list, wanted: dict, widths: dict) -> dict[Any, float]:
    """Place items in order, apart from each other, near where they want to be."""
    from_left, from_right = dict(wanted), dict(wanted)
    for a, b in zip(layer, layer[1:], strict=False):
        apart = (widths[a] + widths[b]) / 2 + _GAP_X
        from_left[b] = max(from_left[b], from_left[a] + apart)
    for b, a in zip(layer[::-1], layer[-2::-1], strict=False):
        apart = (widths[a] + widths[b]) / 2 + _GAP_X
        from_right[a] = min(from_right[a], from_right[b] - apart)
    return {item: (from_left[item] + from_right[item]) / 2 for item in layer}
