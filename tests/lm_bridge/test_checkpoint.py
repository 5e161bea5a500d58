"""Broken checkpoints are refused before the first token, by file and tensor."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from motes.lm_bridge import (
    TransformerLM,
    load_checkpoint,
    load_model,
    load_tokenizer,
)
from tests.lm_bridge.tokenizers_zoo import SETTINGS, byte_level

GOLDENS = Path(__file__).parents[1] / "data" / "lm_goldens"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def copy(tmp_path, name):
    return Path(shutil.copytree(GOLDENS / name, tmp_path / name))


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path, edit):
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def widen_vocabulary(folder, size):
    """Give the checkpoint an embedding with `size` rows, and a tokenizer."""
    edit_json(folder / "config.json", vocab_size=size)
    edit_tensors(
        folder / WEIGHTS,
        lambda t: t.update(
            {
                name: np.resize(t[name], (size, 32))
                for name in ("model.embed_tokens.weight", "lm_head.weight")
                if name in t
            }
        ),
    )
    byte_level(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))


def test_checkpoint_loads_with_its_tokenizer(tmp_path):
    folder = copy(tmp_path, "smollm")
    widen_vocabulary(folder, 320)
    lm, tokenizer = load_checkpoint(folder)
    assert lm.vocab_size == tokenizer.vocab_size == len(tokenizer.token_bytes) == 320
    assert load_tokenizer(folder).vocab_size <= 300
    assert tokenizer.decode([319]) == ""
    assert lm.eos_ids == (1,)


def test_end_tokens_are_collected_from_all_files(tmp_path):
    folder = copy(tmp_path, "smollm")
    widen_vocabulary(folder, 320)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 1]}')
    edit_json(folder / "config.json", eos_token_id=9)
    assert load_checkpoint(folder).lm.eos_ids == (1, 7, 9)


def test_chat_template_file_is_found(tmp_path):
    folder = copy(tmp_path, "smollm")
    widen_vocabulary(folder, 320)
    (folder / "chat_template.jinja").write_text("hello")
    assert load_checkpoint(folder).tokenizer.chat_template == "hello"


def test_bfloat16_files_are_read(tmp_path):
    folder = copy(tmp_path, "smollm")

    def halve(tensors):
        for name, tensor in tensors.items():
            tensors[name] = tensor.astype(ml_dtypes.bfloat16)

    edit_tensors(folder / WEIGHTS, halve)
    assert load_model(folder).embedding.dtype == ml_dtypes.bfloat16
    assert load_model(folder, dtype="float32").embedding.dtype == np.float32


NORM = "model.norm.weight"


def missing_tensor(folder):
    edit_tensors(folder / WEIGHTS, lambda t: t.pop(NORM))


def wrong_shape(folder):
    edit_tensors(folder / WEIGHTS, lambda t: t.update({NORM: np.ones(31, "f4")}))


def left_over(folder):
    edit_tensors(folder / WEIGHTS, lambda t: t.update(adapter=np.ones(3, "f4")))


def truncated(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1000])


def truncated_header(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])


def integer_weights(folder):
    edit_tensors(folder / WEIGHTS, lambda t: t.update({NORM: np.ones(32, "i4")}))


def pickled(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def no_weights(folder):
    (folder / WEIGHTS).unlink()


def broken_json(folder):
    (folder / "config.json").write_text("{")


def no_config(folder):
    (folder / "config.json").unlink()


def config(**changes):
    def edit(folder):
        edit_json(folder / "config.json", **changes)

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_tensor, r"must hold the tensor model.norm.weight of shape \(32,\)"),
        (wrong_shape, r"model.norm.weight must have shape \(32,\).*got \(31,\)"),
        (left_over, "got 1 others, such as adapter"),
        (truncated, "must lie within the file.*looks truncated"),
        (truncated_header, "as its header says.*looks truncated"),
        (integer_weights, "model.norm.weight must be of type .*got I32"),
        (pickled, "pytorch_model.bin, a pickle, which can run any code"),
        (no_weights, "must hold model.safetensors, got none"),
        (broken_json, "config.json must be JSON"),
        (no_config, "config.json must exist"),
        (config(model_type="mamba"), "model_type must be one of .*got 'mamba'"),
        (config(architectures=["LlamaForMusic"]), "got 'LlamaForMusic'"),
        (config(hidden_act="swoosh"), "activation 'swoosh' must be one of"),
        (config(rope_parameters={"rope_type": "longrope"}), "rope_type 'longrope'"),
        (config(quantization_config={}), "quantization_config must be absent"),
        (config(num_hidden_layers=3), r"must hold the tensor model.layers.2\."),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_broken_checkpoints_are_refused(tmp_path, damage, message):
    folder = copy(tmp_path, "smollm")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_missing_shard_is_named(tmp_path):
    folder = copy(tmp_path, "qwen3")
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="shard model-00002-of-00003.* must exist"):
        load_model(folder)


def test_tensor_missing_from_its_shard_is_named(tmp_path):
    folder = copy(tmp_path, "qwen3")
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    edit_json(folder / INDEX, weight_map=places | {"ghost": places[NORM]})
    with pytest.raises(ValueError, match="must hold the tensor ghost"):
        load_model(folder)


def test_pickled_file_is_refused_by_name():
    with pytest.raises(ValueError, match="can run any code"):
        load_model("somewhere/model.ckpt")


def test_tokenizer_of_another_model_is_refused(tmp_path):
    folder = copy(tmp_path, "smollm")
    byte_level(folder)
    with pytest.raises(ValueError, match="at most the model's 96 ids, got 2"):
        load_checkpoint(folder)


def test_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"must hold a tokenizer\.json"):
        load_checkpoint(copy(tmp_path, "smollm"))


def test_reward_model_is_not_a_language_model():
    with pytest.raises(ValueError, match="one with a sequence head"):
        load_checkpoint(GOLDENS / "gpt2_sequence")


def test_model_without_an_end_is_refused(tmp_path):
    folder = copy(tmp_path, "smollm")
    widen_vocabulary(folder, 320)
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="must name a token that ends a text"):
        load_checkpoint(folder)


def test_path_that_is_no_folder_and_no_name_is_refused(tmp_path):
    with pytest.raises(OSError, match="which is neither"):
        load_model(tmp_path / "nowhere")


def test_hub_that_cannot_be_reached_is_reported(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(
        OSError, match="network allow it, got ConnectionError: no route"
    ):
        load_model("someone/some-model")


def test_learned_positions_have_an_end():
    lm = TransformerLM(load_model(GOLDENS / "gpt2"), (0,))
    with pytest.raises(ValueError, match="128 positions, got 130"):
        lm.init_state(lm.prefill([1, 2]), num_particles=2, max_tokens=128)
