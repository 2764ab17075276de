"""Conversations as text: the tokenizer's chat template where it has one, a plain one otherwise."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

from autoft.errors import DataError, ModelError, kind_and_line

__all__ = ["PLAIN_TEMPLATE", "Piece", "answer_end", "checked_messages", "conversation", "prompt_text", "recent"]

PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token or '' }}{% endif %}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""For tokenizers without a template of their own: ``User: ...`` and ``Assistant: ...`` on lines of their own."""

MOST_STEPS = 1_000_000
"""Lines of a chat template that run for one conversation; those in use take some tens for a message."""

ROLES = ("system", "user", "assistant", "tool")
OTHER_ROLES = {"human": "user", "gpt": "assistant"}
"""What the roles are called in data as ShareGPT has it, whose messages are ``{"from", "value"}``."""


class Piece(NamedTuple):
    """A stretch of a training text, and whether the model is to learn to write it."""

    text: str
    learned: bool


def checked_messages(value: Any, where: str = "") -> list[dict[str, str]]:
    """Return messages as ``{"role", "content"}``.

    Args:
        value: from the data: a list of these, or of ``{"from", "value"}``; a text holds it as JSON.
        where: the row's place, as ``row 3``, for messages of errors.

    Raises:
        DataError: it is no list of messages.
    """
    place = f"{where}: " if where else ""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}'messages' is no JSON: {error}") from error
    if not isinstance(value, list | tuple) or not value:
        given = "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
        raise DataError(f"{place}'messages' has to be a list of {{role, content}}, given {given}")
    found = []
    for number, message in enumerate(value, 1):
        role, content = (_either(message, *names) for names in (("role", "from"), ("content", "value")))
        if not isinstance(role, str):
            raise DataError(f"{place}message {number} has no text under 'role', given {message!r:.80}")
        role = OTHER_ROLES.get(role, role)
        if role not in ROLES:
            raise DataError(f"{place}message {number} has the role {role!r}; allowed: {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise DataError(f"{place}message {number} has no text under 'content', given {message!r:.80}")
        found.append({"role": role, "content": content})
    return found


def _either(message: Any, name: str, other: str) -> Any:
    if not isinstance(message, Mapping):
        return None
    value = message.get(name)
    return message.get(other) if value is None else value


def recent(
    messages: Sequence[Mapping[str, str]], tokenizer: Any, room: int, *, thinks: bool = False
) -> list[dict[str, str]]:
    """Return as many of the last messages as there is room for, from one of the user on, and system messages.

    Args:
        messages: up to where the assistant is to answer.
        tokenizer: with or without a chat template.
        room: tokens of the whole prompt. The last question stays, whatever its length.
        thinks: as for :func:`prompt_text`.

    Raises:
        DataError: the template refuses the messages.
    """
    first = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    kept = [dict(message) for message in messages]
    for start in [i for i in range(first + 1, len(messages)) if messages[i]["role"] == "user"]:
        text = prompt_text(tokenizer, kept, thinks=thinks)
        # A token is a byte at least.
        if len(text.encode()) <= room or len(tokenizer(text, add_special_tokens=False).input_ids) <= room:
            break
        kept = [dict(message) for message in (*messages[:first], *messages[start:])]
    return kept


def prompt_text(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, thinks: bool = False) -> str:
    """Return the conversation up to where the assistant begins to answer.

    Args:
        tokenizer: with or without a chat template.
        messages: up to where the assistant is to answer.
        thinks: answers begin with reasoning, as ``<think>...</think>``. Else a model that can do both, as Qwen3, is told
            to answer at once (``enable_thinking`` of its template): its template puts an empty block in front of answers
            without reasoning, which would be learned, and shown, as a part of these.

    Raises:
        DataError: the template refuses the messages, as a second system message.
    """
    return _rendered(tokenizer, messages, answer=True, thinks=thinks)


def conversation(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], end: str, *, every: bool, thinks: bool = False
) -> list[Piece]:
    """Return a conversation that ends with an answer, in pieces.

    Args:
        tokenizer: with or without a chat template.
        messages: the last one is the assistant's.
        end: of an answer, as :func:`answer_end` says.
        every: learn all of the assistant's answers, not the last one only.
        thinks: as for :func:`prompt_text`.

    Raises:
        DataError: the template refuses the messages.
    """
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    pieces: list[Piece] = []
    done = ""
    for i in answers if every else answers[-1:]:
        before = _rendered(tokenizer, messages[:i], answer=True, thinks=thinks)
        until = _rendered(tokenizer, messages[: i + 1], answer=False, thinks=thinks)
        if not before.startswith(done):
            # A template that rewrites earlier turns once later ones follow, as those that drop reasoning do.
            return conversation(tokenizer, messages, end, every=False, thinks=thinks)
        answer = until[len(before) :] if until.startswith(before) else messages[i]["content"] + end
        # What a template writes after the end of the answer, the model never has to write. The answer itself may have
        # such a token in it.
        said = messages[i]["content"].strip()
        at = answer.find(end, max(answer.find(said), 0) + len(said)) if end else -1
        stop = at + len(end) if at >= 0 else len(answer)
        pieces += [Piece(before[len(done) :], False), Piece(answer[:stop], True)]
        done = before + answer[:stop]
    return pieces


def answer_end(tokenizer: Any) -> str:
    """Return the special token with which an answer ends: the first one that the template writes after it."""
    mark = "mark"
    turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
    tail = _rendered(tokenizer, turn, answer=False).rpartition(mark)[2]
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    special += list(tokenizer.all_special_tokens)
    places = {token: tail.find(token) for token in special if token in tail}
    # Of two that begin at the same place the longer one is meant.
    return min(places, key=lambda token: (places[token], -len(token))) if places else tokenizer.eos_token or ""


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, answer: bool, thinks: bool = False) -> str:
    from jinja2.exceptions import TemplateError

    try:
        with _bounded():
            text: str = tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=tokenizer.chat_template or PLAIN_TEMPLATE,
                add_generation_prompt=answer,
                enable_thinking=thinks,
                tokenize=False,
            )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(f"the chat template of the model refuses messages of {roles}: {error}") from error
    except _Endless:
        raise ModelError(
            f"{tokenizer.name_or_path}: its chat template does not end: {MOST_STEPS:,} steps for {len(messages)} messages"
        ) from None
    except Exception as error:
        # It is a program of whoever made the model.
        raise DataError(f"the chat template of the model fails: {kind_and_line(error)}") from error
    return text


class _Endless(Exception):
    """A template has run as many lines as it may."""


@contextmanager
def _bounded() -> Iterator[None]:
    """Count the lines that a template runs within the block, in this thread.

    Jinja's sandbox bounds a loop, to 100,000 rounds, and not loops within loops.

    Raises:
        _Endless: it runs more than :data:`MOST_STEPS`.
    """
    steps = 0

    def line(frame: FrameType, event: str, given: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > MOST_STEPS:
            raise _Endless
        return line

    before = sys.gettrace()
    # So Jinja calls the code that it makes of a text.
    sys.settrace(lambda frame, event, given: line if frame.f_code.co_filename == "<template>" else None)
    try:
        yield
    finally:
        sys.settrace(before)
