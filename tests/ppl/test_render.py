"""Pictures of models hold every site, edge and cluster, each in its place."""

import re
import xml.etree.ElementTree as ElementTree

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from motes.ppl import (
    AddressError,
    condition,
    factor,
    masked,
    model,
    render,
    sample,
    scope,
    vmap,
)
from motes.ppl.layout import layout

normal = dist.Normal


@model
def panel(num_arms, num_steps):
    center = sample("center", normal(0.0, 1.0))
    spread = sample("spread", dist.HalfNormal(1.0))

    def arm(index):
        start = sample("start", normal(center, spread))

        def step(x, _):
            x = sample("x", normal(x, spread))
            jax.lax.cond(x > 0, lambda: sample("jump", normal(x, 1.0)), lambda: 0.0)
            with scope("out"):
                y = sample("y", normal(x + center, 1.0))
            return x, y

        return jax.lax.scan(step, start, None, length=num_steps)[1]

    ys = vmap(arm)(jnp.arange(num_arms))
    total = sample("total", normal(ys.sum(), spread))
    factor("potential", -(total**2))


CONSTRAINTS = {"total": 1.0, "out": {"y": masked(jnp.zeros((2, 3)), jnp.eye(2, 3) > 0)}}


def edges(graph):
    return {
        (parent, child) for child, row in graph.sites.items() for parent in row.parents
    }


def drawing(graph):
    root = ElementTree.fromstring(graph.svg)
    return root, "{http://www.w3.org/2000/svg}"


def test_source_has_each_site_and_each_edge_once():
    graph = render(panel, 2, 3)
    names = dict(re.findall(r'(n\d+) \[label="([\w/]+)', graph.source))
    arrows = re.findall(r"(n\d+) -> (n\d+)", graph.source)
    assert sorted(names.values()) == sorted(graph.sites)
    assert len(arrows) == len(edges(graph))
    assert {(names[a], names[b]) for a, b in arrows} == edges(graph)


def test_source_nests_clusters_as_the_model_does():
    source = render(panel, 2, 3).source
    plate, scan = source.index('label="plate 2"'), source.index('label="scan 3"')
    assert plate < source.index('"start\\n') < scan < source.index('"x\\n')
    assert source.count("{") == source.count("}") == 3


def test_picture_is_well_formed_and_has_each_site_and_edge():
    graph = render(panel, 2, 3)
    root, ns = drawing(graph)
    texts = [text.text for text in root.iter(f"{ns}text")]
    assert set(graph.sites) <= set(texts) and {"plate 2", "scan 3"} <= set(texts)
    paths = [p for p in root.iter(f"{ns}path") if p.get("marker-end")]
    assert len(paths) == len(edges(graph))
    assert graph._repr_svg_() == graph.svg


def test_earlier_steps_and_branches_are_dashed():
    root, ns = drawing(render(panel, 2, 3))
    dashed = [p for p in root.iter(f"{ns}path") if p.get("stroke-dasharray")]
    assert len(dashed) == 1  # from x to the next x
    outlines = [e for e in root.iter(f"{ns}ellipse") if e.get("stroke-dasharray")]
    assert len(outlines) == 1  # jump


@pytest.mark.parametrize("as_condition", [True, False])
def test_observed_sites_are_shaded_and_partly_observed_ones_lightly(as_condition):
    if as_condition:
        graph = render(condition(panel, CONSTRAINTS), 2, 3)
    else:
        graph = render(panel, 2, 3, constraints=CONSTRAINTS)
    assert graph.observed == {"total": True, "out/y": False}
    root, ns = drawing(graph)
    fills = [ellipse.get("fill") for ellipse in root.iter(f"{ns}ellipse")]
    plain = [fill for fill in fills if fill == "white"]
    assert len(fills) - len(plain) == 2 and len(set(fills)) == 3


def test_render_refuses_an_unknown_address():
    with pytest.raises(AddressError, match="render: 'totl' .* mean 'total'"):
        render(panel, 2, 3, constraints={"totl": 1.0})


def test_names_are_escaped():
    @model
    def odd():
        sample('a<"b"', normal(0.0, 1.0))

    graph = render(odd)
    assert '\\"b\\"' in graph.source
    root, ns = drawing(graph)
    assert 'a<"b"' in [text.text for text in root.iter(f"{ns}text")]


def test_a_model_without_sites_renders():
    assert ElementTree.fromstring(render(model(lambda: None)).svg) is not None


def box_edges(box):
    return (
        box.x - box.width / 2,
        box.y - box.height / 2,
        box.x + box.width / 2,
        box.y + box.height / 2,
    )


def contains(outer, inner):
    a, b = box_edges(outer), box_edges(inner)
    return a[0] <= b[0] and a[1] <= b[1] and b[2] <= a[2] and b[3] <= a[3]


def overlap(first, second):
    a, b = box_edges(first), box_edges(second)
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def random_graph(seed):
    """Ten nodes in random nested clusters, with random downward edges."""
    bits = jax.random.bits(jax.random.key(seed), (200,), jnp.uint8).tolist()
    take = iter(bits)
    clusters, inside = {}, ()
    for node in range(10):
        if next(take) % 3 == 0 and len(inside) < 3:
            inside = (*inside, f"c{node}")
        elif next(take) % 3 == 0:
            inside = inside[:-1]
        clusters[node] = inside
    sizes = {node: (20.0 + next(take) % 60, 30.0) for node in range(10)}
    edges = [(a, b) for b in range(10) for a in range(b) if next(take) % 4 == 0]
    return sizes, clusters, edges


@pytest.mark.parametrize("seed", range(12))
def test_boxes_hold_their_members_and_do_not_overlap(seed):
    sizes, clusters, edges = random_graph(seed)
    placed = layout(sizes, clusters, edges)
    for node, box in placed.nodes.items():
        for cluster, outer in placed.clusters.items():
            if cluster in clusters[node]:
                assert contains(outer, box)
            else:
                assert not overlap(outer, box)
        others = [b for other, b in placed.nodes.items() if other != node]
        assert not any(overlap(box, other) for other in others)
        left, top, right, bottom = box_edges(box)
        assert left >= 0 and top >= 0
        assert right <= placed.width and bottom <= placed.height


@pytest.mark.parametrize("seed", range(4))
def test_edges_that_pass_a_layer_bend_in_it(seed):
    sizes, _, edges = random_graph(seed)
    placed = layout(sizes, dict.fromkeys(sizes, ()), edges)
    for a, b in edges:
        top, bottom = placed.nodes[a].y, placed.nodes[b].y
        passed = {box.y for box in placed.nodes.values() if top < box.y < bottom}
        assert len(placed.bends[a, b]) == 2 * len(passed)


def test_edges_into_and_out_of_a_cluster_pass_its_layers():
    clusters = {"in": (), "a": ("c",), "b": ("c",), "d": ("c",), "out": ()}
    edges = [
        ("a", "b"),
        ("b", "d"),
        ("in", "a"),
        ("in", "b"),
        ("b", "out"),
        ("d", "out"),
    ]
    placed = layout(dict.fromkeys(clusters, (40.0, 30.0)), clusters, edges)
    for edge, node in ((("in", "b"), "a"), (("b", "out"), "d")):
        box = placed.nodes[node]
        assert [y for _, y in placed.bends[edge]] == [box.y - 15.0, box.y + 15.0]


@pytest.mark.parametrize("seed", range(12))
def test_edges_run_downwards_and_bend_around_nodes(seed):
    sizes, clusters, edges = random_graph(seed)
    placed = layout(sizes, clusters, edges)
    for a, b in edges:
        start, end = placed.nodes[a], placed.nodes[b]
        heights = [start.y + 15.0, *(y for _, y in placed.bends[a, b]), end.y - 15.0]
        assert heights == sorted(heights)
        for x, y in placed.bends[a, b]:
            for left, top, right, bottom in map(box_edges, placed.nodes.values()):
                assert not (left < x < right and top < y < bottom)
