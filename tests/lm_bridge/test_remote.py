"""Particles on an endpoint, against all texts of the served table, enumerated."""

from functools import partial

import jax
import numpy as np
import pytest

from motes.inference.smc import DeadParticles, systematic
from motes.lm_bridge.endpoint import EndpointError
from motes.lm_bridge.remote import decode_remote
from motes.lm_bridge.tabular import enumerate_posterior
from tests.lm_bridge.table_server import PROMPT, answer, serve
from tests.lm_bridge.tables import KNOWN, TABLE
from tests.statistics import assert_log_evidence_unbiased, assert_mean_is

# Out of `jit` a resampler would be compiled anew in each run.
RESAMPLE = jax.jit(systematic, static_argnums=2)


@pytest.fixture(scope="module")
def running():
    with serve() as server:
        yield server


@pytest.fixture
def server(running):
    running.seen.clear()
    running.fault = lambda body, attempt: None
    return running


def both(text, finished):
    """Never "cc", and a bonus for each "b"."""
    return -np.inf if "cc" in text else 0.7 * text.count("b")


def twist(text, finished):
    """A twist that longer texts weigh less by, until they end."""
    return 0.0 if finished else -0.4 * len(text)


def ends_in_b(text, finished):
    return -np.inf if finished and not text.endswith("b") else 0.0


KNOWN = KNOWN | {"twist": KNOWN["none"]}
SCORES = {
    "none": None,
    "twist": twist,
    "never cc, likes b": both,
    "ends in b": ends_in_b,
}
draw = partial(decode_remote, prompt=PROMPT, max_tokens=4, resample=RESAMPLE)


def same(found, expected):
    """Assert equality bit for bit, the account included."""
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("none", {"tokens_per_step": 2}),
        ("never cc, likes b", {"tokens_per_step": 2, "ess_threshold": 0.9}),
        ("ends in b", {"tokens_per_step": 1, "ess_threshold": 1.0}),
        ("twist", {"tokens_per_step": 1, "ess_threshold": 1.0}),
        ("never cc, likes b", {"tokens_per_step": 5, "unit_ends": ("b", "ca")}),
    ],
)
def test_evidence_is_unbiased_and_texts_have_the_posterior(key, server, name, options):
    potential, evidence = KNOWN[name]
    exact = enumerate_posterior(TABLE, potential, 4)
    texts = ["".join("abc"[i] for i in text) for text in exact.texts]
    endpoint, log_evidence, mass = server.endpoint(timeout=30.0), [], []
    for one in jax.random.split(key, 100):
        try:
            found = draw(
                one, endpoint, num_particles=8, log_score=SCORES[name], **options
            )
        except DeadParticles:
            log_evidence.append(-np.inf)
            mass.append(np.zeros(len(texts)))
            continue
        log_evidence.append(float(found.log_evidence))
        share = found.posterior()
        share = np.array([share.get(text, 0.0) for text in texts])
        mass.append(np.exp(log_evidence[-1]) * share)
    assert_log_evidence_unbiased(np.log(evidence), np.array(log_evidence))
    # Texts that are seen in few runs have no standard error: those of a length are pooled.
    joint, masses = np.exp(exact.log_joint), np.array(mass)
    lengths = np.array([len(text) for text in texts])
    groups = [joint == joint.max(), *(lengths == length for length in range(5))]
    for group in groups:
        assert_mean_is(joint[group].sum(), masses[:, group].sum(axis=1), num_sigmas=4)


STEER = {"num_particles": 6, "log_score": both, "tokens_per_step": 2}
BROKEN = {"logprobs": {"tokens": ["a"], "token_logprobs": [None]}}
LISTS = {"logprobs": {"tokens": ["a"], "token_logprobs": [-1], "top_logprobs": [None]}}


@pytest.mark.parametrize(
    "fault",
    [429, 500, 503, "slow", "disconnect", "no json", BROKEN, LISTS, {"text": None}],
    ids=str,
)
def test_faults_change_nothing(server, fault):
    plain = draw(jax.random.key(3), server.endpoint(timeout=30.0), **STEER)
    server.seen.clear()
    # Every request of one of three prompts fails once.
    server.fault = lambda body, n: fault if n < 2 and body["seed"] % 3 == 0 else None
    same(draw(jax.random.key(3), server.endpoint(), **STEER), plain)
    assert 2 in server.seen.values()


def test_lasting_fault_is_one_error_with_the_texts(server):
    server.fault = lambda body, attempt: 500 if body["max_tokens"] == 1 else None
    endpoint = server.endpoint(max_retries=1)
    with pytest.raises(
        EndpointError, match=r"in step 3, .*HTTP 500.*\(attempt 2\)"
    ) as e:
        draw(jax.random.key(3), endpoint, **STEER)
    kept = e.value.particles
    assert kept.budget.steps == 3 and kept.ess.shape == (2,)
    assert {
        len(t) for t, end in zip(kept.texts, kept.finished, strict=True) if not end
    } == {4}


def test_a_checkpoint_asks_only_for_what_is_missing(server, tmp_path):
    whole = draw(jax.random.key(3), server.endpoint(), **STEER)
    asked = set(server.seen)
    server.seen.clear()
    file, first = tmp_path / "answers", {}
    lost = sorted(place[1] for place in asked)[::4]
    server.fault = lambda body, attempt: 503 if body["seed"] in lost else None
    for _ in lost:
        with pytest.raises(EndpointError, match="HTTP 503"):
            # One thread: the others' answers would stop with the first fault.
            patient = server.endpoint(max_retries=0, max_concurrency=1)
            draw(jax.random.key(3), patient, **STEER, checkpoint=file)
        first |= server.seen
        lost = lost[1:]
    server.fault = lambda body, attempt: None
    with file.open("ab") as stream:
        stream.write(b'{"step": 9, "cut o')
    same(draw(jax.random.key(3), server.endpoint(), **STEER, checkpoint=file), whole)
    assert set(server.seen) == asked
    server.seen.clear()
    same(draw(jax.random.key(3), server.endpoint(), **STEER, checkpoint=file), whole)
    assert not server.seen


def test_answers_are_kept_as_they_arrive(server, tmp_path):
    """A run that is killed in the midst of a step loses no answer."""
    file, kept = tmp_path / "answers", []

    def note(body, attempt):
        kept.append(len(file.read_text().splitlines()))

    server.fault = note
    one_by_one = server.endpoint(max_concurrency=1)
    found = draw(jax.random.key(3), one_by_one, **STEER, checkpoint=file)
    assert kept == list(range(1, found.budget.requests + 1))


def test_checkpoints_of_other_runs_are_refused(server, tmp_path):
    file = tmp_path / "answers"
    again = partial(draw, endpoint=server.endpoint(), checkpoint=file)
    again(jax.random.key(3), **STEER)
    with pytest.raises(ValueError, match="a run with this key and these settings"):
        again(jax.random.key(4), **STEER)
    file.write_text(file.read_text().replace(PROMPT + "a", PROMPT + "c"))
    with pytest.raises(ValueError, match="got an answer to 'text: c"):
        again(jax.random.key(3), **STEER)
    file.write_text("no journal\n")
    with pytest.raises(ValueError, match="must be a journal of answers"):
        again(jax.random.key(3), **STEER)
    file.write_text("")
    assert (
        again(jax.random.key(3), **STEER).budget.requests
        == len(file.read_text().splitlines()) - 1
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"finish_reason": "content_filter"},
            "'stop' or 'length', got 'content_filter'",
        ),
        ({"finish_reason": "length", "text": ""}, "Does the context of the model end"),
    ],
)
def test_answers_that_are_no_draws_are_refused_and_not_kept(
    server, tmp_path, change, message
):
    empty = {"tokens": [], "token_logprobs": []}
    server.fault = lambda body, attempt: {"logprobs": empty} | change
    file = tmp_path / "answers"
    with pytest.raises(EndpointError, match=message):
        draw(jax.random.key(3), server.endpoint(), **STEER, checkpoint=file)
    assert len(file.read_text().splitlines()) == 1


def test_tokens_must_spell_the_text_where_units_end(server):
    server.fault = lambda body, attempt: {"text": "\u2603"}
    with pytest.raises(EndpointError, match="must spell the text for unit_ends"):
        draw(jax.random.key(3), server.endpoint(), **STEER, unit_ends=["b"])


def test_a_token_for_the_end_is_not_counted(server):
    def with_end(body, attempt):
        choice = answer(body)["choices"][0]
        if choice["finish_reason"] == "stop":
            choice["logprobs"]["tokens"].append("</s>")
            choice["logprobs"]["token_logprobs"].append(-1.0)
        return choice

    plain = draw(jax.random.key(3), server.endpoint(), **STEER)
    server.fault = with_end
    found = draw(jax.random.key(3), server.endpoint(), **STEER)
    same(found._replace(budget=plain.budget), plain)


def test_resampling_may_leave_ended_texts_alone(server):
    for seed in range(6):
        found = draw(
            jax.random.key(seed), server.endpoint(), num_particles=6,
            tokens_per_step=1, ess_threshold=1.0,
            log_score=lambda text, finished: 0.0 if finished else -20.0 * len(text),
        )  # fmt: skip
        assert found.finished.all() and found.budget.steps == found.ess.size


def test_dead_ends_say_where_and_what(server):
    endpoint = server.endpoint()
    with pytest.raises(DeadParticles, match="none is after step 3, by log_score .*'"):
        draw(
            jax.random.key(3), endpoint, num_particles=4, tokens_per_step=2,
            log_score=lambda text, finished: -np.inf if finished else 0.0,
        )  # fmt: skip
    with pytest.raises(ValueError, match="log_score must be a number .*got nan for"):
        draw(
            jax.random.key(3), endpoint, num_particles=4,
            log_score=lambda text, finished: float("nan"),
        )  # fmt: skip
    with pytest.raises(ValueError, match="tokens_per_step must be at least 1, got 0"):
        draw(jax.random.key(3), endpoint, num_particles=4, tokens_per_step=0)
