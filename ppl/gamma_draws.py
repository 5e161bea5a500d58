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
def gamma(
    concentration: Float[Array, "*lanes"], key: Key[Array, ""]
) -> tuple[Float[Array, "*lanes"], Float[Array, "*lanes"]]:
    """Draw independent Gamma(concentration, 1) variables; return them and their logs.

    Each is precise where the other is not: logs of tiny draws, draws of a large mean.
    Exact; NaN where the concentration is not positive and finite. Tangents are those of
    implicit reparametrization (Figurnov et al. 2018, equation 8).

    Marsaglia and Tsang (2000), A simple method for generating gamma variables: section 4,
    and section 6 for concentrations below one.
    """
    valid = (concentration > 0) & jnp.isfinite(concentration)
    boosted = concentration + (concentration < 1)
    d = boosted - 1 / 3
    root = jnp.sqrt(9 * d)

    def propose(state: Any) -> Any:
        key, log_v, open_lanes = state
        key, key_x, key_e = jax.random.split(key, 3)
        x = jax.random.normal(key_x, d.shape, d.dtype)
        t = x / root  # v = (1 + t)^3; the difference of large terms is taken by hand
        possible = t > -1
        log_t = jnp.log1p(jnp.where(possible, t, 0))
        height = x * x / 6 + d * (3 * (log_t - t) - t**3)
        fall = jax.random.exponential(key_e, d.shape, d.dtype)
        accepted = possible & (-fall < height)
        log_v = jnp.where(open_lanes, 3 * log_t, log_v)
        return key, log_v, open_lanes & ~accepted

    key, key_boost = jax.random.split(key)
    state = (key, jnp.zeros_like(d), valid)
    _, log_v, _ = jax.lax.while_loop(lambda state: state[2].any(), propose, state)
    fall = jax.random.exponential(key_boost, d.shape, d.dtype) / concentration
    log_ratio = jnp.where(valid, log_v - jnp.where(concentration < 1, fall, 0), jnp.nan)
    draw = jnp.maximum(d * jnp.exp(log_ratio), jnp.finfo(d.dtype).tiny)
    return draw, jnp.log(d) + log_ratio


@gamma.defjvp
def _gamma_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    concentration, key = primals
    draw, log_draw = gamma(concentration, key)
    slope = jax.lax.random_gamma_grad(concentration, draw) * tangents[0]
    return (draw, log_draw), (slope, slope / draw)


def _gamma_of(concentration: Any, key: Any, shape: tuple[int, ...]) -> Any:
    concentration = jnp.asarray(concentration, jnp.result_type(float))
    return gamma(jnp.broadcast_to(concentration, shape), key)


def _inside_unit(value: Array) -> Array:
    limits = jnp.finfo(value.dtype)
    return jnp.clip(value, limits.tiny, 1 - limits.eps)


def _scaled_gamma(density: Any, key: Any, shape: tuple[int, ...]) -> Array:
    return _gamma_of(density.concentration, key, shape)[0] / density.rate


def _inverse_gamma(density: Any, key: Any, shape: tuple[int, ...]) -> Array:
    return density.rate / _gamma_of(density.concentration, key, shape)[0]


def _beta(density: Any, key: Any, shape: tuple[int, ...]) -> Array:
    key_one, key_zero = jax.random.split(key)
    _, log_one = _gamma_of(density.concentration1, key_one, shape)
    _, log_zero = _gamma_of(density.concentration0, key_zero, shape)
    return _inside_unit(jax.nn.sigmoid(log_one - log_zero))


def _dirichlet(density: Any, key: Any, shape: tuple[int, ...]) -> Array:
    shape = shape + density.event_shape
    _, log_gammas = _gamma_of(density.concentration, key, shape)
    return _inside_unit(jax.nn.softmax(log_gammas, -1))


def _student_t(density: Any, key: Any, shape: tuple[int, ...]) -> Array:
    key_normal, key_gamma = jax.random.split(key)
    half_chi2, _ = _gamma_of(density.df / 2, key_gamma, shape)
    normal = jax.random.normal(key_normal, shape, half_chi2.dtype)
    return density.loc + density.scale * normal * jnp.sqrt(density.df / 2 / half_chi2)


_DRAWS: dict[type, Callable[[Any, Any, tuple[int, ...]], Array]] = {
    dist.Gamma: _scaled_gamma,
    dist.Chi2: _scaled_gamma,
    dist.InverseGamma: _inverse_gamma,
    dist.Beta: _beta,
    dist.Dirichlet: _dirichlet,
    dist.StudentT: _student_t,
}
