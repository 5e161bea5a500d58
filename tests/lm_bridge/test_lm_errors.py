"""What is broken, mismatched or impossible is refused before the first token."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motes.inference.smc import DeadParticles
from motes.lm_bridge import (
    Tokenizer,
    TransformerLM,
    decode,
    load_checkpoint,
    load_model,
    render_chat,
)
from motes.lm_bridge.checks import check_decode
from motes.lm_bridge.potentials import ban_tokens, regex
from motes.lm_bridge.potentials.algebra import product
from motes.lm_bridge.potentials.token_weights import LengthWindow, TokenWeights
from tests.lm_bridge.tables import END, TABLE, A, B, C
from tests.lm_bridge.test_checkpoint import (
    GOLDENS,
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


@pytest.fixture(scope="module")
def lm():
    return TransformerLM(load_model(GOLDENS / "smollm"), (0,))


def bans(vocab_size=96, eos_ids=(0,)):
    return ban_tokens([3], vocab_size, eos_ids)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "potential", "message"),
    [
        ("the cat", 4, None, "must be token ids, got the text 'the cat'"),
        (["the cat"], 4, None, "must be token ids, got the text 'the cat'"),
        ([], 4, None, "must hold at least one token, got none"),
        ([1, 96], 4, None, r"ids in \[0, 96\), got 96. Is it another"),
        ([[1], [2, -1]], 4, None, r"ids in \[0, 96\), got -1"),
        ([0.5, 1.0], 4, None, "a row of integers, got shape .* of float64"),
        (np.ones((1, 2, 2), int), 4, None, "a row of integers, got shape"),
        ([1, 2], 127, None, r"context of 128 tokens, got 2 \+ 127"),
        ([1, 2], 0, None, "max_tokens must be at least 1, got 0"),
        ([1, 2], 4, bans(95), "vocabulary of the model, 96 tokens, got 95"),
        ([1, 2], 4, bans(96, (1,)), r"by the ids of the model, \[0\], got \[1\]"),
    ],
)
def test_requests_that_no_decode_could_fill(lm, prompt, max_tokens, potential, message):
    with pytest.raises(ValueError, match=message):
        check_decode(lm, prompt, max_tokens, potential)


def test_requests_that_can_be_filled_pass(lm):
    check_decode(lm, [1, 2], 126, bans())
    check_decode(lm, [[1], np.array([2, 95])], 4)
    check_decode(TABLE, (), 4)
    jax.jit(lambda prompt: check_decode(lm, prompt, 4))(np.array([200]))


def test_empty_prompt_needs_a_start_token(lm, tmp_path):
    byte_level(tmp_path)
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", {})
    with pytest.raises(ValueError, match="at least one token, got none. Begin"):
        lm.prefill(tokenizer.encode_prompt(""))


ABC, ENDS = [b"a", b"b", b"c", b""], (END,)


@pytest.mark.parametrize(
    "potential",
    [
        lambda: regex("a{6}", ABC, ENDS),
        lambda: regex("a{2,}", ABC, ENDS) * regex(".{5}", ABC, ENDS),
        lambda: LengthWindow(5, 9, 4, ENDS),
        lambda: ban_tokens([A, B, C], 4, ENDS) * LengthWindow(1, 9, 4, ENDS),
        lambda: TokenWeights(jnp.full(4, -jnp.inf), 4, ENDS),
    ],
    ids=["regex", "both", "window", "bans", "nothing"],
)
def test_impossible_constraints_are_found_before_the_first_token(key, potential):
    with pytest.raises(ValueError, match="at most max_tokens=4 .*every first token"):
        decode(key, TABLE, (), 4, 4, potential())


def test_constraints_that_no_text_satisfies_are_refused():
    with pytest.raises(ValueError, match="that none of its 4 tokens can satisfy"):
        regex("a+x", ABC, ENDS)
    with pytest.raises(ValueError, match="one that none of its 4 tokens can"):
        product(regex("a+", ABC, ENDS), regex("b+", ABC, ENDS))
    with pytest.raises(ValueError, match=re.escape("leave one of (3,) to end a text")):
        ban_tokens(range(4), 4, ENDS)


def test_dead_end_in_the_middle_keeps_the_last_texts(key):
    never_ends = TokenWeights(jnp.array([0.0, 0.0, 0.0, -jnp.inf]), 4, ENDS)
    with pytest.raises(DeadParticles, match=r"after step 4, by TokenWeights") as caught:
        decode(key, TABLE, (), 5, 3, never_ends)
    np.testing.assert_array_equal(caught.value.particles.state.lengths, 3)
    assert int(caught.value.particles.dead_step) == 4
