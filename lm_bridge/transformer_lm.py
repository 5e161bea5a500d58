"""The transformer as a `LanguageModel`.

`TransformerLM` wraps parameters and the ids that end a text; its methods are those of
`language_model.LanguageModel`, and its state is a `cache.DecodeState`. Read
`checkpoint.py` for how one is loaded.
"""

from collections.abc import Sequence
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from motes.lm_bridge import cache
from motes.lm_bridge.cache import DecodeState, PromptCache
from motes.lm_bridge.transformer import (
    Transformer,
    apply_head,
    forward,
    stack_layers,
    unstack_layers,
)

PROMPT_MULTIPLE = 16
"""Prompts are padded to a multiple of this, so that few lengths are compiled."""
SCANNED_LAYERS = 8
"""From this many layers on, an accelerator scans them."""

PromptTokens: TypeAlias = Int[Array, " _"] | Int[np.ndarray, " _"] | Sequence[int]


class TransformerLM(eqx.Module):
    """A decoder-only transformer with a language head.

    Attributes:
        model: The parameters.
        eos_ids: Ids that end a text.
    """

    model: Transformer
    eos_ids: tuple[int, ...] = eqx.field(static=True)

    @property
    def vocab_size(self) -> int:
        """Return the number of token ids."""
        return self.model.config.vocab_size

    def prefill(
        self, prompt_tokens: PromptTokens | Sequence[PromptTokens]
    ) -> PromptCache:
        """Read one prompt, or several: once, for any number of particles.

        Raises:
            ValueError: If a prompt is empty, or too long, or holds an id that is none.
        """
        prompts = _as_prompts(prompt_tokens)
        for prompt in prompts:
            self._check_prompt(prompt)
        lengths = [prompt.shape[0] for prompt in prompts]
        width = -(-max(lengths) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
        padded = [jnp.pad(jnp.asarray(p), (0, width - p.shape[0])) for p in prompts]
        return _read_prompt(self.model, jnp.stack(padded), jnp.asarray(lengths))

    def init_state(
        self, prefilled: PromptCache, num_particles: int, max_tokens: int
    ) -> DecodeState:
        """Return `num_particles` empty continuations of each prompt.

        Raises:
            ValueError: If a count is less than one, or positions do not reach so far.
        """
        for name, count in (
            ("num_particles", num_particles),
            ("max_tokens", max_tokens),
        ):
            if count < 1:
                raise ValueError(f"init_state: {name} must be at least 1, got {count}.")
        self._check_reach(prefilled, max_tokens)
        return cache.init_decode(self.model, prefilled, num_particles, max_tokens)

    def next_log_probs(self, state: DecodeState) -> Float[Array, "N V"]:
        """Return the log-probabilities of the next token, in nats."""
        return cache.next_log_probs(self.model, state)

    def append(
        self, state: DecodeState, tokens: Int[Array, " N"], active: Bool[Array, " N"]
    ) -> DecodeState:
        """Append one token to each active particle; the state is consumed."""
        return cache.decode_step(self.model, state, tokens, active)

    def gather(self, state: DecodeState, ancestors: Int[Array, " N"]) -> DecodeState:
        """Return copies of the ancestors; the prompt is not touched."""
        return cache.gather(state, ancestors)

    def log_prob(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], start: int = 1
    ) -> Float[Array, " B"]:
        """Return the log-probability of each text's tokens from `start` to `lengths`.

        The tokens before `start` are given; `start` is at least one.
        """
        hidden, _ = forward(self.model, tokens)
        log_probs = jax.nn.log_softmax(apply_head(self.model, hidden[:, :-1]))
        chosen = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=2)[:, :, 0]
        position = jnp.arange(1, tokens.shape[1])[None, :]
        counted = (position >= start) & (position < lengths[:, None])
        return jnp.where(counted, chosen, 0.0).sum(axis=1)

    def _check_prompt(self, prompt: Array | np.ndarray) -> None:
        if prompt.shape[0] == 0:
            raise ValueError(
                "prefill: prompt_tokens must hold at least one token, got none. "
                "Begin a text with the start token of the tokenizer."
            )
        if isinstance(prompt, Tracer):
            return
        largest, smallest = int(np.max(prompt)), int(np.min(prompt))
        if smallest < 0 or largest >= self.vocab_size:
            raise ValueError(
                f"prefill: prompt_tokens must be in [0, {self.vocab_size}), got "
                f"{smallest if smallest < 0 else largest}. Is it another model's "
                "tokenizer?"
            )

    def _check_reach(self, prefilled: PromptCache, max_tokens: int) -> None:
        """Refuse texts beyond learned positions, or beyond a `dynamic` stretch."""
        config, lengths = self.model.config, prefilled.lengths
        bounded = config.rope is None or config.rope.scaling == "dynamic"
        if not bounded or isinstance(lengths, Tracer):
            return
        longest = int(np.max(lengths)) + max_tokens
        if longest > config.max_positions:
            raise ValueError(
                f"init_state: prompt and max_tokens must fit into the model's "
                f"{config.max_positions} positions, got {longest}. Lower max_tokens."
            )


def place_layers(model: Transformer) -> Transformer:
    """Return the model with its layers laid out for the default backend."""
    deep = model.config.num_layers >= SCANNED_LAYERS
    scanned = deep and jax.default_backend() != "cpu"
    return stack_layers(model) if scanned else unstack_layers(model)


def _as_prompts(
    prompt_tokens: PromptTokens | Sequence[PromptTokens],
) -> list[Array | np.ndarray]:
    """Return a list of arrays, one for each prompt."""
    nested = isinstance(prompt_tokens, (list, tuple))
    several = nested and len(prompt_tokens) > 0 and np.ndim(prompt_tokens[0]) == 1
    prompts = prompt_tokens if several else [prompt_tokens]
    return [p if isinstance(p, jax.Array) else np.asarray(p, np.int32) for p in prompts]


_read_prompt = jax.jit(cache.read_prompt)
