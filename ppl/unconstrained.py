"""A target's log density on R^n, for gradient methods and optimizers.

Each continuous choice x is written x = T(u) with NumPyro's bijection T of its support;
the density of u is p(T(u)) |det dT/du|. Supports may depend on other choices.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from numpyro.distributions import biject_to

from motes.ppl.choices import Entry, is_whole, read_entries, require_all, require_whole
from motes.ppl.densities import is_distribution
from motes.ppl.errors import AddressError, Path, ShapeError, describe, format_path
from motes.ppl.handlers import LogDensity
from motes.ppl.interpreter import Answer, tally
from motes.ppl.model import Model
from motes.ppl.nesting import Choices, join, nest
from motes.ppl.program import Program
from motes.ppl.site_table import Site
from motes.ppl.transforms import Conditioned, as_target


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Free:
    """An unconstrained value of a site."""

    value: Any


@dataclass(frozen=True)
class Constrain(LogDensity):
    """Map free values to their supports, counting the Jacobian; keep given values."""

    def site(self, path: Path, key: Any, density: Any, given: Any) -> Answer:
        if not isinstance(given, Free):
            return super().site(path, key, density, given)
        bijection = biject_to(density.support)
        value = bijection(given.value)
        jacobian = jnp.sum(bijection.log_abs_det_jacobian(given.value, value))
        if is_distribution(density):
            log_density = jnp.sum(density.log_prob(value))
        else:
            log_density = density.log_density(key, value)
        total = log_density + jacobian
        return Answer(value, value, tally(total, total))


@dataclass(frozen=True)
class Unconstrain(LogDensity):
    """Record the free value that maps to each given value."""

    def site(self, path: Path, key: Any, density: Any, given: Any) -> Answer:
        answer = super().site(path, key, density, given)
        if density.support.is_discrete:
            return answer
        return answer._replace(record=biject_to(density.support).inv(given.value))


@dataclass(frozen=True)
class Unconstrained:
    """A target on R^n, as `unconstrained` makes it.

    Attributes:
        target: The target.
        args: Arguments of its model.
        num_dims: Dimension n.
    """

    target: Conditioned
    args: tuple
    num_dims: int
    _program: Program
    _unravel: Any

    def log_density(self, position: Float[Array, " D"]) -> Float[Array, ""]:
        """Return the log density of a position, in nats, Jacobian included.

        Raises:
            ShapeError: If `position` is not one vector of `num_dims` real numbers.
        """
        return self._run("log_density", position)[1].tally.log_density

    def constrain(self, position: Float[Array, " D"]) -> Choices:
        """Return the choices at a position."""
        records = self._run("constrain", position)[1].records
        return nest({path: entry.value for path, entry in records.items()})

    def unconstrain(self, choices: Choices) -> Float[Array, " D"]:
        """Return the position of choices.

        Raises:
            AddressError: If `choices` lacks a free choice, or has one that is fixed.
        """
        join("unconstrain", choices, self.target.constraints)
        return ravel_pytree(
            _free_values(self.target, self._program, choices, self.args)
        )[0]

    def unravel(self, position: Float[Array, " D"]) -> Choices:
        """Return the unconstrained value of each address."""
        return nest(self._values("unravel", position))

    def _values(self, call: str, position: Any) -> dict[Path, Array]:
        position = jnp.asarray(position)
        is_real = not jnp.issubdtype(position.dtype, jnp.complexfloating)
        if position.shape != (self.num_dims,) or not is_real:
            raise ShapeError(
                f"{call}: position must be one vector of {self.num_dims} real numbers, got "
                f"{describe(position)}. Map over several with jax.vmap."
            )
        return self._unravel(position.astype(jnp.result_type(float, position)))

    def _run(self, call: str, position: Any) -> Any:
        values = self._values(call, position)
        free = {path: Free(u) for path, u in values.items()}
        fixed = _fixed_entries(self.target, self._program)
        return self._program.run(Constrain(), None, {**fixed, **free}, self.args)


def unconstrained(target: Model | Conditioned, *args: Any) -> Unconstrained:
    """Write a target as a log density on R^n.

    Args:
        target: A model, or `condition(model, constraints)`.
        *args: Arguments of the model.

    Raises:
        AddressError: If a choice that is not fixed is discrete, is made only in some
            branch, is fixed only in part, or has no declared support.
    """
    target = as_target("unconstrained", target)
    program = target.model.program(*args)
    fixed = _fixed_entries(target, program)
    for path, site in program.sites.items():
        if path not in fixed and not site.is_factor:
            _check_free(site)
        elif path in fixed and not is_whole(fixed[path]):
            raise _refusal(site, "must be fixed everywhere or nowhere, is masked")
    drawn = jax.eval_shape(
        lambda key: target.generate(key, {}, *args)[0].choices, jax.random.key(0)
    )
    shapes = jax.eval_shape(
        lambda choices: _free_values(target, program, choices, args), drawn
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    flat, unravel = ravel_pytree(zeros)
    return Unconstrained(target, args, flat.size, program, unravel)


def _fixed_entries(target: Conditioned, program: Program) -> dict[Path, Entry]:
    return read_entries("unconstrained", target.constraints, program.sites)


def _free_values(
    target: Conditioned, program: Program, choices: Choices, args: tuple
) -> dict[Path, Array]:
    given = read_entries("unconstrain", choices, program.sites)
    fixed = _fixed_entries(target, program)
    require_all("unconstrain", {**given, **fixed}, program.sites)
    require_whole("unconstrain", given, program.sites)
    outcome = program.run(Unconstrain(), None, {**given, **fixed}, args)[1]
    return {p: e.value for p, e in outcome.records.items() if p not in fixed}


def _check_free(site: Site) -> None:
    if site.conditional:
        raise _refusal(site, "must always be made, is made only in some branch")
    if site.support is None and not is_distribution(site.density):
        raise _refusal(site, "must declare a support, has none")
    if site.is_discrete:
        raise _refusal(site, "must be continuous, is discrete")


def _refusal(site: Site, rule: str) -> AddressError:
    return AddressError(
        f"unconstrained: a free choice {rule} at address {format_path(site.path)!r}. "
        "Fix it with condition, or integrate it out."
    )
