"""Texts as token arrays: the tokenizer, the training and held-out streams, batches.

A stream is documents, each between its start and end tokens, one after another. A
batch is a function of the seed and the step alone, so that training resumes exactly.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from small_lm import arithmetic, texts
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

BOS, EOS = "<|begin|>", "<|end|>"
HELD_OUT = 40
"""Every this many documents, one is held out."""
NUM_PROBLEMS = 60_000


class Corpus(NamedTuple):
    """Token streams; half of a batch is prose, half arithmetic."""

    prose: np.ndarray
    problems: np.ndarray
    held_out_prose: np.ndarray
    held_out_problems: np.ndarray


def train_tokenizer(documents: list[str], vocab_size: int) -> Tokenizer:
    """Learn byte-level BPE; digits stay apart, so that numbers are spelled."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, bos_id)]
    )
    return tokenizer


def build(folder: Path, vocab_size: int) -> tuple[Tokenizer, Corpus]:
    """Return the tokenizer and the streams, made once and kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_path, streams_path = folder / "tokenizer.json", folder / "streams.npz"
    if not streams_path.exists():
        prose = texts.novels() + texts.bible()
        problems = arithmetic.problems(seed=0, count=NUM_PROBLEMS)
        tokenizer = train_tokenizer(prose + problems[:4000], vocab_size)
        tokenizer.save(str(tokenizer_path))
        streams = [*_split(tokenizer, prose), *_split(tokenizer, problems)]
        np.savez(streams_path, **dict(zip("abcd", streams, strict=True)))
    arrays = np.load(streams_path)
    corpus = Corpus(arrays["a"], arrays["c"], arrays["b"], arrays["d"])
    return Tokenizer.from_file(str(tokenizer_path)), corpus


def batch(corpus: Corpus, seed: int, step: int, size: int, length: int) -> np.ndarray:
    """Return the windows of one step, with one more token than `length` for targets."""
    rng = np.random.default_rng([seed, step])
    prose = windows(rng, corpus.prose, size - size // 2, length + 1)
    return np.concatenate([prose, windows(rng, corpus.problems, size // 2, length + 1)])


def windows(
    rng: np.random.Generator, stream: np.ndarray, count: int, length: int
) -> np.ndarray:
    """Return windows that start anywhere in the stream."""
    starts = rng.integers(0, len(stream) - length, size=count)
    return stream[starts[:, None] + np.arange(length)].astype(np.int32)


def _split(tokenizer: Tokenizer, documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the streams of the documents to train on and of those held out."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    encoded = [
        [bos, *e.ids, eos]
        for e in tokenizer.encode_batch(documents, add_special_tokens=False)
    ]
    kept = [e for i, e in enumerate(encoded) if i % HELD_OUT]
    held_out = encoded[::HELD_OUT]
    return tuple(np.concatenate(part).astype(np.uint16) for part in (kept, held_out))
