r"""Smoothing: the posterior of whole paths, from the populations of a filter.

Collect a `History` with `run(..., collect=keep_history(value))`. Genealogies are exact but
degenerate; backward sampling draws $b_t$ with $W_t^n f(x_{t+1} | x_t^n)$.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from motes.inference.smc.derived import Derived, TimeState
from motes.inference.smc.particles import Particles
from motes.inference.smc.transition import log_transition_of
from motes.ppl.errors import check_count, describe


class History(NamedTuple):
    """Populations over time.

    Attributes:
        values: What was kept of the states: leaves of shape (T, N, ...).
        log_weights: Log-weights of each population.
        ancestors: Parents of each population in the one before.
    """

    values: Any
    log_weights: Float[Array, "T N"]
    ancestors: Int[Array, "T N"]


def keep_history(particles: Particles) -> History:
    """Collect states, weights and ancestors: pass it to `run` as `collect`.

    Memory grows as T N times the size of a state, which for a program of `derive` is a
    `TimeState` with the carry and the choices of each step.
    """
    return History(particles.state, particles.log_weights, particles.ancestors)


def genealogies(history: History) -> Any:
    """Return the path of each last particle: leaves of shape (T, N, ...).

    With the last weights the paths are a consistent sample of the smoothing distribution;
    early values coincide for most of them.

    References:
        Chopin and Papaspiliopoulos (2020), Section 12.2.
    """
    lineage = _lineages(history.ancestors)
    return jax.tree.map(
        lambda x: jax.vmap(lambda row, index: row[index])(x, lineage), history.values
    )


def fixed_lag(history: History, lag: int) -> Float[Array, "T N"]:
    """Return weights for smoothing with a fixed lag.

    Row t holds, for each particle of time t, the weight of its descendants at time
    t + lag (or at the end): `sum_n weights[t, n] h(x[t, n])` estimates the mean of h given
    data up to then, with a bias that vanishes as the lag grows.

    Raises:
        ValueError: If `lag` is negative.

    References:
        Kitagawa and Sato (2001).
    """
    lag = check_count("fixed_lag", "lag", lag, least=0)
    weights = jax.nn.softmax(history.log_weights, axis=1)
    num_times = weights.shape[0]

    def at(time: Array) -> Array:
        end = jnp.minimum(time + lag, num_times - 1)

        def back(offset: Any, carried: Array) -> Array:
            moment = time + lag - offset
            row = history.ancestors[moment.clip(0, num_times - 1)]
            moved = jnp.zeros_like(carried).at[row].add(carried)
            return jnp.where((moment <= end) & (moment > time), moved, carried)

        return jax.lax.fori_loop(0, lag, back, weights[end])

    return jax.lax.map(at, jnp.arange(num_times))


def backward_sampling(
    key: Key[Array, ""],
    history: History,
    log_transition: Callable[[Any, Any], Array] | Derived,
    num_paths: int,
) -> Any:
    r"""Draw paths backwards from a filter's populations (FFBS).

    The paths are independent given the populations; means over them are consistent for
    the smoothing distribution. Costs `num_paths * N` evaluations per step.

    Args:
        key: PRNG key; consumed.
        history: Populations, as `keep_history` collects them.
        log_transition: Log density of the next value given a value, for one pair; or the
            program that `derive` made, whose step gives it: `history` then holds its
            whole states, and the choices before the scan are those of the first row.
        num_paths: Number of paths.

    Returns:
        Paths: leaves of shape (T, num_paths, ...).

    Raises:
        ValueError: If `num_paths` is less than one.
        AddressError: If a derived program's state is not a function of its last choices.

    References:
        Godsill, Doucet and West (2004); Chopin and Papaspiliopoulos (2020), Alg. 12.3.
    """
    num_paths = check_count("backward_sampling", "num_paths", num_paths)
    last_key, *_ = keys = jax.random.split(key, history.log_weights.shape[0])
    transition, inputs, history = _transition(last_key, history, log_transition)
    pick = _inverse_cdf(last_key, history.log_weights[-1][None], num_paths)
    final = jax.tree.map(lambda x: x[-1][pick], history.values)

    def back(later: Any, row: Any) -> tuple[Any, Any]:
        key, values, log_weights, given = row
        density = jax.vmap(
            lambda y: jax.vmap(lambda x: transition(x, y, given))(values)
        )
        scores = log_weights[None] + density(later)  # (num_paths, N)
        index = _inverse_cdf(key, scores, num_paths)
        chosen = jax.tree.map(lambda x: x[index], values)
        return chosen, chosen

    rows = (
        keys[1:],
        jax.tree.map(lambda x: x[:-1], history.values),
        history.log_weights[:-1],
        inputs,
    )
    _, earlier = jax.lax.scan(back, final, rows, reverse=True)
    return jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), earlier, final)


def _transition(
    key: Array, history: History, given: Any
) -> tuple[Callable[[Any, Any, Any], Array], Any, History]:
    """Return the transition, its inputs by step, and the history with final weights."""
    if not isinstance(given, Derived) and not callable(given):
        raise TypeError(
            "backward_sampling: log_transition must be a function of two states or a "
            f"program of derive, got {describe(given)}."
        )
    if not isinstance(given, Derived):
        density: Any = given
        return lambda x, y, _: density(x, y), None, history
    if not isinstance(history.values, TimeState):
        raise TypeError(
            "backward_sampling: history must hold the states of the derived program, as "
            f"keep_history collects them, got {type(history.values).__name__}."
        )
    last = jax.tree.map(lambda x: x[-1], history.values)
    log_weights = history.log_weights.at[-1].add(given.finish(key, last))
    inputs = jax.tree.map(lambda x: x[1:], given.inputs)
    return log_transition_of(given), inputs, history._replace(log_weights=log_weights)


def _lineages(ancestors: Array) -> Array:
    """Index, at each time, of the ancestor of each last particle."""
    last = jnp.arange(ancestors.shape[1])

    def back(index: Array, row: Array) -> tuple[Array, Array]:
        return row[index], row[index]

    _, earlier = jax.lax.scan(back, last, ancestors[1:], reverse=True)
    return jnp.concatenate([earlier, last[None]])


def _inverse_cdf(key: Array, log_weights: Array, num: int) -> Array:
    """Draw one index from each row of log-weights (a single row serves all draws)."""
    weights = jnp.exp(log_weights - jnp.max(log_weights, axis=1, keepdims=True))
    weights = jax.lax.stop_gradient(weights)
    cdf, is_single = jnp.cumsum(weights, axis=1), weights.shape[0] == 1
    points = jax.random.uniform(key, (num,), cdf.dtype) * cdf[:, -1]
    search = partial(jnp.searchsorted, side="right")
    if is_single:
        row, index = 0, search(cdf[0], points)
    else:
        row, index = jnp.arange(num), jax.vmap(search)(cdf, points)

    # Sums made in parallel may rise at a weight of zero: the live one before is meant.
    def is_dead(index: Array) -> Array:
        return weights[row, index] == 0

    return jax.lax.while_loop(
        lambda index: jnp.any(is_dead(index)),
        lambda index: index - is_dead(index),
        index.clip(max=cdf.shape[1] - 1),
    )
