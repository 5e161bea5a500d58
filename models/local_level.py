r"""The local level model: a random walk observed with noise.

$x_t = x_{t-1} + \sigma_x u_t$, $y_t = x_t + \sigma_y v_t$ with standard normal $u, v$. The
river Nile is its classical example; `marginal` is exact by the Kalman filter.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from motes.inference.exact import LinearGaussian
from motes.models.state_space import state_space


class LocalLevel(NamedTuple):
    r"""Parameters of the local level model.

    Attributes:
        initial_mean: Mean of the first level.
        initial_scale: Standard deviation of the first level.
        level_scale: Standard deviation $\sigma_x$ of a change of level.
        noise_scale: Standard deviation $\sigma_y$ of an observation.

    References:
        Durbin and Koopman (2012), Chapter 2.
    """

    initial_mean: float | Float[Array, ""] = 0.0
    initial_scale: float | Float[Array, ""] = 1.0
    level_scale: float | Float[Array, ""] = 1.0
    noise_scale: float | Float[Array, ""] = 1.0


def _first(p: LocalLevel) -> dist.Distribution:
    return dist.Normal(p.initial_mean, p.initial_scale)


def _move(x: Float[Array, ""], p: LocalLevel) -> dist.Distribution:
    return dist.Normal(x, p.level_scale)


def _observe(x: Float[Array, ""], p: LocalLevel) -> dist.Distribution:
    return dist.Normal(x, p.noise_scale)


chain, initial, transition = state_space(_first, _move, _observe)


def marginal(num_steps: int, parameters: LocalLevel) -> LinearGaussian:
    """Return the density of the observations, of shape (T, 1), levels integrated out."""
    p = parameters
    return LinearGaussian(
        initial_mean=jnp.full((1,), p.initial_mean),
        initial_cov=jnp.full((1, 1), p.initial_scale) ** 2,
        transition=jnp.eye(1),
        transition_cov=jnp.full((1, 1), p.level_scale) ** 2,
        observation=jnp.eye(1),
        observation_cov=jnp.full((1, 1), p.noise_scale) ** 2,
        num_steps=num_steps,
    )
