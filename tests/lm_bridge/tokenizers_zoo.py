"""Tokenizers of the two kinds, made on the spot."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from motes.lm_bridge.tokenizer import Tokenizer as MotesTokenizer

SPECIAL = ["<s>", "</s>"]
SETTINGS = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}}


def byte_level(folder, vocab_size=300):
    """Write a byte-level BPE tokenizer as GPT-2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the hat, the end"] * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return MotesTokenizer(folder / "tokenizer.json", SETTINGS)


def byte_fallback(folder):
    """Write a sentencepiece-style tokenizer as Llama 2, Mistral 7B and Gemma have it."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", "t", "h", "e", "th", "the", "\u2581the", "\u00e9"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    model = models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    return MotesTokenizer(folder / "tokenizer.json", SETTINGS)
