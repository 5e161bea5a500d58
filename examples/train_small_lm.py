"""Train the small language model of `examples/assets/small-lm`.

    apt-get install bible-kjv bible-kjv-text r-cran-janeaustenr
    python examples/train_small_lm.py --steps 3600

A Llama of 3.2 million parameters on Jane Austen, the King James Bible and worked
arithmetic, on one CPU core. A run that is stopped goes on from its last checkpoint, bit
for bit. `--export` writes the current checkpoint in the Hugging Face format.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree
from small_lm import corpus, export

from motes.lm_bridge import transformer
from motes.lm_bridge.config import TransformerConfig
from motes.lm_bridge.rope import Rope
from motes.lm_bridge.transformer import Transformer

CONFIG = TransformerConfig(
    vocab_size=2048,
    hidden_size=192,
    num_layers=6,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=640,
    max_positions=512,
    rope=Rope(theta=10_000.0),
)


class TrainState(NamedTuple):
    """All that a run depends on."""

    model: Transformer
    optimizer: PyTree
    step: Int[Array, ""]


def schedule(num_steps: int) -> optax.Schedule:
    """Return a rate that warms up and falls to a twentieth along a cosine."""
    return optax.warmup_cosine_decay_schedule(
        0.0, 3e-3, num_steps // 25, num_steps, end_value=1.5e-4
    )


def optimizer(num_steps: int) -> optax.GradientTransformation:
    """Return AdamW with clipped gradients; norms and biases do not decay."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule(num_steps),
            b2=0.98,
            weight_decay=0.1,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


def init(seed: int, num_steps: int) -> TrainState:
    """Return the state before the first step."""
    model = transformer.init(jax.random.key(seed), CONFIG)
    return TrainState(model, optimizer(num_steps).init(model), jnp.zeros((), jnp.int32))


def loss(model: Transformer, tokens: Int[Array, "B T"]) -> Float[Array, " B"]:
    """Return the mean cross-entropy of each text, in nats a token."""
    logits = transformer.logits(model, tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return losses.mean(-1)


def train_step(
    state: TrainState, tokens: Int[Array, "B T"], num_steps: int
) -> tuple[TrainState, Float[Array, " B"]]:
    """Take one step; return the losses of the batch too."""

    def mean_loss(model: Transformer) -> tuple[Array, Array]:
        losses = loss(model, tokens)
        return losses.mean(), losses

    gradient, losses = jax.grad(mean_loss, has_aux=True)(state.model)
    updates, opt_state = optimizer(num_steps).update(
        gradient, state.optimizer, state.model
    )
    model = optax.apply_updates(state.model, updates)
    return TrainState(model, opt_state, state.step + 1), losses


def held_out_losses(model: Transformer, data: corpus.Corpus) -> tuple[float, float]:
    """Return the losses on held-out prose and arithmetic: 16 windows of each."""
    rng, compiled = np.random.default_rng(1), jax.jit(loss)
    streams = (data.held_out_prose, data.held_out_problems)
    return tuple(
        float(compiled(model, corpus.windows(rng, s, 16, 193)).mean()) for s in streams
    )


def save(path: Path, state: TrainState) -> None:
    """Write a checkpoint; a run that dies while writing leaves the one before."""
    partial = path.with_suffix(".partial")
    eqx.tree_serialise_leaves(str(partial), state)
    partial.replace(path)


def train(args: argparse.Namespace) -> TrainState:
    """Train, or go on training, and return the last state."""
    _, data = corpus.build(args.folder, CONFIG.vocab_size)
    state, path = init(args.seed, args.steps), args.folder / "checkpoint.eqx"
    if path.exists():
        state = eqx.tree_deserialise_leaves(str(path), state)
    step_fn = jax.jit(train_step, static_argnums=2, donate_argnums=0)
    start = time.monotonic()
    stop = min(args.stop or args.steps, args.steps)
    for step in range(int(state.step), stop):
        tokens = corpus.batch(data, args.seed, step, args.batch, args.length)
        state, losses = step_fn(state, tokens, args.steps)
        if (step + 1) % 25 == 0:
            prose, problems = losses[: -(args.batch // 2)], losses[-(args.batch // 2) :]
            print(
                f"step {step + 1}: prose {prose.mean():.3f}, arithmetic "
                f"{problems.mean():.3f}, {time.monotonic() - start:.0f} s",
                flush=True,
            )
        if (step + 1) % args.save_every == 0 or step + 1 == stop:
            save(path, state)
            prose, problems = held_out_losses(state.model, data)
            print(f"held out: prose {prose:.3f}, arithmetic {problems:.3f}", flush=True)
    return state


def main() -> None:
    """Parse the command line, train, export."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/small-lm"))
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--stop", type=int, help="stop early, to go on later")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--export", type=Path, help="write the last checkpoint here")
    args = parser.parse_args()
    if args.export is None:
        train(args)
        return
    state = init(args.seed, args.steps)
    state = eqx.tree_deserialise_leaves(str(args.folder / "checkpoint.eqx"), state)
    export.write(args.export, state.model, args.folder / "tokenizer.json")
    print(f"wrote step {int(state.step)} to {args.export}")


if __name__ == "__main__":
    main()
