"""Checkpoints of every architecture against what `transformers` computed."""

from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from motes.lm_bridge.checkpoint import load_model
from motes.lm_bridge.transformer import stack_layers, unstack_layers
from tests.lm_bridge import goldens

FOLDER = Path(__file__).parents[1] / "data" / "lm_goldens"
NAMES = sorted(path.name for path in FOLDER.iterdir())


def test_goldens_cover_every_architecture():
    assert len(NAMES) == 18


@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_agrees_with_transformers(name):
    goldens.check_folder(FOLDER / name)


@pytest.mark.parametrize("name", ["mistral", "smollm3"])
def test_scanned_layers_agree_with_transformers(name):
    golden = np.load(FOLDER / name / "golden.npz")
    model = stack_layers(load_model(FOLDER / name))
    goldens.check_language_model(model, golden["tokens"], golden["logits"])


def test_stacking_layers_is_undone_by_unstacking():
    model = load_model(FOLDER / "qwen3")
    assert eqx.tree_equal(model, unstack_layers(stack_layers(model)))


def test_bfloat16_is_close_and_stays_bfloat16():
    golden = np.load(FOLDER / "smollm" / "golden.npz")
    model = load_model(FOLDER / "smollm", dtype="bfloat16")
    assert model.blocks[0].qkv.weight.dtype == jnp.bfloat16
    full = goldens.FULL(model, jnp.asarray(golden["tokens"]))
    assert full.dtype == jnp.float32
    error = np.abs(full - golden["logits"]).mean()
    assert error < 0.05 * np.abs(golden["logits"]).mean()
