"""Texts as choices of models, against all texts of a small language model."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from motes.inference.exact import enumerate_choices
from motes.inference.smc import derive, importance_sampling, run
from motes.lm_bridge import Text, enumerate_posterior, load_checkpoint, text_model
from motes.ppl import condition, factor, laws, masked, model, sample, select
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


@pytest.mark.parametrize("num_particles", [2, 8, 32])
def test_the_engine_filters_a_text_model(key, num_particles):
    program = derive(TEXT, {}, PROMPT)
    draws = jax.jit(jax.vmap(lambda k: run(k, program, num_particles)[0].log_evidence))(
        jax.random.split(key, 1000)
    )
    assert_log_evidence_unbiased(_exact().log_evidence, draws)


PROMPTS = jnp.array([[0], [1], [2]], jnp.int32)
PRIOR = np.array([0.5, 0.3, 0.2])


@model
def topics():
    topic = sample("topic", dist.Categorical(jnp.array(PRIOR)))
    text = sample("text", Text(TABLE, PROMPTS[topic], 3))
    # A classifier reads the text: it likes the token that the topic is about.
    factor("classifier", 0.8 * jnp.sum(text == topic))
    return topic


def _topic_posterior(text):
    """Bayes by hand, from the table."""
    table = np.exp(np.asarray(TABLE.log_table))
    joint = []
    for topic in range(3):
        last, total, ended = topic, PRIOR[topic], False
        for token in text:
            total *= 1.0 if ended else table[last, token]
            last, ended = token, ended or token == 3
        joint.append(total * np.exp(0.8 * np.sum(np.array(text) == topic)))
    return np.array(joint) / np.sum(joint), np.log(np.sum(joint))


@pytest.mark.parametrize("text", [[1, 1, 0], [2, 3, 3]])
def test_posterior_of_a_latent_topic_given_its_text(key, text):
    target = condition(topics, {"text": jnp.array(text, jnp.int32)})
    exact, log_evidence = _topic_posterior(text)
    found = enumerate_choices(target)
    np.testing.assert_allclose(found.log_evidence, log_evidence, rtol=1e-6)
    np.testing.assert_allclose(
        np.exp(found.log_weights - found.log_evidence), exact, rtol=1e-6
    )
    particles = importance_sampling(key, target, 4000)
    chosen = particles.state["topic"][:, None] == jnp.arange(3)[None, :]
    assert float(particles.log_evidence) == pytest.approx(log_evidence, abs=0.05)
    np.testing.assert_allclose(particles.mean(chosen), exact, atol=0.03)


def test_posterior_of_the_topic_when_the_text_is_latent(key):
    """Sum over all texts: the classifier alone tells topics apart."""
    texts = [[a, b, c] for a in range(4) for b in range(4) for c in range(4)]
    joint = np.zeros(3)
    for text in texts:
        if any(x == 3 and y != 3 for x, y in zip(text, text[1:], strict=False)):
            continue
        posterior, log_evidence = _topic_posterior(text)
        joint += posterior * np.exp(log_evidence)
    particles = importance_sampling(key, topics, 20_000)
    chosen = particles.state["topic"][:, None] == jnp.arange(3)[None, :]
    np.testing.assert_allclose(particles.mean(chosen), joint / joint.sum(), atol=0.02)
    assert float(particles.log_evidence) == pytest.approx(np.log(joint.sum()), abs=0.03)


def test_the_shipped_model_tells_which_prompt_a_text_continues(key):
    found = load_checkpoint(SMALL_LM)
    lm, tokenizer = found.lm, found.tokenizer
    prompts = ["And the LORD said", "Mrs. Bennet was"]
    ids = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    width = min(map(len, ids))
    stacked = jnp.array([row[-width:] for row in ids], jnp.int32)
    text = jnp.array(tokenizer.encode(" unto Moses, Go")[:6], jnp.int32)

    @model
    def source():
        which = sample("which", dist.Bernoulli(0.5))
        sample("text", Text(lm, stacked[which], text.shape[0]))

    exact = []
    for row in stacked:
        whole = jnp.concatenate([row, text])[None]
        exact.append(lm.log_prob(whole, jnp.full(1, whole.shape[1]), start=width)[0])
    posterior = enumerate_choices(condition(source, {"text": text}))
    np.testing.assert_allclose(
        posterior.log_weights, np.array(exact) + np.log(0.5), atol=1e-3
    )
    assert posterior.log_weights[0] > posterior.log_weights[1] + 3.0
