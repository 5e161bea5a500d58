r"""Hidden Markov models with finitely many states.

$x_0 \sim \pi$, $x_t \sim A_{x_{t-1}, \cdot}$, and $y_t$ has the distribution of state
$x_t$. `marginal` is exact by forward-backward.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from motes.inference.exact import HiddenMarkov
from motes.models.state_space import state_space
from motes.ppl import ShapeError


class HiddenMarkovParameters(NamedTuple):
    r"""Parameters of a hidden Markov model.

    Attributes:
        initial: Probabilities $\pi$ of the first state.
        transition: Row-stochastic matrix $A$; `marginal` refuses other rows.
        emission: A NumPyro distribution with the states as its one batch axis, whose
            parameters all have that axis: row k belongs to state k.

    References:
        Rabiner (1989).
    """

    initial: Float[Array, " K"]
    transition: Float[Array, "K K"]
    emission: Any


def _first(p: HiddenMarkovParameters) -> dist.Distribution:
    return dist.CategoricalProbs(p.initial)


def _move(x: Int[Array, ""], p: HiddenMarkovParameters) -> dist.Distribution:
    return dist.CategoricalProbs(p.transition[x])


def _observe(x: Int[Array, ""], p: HiddenMarkovParameters) -> dist.Distribution:
    fields = vars(p.emission)
    names = [name for name in p.emission.arg_constraints if name in fields]
    for name in names:
        # NumPyro gives a parameter that all states share an axis of length one.
        if jnp.shape(fields[name])[:1] not in ((1,), p.initial.shape):
            raise ShapeError(
                f"hidden_markov: parameter {name} of emission must have the "
                f"{p.initial.shape[0]} states as first axis, got shape "
                f"{jnp.shape(fields[name])}."
            )
    return type(p.emission)(**{name: fields[name][x] for name in names})


chain, initial, transition = state_space(_first, _move, _observe)


def marginal(num_steps: int, parameters: HiddenMarkovParameters) -> HiddenMarkov:
    """Return the density of the observations with the states summed out."""
    return HiddenMarkov(*parameters, num_steps=num_steps)
