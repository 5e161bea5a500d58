r"""Bearings-only tracking: a moving target seen from the origin by its angle alone.

The state is position and velocity in the plane, $(p, v)$. Each coordinate moves at nearly
constant velocity, driven by white acceleration; the bearing
$y_t = \mathrm{atan2}(p_2, p_1)$ is read with von Mises noise, so it wraps around rightly.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from motes.models.state_space import state_space


class BearingsOnly(NamedTuple):
    """Parameters of bearings-only tracking, for one time unit between observations.

    Attributes:
        initial_mean: Mean of the first state $(p_1, p_2, v_1, v_2)$.
        initial_scale: Standard deviations of the first state's coordinates.
        acceleration: Intensity of the white acceleration noise, at least 0.
        concentration: Concentration of the bearings; about one over their variance in
            squared radians.

    References:
        Gordon, Salmond and Smith (1993), Section 4.2; Bar-Shalom, Li and Kirubarajan
        (2001), Section 6.2.2.
    """

    initial_mean: Float[Array, " 4"]
    initial_scale: Float[Array, " 4"]
    acceleration: float | Float[Array, ""] = 0.001
    concentration: float | Float[Array, ""] = 4e4


def _first(p: BearingsOnly) -> dist.Distribution:
    scale = jnp.diag(p.initial_scale)
    return dist.MultivariateNormal(p.initial_mean, scale_tril=scale)


def _move(state: Float[Array, " 4"], p: BearingsOnly) -> dist.Distribution:
    position, velocity = state[:2], state[2:]
    mean = jnp.concatenate([position + velocity, velocity])
    scale = p.acceleration * jnp.asarray(_UNIT_SCALE)
    return dist.MultivariateNormal(mean, scale_tril=scale)


def _observe(state: Float[Array, " 4"], p: BearingsOnly) -> dist.Distribution:
    bearing = jnp.arctan2(state[1], state[0])
    return dist.VonMises(bearing, p.concentration)


# Cholesky factor of the covariance [[1/3, 1/2], [1/2, 1]] of position and velocity after
# one time unit of white acceleration, for both coordinates of the plane.
_UNIT_SCALE = (
    (3**-0.5, 0.0, 0.0, 0.0),
    (0.0, 3**-0.5, 0.0, 0.0),
    (3**0.5 / 2, 0.0, 0.5, 0.0),
    (0.0, 3**0.5 / 2, 0.0, 0.5),
)

chain, initial, transition = state_space(_first, _move, _observe)
