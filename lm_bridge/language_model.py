r"""The contract between language models and decoders.

A language model gives $p(y_{t+1} \mid \text{prompt}, y_{1:t})$ for $N$ particles at
once and moves its own memory: a decoder calls `prefill` once for a prompt, then
`next_log_probs`, `append` and `gather`, and never looks inside the state. Read
`transformer.py` for the JAX model and `tabular.py` for the exact one.
"""

from typing import Any, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, Bool, Float, Int

LMState: TypeAlias = Any
"""A pytree of arrays; opaque to decoders, which pass it back to its own model."""

Prefilled: TypeAlias = Any
"""What a model keeps of a prompt; a pytree without a particle axis."""


@runtime_checkable
class LanguageModel(Protocol):
    """A next-token distribution with a memory that lives with the particles.

    All methods but `prefill` are pure functions of arrays: they run inside `jit` and
    `scan`, for all particles in one call. The structure and shapes of an `LMState`
    never change, so it can be the carry of a `scan`.

    Several prompts of one batch: give `prefill` a list of prompts, and `init_state`
    their particles as consecutive blocks, `num_particles` for each prompt.

    Attributes:
        vocab_size: Number of token ids, $V$.
        eos_ids: Ids that end a text; static, at least one.
    """

    @property
    def vocab_size(self) -> int:
        """Return the number of token ids."""
        ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Return the ids that end a text."""
        ...

    def prefill(self, prompt_tokens: Int[Array, " P"]) -> Prefilled:
        """Read the prompt once; an empty prompt is allowed where the model has a start.

        The result has no particle axis: it is stored once however many particles use it.
        """
        ...

    def init_state(
        self, prefilled: Prefilled, num_particles: int, max_tokens: int
    ) -> LMState:
        """Return the state of `num_particles` empty continuations of the prompt.

        Args:
            prefilled: The prompt, from `prefill`.
            num_particles: Number of particles, $N$; static.
            max_tokens: Most tokens that `append` will be called with; static.
        """
        ...

    def next_log_probs(self, state: LMState) -> Float[Array, "N V"]:
        """Return the normalized log-probabilities of the next token, in nats.

        A read: the forward pass was made by `prefill` or `append`.
        """
        ...

    def append(
        self, state: LMState, tokens: Int[Array, " N"], active: Bool[Array, " N"]
    ) -> LMState:
        """Append one token to each active particle: one forward pass for all.

        Args:
            state: The state; consumed (a caller that compiles may donate it).
            tokens: One token for each particle; ignored where inactive.
            active: Which particles grow; the others keep their text and their
                `next_log_probs`.
        """
        ...

    def gather(self, state: LMState, ancestors: Int[Array, " N"]) -> LMState:
        """Return the state whose particle `n` is a copy of particle `ancestors[n]`.

        Whatever the particles share, such as the prompt, is not touched. With several
        prompts, an ancestor must belong to the same prompt as its descendant.
        """
        ...
