r"""Another prompt's language model as a potential: a product of experts.

The factor of token $v$ is $q(v | y_{<t})^\lambda$; the memory of the expert is part of
the potential's state and follows its particles. Read `contract.py` first.
"""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int

from motes.lm_bridge.language_model import LanguageModel
from motes.lm_bridge.potentials.contract import Budget, Potential


class Expert(Potential):
    """A language model, after a prompt of its own, as a factor.

    Attributes:
        lm: A `LanguageModel` over the same vocabulary.
        prefilled: Its prompt, from `lm.prefill`.
        vocab_size: Number of token ids.
        eos_ids: Ids that end a text.
        power: Exponent of its probabilities.
    """

    lm: Any
    prefilled: Any
    vocab_size: int = eqx.field(static=True)
    eos_ids: tuple[int, ...] = eqx.field(static=True)
    power: float = eqx.field(static=True, default=1.0)

    def init(self, num_particles: int, max_tokens: int) -> Any:
        return self.lm.init_state(self.prefilled, num_particles, max_tokens)

    def log_weights(self, state: Any, budget: Budget) -> Float[Array, "N V"]:
        return self.power * self.lm.next_log_probs(state)

    def step(
        self, state: Any, tokens: Int[Array, " N"], active: Bool[Array, " N"]
    ) -> Any:
        return self.lm.append(state, tokens, active)

    def gather(self, state: Any, ancestors: Int[Array, " M"]) -> Any:
        return self.lm.gather(state, ancestors)


def expert(lm: LanguageModel, prompt: Any, power: float = 1.0) -> Expert:
    """Return the model after a prompt as a factor on texts."""
    return Expert(lm, lm.prefill(prompt), lm.vocab_size, tuple(lm.eos_ids), power)
