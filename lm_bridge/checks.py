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

from motes.lm_bridge.potentials.contract import Critic, Potential
from motes.lm_bridge.transformer_lm import TransformerLM
from motes.ppl.errors import check_count


def check_decode(
    lm: Any,
    prompt: Any,
    max_tokens: Any,
    potential: Any = None,
    name: str = "potential",
    num_prompts: int | None = None,
) -> int:
    """Refuse what no decode could do right; return `max_tokens` as an `int`.

    Args:
        lm: A `LanguageModel`.
        prompt: Token ids, or a list of several prompts.
        max_tokens: Most tokens of a text.
        potential: What steers, over the same vocabulary.
        name: What messages call the potential.
        num_prompts: Number of prompts; None for any.

    Raises:
        TypeError: If `max_tokens` is no integer, or the potential no `Potential`.
        ValueError: If a prompt is text or holds ids that are none, if the texts are longer
            than the model's context, or if the vocabularies or ends differ.
    """
    max_tokens = check_count("decode", "max_tokens", max_tokens)
    prompts = _prompts(prompt)
    if num_prompts is not None and len(prompts) != num_prompts:
        raise ValueError(
            f"decode: prompts must be {num_prompts} in number, got {len(prompts)}. "
            "`decode_batch` takes several, and a proposal with as many."
        )
    lengths = [_check_prompt(lm, one) for one in prompts]
    _check_context(lm, max(lengths), max_tokens)
    if potential is not None:
        if not isinstance(potential, Potential):
            raise TypeError(
                f"decode: {name} must be a Potential, got {type(potential).__name__}. "
                "Predicate makes one of a Python function, Classifier of a JAX function."
            )
        _check_vocabulary(lm, potential, name)
        _check_ends(lm, potential, name)
    return max_tokens


def check_options(
    lm: Any, critic: Any, proposal: Any, unit: Any, num_prompts: int, max_tokens: int
) -> None:
    """Refuse a critic, a proposal or a unit that does not fit the model.

    Raises:
        TypeError: If the critic is none, or a count is no integer.
        ValueError: If vocabularies, numbers of prompts or the shape of `unit.ends` differ.
    """
    if critic is not None and not isinstance(critic, Critic):
        raise TypeError(
            f"decode: critic must be a Critic, such as Classifier or Predicate, got "
            f"{type(critic).__name__}. Multiply other potentials into `potential`."
        )
    if proposal is not None:
        other, prompt = proposal
        check_decode(other, prompt, max_tokens, num_prompts=num_prompts)
        _check_vocabulary(lm, other, "proposal")
    check_count("decode", "unit.max_tokens", unit.max_tokens)
    if unit.ends is not None:
        ends = jnp.asarray(unit.ends)
        if ends.shape != (lm.vocab_size,) or ends.dtype != bool:
            raise ValueError(
                f"decode: unit.ends must be {lm.vocab_size} booleans, one for each token "
                f"id, got shape {ends.shape} of {ends.dtype}."
            )


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


def _check_vocabulary(lm: Any, other: Any, name: str) -> None:
    if other.vocab_size != lm.vocab_size:
        raise ValueError(
            f"decode: {name} must have the vocabulary of the model, {lm.vocab_size} "
            f"tokens, got {other.vocab_size}. Was it made with another tokenizer?"
        )


def _check_ends(lm: Any, potential: Potential, name: str) -> None:
    if set(potential.eos_ids) != set(lm.eos_ids):
        raise ValueError(
            f"decode: {name} must end texts by the ids of the model, "
            f"{sorted(lm.eos_ids)}, got {sorted(potential.eos_ids)}. Make it with "
            "`lm.eos_ids`."
        )
