"""A tiny random transformer for tests of caches and decoding."""

import jax
import jax.numpy as jnp

from motes.lm_bridge import transformer
from motes.lm_bridge.config import TransformerConfig
from motes.lm_bridge.rope import Rope
from motes.lm_bridge.transformer_lm import TransformerLM

CONFIG = TransformerConfig(
    vocab_size=50,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_positions=256,
    rope=Rope(),
    windows=(None, 9),
    qk_norm=True,
)


def tiny_lm(scanned=False):
    """Return a model whose parameters are large enough to make errors visible."""
    model = transformer.init(jax.random.key(0), CONFIG)
    model = jax.tree.map(lambda p: p * (10.0 if p.ndim > 1 else 1.0), model)
    return TransformerLM(transformer.stack_layers(model) if scanned else model, (0,))


APPEND = jax.jit(lambda lm, state, tokens, active: lm.append(state, tokens, active))
GATHER = jax.jit(lambda lm, state, ancestors: lm.gather(state, ancestors))
LOGITS = jax.jit(transformer.logits)


def full_log_probs(lm, text):
    """Return the log-probabilities after `text`, computed from scratch."""
    padded = jnp.zeros((1, 64), int).at[0, : len(text)].set(jnp.asarray(text))
    return jax.nn.log_softmax(LOGITS(lm.model, padded)[0, len(text) - 1])
