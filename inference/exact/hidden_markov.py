r"""Forward-backward for hidden Markov models with finitely many states.

The chain is $z_0 \sim \pi$, $z_t \sim A_{z_{t-1}, \cdot}$ with emission log densities
$\ell_t(z)$, zero where an observation is missing. All recursions are exact and in log
space.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from motes.inference.exact.missing import OrMissing
from motes.ppl import ShapeError
from motes.ppl.densities import elementwise_log_density
from motes.ppl.errors import check_count, is_known


class HiddenMarkov(eqx.Module):
    """A hidden Markov model; as a density, it is that of the observations.

    Attributes:
        initial: Probabilities of the first state.
        transition: Row-stochastic matrix A.
        emission: A NumPyro distribution with the states as its one batch axis: row k is
            the distribution of an observation in state k.
        num_steps: Number of observations T.

    Raises:
        ShapeError: If the parts do not have one number of states.
        ValueError: If known rows are not probabilities; inside `jit` the answers are wrong.
    """

    initial: Float[Array, " K"]
    transition: Float[Array, "K K"]
    emission: Any
    num_steps: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        check_count("HiddenMarkov", "num_steps", self.num_steps)
        (num_states,) = jnp.shape(self.initial)[:1] or (1,)
        _check_shape("initial", jnp.shape(self.initial), (num_states,))
        _check_shape("transition", jnp.shape(self.transition), (num_states,) * 2)
        batch_shape = getattr(self.emission, "batch_shape", None)
        _check_shape("emission", batch_shape, (num_states,))
        _check_rows("initial", self.initial)
        _check_rows("transition", self.transition)

    @property
    def support(self) -> Any:
        support = self.emission.support
        if any(getattr(bound, "shape", ()) for bound in jax.tree.leaves(support)):
            return None  # it differs between the states
        return support if support.is_discrete else OrMissing(support)

    def log_emissions(self, observations: Array) -> Float[Array, "T K"]:
        """Log density of each observation in each state, in nats; 0 if it is missing."""
        missing = jnp.isnan(observations).all(tuple(range(1, observations.ndim)))
        # The gradient at NaN would be NaN: a row that was observed stands in.
        stand_in = jnp.nan_to_num(observations[jnp.argmin(missing)])
        rows = jax.vmap(jnp.where, (0, None, 0))(missing, stand_in, observations)
        log_densities = jax.vmap(
            lambda row: elementwise_log_density(self.emission, None, row)
        )(rows)
        return jnp.where(missing[:, None], 0.0, log_densities)

    def log_density(self, key: Any, value: Array) -> Float[Array, ""]:
        """Return the log density of observations, in nats: exact; `key` is ignored.

        Observations that are NaN are missing, and integrated out.
        """
        return hmm_filter(self, value).log_evidence

    def sample_with_log_density(self, key: Key[Array, ""]) -> tuple[Array, Array]:
        """Draw observations."""
        value = self.sample_path(key)[1]
        return value, self.log_density(key, value)

    def sample_path(self, key: Key[Array, ""]) -> tuple[Int[Array, " T"], Array]:
        """Draw states and observations."""
        first_key, move_key, emit_key = jax.random.split(key, 3)
        first = jax.random.categorical(first_key, jnp.log(self.initial))
        rows = jnp.log(self.transition)

        def move(z: Array, key: Array) -> tuple[Array, Array]:
            z = jax.random.categorical(key, rows[z])
            return z, z

        keys = jax.random.split(move_key, self.num_steps - 1)
        states = jnp.concatenate([first[None], jax.lax.scan(move, first, keys)[1]])
        with jax.numpy_rank_promotion("allow"):
            drawn = self.emission.sample(emit_key, (self.num_steps,))
        return states, jax.vmap(lambda row, z: row[z])(drawn, states)


class HiddenMarkovState(NamedTuple):
    """Distributions of the states over time.

    Attributes:
        probabilities: Filtering or smoothing probabilities.
        log_evidence: Log density of all observations, in nats.
    """

    probabilities: Float[Array, "T K"]
    log_evidence: Float[Array, ""]


def hmm_filter(chain: HiddenMarkov, observations: Array) -> HiddenMarkovState:
    """Filter exactly by the forward recursion; observations that are NaN are missing.

    Raises:
        ShapeError: If there are not `chain.num_steps` observations of the emission's shape.
        ValueError: If an observation is known to be missing in part; inside `jit` its
            density is zero.

    References:
        Rabiner (1989), Equations 18 to 21.
    """
    log_alpha = _forward(chain, _emissions("hmm_filter", chain, observations))
    log_evidence = jax.nn.logsumexp(log_alpha[-1])
    return HiddenMarkovState(jax.nn.softmax(log_alpha, axis=1), log_evidence)


def hmm_smoother(chain: HiddenMarkov, observations: Array) -> HiddenMarkovState:
    """Smooth exactly by the forward-backward recursions.

    References:
        Rabiner (1989), Equations 24 to 27.
    """
    log_emissions = _emissions("hmm_smoother", chain, observations)
    log_alpha = _forward(chain, log_emissions)
    log_rows = jnp.log(chain.transition)

    def back(log_beta: Array, log_emission: Array) -> tuple[Array, Array]:
        ahead = log_rows + (log_emission + log_beta)[None]
        log_beta = jax.nn.logsumexp(ahead, axis=1)
        return log_beta, log_beta

    last = jnp.zeros_like(log_alpha[-1])
    _, earlier = jax.lax.scan(back, last, log_emissions[1:], reverse=True)
    log_beta = jnp.concatenate([earlier, last[None]])
    probabilities = jax.nn.softmax(log_alpha + log_beta, axis=1)
    return HiddenMarkovState(probabilities, jax.nn.logsumexp(log_alpha[-1]))


def viterbi(
    chain: HiddenMarkov, observations: Array
) -> tuple[Int[Array, " T"], Float[Array, ""]]:
    """Return the most probable path and its log joint density with the data, in nats.

    References:
        Viterbi (1967); Rabiner (1989), Equations 32 to 35.
    """
    log_emissions = _emissions("viterbi", chain, observations)
    log_rows = jnp.log(chain.transition)

    def step(best: Array, log_emission: Array) -> tuple[Array, Array]:
        scores = best[:, None] + log_rows
        return jnp.max(scores, axis=0) + log_emission, jnp.argmax(scores, axis=0)

    first = jnp.log(chain.initial) + log_emissions[0]
    best, parents = jax.lax.scan(step, first, log_emissions[1:])
    last = jnp.argmax(best)

    def back(state: Array, row: Array) -> tuple[Array, Array]:
        return row[state], row[state]

    _, earlier = jax.lax.scan(back, last, parents, reverse=True)
    return jnp.concatenate([earlier, last[None]]), jnp.max(best)


def sample_posterior(
    key: Key[Array, ""], chain: HiddenMarkov, observations: Array
) -> Int[Array, " T"]:
    """Draw a path from its exact posterior: forward filtering, backward sampling."""
    log_alpha = _forward(chain, _emissions("sample_posterior", chain, observations))
    log_rows = jnp.log(chain.transition)
    last_key, *_ = keys = jax.random.split(key, log_alpha.shape[0])
    last = jax.random.categorical(last_key, log_alpha[-1])

    def back(state: Array, row: Any) -> tuple[Array, Array]:
        key, alpha = row
        state = jax.random.categorical(key, alpha + log_rows[:, state])
        return state, state

    rows = (keys[1:], log_alpha[:-1])
    _, earlier = jax.lax.scan(back, last, rows, reverse=True)
    return jnp.concatenate([earlier, last[None]])


def _check_shape(name: str, shape: Any, expected: tuple[int, ...]) -> None:
    if shape != expected:
        kind = "batch shape" if name == "emission" else "shape"
        raise ShapeError(
            f"HiddenMarkov: {name} must have the states as axes, {kind} {expected}, got "
            f"{shape}."
        )


def _check_rows(name: str, rows: Any) -> None:
    if not is_known(rows):
        return
    rows = np.atleast_2d(np.asarray(rows))
    # The tolerance is for rounding to single precision.
    fits = (rows >= 0).all(1) & (abs(rows.sum(1) - 1) < 1e-5)
    if not fits.all():
        raise ValueError(
            f"HiddenMarkov: {name} must hold probabilities that sum to one in each row, "
            f"got {rows[fits.argmin()]}."
        )


def _emissions(call: str, chain: HiddenMarkov, observations: Any) -> Array:
    observations = jnp.asarray(observations)
    expected = (chain.num_steps, *chain.emission.event_shape)
    if observations.shape != expected:
        raise ShapeError(
            f"{call}: observations must have shape {expected}, got {observations.shape}."
        )
    if is_known(observations):
        missing = np.isnan(observations).reshape(chain.num_steps, -1)
        partly = missing.any(1) & ~missing.all(1)
        if partly.any():
            raise ValueError(
                f"{call}: observations must be missing whole or not at all, got "
                f"{observations[partly.argmax()]} in row {partly.argmax()}."
            )
    return chain.log_emissions(observations)


def _forward(chain: HiddenMarkov, log_emissions: Array) -> Array:
    log_rows = jnp.log(chain.transition)

    def step(log_alpha: Array, log_emission: Array) -> tuple[Array, Array]:
        log_alpha = jax.nn.logsumexp(log_alpha[:, None] + log_rows, axis=0)
        log_alpha = log_alpha + log_emission
        return log_alpha, log_alpha

    first = jnp.log(chain.initial) + log_emissions[0]
    _, later = jax.lax.scan(step, first, log_emissions[1:])
    return jnp.concatenate([first[None], later])
