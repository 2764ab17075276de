from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.contracts import Column, TaskCard, TaskContext
from autoft.data.prepared import prepare_data
from autoft.errors import DataError
from autoft.evaluation import slice_figures
from autoft.recipe import DataSection
from autoft.slices import FEWEST, slices

CARD = TaskCard(
    name="t",
    summary="",
    columns=(
        Column("text", "text", ""),
        Column("tokens", "tokens", "", required=False),
        Column("label", "label", "", target=True),
    ),
    metrics=("accuracy",),
    architecture="sequence-classification",
)


@given(st.lists(st.tuples(st.text(max_size=40), st.sampled_from("abc")), max_size=80))
def test_lengths_part_all_rows_and_labels_hold_their_own(rows):
    given_rows = [{"text": text, "label": label} for text, label in rows]
    found = slices(CARD, given_rows)
    lengths = [part for part in found if part.by == "length"]
    seen = [i for part in lengths for i in part.rows]
    assert len(seen) == len(set(seen)), "a row has one length"
    for part in lengths:
        low, _, high = part.name.removesuffix(" characters").partition(" to ")
        assert all(int(low) <= len(rows[i][0]) <= int(high or low) for i in part.rows)
        assert len(part.rows) >= FEWEST
    labels = {part.name: part.rows for part in found if part.by == "label"}
    counts = Counter(label for _, label in rows)
    assert labels == {} or set(labels) == {label for label, count in counts.items() if count >= FEWEST}
    for name, members in labels.items():
        assert list(members) == [i for i, (_, label) in enumerate(rows) if label == name]


def test_a_row_with_several_labels_is_in_the_part_of_each():
    labels = [["joy"], ["joy", "love"], ["love"], [], ["joy", "fear"]] * 5
    parts = {part.name: part.rows for part in slices(CARD, [{"text": "x", "label": one} for one in labels])}
    assert set(parts) == {"joy", "love", "fear"}
    for name, members in parts.items():
        assert list(members) == [i for i, own in enumerate(labels) if name in own]


def test_groups_by_length_have_about_as_many_rows_each():
    rows = [{"text": "x" * (1 + i), "label": "a"} for i in range(100)]
    found = slices(CARD, rows)
    assert [(part.name, len(part.rows)) for part in found] == [
        ("1 to 25 characters", 25),
        ("26 to 50 characters", 25),
        ("51 to 75 characters", 25),
        ("76 to 100 characters", 25),
    ]


def test_tokens_count_with_the_spaces_between_them():
    rows = [{"tokens": ["ab"] * (1 + i % 20), "label": "a"} for i in range(100)]
    found = slices(CARD, rows)
    assert found[0].name.startswith("2 to ")
    assert found[-1].name.endswith(f" to {20 * 2 + 19} characters")


def test_where_rows_come_from_parts_them_too():
    rows = [{"text": "x", "label": "a", "slice:from": "web" if i % 3 else "mail"} for i in range(30)]
    rows[0]["slice:from"] = None
    assert {(part.by, part.name): len(part.rows) for part in slices(CARD, rows)} == {
        ("from", "web"): 20,
        ("from", "mail"): 9,
    }


def prepared(tmp_path, catalog, **data):
    section = DataSection(train=str(tmp_path / "train.jsonl"), validation_size=20, test_size=40, **data)
    return prepare_data(
        section, catalog.task("text-classification"), {"problem": "auto"}, 0, tmp_path / "data", tmp_path
    )


@pytest.fixture
def sourced(tmp_path) -> Path:
    lines = [
        {"text": f"text {i}", "label": "ab"[i % 2], "source": ["web", "mail"][i % 4 == 0], "n": i} for i in range(200)
    ]
    lines[7]["text"] = None
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return tmp_path


def test_a_column_that_the_recipe_names_comes_along_and_stays_with_its_row(sourced, catalog):
    found = prepared(sourced, catalog, slices=["source"])
    task = catalog.task("text-classification")
    for row in found.test[:]:
        number = int(row["text"].split()[1])
        assert row["slice:source"] == ["web", "mail"][number % 4 == 0]
    assert "source" not in found.columns
    assert set(found.test.inputs(task.card)[0]) == {"text"}
    parts = {(part.by, part.name): len(part.rows) for part in slices(task.card, found.test[:])}
    assert parts["source", "web"] + parts["source", "mail"] == 40


def test_the_same_rows_are_repeats_whatever_their_source(sourced, catalog):
    lines = (sourced / "train.jsonl").read_text().splitlines()
    again = json.dumps({**json.loads(lines[5]), "source": "elsewhere"})
    (sourced / "train.jsonl").write_text("\n".join([*lines, again]) + "\n", encoding="utf-8")
    notes = " ".join(prepared(sourced, catalog, slices=["source"]).warnings)
    assert "1 of 200 rows repeat the inputs of an earlier row" in notes
    assert "different targets" not in notes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sorce", r"data.slices: data.train: unknown column 'sorce'. Did you mean 'source'\?"),
        ("label", "is read as 'label' already"),
    ],
)
def test_a_column_that_is_not_there_or_taken_is_told(sourced, catalog, name, message):
    with pytest.raises(DataError, match=message):
        prepared(sourced, catalog, slices=[name])


def test_rows_of_all_one_kind_are_not_parted():
    assert slices(CARD, [{"text": "same", "label": "a"} for _ in range(50)]) == []
    assert slices(CARD, []) == []


def test_figures_are_those_of_the_rows_alone(catalog):
    task = catalog.task("text-classification")
    metrics = catalog.metrics_of(task)
    rng = np.random.default_rng(0)
    rows = [{"text": "x" * int(n), "label": str(n % 2)} for n in rng.integers(1, 60, 200)]
    context = TaskContext(facts={"labels": ["0", "1"], "problem": "single"}, options={}, params={}, max_length=8)
    answers = rng.integers(0, 2, 200).tolist()
    predictions = [{"label": str(a), "scores": [1.0 - a, float(a)], "score": 1.0} for a in answers]
    refs = [task.reference(row, context) for row in rows]
    found = slice_figures(task, metrics, "f1_macro", rows, predictions, refs, context)
    parts = {(part.by, part.name): part.rows for part in slices(task.card, rows)}
    assert {(one["by"], one["name"]) for one in found} == set(parts)
    for one in found:
        members = parts[one["by"], one["name"]]
        right = sum(predictions[i]["label"] == rows[i]["label"] for i in members) / len(members)
        assert one["figure"]["n"] == len(members)
        if one["by"] == "label":
            # A mean over labels says nothing of one of them.
            assert one["metric"] == "accuracy"
            assert one["figure"]["value"] == pytest.approx(right)
        else:
            assert one["metric"] == "f1_macro"
        assert one["figure"]["low"] <= one["figure"]["value"] <= one["figure"]["high"]
