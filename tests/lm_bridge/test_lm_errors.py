"""What is broken or mismatched in a checkpoint, a tokenizer or a chat is refused."""

import json

import pytest

from motes.lm_bridge import (
    Tokenizer,
    load_checkpoint,
    load_model,
    render_chat,
)
from tests.lm_bridge.test_checkpoint import (
    INDEX,
    WEIGHTS,
    config,
    copy,
    edit_json,
    edit_tensors,
    widen_vocabulary,
)
from tests.lm_bridge.tokenizers_zoo import SETTINGS, byte_level


def without(*names):
    """Return an edit that removes fields of the configuration."""

    def edit(folder):
        fields = json.loads((folder / "config.json").read_text())
        left = {name: value for name, value in fields.items() if name not in names}
        (folder / "config.json").write_text(json.dumps(left))

    return edit


def header(change):
    """Return an edit of the header of the weights."""

    def edit(folder):
        content = (folder / WEIGHTS).read_bytes()
        size = int.from_bytes(content[:8], "little")
        entries = change(json.loads(content[8 : 8 + size]))
        new = json.dumps(entries).encode()
        whole = len(new).to_bytes(8, "little") + new + content[8 + size :]
        (folder / WEIGHTS).write_bytes(whole)

    return edit


BEFORE = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}


def listed(folder):
    (folder / "config.json").write_text("[1]")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("smollm", without("hidden_size"), "must have the field hidden_size, got none"),
        ("smollm", without("vocab_size"), "must have the field vocab_size"),
        ("smollm", without("max_position_embeddings"), "field max_position_embeddings"),
        ("gpt2", without("n_embd"), "must have the field n_embd"),
        ("smollm", without("model_type"), "model_type must be one of .*got None"),
        (
            "smollm",
            config(num_hidden_layers=0),
            "num_layers .* positive integer, got 0",
        ),
        ("smollm", config(vocab_size="96"), "positive integer, got '96'"),
        ("smollm", config(num_key_value_heads=3), "must divide that of query heads"),
        ("gpt2", config(n_head=5), "width must be a multiple .*got 32 and 5"),
        (
            "smollm",
            config(rope_parameters={"rope_type": "yarn"}),
            "'yarn' must have a fac",
        ),
        (
            "smollm3",
            config(no_rope_layers=[1]),
            "rope_layers .* each of 4 layers, got 1",
        ),
        ("smollm", listed, "must be a JSON object, got list"),
        ("smollm", header(lambda h: [*h]), "header must be an object, got list"),
        (
            "smollm",
            header(lambda h: h | {"x": {"dtype": "F32"}}),
            "x must have a dtype, a shape and data_offsets",
        ),
        ("smollm", header(lambda h: h | BEFORE), "a shape and data_offsets, got .*-4"),
    ],
)
def test_broken_checkpoints_say_what_is_wrong(tmp_path, name, damage, message):
    folder = copy(tmp_path, name)
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


@pytest.mark.parametrize("change", [{"weight_map": None}, {"weight_map": {"a": 3}}])
def test_index_without_a_map_is_refused(tmp_path, change):
    folder = copy(tmp_path, "qwen3")
    edit_json(folder / INDEX, **change)
    with pytest.raises(ValueError, match="weight_map of .* which shard holds each"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("qwen3_sequence", "score.weight"), ("gpt2_token", "classifier.weight")],
)
def test_reward_head_that_is_missing_is_named(tmp_path, name, tensor):
    folder = copy(tmp_path, name)
    edit_tensors(folder / WEIGHTS, lambda t: t.pop(tensor))
    with pytest.raises(ValueError, match=f"must hold the tensor {tensor}"):
        load_model(folder)


def test_reward_head_of_another_width_is_refused(tmp_path):
    folder = copy(tmp_path, "qwen3_sequence")
    labels = {str(i): str(i) for i in range(7)}
    edit_json(folder / "config.json", id2label=labels, num_labels=7)
    with pytest.raises(ValueError, match=r"score.weight must have shape \(7, 32\)"):
        load_model(folder)


@pytest.mark.parametrize("end", [320, -1, "2"])
def test_end_that_is_no_token_is_refused(tmp_path, end):
    folder = copy(tmp_path, "smollm")
    widen_vocabulary(folder, 320)
    edit_json(folder / "config.json", eos_token_id=end)
    message = rf"eos_token_id must be in \[0, 320\), .*got {end!r}"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_ids_of_another_model_are_not_decoded(tmp_path):
    tokenizer = byte_level(tmp_path)
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(
            ValueError, match=rf"ids must be in .*got {wrong}\. Are they"
        ):
            tokenizer.decode([3, wrong])


def spell(folder, vocab):
    """Write a byte-level tokenizer with this vocabulary."""
    byte_level(folder)
    file = folder / "tokenizer.json"
    spec = json.loads(file.read_text())
    spec["model"] |= {"vocab": vocab, "merges": []}
    file.write_text(json.dumps(spec | {"added_tokens": []}))
    return Tokenizer(file)


def test_broken_vocabularies_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold some token, got none"):
        spell(tmp_path, {})
    tokenizer = spell(tmp_path, {"a": 0, "\u2603": 1})
    with pytest.raises(ValueError, match="alphabet of 256 letters, got '\u2603'"):
        tokenizer.decode([1])


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (
            "{{ messages }}",
            [{"content": "hi"}],
            "dictionary with a role, got {'content'",
        ),
        ("{{ 1 / 0 }}", [{"role": "user"}], "must accept the messages.* zero"),
        (
            "{{ messages[0].content.x.y }}",
            [{"role": "user"}],
            "must accept the messages",
        ),
    ],
)
def test_chats_without_form_are_refused(tmp_path, template, messages, message):
    byte_level(tmp_path)
    settings = SETTINGS | {"chat_template": template}
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", settings)
    with pytest.raises(ValueError, match=message):
        render_chat(tokenizer, messages)
