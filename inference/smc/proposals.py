r"""Proposals: models that draw choices of another model, which is then weighed.

The weight is $p(x, y)/q(x)$. A choice that was proposed but that the model did not make,
as its branch was not taken, counts in neither density. Read `importance.py` and `pair.py`.
"""

from typing import Any

import jax
from jaxtyping import Array, Key

from motes.ppl import AddressError, Choices, Model, Trace, merge, select
from motes.ppl.choices import Entry, read_entries, to_choices
from motes.ppl.errors import describe, format_path, unknown_address
from motes.ppl.site_table import SiteTable


def generate_from(
    call: str,
    key: Key[Array, ""],
    model: Model,
    args: tuple,
    proposal: Model,
    given: tuple,
    observed: Choices,
) -> tuple[Trace, Array]:
    """Draw a trace of `model(*args)` from `proposal(*given)`; return its log weight.

    Raises:
        AddressError: If the proposal draws what the model has not or what is observed.
        ValueError: If the proposal has a factor.
    """
    sites = model.program(*args).sites
    _check(call, proposal.program(*given).sites, sites, observed)
    propose_key, key = jax.random.split(key)
    proposed = proposal.simulate(propose_key, *given)
    trace, log_weight = model.generate(key, merge(proposed.choices, observed), *args)
    return trace, log_weight - _log_density(proposal, proposed, sites, trace)


def check_models(call: str, **models: Any) -> None:
    """Raise `TypeError` unless all are models."""
    for name, value in models.items():
        if not isinstance(value, Model):
            raise TypeError(
                f"{call}: {name} must be a model, got {describe(value)}. Decorate a "
                "function with @model; what is observed is an argument of its own."
            )


def _check(call: str, proposed: SiteTable, sites: SiteTable, observed: Choices) -> None:
    data = read_entries(call, observed, sites)
    for path, site in proposed.items():
        name = format_path(path)
        if site.is_factor:
            raise ValueError(
                f"{call}: proposal must be a normalized density, got a factor at address "
                f"{name!r}."
            )
        if path in data:
            raise AddressError(
                f"{call}: proposal must draw free choices only, got {name!r}, which is "
                "observed."
            )
        if path not in sites:
            free = [p for p, s in sites.items() if not s.is_factor]
            raise unknown_address(call, path, free)


def _log_density(
    proposal: Model, proposed: Trace, sites: SiteTable, trace: Trace
) -> Array:
    """Log density of the proposed choices that the model made."""
    mine = proposal.program(*proposed.args).sites
    entries = read_entries("propose", proposed.choices, mine)
    unsure = [path for path in entries if sites[path].conditional]
    if not unsure:
        return proposed.log_density
    for path in unsure:
        value, mask = entries[path]
        entries[path] = Entry(value, _both(mask, trace[path].mask))
    made = Trace(to_choices(entries), None, proposed.log_density, proposed.args)
    return proposal.project(made, ~select())


def _both(mask: Array | None, made: Array) -> Array:
    if mask is None:
        return made
    ndim = max(mask.ndim, made.ndim)
    mask, made = (m.reshape(m.shape + (1,) * (ndim - m.ndim)) for m in (mask, made))
    return mask & made
