"""Splits of a run and its folds against pandas, scikit-learn and brute force."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import math
import random
import re
import tempfile
from collections import Counter
from fractions import Fraction
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.contracts import Column, Task, TaskCard, TaskContext
from autoft.data.features import encoded
from autoft.data.prepared import decide_rows, open_data, prepare_data, prepare_folds, rows_decided
from autoft.data.rows import Split
from autoft.errors import DataError, PluginError, RunFolderError
from autoft.recipe import DataSection

CARD = TaskCard(
    name="tickets",
    summary="a queue for a ticket",
    columns=(
        Column("text", "text", "what the customer wrote", guesses=("text", "sentence", "body")),
        Column("note", "text", "what the agent noted", required=False, guesses=("note", "comment")),
        Column("label", "label", "the queue", target=True, guesses=("label", "queue", "class")),
    ),
    metrics=("accuracy",),
    architecture="sequence-classification",
)


class Tickets(Task):
    """Texts with a label; counts how often it is asked to do something."""

    card = CARD

    def __init__(self):
        self.encoded_rows = 0
        self.facts_calls = 0

    def demo_rows(self):
        return [{"text": "a", "label": "x"}]

    def load_model(self, source, context):
        raise AssertionError("no test loads a model")

    def predict(self, model, rows, context, batch_size=32):
        raise AssertionError("no test predicts")

    def reference(self, row, context):
        return row["label"]

    def facts(self, rows, options):
        self.facts_calls += 1
        return {"labels": sorted({str(row["label"]) for row in rows})}

    def stratum(self, row):
        return str(row["label"])

    def encode(self, rows, context):
        self.encoded_rows += len(rows)
        return [features_of(row, context) for row in rows]


def features_of(row, context):
    """What a tokenizer might give: numbers of the words up to the maximal length, and the place of the label."""
    ids = [len(word) * context.params.get("task.factor", 1) for word in row["text"].split()][: context.max_length]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": context.labels.index(str(row["label"]))}


class Unstratified(Tickets):
    def stratum(self, row):
        return None


def write_csv(path: Path, rows, head=("text", "label"), delimiter=",") -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(head)
        writer.writerows(rows)
    return path


TOLD: list[str] = []
"""What was said of damages; since it was last emptied."""


def prepare(folder: Path, task: Task | None = None, seed=0, options=None, out="data", expected="", **section):
    """Prepare the data of a recipe in ``folder``."""
    where, known = folder / out, {"note": TOLD.append, "expected": expected}
    return prepare_data(DataSection(**section), task or Tickets(), options or {}, seed, where, folder, **known)


def tickets(count: int, seed=0, labels="aaabbc") -> list[tuple[str, str]]:
    """Rows with distinct texts, of random length."""
    rng = random.Random(seed)
    return [(f"ticket {i} " + "word " * rng.randint(0, 9) + "end", rng.choice(labels)) for i in range(count)]


def pairs(split: Split) -> list[tuple[str, str]]:
    return [(row["text"], str(row["label"])) for row in split]


def every(prepared) -> list[tuple[str, str]]:
    return pairs(prepared.train) + pairs(prepared.validation) + pairs(prepared.test)


def prepare_fault(folder: Path, **section) -> str:
    with pytest.raises(DataError) as caught:
        prepare(folder, **section)
    return str(caught.value)


@pytest.mark.parametrize("sizes", [{}, {"validation_size": 0.2, "test_size": 30}, {"validation_size": 7}])
def test_each_row_is_in_one_split_and_none_is_lost(sizes, tmp_path):
    rows = tickets(200)
    write_csv(tmp_path / "r.csv", rows)
    prepared = prepare(tmp_path, train="r.csv", **sizes)
    assert sorted(every(prepared)) == sorted(rows)
    expected = {"validation": {}, "test": {}}
    for name in expected:
        size = sizes.get(f"{name}_size", 0.15)
        expected[name] = size if isinstance(size, int) else round(200 * size)
    assert (len(prepared.validation), len(prepared.test)) == (expected["validation"], expected["test"])
    assert prepared.warnings == ()
    assert prepared.columns == {"text": "text", "label": "label"}
    assert prepared.facts == {"labels": ["a", "b", "c"]}


def test_cut_splits_are_at_most_so_large_by_default(tmp_path):
    rows = [(f"t{i}", "ab"[i % 2]) for i in range(15_000)]
    write_csv(tmp_path / "r.csv", rows)
    prepared = prepare(tmp_path, train="r.csv")
    assert (len(prepared.train), len(prepared.validation), len(prepared.test)) == (12_000, 1000, 2000)


def largest_remainder(counts: dict[str, int], size: int) -> list[dict[str, int]]:
    """Return all fair shares of ``size`` by exact arithmetic: floors, then one more for the largest remainders."""
    total = sum(counts.values())
    quotas = {name: Fraction(count * size, total) for name, count in counts.items()}
    floors = {name: math.floor(quota) for name, quota in quotas.items()}
    seats = size - sum(floors.values())
    remainders = {name: quotas[name] - floors[name] for name in counts}
    cutoff = sorted(remainders.values(), reverse=True)[seats - 1] if seats else Fraction(1)
    sure = [name for name in counts if remainders[name] > cutoff]
    tied = [name for name in counts if remainders[name] == cutoff]
    return [
        {name: floors[name] + (name in sure) + (name in chosen) for name in counts}
        for chosen in combinations(tied, seats - len(sure) if seats else 0)
    ]


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(8, 60), min_size=2, max_size=5),
    share=st.floats(0.1, 0.45),
    seed=st.integers(0, 5),
)
def test_a_cut_holds_each_class_in_proportion(counts, share, seed):
    of_class = dict(zip("abcde", counts, strict=False))
    rows = [(f"{name}{i}", name) for name, count in of_class.items() for i in range(count)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_csv(folder / "r.csv", rows)
        write_csv(folder / "test.csv", [("other", "a")])
        prepared = prepare(folder, seed=seed, train="r.csv", test="test.csv", validation_size=share)
        assert pairs(prepared.test) == [("other", "a")]
        got = Counter(label for _, label in pairs(prepared.validation))
        assert {name: got[name] for name in of_class} in largest_remainder(of_class, round(len(rows) * share))
        assert sorted(pairs(prepared.train) + pairs(prepared.validation)) == sorted(rows)


def test_training_keeps_a_row_of_each_class(tmp_path):
    rows = [(f"t{i}", f"rare{i}") for i in range(5)] + [(f"u{i}", "often") for i in range(35)]
    write_csv(tmp_path / "r.csv", rows)
    for seed in range(3):
        prepared = prepare(tmp_path, seed=seed, out=f"d{seed}", train="r.csv", validation_size=0.4, test_size=0.4)
        assert {label for _, label in pairs(prepared.train)} == {"often", *(f"rare{i}" for i in range(5))}


def test_without_strata_the_cut_is_still_of_that_size(tmp_path):
    rows = tickets(100)
    write_csv(tmp_path / "r.csv", rows)
    prepared = prepare(tmp_path, Unstratified(), train="r.csv", validation_size=10, test_size=0.3)
    assert [len(prepared.train), len(prepared.validation), len(prepared.test)] == [60, 10, 30]
    assert sorted(every(prepared)) == sorted(rows)


def test_splits_follow_from_the_seed(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(120))
    first, again, other = (
        prepare(tmp_path, seed=seed, out=out, train="r.csv") for seed, out in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert every(first) == every(again)
    assert first.fingerprint == again.fingerprint
    assert set(pairs(first.test)) != set(pairs(other.test))
    assert first.fingerprint != other.fingerprint


@pytest.mark.parametrize("given", ["validation", "test"])
def test_the_split_that_is_not_given_is_cut(given, tmp_path):
    rows, held_out = tickets(100), [(f"held {i}", "a") for i in range(12)]
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "held.csv", held_out)
    prepared = prepare(tmp_path, train="train.csv", **{given: "held.csv"})
    cut = prepared.test if given == "validation" else prepared.validation
    assert sorted(pairs(getattr(prepared, given))) == sorted(held_out)
    assert len(cut) == 15
    assert sorted(pairs(prepared.train) + pairs(cut)) == sorted(rows)


def test_all_splits_given_keep_their_rows(tmp_path):
    parts = {name: [(f"{name} {i}", "ab"[i % 2]) for i in range(20)] for name in ("train", "validation", "test")}
    for name, rows in parts.items():
        write_csv(tmp_path / f"{name}.csv", rows)
    prepared = prepare(tmp_path, **{name: f"{name}.csv" for name in parts})
    for name, rows in parts.items():
        assert sorted(pairs(getattr(prepared, name))) == sorted(rows)
        assert pairs(getattr(prepared, name)) != rows, "sorted files have to be shuffled"


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"test_size": 5000}, ["data.train: has 20 rows", "5000 for test", "data.test_size"]),
        ({"test_size": 0.5, "validation_size": 0.5}, ["10 for test and 10 for validation"]),
        ({"validation_size": 0.01}, ["data.validation: is absent, and 1 % of the 20 rows", "less than one row"]),
    ],
)
def test_a_cut_that_cannot_be_is_told(sizes, words, tmp_path):
    write_csv(tmp_path / "r.csv", tickets(20))
    message = prepare_fault(tmp_path, train="r.csv", **sizes)
    assert [word for word in words if word not in message] == [], message


def test_a_limit_applies_to_the_training_source_before_it_is_cut(tmp_path):
    rows = tickets(300)
    write_csv(tmp_path / "r.csv", rows)
    prepared = prepare(tmp_path, train="r.csv", limit=100, validation_size=0.1, test_size=20)
    assert [len(prepared.train), len(prepared.validation), len(prepared.test)] == [70, 10, 20]
    assert len(set(every(prepared)) & set(rows)) == 100
    assert not set(every(prepared)) <= set(rows[:100]), "drawn at random, not the first"


def test_a_limit_for_each_split(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(300))
    held = [(f"held {i}", "a") for i in range(50)]
    write_csv(tmp_path / "v.csv", held)
    prepared = prepare(
        tmp_path, train="r.csv", validation="v.csv", test_size=0.5, limit={"train": 100, "validation": 30, "test": 5}
    )
    assert [len(prepared.train), len(prepared.validation), len(prepared.test)] == [50, 30, 5]
    assert set(pairs(prepared.validation)) < set(held)


def test_a_limit_above_the_rows_changes_nothing(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(40))
    free = prepare(tmp_path, train="r.csv", out="a")
    assert every(prepare(tmp_path, train="r.csv", limit=40, out="b")) == every(free)


def test_a_test_split_with_several_references_goes_with_one_reference_a_row(tmp_path):
    """Data sets as DialogSum have one summary for each training row, and three for each test row."""
    for name, rows in (
        ("train.jsonl", [{"text": f"t{i}", "label": f"s{i}"} for i in range(8)]),
        ("test.jsonl", [{"text": f"u{i}", "label": [f"s{i}", "other"]} for i in range(3)]),
    ):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    several = Column("label", "texts", "a summary, or several", target=True)
    card = dataclasses.replace(CARD, columns=(Column("text", "text", "a text"), several))
    task = type("Several", (Tickets,), {"card": card, "facts": lambda self, rows, options: {}})()
    prepared = prepare(tmp_path, task=task, train="train.jsonl", test="test.jsonl", validation_size=2)
    assert {row["label"][0] for row in prepared.train} <= {f"s{i}" for i in range(8)}
    assert sorted(row["label"] for row in prepared.test) == [[f"s{i}", "other"] for i in range(3)]
    with pytest.raises(DataError, match="one kind of value"):
        prepare(tmp_path, train="train.jsonl", test="test.jsonl", validation_size=2, out="other")


def test_features_of_a_real_task_train_the_model_s_tokenizer(tmp_path, tiny_model, reviews, catalog):
    """Text classification with a tokenizer: prepared, encoded, memory-mapped, equal to encoding directly."""
    from transformers import AutoTokenizer

    task = catalog.task("text-classification")
    options = {option.name: option.default for option in task.card.options}
    prepared = prepare_data(DataSection(train=str(reviews)), task, options, 0, tmp_path / "data", tmp_path)
    frame = pd.read_csv(reviews).drop_duplicates("text")
    assert sorted(every(prepared)) == sorted(zip(frame["text"], frame["label"], strict=True))
    assert prepared.facts["labels"] == ["negative", "positive"]
    train = Counter(label for _, label in pairs(prepared.train))
    assert prepared.facts["counts"] == {"negative": train["negative"], "positive": train["positive"]}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    where = TaskContext(prepared.facts, options, {}, max_length=8, processor=tokenizer)
    got = encoded(prepared.train, task, where, tmp_path / "cache", "p")
    for row, feature in zip(prepared.train, got, strict=True):
        direct = dict(tokenizer(row["text"], truncation=True, max_length=8))
        assert feature == {**direct, "labels": int(row["label"] == "positive")}


# ----------------------------------------------------------------------------------------- duplicates, leaks


def repeated_rows(seed: int) -> dict[str, list[tuple[str, str, str]]]:
    """Rows of few texts and notes, so that inputs repeat inside of splits and between them."""
    rng = random.Random(seed)
    pick = lambda: (f"t{rng.randrange(25)}", rng.choice(["", "n"]), rng.choice("ab"))  # noqa: E731
    return {name: [pick() for _ in range(count)] for name, count in (("train", 120), ("validation", 15), ("test", 14))}


@pytest.mark.parametrize("seed", range(4))
def test_duplicates_and_leaks_are_taken_out_and_counted(seed, tmp_path):
    parts = repeated_rows(seed)
    for name, rows in parts.items():
        write_csv(tmp_path / f"{name}.csv", rows, ("text", "note", "label"))
    prepared = prepare(tmp_path, **{name: f"{name}.csv" for name in parts})

    held = {name: {row[:2] for row in parts[name]} for name in ("validation", "test")}
    firsts: dict[tuple[str, str], str] = {}
    for text, note, label in parts["train"]:
        firsts.setdefault((text, note), label)
    in_validation = [inputs for inputs in firsts if inputs in held["validation"]]
    in_test = [inputs for inputs in firsts if inputs in held["test"] - held["validation"]]
    labels_of: dict[tuple[str, str], set[str]] = {}
    for text, note, label in parts["train"]:
        labels_of.setdefault((text, note), set()).add(label)
    conflicts = sum(len(labels) > 1 for labels in labels_of.values())
    leaked = [row for row in parts["validation"] if row[:2] in held["test"]]
    assert min(len(in_validation), len(in_test), conflicts, len(leaked)) > 0, "the rows have to hold each case"

    def triples(split):
        return Counter((row["text"], row["note"], row["label"]) for row in split)

    kept = Counter(
        (*inputs, label) for inputs, label in firsts.items() if inputs not in held["validation"] | held["test"]
    )
    assert triples(prepared.train) == kept
    assert triples(prepared.validation) == Counter(row for row in parts["validation"] if row[:2] not in held["test"])
    assert triples(prepared.test) == Counter(parts["test"])
    words = " ".join(prepared.warnings)
    assert f"data.train: {120 - len(firsts)} of 120 rows repeat the inputs of an earlier row: left out" in words
    assert f"data.train: {len(in_validation)} of 120 rows are also in data.validation: left out" in words
    assert f"data.train: {len(in_test)} of 120 rows are also in data.test: left out" in words
    assert f"data.validation: {len(leaked)} of 15 rows are also in data.test: left out" in words
    assert re.search(rf"data\.train: {conflicts} inputs? stands? with different targets: the first is kept", words)


def test_duplicates_that_are_kept_are_still_told(tmp_path):
    parts = repeated_rows(1)
    for name, rows in parts.items():
        write_csv(tmp_path / f"{name}.csv", rows, ("text", "note", "label"))
    prepared = prepare(tmp_path, deduplicate=False, **{name: f"{name}.csv" for name in parts})
    for name, rows in parts.items():
        got = Counter((row["text"], row["note"], row["label"]) for row in getattr(prepared, name))
        assert got == Counter(rows)
    repeats = 120 - len({row[:2] for row in parts["train"]})
    assert f"data.train: {repeats} of 120 rows repeat the inputs of an earlier row: kept" in " ".join(prepared.warnings)
    assert all("left out" not in warning for warning in prepared.warnings)


def test_duplicates_that_fall_on_both_sides_of_a_cut(tmp_path):
    rows = [(f"t{i % 30}", "ab"[i % 2]) for i in range(120)]
    write_csv(tmp_path / "r.csv", rows)
    clean = prepare(tmp_path, train="r.csv", out="a")
    assert sorted(every(clean)) == sorted(set(rows)), "each once, hence in one split"
    kept = prepare(tmp_path, train="r.csv", deduplicate=False, out="b")
    assert Counter(every(kept)) == Counter(rows)
    test = {text for text, _ in pairs(kept.test)}
    leaked = sum(text in test for text, _ in pairs(kept.train))
    assert leaked > 0
    assert f"data.train: {leaked} of {len(kept.train)} rows are also in the test split: kept" in " ".join(kept.warnings)


def test_a_training_source_that_is_all_in_test_is_an_error(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(10))
    message = prepare_fault(tmp_path, train="r.csv", test="r.csv")
    assert "data.train: all of its 10 rows are also in a held-out split" in message
    assert "data.deduplicate" in message


def test_rows_without_a_value_are_counted(tmp_path):
    write_csv(tmp_path / "r.csv", [*tickets(50), ("", "a"), ("  ", "b"), ("text", "")])
    prepared = prepare(tmp_path, train="r.csv")
    assert len(every(prepared)) == 50
    assert prepared.warnings == ("data.train: 3 of 53 rows left out for want of a value in text, label",)


def test_labels_never_seen_in_training_are_told(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(30, labels="ab"))
    write_csv(tmp_path / "t.csv", [("x", "a"), ("y", "zebra")])
    prepared = prepare(tmp_path, train="r.csv", test="t.csv")
    assert any(
        "1 label of validation or test is never" in warning and "'zebra'" in warning for warning in prepared.warnings
    )


class Checked(Tickets):
    """Names the first row, as tasks do from 1, whose label it cannot take."""

    def facts(self, rows, options):
        for number, row in enumerate(rows, start=1):
            if row["label"] == "?":
                raise DataError(f"row {number}: 'label' is unknown")
        return super().facts(rows, options)


@pytest.mark.parametrize("given", [{}, {"validation": "other.csv"}, {"validation": "other.csv", "test": "more.csv"}])
@pytest.mark.parametrize("place", [2, 30, 60])
def test_a_fault_of_a_row_names_the_row_of_the_file(place, given, tmp_path):
    rows = [("", "a"), ("again", "a"), ("again", "a"), *tickets(57)]
    rows[place - 1] = ("the culprit", "?")
    write_csv(tmp_path / "r.csv", rows)
    write_csv(tmp_path / "other.csv", tickets(20, seed=1))
    write_csv(tmp_path / "more.csv", tickets(20, seed=2))
    for seed in range(3):
        with pytest.raises(DataError) as caught:
            prepare(tmp_path, Checked(), seed=seed, train="r.csv", **given)
        assert str(caught.value) == f"data.train: row {place}: 'label' is unknown"


def test_a_fault_of_a_row_that_is_held_out_names_its_file_and_the_row(tmp_path):
    held_out = [(f"{text} of them", label, "yes") for text, label in tickets(20, seed=1)]
    held_out[3] = (*held_out[3][:2], "no")
    held_out[11] = ("the culprit", "?", "yes")
    write_csv(tmp_path / "v.csv", held_out, head=("text", "label", "use"))
    write_csv(tmp_path / "r.csv", [(*row, "yes") for row in tickets(40)], head=("text", "label", "use"))
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, Checked(), train="r.csv", validation="v.csv", where={"use": "yes"})
    assert str(caught.value) == "data.validation: row 12: 'label' is unknown"


class Doubtful(Tickets):
    """Warns of the first row with a strange label, and of all together."""

    def warnings(self, rows, options):
        strange = [number for number, row in enumerate(rows, start=1) if row["label"] == "?"]
        return [f"row {strange[0]}: 'label' is strange", f"{len(strange)} labels are strange"]


def test_a_warning_of_a_task_names_the_row_of_the_file(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(40))
    write_csv(
        tmp_path / "t.csv", [(f"{text} of them", "?" if i == 7 else "a") for i, (text, _) in enumerate(tickets(20))]
    )
    told = prepare(tmp_path, Doubtful(), train="r.csv", test="t.csv").warnings
    assert told[:2] == ("data.test: row 8: 'label' is strange", "data: 1 labels are strange")


def test_labels_that_differ_in_spaces_case_or_encoding_alone_are_told(tmp_path):
    labels = ["billing", " Billing", "caf\u00e9", "cafe\u0301", "other"]
    write_csv(tmp_path / "r.csv", [(f"text {i}", labels[i % 5]) for i in range(60)])
    told = [warning for warning in prepare(tmp_path, train="r.csv").warnings if "learned as different ones" in warning]
    assert [sorted(re.findall(r"'(.*?)'", warning)) for warning in told] == [
        [" Billing", "billing"],
        sorted(labels[2:4]),
    ]


def test_a_column_has_one_type_in_all_splits(tmp_path):
    write_csv(tmp_path / "r.csv", [(f"t{i}", i % 3) for i in range(30)])
    write_csv(tmp_path / "t.csv", [("x", "1"), ("y", "other")])
    prepared = prepare(tmp_path, train="r.csv", test="t.csv")
    assert {label for _, label in pairs(prepared.train)} == {"0", "1", "2"}
    assert {type(row["label"]) for split in (prepared.train, prepared.test) for row in split} == {str}
    (tmp_path / "l.jsonl").write_text('{"text": "x", "label": ["1"]}')
    message = prepare_fault(tmp_path, train="r.csv", test="l.jsonl")
    assert "'label'" in message
    assert "int64 in data.train, list" in message


def test_a_rival_of_a_guess_is_told(tmp_path):
    write_csv(tmp_path / "r.csv", [(*row, "x") for row in tickets(30)], ("sentence", "queue", "body"))
    prepared = prepare(tmp_path, train="r.csv")
    assert prepared.columns == {"text": "sentence", "label": "queue"}
    assert prepared.warnings == (
        "data.train: took the column 'sentence' for 'text', though 'body' may be meant; data.columns decides",
    )
    mapped = {"text": "sentence", "label": "queue"}
    assert prepare(tmp_path, train="r.csv", columns=mapped, out="b").warnings == ()


# ----------------------------------------------------------------------------------------------------- where


@pytest.fixture
def shops(tmp_path) -> Path:
    rows = [(f"text {i}", "ab"[i % 2], ["de", "fr", "it"][i % 3], i % 4, str(i % 5 == 0)) for i in range(120)]
    write_csv(tmp_path / "r.csv", rows, ("text", "label", "lang", "stars", "spam"))
    frame = pd.read_csv(tmp_path / "r.csv", keep_default_na=False)
    frame.to_parquet(tmp_path / "r.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
@pytest.mark.parametrize(
    ("where", "query"),
    [
        ({"lang": "de"}, "lang == 'de'"),
        ({"lang": ["de", "it"]}, "lang in ['de', 'it']"),
        ({"stars": 3}, "stars == 3"),
        ({"stars": "3"}, "stars == 3"),
        ({"stars": [1, 2.0]}, "stars in [1, 2]"),
        ({"spam": True}, "spam"),
        ({"spam": "false", "lang": "fr"}, "not spam and lang == 'fr'"),
    ],
)
def test_where_keeps_the_rows_that_pandas_keeps(name, where, query, shops):
    expected = pd.read_csv(shops / "r.csv").query(query)
    prepared = prepare(shops, train=name, where=where)
    assert sorted(every(prepared)) == sorted(zip(expected["text"], expected["label"], strict=True))
    assert prepared.warnings == ()


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"lnag": "de"}, ["data.where.lnag", "data.train", "Did you mean 'lang'?", "Known: label, lang, spam"]),
        ({"lang": "en"}, ["data.where.lang", "'en'", "'de'", "'fr'", "'it'"]),
        ({"stars": [8, 9]}, ["data.where.stars", "8 or 9", "there are 0, 1, 2, 3"]),
        ({"text": "text 1", "lang": "de"}, ["data.where.lang", "'de'", "there are 'fr'"]),
    ],
)
def test_a_where_that_keeps_nothing_says_what_there_is(where, words, shops):
    message = prepare_fault(shops, train="r.csv", where=where)
    assert [word for word in words if word not in message] == [], message


def test_a_value_of_where_that_no_row_has_is_told(shops):
    prepared = prepare(shops, train="r.csv", where={"lang": ["de", "en"]})
    assert len(every(prepared)) == 40
    assert prepared.warnings == ("data.where.lang: no row of data.train has 'en'",)


def test_where_cannot_compare_lists(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"text": "x", "label": "a", "tags": ["t"]}\n')
    message = prepare_fault(tmp_path, train="r.jsonl", where={"tags": "t"})
    assert "data.where.tags: the column holds list" in message


# ----------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_stays_when_nothing_changes(tmp_path):
    rows = tickets(60)
    write_csv(tmp_path / "r.csv", rows)
    pd.DataFrame(rows, columns=["text", "label"]).to_parquet(tmp_path / "r.parquet")
    first = prepare(tmp_path, train="r.csv", out="a")
    assert prepare(tmp_path, train="r.csv", out="b").fingerprint == first.fingerprint
    assert prepare(tmp_path, train="r.csv", out="b").fingerprint == first.fingerprint
    assert open_data(tmp_path / "a").fingerprint == first.fingerprint
    assert prepare(tmp_path, train="r.parquet", out="c").fingerprint == first.fingerprint, (
        "the rows count, not the file"
    )


def test_the_fingerprint_changes_with_rows_options_and_task(tmp_path):
    rows = tickets(60)
    write_csv(tmp_path / "r.csv", rows)
    write_csv(tmp_path / "text.csv", [(rows[0][0] + "!", rows[0][1]), *rows[1:]])
    write_csv(tmp_path / "label.csv", [(rows[0][0], "c" if rows[0][1] != "c" else "a"), *rows[1:]])
    write_csv(tmp_path / "fewer.csv", rows[1:])

    class Renamed(Tickets):
        card = dataclasses.replace(CARD, name="letters")

    variants = [
        {"train": "r.csv"},
        {"train": "text.csv"},
        {"train": "label.csv"},
        {"train": "fewer.csv"},
        {"train": "r.csv", "test_size": 10},
        {"train": "r.csv", "limit": 50},
        {"train": "r.csv", "seed": 1},
        {"train": "r.csv", "options": {"problem": "multi"}},
        {"train": "r.csv", "task": Renamed()},
    ]
    found = [prepare(tmp_path, out=f"out{i}", **variant).fingerprint for i, variant in enumerate(variants)]
    assert len(set(found)) == len(variants)


def test_a_split_s_fingerprint_is_of_its_values():
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 2}]
    base = Split.from_rows(rows).fingerprint
    assert Split(pa.table({"label": [1, 2], "text": ["a", "b"]})).fingerprint == base, "not of the order of columns"
    assert Split(pa.concat_tables([Split.from_rows([row]).table for row in rows])).fingerprint == base, "nor of chunks"
    others = [rows[::-1], rows[:1], [rows[0], {"text": "b", "label": 3}], [{"body": r["text"]} for r in rows]]
    assert len({base, *(Split.from_rows(other).fingerprint for other in others)}) == 5


# ----------------------------------------------------------------------------------------------------- cache


def test_prepared_data_is_used_again(tmp_path):
    task = Tickets()
    write_csv(tmp_path / "r.csv", tickets(60))
    first = prepare(tmp_path, task, train="r.csv")
    calls = task.facts_calls
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    assert set(files) == {"train.arrow", "validation.arrow", "test.arrow", "meta.json"}
    again = prepare(tmp_path, task, train="r.csv")
    assert task.facts_calls == calls > 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == files
    assert (every(again), again.facts, again.columns, again.warnings, again.fingerprint) == (
        every(first),
        first.facts,
        first.columns,
        first.warnings,
        first.fingerprint,
    )
    (tmp_path / "r.csv").touch()
    prepare(tmp_path, task, train="r.csv")
    assert task.facts_calls == calls, "the content counts, not the time"


def test_figures_are_of_the_rows_that_were_decided_upon_until_there_are_others(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    whole = prepare(tmp_path, train="r.csv", validation_size=20, test_size=20)
    folder = tmp_path / "data"
    decide_rows(folder, "validation", 7)
    # What was judged is compared with what is judged later; a test stands alone.
    decide_rows(folder, "validation", 12)
    decide_rows(folder, "test", 30)
    decide_rows(folder, "test", 9)
    some = open_data(folder)
    assert rows_decided(folder) == {"validation": 7, "test": 9}
    assert pairs(some.train) == pairs(whole.train)
    assert pairs(some.validation) == pairs(whole.validation)[:7]
    assert pairs(some.test) == pairs(whole.test)[:9]
    assert some.validation.fingerprint == Split.from_rows(whole.validation[:7]).fingerprint
    assert pairs(open_data(folder, decided={"validation": 3}).validation) == pairs(whole.validation)[:3]
    assert every(open_data(folder, whole=True)) == every(whole)
    # Folds are cut from all rows, and judged by as many of their own.
    assert every(prepare(tmp_path, train="r.csv", validation_size=20, test_size=20)) == every(whole)
    prepare_folds(whole, Tickets(), 3, 0, folder)
    assert len(open_data(folder / "fold-1").validation) == 7
    assert len(open_data(folder / "fold-1").train) == 10 + 20
    prepare(tmp_path, train="r.csv", validation_size=19, test_size=20)
    assert (rows_decided(folder), len(open_data(folder).validation)) == ({}, 19)


def test_prepared_data_is_made_anew_for_another_request(tmp_path):
    rows = tickets(60)
    write_csv(tmp_path / "r.csv", rows)
    prepare(tmp_path, train="r.csv")
    write_csv(tmp_path / "r.csv", [*rows, ("one more", "a")])
    assert len(every(prepare(tmp_path, train="r.csv"))) == 61
    assert len(every(prepare(tmp_path, train="r.csv", limit=30))) == 30
    assert len(prepare(tmp_path, train="r.csv", test_size=3).test) == 3


def test_data_that_trials_were_scored_on_is_not_replaced_by_other_data(tmp_path):
    rows = tickets(60)
    write_csv(tmp_path / "r.csv", rows)
    first = prepare(tmp_path, train="r.csv")
    before = every(first)
    assert every(prepare(tmp_path, train="r.csv", expected=first.fingerprint)) == before
    # Written anew with the same rows it is the same data, and what trials were judged by is what further ones are judged by.
    decide_rows(tmp_path / "data", "validation", 2)
    (tmp_path / "data" / "meta.json").unlink()
    assert every(prepare(tmp_path, train="r.csv", expected=first.fingerprint)) == before
    assert rows_decided(tmp_path / "data") == {"validation": 2}
    text, label = rows[0]
    write_csv(tmp_path / "r.csv", [(text, "b" if label != "b" else "a"), *rows[1:]])
    with pytest.raises(RunFolderError, match="scored on other data"):
        prepare(tmp_path, train="r.csv", expected=first.fingerprint)
    assert every(open_data(tmp_path / "data", whole=True)) == before


@pytest.mark.parametrize("name", ["train.arrow", "validation.arrow", "test.arrow", "meta.json"])
def test_a_deleted_file_is_made_again(name, tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    first = every(prepare(tmp_path, train="r.csv"))
    (tmp_path / "data" / name).unlink()
    with pytest.raises(RunFolderError, match=re.escape(f"{name}: is missing")):
        open_data(tmp_path / "data")
    assert every(prepare(tmp_path, train="r.csv")) == first
    assert every(open_data(tmp_path / "data")) == first


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["train.arrow", "test.arrow", "meta.json"])
def test_a_file_that_was_cut_off_is_told_and_made_again(name, keep, tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    first = every(prepare(tmp_path, train="r.csv"))
    path = tmp_path / "data" / name
    content = path.read_bytes()
    path.unlink()  # Not in place: the first result still has the file mapped.
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(RunFolderError, match="is damaged") as caught:
        open_data(tmp_path / "data")
    assert str(path) in str(caught.value)
    assert "delete" in str(caught.value)
    TOLD.clear()
    assert every(prepare(tmp_path, train="r.csv")) == first
    assert TOLD.pop() == f"{tmp_path / 'data'}: the prepared data is not as it was written, and is prepared again."


@pytest.mark.parametrize("damage", ["swapped", "a letter", "lengths"])
def test_rows_that_are_not_those_that_were_written_are_made_again(damage, tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    first = every(prepare(tmp_path, train="r.csv", validation_size=9, test_size=9))
    one, other = (tmp_path / "data" / name for name in ("validation.arrow", "test.arrow"))
    content = one.read_bytes()
    one.unlink()
    if damage == "swapped":
        other.rename(one)
        other.write_bytes(content)
    elif damage == "a letter":
        one.write_bytes(content.replace(b"text", b"test"))
        assert one.read_bytes() != content
    else:
        # Where texts end is among what is written between the first column's type and its letters.
        table = pa.ipc.open_file(content).read_all()
        ends = table.column(0).chunk(0).buffers()[1].to_pybytes()
        assert content.count(ends) >= 1
        one.write_bytes(content.replace(ends, ends[:4] + b"\xff\xff\xff\x7f" * (len(ends) // 4 - 1)))
    TOLD.clear()
    assert every(prepare(tmp_path, train="r.csv", validation_size=9, test_size=9)) == first
    assert TOLD.pop() == f"{tmp_path / 'data'}: the prepared data is not as it was written, and is prepared again."
    assert not TOLD


def test_a_file_of_other_data_is_told(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    prepare(tmp_path, train="r.csv")
    (tmp_path / "data" / "train.arrow").unlink()
    (tmp_path / "data" / "test.arrow").rename(tmp_path / "data" / "train.arrow")
    prepare(tmp_path, train="r.csv", out="other")
    (tmp_path / "other" / "test.arrow").rename(tmp_path / "data" / "test.arrow")
    with pytest.raises(RunFolderError, match=r"train\.arrow: is damaged; delete .*meta\.json"):
        open_data(tmp_path / "data")


def test_what_a_killed_process_left_behind_does_not_matter(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    first = every(prepare(tmp_path, train="r.csv", out="good"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".train.arrow.x1y2").write_bytes(b"ARROW1 half a f")
    (tmp_path / "data" / "train.arrow").write_bytes(b"half of an older one, no meta.json")
    assert every(prepare(tmp_path, train="r.csv")) == first


def test_whoever_may_read_the_run_may_read_its_data(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    data = prepare(tmp_path, train="r.csv")
    encoded(data.train, Tickets(), TaskContext(data.facts, {}, {}, 6), tmp_path / "data", "t1")
    files = [path for path in (tmp_path / "data").iterdir() if path.suffix in {".arrow", ".json"}]
    assert len(files) == 5
    assert len({path.stat().st_mode for path in files}) == 1


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    (tmp_path / "data").write_text("a file")
    with pytest.raises(RunFolderError, match="cannot be written"):
        prepare(tmp_path, train="r.csv")


def test_facts_that_are_not_json_are_the_task_s_fault(tmp_path):
    class Wrong(Tickets):
        def facts(self, rows, options):
            return {"labels": {"a", "b"}}

    write_csv(tmp_path / "r.csv", tickets(60))
    with pytest.raises(PluginError, match=r"tickets: facts\(\) must return plain JSON"):
        prepare(tmp_path, Wrong(), train="r.csv")


# ----------------------------------------------------------------------------------------------------- split


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    cut=st.slices(10),
    index=st.integers(-12, 11),
    picks=st.lists(st.integers(0, 100), max_size=5),
)
def test_a_split_is_a_sequence_like_a_list(sizes, cut, index, picks):
    ends = np.cumsum([0, *sizes])
    chunks = [
        pa.table(
            {"text": pa.array([f"t{i}" for i in range(a, b)], pa.string()), "label": pa.array(range(a, b), pa.int64())}
        )
        for a, b in pairwise(ends)
    ]
    split = Split(pa.concat_tables(chunks))
    rows = [{"text": f"t{i}", "label": i} for i in range(ends[-1])]
    assert list(split) == rows
    assert len(split) == len(rows)
    assert split[cut] == rows[cut]
    if -len(rows) <= index < len(rows):
        assert split[index] == rows[index]
    else:
        with pytest.raises(IndexError):
            split[index]
    picks = [pick % len(rows) for pick in picks] if rows else []
    assert split.rows(picks) == [rows[pick] for pick in picks]
    assert split.inputs(CARD) == [{"text": row["text"]} for row in rows]


def test_rows_of_different_kinds_make_no_split():
    with pytest.raises(DataError, match="row 2: column 'text' holds 5, but earlier rows hold values as 'a'"):
        Split.from_rows([{"text": "a"}, {"text": 5}])


# ----------------------------------------------------------------------------------------------------- folds


def opened_folds(folder: Path, folds: int, **section):
    """Prepare the data and its folds in ``folder``, and return the splits of each fold."""
    data = folder / "data"
    prepared = prepare_data(DataSection(**section), Tickets(), {}, 0, data, folder, folds)
    prepare_folds(prepared, Tickets(), folds, 0, data)
    return [prepared, *(open_data(data / f"fold-{number}") for number in range(1, folds))]


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_each_row_is_held_out_by_one_fold_and_learned_by_all_others(folds, tmp_path):
    write_csv(tmp_path / "r.csv", tickets(200))
    opened = opened_folds(tmp_path, folds, train="r.csv", test_size=20)
    pool = sorted(pairs(opened[0].train) + pairs(opened[0].validation))
    assert sorted(row for fold in opened for row in pairs(fold.validation)) == pool
    for fold in opened:
        assert sorted(pairs(fold.train) + pairs(fold.validation)) == pool
        assert pairs(fold.test) == pairs(opened[0].test)
        assert fold.facts == opened[0].facts
        # 180 rows are left: each fold holds out its share, but for what stratifying moves.
        assert abs(len(fold.validation) - 180 / folds) <= 2
        assert fold.train.fingerprint not in {other.train.fingerprint for other in opened if other is not fold}


def test_folds_are_stratified_as_by_scikit_learn(tmp_path):
    from sklearn.model_selection import StratifiedKFold

    write_csv(tmp_path / "r.csv", tickets(300))
    prepared, *further = opened_folds(tmp_path, 4, train="r.csv")
    labels = [label for _, label in pairs(prepared.train)]
    splitter = StratifiedKFold(3, shuffle=True, random_state=0)
    for label in "abc":
        parts = [sum(labels[i] == label for i in held) for _, held in splitter.split(labels, labels)]
        mine = [sum(row[1] == label for row in pairs(fold.validation)) for fold in further]
        assert max(mine) - min(mine) <= 1
        assert sorted(mine) == sorted(parts)


def test_rows_with_the_same_inputs_are_held_out_together(tmp_path):
    rows = tickets(60) + [(f"twin {i % 10}", "a" if i < 10 else "b") for i in range(20)]
    write_csv(tmp_path / "r.csv", rows)
    _, *further = opened_folds(tmp_path, 4, train="r.csv", deduplicate=False)
    for fold in further:
        held = {text for text, _ in pairs(fold.validation) if text.startswith("twin")}
        learned = [text for text, _ in pairs(fold.train)]
        # The plain cut of the validation split does not look at texts where deduplication is off.
        own = {text for text, _ in pairs(opened_folds(tmp_path, 4, train="r.csv", deduplicate=False)[0].validation)}
        assert not (held - own) & set(learned)


def test_folds_are_written_once_and_anew_for_other_data(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    opened_folds(tmp_path, 3, train="r.csv")
    file = tmp_path / "data/fold-1/train.arrow"
    before = file.stat().st_mtime_ns
    opened_folds(tmp_path, 3, train="r.csv")
    assert file.stat().st_mtime_ns == before
    write_csv(tmp_path / "r.csv", tickets(60, seed=1))
    opened_folds(tmp_path, 3, train="r.csv")
    assert file.stat().st_mtime_ns != before


def test_folds_in_which_a_bit_is_another_are_written_anew(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(60))
    expected = [pairs(fold.train) for fold in opened_folds(tmp_path, 3, train="r.csv")]
    for file in ("train", "fold-1/train"):
        path = tmp_path / f"data/{file}.arrow"
        content = bytearray(path.read_bytes())
        content[content.index(b"ticket") + 3] ^= 1
        path.write_bytes(content)
    assert [pairs(fold.train) for fold in opened_folds(tmp_path, 3, train="r.csv")] == expected


def test_more_folds_than_rows_are_an_error(tmp_path):
    write_csv(tmp_path / "r.csv", tickets(12))
    with pytest.raises(DataError, match="ask for fewer folds"):
        opened_folds(tmp_path, 11, train="r.csv", test_size=2)


def test_the_validation_split_that_a_recipe_gives_is_the_first_fold(tmp_path):
    rows = tickets(90)
    write_csv(tmp_path / "train.csv", rows[:60])
    write_csv(tmp_path / "dev.csv", rows[60:])
    opened = opened_folds(tmp_path, 3, train="train.csv", validation="dev.csv", test_size=6)
    assert sorted(pairs(opened[0].validation)) == sorted(rows[60:])
    assert [len(fold.validation) for fold in opened[1:]] == [27, 27]


# ---------------------------------------------------------------------------------------------------- groups


def grouped_rows(counts, seed=0, mixed=True) -> list[tuple[str, str, str]]:
    """Rows of so many persons, in random order; a person's labels differ, or are all of one kind."""
    rng = random.Random(seed)
    rows = []
    for person, count in enumerate(counts):
        own = rng.choice("aab")
        rows += [(f"p{person} row {i}", rng.choice("aab") if mixed else own, f"p{person}") for i in range(count)]
    rng.shuffle(rows)
    return rows


def persons(split: Split) -> set[str]:
    return {row["text"].split()[0] for row in split}


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=20, max_size=40),
    folds=st.integers(1, 5),
    seed=st.integers(0, 1000),
    task=st.sampled_from([Tickets(), Unstratified()]),
    sizes=st.sampled_from([{}, {"validation_size": 0.2, "test_size": 10}, {"test_size": 1}]),
    mixed=st.booleans(),
)
def test_no_group_is_in_two_splits_or_folds_and_each_row_is_there_once(counts, folds, seed, task, sizes, mixed):
    rows = grouped_rows(counts, seed, mixed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_csv(folder / "r.csv", rows, ("text", "label", "person"))
        section = DataSection(train="r.csv", group="person", **sizes)
        prepared = prepare_data(section, task, {}, seed, folder / "data", folder, folds)
        prepare_folds(prepared, task, folds, seed, folder / "data")
        opened = [prepared, *(open_data(folder / "data" / f"fold-{number}") for number in range(1, folds))]
        held = [persons(fold.validation) for fold in opened]
        for fold in opened:
            splits = [fold.train, fold.validation, fold.test]
            assert all(splits)
            assert not any(persons(one) & persons(other) for one, other in combinations(splits, 2))
            assert sorted(every(fold)) == sorted((text, label) for text, label, _ in rows)
            assert set(fold.train.inputs(CARD)[0]) == {"text"}
        assert not any(one & other for one, other in combinations(held, 2))
        if folds > 1:
            assert set().union(*held) == persons(prepared.train) | persons(prepared.validation)
        if task.stratum({"label": "a"}) is None and "test_size" not in sizes:
            # Without strata the size is missed by less than the smallest group that would make good for it.
            assert abs(len(prepared.test) - round(0.15 * len(rows))) <= max(counts)


def test_labels_of_groups_are_spread_more_as_by_scikit_learn_with_strata_than_without(tmp_path):
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    rows = grouped_rows([random.Random(i).randint(1, 12) for i in range(60)], mixed=False)
    write_csv(tmp_path / "r.csv", rows, ("text", "label", "person"))
    prepared, *further = opened_folds(tmp_path, 5, train="r.csv", group="person")
    labels = [label for _, label in pairs(prepared.train)]
    owners = [row["text"].split()[0] for row in prepared.train]

    def unevenness(parts):
        return sum(np.ptp([part[label] for part in parts]) for label in "ab")

    def theirs(splitter):
        return unevenness([Counter(labels[i] for i in held) for _, held in splitter.split(labels, labels, owners)])

    mine = unevenness([Counter(label for _, label in pairs(fold.validation)) for fold in further])
    plain, stratified = theirs(GroupKFold(4)), theirs(StratifiedGroupKFold(4))
    assert abs(mine - stratified) < abs(plain - mine)


@pytest.mark.parametrize("folds", [1, 4])
def test_what_came_out_of_a_cut_by_groups_is_told(folds, tmp_path):
    write_csv(tmp_path / "r.csv", grouped_rows([8] * 30), ("text", "label", "person"))
    prepared = opened_folds(tmp_path, folds, train="r.csv", group="person", validation_size=24, test_size=30)[0]
    (told,) = [text for text in prepared.warnings if "whole groups" in text]
    size = len(prepared.test)
    assert size in {24, 32}
    assert (
        f"24 rows of 3 groups for validation; {size} rows of {size // 8} groups for test, for 30 asked for" in told
        or (f"{size} rows of {size // 8} groups for test, for 30 asked for; 24 rows of 3 groups for validation" in told)
    )


def test_without_a_group_the_rows_of_a_seed_are_what_they_were(tmp_path):
    # Of the version before there were groups.
    write_csv(tmp_path / "r.csv", grouped_rows([4] * 20), ("text", "label", "person"))
    opened = opened_folds(tmp_path, 3, train="r.csv")
    assert [opened[0].train.fingerprint, *(fold.validation.fingerprint for fold in opened)] == [
        "a29ccfeb7b7882ff207ffd24c51b6aff",
        "8e201e94dd034803201edb71123bee93",
        "3cede71b243d8fbfac9273f1449806d0",
        "79df0bd727d38cd5328129e525d81879",
    ]


def test_rows_of_one_group_or_one_text_are_held_out_together(tmp_path):
    rows = grouped_rows([3] * 30)
    # Each text of the first ten persons is also that of another person, so that each pair is one group.
    rows += [(text, "a", f"p{int(person[1:]) + 10}") for text, _, person in rows if int(person[1:]) < 10]
    write_csv(tmp_path / "train.csv", rows, ("text", "label", "person"))
    write_csv(tmp_path / "dev.csv", [(f"dev {i}", "ab"[i % 2]) for i in range(9)])
    section = {
        "train": "train.csv",
        "validation": "dev.csv",
        "test": "dev.csv",
        "group": "person",
        "deduplicate": False,
    }
    write_csv(tmp_path / "test.csv", [(f"test {i}", "ab"[i % 2]) for i in range(9)])
    _, *further = opened_folds(tmp_path, 4, **{**section, "test": "test.csv"})
    pair = {f"p{i + 10}": f"p{i}" for i in range(10)}
    owner = {text: pair.get(person, person) for text, _, person in rows}
    for fold in further:
        held, learned = ({row["text"] for row in split} for split in (fold.validation, fold.train))
        assert not held & learned
        assert not {owner[text] for text in held} & {owner[text] for text in learned if text in owner}


def test_values_that_are_in_two_given_splits_are_told(tmp_path):
    # Numbers in one file and texts in another are the same persons.
    write_csv(tmp_path / "train.csv", [(f"t{i}", "ab"[i % 2], i // 4) for i in range(80)], ("text", "label", "who"))
    write_csv(
        tmp_path / "test.csv",
        [(f"s{i}", "ab"[i % 2], i // 2 + 17) for i in range(20)] + [("x", "a", "new")],
        ("text", "label", "who"),
    )
    write_csv(tmp_path / "dev.csv", [(f"v{i}", "ab"[i % 2]) for i in range(10)])
    told = prepare(tmp_path, train="train.csv", validation="dev.csv", test="test.csv", group="who").warnings
    assert any(text.startswith("data.test: 3 of its 11 values of 'who' are also in data.train: ") for text in told)
    assert any(text.startswith("data.validation: has no column 'who'") for text in told)


def test_rows_without_a_group_are_told_and_stand_alone(tmp_path):
    rows = [(f"t{i}", "ab"[i % 2], "" if i in {6, 50} else i // 4) for i in range(80)]
    write_csv(tmp_path / "r.csv", rows, ("text", "label", "who"))
    told = prepare(tmp_path, train="r.csv", group="who").warnings
    assert (
        "data.train: 2 of 80 rows have no value in 'who', the first of them row 7: each is a group of its own" in told
    )
    (cut,) = [text for text in told if "whole groups" in text]
    assert sum(map(int, re.findall(r"of (\d+) groups", cut))) == 22


@pytest.mark.parametrize(
    ("group", "says"),
    [
        ("wo", r"data\.group: data\.train: unknown column 'wo'\. Did you mean 'who'\?"),
        ("none", r"data\.group: data\.train: none of its 80 rows has a value in 'none'"),
        (
            "two",
            r"data\.group: its column has 2 different values in the 80 rows to be parted, too few for train, test, validation",
        ),
        ("label", r"data\.group: data\.train: the column 'label' is what is predicted"),
        ("most", r"data\.group: 70 of 80 rows have one value, 'all', and stay together"),
    ],
)
def test_a_group_by_which_nothing_can_be_cut_is_told(group, says, tmp_path):
    rows = [(f"t{i}", "ab"[i % 2], i // 4, "", i % 2, "all" if i < 70 else f"o{i}") for i in range(80)]
    write_csv(tmp_path / "r.csv", rows, ("text", "label", "who", "none", "two", "most"))
    with pytest.raises(DataError, match=says):
        prepare(tmp_path, train="r.csv", group=group)


def test_a_group_may_be_what_the_task_or_a_slice_reads_too(tmp_path):
    rows = [(f"t{i}", "ab"[i % 2], i // 4) for i in range(80)]
    write_csv(tmp_path / "r.csv", rows, ("text", "label", "who"))
    section = {"train": "r.csv", "columns": {"text": "text", "label": "label"}}
    read = prepare(tmp_path, **section, group="text")
    assert sorted(every(read)) == sorted((text, label) for text, label, _ in rows)
    sliced = prepare(tmp_path, **section, group="who", slices=["who"])
    owners = [{row["slice:who"] for row in split} for split in (sliced.train, sliced.validation, sliced.test)]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 20


def test_more_folds_than_groups_are_an_error(tmp_path):
    write_csv(tmp_path / "r.csv", grouped_rows([10] * 6), ("text", "label", "person"))
    with pytest.raises(DataError, match="too few for 6 folds and train, test, validation"):
        opened_folds(tmp_path, 6, train="r.csv", group="person")
