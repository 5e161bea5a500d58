r"""Deterministic automata over bytes, closed under `&`, `|` and `~`.

A language is a complete table `next[state, byte]`, so complements flip `accepting` and
intersections walk pairs. Every constructor returns the minimal automaton. Constraints act
on bytes: a character split over tokens is no special case. Read `languages.py` for use.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class ByteDfa(NamedTuple):
    """A regular set of byte strings; state 0 is where every string starts.

    Attributes:
        next: Next state of each state for each byte, `(S, 256)`.
        accepting: Which states end a member of the set.
    """

    next: np.ndarray
    accepting: np.ndarray

    def accepts(self, text: bytes) -> bool:
        """Return whether the text is in the set."""
        state = 0
        for byte in text:
            state = self.next[state, byte]
        return bool(self.accepting[state])

    @property
    def is_empty(self) -> bool:
        """Whether no text is in the set."""
        return not self.accepting.any()

    def __and__(self, other: "ByteDfa") -> "ByteDfa":
        """Return the texts in both sets."""
        return _pairs(self, other, np.logical_and)

    def __or__(self, other: "ByteDfa") -> "ByteDfa":
        """Return the texts in either set."""
        return _pairs(self, other, np.logical_or)

    def __invert__(self) -> "ByteDfa":
        """Return the texts that are not in the set."""
        return ByteDfa(self.next, ~self.accepting)


def minimize(dfa: ByteDfa) -> ByteDfa:
    """Return the minimal automaton of the same set (Moore's refinement)."""
    reached = _reachable(dfa.next)
    number = np.full(dfa.next.shape[0], -1)
    number[reached] = np.arange(reached.size)
    table, accepting = number[dfa.next[reached]], dfa.accepting[reached]
    label, count = accepting.astype(np.int64), 0
    while True:
        rows = np.column_stack([label, label[table]])
        _, first, label = np.unique(
            rows, axis=0, return_index=True, return_inverse=True
        )
        if first.size == count:
            break
        count = first.size
    label = label.reshape(-1)
    # Number the classes so that the start is state 0.
    order = np.argsort(np.where(np.arange(count) == label[0], -1, np.arange(count)))
    rank = np.argsort(order)
    return ByteDfa(
        rank[label[table[first]]][order].astype(np.int32), accepting[first][order]
    )


def _reachable(table: np.ndarray) -> np.ndarray:
    """Return the states that some text leads to, the start first."""
    seen = np.zeros(table.shape[0], bool)
    seen[0], frontier = True, np.array([0])
    while frontier.size:
        found = np.unique(table[frontier])
        frontier = found[~seen[found]]
        seen[frontier] = True
    return np.flatnonzero(seen)


def _pairs(
    left: ByteDfa, right: ByteDfa, join: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> ByteDfa:
    """Walk both automata at once, over the pairs that are reached."""
    width = right.next.shape[0]
    number, pairs, rows = {0: 0}, [0], []
    for pair in pairs:
        a, b = divmod(pair, width)
        row = left.next[a].astype(np.int64) * width + right.next[b]
        for code in np.unique(row).tolist():
            if code not in number:
                number[code] = len(pairs)
                pairs.append(code)
        codes, inverse = np.unique(row, return_inverse=True)
        rows.append(np.array([number[c] for c in codes.tolist()])[inverse.reshape(-1)])
    a, b = np.divmod(np.array(pairs), width)
    return minimize(
        ByteDfa(np.array(rows), join(left.accepting[a], right.accepting[b]))
    )


def containing(phrases: list[bytes]) -> ByteDfa:
    """Return the texts in which one of the phrases occurs (Aho and Corasick, 1975)."""
    table, accepting = _aho_corasick(phrases)
    table[accepting] = np.flatnonzero(accepting)[:, None]
    return minimize(ByteDfa(table, accepting))


def ending_at_first(phrases: list[bytes]) -> ByteDfa:
    """Return the texts that end where the first of the phrases to occur ends."""
    table, accepting = _aho_corasick(phrases)
    dead = table.shape[0]
    table = np.vstack([table, np.full((1, 256), dead)])
    table[:-1][accepting] = dead
    return minimize(ByteDfa(table, np.append(accepting, False)))


def exactly(phrases: list[bytes]) -> ByteDfa:
    """Return the set of the phrases themselves."""
    table, ends = _trie(phrases)
    dead = len(table)
    rows = np.full((dead + 1, 256), dead)
    for state, children in enumerate(table):
        for byte, child in children.items():
            rows[state, byte] = child
    accepting = np.zeros(dead + 1, bool)
    accepting[list(ends)] = True
    return minimize(ByteDfa(rows, accepting))


def _trie(phrases: list[bytes]) -> tuple[list[dict[int, int]], set[int]]:
    """Return children of each node, and the nodes where phrases end."""
    children: list[dict[int, int]] = [{}]
    ends = set()
    for phrase in phrases:
        node = 0
        for byte in phrase:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
            node = children[node][byte]
        ends.add(node)
    return children, ends


def _aho_corasick(phrases: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the table that follows the longest suffix which begins a phrase."""
    children, ends = _trie(phrases)
    table = np.zeros((len(children), 256), np.int64)
    accepting = np.zeros(len(children), bool)
    accepting[list(ends)] = True
    queue = [(0, 0)]
    for node, fallback in queue:
        accepting[node] |= accepting[fallback]
        table[node] = table[fallback] if node else 0
        for byte, child in children[node].items():
            queue.append((child, int(table[fallback, byte]) if node else 0))
            table[node, byte] = child
    return table, accepting
