"""Tokens are bytes: whatever is encoded comes back, split characters too."""

import pytest

from motes.lm_bridge import Tokenizer, render_chat
from tests.lm_bridge.tokenizers_zoo import SETTINGS, byte_fallback, byte_level

TEXTS = ["the cat", " the  hat\n", "caf\u00e9 \u2603 \U0001f600", "\x00\x7f", ""]
KINDS = pytest.mark.parametrize("build", [byte_level, byte_fallback])


@KINDS
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_tokens_spell_the_text(build, text, tmp_path):
    tokenizer = build(tmp_path)
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode("utf-8")
    assert tokenizer.decode(ids) == text


@KINDS
def test_every_byte_has_a_token(build, tmp_path):
    tokenizer = build(tmp_path)
    assert {bytes([b]) for b in range(256)} <= set(tokenizer.token_bytes)
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size


@KINDS
def test_special_tokens_have_no_bytes(build, tmp_path):
    tokenizer = build(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, (1,))
    assert tokenizer.token_bytes[:2] == [b"", b""]
    assert tokenizer.special[:3] == (True, True, False)
    assert tokenizer.encode_prompt("the")[0] == 0


def test_half_a_character_decodes_to_the_replacement_sign(tmp_path):
    tokenizer = byte_level(tmp_path)
    half = tokenizer.encode("\u2603")[:1]
    assert tokenizer.decode(half) == "\ufffd"
    assert tokenizer.decode_bytes(half) == "\u2603".encode()[:1]


def test_broken_tokenizer_names_its_file(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="must be a tokenizer.json"):
        Tokenizer(tmp_path / "tokenizer.json")


CHAT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('no role ' + m.role) }}{% endif %}"
    "[{{ m.role }}]{{ m.content | tojson }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
MESSAGES = [{"role": "user", "content": "caf\u00e9 <b>"}]


def with_template(folder, template):
    byte_level(folder)
    settings = SETTINGS | {"chat_template": template}
    return Tokenizer(folder / "tokenizer.json", settings)


def test_chat_follows_the_template(tmp_path):
    tokenizer = with_template(tmp_path, CHAT)
    expected = '<s>[user]"caf\u00e9 <b>"</s>\n'
    assert render_chat(tokenizer, MESSAGES) == expected + "[assistant]"
    assert render_chat(tokenizer, MESSAGES, add_generation_prompt=False) == expected


def test_special_tokens_in_a_chat_become_ids(tmp_path):
    tokenizer = with_template(tmp_path, CHAT)
    ids = tokenizer.encode(render_chat(tokenizer, MESSAGES))
    assert ids[0] == tokenizer.bos_id and tokenizer.eos_ids[0] in ids


def test_template_knows_the_date_and_its_own_variables(tmp_path):
    tokenizer = with_template(tmp_path, "{{ strftime_now('%Y')[:2] }} {{ tools }}")
    assert render_chat(tokenizer, MESSAGES, tools="none") == "20 none"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "must have a chat template, got none"),
        (CHAT, "no role system"),
        ("{% for %}", "must accept the messages"),
        ("{{ messages.append(1) }}", "must stay in its sandbox"),
        ("{{ ''.__class__.__mro__ }}", "must stay in its sandbox"),
    ],
)
def test_bad_chats_are_refused(tmp_path, template, message):
    tokenizer = with_template(tmp_path, template)
    messages = [{"role": "system", "content": "be kind"}]
    with pytest.raises(ValueError, match=message):
        render_chat(tokenizer, messages)
