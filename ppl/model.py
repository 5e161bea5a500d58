"""Models and their operations.

A model is a Python function over JAX values that calls `sample` and `factor`. Its
operations run it under one of the handlers of `motes.ppl.handlers`; the laws that they
obey are functions in `motes.ppl.laws`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from motes.ppl import handlers
from motes.ppl.choices import (
    Entries,
    Entry,
    read_entries,
    require_all,
    require_whole,
    to_choices,
)
from motes.ppl.effects import scope
from motes.ppl.errors import Path, check_functions, check_key, describe
from motes.ppl.nesting import Choices
from motes.ppl.program import Program, ProgramCache
from motes.ppl.selection import as_selection
from motes.ppl.structure import Sites, sites
from motes.ppl.trace import Trace


class Proposal(NamedTuple):
    """What `propose` returns: choices, their log density in nats, the return value."""

    choices: Choices
    log_density: Array
    return_value: Any


class Model:
    """A probabilistic program; made by `@model`.

    Arguments that are arrays or floats are traced; ints, bools, strings and functions are
    static and may size scans and plates. Calling a model inside another model inlines it.
    """

    def __init__(self, fun: Callable):
        functools.update_wrapper(self, fun)
        self._fun = fun
        self._cache = ProgramCache(fun)

    def __call__(self, *args: Any, address: str | None = None) -> Any:
        """Inline the model into the one that calls it, in the scope `address` if given."""
        if address is None:
            return self._fun(*args)
        with scope(address):
            return self._fun(*args)

    def __repr__(self) -> str:
        return f"Model({getattr(self._fun, '__qualname__', self._fun)})"

    @property
    def __fingerprint__(self) -> tuple[Any, ...]:
        return (self._fun,)

    def program(self, *args: Any) -> Program:
        """Return the model traced for the signature of `args`."""
        return self._cache.get(args)

    def sites(self, *args: Any) -> Sites:
        """Tabulate the sites: address, shape, support, parents, plates and scans."""
        return sites(self, *args)

    def simulate(self, key: Key[Array, ""], *args: Any) -> Trace:
        """Draw a trace from the model: exact, ancestral sampling."""
        key = check_key("simulate", key)
        program = self.program(*args)
        value, outcome = program.run(handlers.Simulate(), key, {}, args)
        return _trace(value, outcome, args)

    def propose(self, key: Key[Array, ""], *args: Any) -> Proposal:
        """Draw choices, with the log density at which they were drawn."""
        trace = self.simulate(key, *args)
        return Proposal(trace.choices, trace.log_density, trace.return_value)

    def log_density(
        self, choices: Choices, *args: Any, key: Key[Array, ""] | None = None
    ) -> Float[Array, ""]:
        """Return the log joint density of all choices and factors, in nats.

        Args:
            choices: A value for each address, of the site's full shape; where a traced mask
                says that it is missing, the density is zero.
            *args: Arguments of the model.
            key: Needed only by sites whose density is a random estimate.

        Raises:
            AddressError: If an address is unknown or has no value.
            ShapeError: If a value has another shape or kind of dtype than its site.
        """
        program = self.program(*args)
        given = read_entries("log_density", choices, program.sites)
        require_all("log_density", given, program.sites)
        require_whole("log_density", given, program.sites)
        return program.run(handlers.LogDensity(), key, given, args)[1].tally.log_density

    def generate(
        self, key: Key[Array, ""], constraints: Choices, *args: Any
    ) -> tuple[Trace, Float[Array, ""]]:
        """Draw the unconstrained choices from the model and weigh the constrained ones.

        The exponential of the log weight is an unbiased estimate of the density of the
        constraints, and the weighted trace is properly weighted for the posterior.

        Args:
            key: PRNG key; consumed.
            constraints: Values for some addresses; `masked(value, mask)` constrains part
                of an array.
            *args: Arguments of the model.

        Raises:
            AddressError: If a constraint is on an unknown address.
            ShapeError: If a constraint has another shape or kind of dtype than its site.
            ValueError: If a concrete constraint lies outside a known support.
        """
        key = check_key("generate", key)
        program = self.program(*args)
        given = read_entries("generate", constraints, program.sites)
        value, outcome = program.run(handlers.Generate(), key, given, args)
        return _trace(value, outcome, args), outcome.tally.log_weight

    def update(
        self, key: Key[Array, ""], trace: Trace, constraints: Choices, *new_args: Any
    ) -> tuple[Trace, Float[Array, ""], Choices]:
        """Change some choices, or the arguments, of a trace.

        Choices that the new run makes and the old one did not are drawn from the model.
        The log weight is `log p(new) - log p(old) - log q(drawn)`, the full ratio of
        densities whatever branches flip.

        Returns:
            The new trace, the log weight in nats, and the discarded choices: the old
            values that were replaced or are no longer made.
        """
        key = check_key("update", key)
        _check_trace("update", trace)
        args = new_args or trace.args
        program = self.program(*args)
        new = read_entries("update", constraints, program.sites)
        old = _old_entries(trace, program)
        given = {
            path: handlers.Given(old.get(path), new.get(path))
            for path in {**old, **new}
        }
        value, outcome = program.run(handlers.Update(), key, given, args)
        log_weight = outcome.tally.log_weight - trace.log_density
        discarded = _discarded(_all_entries(trace), new, outcome.records)
        return _trace(value, outcome, args), log_weight, discarded

    def regenerate(
        self, key: Key[Array, ""], trace: Trace, selection: Any
    ) -> tuple[Trace, Float[Array, ""]]:
        """Draw the selected choices anew from the model, given the others.

        The log weight is `log p(new)/p(old) + log q(old)/q(new)` with q the proposal that
        draws what is selected or newly made: accepting with probability
        `min(1, exp(log_weight))` leaves the model's (posterior) density invariant.

        Args:
            key: PRNG key; consumed.
            trace: The trace to change.
            selection: A `Selection`, an address, or addresses; scopes select all inside.
        """
        key = check_key("regenerate", key)
        _check_trace("regenerate", trace)
        program = self.program(*trace.args)
        chosen = as_selection("regenerate", selection, program.sites)
        old = _old_entries(trace, program)
        require_all("regenerate", old, program.sites)
        handler = handlers.Regenerate(chosen)
        value, outcome = program.run(handler, key, old, trace.args)
        kept = {
            path: Entry(entry.value, _both(entry.mask, outcome.records[path].mask))
            for path, entry in old.items()
        }
        project = handlers.Project(~chosen, all_factors=True)
        _, before = program.run(project, None, kept, trace.args)
        log_weight = outcome.tally.log_weight - before.tally.log_weight
        return _trace(value, outcome, trace.args), log_weight

    def project(
        self, trace: Trace, selection: Any, key: Key[Array, ""] | None = None
    ) -> Float[Array, ""]:
        """Return the log density, in nats, of the selected choices given their parents."""
        _check_trace("project", trace)
        program = self.program(*trace.args)
        chosen = as_selection("project", selection, program.sites)
        handler = handlers.Project(chosen)
        given = _old_entries(trace, program)
        require_all("project", given, program.sites)
        return program.run(handler, key, given, trace.args)[1].tally.log_weight


def model(fun: Callable) -> Model:
    """Turn a function that calls `sample` into a model.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> from motes.ppl import model, sample
        >>> @model
        ... def coin(n):
        ...     p = sample("p", dist.Beta(2.0, 3.0))
        ...     return sample("flips", dist.Bernoulli(p).expand([n]))
        >>> coin.simulate(jax.random.key(0), 10)["flips"].shape
        (10,)
    """
    check_functions("model", fun=fun)
    return Model(fun)


def _check_trace(call: str, trace: Any) -> None:
    if not isinstance(trace, Trace):
        raise TypeError(
            f"{call}: trace must be a Trace, as simulate and generate return it, got "
            f"{describe(trace)}."
        )


def _trace(value: Any, outcome: Any, args: tuple) -> Trace:
    choices = to_choices(outcome.records)
    return Trace(choices, value, outcome.tally.log_density, args)


def _old_entries(trace: Trace, program: Program) -> Entries:
    """The old choices that the program has sites of the same shape for."""
    entries = {}
    for path, entry in _all_entries(trace).items():
        site = program.sites.get(path)
        if site is not None and _shapes(entry.value) == _shapes(site.value):
            entries[path] = entry
    return entries


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [jnp.shape(x) for x in jax.tree.leaves(tree)]


def _all_entries(trace: Trace) -> Entries:
    return dict(_walk(trace.choices, ()))


def _walk(node: Any, path: Path) -> Any:
    from motes.ppl.choices import Masked

    if isinstance(node, Masked):
        yield path, Entry(*node)
    elif isinstance(node, Mapping):
        for name, child in node.items():
            yield from _walk(child, (*path, name))
    else:
        yield path, Entry(node)


def _both(first: Any, second: Any) -> Any:
    masks = [mask for mask in (first, second) if mask is not None]
    return functools.reduce(jnp.logical_and, masks) if masks else None


def _discarded(old: Entries, new: Entries, made: Entries) -> Choices:
    """Old values that were replaced, or whose address is no longer made."""
    out: Entries = {}
    for path, entry in old.items():
        if path not in made or (path in new and new[path].mask is None):
            out[path] = entry
            continue
        masks = [] if path not in new else [new[path].mask]
        if made[path].mask is not None:
            masks.append(~made[path].mask)
        if masks:
            gone = functools.reduce(_or_prefix, masks)
            mask = gone if entry.mask is None else gone & _fit(entry.mask, gone)
            out[path] = Entry(entry.value, mask)
    return to_choices(out)


def _or_prefix(first: Any, second: Any) -> Any:
    longest = max(first, second, key=jnp.ndim)
    return _fit(first, longest) | _fit(second, longest)


def _fit(mask: Any, other: Any) -> Any:
    return mask.reshape(mask.shape + (1,) * (other.ndim - mask.ndim))
