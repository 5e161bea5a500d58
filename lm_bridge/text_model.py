r"""Texts as choices of ordinary models.

`text_model` makes decoding a motes model whose tokens are the choice `"token"`, so that
`generate`, `update` and `regenerate` act on text, and `motes.inference.smc.derive` filters
it. `Text` makes a whole text one site of a larger model.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from motes.lm_bridge.checks import check_decode
from motes.lm_bridge.potentials.contract import difference
from motes.ppl import Model, factor, model, sample


class NextToken(eqx.Module):
    """The next token of a text; after its end, the first end id with certainty.

    Attributes:
        log_probs: Log-probabilities of the tokens, in nats.
        has_ended: Whether the text has ended.
        end: The id that pads texts.
    """

    log_probs: Float[Array, " V"]
    has_ended: Bool[Array, ""]
    end: int = eqx.field(static=True)

    has_enumerate_support = True

    def enumerate_support(self, expand: bool = True) -> Int[Array, " V"]:
        """Return all token ids."""
        return jnp.arange(self.log_probs.shape[-1])

    def sample_with_log_density(self, key: Key[Array, ""]) -> tuple[Array, Array]:
        drawn = jax.random.categorical(key, self.log_probs).astype(jnp.int32)
        token = jnp.where(self.has_ended, self.end, drawn)
        return token, self.log_density(key, token)

    def log_density(self, key: Any, value: Array) -> Float[Array, ""]:
        padding = jnp.where(value == self.end, 0.0, -jnp.inf)
        is_token = (value >= 0) & (value < self.log_probs.shape[0])
        going_on = jnp.where(is_token, self.log_probs[value], -jnp.inf)
        return jnp.where(self.has_ended, padding, going_on)


class Text(eqx.Module):
    """A language model's text, cut at `max_tokens`, as a density on padded token ids.

    At and beyond the end of a text stands the first id of `eos_ids`, for all of them.

    Attributes:
        lm: A `LanguageModel`.
        prompt: Token ids, which may be computed by the model that the text is a site of.
        max_tokens: Length of the array.
    """

    lm: Any
    prompt: Any
    max_tokens: int = eqx.field(static=True)

    def sample_with_log_density(self, key: Key[Array, ""]) -> tuple[Array, Array]:
        trace = self._model().simulate(key, self.lm, self.prompt)
        return trace["token"], trace.log_density

    def log_density(self, key: Any, value: Int[Array, " T"]) -> Float[Array, ""]:
        return self._model().log_density({"token": value}, self.lm, self.prompt)

    def _model(self) -> Model:
        return _tokens_model(self.max_tokens)


class _Walk(eqx.Module):
    """What a text carries from token to token; one particle of the language model."""

    lm: Any
    potential: Any
    has_ended: Bool[Array, ""]
    length: Int[Array, ""]


def text_model(lm: Any, max_tokens: int, potential: Any = None) -> Model:
    r"""Make decoding an ordinary model of a prompt, with the choice `"token"`.

    Its density is $p_\text{LM}(y)\phi(y)$ on texts of at most `max_tokens` tokens, the
    target of `decode`: the end of a text is observed with its own probability also where
    nothing else can follow, by the factor `"end"`. The choice is an array of `max_tokens`
    ids in which the first id of `eos_ids` stands, for all of them, at and beyond the end.

    Args:
        lm: A `LanguageModel`.
        max_tokens: Most tokens of a text.
        potential: What weighs each token, as the factor `"potential"`; or None.

    Returns:
        A model of the prompt's token ids that returns the tokens and the length.
    """

    @model
    def text(prompt: Any) -> tuple[Array, Array]:
        walk, tokens = _walk(lm, prompt, max_tokens, potential)
        scores = lm.next_log_probs(walk.lm)[0]
        if potential is not None:
            scores = (
                scores + potential.log_weights(walk.potential, jnp.zeros(1, int))[0]
            )
        log_end = jax.nn.logsumexp(scores[jnp.array(lm.eos_ids)])
        factor("end", jnp.where(walk.has_ended, 0.0, log_end))
        return tokens, walk.length

    return text


def _tokens_model(max_tokens: int) -> Model:
    """Make the model of texts that are cut, not ended, at the limit."""

    @model
    def tokens(lm: Any, prompt: Any) -> Array:
        return _walk(lm, prompt, max_tokens, None)[1]

    return tokens


def _walk(lm: Any, prompt: Any, max_tokens: int, potential: Any) -> Any:
    max_tokens = check_decode(lm, prompt, max_tokens, potential, num_prompts=1)
    ends = jnp.array(lm.eos_ids)

    def step(walk: _Walk, place: Array) -> tuple[_Walk, Array]:
        log_probs = lm.next_log_probs(walk.lm)[0]
        law = NextToken(_with_one_end(log_probs, ends), walk.has_ended, lm.eos_ids[0])
        token = sample("token", law)
        # What is no token has density zero; memories need not know of it.
        tokens = token.clip(0, log_probs.shape[0] - 1)[None]
        memory = walk.potential
        goes_on = ~walk.has_ended & ~jnp.isin(token, ends)
        if potential is not None:
            left = (max_tokens - place)[None]
            increment = potential.log_increment(memory, tokens, left)[0]
            if ends.size > 1:
                scores = log_probs + potential.log_weights(memory, left)[0]
                log_ends = [jax.nn.logsumexp(x[ends]) for x in (scores, log_probs)]
                increment = jnp.where(goes_on, increment, difference(*log_ends))
            factor("potential", jnp.where(walk.has_ended, 0.0, increment))
            memory = potential.step(memory, tokens, goes_on[None])
        state = lm.append(walk.lm, tokens, goes_on[None])
        return _Walk(state, memory, ~goes_on, walk.length + goes_on), token

    start = _Walk(
        lm.init_state(lm.prefill(prompt), 1, max_tokens),
        None if potential is None else potential.init(1, max_tokens),
        jnp.zeros((), bool),
        jnp.zeros((), jnp.int32),
    )
    return jax.lax.scan(step, start, jnp.arange(max_tokens))


def _with_one_end(log_probs: Array, ends: Array) -> Array:
    """Give the first id that ends a text the probability of all."""
    if ends.size == 1:
        return log_probs
    log_end = jax.nn.logsumexp(log_probs[ends])
    return log_probs.at[ends].set(-jnp.inf).at[ends[0]].set(log_end)
