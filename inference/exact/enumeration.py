r"""Enumeration: the exact posterior of a model's finite discrete choices.

All assignments $x$ of the free discrete sites are evaluated in one batch;
$p(y) = \sum_x p(x, y)$. For chains in a scan prefer `hidden_markov`, whose cost is linear.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from motes.ppl import AddressError, Choices, Conditioned, Model, merge
from motes.ppl.choices import Entries, is_whole, read_entries
from motes.ppl.errors import format_path
from motes.ppl.nesting import nest
from motes.ppl.site_table import Site, num_elements
from motes.ppl.transforms import as_target


class Enumerated(NamedTuple):
    """An exact posterior over finitely many assignments.

    Attributes:
        choices: The free choices; leaves have the assignments as leading axis.
        log_weights: Log joint density of each assignment with the constraints, in nats.
        log_evidence: Log of their sum.
    """

    choices: Choices
    log_weights: Float[Array, " K"]
    log_evidence: Float[Array, ""]

    @property
    def probabilities(self) -> Float[Array, " K"]:
        """Posterior probability of each assignment."""
        return jnp.exp(self.log_weights - self.log_evidence)

    def mean(self, values: Any = None) -> Any:
        """Return the posterior mean of `values` (of the choices, if None), by leaf."""
        values = self.choices if values is None else values
        return jax.tree.map(lambda x: jnp.tensordot(self.probabilities, x, 1), values)


def enumerate_choices(
    target: Model | Conditioned, *args: Any, max_assignments: int = 1_000_000
) -> Enumerated:
    """Sum over every assignment of the free choices, exactly.

    A choice made only in some branch is enumerated only where it is made.

    Args:
        target: A model, or `condition(model, constraints)`.
        *args: Arguments of the model.
        max_assignments: Refuse to enumerate more than this.

    Raises:
        AddressError: If a free choice is continuous or has no finite, fixed support, or a
            choice is fixed in part.
        ValueError: If there are more than `max_assignments` assignments.
    """
    target = as_target("enumerate_choices", target)
    sites = target.model.program(*args).sites
    fixed = read_entries("enumerate_choices", target.constraints, sites)
    _check_whole(fixed)
    free = [s for s in sites.values() if not s.is_factor and s.path not in fixed]
    supports = [_support(site) for site in free]
    grids = [(len(v), num_elements(s)) for v, s in zip(supports, free, strict=True)]
    total = math.prod(size**count for size, count in grids)
    if total > max_assignments:
        raise ValueError(
            f"enumerate_choices: there must be at most {max_assignments} assignments, "
            f"got {total}. Raise max_assignments, or marginalize a chain exactly."
        )
    columns = np.indices([size for size, count in grids for _ in range(count)])
    columns = (
        columns.reshape(columns.shape[0], -1).T if grids else np.zeros((1, 0), int)
    )
    choices = nest(_unpack(free, supports, columns))

    def log_density(row: tuple[Array, Choices]) -> Array:
        return target.log_density(row[1], *args)

    rows = (jnp.arange(total), choices)  # there is one even if all choices are fixed
    log_weights = jax.lax.map(log_density, rows, batch_size=4096)
    keep = _first_of_each(free, choices, target, args)
    log_weights = jnp.where(keep, log_weights, -jnp.inf)
    return Enumerated(choices, log_weights, jax.nn.logsumexp(log_weights))


def _check_whole(fixed: Entries) -> None:
    for path, entry in fixed.items():
        if not is_whole(entry):
            raise AddressError(
                f"enumerate_choices: a choice must be fixed everywhere or nowhere, got a "
                f"mask at address {format_path(path)!r}. Split the site in two."
            )


def _support(site: Site) -> np.ndarray:
    density = site.density
    if getattr(density, "has_enumerate_support", False):
        try:
            with jax.ensure_compile_time_eval():
                values = density.enumerate_support(expand=False)
            return np.asarray(values).reshape(-1)
        except (NotImplementedError, TypeError, AttributeError):
            pass
    raise AddressError(
        f"enumerate_choices: a free choice must have a finite support known before the "
        f"model runs, got {type(density).__name__} at address "
        f"{format_path(site.path)!r}. Fix it with condition."
    )


def _unpack(free: list[Site], supports: list, columns: np.ndarray) -> dict:
    entries, start = {}, 0
    for site, support in zip(free, supports, strict=True):
        count = num_elements(site)
        values = support[columns[:, start : start + count]]
        shape = (columns.shape[0], *site.value.shape)
        entries[site.path] = jnp.asarray(values.reshape(shape), site.value.dtype)
        start += count
    return entries


def _first_of_each(free: list[Site], choices: Choices, target: Conditioned, args: Any):
    """Drop repeated assignments: those that differ only where a choice is not made."""
    conditional = [site for site in free if site.conditional]
    if not conditional:
        return True

    def unmade(choices: Choices) -> Array:
        joined = merge(choices, target.constraints)
        trace, _ = target.model.generate(jax.random.key(0), joined, *args)
        repeats = jnp.zeros((), bool)
        for site in conditional:
            entry = trace[site.path]
            first = jnp.asarray(_support(site)[0], site.value.dtype)
            extra = entry.value.ndim - entry.mask.ndim
            mask = entry.mask.reshape(entry.mask.shape + (1,) * extra)
            repeats |= jnp.any(~mask & (_value(choices, site) != first))
        return ~repeats

    return jax.lax.map(unmade, choices, batch_size=4096)


def _value(choices: Choices, site: Site) -> Array:
    node: Any = choices
    for name in site.path:
        node = node[name]
    return node
