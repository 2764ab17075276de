"""What the report shows of tagged rows: figures and kinds of errors for each type, and sentences with their marks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from autoft.contracts import Detail, Mark, MarkedText, Matrix, Prediction, Table, TaskContext
from autoft_token_classification.metrics import entities_of
from autoft_token_classification.schemes import Entity
from autoft_token_classification.sentences import Sentence

__all__ = ["KINDS", "error_kinds", "report"]

SHOWN_TAGS = 30
SHOWN_SENTENCES = 24
LONGEST = 400
"""Characters of a sentence that are shown."""

KINDS = ("right", "wrong boundary", "wrong type", "both wrong", "missed", "spurious")


def report(
    sentences: Sequence[Sentence],
    predictions: Sequence[Prediction],
    references: Sequence[Mapping[str, Any]],
    context: TaskContext,
) -> list[Detail]:
    """Return tables and marked sentences; with plain tags a confusion matrix stands for the kinds of errors."""
    said = [entities_of(prediction, context) for prediction in predictions]
    true = [entities_of(reference, context) for reference in references]
    names = _row_names(said, true, context)
    parts: list[Detail] = [_figures(said, true, names, context)]
    if context.facts["scheme"] == "plain":
        parts.append(_confusion(predictions, references, context))
    else:
        parts.append(_errors(said, true, names))
        if context.facts.get("loose"):
            parts.append(_loose(sentences, true, context))
    parts.append(_marked(sentences, said, true, predictions, context))
    return parts


def error_kinds(said: Iterable[Entity], true: Iterable[Entity]) -> list[tuple[str, Entity]]:
    """Return what became of each true entity, and each one that answers to none, as ``(kind, entity)``.

    After the MUC-5 and SemEval-2013 (task 9) classes: ``right``; ``wrong type`` at the right place; ``wrong boundary``,
    overlapping one of the type; ``both wrong``, overlapping one of another; ``missed``; ``spurious``, overlapping none
    that is not answered to already. Each entity is counted once.
    """
    said, true = set(said), set(true)
    found = [("right", entity) for entity in sorted(said & true, key=_place)]
    left_said, left_true = sorted(said - true, key=_place), sorted(true - said, key=_place)

    def pair(kind: str, fits: Callable[[Entity, Entity], bool]) -> None:
        for entity in list(left_true):
            answer = next((other for other in left_said if fits(entity, other)), None)
            if answer is not None:
                left_said.remove(answer)
                left_true.remove(entity)
                found.append((kind, entity))

    pair("wrong type", lambda a, b: (a.start, a.end) == (b.start, b.end))
    pair("wrong boundary", lambda a, b: a.label == b.label and _overlap(a, b))
    pair("both wrong", _overlap)
    found += [("missed", entity) for entity in left_true]
    return found + [("spurious", entity) for entity in left_said]


def _place(entity: Entity) -> tuple[int, int, str]:
    return entity.start, entity.end, entity.label


def _overlap(one: Entity, other: Entity) -> bool:
    return one.start < other.end and other.start < one.end


def _row_names(said: Sequence[set[Entity]], true: Sequence[set[Entity]], context: TaskContext) -> dict[str, str]:
    """Return the row of the tables that each type stands in: its own, or one for rare or unknown types together."""
    counts: Counter[str] = Counter(entity.label for parts in (said, true) for part in parts for entity in part)
    known = list(context.facts["types"])
    own = set(sorted(known, key=lambda name: (-counts[name], name))[:SHOWN_TAGS])
    rare, unknown = [name for name in known if name not in own], sorted(counts.keys() - set(known))
    return {
        **{name: name for name in known if name in own},
        **dict.fromkeys(rare, f"{len(rare)} rarer ones"),
        **dict.fromkeys(unknown, f"{len(unknown)} that no training row has"),
    }


def _figures(
    said: Sequence[set[Entity]], true: Sequence[set[Entity]], row_names: Mapping[str, str], context: TaskContext
) -> Table:
    right: Counter[str] = Counter(row_names[entity.label] for a, b in zip(said, true, strict=True) for entity in a & b)
    found: Counter[str] = Counter(row_names[entity.label] for part in said for entity in part)
    wanted: Counter[str] = Counter(row_names[entity.label] for part in true for entity in part)
    rows = [
        (
            name,
            _share(right[name], found[name]),
            _share(right[name], wanted[name]),
            _share(2 * right[name], found[name] + wanted[name]),
            wanted[name],
            found[name],
        )
        for name in dict.fromkeys(row_names.values())
    ]
    plain = context.facts["scheme"] == "plain"
    title = "Figures for each tag (plain tags: entity_f1 is the accuracy)" if plain else "Figures for each type"
    return Table(title, ("tag" if plain else "type", "precision", "recall", "F1", "true", "predicted"), tuple(rows))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _errors(said: Sequence[set[Entity]], true: Sequence[set[Entity]], row_names: Mapping[str, str]) -> Table:
    counts: dict[str, Counter[str]] = {}
    for pair in zip(said, true, strict=True):
        for kind, entity in error_kinds(*pair):
            counts.setdefault(row_names[entity.label], Counter())[kind] += 1
    total: Counter[str] = sum(counts.values(), Counter())
    named = [(name, counts[name]) for name in dict.fromkeys(row_names.values()) if name in counts]
    rows = [(name, *(each[kind] for kind in KINDS)) for name, each in [*named, ("all types", total)]]
    return Table("What became of entities; spurious ones by the type that was said", ("type", *KINDS), tuple(rows))


def _loose(sentences: Sequence[Sentence], true: Sequence[set[Entity]], context: TaskContext) -> Table:
    here = 0
    for sentence, entities in zip(sentences, true, strict=True):
        borders = {place for places in sentence.places or () for place in places}
        here += sum(entity.start not in borders or entity.end not in borders for entity in entities)
    rows = (
        ("training rows", int(context.facts["loose"])),
        ("test rows, where they count as missed", here),
    )
    return Table("Spans that begin or end within a word", ("where", "spans"), rows)


def _confusion(
    predictions: Sequence[Prediction], references: Sequence[Mapping[str, Any]], context: TaskContext
) -> Matrix:
    counts: Counter[tuple[str, str]] = Counter()
    for prediction, reference in zip(predictions, references, strict=True):
        counts.update(zip(reference["tags"], prediction["tags"], strict=True))
    names = list(context.labels)
    title = "Confusion matrix"
    if len(names) > SHOWN_TAGS:
        wrong: Counter[str] = Counter()
        for (true, said), count in counts.items():
            if true != said:
                wrong[true] += count
                wrong[said] += count
        most = {name for name, _ in sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_TAGS]}
        title = f"Confusion matrix of the {len(most)} most confused of {len(names)} tags"
        names = [name for name in names if name in most]
    return Matrix(title, tuple(names), tuple(tuple(float(counts[a, b]) for b in names) for a in names))


def _marked(
    sentences: Sequence[Sentence],
    said: Sequence[set[Entity]],
    true: Sequence[set[Entity]],
    predictions: Sequence[Prediction],
    context: TaskContext,
) -> MarkedText:
    """Return the sentences with the surest errors, then those in which most was missed."""
    order = [i for i in range(len(sentences)) if said[i] != true[i]]
    sure = {
        i: max((_score(predictions[i], entity, context) for entity in said[i] - true[i]), default=0.0) for i in order
    }
    order.sort(key=lambda i: (-sure[i], -len(true[i] - said[i]), i))
    rows = []
    for i in order[:SHOWN_SENTENCES]:
        text, places = sentences[i].shown
        right = set() if context.facts["scheme"] == "plain" else said[i] & true[i]
        verdicts: tuple[tuple[Literal["right", "wrong", "missed"], set[Entity]], ...] = (
            ("right", right),
            ("wrong", said[i] - true[i]),
            ("missed", true[i] - said[i]),
        )
        marks = []
        for verdict, entities in verdicts:
            for entity in entities:
                start, end = entity.start, entity.end
                if sentences[i].places is None or context.facts["scheme"] == "plain":
                    start, end = places[start][0], places[end - 1][1]
                marks.append(Mark(start, end, entity.label, verdict))
        marks.sort(key=lambda mark: (mark.start, mark.end, mark.verdict))
        heading = ", ".join(f"{len(entities)} {verdict}" for verdict, entities in verdicts if entities)
        rows.append((heading, *_cut(text, marks)))
    return MarkedText("Sentences with the surest errors", tuple(rows))


def _score(prediction: Prediction, entity: Entity, context: TaskContext) -> float:
    if context.facts["scheme"] == "plain":
        return float(prediction["scores"][entity.start])
    for answer in prediction["entities"]:
        if (answer["label"], answer["start"], answer["end"]) == entity:
            return float(answer["score"])
    return 0.0


def _cut(text: str, marks: Sequence[Mark]) -> tuple[str, tuple[Mark, ...]]:
    """Return the part of a long text around its first error, and the marks in it."""
    if len(text) <= LONGEST:
        return text, tuple(marks)
    first = next(mark.start for mark in marks if mark.verdict != "right")
    start = max(0, min(first - LONGEST // 4, len(text) - LONGEST))
    start = text.rfind(" ", 0, start) + 1 if " " in text[:start] else start
    end = start + LONGEST
    inside = [mark for mark in marks if start <= mark.start and mark.end <= end]
    return text[start:end], tuple(Mark(m.start - start, m.end - start, m.label, m.verdict) for m in inside)
