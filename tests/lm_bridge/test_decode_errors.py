"""Requests that no decode could fill are refused before the first token."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motes.inference.smc import DeadParticles, run
from motes.lm_bridge import (
    Tokenizer,
    TransformerLM,
    Unit,
    decode,
    decode_batch,
    decoding,
    load_model,
    reject,
    tabular_lm,
)
from motes.lm_bridge.checks import check_decode
from motes.lm_bridge.potentials import ban_tokens, regex
from motes.lm_bridge.potentials.algebra import product
from motes.lm_bridge.potentials.token_weights import LengthWindow, TokenWeights
from tests.hook import unhooked
from tests.lm_bridge.tables import END, TABLE, A, B, C
from tests.lm_bridge.test_checkpoint import GOLDENS
from tests.lm_bridge.tokenizers_zoo import byte_level


@pytest.fixture(scope="module")
def lm():
    return TransformerLM(load_model(GOLDENS / "smollm"), (0,))


def bans(vocab_size=96, eos_ids=(0,)):
    return ban_tokens([3], vocab_size, eos_ids)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "potential", "message"),
    [
        ("the cat", 4, None, "must be token ids, got the text 'the cat'"),
        (["the cat"], 4, None, "must be token ids, got the text 'the cat'"),
        ([], 4, None, "must hold at least one token, got none"),
        ([1, 96], 4, None, r"ids in \[0, 96\), got 96. Is it another"),
        ([[1], [2, -1]], 4, None, r"ids in \[0, 96\), got -1"),
        ([0.5, 1.0], 4, None, "a row of integers, got shape .* of float64"),
        (np.ones((1, 2, 2), int), 4, None, "a row of integers, got shape"),
        ([1, 2], 127, None, r"context of 128 tokens, got 2 \+ 127"),
        ([1, 2], 0, None, "max_tokens must be at least 1, got 0"),
        ([1, 2], 4, bans(95), "vocabulary of the model, 96 tokens, got 95"),
        ([1, 2], 4, bans(96, (1,)), r"by the ids of the model, \[0\], got \[1\]"),
    ],
)
def test_requests_that_no_decode_could_fill(lm, prompt, max_tokens, potential, message):
    with pytest.raises(ValueError, match=message):
        check_decode(lm, prompt, max_tokens, potential)


OTHER = tabular_lm([0.2] * 5, [[0.2] * 5] * 4, "abcd")
EVERY = ban_tokens([], 4, (END,))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_tokens": 2.5}, TypeError, "max_tokens must be an integer.*got 2.5"),
        ({"unit": Unit(1.5)}, TypeError, "unit.max_tokens must be an integer.*got 1.5"),
        ({"unit": Unit(0)}, ValueError, "unit.max_tokens must be at least 1, got 0"),
        ({"unit": Unit(2, jnp.ones(3, bool))}, ValueError, r"4 booleans.*shape \(3,\)"),
        ({"unit": Unit(2, jnp.ones(4))}, ValueError, "4 booleans.*of float"),
        ({"potential": len}, TypeError, "potential must be a Potential, got builtin"),
        ({"critic": EVERY}, TypeError, "critic must be a Critic.*got TokenWeights"),
        ({"proposal": (OTHER, ())}, ValueError, "proposal .*vocabulary.*4 .*got 5"),
        ({"proposal": (TABLE, [(), (A,)])}, ValueError, "must be 1 in number, got 2"),
        ({"prompt": [(A,), (B,)]}, ValueError, "must be 1 in number, got 2. `decode_b"),
    ],
)  # fmt: skip
def test_options_that_fit_no_decode(options, error, message):
    arguments = {"prompt": (), "max_tokens": 4} | options
    with pytest.raises(error, match=message):
        unhooked(decoding)(TABLE, **arguments)


def test_a_batch_takes_as_many_prompts_of_a_proposal(key):
    with pytest.raises(ValueError, match="prompts must be 2 in number, got 1"):
        decode_batch(key, TABLE, [(), (A,)], 4, 4, proposal=(TABLE, ()))
    with pytest.raises(TypeError, match="reject: num_texts must be an integer"):
        unhooked(reject)(key, TABLE, (), 2.5, 4)


def test_integers_of_any_kind_are_counts(key):
    unit = Unit(np.int64(2), [False, True, False, False])
    program = unhooked(decoding)(TABLE, (), np.int64(3), unit=unit)
    found, _ = run(key, program, 5)
    assert found.state.lengths.max() <= 3 and found.state.finished.all()


def test_requests_that_can_be_filled_pass(lm):
    check_decode(lm, [1, 2], 126, bans())
    check_decode(lm, [[1], np.array([2, 95])], 4)
    check_decode(TABLE, (), 4)
    jax.jit(lambda prompt: check_decode(lm, prompt, 4))(np.array([200]))


def test_empty_prompt_needs_a_start_token(lm, tmp_path):
    byte_level(tmp_path)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", {})
    with pytest.raises(ValueError, match="at least one token, got none. Begin"):
        lm.prefill(tokenizer.encode_prompt(""))


ABC, ENDS = [b"a", b"b", b"c", b""], (END,)


@pytest.mark.parametrize(
    "potential",
    [
        lambda: regex("a{6}", ABC, ENDS),
        lambda: regex("a{2,}", ABC, ENDS) * regex(".{5}", ABC, ENDS),
        lambda: LengthWindow(5, 9, 4, ENDS),
        lambda: ban_tokens([A, B, C], 4, ENDS) * LengthWindow(1, 9, 4, ENDS),
        lambda: TokenWeights(jnp.full(4, -jnp.inf), 4, ENDS),
    ],
    ids=["regex", "both", "window", "bans", "nothing"],
)
def test_impossible_constraints_are_found_before_the_first_token(key, potential):
    with pytest.raises(ValueError, match="at most max_tokens=4 .*every first token"):
        decode(key, TABLE, (), 4, 4, potential())


def test_constraints_that_no_text_satisfies_are_refused():
    with pytest.raises(ValueError, match="that none of its 4 tokens can satisfy"):
        regex("a+x", ABC, ENDS)
    with pytest.raises(ValueError, match="one that none of its 4 tokens can"):
        product(regex("a+", ABC, ENDS), regex("b+", ABC, ENDS))
    with pytest.raises(ValueError, match=re.escape("leave one of (3,) to end a text")):
        ban_tokens(range(4), 4, ENDS)


def test_dead_end_in_the_middle_keeps_the_last_texts(key):
    never_ends = TokenWeights(jnp.array([0.0, 0.0, 0.0, -jnp.inf]), 4, ENDS)
    with pytest.raises(DeadParticles, match=r"after step 4, by TokenWeights") as caught:
        decode(key, TABLE, (), 5, 3, never_ends)
    np.testing.assert_array_equal(caught.value.particles.state.lengths, 3)
    with pytest.raises(DeadParticles, match=r"after step 2, by TokenWeights"):
        decode(key, TABLE, (), 5, 3, never_ends, unit=Unit(2))
    endless = tabular_lm([0.5, 0.5, 0.0], [[0.5, 0.5, 0.0]] * 2, "ab")
    with pytest.raises(DeadParticles, match=r"after step 4, by the model; the longest"):
        decode(key, endless, (), 5, 3)
    assert int(caught.value.particles.dead_step) == 4
