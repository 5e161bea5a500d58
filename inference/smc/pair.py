r"""Filters of a pair of models: `initial` and `transition`.

`initial()` draws $x_0$ and `transition(x)` draws $x_t$ given $x_{t-1}$; both return the
state and make the observed choices. Builders: `bootstrap`, `guided`, `auxiliary`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from motes.inference.smc.feynman_kac import FeynmanKac
from motes.inference.smc.proposals import check_models, generate_from
from motes.ppl import Choices, Model, ShapeError, vmap_lanes
from motes.ppl.choices import read_entries
from motes.ppl.errors import describe
from motes.ppl.nesting import check_choices
from motes.ppl.site_table import over_time


def _static() -> Any:
    return field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pair:
    """The bootstrap filter of a pair of models; as `bootstrap` makes it."""

    first: Any
    inputs: Any
    parameters: tuple
    initial: Model = _static()
    transition: Model = _static()
    num_steps: int = _static()
    init_is_step: bool = field(default=True, metadata={"static": True})

    def init(self, key: Key[Array, ""], num_particles: int) -> Any:
        def lane() -> Any:
            return self._generate(key, self.initial, self.first, ())

        return vmap_lanes(lane, num_lanes=num_particles)()

    def step(self, key: Key[Array, ""], state: Any, inputs: Any) -> Any:
        return vmap_lanes(lambda x: self._generate(key, self.transition, inputs, (x,)))(
            state
        )

    def _generate(self, key: Any, model: Model, row: Any, state: tuple) -> Any:
        observed, covariates = row
        args = (*state, *covariates, *self.parameters)
        trace, log_weight = model.generate(key, observed, *args)
        return trace.return_value, log_weight


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guided(Pair):
    """The guided filter: proposals draw some choices; as `guided` makes it."""

    first_proposal: Model | None = field(default=None, metadata={"static": True})
    proposal: Model | None = field(default=None, metadata={"static": True})

    def _generate(self, key: Any, model: Model, row: Any, state: tuple) -> Any:
        proposal = self.proposal if state else self.first_proposal
        if proposal is None:
            return super()._generate(key, model, row, state)
        observed, covariates = row
        args = (*covariates, *self.parameters)
        models = (model, (*state, *args), proposal, (*state, observed, *args))
        trace, log_weight = generate_from("guided", key, *models, observed)
        return trace.return_value, log_weight


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Auxiliary:
    """A filter that looks ahead; as `auxiliary` makes it."""

    program: Pair
    score: Callable = _static()

    @property
    def inputs(self) -> Any:
        return self.program.inputs

    @property
    def num_steps(self) -> int:
        return self.program.num_steps

    @property
    def init_is_step(self) -> bool:
        return self.program.init_is_step

    def init(self, key: Key[Array, ""], num_particles: int) -> Any:
        return self.program.init(key, num_particles)

    def step(self, key: Key[Array, ""], state: Any, inputs: Any) -> Any:
        return self.program.step(key, state, inputs)

    def look_ahead(self, state: Any, inputs: Any) -> Array:
        observed, covariates = inputs
        args = (*covariates, *self.program.parameters)
        return jax.vmap(lambda x: self.score(x, observed, *args))(state)


def bootstrap(
    initial: Model,
    transition: Model,
    observations: Choices,
    *parameters: Any,
    covariates: tuple = (),
) -> Pair:
    """Build the bootstrap filter: particles move by the model and weigh by the data.

    Args:
        initial: Model of the first state and observation; returns the state. Called as
            `initial(*covariates, *parameters)`.
        transition: Model of the next state and observation; called with the state first.
        observations: Choices of the models with a leading axis of length T.
        *parameters: Further arguments of both models, the same at all times.
        covariates: Further arguments, before the parameters, with a leading axis T.

    Raises:
        AddressError: If an observation is at an address that `initial` has not.
        ShapeError: If the leading axes differ or there is no observation.
        ValueError: If a known observation lies outside a known support.

    References:
        Gordon, Salmond and Smith (1993); Chopin and Papaspiliopoulos (2020), Section 10.3.
    """
    check_models("bootstrap", initial=initial, transition=transition)
    data = _split("bootstrap", initial, observations, parameters, covariates)
    return Pair(*data[:2], parameters, initial, transition, data[2])


def guided(
    initial: Model,
    transition: Model,
    proposal: Model,
    observations: Choices,
    *parameters: Any,
    first_proposal: Model | None = None,
    covariates: tuple = (),
) -> Guided:
    """Build a guided filter: a proposal that sees the data draws the state.

    Weights are the model's density over the proposal's, so the evidence stays unbiased
    when the proposal covers the posterior. What it draws for a branch that the model does
    not take counts in neither density.

    Args:
        initial: As in `bootstrap`.
        transition: As in `bootstrap`.
        proposal: A model whose choices have addresses of `transition`; called as
            `proposal(state, observation, *covariates, *parameters)`.
        observations: As in `bootstrap`.
        *parameters: As in `bootstrap`.
        first_proposal: The same for `initial`, called without a state; by default the
            first state is drawn from the model.
        covariates: As in `bootstrap`.

    Raises:
        AddressError: As in `bootstrap`; when run, if a proposal draws an address that the
            model has not or that is observed.
        ValueError: When run, if a proposal has a factor.

    References:
        Chopin and Papaspiliopoulos (2020), Algorithm 10.3.
    """
    models = {"initial": initial, "transition": transition, "proposal": proposal}
    if first_proposal is not None:
        models["first_proposal"] = first_proposal
    check_models("guided", **models)
    data = _split("guided", initial, observations, parameters, covariates)
    return Guided(
        *data[:2],
        parameters,
        initial,
        transition,
        data[2],
        first_proposal=first_proposal,
        proposal=proposal,
    )


def auxiliary(program: Pair, score: Callable) -> Auxiliary:
    """Let a filter look ahead: resample by weight times `exp(score)`.

    The scores are divided out after resampling, so the evidence stays unbiased whatever
    they are.

    Args:
        program: A bootstrap or guided filter.
        score: Function of `(state, next_observation, *covariates, *parameters)` for one
            particle, giving a finite log score in nats.

    References:
        Pitt and Shephard (1999); Chopin and Papaspiliopoulos (2020), Algorithm 10.6.
    """
    if not isinstance(program, Pair):
        raise TypeError(
            "auxiliary: program must be a bootstrap or guided filter, got "
            f"{type(program).__name__}."
        )
    return Auxiliary(program, score)


def _split(
    call: str,
    initial: Model,
    observations: Any,
    parameters: tuple,
    covariates: Any,
) -> tuple[Any, Any, int]:
    """Divide the data into those of the first step, of the others, and count these."""
    check_choices(call, observations)
    if not isinstance(covariates, tuple | list):
        raise TypeError(
            f"{call}: covariates must be a tuple of arrays, got {describe(covariates)}."
        )
    rows = (observations, tuple(covariates))
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(rows)}
    if len(sizes) != 1 or sizes in ({()}, {(0,)}):
        raise ShapeError(
            f"{call}: observations must have one leading axis of length T >= 1, got "
            f"leading axes {sorted(sizes)}. For a single observation use x[None]."
        )
    rows = jax.tree.map(jnp.asarray, rows)
    first = jax.tree.map(lambda x: x[0], rows)
    rest = jax.tree.map(lambda x: x[1:], rows)
    (size,) = sizes.pop()
    sites = initial.program(*first[1], *parameters).sites
    read_entries(call, observations, over_time(sites, size))
    return first, rest, size - 1


__all__ = [
    "Auxiliary",
    "FeynmanKac",
    "Guided",
    "Pair",
    "auxiliary",
    "bootstrap",
    "guided",
]
