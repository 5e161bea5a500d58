r"""Rotary positions, with the ways to stretch them.

Channel pair $i$ of a head turns by $p\,\omega_i$ at position $p$, with
$\omega_i = \theta^{-2i/d}$; a stretched model has smaller $\omega_i$. The frequencies
are computed once, in NumPy; `rotate` is all that runs in the model.
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Rope:
    r"""Rotary positions.

    Attributes:
        theta: Base of the frequencies, $\theta$.
        scaling: How frequencies are stretched. `dynamic` changes nothing up to
            `original_max_positions`, and longer texts are refused.
        factor: By how much.
        original_max_positions: Longest text before stretching.
        low_freq_factor: Of `llama3`.
        high_freq_factor: Of `llama3`.
        beta_fast: Of `yarn`.
        beta_slow: Of `yarn`.
        attention_factor: Of `yarn`; multiplies sine and cosine; `None` for its default.
        truncate: Of `yarn`: whether the range of channels is rounded.
        rotary_dim: Channels of a head that turn; `None` for all.
    """

    theta: float = 10_000.0
    scaling: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    rotary_dim: int | None = None

    def frequencies(self, head_dim: int) -> tuple[np.ndarray, float]:
        """Return the angular frequencies, and the factor of sine and cosine."""
        dim = self.rotary_dim or head_dim
        plain = self.theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
        if self.scaling == "linear":
            return plain / self.factor, 1.0
        if self.scaling == "llama3":
            return _llama3(self, plain), 1.0
        if self.scaling == "yarn":
            return _yarn(self, plain, dim), _yarn_attention_factor(self)
        return plain, 1.0


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Stretch slow channels, keep fast ones, and blend in between."""
    wavelengths = 2 * math.pi / plain
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = (rope.original_max_positions / wavelengths - low) / (high - low)
    smooth = smooth.clip(0.0, 1.0)
    return (1 - smooth) * plain / rope.factor + smooth * plain


def _yarn(rope: Rope, plain: np.ndarray, dim: int) -> np.ndarray:
    """Blend stretched and plain channels: Peng et al. (2023), Section 3.2."""

    def channel(num_rotations: float) -> float:
        ratio = rope.original_max_positions / (num_rotations * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = channel(rope.beta_fast), channel(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    ramp = ((np.arange(dim // 2) - low) / (high - low)).clip(0.0, 1.0)
    return ramp * plain / rope.factor + (1 - ramp) * plain


def _yarn_attention_factor(rope: Rope) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    return 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0


def sines(
    rope: Rope, head_dim: int, positions: Int[Array, "*B"]
) -> tuple[Float[Array, "*B R"], Float[Array, "*B R"]]:
    """Return cosine and sine of every channel pair at `positions`, in float32."""
    frequencies, factor = rope.frequencies(head_dim)
    angles = positions[..., None].astype(jnp.float32) * jnp.asarray(
        frequencies.reshape((1,) * positions.ndim + (-1,)), jnp.float32
    )
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(
    x: Float[Array, "*B H D"], cos: Float[Array, "*B R"], sin: Float[Array, "*B R"]
) -> Float[Array, "*B H D"]:
    """Turn the channel pairs $(i, i + R)$ of each head; further channels stay."""
    half = cos.shape[-1]
    cos = cos[..., None, :].astype(x.dtype)
    sin = sin[..., None, :].astype(x.dtype)
    first, second, rest = jnp.split(x, [half, 2 * half], axis=-1)
    # Stacked, the halves are written fast on CPU; concatenated they are not.
    pair = (first * cos - second * sin, second * cos + first * sin)
    turned = jnp.stack(pair, axis=-2).reshape(*x.shape[:-1], 2 * half)
    return turned if rest.shape[-1] == 0 else jnp.concatenate([turned, rest], axis=-1)
