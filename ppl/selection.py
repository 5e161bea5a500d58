"""Selections of addresses, for `regenerate`, `project` and kernels on part of a trace.

A selection is a set of paths; a path selects the site it names or every site in the scope
it names. `select("x", ("arm", "y"))` spells one; `~` and `|` combine them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from motes.ppl.errors import Path, read_path, unknown_address


@dataclass(frozen=True)
class Selection:
    """A set of paths, or its complement."""

    paths: frozenset[Path]
    inverted: bool = False

    def __contains__(self, path: Path) -> bool:
        hit = any(path[:size] in self.paths for size in range(len(path) + 1))
        return hit != self.inverted

    def __invert__(self) -> "Selection":
        return Selection(self.paths, not self.inverted)


def select(*addresses: Any) -> Selection:
    """Select sites or scopes by name, by path (a tuple), or by `"scope/name"`."""
    return Selection(frozenset(read_path("select", address) for address in addresses))


def as_selection(call: str, given: Any, known: Iterable[Path]) -> Selection:
    """Read a selection: a `Selection`, an address, or an iterable of addresses.

    Raises:
        AddressError: If an address names neither a site nor a scope.
        TypeError: If it is none.
    """
    if isinstance(given, Selection):
        selection = given
    else:
        many = isinstance(given, Iterable) and not isinstance(given, str | tuple)
        addresses = given if many else (given,)
        selection = Selection(frozenset(read_path(call, x) for x in addresses))
    known = list(known)
    for path in selection.paths:
        if not any(site[: len(path)] == path for site in known):
            raise unknown_address(call, path, known)
    return selection
