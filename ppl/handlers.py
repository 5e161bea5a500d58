"""The operations on models, each a small handler: what it does at a site.

Values are drawn, kept or given; the log density of every site is tallied, and the log
weight counts the sites that the operation did not draw afresh.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from motes.ppl.choices import Entry
from motes.ppl.densities import draw_with_log_density, elementwise_log_density
from motes.ppl.draws import draw
from motes.ppl.errors import Path
from motes.ppl.interpreter import Answer, Tally, tally
from motes.ppl.selection import Selection


class Given(NamedTuple):
    """What `update` and `regenerate` know of a site."""

    old: Entry | None = None
    new: Entry | None = None


@dataclass(frozen=True)
class Simulate:
    """Draw every site."""

    def site(self, path: Path, key: Any, density: Any, given: Any) -> Answer:
        value, log_density = _draw(key, density)
        return Answer(value, value, tally(log_density))

    def factor(self, path: Path, log_weight: Any) -> Tally:
        return tally(log_weight, log_weight)


@dataclass(frozen=True)
class Generate(Simulate):
    """Keep what is constrained, draw the rest; weigh what was constrained."""

    def site(self, path: Path, key: Any, density: Any, given: Entry | None) -> Answer:
        if given is None:
            return super().site(path, key, density, given)
        return _settle(key, density, [given])


@dataclass(frozen=True)
class LogDensity(Simulate):
    """Evaluate given values."""

    def site(self, path: Path, key: Any, density: Any, given: Entry | None) -> Answer:
        if given is None:  # a branch's site without a value: not allowed to be reached
            value, _ = _draw(jax.random.key(0), density)
            return Answer(value, None, tally(-jnp.inf, -jnp.inf))
        terms = elementwise_log_density(density, key, given.value)
        known = _expand(given.mask, terms)
        total = jnp.sum(terms if known is None else jnp.where(known, terms, -jnp.inf))
        return Answer(given.value, None, tally(total, total))


@dataclass(frozen=True)
class Update(Simulate):
    """Prefer the new value, then the old one, then a draw; weigh what was not drawn."""

    def site(self, path: Path, key: Any, density: Any, given: Given | None) -> Answer:
        entries = [] if given is None else [given.new, given.old]
        return _settle(key, density, [entry for entry in entries if entry is not None])


@dataclass(frozen=True)
class Regenerate(Simulate):
    """Draw the selected sites, keep the others; weigh what was kept."""

    selection: Selection

    def site(self, path: Path, key: Any, density: Any, given: Entry | None) -> Answer:
        keep = given is not None and path not in self.selection
        return _settle(key, density, [given] if keep else [])


@dataclass(frozen=True)
class Project(Simulate):
    """Weigh the selected sites of given values, where their masks say they count."""

    selection: Selection
    all_factors: bool = False

    def site(self, path: Path, key: Any, density: Any, given: Entry | None) -> Answer:
        if given is None:
            value, _ = _draw(jax.random.key(0), density)
            return Answer(value, None, tally())
        terms = elementwise_log_density(density, key, given.value)
        counts = _expand(given.mask, terms)
        total = jnp.sum(terms if counts is None else jnp.where(counts, terms, 0.0))
        weight = total if path in self.selection else 0.0
        return Answer(given.value, None, tally(total, weight))

    def factor(self, path: Path, log_weight: Any) -> Tally:
        counts = self.all_factors or path in self.selection
        return tally(log_weight, log_weight if counts else 0.0)


def _draw(key: Any, density: Any) -> tuple[Any, Any]:
    return draw_with_log_density(draw, density, key)


def _settle(key: Any, density: Any, entries: list[Entry]) -> Answer:
    """Take the first entry that counts, else a draw; weigh all that was not drawn."""
    if any(entry.mask is None for entry in entries):
        whole = next(i for i, entry in enumerate(entries) if entry.mask is None)
        value, known = entries[whole].value, None
        entries = entries[:whole]
    else:
        value, log_density = _draw(key, density)
        if not entries:
            return Answer(value, value, tally(log_density))
        known = False
    for entry in reversed(entries):
        value = jax.tree.map(
            lambda x, y, mask=entry.mask: jnp.where(_expand(mask, x), x, y),
            entry.value,
            jax.tree.unflatten(jax.tree.structure(entry.value), jax.tree.leaves(value)),
        )
        known = None if known is None else _either(known, entry.mask)
    terms = elementwise_log_density(density, key, value)
    total = jnp.sum(terms)
    if known is None:
        return Answer(value, value, tally(total, total))
    kept = jnp.where(_expand(known, terms), terms, 0.0)
    return Answer(value, value, tally(total, jnp.sum(kept)))


def _either(known: Any, mask: Any) -> Any:
    if known is False:
        return mask
    ndim = max(known.ndim, mask.ndim)
    known, mask = (m.reshape(m.shape + (1,) * (ndim - m.ndim)) for m in (known, mask))
    return known | mask


def _expand(mask: Any, array: Any) -> Any:
    """Give a mask, whose shape is a prefix, the rank of an array."""
    if mask is None:
        return None
    mask = mask.reshape(mask.shape + (1,) * (jnp.ndim(array) - mask.ndim))
    return jnp.broadcast_to(mask, jnp.shape(array))
