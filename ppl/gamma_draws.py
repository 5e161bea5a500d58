"""Draws of the gamma family with all lanes side by side.

`jax.random.gamma` finishes one lane after the other on CPU. Here all lanes propose until
each has accepted, which is ten times faster for 10^5 lanes; distributions that rest on
gamma draws use it, all others draw as NumPyro has them do.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Key


def sample(density: dist.Distribution, key: Any, sizes: tuple[int, ...] = ()) -> Array:
    """Draw from a NumPyro distribution, `sizes` as `sample_shape`."""
    draw = _DRAWS.get(type(density))
    if draw is None:
        return density.sample(key, sizes)
    return draw(density, key, sizes + density.batch_shape)


@jax.custom_jvp
def log_gamma(
    concentration: Float[Array, "*lanes"], key: Key[Array, ""]
) -> Float[Array, "*lanes"]:
    """Draw the logs of independent Gamma(concentration, 1) variables.

    Exact; NaN where the concentration is not positive and finite. Tangents are those of
    implicit reparametrization (Figurnov et al. 2018, equation 8).

    Marsaglia and Tsang (2000), A simple method for generating gamma variables: section 4,
    and section 6 for concentrations below one.
    """
    valid = (concentration > 0) & jnp.isfinite(concentration)
    boosted = concentration + (concentration < 1)
    d = boosted - 1 / 3

    def propose(state: Any) -> Any:
        key, log_v, open_lanes = state
        key, key_x, key_e = jax.random.split(key, 3)
        x = jax.random.normal(key_x, d.shape, d.dtype)
        v = (1 + x / jnp.sqrt(9 * d)) ** 3
        log_new = jnp.log(jnp.where(v > 0, v, 1))
        height = x * x / 2 + d * (1 - v + log_new)
        accepted = (v > 0) & (-jax.random.exponential(key_e, d.shape, d.dtype) < height)
        log_v = jnp.where(open_lanes, log_new, log_v)
        return key, log_v, open_lanes & ~accepted

    key, key_boost = jax.random.split(key)
    state = (key, jnp.zeros_like(d), valid)
    _, log_v, _ = jax.lax.while_loop(lambda state: state[2].any(), propose, state)
    fall = jax.random.exponential(key_boost, d.shape, d.dtype) / concentration
    log_draw = jnp.log(d) + log_v - jnp.where(concentration < 1, fall, 0)
    return jnp.where(valid, log_draw, jnp.nan)


@log_gamma.defjvp
def _log_gamma_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    concentration, key = primals
    log_draw = log_gamma(concentration, key)
    draw = _positive(log_draw)
    slope = jax.lax.random_gamma_grad(concentration, draw) / draw
    return log_draw, slope * tangents[0]


def _positive(log_value: Array) -> Array:
    return jnp.maximum(jnp.exp(log_value), jnp.finfo(log_value.dtype).tiny)


def _log_gamma_of(concentration: Any, key: Any, shape: tuple[int, ...]) -> Array:
    concentration = jnp.asarray(concentration, jnp.result_type(float))
    return log_gamma(jnp.broadcast_to(concentration, shape), key)


def _inside_unit(value: Array) -> Array:
    limits = jnp.finfo(value.dtype)
    return jnp.clip(value, limits.tiny, 1 - limits.eps)


def _gamma(density: Any, key: Any, shape: tuple[int, ...]) -> Array:
    return _positive(_log_gamma_of(density.concentration, key, shape)) / density.rate


def _inverse_gamma(density: Any, key: Any, shape: tuple[int, ...]) -> Array:
    return density.rate / _positive(_log_gamma_of(density.concentration, key, shape))


def _beta(density: Any, key: Any, shape: tuple[int, ...]) -> Array:
    key_one, key_zero = jax.random.split(key)
    log_one = _log_gamma_of(density.concentration1, key_one, shape)
    log_zero = _log_gamma_of(density.concentration0, key_zero, shape)
    return _inside_unit(jax.nn.sigmoid(log_one - log_zero))


def _dirichlet(density: Any, key: Any, shape: tuple[int, ...]) -> Array:
    shape = shape + density.event_shape
    log_gammas = _log_gamma_of(density.concentration, key, shape)
    return _inside_unit(jax.nn.softmax(log_gammas, -1))


def _student_t(density: Any, key: Any, shape: tuple[int, ...]) -> Array:
    key_normal, key_gamma = jax.random.split(key)
    half_chi2 = _positive(_log_gamma_of(density.df / 2, key_gamma, shape))
    normal = jax.random.normal(key_normal, shape, half_chi2.dtype)
    return density.loc + density.scale * normal * jnp.sqrt(density.df / 2 / half_chi2)


_DRAWS: dict[type, Callable[[Any, Any, tuple[int, ...]], Array]] = {
    dist.Gamma: _gamma,
    dist.Chi2: _gamma,
    dist.InverseGamma: _inverse_gamma,
    dist.Beta: _beta,
    dist.Dirichlet: _dirichlet,
    dist.StudentT: _student_t,
}
