"""The cache: what is decoded step by step equals what is computed from scratch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motes.lm_bridge import LanguageModel
from tests.lm_bridge.tiny import APPEND, GATHER, full_log_probs, tiny_lm


def assert_state_is(lm, state, texts):
    """Assert that every particle's next-token distribution is that of its whole text."""
    expected = np.stack([full_log_probs(lm, text) for text in texts])
    np.testing.assert_allclose(lm.next_log_probs(state), expected, atol=1e-4, rtol=0)


def test_transformer_keeps_the_contract():
    assert isinstance(tiny_lm(), LanguageModel)


@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("ragged", [False, True], ids=["aligned", "ragged"])
def test_cache_survives_any_sequence_of_resamplings(scanned, ragged):
    # 40 tokens cross the first bucket; two prompts of different lengths share a batch.
    lm, rng = tiny_lm(scanned), np.random.default_rng(0)
    prompts = [rng.integers(0, 50, 7), rng.integers(0, 50, 4)]
    state = lm.init_state(lm.prefill(prompts), num_particles=3, max_tokens=48)
    texts = [list(prompts[i // 3]) for i in range(6)]
    finished = np.zeros(6, bool)
    for t in range(40):
        tokens = rng.integers(0, 50, 6)
        active = rng.random(6) < 0.7 if ragged else ~finished
        state = APPEND(lm, state, tokens, active)
        texts = [x + [tokens[i]] if active[i] else x for i, x in enumerate(texts)]
        finished = finished | (rng.random(6) < 0.01)
        if rng.random() < 0.4:
            ancestors = np.concatenate([rng.integers(0, 3, 3), rng.integers(3, 6, 3)])
            state = GATHER(lm, state, ancestors)
            texts, finished = [texts[a] for a in ancestors], finished[ancestors]
        if t % 8 == 7:
            assert_state_is(lm, state, texts)
    assert ragged == (len(set(map(len, texts[:3]))) > 1) or not ragged


def test_equal_suffixes_of_two_prompts_keep_their_own_logits():
    lm = tiny_lm()
    prompts = [np.array([3, 4, 5]), np.array([9, 8, 7])]
    state = lm.init_state(lm.prefill(prompts), num_particles=2, max_tokens=8)
    for token in (11, 12, 13):
        state = APPEND(lm, state, jnp.full(4, token), jnp.ones(4, bool))
    suffix = [11, 12, 13]
    assert_state_is(lm, state, [[*p, *suffix] for p in prompts for _ in range(2)])
    log_probs = lm.next_log_probs(state)
    assert abs(log_probs[0] - log_probs[2]).max() > 0.1


def test_prompt_is_stored_once():
    # 2,000 tokens, padded to 2,016, in two layers of keys and values for two heads.
    lm, num_particles, max_tokens = tiny_lm(), 64, 16
    prefilled = lm.prefill(jnp.zeros(2000, int))
    state = lm.init_state(prefilled, num_particles, max_tokens)
    floats_per_token = 2 * 2 * 2 * 8
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves((state.prompt, state.layers)))
    slots = 2016 + num_particles * max_tokens
    assert stored <= 4 * slots * floats_per_token + 4 * lm.vocab_size + 4
    grown = APPEND(lm, state, jnp.ones(64, int), jnp.ones(64, bool))
    resampled = GATHER(lm, grown, jnp.zeros(64, int))
    for later in (grown, resampled):
        sizes = [leaf.nbytes for leaf in jax.tree.leaves(later)]
        assert sizes == [leaf.nbytes for leaf in jax.tree.leaves(state)]


def test_inactive_particles_keep_their_distribution():
    lm = tiny_lm()
    state = lm.init_state(lm.prefill(jnp.array([1, 2])), 2, max_tokens=8)
    before = lm.next_log_probs(state)
    after = lm.next_log_probs(
        APPEND(lm, state, jnp.array([5, 6]), np.array([True, False]))
    )
    assert (after[1] == before[1]).all() and abs(after[0] - before[0]).max() > 0.1


def test_growing_beyond_max_tokens_gives_nan():
    lm = tiny_lm()
    state = lm.init_state(lm.prefill(jnp.array([1, 2])), 2, max_tokens=2)
    for _ in range(2):
        state = APPEND(lm, state, jnp.array([5, 6]), jnp.array([True, True]))
    assert not jnp.isnan(lm.next_log_probs(state)).any()
    state = APPEND(lm, state, jnp.array([5, 6]), jnp.array([True, False]))
    assert jnp.isnan(lm.next_log_probs(state)[0]).all()
    assert_state_is(
        lm,
        state._replace(hidden=state.hidden.at[0].set(state.hidden[1])),
        [[1, 2, 6, 6], [1, 2, 6, 6]],
    )


def test_log_prob_of_a_text_is_the_sum_of_its_tokens():
    lm, text = tiny_lm(), [4, 8, 15, 16, 23]
    padded = jnp.asarray([[*text, 0, 0]])
    expected = sum(full_log_probs(lm, text[:i])[text[i]] for i in range(2, 5))
    log_prob = lm.log_prob(padded, jnp.array([5]), start=2)
    np.testing.assert_allclose(log_prob, [expected], atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: lm.prefill(np.zeros(0, int)), "at least one token, got none"),
        (lambda lm: lm.prefill(np.array([3, 50])), r"must be in \[0, 50\), got 50"),
        (lambda lm: lm.init_state(lm.prefill(np.array([3])), 0, 4), "num_particles"),
        (lambda lm: lm.init_state(lm.prefill(np.array([3])), 4, 0), "max_tokens"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_lm())
