"""What can be known to be wrong with a decode before its first token.

`check_decode` compares prompts, length and potential with the model. It reads values
where they are known: inside `jit` only types and sizes are compared. Read `decode.py` for
where it is called.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from motes.lm_bridge.potentials.contract import Potential
from motes.lm_bridge.transformer_lm import TransformerLM


def check_decode(
    lm: Any,
    prompt: Any,
    max_tokens: int,
    potential: Potential | None = None,
    name: str = "potential",
) -> None:
    """Refuse what no decode could do right.

    Args:
        lm: A `LanguageModel`.
        prompt: Token ids, or a list of several prompts.
        max_tokens: Most tokens of a text.
        potential: What steers, over the same vocabulary.
        name: What messages call the potential.

    Raises:
        ValueError: If a prompt is text or holds ids that are none, if the texts are longer
            than the model's context, or if the vocabularies or ends differ.
    """
    if max_tokens < 1:
        raise ValueError(f"decode: max_tokens must be at least 1, got {max_tokens}.")
    lengths = [_check_prompt(lm, one) for one in _prompts(prompt)]
    _check_context(lm, max(lengths), max_tokens)
    if potential is not None:
        _check_vocabulary(lm, potential, name)


def _prompts(prompt: Any) -> list[Any]:
    """Return the prompts, one or several."""
    if isinstance(prompt, str) or not isinstance(prompt, (list, tuple)):
        return [prompt]
    several = len(prompt) > 0 and (
        isinstance(prompt[0], str) or np.ndim(prompt[0]) == 1
    )
    return list(prompt) if several else [prompt]


def _check_prompt(lm: Any, prompt: Any) -> int:
    """Return the length of a prompt whose ids are those of the model."""
    if isinstance(prompt, str):
        raise ValueError(
            f"decode: prompt must be token ids, got the text {prompt[:40]!r}. Use "
            "`encode_prompt` of the model's tokenizer."
        )
    ids = prompt if isinstance(prompt, jax.Array) else np.asarray(prompt)
    if ids.ndim != 1 or (ids.size > 0 and not jnp.issubdtype(ids.dtype, np.integer)):
        raise ValueError(
            f"decode: prompt must be a row of integers, got shape {ids.shape} of "
            f"{ids.dtype}."
        )
    if ids.size == 0 and isinstance(lm, TransformerLM):
        raise ValueError(
            "decode: prompt must hold at least one token, got none. Begin with the start "
            "token of the tokenizer or, where it has none, with some text."
        )
    if ids.size == 0 or isinstance(ids, Tracer):
        return ids.size
    smallest, largest = int(ids.min()), int(ids.max())
    if smallest < 0 or largest >= lm.vocab_size:
        raise ValueError(
            f"decode: prompt must hold ids in [0, {lm.vocab_size}), got "
            f"{smallest if smallest < 0 else largest}. Is it another model's tokenizer?"
        )
    return ids.size


def _check_context(lm: Any, length: int, max_tokens: int) -> None:
    """Refuse texts that are longer than what a transformer was made for."""
    if not isinstance(lm, TransformerLM):
        return
    longest = lm.model.config.max_positions
    if length + max_tokens > longest:
        raise ValueError(
            f"decode: prompt and max_tokens must fit into the model's context of "
            f"{longest} tokens, got {length} + {max_tokens}. Lower max_tokens."
        )


def _check_vocabulary(lm: Any, potential: Potential, name: str) -> None:
    if potential.vocab_size != lm.vocab_size:
        raise ValueError(
            f"decode: {name} must have the vocabulary of the model, {lm.vocab_size} "
            f"tokens, got {potential.vocab_size}. Was it made with another tokenizer?"
        )
    if set(potential.eos_ids) != set(lm.eos_ids):
        raise ValueError(
            f"decode: {name} must end texts by the ids of the model, "
            f"{sorted(lm.eos_ids)}, got {sorted(potential.eos_ids)}. Make it with "
            "`lm.eos_ids`."
        )
