"""Nested dicts by address: built, checked and joined.

The leaves may be anything; `motes.ppl.choices` reads them against the sites of a model.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from motes.ppl.errors import AddressError, Path, describe, format_path

Choices = dict[str, Any]


def nest(entries: Mapping[Path, Any]) -> Choices:
    """Build nested dicts from values by path."""
    root: Choices = {}
    for path, value in entries.items():
        node = root
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return root


def check_choices(call: str, choices: Any) -> None:
    """Raise unless choices, or constraints, are a dict."""
    if not isinstance(choices, Mapping):
        raise TypeError(
            f"{call}: choices must be a dict by address, got {describe(choices)}. "
            "Give {} for none."
        )


def check_name(call: str, name: Any) -> None:
    """Raise unless a key of a dict of choices can be the name of a site or a scope."""
    if isinstance(name, str) and "/" not in name:
        return
    path = tuple(name.split("/")) if isinstance(name, str) else name
    is_path = isinstance(path, tuple) and len(path) > 0
    nested = repr(nest({path: ...})).replace("Ellipsis", "...") if is_path else ""
    raise AddressError(
        f"{call}: choices must be dicts by name, nested by scope, got the key {name!r}."
        + (f" Write {nested}." if nested else "")
    )


def merge(first: Choices, second: Choices) -> Choices:
    """Return the union of two nested dicts; `second` wins where both have an address."""
    merged = dict(first)
    for name, value in second.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def join(call: str, given: Any, fixed: Choices) -> Choices:
    """Return the union of choices and of what is conditioned on; refuse what is both."""
    check_choices(call, given)
    for path in _shared(given, fixed):
        raise AddressError(
            f"{call}: choices must leave out what is conditioned on, got a value at "
            f"address {format_path(path)!r}. Condition the model itself to change it."
        )
    return merge(given, fixed)


def _shared(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Path]:
    for name in first.keys() & second.keys():
        pair = first[name], second[name]
        if all(isinstance(node, Mapping) for node in pair):
            yield from ((name, *path) for path in _shared(*pair))
        else:
            yield (name,)
