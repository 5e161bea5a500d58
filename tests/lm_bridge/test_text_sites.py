"""Texts as sites of larger models, against Bayes' rule by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from motes.inference.exact import enumerate_choices
from motes.inference.smc import importance_sampling
from motes.lm_bridge import Text, enumerate_posterior, load_checkpoint, text_model
from motes.ppl import condition, factor, model, sample, vmap
from tests.lm_bridge.tables import BOTH, TABLE
from tests.statistics import assert_counts_fit, assert_mean_is

SMALL_LM = Path(__file__).parents[2] / "examples/assets/small-lm"
PROMPTS = jnp.array([[0], [1], [2]], jnp.int32)
PRIOR = np.array([0.5, 0.3, 0.2])


@model
def topics():
    topic = sample("topic", dist.Categorical(jnp.array(PRIOR)))
    text = sample("text", Text(TABLE, PROMPTS[topic], 3))
    # A classifier reads the text: it likes the token that the topic is about.
    factor("classifier", 0.8 * jnp.sum(text == topic))
    return topic


def _log_cut(last, text):
    """Sum the table's log-probabilities up to the end of a text."""
    total = 0.0
    for token in text:
        total += float(TABLE.log_table[last, token]) if last != 3 else 0.0
        last = token
    return total


def _topic_posterior(text):
    """Bayes by hand, from the table."""
    likes = [np.exp(0.8 * np.sum(np.array(text) == topic)) for topic in range(3)]
    joint = np.exp([_log_cut(topic, text) for topic in range(3)]) * PRIOR * likes
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
    _assert_posterior_of_topics(key, target, exact * np.exp(log_evidence))


def _assert_posterior_of_topics(key, target, joint):
    """Assert that the weight of every topic is unbiased, hence evidence and posterior."""

    def one(key):
        particles = importance_sampling(key, target, 20)
        chosen = particles.state["topic"][:, None] == jnp.arange(3)[None, :]
        return jnp.exp(particles.log_evidence) * particles.mean(chosen.astype(float))

    draws = jax.jit(jax.vmap(one))(jax.random.split(key, 2000))
    assert_mean_is(joint, draws, num_sigmas=4)
    assert_mean_is(joint.sum(), np.asarray(draws).sum(axis=1), num_sigmas=4)


def test_posterior_of_the_topic_when_the_text_is_latent(key):
    """Sum over all texts: the classifier alone tells topics apart."""
    texts = [[a, b, c] for a in range(4) for b in range(4) for c in range(4)]
    joint = np.zeros(3)
    for text in texts:
        if any(x == 3 and y != 3 for x, y in zip(text, text[1:], strict=False)):
            continue
        posterior, log_evidence = _topic_posterior(text)
        joint += posterior * np.exp(log_evidence)
    _assert_posterior_of_topics(key, topics, joint)


@model
def plate():
    vmap(lambda prompt: sample("text", Text(TABLE, prompt, 3)))(PROMPTS)


@model
def plate_of_models():
    vmap(lambda prompt: text_model(TABLE, 3, BOTH)(prompt))(PROMPTS)


def test_texts_of_a_plate_are_those_of_their_prompts(key):
    texts = jnp.array([[1, 1, 0], [3, 3, 3], [0, 1, 3]], jnp.int32)
    expected = sum(_log_cut(row, text) for row, text in enumerate(texts.tolist()))
    found = plate.log_density({"text": texts})
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    exact = [enumerate_posterior(TABLE, BOTH, 3, (prompt,)) for prompt in range(3)]
    weights = [
        e.as_dict()[t] for e, t in zip(exact, [(1, 1, 0), (), (0, 1)], strict=True)
    ]
    expected = np.log(weights).sum() + sum(e.log_evidence for e in exact)
    found = plate_of_models.log_density({"token": texts})
    np.testing.assert_allclose(found, expected, rtol=1e-6)

    draws = jax.vmap(plate.simulate)(jax.random.split(key, 4000))["text"]
    first = np.exp(np.asarray(TABLE.log_table))[:3]
    for row in range(3):
        assert_counts_fit(first[row], np.bincount(draws[:, row, 0], minlength=4))


def test_the_shipped_model_tells_which_prompt_a_text_continues(key):
    found = load_checkpoint(SMALL_LM)
    # In double precision, so that two ways to sum agree up to it.
    lm = jax.tree.map(lambda leaf: leaf.astype(float), found.lm)
    tokenizer = found.tokenizer
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
        posterior.log_weights, np.array(exact) + np.log(0.5), rtol=1e-6
    )
    assert posterior.log_weights[0] > posterior.log_weights[1] + 3.0
