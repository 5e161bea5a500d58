r"""A language model behind an OpenAI-compatible endpoint, on the host.

`Endpoint.complete` sends prompts to `/completions` and returns texts with the
log-probabilities of their tokens. Faults are retried with exponential back-off; what can
not be had ends in one `EndpointError` that carries everything that was finished.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class Completion(NamedTuple):
    """One drawn text; `top_log_probs` are the candidates at each token, in nats."""

    text: str
    tokens: tuple[str, ...]
    log_probs: tuple[float, ...]
    top_log_probs: tuple[dict[str, float], ...]
    finish_reason: str


class EndpointError(RuntimeError):
    """The endpoint failed; nothing that it had answered is lost.

    Attributes:
        finished: A completion, or None, for each prompt.
        fault: What went wrong with which prompt.
        particles: The population before the step that failed, where particles ask.
    """

    def __init__(
        self, message: str, finished: list[Completion | None], fault: str = ""
    ):
        super().__init__(message)
        self.finished, self.fault = finished, fault
        self.particles: Any = None


class _Fault(Exception):
    """A request that did not work; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, is_final: bool = False, wait: float = 0.0):
        super().__init__(reason)
        self.is_final, self.wait = is_final, wait


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served and how patiently it is asked.

    Attributes:
        base_url: Up to and with `/v1`.
        model: The name that the server knows.
        api_key: Sent as a bearer token; None sends none.
        num_top: Candidates asked for at each token.
        max_retries: Requests after the first, for each prompt.
        timeout: Longest time for one answer, in seconds.
        max_concurrency: Most requests at a time.
        requests_per_second: Most requests started in a second; None is no limit.
        backoff: First pause after a fault, in seconds; it doubles each time.
        max_pause: Longest pause, also where the server asks for more, in seconds.
    """

    base_url: str
    model: str
    api_key: str | None = None
    num_top: int = 5
    max_retries: int = 5
    timeout: float = 60.0
    max_concurrency: int = 8
    requests_per_second: float | None = None
    backoff: float = 0.5
    max_pause: float = 60.0

    def __post_init__(self) -> None:
        if self.max_concurrency < 1 or self.max_retries < 0 or self.timeout <= 0:
            raise ValueError(
                "Endpoint: max_concurrency must be at least 1, max_retries at least 0 "
                f"and timeout positive, got {self.max_concurrency}, {self.max_retries} "
                f"and {self.timeout}."
            )

    def complete(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        seed: int,
        stop: Sequence[str] = (),
        finished: Sequence[Completion | None] | None = None,
        keep: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Draw one text for each prompt.

        Prompt `n` is sent with a seed of its own, so a server that honors seeds gives
        the same texts however often a request is repeated.

        Args:
            prompts: The prompts.
            max_tokens: Most tokens of a text.
            seed: Of the texts and of the pauses.
            stop: Strings that end a text.
            finished: From an `EndpointError`: what need not be asked for again.
            keep: Called with the index of a prompt and its text as soon as that is
                there, in one of the threads that ask.

        Raises:
            EndpointError: If a prompt fails for good; it carries what was finished.
        """
        results: list[Completion | None] = [None] * len(prompts)
        results = results if finished is None else list(finished)
        if len(results) != len(prompts):
            raise ValueError(
                f"complete: finished must have one entry for each of {len(prompts)} "
                f"prompts, got {len(results)}."
            )

        def arrived(n: int, found: Completion) -> None:
            results[n] = found
            if keep is not None:
                keep(n, found)

        bodies = {}
        for n, prompt in enumerate(prompts):
            if results[n] is None:
                own_seed = (seed * 1_000_003 + n) % 2**31
                bodies[n] = self._body(prompt, max_tokens, own_seed, stop)
        faults = self._ask_all(bodies, arrived)
        if faults:
            done = sum(result is not None for result in results)
            n = min(faults, key=lambda i: str(faults[i]) == _STOPPED)
            fault = f"prompt {n}: {faults[n]}"
            raise EndpointError(
                f"complete: the endpoint must answer every prompt, got {done} of "
                f"{len(prompts)}; {fault}. Pass the error's `finished` to go on.",
                results,
                fault,
            )
        return [result for result in results if result is not None]

    def _body(
        self, prompt: str, max_tokens: int, seed: int, stop: Sequence[str]
    ) -> dict[str, Any]:
        body = {
            "model": self.model, "prompt": prompt, "max_tokens": max_tokens,
            "logprobs": self.num_top, "temperature": 1.0, "top_p": 1.0, "seed": seed,
        }  # fmt: skip
        return body | ({"stop": list(stop)} if stop else {})

    def _ask_all(
        self,
        bodies: Mapping[int, dict[str, Any]],
        arrived: Callable[[int, Completion], None],
    ) -> dict[int, Exception]:
        """Send requests side by side until one fails for good; return what failed."""
        pace, failed = _Pace(self.requests_per_second), threading.Event()
        faults: dict[int, Exception] = {}

        def work(client: httpx.Client, n: int) -> None:
            try:
                found = self._ask(client, bodies[n], pace, failed)
            except _Fault as fault:
                faults[n] = fault
                failed.set()
            else:
                arrived(n, found)

        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        options: dict[str, Any] = {"headers": headers, "timeout": self.timeout}
        # Reading certificates takes longer than a request to a server nearby.
        options["verify"] = self.base_url.startswith("https")
        with (
            httpx.Client(**options) as client,
            ThreadPoolExecutor(self.max_concurrency) as pool,
        ):
            list(pool.map(lambda n: work(client, n), bodies))
        return faults

    def _ask(
        self,
        client: httpx.Client,
        body: dict[str, Any],
        pace: "_Pace",
        failed: threading.Event,
    ) -> Completion:
        """Send one request until it works, or for good fails."""
        jitter = random.Random(body["seed"])
        for attempt in range(self.max_retries + 1):
            if failed.is_set():
                raise _Fault(_STOPPED)
            pace.wait()
            try:
                return self._send(client, body)
            except _Fault as fault:
                if fault.is_final or attempt == self.max_retries:
                    raise _Fault(f"{fault} (attempt {attempt + 1})") from fault
                pause = self.backoff * 2**attempt * jitter.uniform(0.5, 1.5)
                failed.wait(min(max(pause, fault.wait), self.max_pause))
        raise AssertionError("the loop returns or raises")

    def _send(self, client: httpx.Client, body: dict[str, Any]) -> Completion:
        try:
            answer = client.post(f"{self.base_url.rstrip('/')}/completions", json=body)
        except httpx.HTTPError as error:
            raise _Fault(f"{type(error).__name__}: {error}") from error
        if answer.status_code != 200:
            raise _Fault(
                f"HTTP {answer.status_code}: {answer.text[:200]}",
                answer.status_code not in RETRIED,
                _retry_after(answer.headers.get("Retry-After")),
            )
        try:
            return _parse(answer.json())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _Fault(f"malformed answer: {error!r}") from error


_STOPPED = "stopped because another prompt failed"


class _Pace:
    """Spaces the starts of requests, over all threads."""

    def __init__(self, per_second: float | None):
        self.gap = 0.0 if per_second is None else 1.0 / per_second
        self.lock, self.next = threading.Lock(), 0.0

    def wait(self) -> None:
        with self.lock:
            start = max(self.next, time.monotonic())
            self.next = start + self.gap
        time.sleep(max(0.0, start - time.monotonic()))


def _retry_after(header: str | None) -> float:
    """Read seconds; a date, which servers may send too, is left to the back-off."""
    try:
        return max(0.0, float(header)) if header else 0.0
    except ValueError:
        return 0.0


def _parse(answer: Any) -> Completion:
    """Read one choice; refuse log-probabilities that are none."""
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]
    tokens = tuple(str(token) for token in logprobs["tokens"])
    values = tuple(float(value) for value in logprobs["token_logprobs"])
    if len(values) != len(tokens) or not all(value <= 1e-6 for value in values):
        raise ValueError(f"token_logprobs {values} of tokens {tokens}")
    top = tuple(
        {str(token): float(value) for token, value in one.items()}
        for one in logprobs.get("top_logprobs") or [{}] * len(tokens)
    )
    text, reason = choice["text"], choice["finish_reason"]
    if not isinstance(text, str) or not isinstance(reason, str):
        raise ValueError(f"text {text!r} with finish_reason {reason!r}")
    return Completion(text, tokens, values, top, reason)
