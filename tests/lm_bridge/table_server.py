"""A local server of the small table, which draws by the seed of the request."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from motes.lm_bridge.endpoint import Endpoint
from tests.lm_bridge.tables import END, TABLE

PROBS = np.exp(np.asarray(TABLE.log_table))
NAMES = ["a", "b", "c", "</s>"]
PROMPT = "text: "


def answer(body):
    """Return the answer to a request; the text so far is what follows the prompt."""
    random = np.random.default_rng(body["seed"])
    text = body["prompt"][len(PROMPT) :]
    row = "abc".index(text[-1]) if text else END + 1
    row = len(PROBS) - 1 if not text else row
    tokens, values, tops, reason = [], [], [], "length"
    while len(tokens) < body["max_tokens"]:
        probs = PROBS[row]
        row = int(random.choice(4, p=probs))
        if row == END:
            reason = "stop"
            break
        tokens.append(NAMES[row])
        values.append(float(np.log(probs[row])))
        tops.append({})
    logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}
    choice = {"text": "".join(tokens), "logprobs": logprobs, "finish_reason": reason}
    return {"choices": [choice]}


class Handler(BaseHTTPRequestHandler):
    """Answers, or fails as `server.fault(body, attempt)` says."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        place = body["prompt"], body["seed"]
        with self.server.lock:
            self.server.seen[place] += 1
            fault = self.server.fault(body, self.server.seen[place])
        found = answer(body)
        if fault == "slow":
            time.sleep(0.6)
        elif fault == "disconnect":
            self.close_connection = True
            return
        elif isinstance(fault, dict):
            found["choices"][0] |= fault
        status = fault if isinstance(fault, int) else 200
        self._reply(status, b"{" if fault == "no json" else json.dumps(found).encode())

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


@contextmanager
def serve():
    """Serve the table; `fault`, `seen` and `endpoint(**settings)` are for tests."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.lock, server.seen = threading.Lock(), Counter()
    server.fault = lambda body, attempt: None

    def endpoint(**settings):
        url = f"http://127.0.0.1:{server.server_port}/v1"
        defaults = {"timeout": 0.4, "backoff": 0.01, "max_concurrency": 3}
        return Endpoint(url, "table", **(defaults | settings))

    server.endpoint = endpoint
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
