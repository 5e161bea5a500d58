"""Pictures of how the particles of a decode descend from one another.

A column is a step, a node a particle whose area is its weight, a line leads to the
particle that it continues. `genealogy_html` makes a page to explore, `plot_genealogy` a
figure. Read `ancestry.py` for what they draw.
"""

import html
import json
from importlib import resources
from typing import Any

import numpy as np

from motes.lm_bridge.ancestry import Ancestry, ancestry
from motes.lm_bridge.decoded import Decoded, Spells

MOST_TEXTS = 20
"""So many of the texts are listed below the page's picture."""
LIVE, DEAD, BEST = "tab:blue", "0.8", "tab:red"


def genealogy_html(decoded: Decoded, tokenizer: Spells, max_particles: int = 64) -> str:
    """Return a page that shows the genealogy of a decode and lets one explore it.

    The page is one file and asks nothing of a network. Pointing at a node, or moving to it
    with the arrow keys, shows its text, its weight and its line of descent.

    Args:
        decoded: A decode of one prompt.
        tokenizer: What spells tokens.
        max_particles: Most particles of a step that are drawn; the page says if there are
            more, and `Ancestry` which are drawn.
    """
    tree = ancestry(decoded, tokenizer, max_particles)
    file = resources.files("motes.lm_bridge").joinpath("genealogy.html")
    data = json.dumps(_data(decoded, tree), separators=(",", ":"))
    parts = {
        "data": data.replace("<", "\\u003c"),  # no text can end the data's element
        "facts": _facts(decoded, tree),
        "rows": _rows(decoded, tokenizer),
    }
    page, *rest = file.read_text(encoding="utf-8").split("{{")
    for piece in rest:
        name, tail = piece.split("}}", 1)
        page += parts[name] + tail
    return page


def _data(decoded: Decoded, tree: Ancestry) -> dict[str, Any]:
    number: dict[str, int] = {}
    places = [[number.setdefault(t, len(number)) for t in row] for row in tree.texts]
    ess = np.asarray(decoded.ess)[: len(tree.particles)]
    return {
        "numParticles": tree.num_particles,
        "particles": tree.particles.tolist(),
        "parents": tree.parents.tolist(),
        "weights": [[float(f"{w:.4g}") for w in row] for row in tree.weights],
        "drew": tree.drew.astype(int).tolist(),
        "survives": tree.survives.astype(int).tolist(),
        "heaviest": tree.heaviest,
        "ess": [float(f"{e:.5g}") for e in ess],
        "texts": list(number),
        "text": places,
    }


def _facts(decoded: Decoded, tree: Ancestry) -> str:
    """Write the account of the decode as items of a list of descriptions."""
    num_drawn = tree.particles.shape[1]
    more = "" if num_drawn == tree.num_particles else f" ({num_drawn} drawn here)"
    ess = 1 / np.sum(np.asarray(decoded.weights, float) ** 2)
    facts = {
        "log evidence": f"{float(decoded.log_evidence):.3f} nats",
        "particles": f"{tree.num_particles}{more}",
        "effective at the end": f"{ess:.1f}",
    }
    for name, count in decoded.budget._asdict().items():
        facts[name.replace("_", " ")] = f"{int(count):,}"
    return "".join(f"<div><dt>{k}<dd>{v}</div>" for k, v in facts.items())


def _rows(decoded: Decoded, tokenizer: Spells) -> str:
    """Write the heaviest texts as rows of a table."""
    found = list(decoded.posterior(tokenizer).items())
    rows = [(weight, html.escape(text)) for text, weight in found[:MOST_TEXTS]]
    if rest := found[MOST_TEXTS:]:
        rows.append((sum(w for _, w in rest), f"<i>{len(rest)} other texts</i>"))
    return "\n".join(f"<tr><td>{w:.3f}<td class=text>{text}" for w, text in rows)


def plot_genealogy(
    decoded: Decoded, tokenizer: Spells, ax: Any = None, max_particles: int = 64
) -> Any:
    """Draw the genealogy of a decode with matplotlib.

    Lines that lead to final texts are dark, those that died out light. The heaviest text's
    line is colored and its tokens are written below. Hollow nodes have ended.

    Args:
        decoded: A decode of one prompt.
        tokenizer: What spells tokens.
        ax: Axes to draw on; None for those of a new figure.
        max_particles: Most particles of a step that are drawn; see `Ancestry`.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    tree = ancestry(decoded, tokenizer, max_particles)
    steps, count = tree.particles.shape
    if ax is None:
        size = (1.5 + 0.17 * steps, 1.5 + 0.11 * count)
        _, ax = plt.subplots(figsize=size, layout="constrained")

    x, y = np.meshgrid(np.arange(steps), np.arange(count), indexing="ij")
    children = np.stack([x[1:], y[1:]], -1).reshape(-1, 2)
    parents = np.stack([x[1:] - 1, tree.parents[1:]], -1).reshape(-1, 2)
    lines, alive = np.stack([parents, children], 1), tree.survives[1:].ravel()
    for which, color, width in [(~alive, DEAD, 0.6), (alive, LIVE, 0.9)]:
        ax.add_collection(LineCollection(list(lines[which]), colors=color, lw=width))

    color = np.where(tree.survives, LIVE, DEAD).ravel()
    face = np.where(tree.drew.ravel(), color, "white")
    area = 6 * min(count, 32) * tree.weights.ravel()
    ax.scatter(x, y, area.clip(0.5), c=face, edgecolors=color, lw=0.6, zorder=3)

    best = _descent(tree, tree.heaviest)
    ax.plot(range(steps), best, color=BEST, lw=1.8, alpha=0.7, zorder=2)
    _label_axes(ax, [row[n] for row, n in zip(tree.texts, best, strict=True)])
    ax.set(xlim=(-1, steps), ylim=(count, -1))
    return ax


def _descent(tree: Ancestry, last: int) -> list[int]:
    """Return the nodes that lead to one of the last step."""
    places = [last]
    for row in tree.parents[:0:-1]:
        places.append(int(row[places[-1]]))
    return places[::-1]


def _label_axes(ax: Any, texts: list[str]) -> None:
    """Write what each step added to one text below the steps."""
    before = ["", *texts[:-1]]
    added = [
        t.removeprefix(b).replace("\n", "\\n")
        for b, t in zip(before, texts, strict=True)
    ]
    ax.set_xticks(range(len(texts)), added, rotation=90, fontsize=7, parse_math=False)
    ax.tick_params(axis="x", length=0)
    ax.set(xlabel="tokens of the heaviest text", ylabel="particles", yticks=[])
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
