from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import classification_report, confusion_matrix
from sklearn.utils.class_weight import compute_class_weight

from autoft.contracts import Chart, Examples, Matrix, Table
from autoft.errors import DataError, ModelError

FILMS = [
    {"text": "the film was good", "label": "pos"},
    {"text": "the plot was bad and dull", "label": "neg"},
    {"text": "great", "label": "pos"},
    {"text": "not good but bad", "label": "neg"},
    {"text": "a great film", "label": "pos"},
]
TAGGED = [
    {"text": "one two", "label": ["one", "two"]},
    {"text": "three", "label": ["three"]},
    {"text": "a film", "label": []},
    {"text": "one", "label": ["one"]},
]
PAIRS = [
    {"text": "the film was good", "text_pair": "the film was bad", "label": 0},
    {"text": "a film", "text_pair": "one film", "label": 1},
]


def texts(rows):
    return [{name: value for name, value in row.items() if name != "label"} for row in rows]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b", "a", "b", "a"], ("a", "b")),
        ([10, 9, 1, 1], ("1", "9", "10")),
        ([True, False, True], ("false", "true")),
        ([1.0, 0.0, 1.0], ("0", "1")),
    ],
)
def test_labels_get_a_stable_order(task, labels, expected):
    facts = task.facts([{"text": "x", "label": label} for label in labels], {"problem": "auto"})
    assert tuple(facts["labels"]) == expected
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(
    ("labels", "options", "expected"),
    [
        (["a", ["b"]], {}, "mixes single labels and lists"),
        (["a", "a"], {}, "nothing to tell apart"),
        ([[], []], {}, "no training row has any label"),
        ([0.5, 1.0], {}, "holds fractions"),
        ([["a"], ["b"]], {"problem": "single"}, "task_options.problem is single"),
        ([f"id-{i}" for i in range(40)], {}, "map the right column"),
    ],
)
def test_labels_that_cannot_be_learned_are_told(task, labels, options, expected):
    rows = [{"text": "x", "label": label} for label in labels]
    with pytest.raises(DataError, match=expected):
        task.facts(rows, {"problem": "auto", **options})


def test_predictions_come_in_the_order_of_the_rows_whatever_the_batch(task, source, make_context):
    context = make_context(FILMS)
    model = task.load_model(source, context).eval()
    together = task.predict(model, texts(FILMS), context, batch_size=2)
    for row, found in zip(texts(FILMS), together, strict=True):
        (alone,) = task.predict(model, [row], context)
        assert found["label"] == alone["label"]
        assert found["scores"] == pytest.approx(alone["scores"], abs=1e-5)
        assert sum(found["scores"]) == pytest.approx(1)
        assert found["label"] == context.labels[int(np.argmax(found["scores"]))]
    assert task.predict(model, [], context) == []


def test_a_model_with_several_labels_gives_those_above_the_threshold(task, source, make_context):
    context = make_context(TAGGED, threshold=0.4)
    assert context.facts["problem"] == "multi"
    model = task.load_model(source, context).eval()
    assert model.config.problem_type == "multi_label_classification"
    for found in task.predict(model, texts(TAGGED), context):
        expected = [name for name, score in zip(context.labels, found["scores"], strict=True) if score >= 0.4]
        assert found["labels"] == expected


def test_a_row_without_a_label_is_answered_only_where_training_had_such_rows(task, source, make_context):
    full = [row for row in TAGGED if row["label"]]
    context = make_context(full, threshold=1.0)
    model = task.load_model(source, context).eval()
    for found in task.predict(model, texts(full), context):
        assert found["labels"] == [context.labels[int(np.argmax(found["scores"]))]]
    *_, linear = task.baselines(full, context)
    assert all(len(answer["labels"]) == 1 for answer in linear.predict(texts(full)))
    context = make_context(TAGGED, threshold=1.0)
    assert all(found["labels"] == [] for found in task.predict(model, texts(TAGGED), context))


def test_the_second_text_is_read(task, source, make_context):
    context = make_context(PAIRS)
    model = task.load_model(source, context).eval()
    one, other = task.predict(model, [texts(PAIRS)[0], {**texts(PAIRS)[0], "text_pair": "dull"}], context)
    assert one["scores"] != other["scores"]
    types = task.encode(PAIRS, context)[0]["token_type_ids"]
    assert types == [0] * 6 + [1] * 5


def test_the_loss_is_cross_entropy_with_balanced_weights(task, source, make_context):
    params = {"train.class_weights": "balanced"}
    context = make_context(FILMS, params)
    model = task.load_model(source, context).eval()
    batch = task.collate(task.encode(FILMS, context), context)
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    labels = [row["label"] for row in FILMS]
    weights = compute_class_weight("balanced", classes=np.array(["neg", "pos"]), y=labels)
    each = -torch.log_softmax(logits, -1)[range(5), batch["labels"]]
    share = torch.tensor(weights, dtype=torch.float32)[batch["labels"]]
    expected = (each * share).sum() / share.sum()
    assert task.loss(model, batch, context).item() == pytest.approx(expected.item(), rel=1e-5)


def test_label_smoothing_mixes_with_the_uniform_distribution(task, source, make_context):
    context = make_context(FILMS, {"train.label_smoothing": 0.2})
    model = task.load_model(source, context).eval()
    batch = task.collate(task.encode(FILMS, context), context)
    logs = torch.log_softmax(model(**{k: v for k, v in batch.items() if k != "labels"}).logits, -1)
    target = torch.full_like(logs, 0.1)
    target[range(5), batch["labels"]] = 0.9
    assert task.loss(model, batch, context).item() == pytest.approx(-(target * logs).sum(-1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("balanced", ["none", "balanced"])
def test_several_labels_learn_each_by_itself(balanced, task, source, make_context):
    context = make_context(TAGGED, {"train.class_weights": balanced})
    model = task.load_model(source, context).eval()
    batch = task.collate(task.encode(TAGGED, context), context)
    chance = torch.sigmoid(model(**{k: v for k, v in batch.items() if k != "labels"}).logits)
    # Labels in the order one, three, two: in 2, 1 and 1 of the 4 rows.
    weights = torch.tensor([2 / 2, 3 / 1, 3 / 1]) if balanced == "balanced" else torch.ones(3)
    truth = batch["labels"]
    expected = -(weights * truth * chance.log() + (1 - truth) * (1 - chance).log()).mean()
    assert task.loss(model, batch, context).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_model_knows_its_labels_and_the_dropout_of_the_trial(task, source, make_context):
    context = make_context(FILMS, {"train.dropout": 0.25})
    model = task.load_model(source, context)
    assert model.config.id2label == {0: "neg", 1: "pos"}
    dropouts = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert dropouts == {0.25}


def test_a_base_of_16_bits_is_trained_in_32(task, source, make_context, checkpoint, tmp_path):
    from transformers import AutoModel

    folder = tmp_path / "half"
    shutil.copytree(checkpoint, folder)
    AutoModel.from_pretrained(checkpoint).half().save_pretrained(folder)
    model = task.load_model(replace(source, path=str(folder)), make_context(FILMS))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("model.safetensors", b"\x10\x00", "damaged|cannot be loaded"),
        ("config.json", b"{", "the model cannot be loaded"),
        ("config.json", b'{"model_type": "bertt"}', "the model cannot be loaded"),
    ],
)
def test_a_damaged_model_is_told_with_its_place(
    file, content, expected, task, source, make_context, checkpoint, tmp_path
):
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match=expected) as caught:
        task.load_model(replace(source, path=str(folder)), make_context(FILMS))
    assert str(caught.value).startswith(str(folder))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": None}, "row 1: 'text' has to be a text, given nothing"),
        ({"text": 3}, "row 1: 'text' has to be a text, given int 3"),
        ({}, "row 1: 'text' has to be a text"),
        (
            {"text": "a", "label": "posi"},
            "row 1: the label 'posi' does not occur in the training rows; did you mean 'pos'",
        ),
    ],
)
def test_a_row_that_cannot_be_read_is_told_with_its_number(row, expected, task, make_context):
    with pytest.raises(DataError, match=expected):
        task.encode([row], make_context(FILMS))


def test_the_majority_class_answers_the_most_frequent_label(task, make_context):
    majority, linear = task.baselines(FILMS, make_context(FILMS))
    assert (majority.trivial, linear.trivial) == (True, False)
    assert [answer["label"] for answer in majority.predict(texts(FILMS))] == ["pos"] * 5
    assert majority.predict([{"text": "x"}])[0]["scores"] == [0.4, 0.6]


@pytest.mark.parametrize("rows", [FILMS, TAGGED, PAIRS])
def test_the_linear_baseline_learns_its_training_rows(rows, task, make_context):
    context = make_context(rows)
    *_, linear = task.baselines(rows, context)
    found = linear.predict(texts(rows))
    key = "labels" if context.facts["problem"] == "multi" else "label"
    right = sum(task.reference(row, context) == answer[key] for row, answer in zip(rows, found, strict=True))
    assert right >= len(rows) - 1
    assert all(len(answer["scores"]) == len(context.labels) for answer in found)


def test_the_report_shows_what_scikit_learn_says_of_each_class(task, make_context):
    context = make_context(FILMS)
    said = ["pos", "pos", "pos", "neg", "neg"]
    sure = [0.9, 0.7, 0.8, 0.6, 0.95]
    predictions = [
        {"label": label, "score": score, "scores": [1 - score, score] if label == "pos" else [score, 1 - score]}
        for label, score in zip(said, sure, strict=True)
    ]
    truth = [row["label"] for row in FILMS]
    table, matrix, _, errors = task.details(FILMS, predictions, context)
    expected = classification_report(truth, said, output_dict=True)
    assert isinstance(table, Table)
    for name, precision, recall, f1, rows in table.rows:
        assert (precision, recall, f1, rows) == pytest.approx(
            tuple(expected[name][key] for key in ("precision", "recall", "f1-score", "support"))
        )
    assert isinstance(matrix, Matrix)
    assert [list(row) for row in matrix.values] == confusion_matrix(truth, said, labels=["neg", "pos"]).tolist()
    assert isinstance(errors, Examples)
    assert [row[0] for row in errors.rows] == ["a great film", "the plot was bad and dull"], "the surest first"


def test_scores_stand_against_how_often_they_are_right_as_scikit_learn_has_it(task, make_context):
    rng = random.Random(0)
    scores = [rng.uniform(0.5, 1.0) for _ in range(400)] + [0.5, 0.6, 0.7, 1.0]
    # A model that is too sure by a tenth.
    right = [rng.random() < score - 0.1 for score in scores]
    rows = [{"text": "x", "label": "pos"}] * len(scores)
    predictions = [
        {"label": "pos" if hit else "neg", "score": score, "scores": [score, score]}
        for hit, score in zip(right, scores, strict=True)
    ]
    chart = task.details(rows, predictions, make_context(FILMS))[2]
    assert isinstance(chart, Chart)
    (line,) = chart.series
    often, sure = calibration_curve(right, scores, n_bins=10)
    assert line.x == pytest.approx(sure)
    assert line.y == pytest.approx(often)
    parts = [[i for i, s in enumerate(scores) if low < s * 10 <= low + 1] for low in range(10)]
    gaps = [abs(sum(right[i] - scores[i] for i in part)) for part in parts]
    assert f"calibration error {sum(gaps) / len(scores):.3f}." in chart.caption


def test_a_matrix_of_many_labels_shows_the_most_confused(task):
    from autoft.contracts import TaskContext

    names = [f"class {i:03d}" for i in range(50)]
    rows = [{"text": "x", "label": name} for name in names for _ in range(2)]
    facts = task.facts(rows, {"problem": "auto"})
    said = [names[1] if row["label"] == names[0] else row["label"] for row in rows]
    predictions = [{"label": label, "score": 0.5, "scores": [0.5] * 50} for label in said]
    context = TaskContext(facts=facts, options={}, params={}, max_length=8)
    matrix = task.details(rows, predictions, context)[1]
    assert len(matrix.labels) == 30
    assert matrix.title == "Confusion matrix of the 30 most confused of 50 labels"
    assert {names[0], names[1]} <= set(matrix.labels)
    assert matrix.values[matrix.labels.index(names[0])][matrix.labels.index(names[1])] == 2


def test_export_traces_the_inputs_that_prediction_gives(task, make_context):
    for rows in (FILMS, PAIRS):
        context = make_context(rows)
        spec = task.export_inputs(context)
        given = task.collate(
            [{k: v for k, v in f.items() if k != "labels"} for f in task.encode(rows, context)], context
        )
        assert set(spec.inputs) == set(given) == set(spec.dynamic)
        assert all(min(value.shape) >= 2 for value in spec.inputs.values())


def test_a_tokenizer_without_padding_pads_with_its_end(task, source, make_context, checkpoint, tmp_path):
    folder = tmp_path / "no-pad"
    shutil.copytree(checkpoint, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["pad_token"], config["eos_token"] = None, "[SEP]"
    path.write_text(json.dumps(config))
    processor = task.load_processor(replace(source, path=str(folder)), make_context(FILMS))
    assert processor.pad_token == "[SEP]"
