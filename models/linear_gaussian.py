r"""Linear-Gaussian state-space models.

$x_0 \sim N(m_0, L_0 L_0^T)$, $x_t \sim N(F x_{t-1}, L_x L_x^T)$ and
$y_t \sim N(H x_t, L_y L_y^T)$. `marginal` is exact by the Kalman filter.
"""

from typing import NamedTuple

import numpyro.distributions as dist
from jaxtyping import Array, Float

from motes.inference.exact import LinearGaussian
from motes.models.state_space import state_space


class LinearGaussianParameters(NamedTuple):
    """Parameters of a linear-Gaussian model; scales are lower-triangular.

    Attributes:
        initial_mean: Mean $m_0$ of the first state.
        initial_scale: Cholesky factor $L_0$ of its covariance.
        transition: Transition matrix $F$.
        transition_scale: Cholesky factor $L_x$ of the transition's covariance.
        observation: Observation matrix $H$.
        observation_scale: Cholesky factor $L_y$ of the observation's covariance.
    """

    initial_mean: Float[Array, " D"]
    initial_scale: Float[Array, "D D"]
    transition: Float[Array, "D D"]
    transition_scale: Float[Array, "D D"]
    observation: Float[Array, "M D"]
    observation_scale: Float[Array, "M M"]


def _first(p: LinearGaussianParameters) -> dist.Distribution:
    return dist.MultivariateNormal(p.initial_mean, scale_tril=p.initial_scale)


def _move(x: Float[Array, " D"], p: LinearGaussianParameters) -> dist.Distribution:
    return dist.MultivariateNormal(p.transition @ x, scale_tril=p.transition_scale)


def _observe(x: Float[Array, " D"], p: LinearGaussianParameters) -> dist.Distribution:
    return dist.MultivariateNormal(p.observation @ x, scale_tril=p.observation_scale)


chain, initial, transition = state_space(_first, _move, _observe)


def marginal(num_steps: int, parameters: LinearGaussianParameters) -> LinearGaussian:
    """Return the density of the observations with the states integrated out."""
    p = parameters
    return LinearGaussian(
        initial_mean=p.initial_mean,
        initial_cov=p.initial_scale @ p.initial_scale.T,
        transition=p.transition,
        transition_cov=p.transition_scale @ p.transition_scale.T,
        observation=p.observation,
        observation_cov=p.observation_scale @ p.observation_scale.T,
        num_steps=num_steps,
    )
