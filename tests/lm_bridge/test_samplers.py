"""Every way to draw texts against all texts of a small model, enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motes.lm_bridge.decode import Unit, decode, decode_batch, stream
from motes.lm_bridge.potentials import Classifier, Predicate
from motes.lm_bridge.rejection import reject
from motes.lm_bridge.tabular import enumerate_posterior, tabular_lm
from motes.lm_bridge.token_draws import (
    adaptive_rejection,
    draw_tokens,
    locally_constrained,
    weighed_after,
)
from tests.lm_bridge.tables import BOTH, ENDS_IN_B, NEVER_CC, TABLE
from tests.statistics import assert_counts_fit, assert_mean_is

CODE = jnp.array([64, 16, 4, 1])
OTHER = tabular_lm(
    [0.2, 0.2, 0.4, 0.2],
    [[0.4, 0.1, 0.4, 0.1], [0.2, 0.4, 0.2, 0.2], [0.1, 0.1, 0.3, 0.5]],
    ["a", "b", "c"],
)
LIKES_A = Classifier(
    lambda tokens, lengths: 0.6 * _count(tokens, lengths, 0),
    4,
    (3,),
    on_completion=False,
)


def _count(tokens, lengths, token):
    written = jnp.arange(tokens.shape[1])[None, :] < lengths[:, None]
    return jnp.sum((tokens == token) & written, axis=1).astype(float)


def _no_double_b(text):
    return b"bb" not in text


NO_DOUBLE_B = Predicate(_no_double_b, (b"a", b"b", b"c", b""), 4, (3,), _no_double_b)
AFTER_B = Unit(3, jnp.array([False, True, False, False]))


def _assert_posterior(key, exact, draw, num_runs=3000):
    """Assert that mass at every text is unbiased, hence evidence and posterior."""

    def one(key):
        found = draw(key)
        mass = jnp.zeros(256).at[found.tokens @ CODE].add(found.weights)
        return jnp.exp(found.log_evidence - exact.log_evidence) * mass

    draws = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, num_runs)))
    codes = [int(np.dot((*t, *[3] * (4 - len(t))), CODE)) for t in exact.texts]
    assert_mean_is(exact.probabilities, draws[:, codes], num_sigmas=5)
    assert_mean_is(1.0, draws.sum(1), num_sigmas=4)


SAMPLERS = {
    "locally constrained": locally_constrained,
    "adaptive rejection": adaptive_rejection,
    "weighed after": weighed_after,
}
WAYS = {
    "a token": {},
    "two tokens": {"unit": Unit(2)},
    "up to b": {"unit": AFTER_B},
    "critic": {"critic": LIKES_A},
    "critic of units": {"critic": LIKES_A, "unit": AFTER_B},
    "proposal": {"proposal": (OTHER, ())},
    "all": {"proposal": (OTHER, ()), "critic": LIKES_A, "unit": Unit(3)},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_texts_have_the_exact_posterior(key, sampler, way):
    options = WAYS[way] | {"sampler": SAMPLERS[sampler]}
    target = BOTH * LIKES_A if "critic" in options else BOTH
    exact = enumerate_posterior(TABLE, target, 4)

    def draw(key):
        return decode(key, TABLE, (), 6, 4, BOTH, ess_threshold=0.9, **options)

    _assert_posterior(key, exact, draw)


def test_a_critic_and_units_see_the_limit(key):
    exact = enumerate_posterior(TABLE, ENDS_IN_B * LIKES_A, 3)

    def draw(key):
        found = decode(
            key,
            TABLE,
            (),
            6,
            3,
            ENDS_IN_B,
            critic=LIKES_A,
            unit=AFTER_B,
            ess_threshold=1.0,
        )
        end = jnp.full((6, 1), 3, jnp.int32)
        return found._replace(tokens=jnp.concatenate([found.tokens, end], axis=1))

    _assert_posterior(key, exact, draw)


@pytest.mark.parametrize("on_completion", [True, False])
def test_what_a_classifier_gives_prefixes_changes_no_target(key, on_completion):
    def log_score(tokens, lengths):
        return jnp.log(0.4) + 0.6 * _count(tokens, lengths, 0)

    critic = Classifier(log_score, 4, (3,), on_completion=on_completion)
    likes_a = enumerate_posterior(TABLE, LIKES_A, 4)
    exact = enumerate_posterior(TABLE, critic, 4)
    np.testing.assert_allclose(exact.log_joint, likes_a.log_joint + np.log(0.4))

    def draw(key):
        return decode(key, TABLE, (), 6, 4, critic=critic, ess_threshold=0.9)

    _assert_posterior(key, exact, draw)


@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_a_critic_that_gives_zero_ends_a_text(key, threshold):
    def log_score(tokens, lengths):
        return jnp.where((lengths == 2) & (tokens[:, 1] == 2), -jnp.inf, 0.0)

    critic = Classifier(log_score, 4, (3,), on_completion=False)
    exact = enumerate_posterior(TABLE, critic, 4)
    assert all(text[1:2] != (2,) for text in exact.texts)

    def draw(key):
        return decode(key, TABLE, (), 6, 4, critic=critic, ess_threshold=threshold)

    _assert_posterior(key, exact, draw)


@pytest.mark.parametrize("sampler", ["adaptive rejection", "weighed after"])
def test_predicates_are_asked_on_the_host(key, sampler):
    exact = enumerate_posterior(TABLE, NO_DOUBLE_B, 4)
    draws = []
    for k in jax.random.split(key, 60):
        found = decode(k, TABLE, (), 20, 4, NO_DOUBLE_B, sampler=SAMPLERS[sampler])
        mass = np.bincount(found.lengths, found.weights, minlength=5)
        draws.append(np.exp(found.log_evidence - exact.log_evidence) * mass)
        assert int(found.budget.checks) <= 5 * int(found.budget.generated)
    lengths = [len(text) for text in exact.texts]
    expected = np.bincount(lengths, exact.probabilities, minlength=5)
    assert_mean_is(expected, np.array(draws), num_sigmas=5)


def test_prompts_of_a_batch_are_apart(key):
    prompts = [(), (1,), (2,), (1,)]
    exact = [enumerate_posterior(TABLE, NEVER_CC, 4, p) for p in prompts]

    def one(key):
        found = decode_batch(key, TABLE, prompts, 5, 4, NEVER_CC, ess_threshold=0.9)
        masses = jax.vmap(lambda c, w: jnp.zeros(256).at[c].add(w))
        mass = masses(found.tokens @ CODE, found.weights)
        return jnp.exp(found.log_evidence)[:, None] * mass

    draws = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, 3000)))
    for p, posterior in enumerate(exact):
        codes = [int(np.dot((*t, *[3] * (4 - len(t))), CODE)) for t in posterior.texts]
        expected = np.exp(posterior.log_joint)
        assert_mean_is(expected, draws[:, p, codes], num_sigmas=5)


def test_history_leads_to_the_final_texts(key):
    options = {"unit": Unit(2), "ess_threshold": 1.0}
    one = decode(key, TABLE, (), 7, 4, BOTH, **options)
    # Inside `jit` there are rows for steps that were not needed.
    inside = jax.jit(lambda k: decode(k, TABLE, (), 7, 4, BOTH, **options))(key)
    unused = inside.history.tokens[len(one.history.tokens) :]
    assert unused.size > 0
    assert (unused == -1).all()
    batch = decode_batch(key, TABLE, [(), (1,)], 7, 4, BOTH, ess_threshold=0.9)
    for found in (one, inside, batch.of_prompt(0), batch.of_prompt(1)):
        texts = [()] * 7
        for tokens, parents in zip(
            np.asarray(found.history.tokens),
            np.asarray(found.history.ancestors),
            strict=True,
        ):
            texts = [
                texts[p] + tuple(v for v in row if v not in (-1, 3))
                for p, row in zip(parents, tokens.tolist(), strict=True)
            ]
        rows = zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)
        assert texts == [tuple(row[:n]) for row, n in rows]
        np.testing.assert_allclose(found.history.log_weights[-1], found.log_weights)


def test_a_stream_ends_with_what_decode_gives(key):
    *before, last = stream(key, TABLE, (), 6, 4, BOTH, critic=LIKES_A)
    whole = decode(key, TABLE, (), 6, 4, BOTH, critic=LIKES_A)
    jax.tree.map(np.testing.assert_allclose, last, whole)
    assert not before[0].finished.all() and before[0].lengths.max() <= 1


def test_rejected_texts_leave_the_exact_posterior(key):
    for sampler in SAMPLERS.values():
        exact = enumerate_posterior(TABLE, NEVER_CC, 4)
        found = reject(key, TABLE, (), 20_000, 4, NEVER_CC, batch=4096, sampler=sampler)
        counts = found.posterior()
        assert_counts_fit(
            exact.probabilities,
            np.array([20_000 * counts.get(t, 0) for t in exact.texts]),
        )
        error = np.exp(float(found.log_evidence) - exact.log_evidence) - 1
        assert abs(error) < 4 / 20_000**0.5
    with pytest.raises(ValueError, match="log_bound must bound"):
        reject(key, TABLE, (), 5, 4, BOTH)
    with pytest.raises(RuntimeError, match="within max_tries=256, got 0 of 5"):
        reject(key, TABLE, (), 5, 4, NO_C_AT_ALL, sampler=weighed_after, max_tries=256)


def test_batches_of_dead_ends_count_as_tries(key):
    exact = enumerate_posterior(TABLE, ENDS_IN_B, 3)
    options = {"batch": 1, "sampler": weighed_after}
    rates = []
    for one in jax.random.split(key, 40):
        found = reject(one, TABLE, (), 3, 3, ENDS_IN_B, **options)
        assert found.posterior().keys() <= exact.as_dict().keys()
        rates.append(np.exp(found.log_evidence))
    assert_mean_is(np.exp(exact.log_evidence), rates, num_sigmas=4)


NO_C_AT_ALL = Predicate(
    lambda text: text == b"cccc" * 9, (b"a", b"b", b"c", b""), 4, (3,)
)


def test_the_budget_counts_what_was_used(key):
    found = decode(key, TABLE, (), 50, 4, BOTH, critic=LIKES_A, ess_threshold=0.0)
    drawn = np.asarray(found.history.tokens) >= 0
    assert int(found.budget.generated) == drawn.sum()
    assert int(found.budget.critic_calls) == drawn.sum()
    assert int(found.budget.checks) == 4 * drawn.sum()
    assert int(found.budget.steps) == len(drawn)
    # A step that only ends texts needs no pass.
    grown = (drawn[:, :, 0] & (np.asarray(found.history.tokens)[:, :, 0] != 3)).any(
        axis=1
    )
    assert int(found.budget.forwarded) == 50 * grown.sum()
    assert grown.sum() < len(drawn)


def test_checks_may_be_more_than_an_integer_holds(key):
    def much_asked(key, log_probs, context):
        return locally_constrained(key, log_probs, context)._replace(
            num_checks=jnp.asarray(2**30, jnp.int32)
        )

    found = decode(key, TABLE, (), 5, 4, BOTH, sampler=much_asked)
    assert int(found.budget.checks) == 2**30 * int(found.budget.steps)
    assert int(found.budget.steps) > 2


@pytest.mark.parametrize("size", [6, 64, 150])
def test_inverse_cdf_draws_have_their_probabilities(key, size):
    possible = np.arange(size) % 3 == 1
    probabilities = np.where(possible, 1.0 + np.arange(size), 0.0)
    probabilities = probabilities / probabilities.sum()
    with np.errstate(divide="ignore"):
        row = jnp.log(probabilities)
    scores = jnp.broadcast_to(row[None] + 3.0, (20_000, size))
    tokens, log_sums = draw_tokens(key, scores)
    np.testing.assert_allclose(log_sums, 3.0)
    assert_counts_fit(probabilities, np.bincount(np.asarray(tokens), minlength=size))
