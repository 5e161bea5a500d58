"""The endpoint against a server on this machine that misbehaves."""

import time

import numpy as np
import pytest

from motes.lm_bridge.endpoint import Endpoint, EndpointError
from tests.lm_bridge.table_server import PROBS, PROMPT, serve

PROMPTS = [PROMPT + text for text in ("a", "b", "c", "ab", "bc", "ca")]
MALFORMED = {"logprobs": {"tokens": ["a", "b"], "token_logprobs": [None, 1.0]}}


@pytest.fixture
def server():
    with serve() as server:
        yield server


@pytest.mark.parametrize(
    "fault", [429, 500, "slow", "disconnect", MALFORMED, "no json"], ids=str
)
def test_faults_change_nothing(server, fault):
    plain = server.endpoint().complete(PROMPTS, 6, seed=3)
    server.seen.clear()
    server.fault = lambda body, attempt: fault if attempt <= 2 else None
    assert server.endpoint().complete(PROMPTS, 6, seed=3) == plain
    assert list(server.seen.values()) == [3] * len(PROMPTS)


def test_log_probs_are_those_of_the_model(server):
    answers = server.endpoint().complete(PROMPTS, 6, seed=5)
    for prompt, found in zip(PROMPTS, answers, strict=True):
        rows = ["abc".index(letter) for letter in prompt[-1] + found.text]
        expected = [np.log(PROBS[i, j]) for i, j in zip(rows, rows[1:], strict=False)]
        np.testing.assert_allclose(found.log_probs, expected)


def test_lasting_fault_is_one_error_that_keeps_the_finished(server):
    plain = server.endpoint().complete(PROMPTS, 6, seed=3)
    last = PROMPTS[-1]
    server.fault = lambda body, attempt: 500 if body["prompt"] == last else None
    with pytest.raises(EndpointError, match="prompt 5: HTTP 500") as caught:
        server.endpoint(max_retries=2).complete(PROMPTS, 6, seed=3)
    assert caught.value.finished == [*plain[:5], None]
    server.fault = lambda body, attempt: None
    server.seen.clear()
    finished = caught.value.finished
    assert server.endpoint().complete(PROMPTS, 6, 3, finished=finished) == plain
    assert [prompt for prompt, _ in server.seen.elements()] == [last]


def test_refusal_is_not_retried(server):
    server.fault = lambda body, attempt: 401
    with pytest.raises(EndpointError, match="HTTP 401"):
        server.endpoint().complete(PROMPTS[:1], 2, seed=0)
    assert server.seen.total() == 1


def test_rate_is_kept(server):
    start = time.monotonic()
    server.endpoint(requests_per_second=20.0).complete(PROMPTS, 1, seed=0)
    assert time.monotonic() - start >= 5 / 20


def test_settings_are_checked():
    with pytest.raises(ValueError, match="max_concurrency"):
        Endpoint("http://127.0.0.1/v1", "table", max_concurrency=0)
