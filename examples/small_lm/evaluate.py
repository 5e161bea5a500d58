"""How often the small model's greedy answer is right.

    PYTHONPATH=examples python -m small_lm.evaluate

The problems are drawn with a seed that training never saw; they are decoded in one
batch, each prompt with one particle.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int
from small_lm import arithmetic

from motes.lm_bridge.cache import DecodeState
from motes.lm_bridge.checkpoint import load_checkpoint
from motes.lm_bridge.transformer_lm import TransformerLM

ASSETS = Path(__file__).parents[1] / "assets/small-lm"
MAX_TOKENS = 96


@jax.jit
def greedy(lm: TransformerLM, state: DecodeState) -> Int[Array, "T N"]:
    """Return the most probable token at every step, for each particle."""

    def step(state: DecodeState, _: None) -> tuple[DecodeState, Int[Array, " N"]]:
        tokens = lm.next_log_probs(state).argmax(-1)
        return lm.append(state, tokens, jnp.ones(tokens.shape, bool)), tokens

    return lax.scan(step, state, None, length=MAX_TOKENS)[1]


def main() -> None:
    """Print the share of right answers, and one solution."""
    lm, tokenizer = load_checkpoint(ASSETS)
    problems = arithmetic.problems(seed=12345, count=100)
    questions = [p.split("\n")[0] + "\n" for p in problems]
    prefilled = lm.prefill([tokenizer.encode_prompt(q) for q in questions])
    tokens = greedy(lm, lm.init_state(prefilled, 1, MAX_TOKENS)).T.tolist()
    solutions = [tokenizer.decode(t[: t.index(1)] if 1 in t else t) for t in tokens]
    answers = [p.split("\n")[-1] for p in problems]
    pairs = list(zip(solutions, answers, strict=True))
    share = sum(s.endswith(a) for s, a in pairs) / len(pairs)
    first = [
        (s.split("\n")[0], p.split("\n")[1])
        for s, p in zip(solutions, problems, strict=True)
    ]
    steps = sum(ours == right for ours, right in first) / len(first)
    print(f"right answers {share:.2f}, right first steps {steps:.2f}")
    print(questions[0] + solutions[0])


if __name__ == "__main__":
    main()
