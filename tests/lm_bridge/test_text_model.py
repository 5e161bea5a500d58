"""Texts as choices of models, against all texts of a small language model."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motes.inference.exact import enumerate_choices
from motes.inference.smc import derive, run
from motes.lm_bridge import TabularLM, Text, enumerate_posterior, text_model
from motes.lm_bridge.potentials import TokenWeights
from motes.ppl import laws, masked, select
from tests.lm_bridge.tables import BOTH, END, KNOWN, TABLE, last_token
from tests.statistics import assert_counts_fit, assert_log_evidence_unbiased

SMALL_LM = Path(__file__).parents[2] / "examples/assets/small-lm"
PROMPT = jnp.zeros(0, jnp.int32)
TEXT = text_model(TABLE, 4, BOTH)


@cache
def _exact():
    return enumerate_posterior(TABLE, BOTH, 4)


def _padded(texts):
    return jnp.array([[*t, *[3] * (4 - len(t))] for t in texts], jnp.int32)


def _code(tokens):
    return tokens @ jnp.array([64, 16, 4, 1])


def test_density_of_every_text_is_that_of_the_enumeration():
    found = jax.vmap(lambda t: TEXT.log_density({"token": t}, PROMPT))(
        _padded(_exact().texts)
    )
    np.testing.assert_allclose(found, _exact().log_joint, rtol=1e-6)
    for impossible in ([0, 3, 1, 3], [7, 3, 3, 3], [-1, 3, 3, 3], [0, 1, 2, 9]):
        tokens = jnp.array(impossible, jnp.int32)
        assert TEXT.log_density({"token": tokens}, PROMPT) == -jnp.inf


def test_a_potential_on_the_end_counts_once():
    likes_the_end = last_token(lambda f: [row.__setitem__(END, 1.7) for row in f])
    exact = enumerate_posterior(TABLE, likes_the_end, 4)
    weighed = text_model(TABLE, 4, likes_the_end)
    found = jax.vmap(lambda t: weighed.log_density({"token": t}, PROMPT))(
        _padded(exact.texts)
    )
    np.testing.assert_allclose(found, exact.log_joint, rtol=1e-6)


@pytest.mark.parametrize("name", ["none", "never cc, likes b"])
def test_choices_can_be_enumerated(name):
    potential, exact = KNOWN[name]
    found = enumerate_choices(text_model(TABLE, 4, potential), PROMPT)
    assert np.exp(found.log_evidence) == pytest.approx(exact, rel=1e-5)


def test_laws_hold(key):
    laws.check_all(text_model(TABLE, 3), (PROMPT,), key, select("token"))


def test_returns_tokens_and_length(key):
    traces = jax.vmap(lambda k: TEXT.simulate(k, PROMPT))(jax.random.split(key, 50))
    tokens, lengths = traces.return_value
    np.testing.assert_array_equal(tokens, traces["token"])
    ends = jnp.pad(tokens == END, ((0, 0), (0, 1)), constant_values=True)
    np.testing.assert_array_equal(lengths, jnp.argmax(ends, axis=1))


def test_a_prefix_is_kept_and_its_weight_is_its_density(key):
    start = masked(jnp.array([1, 2, 0, 0], jnp.int32), jnp.array([1, 1, 0, 0], bool))
    free = text_model(TABLE, 4)

    def one(key):
        trace, log_weight = free.generate(key, {"token": start}, PROMPT)
        return trace["token"], log_weight

    tokens, log_weights = jax.vmap(one)(jax.random.split(key, 20_000))
    np.testing.assert_array_equal(
        tokens[:, :2], jnp.tile(jnp.array([[1, 2]]), (20_000, 1))
    )
    exact = enumerate_posterior(TABLE, None, 4).as_dict()
    total = 0.6961003125 * sum(p for text, p in exact.items() if text[:2] == (1, 2))
    assert_log_evidence_unbiased(np.log(total), log_weights[None].T)


def test_metropolis_on_text_leaves_the_posterior_invariant(key):
    exact = _exact()
    start_key, keep_key, move_key, accept_key = jax.random.split(key, 4)
    num = 20_000
    start = jax.random.choice(
        start_key, _padded(exact.texts), (num,), p=jnp.array(exact.probabilities)
    )

    def move(tokens, keep, key, uniform):
        """Keep a prefix of random length, draw the rest from the language model."""
        given = {"token": masked(tokens, jnp.arange(4) < keep)}
        proposed, forth = TEXT.generate(key, given, PROMPT)
        back = _weight_of_rest(tokens, proposed, keep, forth)
        accepts = jnp.log(uniform) < back
        return jnp.where(accepts, proposed["token"], tokens)

    def _weight_of_rest(tokens, proposed, keep, forth):
        # Densities over what drew them; the kept prefix cancels.
        old = TEXT.log_density({"token": tokens}, PROMPT)
        free = jnp.arange(4) >= keep
        return forth - (old - _drawn(tokens, free))

    def _drawn(tokens, free):
        rows = jnp.append(jnp.full(1, 4), tokens)[:4]
        log_probs = TABLE.log_table[rows, tokens]
        return jnp.sum(jnp.where(free, log_probs, 0.0))

    moved = jax.jit(jax.vmap(move))(
        start,
        jax.random.randint(keep_key, num, 0, 4),
        jax.random.split(move_key, num),
        jax.random.uniform(accept_key, num),
    )
    counts = np.bincount(_code(moved), minlength=256)
    codes = np.asarray(_code(_padded(exact.texts)))
    assert counts[codes].sum() == num
    assert 0.2 < float(jnp.mean(jnp.any(moved != start, axis=1))) < 0.95
    assert_counts_fit(exact.probabilities, counts[codes])


def test_regenerated_text_has_the_ratio_of_potentials_as_weight(key):
    trace = TEXT.simulate(key, PROMPT)
    new, log_weight = TEXT.regenerate(
        jax.random.fold_in(key, 1), trace, select("token")
    )
    free = text_model(TABLE, 4)

    def factors(trace):
        tokens = trace["token"]
        cut = Text(TABLE, PROMPT, 4).log_density(key, tokens)
        return TEXT.log_density({"token": tokens}, PROMPT) - cut

    np.testing.assert_allclose(log_weight, factors(new) - factors(trace), rtol=1e-6)
    assert free.log_density({"token": new["token"]}, PROMPT) > -jnp.inf


def test_metropolis_by_update_leaves_the_posterior_invariant(key):
    """Ten times, propose another token at a random place."""
    num, codes = 20_000, np.asarray(_code(_padded(_exact().texts)))
    keys = jax.random.split(key, 5)
    start = jax.random.choice(
        keys[0], _padded(_exact().texts), (num,), p=jnp.array(_exact().probabilities)
    )

    def move(tokens, uniform, place, token, key):
        trace, _ = TEXT.generate(key, {"token": tokens}, PROMPT)
        proposed = tokens.at[place].set(token)
        new, log_weight, discarded = TEXT.update(key, trace, {"token": proposed})
        accepts = jnp.log(uniform) < log_weight
        return jnp.where(accepts, new["token"], discarded["token"])

    @jax.jit
    def moved(tokens):
        shape = (10, num)
        draws = (
            jax.random.uniform(keys[1], shape),
            jax.random.randint(keys[2], shape, 0, 4),
            jax.random.randint(keys[3], shape, 0, 4, jnp.int32),
            jax.random.split(keys[4], shape),
        )
        return jax.lax.scan(lambda t, d: (jax.vmap(move)(t, *d), None), tokens, draws)[
            0
        ]

    end = moved(start)
    assert 0.5 < float(jnp.mean(jnp.any(end != start, axis=1)))
    counts = np.bincount(_code(end), minlength=256)
    assert counts[codes].sum() == num
    assert_counts_fit(_exact().probabilities, counts[codes])


ROWS = np.array([[0.4, 0.1, 0.2, 0.3], [0.1, 0.5, 0.3, 0.1], [0.3, 0.4, 0.2, 0.1]])
TWO_ENDS = TabularLM(
    jnp.log(jnp.array([*ROWS[:2], [1e-9] * 4, [1e-9] * 4, ROWS[2]])),
    (3, 2),
    (b"a", b"b", b"", b""),
)
BY_END = TokenWeights(jnp.log(jnp.array([0.5, 1.5, 0.3, 2.0])), 4, (3, 2))


@pytest.mark.parametrize("potential", [None, BY_END])
def test_density_of_a_text_sums_over_the_ids_that_end_it(key, potential):
    exact = enumerate_posterior(TWO_ENDS, potential, 3)
    texts = exact.as_dict()
    target = text_model(TWO_ENDS, 3, potential)
    padded = jnp.array([[*t, *[3] * (3 - len(t))] for t in texts], jnp.int32)
    found = jax.vmap(lambda t: target.log_density({"token": t}, PROMPT))(padded)
    expected = np.log([*texts.values()]) + exact.log_evidence
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    total = enumerate_choices(target, PROMPT).log_evidence
    np.testing.assert_allclose(total, exact.log_evidence, rtol=1e-6)
    traces = jax.vmap(lambda k: target.simulate(k, PROMPT))(jax.random.split(key, 500))
    assert not jnp.any(traces["token"] == 2)


@pytest.mark.parametrize("num_particles", [2, 8, 32])
def test_the_engine_filters_a_text_model(key, num_particles):
    program = derive(TEXT, {}, PROMPT)
    draws = jax.jit(jax.vmap(lambda k: run(k, program, num_particles)[0].log_evidence))(
        jax.random.split(key, 1000)
    )
    assert_log_evidence_unbiased(_exact().log_evidence, draws)
