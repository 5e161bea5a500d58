r"""Stochastic volatility, with or without leverage.

The log variance $x_t$ of a return $y_t$ is a stationary autoregression:
$x_t = \mu + \phi (x_{t-1} - \mu) + \sigma u_t$, $y_t = e^{x_t / 2} v_t$. With leverage
$\rho$, $v_{t-1}$ and $u_t$ are correlated: falling prices raise volatility if $\rho < 0$.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from motes.models.state_space import state_space


class StochasticVolatility(NamedTuple):
    r"""Parameters of a stochastic volatility model.

    Attributes:
        mean: Mean $\mu$ of the log variance.
        persistence: Autoregression coefficient $\phi$, in (-1, 1).
        scale: Standard deviation $\sigma$ of a change of the log variance.
        leverage: Correlation $\rho$ of a return and the next change, in (-1, 1); None
            for a model without, whose state is smaller.

    References:
        Omori, Chib, Shephard and Nakajima (2007), Equation 1.
    """

    mean: float | Float[Array, ""]
    persistence: float | Float[Array, ""]
    scale: float | Float[Array, ""]
    leverage: float | Float[Array, ""] | None = None


def _first(p: StochasticVolatility) -> dist.Distribution:
    return dist.Normal(p.mean, p.scale / jnp.sqrt(1 - p.persistence**2))


def _move(state: Any, p: StochasticVolatility) -> dist.Distribution:
    x = state if p.leverage is None else state[0]
    mean = p.mean + p.persistence * (x - p.mean)
    if p.leverage is None:
        return dist.Normal(mean, p.scale)
    shock = state[1] * jnp.exp(-x / 2)
    scale = p.scale * jnp.sqrt(1 - p.leverage**2)
    return dist.Normal(mean + p.leverage * p.scale * shock, scale)


def _observe(x: Float[Array, ""], p: StochasticVolatility) -> dist.Distribution:
    return dist.Normal(0.0, jnp.exp(x / 2))


def _keep(x: Array, y: Array, p: StochasticVolatility) -> Any:
    return x if p.leverage is None else (x, y)


chain, initial, transition = state_space(_first, _move, _observe, _keep)
