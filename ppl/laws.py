"""The laws of the operations, as functions that check them on any model.

Each takes a model, its arguments and a key, and raises `AssertionError` when the law is
broken. They hold for every model; use them on yours, and on densities of your own.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from motes.ppl.choices import Masked
from motes.ppl.model import Model
from motes.ppl.nesting import Choices, nest
from motes.ppl.plates import vmap_lanes
from motes.ppl.selection import Selection, select


def check_log_density(model: Model, args: tuple, key: Key[Array, ""]) -> None:
    """The log density of a simulated trace is that of its choices."""
    trace = model.simulate(key, *args)
    _equal("simulate", trace.log_density, model.log_density(trace.choices, *args))


def check_generate(
    model: Model, args: tuple, key: Key[Array, ""], constrained: Selection
) -> None:
    """Constraints are kept; the weight is the density over that of what was drawn."""
    first, second = jax.random.split(key)
    given = _select(model.simulate(first, *args).choices, constrained)
    trace, log_weight = model.generate(second, given, *args)
    for path, value in _flat(given).items():
        _same_where_made("generate", trace[path], value)
    drawn = model.project(trace, _drawn(model, args, given))
    # A conditional site that is given only where it was made is drawn elsewhere.
    if not _has_masks(given):
        _equal("generate", log_weight, trace.log_density - drawn)
    everything, total = model.generate(second, trace.choices, *args)
    _equal("generate", total, trace.log_density)
    _same_trees("generate", everything.choices, trace.choices)


def check_update(model: Model, args: tuple, key: Key[Array, ""]) -> None:
    """Weights are full density ratios, and the discarded choices take a change back."""
    first, second, third = jax.random.split(key, 3)
    old, new = model.simulate(first, *args), model.simulate(second, *args)
    kept, log_weight, discarded = model.update(third, old, {})
    _equal("update", log_weight, 0.0)
    _same_trees("update", kept.choices, old.choices)
    gone = [v for v in _flat(discarded).values() if np.any(v.mask)] if discarded else []
    assert not gone, "update: without constraints nothing is discarded"
    changed, log_weight, discarded = model.update(third, old, new.choices)
    _equal("update", log_weight, new.log_density - old.log_density)
    _same_trees("update", changed.choices, new.choices)
    back, reverse, _ = model.update(third, changed, discarded)
    _equal("update", reverse, -log_weight)
    _same_trees("update", back.choices, old.choices)


def check_regenerate(
    model: Model, args: tuple, key: Key[Array, ""], selection: Selection
) -> None:
    """Nothing selected: nothing changes. The weight is that of what was kept."""
    first, second = jax.random.split(key)
    old = model.simulate(first, *args)
    same, log_weight = model.regenerate(second, old, select())
    _equal("regenerate", log_weight, 0.0)
    _same_trees("regenerate", same.choices, old.choices)
    new, log_weight = model.regenerate(second, old, selection)
    if not any(site.conditional for site in model.program(*args).sites.values()):
        kept = model.project(new, ~selection) - model.project(old, ~selection)
        chosen = Selection(
            frozenset(p for p in _factors(model, args) if p in selection)
        )
        kept += model.project(new, chosen) - model.project(old, chosen)
        _equal("regenerate", log_weight, kept)
    fresh, log_weight = model.regenerate(second, old, ~select())
    factors = Selection(frozenset(_factors(model, args)))
    _equal(
        "regenerate",
        log_weight,
        model.project(fresh, factors) - model.project(old, factors),
    )


def check_project(
    model: Model, args: tuple, key: Key[Array, ""], selection: Selection
) -> None:
    """Projections on a selection and its complement add up to the log density."""
    trace = model.simulate(key, *args)
    parts = model.project(trace, selection) + model.project(trace, ~selection)
    _equal("project", parts, trace.log_density)
    _equal("project", model.project(trace, ~select()), trace.log_density)
    _equal("project", model.project(trace, select()), 0.0)


def check_lanes(model: Model, args: tuple, key: Key[Array, ""]) -> None:
    """Lanes that share a key are valid runs, and differ where choices are continuous."""
    traces = vmap_lanes(lambda: model.simulate(key, *args), num_lanes=3)()
    for lane in range(3):
        choices = jax.tree.map(lambda x, i=lane: x[i], traces.choices)
        found = model.log_density(choices, *args)
        _equal("vmap_lanes", traces.log_density[lane], found)
    for path, value in _flat(traces.choices).items():
        leaf = value.value if isinstance(value, Masked) else value
        made = np.asarray(value.mask).all() if isinstance(value, Masked) else True
        for x in map(np.asarray, jax.tree.leaves(leaf)):
            if made and np.issubdtype(x.dtype, np.floating) and x.size:
                assert not np.array_equal(x[0], x[1]), (
                    f"vmap_lanes: lanes must be independent, are equal at {path}"
                )


def check_jit(model: Model, args: tuple, key: Key[Array, ""]) -> None:
    """Operations give the same result inside `jit`, and traces pass through it."""
    trace = model.simulate(key, *args)
    again = jax.jit(lambda k: model.simulate(k, *args))(key)
    _same_trees("jit", again.choices, trace.choices)
    _equal("jit", again.log_density, trace.log_density)
    found = jax.jit(lambda t: model.log_density(t.choices, *t.args))(trace)
    _equal("jit", found, trace.log_density)


def check_all(
    model: Model, args: tuple, key: Key[Array, ""], selection: Selection
) -> None:
    """Check every law; `selection` takes some of the sites."""
    check_log_density(model, args, key)
    check_generate(model, args, key, selection)
    check_update(model, args, key)
    check_regenerate(model, args, key, selection)
    check_project(model, args, key, selection)
    check_lanes(model, args, key)
    check_jit(model, args, key)


def _equal(call: str, found: Any, expected: Any) -> None:
    tolerance = 1e-9 if jnp.result_type(float) == jnp.float64 else 2e-4
    found, expected = float(found), float(expected)
    assert np.isclose(found, expected, rtol=tolerance, atol=tolerance * 10), (
        f"{call}: the law gives {expected}, got {found}"
    )


def _flat(node: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(node, dict):
        return {path: node}
    return {
        p: v for k, child in node.items() for p, v in _flat(child, (*path, k)).items()
    }


def _select(choices: Choices, selection: Selection) -> Choices:
    return nest({p: v for p, v in _flat(choices).items() if p in selection})


def _drawn(model: Model, args: tuple, given: Choices) -> Selection:
    sites = model.program(*args).sites
    fixed = _flat(given) if given else {}
    free = [p for p, site in sites.items() if p not in fixed and not site.is_factor]
    return Selection(frozenset(free))


def _factors(model: Model, args: tuple) -> list[tuple[str, ...]]:
    return [p for p, site in model.program(*args).sites.items() if site.is_factor]


def _has_masks(choices: Choices) -> bool:
    return any(isinstance(v, Masked) for v in _flat(choices).values())


def _same_where_made(call: str, found: Any, given: Any) -> None:
    mask = True
    for entry in (found, given):
        if isinstance(entry, Masked):
            mask = mask & np.asarray(entry.mask)
    found = found.value if isinstance(found, Masked) else found
    given = given.value if isinstance(given, Masked) else given
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(given), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        where = np.broadcast_to(np.expand_dims(mask, _extra(mask, x)), x.shape)
        assert np.array_equal(x[where], y[where]), f"{call}: a given value was changed"


def _extra(mask: Any, x: np.ndarray) -> tuple[int, ...]:
    return tuple(range(np.ndim(mask), x.ndim))


def _same_trees(call: str, found: Choices, expected: Choices) -> None:
    found, expected = _flat(found), _flat(expected)
    assert found.keys() == expected.keys(), f"{call}: the addresses differ"
    for path, value in found.items():
        if isinstance(value, Masked):
            assert np.array_equal(value.mask, expected[path].mask), (
                f"{call}: another branch was taken at {path}"
            )
        _same_where_made(call, value, expected[path])
