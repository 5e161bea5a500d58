r"""The theta-logistic model of a population's growth.

The log abundance is $x_t = x_{t-1} + \tau_0 - \tau_1 e^{\tau_2 x_{t-1}} + \sigma_x u_t$, a
nonlinear random walk held at the carrying capacity; $y_t = x_t + \sigma_y v_t$.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from motes.models.state_space import state_space


class ThetaLogistic(NamedTuple):
    r"""Parameters of the theta-logistic model, with the values of a slow, noisy growth.

    Attributes:
        growth: Growth rate $\tau_0$ at abundance zero, per step.
        capacity: Coefficient $\tau_1$ of the limit to growth, at least 0.
        shape: Exponent $\tau_2$, at least 0.
        process_scale: Standard deviation $\sigma_x$ of the log abundance's noise.
        noise_scale: Standard deviation $\sigma_y$ of an observation.
        initial_mean: Mean of the first log abundance.
        initial_scale: Standard deviation of the first log abundance.

    References:
        Peters, Hosack and Hayes (2010), Section 2; Chopin and Papaspiliopoulos (2020),
        Section 2.4.6.
    """

    growth: float | Float[Array, ""] = 0.15
    capacity: float | Float[Array, ""] = 0.12
    shape: float | Float[Array, ""] = 0.1
    process_scale: float | Float[Array, ""] = 0.47
    noise_scale: float | Float[Array, ""] = 0.39
    initial_mean: float | Float[Array, ""] = 0.0
    initial_scale: float | Float[Array, ""] = 1.0


def _first(p: ThetaLogistic) -> dist.Distribution:
    return dist.Normal(p.initial_mean, p.initial_scale)


def _move(x: Float[Array, ""], p: ThetaLogistic) -> dist.Distribution:
    drift = p.growth - p.capacity * jnp.exp(p.shape * x)
    return dist.Normal(x + drift, p.process_scale)


def _observe(x: Float[Array, ""], p: ThetaLogistic) -> dist.Distribution:
    return dist.Normal(x, p.noise_scale)


chain, initial, transition = state_space(_first, _move, _observe)
