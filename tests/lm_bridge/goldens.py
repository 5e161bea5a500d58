"""What the golden tests and the live ones share: our side of the comparison."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from motes.lm_bridge import transformer
from motes.lm_bridge.checkpoint import load_model
from motes.lm_bridge.transformer import Transformer
from motes.lm_bridge.transformer_lm import TransformerLM

PROMPT = 8
FULL = jax.jit(transformer.logits)


@jax.jit
def greedy(
    lm: TransformerLM, prompts: Int[Array, "B P"]
) -> tuple[Int[Array, "T B"], Float[Array, "T B V"]]:
    """Return 64 greedy tokens after each prompt, and each step's log-probabilities."""
    prefilled = lm.prefill([prompts[0], prompts[1]])
    state = lm.init_state(prefilled, num_particles=1, max_tokens=64)

    def step(state, _):
        log_probs = lm.next_log_probs(state)
        tokens = log_probs.argmax(-1)
        return lm.append(state, tokens, jnp.ones(2, bool)), (tokens, log_probs)

    return lax.scan(step, state, None, length=64)[1]


def check_language_model(model: Transformer, tokens: np.ndarray, logits: np.ndarray):
    """Assert that full passes and cached decoding agree with golden values."""
    full = np.asarray(FULL(model, jnp.asarray(tokens)))
    np.testing.assert_allclose(full, logits, atol=1e-4, rtol=0)
    lm = TransformerLM(model, eos_ids=(0,))
    generated, log_probs = greedy(lm, jnp.asarray(tokens[:, :PROMPT]))
    np.testing.assert_array_equal(generated.T, tokens[:, PROMPT:])
    expected = jax.nn.log_softmax(logits[:, PROMPT - 1 : -1])
    np.testing.assert_allclose(log_probs.swapaxes(0, 1), expected, atol=1e-4, rtol=0)


def check_reward_model(model: Transformer, tokens: np.ndarray, logits: np.ndarray):
    """Assert that a reward head agrees with golden values; 0 pads texts."""
    lengths = (tokens != 0).sum(axis=1)
    if model.config.head == "sequence":
        outputs = transformer.sequence_logits(
            model, jnp.asarray(tokens), jnp.asarray(lengths)
        )
    else:
        outputs = transformer.logits(model, jnp.asarray(tokens))
        real = np.arange(tokens.shape[1])[None, :] < lengths[:, None]
        outputs, logits = outputs[real], logits[real]
    np.testing.assert_allclose(outputs, logits, atol=1e-4, rtol=0)


def check_folder(folder: Path):
    """Compare a checkpoint with the golden values beside it."""
    golden = np.load(folder / "golden.npz")
    model = load_model(folder, dtype="float32")
    language = model.config.head == "lm"
    check = check_language_model if language else check_reward_model
    check(model, golden["tokens"], golden["logits"])
