r"""Constraints on the bytes of a text: regular expressions, schemas, phrases, words.

`outlines-core` turns patterns and schemas into automata over single bytes; phrases are
automata of our own. All compile to `table.TablePotential`, and their products do too.
"""

import json
from collections.abc import Sequence
from functools import reduce
from operator import and_
from typing import Any

import numpy as np

from motes.lm_bridge.potentials import byte_dfa
from motes.lm_bridge.potentials.byte_dfa import ByteDfa, minimize
from motes.lm_bridge.potentials.table import TablePotential, compile_language

_END = 256
_LETTERS = list(b"0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def language_of_regex(pattern: str, call: str = "regex") -> ByteDfa:
    """Return the texts that match a regular expression from start to end.

    Args:
        pattern: Rust syntax, without look-around and back-references; characters are
            those of UTF-8.
        call: The name that errors give.

    Raises:
        ValueError: If the pattern is malformed or matches no text.
    """
    from outlines_core import Index, Vocabulary

    alphabet = Vocabulary(_END, {bytes([byte]): [byte] for byte in range(256)})
    # The index drops moves that follow a possible end unless the pattern is anchored, and
    # refuses anchored patterns that match the empty text: hence the byte in front.
    try:
        index = Index(rf"\x00(?:{pattern})\z", alphabet)
    except ValueError as error:
        raise ValueError(
            f"{call}: pattern must be a regular expression that matches some text, got "
            f"{pattern!r}: {error}"
        ) from error
    transitions = index.get_transitions()
    start = transitions[index.get_initial_state()][0]
    targets = {t for row in transitions.values() for t in row.values()}
    names = [start, *sorted((targets | set(transitions)) - {start})]
    number = {name: n for n, name in enumerate(names)}
    table = np.full((len(names) + 1, 256), len(names))
    for name, row in transitions.items():
        for byte, target in row.items():
            if byte < _END:
                table[number[name], byte] = number[target]
    accepting = np.zeros(len(names) + 1, bool)
    accepting[[number[name] for name in index.get_final_states()]] = True
    return minimize(ByteDfa(table, accepting))


def regex(
    pattern: str, token_bytes: Sequence[bytes], eos_ids: Sequence[int]
) -> TablePotential:
    """Allow only texts that match a regular expression from start to end.

    Raises:
        ValueError: If the pattern is malformed or no text over the tokens matches.
    """
    return compile_language(language_of_regex(pattern), token_bytes, eos_ids, "regex")


def json_schema(
    schema: dict[str, Any], token_bytes: Sequence[bytes], eos_ids: Sequence[int]
) -> TablePotential:
    """Allow only JSON of a schema, as far as it has a regular form.

    Raises:
        ValueError: If the schema is malformed or has no regular form.
    """
    from outlines_core.json_schema import build_regex_from_schema

    try:
        pattern = build_regex_from_schema(json.dumps(schema))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"json_schema: schema must have a regular form, got {schema!r}: {error}"
        ) from error
    language = language_of_regex(pattern, "json_schema")
    return compile_language(language, token_bytes, eos_ids, "json_schema")


def phrases(
    texts: Sequence[str | bytes], token_bytes: Sequence[bytes], eos_ids: Sequence[int]
) -> TablePotential:
    """Allow only the given texts."""
    language = byte_dfa.exactly(_as_bytes("phrases", texts))
    return compile_language(language, token_bytes, eos_ids, "phrases")


def without(
    texts: Sequence[str | bytes], token_bytes: Sequence[bytes], eos_ids: Sequence[int]
) -> TablePotential:
    """Allow only texts in which none of the strings occurs."""
    language = ~byte_dfa.containing(_as_bytes("without", texts))
    return compile_language(language, token_bytes, eos_ids, "without")


def stopping_at(
    texts: Sequence[str | bytes], token_bytes: Sequence[bytes], eos_ids: Sequence[int]
) -> TablePotential:
    """Allow only texts that end with a stop string, where the first one occurs."""
    language = byte_dfa.ending_at_first(_as_bytes("stopping_at", texts))
    return compile_language(language, token_bytes, eos_ids, "stopping_at")


def containing_words(
    texts: Sequence[str | bytes],
    token_bytes: Sequence[bytes],
    eos_ids: Sequence[int],
    *,
    whole: bool = True,
) -> TablePotential:
    """Allow only texts that contain every one of the words.

    Args:
        texts: The words.
        token_bytes: The bytes of each token id.
        eos_ids: Ids that end a text.
        whole: Whether no ASCII letter, digit or underscore may touch a word.
    """
    words = _as_bytes("containing_words", texts)
    each = [_whole_word(w) if whole else byte_dfa.containing([w]) for w in words]
    return compile_language(
        reduce(and_, each), token_bytes, eos_ids, "containing_words"
    )


def _whole_word(word: bytes) -> ByteDfa:
    """Return the texts that hold the word with no letter at its sides."""
    borders = [bytes([b]) for b in range(256) if b not in _LETTERS]
    inside = byte_dfa.containing([a + word + b for a in borders for b in borders])
    # A border is put at both ends of the text, so that words there have one too.
    start = int(inside.next[0, ord(" ")])
    order = np.arange(len(inside.next))
    order[[0, start]] = order[[start, 0]]
    table = order[inside.next[order]]
    accepting = inside.accepting[inside.next[order, ord(" ")]]
    return minimize(ByteDfa(table, accepting))


def _as_bytes(call: str, texts: Sequence[str | bytes]) -> list[bytes]:
    spelled = [text.encode() if isinstance(text, str) else text for text in texts]
    if not spelled or not all(spelled):
        raise ValueError(
            f"{call}: texts must be non-empty strings, got {list(texts)!r}."
        )
    return spelled
