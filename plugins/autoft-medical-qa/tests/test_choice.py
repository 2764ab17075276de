"""Multiple choice: the loss over a row's options, any number of them, baselines, and a whole search."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from autoft_medical_qa import choice as module
from autoft_medical_qa.choice import MedicalChoice
from transformers import AutoTokenizer

import autoft
from autoft.contracts import Examples, Table
from autoft.errors import DataError

ROWS = [
    {"question": "which bone is good", "options": ["the heart", "the bone"], "answer": "B"},
    {"question": "what is in the blood", "options": ["cell", "fever", "vitamin c", "nothing"], "answer": "A"},
    {"question": "which organ", "options": ["cold", "the liver", "a study of the cold"], "answer": "B"},
]


@pytest.fixture
def task():
    return MedicalChoice()


def inputs(rows):
    return [{name: value for name, value in row.items() if name != "answer"} for row in rows]


def logits_one_by_one(task, model, rows, context):
    """The logit of each pair, computed by itself."""
    found = []
    for row in rows:
        pairs = [context.processor(row["question"], option, return_tensors="pt") for option in row["options"]]
        with torch.no_grad():
            found.append([model(**pair).logits.item() for pair in pairs])
    return found


def test_the_softmax_is_over_the_options_of_each_row(task, source, make_context):
    context = make_context(task, ROWS)
    model = task.load_model(source, context).eval()
    assert model.config.num_labels == 1
    found = task.predict(model, inputs(ROWS), context, batch_size=2)
    for row, prediction, logits in zip(ROWS, found, logits_one_by_one(task, model, ROWS, context), strict=True):
        assert prediction["scores"] == pytest.approx(torch.softmax(torch.tensor(logits), 0).tolist(), abs=1e-5)
        top = int(np.argmax(logits))
        assert prediction["label"] == "ABCD"[top]
        assert prediction["answer"] == row["options"][top]
        assert prediction["confidence"] == max(prediction["scores"])
        assert prediction["abstained"] is False


def test_of_a_long_vignette_the_question_at_its_end_is_read(task, source, make_context, tmp_path):
    row = {"question": f"{'the heart is good ' * 30}which bone", "options": ["the liver", "cold"], "answer": "A"}
    context = make_context(task, [row])
    (feature,) = task.encode(inputs([row]), context)
    context.processor.save_pretrained(tmp_path)
    # Other programs read as much of it by the tokenizer's own files.
    other = AutoTokenizer.from_pretrained(tmp_path)(
        [row["question"]] * 2, row["options"], truncation=True, max_length=64
    )
    for ids, option, ids_there in zip(feature["input_ids"], row["options"], other.input_ids, strict=True):
        assert len(ids) == 64
        assert ids == ids_there
        assert context.processor.decode(ids).replace(" ", "").endswith(f"whichbone[SEP]{option}[SEP]".replace(" ", ""))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_cross_entropy_over_the_options_of_each_row(smoothing, task, source, make_context):
    context = make_context(task, ROWS, {"train.label_smoothing": smoothing})
    model = task.load_model(source, context).eval()
    batch = task.collate(task.encode(ROWS, context), context)
    each = [
        torch.nn.functional.cross_entropy(
            torch.tensor([logits]), torch.tensor([place]), label_smoothing=smoothing
        ).item()
        for logits, place in zip(logits_one_by_one(task, model, ROWS, context), [1, 0, 1], strict=True)
    ]
    assert task.loss(model, batch, context).item() == pytest.approx(np.mean(each), rel=1e-5)


def test_gradients_reach_the_model_where_rows_differ_in_their_options(task, source, make_context):
    context = make_context(task, ROWS, {"train.label_smoothing": 0.1})
    model = task.load_model(source, context)
    loss = task.loss(model, task.collate(task.encode(ROWS, context), context), context)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.classifier.weight.grad.abs().sum() > 0


def test_the_order_of_the_options_makes_no_difference(task, source, make_context):
    context = make_context(task, ROWS)
    model = task.load_model(source, context).eval()
    for row, found in zip(inputs(ROWS), task.predict(model, inputs(ROWS), context), strict=True):
        turned = {**row, "options": row["options"][::-1]}
        (other,) = task.predict(model, [turned], context)
        assert other["scores"][::-1] == pytest.approx(found["scores"], abs=1e-5)
        assert other["answer"] == found["answer"]


def test_features_hold_a_list_of_tokens_for_each_option(task, make_context):
    context = make_context(task, ROWS)
    features = task.encode(ROWS, context)
    assert [len(feature["input_ids"]) for feature in features] == [2, 4, 3]
    assert [feature["labels"] for feature in features] == [1, 0, 1]
    assert task.length(features[0]) == sum(map(len, features[0]["input_ids"])) == 18
    batch = task.collate(features, context)
    assert batch["input_ids"].shape[0] == 9
    assert batch["options"].tolist() == [2, 4, 3]
    assert "labels" not in task.encode(inputs(ROWS), context)[0]


def test_a_question_with_more_options_than_any_in_training_is_answered_and_scored(task, source, make_context, catalog):
    context = make_context(task, ROWS)
    model = task.load_model(source, context).eval()
    row = {"question": "which", "options": [f"{word} cell" for word in "abcdefg"], "answer": "A"}
    (found,) = task.predict(model, inputs([row]), context)
    assert len(found["scores"]) == 7
    metrics = catalog.metrics_of(task)
    # A letter that no reference has, and training has not seen.
    said = [{**found, "label": "G"}]
    assert metrics["accuracy"].score(said, [task.reference(row, context)], context) == 0


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "which", "options": ["a"]}, "row 1: needs from 2 to 26 options"),
        ({"question": " ", "options": ["a", "b"]}, "row 1: 'question' has to be a text, given str ' '"),
        ({"options": ["a", "b"]}, "row 1: 'question' has to be a text, given nothing"),
        ({"question": "which", "options": ["a", "b"], "answer": "C"}, "row 1: 'answer' names no option"),
    ],
)
def test_a_row_that_cannot_be_read_is_told_with_its_number(row, expected, task, make_context):
    with pytest.raises(DataError, match=expected):
        task.encode([row], make_context(task, ROWS))
    with pytest.raises(DataError, match=expected.replace("row 1", "row 4").replace("names no option", "")):
        task.facts([*ROWS, {"answer": "A", **row}], {})


def test_the_most_frequent_place_is_learned_and_does_not_look_at_the_question(task, make_context):
    context = make_context(task, ROWS)
    constant, similar = task.baselines(ROWS, context)
    assert (constant.trivial, similar.trivial) == (True, False)
    answers = constant.predict(inputs(ROWS))
    assert [answer["label"] for answer in answers] == ["B", "B", "B"]
    assert answers[0]["scores"] == pytest.approx([2 / 5, 3 / 5])
    assert [answer["confidence"] for answer in answers] == [max(answer["scores"]) for answer in answers]


def test_the_most_similar_option_shares_parts_of_words_with_the_question(task, make_context):
    rows = [
        {"question": "what is pneumonitis", "options": ["a fracture", "a kind of pneumonia"], "answer": "B"},
        {"question": "what is carditis", "options": ["a disease of the heart, cardiac", "a bone"], "answer": "A"},
        {"question": "zzz", "options": ["qqq", "www", "yyy"], "answer": "A"},
    ]
    _, similar = task.baselines(rows, make_context(task, rows))
    found = similar.predict(inputs(rows))
    assert [answer["label"] for answer in found[:2]] == ["B", "A"]
    assert found[2]["scores"] == pytest.approx([1 / 3] * 3)


def test_the_report_shows_hits_by_letter_by_number_of_options_and_the_surest_errors(task, make_context):
    context = make_context(task, ROWS)
    said = [("B", [0.3, 0.7]), ("C", [0.1, 0.1, 0.7, 0.1]), ("A", [0.9, 0.05, 0.05])]
    predictions = [
        {
            "label": label,
            "answer": row["options"]["ABCD".index(label)],
            "scores": scores,
            "confidence": max(scores),
            "abstained": False,
        }
        for row, (label, scores) in zip(ROWS, said, strict=True)
    ]
    letters, sizes, errors, *_ = task.details(ROWS, predictions, context)
    assert isinstance(letters, Table)
    assert letters.rows == (("A", 1, 1, 0.0, 0.0), ("B", 2, 1, 0.5, 1.0), ("C", 0, 1, None, 0.0))
    assert sizes.rows == ((2, 1, 1.0, 1 / 2), (3, 1, 0.0, 1 / 3), (4, 1, 0.0, 1 / 4))
    assert isinstance(errors, Examples)
    assert errors.rows[0] == ("which organ", "the liver", "cold", 0.9)
    assert len(errors.rows) == 2


def test_a_search_learns_calibrates_abstains_and_reports(task, checkpoint, tmp_path):
    rng = random.Random(0)
    rows = []
    for _ in range(260):
        # The right option is good, but in one of five rows, where it is bad.
        right, wrong = ("good", "bad") if rng.random() < 0.8 else ("bad", "good")
        options = [f"a {wrong} {rng.choice(['heart', 'liver', 'bone'])}" for _ in range(rng.choice([1, 2]))]
        place = rng.randint(0, len(options))
        options.insert(place, f"a {right} {rng.choice(['heart', 'liver', 'bone'])}")
        words = rng.choices(["what", "which", "organ", "cell", "blood", "fever", "cold", "study"], k=5)
        rows.append({"stem": " ".join(words), "choices": options, "answer": "ABC"[place], "topic": words[0]})
    data = tmp_path / "questions.json"
    data.write_text(json.dumps(rows))
    run = autoft.search(
        {
            "task": "medical-qa-choice",
            "model": str(checkpoint),
            "data": {"train": str(data), "validation_size": 50, "test_size": 60},
            "budget": {"time": "5m", "trials": 1},
            "effort": "quick",
            "compress": ["none"],
            "task_options": {"abstain_coverage": 0.8},
            "space": {"full.learning_rate": 3e-3, "train.epochs": 4, "train.batch_size": 16},
            "search": {"finalist_seeds": 0},
        },
        run=tmp_path / "run",
    )
    test = run.summary["best"]["test"]
    assert test["accuracy"]["value"] > 0.65
    trivial = run.summary["baselines"]["trivial"]["test"]
    assert trivial["accuracy"]["value"] < 0.6
    assert test["aurc"]["value"] < trivial["aurc"]["value"]
    point = run.record.final.operating_point
    assert point["coverage"] >= 0.8
    report = run.report.read_text()
    assert "Not for clinical use" in report
    for title in ("Reliability", "Risk and coverage", "Abstention: answers from a confidence of", "Figures by subject"):
        assert title in report
    assert "Not for clinical use" in (run.path / "best" / "README.md").read_text()
    found = run.best.predict([{"question": "what cold", "options": ["a good bone", "a bad bone"]}])[0]
    assert found["answer"] == "a good bone"
    assert found["abstained"] == (found["confidence"] < point["threshold"])


def test_models_together_may_choose_an_option_that_none_chose_alone(task, source, make_context):
    context = make_context(task, ROWS)
    choices = module.read_choices(ROWS[1], 0)
    chances = ([0.5, 0.1, 0.4, 0.0], [0.1, 0.5, 0.4, 0.0])
    said = [[{"scores": row, "choices": choices}] for row in chances]
    assert [task.combine([one], context)[0]["label"] for one in said] == ["A", "B"]
    (answer,) = task.combine(said, context)
    assert (answer["label"], answer["answer"]) == ("C", "vitamin c")
    assert answer["scores"] == pytest.approx([0.3, 0.3, 0.4, 0.0])
    assert answer["confidence"] == pytest.approx(0.4)
