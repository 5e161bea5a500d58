r"""Laws of potentials, as a function that users call on their own.

`check_potential` asks that weights are weights, that particles do not touch one another,
that a zero stays zero, and that a finished text weighs the product of its increments.
"""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from motes.lm_bridge.potentials.contract import Critic, Potential

UNBOUND = 2**20


def check_potential(
    potential: Potential, texts: Sequence[Sequence[int]], atol: float = 1e-5
) -> None:
    """Check the laws of a potential on some texts of equal length.

    Args:
        potential: Any potential.
        texts: Token ids of at least two texts, EOS not among them.
        atol: Tolerance, in nats.

    Raises:
        ValueError: If there are fewer than two texts, or they differ in length.
        AssertionError: If a law is broken; the message names it.
    """
    if len(texts) < 2 or len({len(text) for text in texts}) != 1:
        raise ValueError(
            f"check_potential: texts must be two or more of one length, got {texts!r}."
        )
    rows, name = np.asarray(texts, np.int32), type(potential).__name__
    together = _increments(potential, rows)
    _check_values(name, potential, together, rows)
    if isinstance(potential, Critic):
        empty = np.asarray(potential.log_prefix(potential.init(2, 1)))
        assert np.allclose(empty, 0.0), f"{name}: the empty prefix must weigh one"

    alone = np.concatenate([_increments(potential, row[None]) for row in rows])
    message = f"{name}: a particle must not depend on the others"
    np.testing.assert_allclose(together, alone, atol=atol, err_msg=message)

    _check_motion(name, potential, together, rows, atol)
    _check_sums(name, potential, together, rows, atol)
    _check_budgets(name, potential, rows)


def _increments(potential: Potential, rows: np.ndarray) -> np.ndarray:
    """Return log-weights after every prefix, `(N, T + 1, V)`, compiled."""
    num, length = rows.shape
    state, out = potential.init(num, length + 1), []
    active = jnp.ones(num, bool)
    weigh = eqx.filter_jit(lambda p, *args: p.log_weights(*args))
    for t in range(length + 1):
        out.append(np.asarray(weigh(potential, state, UNBOUND), float))
        if t < length:
            state = potential.step(state, jnp.asarray(rows[:, t]), active)
    return np.stack(out, axis=1)


def _check_values(
    name: str, potential: Potential, found: np.ndarray, rows: np.ndarray
) -> None:
    shape = (len(rows), rows.shape[1] + 1, potential.vocab_size)
    assert found.shape == shape, (
        f"{name}: log_weights must have shape (N, {potential.vocab_size}), got "
        f"{found.shape[::2]}"
    )
    assert not np.isnan(found).any(), f"{name}: log-weights must not be NaN"
    assert not np.isposinf(found).any(), f"{name}: log-weights must be below +inf"


def _check_motion(
    name: str, potential: Potential, found: np.ndarray, rows: np.ndarray, atol: float
) -> None:
    """`gather` moves states with their particles; inactive ones stay as they are."""
    num, length = rows.shape
    state, active = potential.init(num, length + 1), jnp.ones(num, bool)
    for t in range(length):
        idle = potential.step(state, jnp.asarray(rows[:, t]), ~active)
        message = f"{name}: inactive particles must not move"
        kept = np.asarray(potential.log_weights(idle, UNBOUND), float)
        np.testing.assert_allclose(kept, found[:, t], atol=atol, err_msg=message)
        state = potential.step(state, jnp.asarray(rows[:, t]), active)
        turned = potential.gather(state, jnp.arange(num)[::-1])
        moved = np.asarray(potential.log_weights(turned, UNBOUND), float)
        message = f"{name}: gather must move states with their particles"
        np.testing.assert_allclose(
            moved, found[::-1, t + 1], atol=atol, err_msg=message
        )


def _check_sums(
    name: str, potential: Potential, found: np.ndarray, rows: np.ndarray, atol: float
) -> None:
    """Prefix and complete weights are the sums of increments; zero stays zero."""
    end_id = potential.eos_ids[0]
    for text, block in zip(rows.tolist(), found, strict=True):
        steps = block[np.arange(len(text)), text]
        for t in range(len(text) + 1):
            total = float(np.sum(steps[:t]))
            weight, whole = potential.prefix(text[:t]), potential.complete(text[:t])
            assert np.isclose(total, weight, atol=atol), (
                f"{name}: prefix must be the sum of increments, {total}, got {weight} "
                f"for {text[:t]}"
            )
            assert np.isclose(total + block[t, end_id], whole, atol=atol), (
                f"{name}: complete must be prefix times the factor of EOS, "
                f"{total + block[t, end_id]}, got {whole} for {text[:t]}"
            )


def _check_budgets(name: str, potential: Potential, rows: np.ndarray) -> None:
    """What a small budget allows, a large one allows, with the same weight."""
    state = potential.init(1, rows.shape[1] + 1)
    before = np.asarray(potential.log_weights(state, 0))
    for budget in range(1, rows.shape[1] + 1):
        after = np.asarray(potential.log_weights(state, budget))
        lost = np.isfinite(before) & ~np.isclose(before, after)
        assert not lost.any(), f"{name}: a larger budget must not forbid tokens"
        before = after
