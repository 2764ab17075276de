"""What `autoft init` takes data for: known tasks, a stranger's task, and data that says too little."""

from __future__ import annotations

from typing import Any, ClassVar

import pyarrow as pa
import pytest

from autoft.contracts import Column, Task, TaskCard
from autoft.drafts.guesses import AMBIGUOUS, guess_tasks
from autoft.drafts.survey import survey
from autoft.errors import PluginError
from autoft.plugins import load_plugins

TASKS = list(load_plugins().tasks.values())
TEXT = "the lamp of the old tower was lit by hand until a motor came and the keeper went home to his village"
WORDS = TEXT.split()


def sentence(number: int, length: int = 12) -> str:
    return (
        " ".join(WORDS[(number * 7 + place * (1 + number % 5)) % len(WORDS)] for place in range(length)) + f" {number}"
    )


def best(table: dict[str, list[Any]], given: dict[str, str] | None = None):
    guesses, refused = guess_tasks(TASKS, survey(pa.table(table)), given or {})
    assert guesses, refused
    clear = sum(one.score >= AMBIGUOUS * guesses[0].score for one in guesses) == 1
    return guesses[0], clear


ROWS = range(80)
CONTEXTS = [sentence(number, 60) for number in ROWS]
EXAMPLES = {
    "reviews by usual names": (
        {"text": [sentence(n) for n in ROWS], "label": [["good", "bad"][n % 2] for n in ROWS]},
        "text-classification",
        {"text": "text", "label": "label"},
    ),
    "reviews by names that nobody knows": (
        {"kommentar": [sentence(n) for n in ROWS], "sterne": [1 + n % 5 for n in ROWS]},
        "text-classification",
        {"text": "kommentar", "label": "sterne"},
    ),
    "lists of labels": (
        {
            "nr": list(ROWS),
            "post": [sentence(n) for n in ROWS],
            "moods": [[["joy", "fear"][n % 2], "calm"] for n in ROWS],
        },
        "text-classification",
        {"text": "post", "label": "moods"},
    ),
    "words and tags": (
        {"w": [sentence(n).split() for n in ROWS], "t": [["O", ["B-X", "B-Y"][n % 2]] * 6 + ["O"] for n in ROWS]},
        "token-classification",
        {"tokens": "w", "tags": "t"},
    ),
    "texts with spans": (
        {
            "content": [sentence(n) for n in ROWS],
            "entities": [[{"start": 0, "end": len(sentence(n).split()[0]), "label": "X"}] for n in ROWS],
        },
        "token-classification",
        {"text": "content", "spans": "entities"},
    ),
    "questions on texts": (
        {
            "query": [sentence(n, 6) + "?" for n in ROWS],
            "passage": CONTEXTS,
            "answer": [" ".join(text.split()[20:23]) for text in CONTEXTS],
        },
        "question-answering",
        {"question": "query", "context": "passage", "answers": "answer"},
    ),
    "documents and summaries": (
        {"article": CONTEXTS, "highlights": [" ".join(text.split()[:8]) for text in CONTEXTS]},
        "summarization",
        {"document": "article", "summary": "highlights"},
    ),
    "two languages": (
        {
            "en": [f"the house of number {n} is old and very small" for n in ROWS],
            "de": [f"das Haus mit der Nummer {n} ist alt und sehr klein" for n in ROWS],
        },
        "translation",
        {"source": "en", "target": "de"},
    ),
    "two scripts": (
        {"en": [f"house {n} is old" for n in ROWS], "zh": [f"第{n}号的房子很旧" for n in ROWS]},
        "translation",
        {"source": "en", "target": "zh"},
    ),
    "conversations": (
        {
            "talk": [
                [{"role": "user", "content": sentence(n, 5)}, {"role": "assistant", "content": sentence(n + 1, 5)}]
                for n in ROWS
            ]
        },
        "generation",
        {"messages": "talk"},
    ),
    "a completion whose prompt has a name of its own": (
        {"input": [sentence(n) for n in ROWS], "output": [sentence(n + 3) for n in ROWS]},
        "generation",
        {"prompt": "input", "completion": "output"},
    ),
    "pictures": (
        {"file": [f"pictures/{n}.png" for n in ROWS], "says": [sentence(n, 5) for n in ROWS]},
        "image-captioning",
        {"image": "file", "captions": "says"},
    ),
    "multiple choice in columns": (
        {
            "stem": [f"Which nerve is meant by description {n}?" for n in ROWS],
            "opa": [f"first {n}" for n in ROWS],
            "opb": [f"second {n}" for n in ROWS],
            "cop": [n % 2 for n in ROWS],
        },
        "medical-qa-choice",
        {"question": "stem", "option_a": "opa", "option_b": "opb", "answer": "cop"},
    ),
}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=list(EXAMPLES))
def test_the_task_and_its_columns_are_guessed(example):
    table, task, columns = example
    guess, clear = best(table)
    assert (guess.task.card.name, dict(guess.columns)) == (task, columns)
    assert clear
    assert len(guess.reasons) == len(columns)


def test_a_column_that_the_user_named_is_taken():
    table = {"a": [sentence(n) for n in ROWS], "b": [sentence(n + 200) for n in ROWS], "y": [n % 3 for n in ROWS]}
    guess, _ = best(table)
    assert guess.rivals
    assert set(guess.rivals[0].columns) == {"a", "b"}
    named, _ = best(table, {"text": "b"})
    assert (named.columns["text"], named.rivals) == ("b", ())


def test_a_text_that_is_different_in_every_row_is_no_label():
    guesses, refused = guess_tasks(TASKS, survey(pa.table({"a": [sentence(n) for n in ROWS], "b": CONTEXTS})), {})
    assert "text-classification" not in {guess.task.card.name for guess in guesses}
    assert "columns for text and label" in refused["text-classification"]


class _Ratings(Task):
    """A task that autoft has never met: how warm a melody is."""

    card: ClassVar[TaskCard] = TaskCard(
        name="melody-warmth",
        summary="how warm a melody is",
        columns=(
            Column("melody", "notes", "the notes", guesses=("tune",), looks_like="text"),
            Column("take", "sound", "a recording", required=False, looks_like="audio"),
            Column("warmth", "number", "from 0 to 1", target=True, guesses=("warm",)),
        ),
        metrics=("warmth_error",),
        architecture="melody-regression",
        alternatives=(("take",),),
    )
    like = 0.9

    def demo_rows(self):
        return []

    def load_model(self, source, context):
        raise NotImplementedError

    def encode(self, rows, context):
        raise NotImplementedError

    def predict(self, model, rows, context, batch_size=32):
        raise NotImplementedError

    def reference(self, row, context):
        raise NotImplementedError

    def likeness(self, rows, options):
        assert {"melody", "take", "warmth"} <= set(rows[0])
        return self.like


STRANGE = {
    "tune": [sentence(n) for n in ROWS],
    "recorded": [f"takes/{n}.flac" for n in ROWS],
    "warm": [n / 80 for n in ROWS],
}


def test_a_strangers_task_is_guessed_by_its_card():
    guesses, _ = guess_tasks([*TASKS, _Ratings()], survey(pa.table(STRANGE)), {})
    assert guesses[0].task.card.name == "melody-warmth"
    assert dict(guesses[0].columns) == {"melody": "tune", "take": "recorded", "warmth": "warm"}
    without = {name: values for name, values in STRANGE.items() if name != "recorded"}
    _, refused = guess_tasks([_Ratings()], survey(pa.table(without)), {})
    assert "take" in refused["melody-warmth"]


def test_a_likeness_that_is_no_share_is_the_plugins_fault(monkeypatch):
    monkeypatch.setattr(_Ratings, "like", 7)
    with pytest.raises(PluginError, match="melody-warmth says 7"):
        guess_tasks([_Ratings()], survey(pa.table(STRANGE)), {})


def test_a_handful_of_labels_beside_a_short_and_a_long_text_is_a_question():
    table = {
        "subject": [" ".join(text.split()[:6]) for text in CONTEXTS],
        "body_text": CONTEXTS,
        "verdict": [["yes", "no"][n % 2] for n in ROWS],
    }
    guesses, _ = guess_tasks(TASKS, survey(pa.table(table)), {})
    close = {guess.task.card.name for guess in guesses if guess.score >= AMBIGUOUS * guesses[0].score}
    assert {"summarization", "text-classification"} <= close
