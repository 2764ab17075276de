"""What the report shows of the test rows: figures by kind of question and of answer, and answers in their contexts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from autoft.contracts import Mark, MarkedText, Matrix, Prediction, Row, Table
from autoft_question_answering.metrics import answer_tokens, exact_match, token_f1

if TYPE_CHECKING:
    from autoft_question_answering.task import Answer, QuestionAnswering

__all__ = ["answered", "by_length", "by_question_word", "excerpt", "marked_answers"]

SHOWN_ERRORS = 15
SHOWN_RIGHT = 5
MARGIN = 120
"""Characters of the context shown on both sides of an answer."""

LENGTHS = ((1, 1), (2, 2), (3, 5), (6, 10), (11, None))
FIGURES = ("exact match", "F1", "rows")


def by_question_word(
    task: QuestionAnswering,
    rows: Sequence[Row],
    predictions: Sequence[Prediction],
    right: Sequence[Sequence[Answer]],
) -> Table:
    """Return exact match and F1 for each kind of question, the most frequent first."""
    kinds = [task.question_kind(task.texts(row)[0]) for row in rows]
    return Table("Figures by question word", ("question", *FIGURES), _averages(kinds, predictions, right))


def by_length(predictions: Sequence[Prediction], right: Sequence[Sequence[Answer]]) -> Table:
    """Return exact match and F1 for answers of one word, of two and so on; characters count where scripts have no spaces."""
    names = ["no answer", *(_range(low, high) for low, high in LENGTHS)]

    def name(answers: Sequence[Answer]) -> str:
        if not answers:
            return names[0]
        count = max(1, len(answer_tokens(answers[0].text)))
        return next(_range(low, high) for low, high in LENGTHS if high is None or count <= high)

    lines = _averages([name(answers) for answers in right], predictions, right)
    ordered = tuple(sorted(lines, key=lambda line: names.index(line[0])))
    return Table("Figures by length of the right answer", ("words", *FIGURES), ordered)


def answered(predictions: Sequence[Prediction], right: Sequence[Sequence[Answer]], threshold: float) -> Matrix:
    """Return how many questions with and without an answer were answered, and were not."""
    counts = [[0.0, 0.0], [0.0, 0.0]]
    for prediction, answers in zip(predictions, right, strict=True):
        counts[not answers][not prediction["answer"]] += 1
    title = f"Questions with an answer, and questions answered (no_answer up to {threshold:.3g})"
    return Matrix(title, ("answer", "no answer"), tuple(tuple(line) for line in counts))


def marked_answers(
    task: QuestionAnswering,
    rows: Sequence[Row],
    predictions: Sequence[Prediction],
    right: Sequence[Sequence[Answer]],
) -> MarkedText:
    """Return the surest errors, then some right answers, each in a stretch of its context."""
    wrong: list[tuple[float, Row, Prediction, Sequence[Answer]]] = []
    fine: list[tuple[float, Row, Prediction, Sequence[Answer]]] = []
    for row, prediction, answers in zip(rows, predictions, right, strict=True):
        is_right = exact_match(str(prediction["answer"]), [answer.text for answer in answers])
        (fine if is_right else wrong).append((float(prediction["score"]), row, prediction, answers))
    wrong.sort(key=lambda entry: -entry[0])
    lines = []
    for score, row, prediction, answers in [*wrong[:SHOWN_ERRORS], *fine[:SHOWN_RIGHT]]:
        question, text = task.texts(row)
        said = "" if prediction["answer"] else ", left unanswered"
        shown, marks = excerpt(text, _marks(prediction, answers))
        lines.append((f"{question} (score {score:.2f}{said})", shown, marks))
    return MarkedText("Answers in their contexts: the surest errors, then some right ones", tuple(lines))


def excerpt(text: str, marks: Sequence[Mark]) -> tuple[str, tuple[Mark, ...]]:
    """Return the stretches of a text around its marks, joined by an ellipsis, and the marks in them.

    Without marks it is the beginning of the text.
    """
    stretches: list[list[int]] = []
    for mark in sorted(marks, key=lambda mark: mark.start):
        start, end = max(0, mark.start - MARGIN), min(len(text), mark.end + MARGIN)
        if stretches and start <= stretches[-1][1]:
            stretches[-1][1] = max(end, stretches[-1][1])
        else:
            stretches.append([start, end])
    shown, moved = "", []
    for start, end in stretches or [[0, min(len(text), 2 * MARGIN)]]:
        shown += "… " if start > 0 and not shown else ""
        inside = [mark for mark in marks if start <= mark.start and mark.end <= end]
        shift = len(shown) - start
        moved += [Mark(mark.start + shift, mark.end + shift, mark.label, mark.verdict) for mark in inside]
        shown += text[start:end] + (" … " if end < len(text) else "")
    return shown.rstrip(), tuple(moved)


def _marks(prediction: Prediction, answers: Sequence[Answer]) -> list[Mark]:
    start, end = int(prediction["start"]), int(prediction["end"])
    said = str(prediction["answer"])
    if said and exact_match(said, [answer.text for answer in answers]):
        return [Mark(start, end, "answer", "right")]
    marks = [Mark(start, end, "predicted", "wrong")] if said else []
    return marks + [Mark(answer.start, answer.end, "true", "missed") for answer in answers[:1]]


def _averages(
    names: Iterable[str], predictions: Sequence[Prediction], right: Sequence[Sequence[Answer]]
) -> tuple[tuple[Any, ...], ...]:
    figures: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, prediction, answers in zip(names, predictions, right, strict=True):
        references, said = [answer.text for answer in answers], str(prediction["answer"])
        figures[name].append((exact_match(said, references), token_f1(said, references)))
    lines = [
        (name, sum(exact for exact, _ in own) / len(own), sum(f1 for _, f1 in own) / len(own), len(own))
        for name, own in figures.items()
    ]
    return tuple(sorted(lines, key=lambda line: (-line[3], line[0])))


def _range(low: int, high: int | None) -> str:
    if high is None:
        return f"{low} and more"
    return str(low) if low == high else f"{low}–{high}"
