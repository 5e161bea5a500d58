"""The endpoint against a server on this machine that misbehaves."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from motes.lm_bridge.endpoint import Endpoint, EndpointError
from tests.lm_bridge.test_potentials import LM

TABLE = np.exp(np.asarray(LM.log_table))
NAMES = ["a", "b", "c", ""]
PROMPTS = ["a", "b", "c", "ab", "bc", "ca"]


def _answer(body):
    random = np.random.default_rng(body["seed"])
    row, tokens, values, tops = "abc".index(body["prompt"][-1]), [], [], []
    while len(tokens) < body["max_tokens"]:
        row_probs = TABLE[row]
        row = int(random.choice(4, p=row_probs))
        if row == 3:
            break
        tokens.append(NAMES[row])
        values.append(float(np.log(row_probs[row])))
        tops.append(dict(zip(NAMES, np.log(row_probs).tolist(), strict=True)))
    logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}
    reason = "stop" if row == 3 else "length"
    choice = {"text": "".join(tokens), "logprobs": logprobs, "finish_reason": reason}
    return {"choices": [choice]}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen[body["prompt"]] += 1
            fault = self.server.fault(body["prompt"], self.server.seen[body["prompt"]])
        answer = _answer(body)
        if fault == "slow":
            time.sleep(0.6)
        elif fault == "disconnect":
            self.close_connection = True
            return
        elif fault == "malformed":
            answer["choices"][0]["logprobs"]["token_logprobs"] = [None, 1.0]
        elif fault == "no json":
            answer = None
        status = fault if isinstance(fault, int) else 200
        self._reply(status, b"{" if answer is None else json.dumps(answer).encode())

    def _reply(self, status, data):
        try:
            self.send_response(status)
            self.send_header("Retry-After", "0.02")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # the client gave up on a slow answer

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.lock, server.seen = threading.Lock(), Counter()
    server.fault = lambda prompt, attempt: None
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _endpoint(server, **settings):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    defaults = {"timeout": 0.3, "backoff": 0.01, "max_concurrency": 3}
    return Endpoint(url, "table", **(defaults | settings))


@pytest.mark.parametrize(
    "fault", [429, 500, "slow", "disconnect", "malformed", "no json"]
)
def test_faults_change_nothing(server, fault):
    plain = _endpoint(server).complete(PROMPTS, 6, seed=3)
    server.seen.clear()
    server.fault = lambda prompt, attempt: fault if attempt <= 2 else None
    assert _endpoint(server).complete(PROMPTS, 6, seed=3) == plain
    assert set(server.seen.values()) == {3}


def test_log_probs_are_those_of_the_model(server):
    for prompt, found in zip(
        PROMPTS, _endpoint(server).complete(PROMPTS, 6, 5), strict=True
    ):
        previous = prompt[-1] + found.text
        rows = ["abc".index(c) for c in previous]
        expected = [np.log(TABLE[i, j]) for i, j in zip(rows, rows[1:], strict=False)]
        np.testing.assert_allclose(found.log_probs, expected)


def test_lasting_fault_is_one_error_that_keeps_the_finished(server):
    plain = _endpoint(server).complete(PROMPTS, 6, seed=3)
    server.fault = lambda prompt, attempt: 500 if prompt == "ca" else None
    with pytest.raises(EndpointError, match="prompt 5: HTTP 500") as caught:
        _endpoint(server, max_retries=2).complete(PROMPTS, 6, seed=3)
    assert caught.value.finished == [*plain[:5], None]
    server.fault = lambda prompt, attempt: None
    server.seen.clear()
    resumed = _endpoint(server).complete(PROMPTS, 6, 3, finished=caught.value.finished)
    assert resumed == plain
    assert server.seen == {"ca": 1}


def test_refusal_is_not_retried(server):
    server.fault = lambda prompt, attempt: 401
    with pytest.raises(EndpointError, match="HTTP 401"):
        _endpoint(server).complete(["a"], 2, seed=0)
    assert server.seen == {"a": 1}


def test_rate_is_kept(server):
    start = time.monotonic()
    _endpoint(server, requests_per_second=20.0).complete(PROMPTS, 1, seed=0)
    assert time.monotonic() - start >= 5 / 20


def test_settings_are_checked():
    with pytest.raises(ValueError, match="max_concurrency"):
        Endpoint("http://127.0.0.1/v1", "table", max_concurrency=0)
