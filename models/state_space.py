r"""State-space models from three conditional densities.

The chain is $x_0 \sim p_0$, $x_t \sim f(\cdot \mid x_{t-1})$, $y_t \sim g(\cdot \mid x_t)$.
`state_space` writes it both as one model whose scan is time and as a pair of models of one
step; `motes.inference.smc` filters either.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from motes.ppl import Model, model, sample
from motes.ppl.errors import check_count, check_functions


@runtime_checkable
class First(Protocol):
    """The density of the first state."""

    def __call__(self, parameters: Any, /) -> Any:
        """Return the density $p_0$."""
        ...


@runtime_checkable
class Step(Protocol):
    """A conditional density of one step."""

    def __call__(self, state: Any, parameters: Any, /) -> Any:
        """Return the density given `state`: of the next state, or of the observation."""
        ...


@runtime_checkable
class Keep(Protocol):
    """What a step passes on to the next."""

    def __call__(self, x: Any, y: Any, parameters: Any, /) -> Any:
        """Return the state that the next step starts from."""
        ...


class StateSpace(NamedTuple):
    """A state-space model in its two forms, with sites `x` and `y`.

    Attributes:
        chain: One model, called with `(num_steps, parameters)`; its sites have a leading
            axis of length `num_steps`, and it returns the last state.
        initial: The first step, called with `(parameters)`; returns the state.
        transition: The next step, called with `(state, parameters)`; returns the state.
    """

    chain: Model
    initial: Model
    transition: Model


def state_space(
    first: First, move: Step, observe: Step, keep: Keep = lambda x, y, parameters: x
) -> StateSpace:
    """Make a state-space model from its conditional densities.

    Args:
        first: Density of the first state, of the same family as that of `move`.
        move: Density of the next state given what `keep` returned; its parameters must be
            finite at a state of zeros, where `chain` evaluates and ignores it.
        observe: Density of an observation given the state drawn.
        keep: The state passed on; by default the state drawn.

    Raises:
        ValueError: When run, if `first` and `move` differ in family or shape.
    """
    check_functions("state_space", first=first, move=move, observe=observe, keep=keep)

    def step(density: Any, parameters: Any) -> Any:
        x = sample("x", density)
        y = sample("y", observe(x, parameters))
        return keep(x, y, parameters)

    @model
    def initial(parameters: Any) -> Any:
        return step(first(parameters), parameters)

    @model
    def transition(state: Any, parameters: Any) -> Any:
        return step(move(state, parameters), parameters)

    @model
    def chain(num_steps: Any, parameters: Any) -> Any:
        num_steps = check_count("chain", "num_steps", num_steps, least=0)

        def body(state: Any, t: Any) -> tuple[Any, None]:
            later = move(state, parameters)
            return step(_choose(t == 0, first(parameters), later), parameters), None

        state = jax.eval_shape(lambda: initial.simulate(jax.random.key(0), parameters))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state.return_value)
        return jax.lax.scan(body, zeros, jnp.arange(num_steps))[0]

    return StateSpace(chain, initial, transition)


def _choose(use_first: Any, first: Any, later: Any) -> Any:
    """Select between densities of one family by selecting between their parameters."""
    if jax.tree.structure(first) != jax.tree.structure(later):
        raise ValueError(
            f"state_space: first and move must return densities of one family and shape, "
            f"got {type(first).__name__} and {type(later).__name__} at address 'x'."
        )
    return jax.tree.map(lambda a, b: jnp.where(use_first, a, b), first, later)
