"""Chat templates: messages to a prompt, by the model's own Jinja template.

A template is part of a checkpoint, hence untrusted: it runs in Jinja's immutable
sandbox, which reaches neither files nor the interpreter. `render_chat` offers it what
Hugging Face templates expect.
"""

import datetime
import json
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from motes.lm_bridge.tokenizer import Tokenizer


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[dict[str, Any]],
    add_generation_prompt: bool = True,
    **variables: Any,
) -> str:
    """Return the prompt of a conversation.

    Args:
        tokenizer: Holds the template, and the special tokens that it names.
        messages: Each with `role` and `content`.
        add_generation_prompt: Whether to end where the assistant's turn begins.
        **variables: Further variables of the template, such as `tools`.

    Returns:
        Text that holds its own special tokens: encode it without adding any.

    Raises:
        ValueError: If there is no template, or the template refuses the messages.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "render_chat: tokenizer must have a chat template, got none. Build the "
            "prompt as text, or use a model that was tuned to follow instructions."
        )
    roles = [isinstance(one, dict) and "role" in one for one in messages]
    if not all(roles):
        raise ValueError(
            f"render_chat: messages must each be a dictionary with a role, got "
            f"{messages[roles.index(False)]!r}."
        )
    try:
        template = _environment().from_string(tokenizer.chat_template)
        return template.render(
            messages=list(messages),
            add_generation_prompt=add_generation_prompt,
            **tokenizer.special_tokens,
            **variables,
        )
    except jinja2.exceptions.SecurityError as error:
        raise ValueError(
            f"render_chat: the template must stay in its sandbox, got {error}."
        ) from error
    except Exception as error:  # a template may raise anything
        raise ValueError(
            f"render_chat: the template must accept the messages, got {error}."
        ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON as Hugging Face writes it: with letters of all scripts, unescaped."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
