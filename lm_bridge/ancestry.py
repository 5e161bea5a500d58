r"""Which particles of a decode descend from which, and the text that each had.

`ancestry` turns the history of a decode into the nodes and lines of a picture: a node is
a particle after a step, its parent the particle that it continues. Read `genealogy.py`
for the pictures and `decoded.py` for the history.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from motes.lm_bridge.decoded import Decoded, History, Spells


class Ancestry(NamedTuple):
    """The nodes that are drawn: `M` particles of each of `S` steps.

    Steps after the last draw and the last resampling are left out, as they change
    nothing. If there are more particles than `M`, those of the last step are the
    heaviest; those of every other step are the parents of what is drawn after it, and
    then the heaviest of the rest.

    Attributes:
        particles: Index of each node's particle, `(S, M)`.
        parents: Column of the node before, `(S, M)`; those of the first step are not read.
        weights: Weight among all particles of its step, `(S, M)`.
        drew: Whether the step drew tokens for the particle, `(S, M)`; a text that has
            ended gets none.
        survives: Whether a text of the last step descends from it, `(S, M)`.
        texts: Text so far, of each node.
        num_particles: Number of particles, drawn or not.
    """

    particles: np.ndarray
    parents: np.ndarray
    weights: np.ndarray
    drew: np.ndarray
    survives: np.ndarray
    texts: list[list[str]]
    num_particles: int

    @property
    def heaviest(self) -> int:
        """Column of a particle of the last step whose text has the greatest weight."""
        total: dict[str, float] = defaultdict(float)
        for text, weight in zip(self.texts[-1], self.weights[-1], strict=True):
            total[text] += float(weight)
        return self.texts[-1].index(max(total, key=total.__getitem__))


def ancestry(decoded: Decoded, tokenizer: Spells, max_particles: int = 64) -> Ancestry:
    """Return what the pictures show of a decode.

    Args:
        decoded: A decode of one prompt.
        tokenizer: What spells tokens.
        max_particles: Most particles of a step that are drawn.

    Raises:
        ValueError: If the decode is of several prompts, or of exact samples, or
            `max_particles` is less than one.
    """
    if max_particles < 1:
        raise ValueError(
            f"ancestry: max_particles must be at least 1, got {max_particles}."
        )
    history = decoded.history
    if history is None or np.ndim(history.tokens) != 3:
        got = "none" if history is None else f"shape {np.shape(history.tokens)}"
        raise ValueError(
            f"ancestry: decoded must have the history of one prompt, got {got}. Choose "
            "one of several prompts by decoded.of_prompt; exact samples have none."
        )
    tokens, ancestors, log_weights = _until_settled(history)
    weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    particles, parents = _choose(ancestors, weights, max_particles)
    drew = (tokens >= 0).any(2)
    return Ancestry(
        particles,
        parents,
        np.take_along_axis(weights, particles, 1),
        np.take_along_axis(drew, particles, 1),
        _survivors(parents, weights[-1, particles[-1]] > 0),
        _texts(tokens, ancestors, particles, tokenizer),
        weights.shape[1],
    )


def _until_settled(history: History) -> list[np.ndarray]:
    tokens, ancestors, log_weights = (np.asarray(leaf) for leaf in history[:3])
    drew = (tokens >= 0).any((1, 2))
    moved = (ancestors != np.arange(ancestors.shape[1])).any(1)
    used = int(np.flatnonzero(drew | moved).max(initial=0)) + 1
    return [leaf[:used] for leaf in (tokens, ancestors, log_weights)]


def _choose(
    ancestors: np.ndarray, weights: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the drawn particles of each step, and each one's place in the step before."""
    count = min(limit, weights.shape[1])
    chosen, parents, needed = [], [], np.zeros(0, int)
    for own, weight in zip(ancestors[::-1], weights[::-1], strict=True):
        heaviest = np.argsort(-weight, kind="stable")
        others = heaviest[~np.isin(heaviest, needed)]
        row = np.sort(np.concatenate([needed, others])[:count])
        if parents:
            parents[-1] = np.searchsorted(row, parents[-1])
        chosen.append(row)
        parents.append(own[row])
        needed = np.unique(own[row])
    return np.stack(chosen[::-1]), np.stack(parents[::-1])


def _survivors(parents: np.ndarray, last: np.ndarray) -> np.ndarray:
    rows = [last]
    for row in parents[:0:-1]:
        rows.append(np.isin(np.arange(row.size), row[rows[-1]]))
    return np.stack(rows[::-1])


def _texts(
    tokens: np.ndarray, ancestors: np.ndarray, particles: np.ndarray, tokenizer: Spells
) -> list[list[str]]:
    """Spell whole texts, since a character may be split over tokens."""
    texts, so_far = [], [()] * tokens.shape[1]
    for drawn, parents, row in zip(tokens, ancestors, particles, strict=True):
        so_far = [
            (*so_far[parent], *own[own >= 0].tolist())
            for parent, own in zip(parents, drawn, strict=True)
        ]
        texts.append([tokenizer.decode(so_far[n]) for n in row])
    return texts
