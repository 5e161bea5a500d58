r"""The Feynman-Kac program whose transitions are a server's answers.

A step asks for the next tokens of each unfinished text and weighs it by
$\phi(\text{after})/\phi(\text{before})$, which telescopes. Finished texts are absorbing and
not asked about. It runs on the host, step by step; read `journal.py` for what it keeps.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key

from motes.lm_bridge.endpoint import Completion, Endpoint, EndpointError
from motes.lm_bridge.journal import Journal

NOT_ASKED = Completion("", (), (), (), "not asked")


@runtime_checkable
class LogScore(Protocol):
    r"""The log of what multiplies the model, $\log\phi$, of a text so far."""

    def __call__(self, text: str, finished: bool, /) -> float:
        """Return the log-weight in nats; of an unfinished text it is a twist."""
        ...


class RemoteBudget(NamedTuple):
    """What a decode has used; answers read from a checkpoint count as well.

    Attributes:
        steps: Steps of the engine, until all texts had ended.
        requests: Answers of the endpoint; repeated attempts are not counted.
        tokens: Tokens of the answers, those beyond a unit's end counted.
        score_calls: Distinct texts that `log_score` was asked about.
    """

    steps: int
    requests: int
    tokens: int
    score_calls: int


class TextState(NamedTuple):
    """Texts while they grow, as NumPy arrays.

    Attributes:
        texts: What follows the prompt; strings.
        lengths: Number of tokens, the end not counted.
        finished: Which texts have ended.
        log_scores: The score of each text, in nats; `-inf` is the end of it as well.
    """

    texts: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray
    log_scores: np.ndarray


class RemoteTexts:
    """Texts that a server extends; it keeps the account of one run.

    Args:
        endpoint: Where the model is served.
        prompt: What all texts continue.
        limit: Most tokens of a text.
        log_score: What steers, or None.
        unit_tokens: Most tokens of a step.
        unit_ends: Strings that end a step early.
        journal: Where answers are kept.
    """

    inputs: Any = None
    init_is_step = False

    def __init__(
        self,
        endpoint: Endpoint,
        prompt: str,
        limit: int,
        log_score: LogScore | None,
        unit_tokens: int,
        unit_ends: tuple[str, ...],
        journal: Journal,
    ) -> None:
        self.endpoint, self.prompt, self.limit = endpoint, prompt, limit
        self.unit_tokens, self.unit_ends, self.journal = unit_tokens, unit_ends, journal
        self.log_score = cache(log_score or (lambda text, finished: 0.0))
        draws = limit + 1
        self.num_steps = draws if unit_ends else -(-draws // unit_tokens)
        self.steps = self.requests = self.tokens = 0

    @property
    def budget(self) -> RemoteBudget:
        """Return what was used so far."""
        scored = self.log_score.cache_info().misses
        return RemoteBudget(self.steps, self.requests, self.tokens, scored)

    def init(self, key: Key[Array, ""], num_particles: int) -> Any:
        """Return empty texts, whose weight is one."""
        texts, zeros = np.full(num_particles, "", object), np.zeros(num_particles)
        state = TextState(texts, zeros.astype(int), zeros.astype(bool), zeros)
        return state, jnp.asarray(zeros, jnp.result_type(float))

    def has_ended(self, state: TextState) -> Bool[Array, ""]:
        """Return whether no text grows."""
        return jnp.asarray(~_growing(state).any())

    def step(self, key: Key[Array, ""], state: TextState, inputs: Any) -> Any:
        """Extend each text that grows by one unit; weigh it by the change of its score."""
        self.steps += 1
        grows = _growing(state)
        if not grows.any():  # as when resampling left ended texts alone
            return state, jnp.zeros(grows.shape)
        answers = self._ask(key, state, grows)
        texts, lengths, finished, scores = (leaf.copy() for leaf in state)
        for n in np.flatnonzero(grows):
            unit, num_tokens, finished[n] = self._unit(texts[n], answers[n])
            texts[n], lengths[n] = texts[n] + unit, lengths[n] + num_tokens
            scores[n] = -np.inf
            if lengths[n] <= self.limit:
                scores[n] = self._score(texts[n], bool(finished[n]))
        before = np.where(grows, state.log_scores, 0.0)
        increments = np.where(grows, scores, 0.0) - before
        increments = jnp.asarray(increments, jnp.result_type(float))
        return TextState(texts, lengths, finished, scores), increments

    def _ask(
        self, key: Key[Array, ""], state: TextState, grows: np.ndarray
    ) -> list[Any]:
        """Return an answer for each text that grows; from the journal where it has one."""
        prompts = [self.prompt + text for text in state.texts]
        known = self.journal.find(self.steps, prompts)
        known = [a if g else NOT_ASKED for a, g in zip(known, grows, strict=True)]
        # One draw more than the limit: that one must be the end.
        most = min(self.unit_tokens, self.limit + 1 - int(state.lengths[grows].min()))
        seed, fault = int(jax.random.randint(key, (), 0, 2**31 - 1)), ""
        is_spelled = bool(self.unit_ends)

        def keep(n: int, answer: Completion) -> None:
            if not _fault(answer, most, is_spelled):
                self.journal.add(self.steps, n, prompts[n], answer)

        answers: list[Completion | None]
        try:
            answers = [*self.endpoint.complete(prompts, most, seed, (), known, keep)]
        except EndpointError as error:
            answers, fault = error.finished, error.fault
        answers = [a if g else None for a, g in zip(answers, grows, strict=True)]
        for n, answer in enumerate(answers):
            wrong = "" if answer is None else _fault(answer, most, is_spelled)
            if wrong:
                answers[n], fault = None, fault or f"prompt {n}: {wrong}"
        found = [answer for answer in answers if answer is not None]
        if fault:
            raise EndpointError(
                f"decode_remote: the endpoint must extend every text in step {self.steps}, "
                f"got {len(found)} of {grows.sum()} answers; {fault}. The error's "
                "`particles` hold the texts; the same call with a checkpoint goes on.",
                answers,
                fault,
            )
        self.requests += len(found)
        self.tokens += sum(len(answer.tokens) for answer in found)
        return answers

    def _unit(self, before: str, answer: Completion) -> tuple[str, int, bool]:
        """Return what a text grows by, its number of tokens, and whether it ends.

        Where a unit ends is decided token by token, without looking at what comes after,
        so dropping the rest leaves the model's distribution as it is.
        """
        tokens = _spelling(answer)
        for used in range(1, len(tokens) + 1 if self.unit_ends else 1):
            unit = "".join(tokens[:used])
            if self._ends_unit(before, unit):
                return unit, used, False
        return answer.text, len(tokens), answer.finish_reason == "stop"

    def _ends_unit(self, before: str, unit: str) -> bool:
        """Return whether a string that ends units is completed by the new part."""
        whole = before + unit
        starts = [max(0, len(before) - len(end) + 1) for end in self.unit_ends]
        pairs = zip(self.unit_ends, starts, strict=True)
        return any(whole.find(end, start) >= 0 for end, start in pairs)

    def _score(self, text: str, finished: bool) -> float:
        score = float(self.log_score(text, finished))
        if not score < np.inf:
            raise ValueError(
                f"decode_remote: log_score must be a number of nats or -inf, got {score} "
                f"for {text!r}."
            )
        return score


def _growing(state: TextState) -> np.ndarray:
    return ~state.finished & ~np.isneginf(state.log_scores)


def _spelling(answer: Completion) -> Sequence[str]:
    """Return the tokens of the text, without that of the end, which some servers give."""
    tokens = answer.tokens
    ends = answer.finish_reason == "stop" and len(tokens) > 0
    with_end = ends and "".join(tokens) != answer.text
    return tokens[:-1] if with_end and "".join(tokens[:-1]) == answer.text else tokens


def _fault(answer: Completion, max_tokens: int, is_spelled: bool) -> str:
    """Return why an answer is no draw of at most `max_tokens` tokens, if it is none."""
    reason, num = answer.finish_reason, len(answer.tokens)
    if reason not in ("stop", "length"):
        return f"finish_reason must be 'stop' or 'length', got {reason!r}"
    if reason == "length" and num != max_tokens:
        return (
            f"an unfinished answer must have {max_tokens} tokens, got {num}. Does the "
            "context of the model end there?"
        )
    if is_spelled and "".join(_spelling(answer)) != answer.text:
        return f"its tokens must spell the text for unit_ends, got {answer.tokens}"
    return ""
