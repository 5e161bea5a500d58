"""The transformer against `transformers` itself, on checkpoints drawn here.

Runs where torch and transformers are installed; elsewhere `test_goldens.py` makes the
same comparison with stored values.
"""

from pathlib import Path

import numpy as np
import pytest

from motes.lm_bridge import load_checkpoint
from tests.lm_bridge import goldens

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tests.data import make_lm_goldens as maker  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(maker.LANGUAGE_MODELS))
def test_language_model_agrees_with_transformers(name, tmp_path):
    model, golden = maker.language_golden(maker.LANGUAGE_MODELS[name], seed=7)
    maker.write(tmp_path / name, model, golden, sharded=True)
    goldens.check_folder(tmp_path / name)


@pytest.mark.parametrize("name", sorted(maker.REWARD_MODELS))
def test_reward_model_agrees_with_transformers(name, tmp_path):
    model, golden = maker.reward_golden(*maker.REWARD_MODELS[name], seed=7)
    maker.write(tmp_path / name, model, golden, sharded=False)
    goldens.check_folder(tmp_path / name)


def test_shipped_model_agrees_with_transformers():
    folder = ROOT / "examples/assets/small-lm"
    lm, tokenizer = load_checkpoint(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "It is a truth universally acknowledged, that 12 + 30 = 42."
    ids = tokenizer.encode_prompt(text)
    assert their_tokenizer(text).input_ids == ids
    assert their_tokenizer.decode(ids[1:]) == tokenizer.decode(ids) == text
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    ours = goldens.FULL(lm.model, np.array([ids]))
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
