"""Steered decoding of the model that ships with the examples."""

import json
import re
import sys
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

from motes.lm_bridge import (
    TransformerLM,
    decode,
    decode_batch,
    enumerate_posterior,
    load_checkpoint,
)
from motes.lm_bridge.potentials import ban_tokens, expert, json_schema, regex
from tests.statistics import assert_log_evidence_unbiased

SMALL_LM = Path(__file__).parents[2] / "examples/assets/small-lm"
PROMPT = "The old man and the"


@cache
def _shipped():
    found = load_checkpoint(SMALL_LM)
    stops = [i for i, b in enumerate(found.tokenizer.token_bytes) if b and b in b".,;"]
    # Texts that end with a stop: short ones are as probable as long ones.
    return TransformerLM(found.lm.model, (*found.lm.eos_ids, *stops)), found.tokenizer


def _few_tokens(lm, tokenizer, words):
    """Allow a handful of tokens, so that every text can be enumerated."""
    allowed = {tokenizer.encode(word)[0] for word in words} | set(lm.eos_ids)
    banned = [v for v in range(lm.vocab_size) if v not in allowed]
    return ban_tokens(banned, lm.vocab_size, lm.eos_ids)


@cache
def _small_problem():
    lm, tokenizer = _shipped()
    few = _few_tokens(lm, tokenizer, [" man", " the", " and", " of", " king"])
    pattern = regex(r"( [a-z]+)*", tokenizer.token_bytes, lm.eos_ids)
    prompt = tokenizer.encode_prompt(PROMPT)
    return few * pattern, prompt, enumerate_posterior(lm, few * pattern, 4, prompt)


def test_distance_to_the_enumerated_posterior_falls_as_one_over_root_n(key):
    lm, _ = _shipped()
    potential, prompt, exact = _small_problem()
    assert len(exact.texts) > 500
    truth = exact.as_dict()
    mean_distance = []
    for num in (64, 1024):
        distances = []
        for k in jax.random.split(key, 16):
            found = decode(k, lm, prompt, num, 4, potential).posterior()
            assert found.keys() <= truth.keys()
            distances.append(
                0.5 * sum(abs(p - found.get(text, 0.0)) for text, p in truth.items())
            )
        mean_distance.append(np.mean(distances))
    # Sixteen times the particles: a quarter of the distance.
    assert 2.8 < mean_distance[0] / mean_distance[1] < 5.6


def test_evidence_is_unbiased_for_one_prompt_and_for_a_batch(key):
    lm, tokenizer = _shipped()
    potential, prompt, exact = _small_problem()
    other = tokenizer.encode_prompt("Once")
    truths = [exact, enumerate_posterior(lm, potential, 4, other)]
    keys = jax.random.split(key, 100)
    alone = [decode(k, lm, prompt, 8, 4, potential).log_evidence for k in keys]
    assert_log_evidence_unbiased(exact.log_evidence, np.array(alone))
    both = [decode_batch(k, lm, [prompt, other], 8, 4, potential) for k in keys]
    draws = np.array([found.log_evidence for found in both])
    for p, truth in enumerate(truths):
        assert_log_evidence_unbiased(truth.log_evidence, draws[:, p])


def test_texts_match_the_regex_and_the_schema(key):
    lm, tokenizer = _shipped()
    prompt = tokenizer.encode_prompt(PROMPT)
    pattern = r" [a-z]{3,8}( [a-z]{2,8}){2}"
    potential = regex(pattern, tokenizer.token_bytes, lm.eos_ids)
    found = decode(key, lm, prompt, 16, 12, potential)
    assert all(re.fullmatch(pattern, text) for text in found.texts(tokenizer))
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"],
    }
    potential = json_schema(schema, tokenizer.token_bytes, lm.eos_ids)
    found = decode(key, lm, prompt, 16, 24, potential)
    for text in found.texts(tokenizer):
        value = json.loads(text)
        assert isinstance(value["n"], int) and isinstance(value["ok"], bool)


def test_an_expert_multiplies_its_probabilities_in(key):
    lm, tokenizer = _shipped()
    potential, prompt, _ = _small_problem()
    product = potential * expert(lm, tokenizer.encode_prompt("Once"), power=0.5)
    exact = enumerate_posterior(lm, product, 4, prompt)
    keys = jax.random.split(key, 100)
    draws = [decode(k, lm, prompt, 8, 4, product).log_evidence for k in keys]
    assert_log_evidence_unbiased(exact.log_evidence, np.array(draws))


def test_lengths_of_one_bucket_share_a_program(key):
    lm, _ = _shipped()
    potential, prompt, _ = _small_problem()
    compiled = sys.modules["motes.inference.smc.run"]._run._cache_size
    before = compiled()
    for max_tokens, longer in ((9, 1), (12, 2), (16, 2)):
        found = decode(key, lm, prompt * longer, 3, max_tokens, potential)
        assert found.tokens.shape == (3, max_tokens)
    assert compiled() == before + 1


def test_precision_of_the_model_is_kept(key):
    lm, tokenizer = _shipped()
    prompt = tokenizer.encode_prompt(PROMPT)
    with jax.enable_x64(False):
        potential = _few_tokens(lm, tokenizer, [" sea", " the"])
        found = decode(key, lm, prompt, 4, 4, potential)
    assert found.log_weights.dtype == np.float32
    with pytest.raises(ValueError, match="vocabulary of the model"):
        decode(key, lm, prompt, 4, 4, ban_tokens([1], 7, (0,)))
