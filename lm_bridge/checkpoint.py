"""Loading Hugging Face checkpoints: `config.json`, safetensors, `tokenizer.json`.

`load_checkpoint` takes a folder, or the name of a model on the hub. Pickled weights are
refused, since reading them runs code. Everything that can be wrong with a checkpoint is
reported before the first token, with the file and the tensor.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike

from motes.lm_bridge.hf_config import read_config
from motes.lm_bridge.safetensors_file import SafetensorsFile
from motes.lm_bridge.tokenizer import Tokenizer
from motes.lm_bridge.transformer import Transformer
from motes.lm_bridge.transformer_lm import TransformerLM, place_layers
from motes.lm_bridge.weights import Tensors, assemble

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FETCHED = ("*.json", "*.safetensors", "*.jinja")


class Checkpoint(NamedTuple):
    """A language model and its tokenizer."""

    lm: TransformerLM
    tokenizer: Tokenizer


def load_checkpoint(path: str | Path, dtype: DTypeLike | None = None) -> Checkpoint:
    """Return the language model and the tokenizer of a checkpoint.

    Args:
        path: A folder, or a name on the Hugging Face hub.
        dtype: Type of the parameters; `None` for that of the file.

    Raises:
        ValueError: If the checkpoint is broken, pickled, or of another architecture.
        OSError: If a name is neither a folder nor can be fetched.
    """
    folder = find_checkpoint(path)
    model = load_model(folder, dtype)
    if model.config.head != "lm":
        raise ValueError(
            f"load_checkpoint: {folder} must hold a language model, got one with a "
            f"{model.config.head} head. Load a reward model by load_model."
        )
    tokenizer = load_tokenizer(folder, model.config.vocab_size)
    return Checkpoint(TransformerLM(model, _eos_ids(folder, tokenizer)), tokenizer)


def load_model(path: str | Path, dtype: DTypeLike | None = None) -> Transformer:
    """Return the transformer of a checkpoint, whatever its head; as `load_checkpoint`."""
    folder = find_checkpoint(path)
    config = read_config(_read_json(folder / "config.json"))
    tensors, source = _open_tensors(folder)
    return place_layers(assemble(config, Tensors(tensors, source, dtype)))


def load_tokenizer(path: str | Path, vocab_size: int | None = None) -> Tokenizer:
    """Return the tokenizer of a checkpoint, with its chat template.

    Args:
        path: A folder, or a name on the Hugging Face hub.
        vocab_size: Number of ids of the model, which may have room for more than the
            tokenizer uses; None for what that uses.

    Raises:
        ValueError: If the tokenizer is broken, or has more ids than the model.
    """
    folder = find_checkpoint(path)
    file, settings_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not file.exists():
        raise ValueError(
            f"load_tokenizer: {folder} must hold a tokenizer.json, got none."
        )
    settings = _read_json(settings_file) if settings_file.exists() else {}
    template = folder / "chat_template.jinja"
    if template.exists():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    return Tokenizer(file, settings, vocab_size)


def find_checkpoint(path: str | Path) -> Path:
    """Return the folder of a checkpoint, fetched from the hub if it is a name there."""
    folder = Path(path).expanduser()
    if folder.suffix in PICKLED:
        raise _pickled(folder)
    if folder.is_dir():
        return folder
    name = str(path)
    if folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise FileNotFoundError(
            f"load_checkpoint: path must be a folder, or a name on the hub such as "
            f"'owner/model', got {name!r}, which is neither."
        )
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=list(FETCHED)))
    except Exception as error:  # the client raises many types for one situation
        raise OSError(
            f"load_checkpoint: {name!r} must be a folder, or be on the hub and the "
            f"network allow it, got {type(error).__name__}: {error}. Fetch the "
            "checkpoint where there is a network, and pass its folder."
        ) from error


def _open_tensors(folder: Path) -> tuple[Mapping[str, np.ndarray], str]:
    """Return all tensors by name, and where they are, for messages."""
    index, single = (
        folder / "model.safetensors.index.json",
        folder / "model.safetensors",
    )
    if index.exists():
        return _open_shards(index), str(index)
    if single.exists():
        return SafetensorsFile(single), str(single)
    pickles = sorted(p for p in folder.iterdir() if p.suffix in PICKLED)
    if pickles:
        raise _pickled(pickles[0])
    raise ValueError(
        f"load_checkpoint: {folder} must hold model.safetensors, got none."
    )


def _open_shards(index: Path) -> Mapping[str, np.ndarray]:
    places: Any = _read_json(index).get("weight_map")
    named = isinstance(places, dict)
    if not named or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(
            f"load_checkpoint: weight_map of {index} must say which shard holds each "
            f"tensor, got {type(places).__name__}."
        )
    shards = {}
    for name in sorted(set(places.values())):
        if not (index.parent / name).exists():
            raise ValueError(
                f"load_checkpoint: the shard {name} must exist, as {index} says, got "
                "no such file."
            )
        shards[name] = SafetensorsFile(index.parent / name)
    for tensor, name in places.items():
        if tensor not in shards[name]:
            raise ValueError(
                f"load_checkpoint: the shard {name} must hold the tensor {tensor}, as "
                f"{index} says, got no such tensor."
            )
    return Shards(places, shards)


class Shards(Mapping[str, np.ndarray]):
    """The tensors of several files, by name; read-only and lazy."""

    def __init__(self, places: dict[str, str], shards: dict[str, Any]) -> None:
        self._places, self._shards = places, shards

    def __getitem__(self, name: str) -> np.ndarray:
        return self._shards[self._places[name]][name]

    def __iter__(self) -> Any:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _eos_ids(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end a text, wherever the checkpoint says them."""
    ids: list[Any] = list(tokenizer.eos_ids)
    vocab_size = tokenizer.vocab_size
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            found = _read_json(folder / name).get("eos_token_id")
            ids += found if isinstance(found, list) else [found]
    ids = [i for i in dict.fromkeys(ids) if i is not None]
    if not ids:
        raise ValueError(
            f"load_checkpoint: {folder} must name a token that ends a text, got none. "
            "Set eos_token_id in config.json."
        )
    wrong = [i for i in ids if not isinstance(i, int) or not 0 <= i < vocab_size]
    if wrong:
        raise ValueError(
            f"load_checkpoint: eos_token_id must be in [0, {vocab_size}), the ids of the "
            f"model, got {wrong[0]!r}, in {folder}."
        )
    return tuple(ids)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"load_checkpoint: {path} must exist, got no such file.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"load_checkpoint: {path} must be JSON, got {error}."
        ) from None
    if not isinstance(found, dict):
        raise ValueError(
            f"load_checkpoint: {path} must be a JSON object, got {type(found).__name__}."
        )
    return found


def _pickled(path: Path) -> ValueError:
    return ValueError(
        f"load_checkpoint: weights must be in safetensors, got {path}, a pickle, which "
        "can run any code when it is read. Convert it where you trust it, with "
        "save_pretrained(folder, safe_serialization=True)."
    )
