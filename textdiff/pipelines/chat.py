"""Chats as prompts: messages, the tokenizer's template, and what a model may not do with either."""

from collections.abc import Mapping, Sequence
from typing import Any

from textdiff.limits import time_limit
from textdiff.validation import shown

TEMPLATE_SECONDS = 5.0
"""A template is a program that comes with the tokenizer; templates in use take milliseconds."""


def is_chat(inputs: Any) -> bool:
    """Return whether `inputs` are messages: mappings, the first of them with a role."""
    if not isinstance(inputs, Sequence) or isinstance(inputs, str | bytes) or not inputs:
        return False
    return all(isinstance(message, Mapping) for message in inputs) and "role" in inputs[0]


def checked_chat(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with their contents as strings: a list of text parts, as chat data has it, is joined.

    Raises:
        ValueError: For a message without a role or without text (None, as of a tool call; an image).
    """
    return [dict(message) | {"content": _content(message, place)} for place, message in enumerate(messages, 1)]


def _content(message: Mapping[str, Any], place: int) -> str:
    if not isinstance(message.get("role"), str):
        raise ValueError(f'message {place} must have a "role", such as "user"; got {shown(dict(message))}')
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else part for part in parts]
    strings = [text for text in texts if isinstance(text, str)]
    if not texts or len(strings) < len(texts):
        raise ValueError(
            f'message {place} ({message["role"]}) must have a "content" that is text; got {shown(content)}. Leave the '
            "message out, or write what it says"
        )
    return "".join(strings)


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """Return a chat as the tokenizer's template writes it; a last message of the assistant is continued.

    Raises:
        ValueError: For a tokenizer without a template, a message that spells a special token, and a template that fails or
            takes longer than TEMPLATE_SECONDS.
    """
    from jinja2 import TemplateError  # comes with torch

    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; give a prompt as a string, or set chat_template")
    for message in messages:
        for token in tokenizer.added_tokens_decoder.values():
            if token.special and str(token) in message["content"]:
                raise ValueError(
                    f"a message spells the special token {str(token)!r}; a template cannot hold it as text"
                )
    continues = messages[-1]["role"] == "assistant"
    try:
        with time_limit(TEMPLATE_SECONDS, "the tokenizer's chat template"):
            text = tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=not continues,
                continue_final_message=continues,
                tokenize=False,
            )
    except (TemplateError, TypeError, KeyError, AttributeError, IndexError, ZeroDivisionError, OverflowError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"the tokenizer's chat template cannot write these messages ({reason})") from error
    return str(text)
