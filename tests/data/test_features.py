"""Features of a split: encoded once, and given back as they were."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.contracts import Column, Task, TaskCard, TaskContext
from autoft.data.features import encoded
from autoft.data.rows import Split
from autoft.errors import PluginError

CARD = TaskCard(
    name="tickets",
    summary="a queue for a ticket",
    columns=(
        Column("text", "text", "what the customer wrote"),
        Column("label", "label", "the queue", target=True),
    ),
    metrics=("accuracy",),
    architecture="sequence-classification",
)


class Tickets(Task):
    """Texts with a label; counts the rows that it encodes."""

    card = CARD

    def __init__(self):
        self.encoded_rows = 0

    def demo_rows(self):
        return [{"text": "a", "label": "x"}]

    def load_model(self, source, context):
        raise AssertionError("no test loads a model")

    def predict(self, model, rows, context, batch_size=32):
        raise AssertionError("no test predicts")

    def reference(self, row, context):
        return row["label"]

    def encode(self, rows, context):
        self.encoded_rows += len(rows)
        return [features_of(row, context) for row in rows]


def features_of(row, context):
    """What a tokenizer might give: numbers of the words up to the maximal length, and the place of the label."""
    ids = [len(word) * context.params.get("task.factor", 1) for word in row["text"].split()][: context.max_length]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": context.labels.index(str(row["label"]))}


def context(**changes) -> TaskContext:
    given = {"facts": {"labels": ["a", "b", "c"]}, "options": {}, "params": {}, "max_length": 6}
    return TaskContext(**{**given, **changes})


def ticket_split(count=700, seed=0) -> Split:
    rng = random.Random(seed)
    return Split.from_rows(
        [{"text": f"ticket {i} " + "word " * rng.randint(0, 9), "label": rng.choice("abc")} for i in range(count)]
    )


def test_features_are_what_the_task_encodes_and_are_encoded_once(tmp_path):
    task, split = Tickets(), ticket_split()
    first = encoded(split, task, context(), tmp_path / "cache", "tokenizer-1")
    assert task.encoded_rows == len(first) == 700
    expected = [features_of(row, context()) for row in split]
    assert list(first) == expected
    assert first.lengths.tolist() == [len(feature["input_ids"]) for feature in expected]
    assert first[-1] == expected[-1]
    assert first[250:262:3] == expected[250:262:3]
    with pytest.raises(IndexError):
        first[700]
    again = encoded(split, task, context(), tmp_path / "cache", "tokenizer-1")
    assert task.encoded_rows == 700
    assert list(again) == expected
    assert list(encoded(ticket_split(), Tickets(), context(), tmp_path / "cache", "tokenizer-1")) == expected
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1


def test_what_encoding_depends_on_encodes_anew_and_nothing_else(tmp_path):
    task, split = Tickets(), ticket_split(20)

    def calls(split=split, processor="p", **changes) -> int:
        before = task.encoded_rows
        got = encoded(split, task, context(**changes), tmp_path, processor)
        assert list(got) == [features_of(row, context(**changes)) for row in split]
        return task.encoded_rows - before

    assert calls() == 20
    assert calls(params={"train.epochs": 3, "lora.rank": 8}) == 0
    assert calls(seed=7) == 0
    assert calls(device="cuda") == 0
    assert calls(processor="q") == 20
    assert calls(max_length=2) == 20
    assert calls(params={"task.factor": 2}) == 20
    assert calls(facts={"labels": ["c", "b", "a"]}) == 20
    assert calls(options={"lower": True}) == 20
    assert calls(split=ticket_split(20, seed=1)) == 20
    assert calls(split=Split.from_rows([*split, split[0]])) == 21
    assert calls() == 0


def test_another_task_does_not_take_the_features(tmp_path):
    class Letters(Tickets):
        card = dataclasses.replace(CARD, name="letters")

        def encode(self, rows, context):
            return [{"input_ids": [len(row["text"])]} for row in rows]

    split = ticket_split(5)
    encoded(split, Tickets(), context(), tmp_path, "p")
    assert list(encoded(split, Letters(), context(), tmp_path, "p")) == [{"input_ids": [len(r["text"])]} for r in split]


def test_workers_that_ask_at_once_encode_once(tmp_path):
    task, split = Tickets(), ticket_split(600)
    found: list[list[dict]] = []
    threads = [
        threading.Thread(target=lambda: found.append(list(encoded(split, task, context(), tmp_path, "p"))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert task.encoded_rows == 600
    assert found == [[features_of(row, context()) for row in split]] * 4


@pytest.mark.parametrize("keep", [0, 9, 0.5, 0.99])
def test_features_that_were_cut_off_are_made_again(keep, tmp_path):
    task, split = Tickets(), ticket_split(50)
    encoded(split, task, context(), tmp_path, "p")
    (path,) = tmp_path.glob("*.arrow")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    assert list(encoded(split, task, context(), tmp_path, "p")) == [features_of(row, context()) for row in split]
    assert task.encoded_rows == 100


def test_features_of_which_a_bit_is_another_are_told_and_made_again(tmp_path):
    told: list[str] = []
    task, split = Tickets(), ticket_split(50)
    expected = list(encoded(split, task, context(), tmp_path, "p", told.append))
    assert list(encoded(split, task, context(), tmp_path, "p", told.append)) == expected
    (path,) = tmp_path.glob("*.arrow")
    content = bytearray(path.read_bytes())
    # Of a number of a row's tokens: Arrow knows nothing of it.
    content[content.index(np.int32([6, 2, 4]).tobytes()) + 4] ^= 1
    path.write_bytes(content)
    assert list(encoded(split, task, context(), tmp_path, "p", told.append)) == expected
    assert task.encoded_rows == 100
    assert told == [f"{path}: is not as it was written; its rows are encoded again."]
    # Whoever asks others than autoft finds the same.
    (digest,) = tmp_path.glob("*.sha256")
    assert digest.read_text() == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"


def test_an_encoding_that_fails_leaves_nothing_that_counts(tmp_path):
    class Failing(Tickets):
        def encode(self, rows, context):
            if self.encoded_rows >= 256:
                raise RuntimeError("out of luck")
            return super().encode(rows, context)

    task, split = Failing(), ticket_split(600)
    with pytest.raises(RuntimeError, match="out of luck"):
        encoded(split, task, context(), tmp_path, "p")
    assert not list(tmp_path.glob("*.arrow"))
    (tmp_path / ".features-0.arrow.tmp").write_bytes(b"half")
    task.encoded_rows = -1000
    assert len(encoded(split, task, context(), tmp_path, "p")) == 600


class Given(Tickets):
    """Encodes row ``i`` as the feature of that place."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def encode(self, rows, context):
        return [self.features[row["i"]] for row in rows]

    def length(self, feature):
        return len(feature)


def kept(features, folder):
    split = Split.from_rows([{"i": i} for i in range(len(features))])
    return list(encoded(split, Given(features), context(), folder, "p"))


whole = st.integers(-(2**63), 2**63 - 1)
value_kinds = st.sampled_from(
    [
        whole,
        st.lists(whole, max_size=4),
        st.lists(st.integers(0, 30_000), max_size=4),
        st.lists(st.floats(allow_nan=False), max_size=4),
        st.lists(st.booleans(), max_size=4),
        st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=3),
        st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=3),
        st.text(st.characters(codec="utf-8"), max_size=5),
        st.lists(st.text(st.characters(codec="utf-8"), max_size=3), max_size=3),
        st.booleans(),
        st.floats(allow_nan=False),
    ]
)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_features_come_back_as_they_were(data):
    kinds = {name: data.draw(value_kinds) for name in data.draw(st.sampled_from([("a",), ("a", "b")]))}
    features = data.draw(
        st.lists(st.fixed_dictionaries({"always": st.just(1)}, optional=kinds), min_size=1, max_size=5)
    )
    # So many that they are encoded in several chunks, the later ones possibly of wider types.
    features = features[:1] * 256 + features
    with tempfile.TemporaryDirectory() as folder:
        got = kept(features, Path(folder))
    assert got == features
    assert [{k: type(v) for k, v in f.items()} for f in got] == [{k: type(v) for k, v in f.items()} for f in features]


def whole_numbers_in(value):
    if isinstance(value, list):
        return {number for one in value for number in whole_numbers_in(one)}
    return {value} if isinstance(value, int) and not isinstance(value, bool) else set()


@settings(max_examples=25, deadline=None)
@given(
    features=st.lists(st.fixed_dictionaries({}, optional={"a": st.lists(st.integers(0, 9)), "b": whole}), min_size=1)
)
def test_whole_numbers_are_all_that_stand_in_the_features(features):
    features = [{"always": [[1, 70_000]], "text": "5", "yes": [True], "real": [0.5]}, *features]
    array = np.array([[3, 500], [3, 9]], dtype=np.int16)
    with tempfile.TemporaryDirectory() as folder:
        split = Split.from_rows([{"i": i} for i in range(len(features))])
        given = [{**feature, "array": array} for feature in features]
        found = encoded(split, Given(given), context(), Path(folder), "p").whole_numbers()
    expected = {3, 500, 9}.union(*(whole_numbers_in(value) for feature in features for value in feature.values()))
    assert found.tolist() == sorted(expected)


@pytest.mark.parametrize("first", [{"n": 0}, {"pixels": None}], ids=["absent", "none"])
def test_arrays_and_tensors_come_back_as_arrays(first, tmp_path):
    import torch

    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(3, 4, 5)).astype(np.float32),
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        torch.arange(4.0).reshape(2, 2),
        torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        np.zeros((0, 3)),
        np.array(7),
    ]
    # A whole chunk without an array comes first.
    got = kept([first] * 256 + [{"pixels": array} for array in arrays], tmp_path)[256:]
    for array, feature in zip(arrays, got, strict=True):
        expected = array.float().numpy() if isinstance(array, torch.Tensor) else array
        assert isinstance(feature["pixels"], np.ndarray)
        assert (feature["pixels"].dtype, feature["pixels"].shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(feature["pixels"], expected)
        feature["pixels"][...] = 1  # may be written to


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ([], "one mapping of features for each row"),
        (["text"], "one mapping of features for each row"),
        ([{"x": [1]}, {"x": "a"}], "values under 'x' that cannot be kept"),
        ([{"x": object()}], "values under 'x' that cannot be kept"),
        ([{"x": 2**70}], "values under 'x' that cannot be kept"),
        ([{"x": 1}] * 256 + [{"x": "a"}], "features of different types"),
    ],
    ids=["none", "no-mapping", "mixed", "object", "huge", "mixed-chunks"],
)
def test_features_that_cannot_be_kept_are_the_task_s_fault(features, words, tmp_path):
    class Wrong(Given):
        def encode(self, rows, context):
            return [self.features[row["i"]] for row in rows] if self.features else []

    split = Split.from_rows([{"i": i} for i in range(max(1, len(features)))])
    with pytest.raises(PluginError, match=re.escape(words)) as caught:
        encoded(split, Wrong(features), context(), tmp_path, "p")
    assert "task tickets: encode()" in str(caught.value)
    assert not list(tmp_path.glob("*.arrow"))
