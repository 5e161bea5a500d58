r"""Decoding as a Feynman-Kac program: text is steered by the engine that filters series.

The target is $p_\text{LM}(y)\phi(y)$ over texts that end. A step extends each unfinished
text by one unit and weighs it by what the draw left over; finished texts are absorbing:
they keep their weight and are resampled with the others. Read `token_draws.py` for single
tokens and `decode.py` for what users call.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from motes.inference.smc.step import in_place_if
from motes.lm_bridge.potentials.contract import Critic, Potential, difference
from motes.lm_bridge.token_draws import Context, Sampler, locally_constrained

MIN_BUCKET = 8
"""Texts are stored in arrays whose length is a power of two, at least this."""


class Budget(NamedTuple):
    """What a decode has used.

    Attributes:
        steps: Steps of the engine, until all texts had ended.
        generated: Tokens drawn for unfinished texts, ends counted.
        forwarded: Tokens that went through a language model after the prompt, those of
            finished texts beside unfinished ones counted.
        checks: Tokens that the potential was asked about; a float, as they may be more
            than an integer of 32 bits holds.
        critic_calls: Texts that the critic was asked about.
    """

    steps: Int[Array, ""]
    generated: Int[Array, ""]
    forwarded: Int[Array, ""]
    checks: Float[Array, ""]
    critic_calls: Int[Array, ""]


class Unit(NamedTuple):
    """What one step of the engine extends a text by, before weights are compared.

    Attributes:
        max_tokens: Most tokens of a unit; static.
        ends: Which token ids end a unit early, as those with a space or a line's end;
            None for units of `max_tokens` tokens each.
    """

    max_tokens: int = 1
    ends: Bool[Array, " V"] | None = None


class DecodeState(NamedTuple):
    """Texts while they grow.

    Attributes:
        tokens: Token ids; what is beyond a text's length is an id that ends it.
        lengths: Number of tokens, the end not counted.
        finished: Which texts have ended.
        lm: The language model's memory.
        proposal: The proposal's memory.
        potential: The potential's memory.
        critic: The critic's memory.
        log_critic: The critic's log-weight of each text, as last asked.
        drawn: The tokens of the last step, -1 where none was drawn.
        spent: What was used so far; not one for each particle.
    """

    tokens: Int[Array, "N T"]
    lengths: Int[Array, " N"]
    finished: Bool[Array, " N"]
    lm: Any
    proposal: Any
    potential: Any
    critic: Any
    log_critic: Float[Array, " N"]
    drawn: Int[Array, "N U"]
    spent: Budget


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["lm", "prefilled", "limit", "potential", "critic", "proposal", "ends"],
    meta_fields=["bucket", "unit_tokens", "sampler", "num_prompts", "init_is_step"],
)
@dataclass(frozen=True)
class Decoding:
    """The Feynman-Kac program of a decode; as `decoding` makes it.

    Attributes:
        lm: The language model.
        prefilled: The prompt, as it keeps it.
        limit: Most tokens of a text.
        potential: What steers token by token, or None.
        critic: What weighs units, or None.
        proposal: Another language model and its prompt, which tokens are drawn from, or
            None.
        ends: Ids that end a unit, or None.
        bucket: Length of the arrays of texts.
        unit_tokens: Most tokens of a unit.
        sampler: How a token is drawn.
        num_prompts: Number of prompts, whose particles are consecutive blocks.
    """

    lm: Any
    prefilled: Any
    limit: Int[Array, ""]
    potential: Potential | None
    critic: Critic | None
    proposal: tuple[Any, Any] | None
    ends: Bool[Array, " V"] | None
    bucket: int
    unit_tokens: int = 1
    sampler: Sampler = locally_constrained
    num_prompts: int = 1
    init_is_step: bool = field(default=False)

    @property
    def num_steps(self) -> int:
        """Enough steps for every text; where units end early, one for each token."""
        tokens = self.bucket + 1
        return -(-tokens // self.unit_tokens) if self.ends is None else tokens

    @property
    def inputs(self) -> Int[Array, " S"]:
        return jnp.arange(self.num_steps)

    def init(self, key: Key[Array, ""], num_particles: int) -> Any:
        """Return empty texts; `num_particles` counts those of all prompts."""
        each = num_particles // self.num_prompts
        lm_state = self.lm.init_state(self.prefilled, each, self.bucket)
        proposal = None
        if self.proposal is not None:
            proposal = self.proposal[0].init_state(self.proposal[1], each, self.bucket)
        memories = [
            None if one is None else one.init(num_particles, self.bucket)
            for one in (self.potential, self.critic)
        ]
        dtype, zero = self.lm.next_log_probs(lm_state).dtype, jnp.zeros((), jnp.int32)
        log_critic = log_weights = jnp.zeros(num_particles, dtype)
        if self.critic is not None:
            log_critic = self.critic.log_prefix(memories[1]).astype(dtype)
        state = DecodeState(
            jnp.full((num_particles, self.bucket), self.lm.eos_ids[0], jnp.int32),
            jnp.zeros(num_particles, jnp.int32),
            jnp.zeros(num_particles, bool),
            lm_state,
            proposal,
            memories[0],
            memories[1],
            log_critic,
            jnp.full((num_particles, self.unit_tokens), -1, jnp.int32),
            Budget(zero, zero, zero, zero.astype(float), zero),
        )
        return state, log_weights

    def gather(self, state: DecodeState, ancestors: Int[Array, " N"]) -> DecodeState:
        """Copy particles; what they share, as the prompt and the account, stays."""

        def of(one: Any, memory: Any) -> Any:
            return None if one is None else one.gather(memory, ancestors)

        return DecodeState(
            state.tokens[ancestors],
            state.lengths[ancestors],
            state.finished[ancestors],
            self.lm.gather(state.lm, ancestors),
            of(self.proposal and self.proposal[0], state.proposal),
            of(self.potential, state.potential),
            of(self.critic, state.critic),
            state.log_critic[ancestors],
            state.drawn[ancestors],
            state.spent,
        )

    def step(self, key: Key[Array, ""], state: DecodeState, inputs: Any) -> Any:
        """Extend each unfinished text by one unit; weigh it by what that left over."""
        spent = state.spent._replace(steps=state.spent.steps + 1)
        state = state._replace(drawn=jnp.full_like(state.drawn, -1), spent=spent)
        grows, zero = ~state.finished, jnp.zeros_like(state.log_critic)
        if self.unit_tokens == 1:
            state, increments, _ = self._draw(key, state, grows, zero, 0)
        else:
            state, increments = self._draw_unit(key, state, grows, zero)
        return self._criticize(state, increments, grows)

    def has_ended(self, state: DecodeState) -> Bool[Array, ""]:
        """Return whether all texts have ended."""
        return jnp.all(state.finished)

    def _draw_unit(
        self, key: Key[Array, ""], state: DecodeState, grows: Array, increments: Array
    ) -> tuple[DecodeState, Array]:
        """Draw tokens until every unit has ended."""

        def goes_on(carry: Any) -> Array:
            return (carry[0] < self.unit_tokens) & jnp.any(carry[2])

        def body(carry: Any) -> Any:
            at, state, grows, increments = carry
            own = jax.random.fold_in(key, at)
            state, increments, grows = self._draw(own, state, grows, increments, at)
            if self.ends is not None:
                grows = grows & ~self.ends[state.drawn[:, at]]
            return at + 1, state, grows, increments

        carry = (jnp.zeros((), jnp.int32), state, grows, increments)
        _, state, _, increments = jax.lax.while_loop(goes_on, body, carry)
        return state, increments

    def _draw(
        self,
        key: Key[Array, ""],
        state: DecodeState,
        grows: Array,
        before: Array,
        at: Any,
    ) -> tuple[DecodeState, Array, Array]:
        """Draw a token for each text that grows; what ends or dies grows no more."""
        log_probs = self.lm.next_log_probs(state.lm)
        q = log_probs
        if self.proposal is not None:
            q = self.proposal[0].next_log_probs(state.proposal)
        ends = jnp.zeros(q.shape[1], bool).at[jnp.array(self.lm.eos_ids)].set(True)
        left = self.limit - state.lengths
        texts = (state.tokens, state.lengths, left, ends, grows)
        context = Context(self.potential, state.potential, *texts)
        tokens, log_weights, num_checks = self.sampler(key, q, context)
        tokens = tokens.astype(jnp.int32)
        if self.proposal is not None:
            ratios = jnp.take_along_axis(log_probs - q, tokens[:, None], axis=1)[:, 0]
            dead = jnp.isneginf(log_weights)
            log_weights = log_weights + jnp.where(dead, 0.0, ratios)
        alive = grows & ~jnp.isneginf(log_weights)
        longer = alive & ~ends[tokens]
        drawn = state.drawn.at[:, at].set(jnp.where(alive, tokens, -1))
        spent = state.spent._replace(
            generated=state.spent.generated + jnp.sum(grows, dtype=jnp.int32),
            checks=state.spent.checks + jnp.asarray(num_checks, float),
        )
        finished = state.finished | (grows & ~longer)
        state = state._replace(drawn=drawn, spent=spent, finished=finished)
        increments = before + jnp.where(grows, log_weights, 0.0).astype(before.dtype)
        return self._extend(state, tokens, longer), increments, longer

    def _extend(self, state: DecodeState, tokens: Array, grows: Array) -> DecodeState:
        """Append a token to each text that grows, in every memory."""
        rows = jnp.arange(tokens.shape[0])
        # Beyond the last column nothing is written.
        columns = jnp.where(grows, state.lengths, self.bucket)
        state = state._replace(
            tokens=state.tokens.at[rows, columns].set(tokens, mode="drop"),
            lengths=state.lengths + grows,
        )
        for name, one in (("potential", self.potential), ("critic", self.critic)):
            if one is not None:
                grown = one.step(getattr(state, name), tokens, grows)
                state = state._replace(**{name: grown})
        return self._read(state, tokens, grows)

    def _read(self, state: DecodeState, tokens: Array, grows: Array) -> DecodeState:
        """Let the language models read a token; where no text grows they need not."""
        lms = {"lm": self.lm}
        if self.proposal is not None:
            lms["proposal"] = self.proposal[0]
        some = jnp.any(grows)
        for name, lm in lms.items():
            old = getattr(state, name)
            read = in_place_if(some, lambda m, lm=lm: lm.append(m, tokens, grows), old)
            state = state._replace(**{name: read})
        forwarded = state.spent.forwarded + some * len(lms) * tokens.shape[0]
        return state._replace(spent=state.spent._replace(forwarded=forwarded))

    def _criticize(
        self, state: DecodeState, increments: Array, grew: Array
    ) -> tuple[DecodeState, Array]:
        """Multiply the critic of the longer texts in and that of the shorter out."""
        if self.critic is None:
            return state, increments
        prefix = self.critic.log_prefix(state.critic)
        whole = self.critic.log_complete(state.critic)
        after = jnp.where(state.finished, whole, prefix).astype(increments.dtype)
        after = jnp.where(grew, after, state.log_critic)
        # A text of weight zero, as one of a dead end, grows no more.
        finished = state.finished | jnp.isneginf(after)
        calls = state.spent.critic_calls + jnp.sum(grew, dtype=jnp.int32)
        spent = state.spent._replace(critic_calls=calls)
        increments = increments + difference(after, state.log_critic)
        state = state._replace(log_critic=after, spent=spent, finished=finished)
        return state, increments
