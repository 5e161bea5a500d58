"""The answers of an endpoint in a file, so that none is ever asked for twice.

A journal is a text file: one line says of which run it is, each further line holds one
answer. A run is a function of its key and its answers, so reading them again in place of
asking restores it bit for bit; read `remote.py` for the run.
"""

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from motes.lm_bridge.endpoint import Completion


class Journal:
    """The answers of one run, by step and particle; kept only in memory without a file.

    Raises:
        ValueError: If the file is of another run, or is no journal.
    """

    def __init__(self, file: str | os.PathLike | None, run: dict[str, Any]) -> None:
        self._file = None if file is None else Path(file)
        self._answers: dict[tuple[int, int], tuple[str, Completion]] = {}
        self._lock = threading.Lock()
        if self._file is None:
            return
        lines = _whole_lines(self._file)
        if not lines:
            self._write(run)
            return
        try:
            if lines[0] != json.loads(json.dumps(run)):
                raise ValueError("one of another run")
            for line in lines[1:]:
                place = int(line["step"]), int(line["particle"])
                self._answers[place] = str(line["prompt"]), _restore(line["answer"])
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"decode_remote: checkpoint must be of a run with this key and these "
                f"settings, got {file}: {error}. Remove the file to start again."
            ) from None

    def find(self, step: int, prompts: Sequence[str]) -> list[Completion | None]:
        """Return what is known of a step: an answer, or None, for each particle.

        Raises:
            ValueError: If an answer is to another prompt than the particle's.
        """
        found = [self._answers.get((step, n)) for n in range(len(prompts))]
        for n, pair in enumerate(found):
            if pair is not None and pair[0] != prompts[n]:
                raise ValueError(
                    f"decode_remote: checkpoint must answer the prompts of this run, got "
                    f"an answer to {pair[0][-40:]!r} for {prompts[n][-40:]!r}. Has "
                    "log_score changed? Remove the file to start again."
                )
        return [None if pair is None else pair[1] for pair in found]

    def add(self, step: int, particle: int, prompt: str, answer: Completion) -> None:
        """Keep an answer; threads may add at the same time."""
        line = {"step": step, "particle": particle, "prompt": prompt}
        with self._lock:
            self._answers[step, particle] = prompt, answer
            self._write(line | {"answer": answer._asdict()})

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def _whole_lines(file: Path) -> list[Any]:
    """Read a journal; what was cut off in the midst of a line is removed."""
    if not file.exists():
        return []
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with file.open("r+b") as stream:
            stream.truncate(whole)
    try:
        return [json.loads(line) for line in content[:whole].splitlines()]
    except ValueError as error:
        raise ValueError(
            f"decode_remote: checkpoint must be a journal of answers, got {file}: "
            f"{error}. Remove the file to start again."
        ) from None


def _restore(answer: dict[str, Any]) -> Completion:
    return Completion(
        answer["text"],
        tuple(answer["tokens"]),
        tuple(answer["log_probs"]),
        tuple(answer["top_log_probs"]),
        answer["finish_reason"],
    )
