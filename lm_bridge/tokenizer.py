"""Tokenizers, with the bytes of every token.

`Tokenizer` wraps a `tokenizer.json`; besides `encode` and `decode` it knows
`token_bytes`, so that constraints act on bytes and a character split over tokens is
no special case. Byte-level and byte-fallback vocabularies are both understood.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"
"""What sentencepiece writes for a space."""


class Tokenizer:
    """A tokenizer read from a `tokenizer.json`.

    Attributes:
        vocab_size: One more than the largest token id; or the model's, which may have
            room for more ids, that stand for nothing.
        special: Whether each id is a special token, which stands for no text.
        bos_id: Id that starts a text, where there is one.
        eos_ids: Ids that end a text.
        chat_template: Jinja source of the chat format, where there is one.
        special_tokens: Text of the named special tokens: `bos_token` and the like.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises the bare type
            raise ValueError(
                f"Tokenizer: path must be a tokenizer.json, got {path}: {error}."
            ) from error
        self._spec = json.loads(path.read_text(encoding="utf-8"))
        settings = settings or {}
        self.chat_template: str | None = settings.get("chat_template")
        self.special_tokens = _special_tokens(settings)
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocab:
            raise ValueError(f"Tokenizer: {path} must hold some token, got none.")
        self.vocab_size = self._size(1 + max(vocab.values()), vocab_size, path)
        self._text_of = {token_id: text for text, token_id in vocab.items()}
        added = self._spec.get("added_tokens", [])
        special_ids = {token["id"] for token in added if token["special"]}
        self._added = {token["id"]: token["content"] for token in added}
        self.special = tuple(i in special_ids for i in range(self.vocab_size))
        self.bos_id = self.token_id(self.special_tokens.get("bos_token"))
        eos = self.token_id(self.special_tokens.get("eos_token"))
        self.eos_ids: tuple[int, ...] = () if eos is None else (eos,)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of `text`; with its start token and the like where asked."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a text that begins: with the start token, if there is one."""
        ids = self.encode(text)
        return ids if self.bos_id is None else [self.bos_id, *ids]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of the tokens; special tokens have none.

        Raises:
            ValueError: If an id is none of the vocabulary.
        """
        wrong = [int(i) for i in ids if not 0 <= i < self.vocab_size]
        if wrong:
            raise ValueError(
                f"Tokenizer.decode: ids must be in [0, {self.vocab_size}), got {wrong[0]}. "
                "Are they another model's?"
            )
        return b"".join(self.token_bytes[int(i)] for i in ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the tokens; bytes that are not UTF-8 are replaced."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_id(self, text: str | None) -> int | None:
        """Return the id of a token's text, if it is one."""
        return None if text is None else self._tokenizer.token_to_id(text)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Return the bytes that each id stands for; none for special and unused ids.

        A text's first space may be dropped by a sentencepiece tokenizer's own decoder;
        here it stays, since a continuation needs it.
        """
        to_bytes = _byte_level if self._is_byte_level() else _byte_fallback
        return [self._bytes_of(i, to_bytes) for i in range(self.vocab_size)]

    def _bytes_of(self, token_id: int, to_bytes: Any) -> bytes:
        if self.special[token_id] or token_id not in self._text_of:
            return b""
        if token_id in self._added:  # added tokens are stored as plain text
            return self._added[token_id].encode("utf-8")
        return to_bytes(self._text_of[token_id])

    def _size(self, own: int, models: int | None, path: Path) -> int:
        """Return the number of ids: fewer than the model's is common padding."""
        if models is not None and own > models:
            raise ValueError(
                f"load_checkpoint: the tokenizer must have at most the model's {models} "
                f"ids, got {own}, in {path.parent}. Is it another model's tokenizer?"
            )
        return own if models is None else models

    def _is_byte_level(self) -> bool:
        """Return whether any part of the tokenizer is byte-level."""
        return '"type": "ByteLevel"' in json.dumps(
            [self._spec.get("pre_tokenizer"), self._spec.get("decoder")]
        )


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """Return the named special tokens; old files wrap them in a dictionary."""
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    found = {name: settings.get(name) for name in names}
    return {
        name: token["content"] if isinstance(token, dict) else token
        for name, token in found.items()
        if token is not None
    }


def _byte_alphabet() -> dict[str, int]:
    """Return the printable character that byte-level BPE writes for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(256 + i): byte for i, byte in enumerate(hidden)}
    return {chr(byte): byte for byte in printable} | shifted


BYTE_ALPHABET = _byte_alphabet()


def _byte_level(text: str) -> bytes:
    if not BYTE_ALPHABET.keys() >= set(text):
        raise ValueError(
            f"Tokenizer: tokens of a byte-level tokenizer must be spelled in its alphabet "
            f"of 256 letters, got {text!r}."
        )
    return bytes(BYTE_ALPHABET[character] for character in text)


def _byte_fallback(text: str) -> bytes:
    match = BYTE_TOKEN.fullmatch(text)
    if match:
        return bytes([int(match.group(1), 16)])
    return text.replace(SPACE, " ").encode("utf-8")
