r"""Kalman filter and smoother.

The chain is $x_0 \sim N(m_0, P_0)$, $x_t \sim N(F_t x_{t-1} + b_t, Q_t)$,
$y_t \sim N(H_t x_t + d_t, R_t)$. Evidence, filter and smoother are exact; the chain with
its states integrated out is a density, so it can be one site of a model.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from numpyro.distributions import constraints

from motes.inference.exact.missing import OrMissing
from motes.ppl.errors import ShapeError, check_count, is_known


class LinearGaussian(eqx.Module):
    """A linear-Gaussian chain; as a density, it is that of the observations.

    Matrices may have a leading axis of length T (T - 1 for the transition) or be the same
    at all times.

    Attributes:
        initial_mean: Mean of the first state.
        initial_cov: Covariance of the first state.
        transition: Transition matrix F.
        transition_cov: Noise covariance Q.
        observation: Observation matrix H.
        observation_cov: Noise covariance R.
        num_steps: Number of observations T.
        transition_offset: Offset b, or None for zero.
        observation_offset: Offset d, or None for zero.

    Raises:
        ShapeError: If the parts do not fit together.
        ValueError: If a part is known to hold NaN.
    """

    initial_mean: Float[Array, " D"]
    initial_cov: Float[Array, "D D"]
    transition: Float[Array, "*S D D"]
    transition_cov: Float[Array, "*S D D"]
    observation: Float[Array, "*T M D"]
    observation_cov: Float[Array, "*T M M"]
    num_steps: int = eqx.field(static=True)
    transition_offset: Any = None
    observation_offset: Any = None

    def __check_init__(self) -> None:
        check_count("LinearGaussian", "num_steps", self.num_steps)
        size = jnp.shape(self.initial_mean)
        rows = jnp.shape(self.observation)[-2:-1] or (1,)
        later = (self.num_steps - 1,)
        _check_part("initial_mean", self.initial_mean, size[:1] or (1,))
        _check_part("initial_cov", self.initial_cov, size * 2)
        _check_part("transition", self.transition, size * 2, later)
        _check_part("transition_cov", self.transition_cov, size * 2, later)
        every = (self.num_steps,)
        _check_part("observation", self.observation, (*rows, *size), every)
        _check_part("observation_cov", self.observation_cov, rows * 2, every)
        if self.transition_offset is not None:
            _check_part("transition_offset", self.transition_offset, size, later)
        if self.observation_offset is not None:
            _check_part("observation_offset", self.observation_offset, rows, every)

    @property
    def support(self) -> Any:
        return constraints.independent(OrMissing(constraints.real), 2)

    def log_density(self, key: Any, value: Float[Array, "T M"]) -> Float[Array, ""]:
        """Return the log density of observations, in nats: exact; `key` is ignored.

        Entries that are NaN are missing, and integrated out.
        """
        return kalman_filter(self, value).log_evidence

    def sample_with_log_density(
        self, key: Key[Array, ""]
    ) -> tuple[Float[Array, "T M"], Float[Array, ""]]:
        """Draw observations."""
        value = self.sample_path(key)[1]
        return value, self.log_density(key, value)

    def sample_path(self, key: Key[Array, ""]) -> tuple[Array, Array]:
        """Draw states and observations, of shapes (T, D) and (T, M)."""
        first_key, *keys = jax.random.split(key, self.num_steps + 1)
        keys = jnp.stack(keys)
        first = _draw(first_key, self.initial_mean, self.initial_cov)

        def move(x: Array, row: Any) -> tuple[Array, Array]:
            key, (matrix, offset, cov) = row
            x = _draw(key, matrix @ x + offset, cov)
            return x, x

        transition_keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys[1:])
        rows = (transition_keys, self._transitions())
        states = jnp.concatenate([first[None], jax.lax.scan(move, first, rows)[1]])
        matrix, offset, cov = self._observations()
        values = jax.vmap(lambda k, x, h, d, r: _draw(k, h @ x + d, r))(
            keys, states, matrix, offset, cov
        )
        return states, values

    def _transitions(self) -> tuple[Array, Array, Array]:
        size, num = self.initial_mean.shape[0], self.num_steps - 1
        return (
            _over_time(self.transition, 2, num),
            _over_time(_zeros_if_none(self.transition_offset, size), 1, num),
            _over_time(self.transition_cov, 2, num),
        )

    def _observations(self) -> tuple[Array, Array, Array]:
        size, num = self.observation.shape[-2], self.num_steps
        return (
            _over_time(self.observation, 2, num),
            _over_time(_zeros_if_none(self.observation_offset, size), 1, num),
            _over_time(self.observation_cov, 2, num),
        )


class KalmanState(NamedTuple):
    """Gaussian filtering or smoothing distributions over time.

    Attributes:
        means: Posterior means.
        covs: Posterior covariances.
        log_evidence: Log density of all observations, in nats.
        log_increments: Log density of each observation given the earlier ones.
    """

    means: Float[Array, "T D"]
    covs: Float[Array, "T D D"]
    log_evidence: Float[Array, ""]
    log_increments: Float[Array, " T"]


def kalman_filter(
    chain: LinearGaussian, observations: Float[Array, "T M"]
) -> KalmanState:
    """Filter exactly; rows of observations that are NaN are missing.

    Raises:
        ValueError: If there are not `chain.num_steps` observations.

    References:
        Kalman (1960); Chopin and Papaspiliopoulos (2020), Section 7.3.
    """
    observations = jnp.asarray(observations)
    expected = (chain.num_steps, chain._observations()[0].shape[-2])
    if observations.shape != expected:
        raise ValueError(
            f"kalman_filter: observations must have {expected[0]} rows of "
            f"{expected[1]} columns, got shape {observations.shape}."
        )
    transitions = jax.tree.map(_pad_first, chain._transitions())

    def step(carry: tuple, row: Any) -> tuple[tuple, tuple]:
        index, value, (f, b, q), (h, d, r) = row
        mean, cov = carry
        moved = f @ mean + b, f @ cov @ f.T + q
        mean, cov = jax.tree.map(
            lambda x, y: jnp.where(index == 0, x, y), (mean, cov), moved
        )
        mean, cov, increment = _condition(mean, cov, value - d, h, r)
        return (mean, cov), (mean, cov, increment)

    rows = (
        jnp.arange(chain.num_steps),
        observations,
        transitions,
        chain._observations(),
    )
    first = (chain.initial_mean, chain.initial_cov)
    _, (means, covs, increments) = jax.lax.scan(step, first, rows)
    return KalmanState(means, covs, jnp.sum(increments), increments)


def kalman_smoother(
    chain: LinearGaussian, observations: Float[Array, "T M"]
) -> KalmanState:
    """Smooth exactly: distributions of each state given all observations.

    References:
        Rauch, Tung and Striebel (1965).
    """
    filtered = kalman_filter(chain, observations)

    def back(later: tuple, row: Any) -> tuple[tuple, tuple]:
        mean, cov, (f, b, q) = row
        ahead_cov = f @ cov @ f.T + q
        gain = jnp.linalg.solve(ahead_cov, f @ cov).T
        mean = mean + gain @ (later[0] - f @ mean - b)
        cov = _symmetric(cov + gain @ (later[1] - ahead_cov) @ gain.T)
        return (mean, cov), (mean, cov)

    last = (filtered.means[-1], filtered.covs[-1])
    rows = (filtered.means[:-1], filtered.covs[:-1], chain._transitions())
    _, earlier = jax.lax.scan(back, last, rows, reverse=True)
    means, covs = jax.tree.map(
        lambda xs, x: jnp.concatenate([xs, x[None]]), earlier, last
    )
    return filtered._replace(means=means, covs=covs)


def _check_part(
    name: str, array: Any, shape: tuple[int, ...], leading: tuple[int, ...] = ()
) -> None:
    """Raise unless the array has the shape, or that with the leading axis of time."""
    found = jnp.shape(array)
    if found not in (shape, leading + shape):
        over_time = f" or {leading + shape}" if leading else ""
        raise ShapeError(
            f"LinearGaussian: {name} must have shape {shape}{over_time} here, got {found}."
        )
    if is_known(array) and np.isnan(array).any():
        raise ValueError(f"LinearGaussian: {name} must not be NaN, got {array}.")


def _condition(mean: Array, cov: Array, value: Array, h: Array, r: Array) -> tuple:
    """Condition on an observation in Joseph's form, which keeps covariances positive."""
    missing = jnp.isnan(value)
    h = jnp.where(missing[:, None], 0.0, h)
    seen = ~(missing[:, None] | missing[None, :])
    r = jnp.where(seen, r, jnp.eye(value.shape[0], dtype=r.dtype))
    residual = jnp.where(missing, 0.0, value - h @ mean)
    innovation = h @ cov @ h.T + r
    factor = jax.scipy.linalg.cho_factor(innovation, lower=True)
    gain = jax.scipy.linalg.cho_solve(factor, h @ cov).T
    keep = jnp.eye(mean.shape[0], dtype=mean.dtype) - gain @ h
    cov = _symmetric(keep @ cov @ keep.T + gain @ r @ gain.T)
    whitened = jax.scipy.linalg.solve_triangular(factor[0], residual, lower=True)
    log_det = jnp.sum(jnp.where(missing, 0.0, jnp.log(jnp.diag(factor[0]))))
    constant = 0.5 * jnp.log(2 * jnp.pi) * jnp.sum(~missing)
    increment = -0.5 * whitened @ whitened - log_det - constant
    return mean + gain @ residual, cov, increment


def _symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + matrix.T)


def _draw(key: Array, mean: Array, cov: Array) -> Array:
    return jax.random.multivariate_normal(key, mean, cov, method="svd")


def _over_time(array: Array, ndim: int, num: int) -> Array:
    if array.ndim > ndim:
        return array
    return jnp.broadcast_to(array, (num, *array.shape))


def _zeros_if_none(offset: Any, size: int) -> Array:
    return jnp.zeros(size) if offset is None else offset


def _pad_first(array: Array) -> Array:
    return jnp.concatenate([jnp.zeros((1, *array.shape[1:]), array.dtype), array])
