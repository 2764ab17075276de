"""Conversations as text: which stretches are learned, and where an answer ends."""

from __future__ import annotations

import json
import sys

import pytest
from autoft_generation.chat import PLAIN_TEMPLATE, answer_end, checked_messages, conversation, prompt_text, recent
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.errors import DataError, ModelError


@pytest.fixture(scope="module")
def tokenizers(checkpoints):
    """One with a chat template, and one without."""
    from transformers import AutoTokenizer

    return {chat: AutoTokenizer.from_pretrained(checkpoints("llama", chat)) for chat in (True, False)}


def message(role, content):
    return {"role": role, "content": content}


TALK = [
    message("system", "Be brief."),
    message("user", "one"),
    message("assistant", "two"),
    message("user", "three"),
    message("assistant", "four"),
]


def test_all_answers_or_the_last_are_learned_with_their_ends(tokenizers):
    tokenizer = tokenizers[True]
    end = answer_end(tokenizer)
    assert end == "<|end|>"
    assert conversation(tokenizer, TALK, end, every=True) == [
        ("<|system|>Be brief.<|end|>\n<|user|>one<|end|>\n<|assistant|>", False),
        ("two<|end|>", True),
        ("\n<|user|>three<|end|>\n<|assistant|>", False),
        ("four<|end|>", True),
    ]
    assert conversation(tokenizer, TALK, end, every=False) == [
        (
            "<|system|>Be brief.<|end|>\n<|user|>one<|end|>\n<|assistant|>two<|end|>\n<|user|>three<|end|>\n<|assistant|>",
            False,
        ),
        ("four<|end|>", True),
    ]


def test_a_tokenizer_without_a_template_gets_a_plain_one(tokenizers):
    tokenizer = tokenizers[False]
    end = answer_end(tokenizer)
    assert end == "</s>"
    assert conversation(tokenizer, TALK[1:], end, every=True) == [
        ("<s>User: one\nAssistant:", False),
        (" two</s>", True),
        ("\nUser: three\nAssistant:", False),
        (" four</s>", True),
    ]
    assert prompt_text(tokenizer, TALK[:2]) == "<s>System: Be brief.\nUser: one\nAssistant:"


contents = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(contents, contents), min_size=1, max_size=4), chat=st.booleans())
def test_pieces_are_the_rendered_conversation_and_the_learned_ones_its_answers(tokenizers, turns, chat):
    tokenizer = tokenizers[chat]
    messages = [part for asked, said in turns for part in (message("user", asked), message("assistant", said))]
    end = answer_end(tokenizer)
    pieces = conversation(tokenizer, messages, end, every=True)
    whole = tokenizer.apply_chat_template(
        messages, chat_template=tokenizer.chat_template or PLAIN_TEMPLATE, tokenize=False
    )
    assert whole == "".join(piece.text for piece in pieces) + "\n"
    space = "" if chat else " "
    assert [piece.text for piece in pieces if piece.learned] == [space + said + end for _, said in turns]
    # What is learned follows exactly on what a prediction of the same answer is given.
    for k in range(len(turns)):
        before = "".join(piece.text for piece in pieces[: 2 * k + 1])
        assert before == prompt_text(tokenizer, messages[: 2 * k + 1])


def test_a_template_that_rewrites_earlier_turns_learns_the_last_answer_only(tokenizers):
    import copy

    tokenizer = copy.deepcopy(tokenizers[True])
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ '<|' + m.role + '|>' + m.content }}<|end|>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    pieces = conversation(tokenizer, TALK[1:], "<|end|>", every=True)
    assert pieces == [("<|user|>one<|end|><|user|>three<|end|><|assistant|>", False), ("four<|end|>", True)]


HYBRID = (
    # As Qwen3 does: a block of reasoning, empty where there is none, in front of the last answer; none after the prompt
    # unless it is told not to think.
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' and loop.last and '</think>' not in message['content'] %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def test_a_model_that_can_think_learns_to_answer_at_once_where_answers_have_no_reasoning(tokenizers, monkeypatch):
    tokenizer = tokenizers[True]
    monkeypatch.setattr(tokenizer, "chat_template", HYBRID)
    asked = "<|user|>2+2?<|end|>\n<|assistant|>"
    talk = [message("user", "2+2?"), message("assistant", "4")]
    assert conversation(tokenizer, talk, "<|end|>", every=True) == [
        (f"{asked}<think>\n\n</think>\n\n", False),
        ("4<|end|>", True),
    ]
    assert prompt_text(tokenizer, talk[:1]) == f"{asked}<think>\n\n</think>\n\n"
    reasoned = [talk[0], message("assistant", "<think>two and two</think>4")]
    assert conversation(tokenizer, reasoned, "<|end|>", every=True, thinks=True) == [
        (asked, False),
        ("<think>two and two</think>4<|end|>", True),
    ]
    assert prompt_text(tokenizer, talk[:1], thinks=True) == asked


def test_messages_that_a_template_refuses_are_told(tokenizers):
    import copy

    tokenizer = copy.deepcopy(tokenizers[True])
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="refuses messages of system, user: roles must alternate"):
        prompt_text(tokenizer, TALK[:2])
    tokenizer.chat_template = "{{ 1 / 0 }}"
    with pytest.raises(DataError, match="template of the model fails: ZeroDivisionError: division by zero"):
        prompt_text(tokenizer, TALK[:2])


def test_a_template_without_end_is_told(tokenizers):
    import copy

    tokenizer, before = copy.deepcopy(tokenizers[True]), sys.gettrace()
    tokenizer.chat_template = "{% for i in range(3000) %}{% for j in range(3000) %}{% endfor %}{% endfor %}"
    with pytest.raises(ModelError, match="its chat template does not end: 1,000,000 steps for 2 messages"):
        prompt_text(tokenizer, TALK[:2])
    assert sys.gettrace() is before


def test_a_conversation_of_thousands_of_messages_is_no_template_without_end(tokenizers):
    text = prompt_text(tokenizers[True], 1000 * TALK[1:])
    assert text.count("three") == 1000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "row 3: 'messages' has to be a list of {role, content}, given nothing"),
        ("hello", "given str 'hello'"),
        ([], "given list"),
        (["hello"], "row 3: message 1 has no text under 'role'"),
        ([message("user", "a"), message("person", "b")], "message 2 has the role 'person'; allowed: system, user"),
        ([message("user", None)], "message 1 has no text under 'content'"),
        ('[{"role": ', "row 3: 'messages' is no JSON: "),
    ],
)
def test_messages_of_another_form_are_told_with_their_place(value, expected):
    with pytest.raises(DataError) as caught:
        checked_messages(value, "row 3")
    assert expected in str(caught.value)


def test_messages_may_be_json_or_have_the_names_of_sharegpt():
    shared = [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two", "weight": None}]
    assert checked_messages(shared) == TALK[1:2] + TALK[2:3]
    assert checked_messages(json.dumps(TALK)) == TALK
    # As a table has them whose rows have either form.
    both = [{"from": None, "value": None, **part} for part in TALK]
    assert checked_messages(both) == TALK


def test_old_turns_go_where_there_is_no_room(tokenizers):
    tokenizer = tokenizers[True]
    asked = TALK[:-1]

    def length(messages):
        return len(tokenizer(prompt_text(tokenizer, messages), add_special_tokens=False).input_ids)

    late = [TALK[0], TALK[3]]
    assert length(late) < length(asked)
    assert recent(asked, tokenizer, length(asked)) == asked
    assert recent(asked, tokenizer, length(asked) - 1) == late
    # A question stays whole, however little room there is.
    assert recent(asked, tokenizer, 1) == late
    assert recent(TALK[:1], tokenizer, 1) == TALK[:1]


def test_an_answer_may_have_the_end_token_in_it(tokenizers):
    talk = [message("user", "how do answers end?"), message("assistant", "with <|end|> always")]
    pieces = conversation(tokenizers[True], talk, "<|end|>", every=True)
    assert pieces[-1] == ("with <|end|> always<|end|>", True)
