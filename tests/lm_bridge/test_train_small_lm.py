"""The training script: right arithmetic, exact resumption, a model that learned."""

import argparse
import dataclasses
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from motes.lm_bridge import load_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
import train_small_lm  # noqa: E402
from small_lm import arithmetic, corpus, export  # noqa: E402

STEP = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
OPERATORS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def test_every_step_of_every_problem_is_right():
    for problem in arithmetic.problems(seed=3, count=300):
        steps = STEP.findall(problem)
        for left, operator, right, result in steps:
            assert OPERATORS[operator](int(left), int(right)) == int(result)
        assert problem.endswith(f"\nAnswer: {steps[-1][-1]}")


def test_expression_of_a_question_has_the_answer():
    pattern = re.compile(r"(?:What is|Compute|Find) ([-+* \d]+)[.?]\n")
    problems = arithmetic.problems(seed=4, count=300)
    for problem, found in ((p, pattern.search(p)) for p in problems):
        if found:
            assert problem.endswith(f"Answer: {eval(found[1])}")


@pytest.fixture
def tiny(monkeypatch):
    """A model of a few thousand parameters on a stream of random tokens."""
    config = dataclasses.replace(
        train_small_lm.CONFIG,
        vocab_size=32,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=16,
    )
    stream = np.random.default_rng(0).integers(0, 32, 500).astype(np.uint16)
    monkeypatch.setattr(train_small_lm, "CONFIG", config)
    monkeypatch.setattr(
        corpus, "build", lambda *_: (None, corpus.Corpus(*(stream,) * 4))
    )


def arguments(folder, stop):
    folder.mkdir(exist_ok=True)
    return argparse.Namespace(
        folder=folder, steps=6, stop=stop, batch=4, length=12, seed=0, save_every=100
    )


def test_training_resumes_bit_for_bit(tiny, tmp_path):
    whole = train_small_lm.train(arguments(tmp_path / "whole", stop=6))
    train_small_lm.train(arguments(tmp_path / "parts", stop=3))
    resumed = train_small_lm.train(arguments(tmp_path / "parts", stop=6))
    leaves = zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True)
    assert all((a == b).all() for a, b in leaves)
    assert int(resumed.step) == 6


def test_exported_model_loads_as_it_was(tmp_path):
    lm, _ = load_checkpoint(EXAMPLES / "assets/small-lm")
    export.write(tmp_path, lm.model, EXAMPLES / "assets/small-lm/tokenizer.json")
    again, tokenizer = load_checkpoint(tmp_path)
    leaves = zip(jax.tree.leaves(lm), jax.tree.leaves(again), strict=True)
    assert all((a == b).all() for a, b in leaves)
    assert tokenizer.bos_id == 0 and again.eos_ids == (1,)


def test_shipped_model_is_small():
    files = (EXAMPLES / "assets/small-lm").iterdir()
    assert sum(file.stat().st_size for file in files) < 20e6
