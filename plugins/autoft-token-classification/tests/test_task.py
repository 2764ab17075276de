"""The task over tiny models: facts, windows, loss, predictions, baselines, report, and a whole search."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from autoft_token_classification import baselines
from autoft_token_classification import task as module
from autoft_token_classification.details import error_kinds
from autoft_token_classification.schemes import Entity, Transitions
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from autoft.contracts import MarkedText, Matrix, ModelSource, Table
from autoft.errors import DataError, ModelError

FAMILIES = ("bert", "distilbert", "roberta", "gpt2", "deberta-v2")


def tagged(words, tags):
    return {"tokens": words.split(), "tags": tags.split()}


CITIES = [
    tagged("Ada lives in New York .", "B-PER O O B-LOC I-LOC O"),
    tagged("Oslo is cold", "B-LOC O O"),
    tagged("nobody came", "O O"),
    tagged("Ada Byron met Bo", "B-PER I-PER O B-PER"),
]
SPEECH = [tagged("the cat sat", "DET NOUN VERB"), tagged("a dog", "DET NOUN")]
SPANS = [
    {
        "text": "Ada lives in New York.",
        "spans": [{"start": 0, "end": 3, "label": "PER"}, {"start": 13, "end": 21, "label": "LOC"}],
    },
    {"text": "Nobody came.", "spans": []},
]


def inputs(rows):
    return [{name: value for name, value in row.items() if name not in {"tags", "spans"}} for row in rows]


def long_row(words=60):
    return {"tokens": [f"w{i % 7}" for i in range(words)], "tags": ["B-X" if i % 7 == 0 else "O" for i in range(words)]}


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (CITIES, {}, {"scheme": "iob2", "types": ["LOC", "PER"], "words": "tokens", "split": "words"}),
        (SPEECH, {}, {"scheme": "plain", "types": ["DET", "NOUN", "VERB"]}),
        (CITIES, {"scheme": "plain"}, {"scheme": "plain"}),
        (SPANS, {}, {"scheme": "iob2", "types": ["LOC", "PER"], "words": "text", "targets": "spans", "loose": 0}),
        (SPANS, {"scheme": "iobes"}, {"scheme": "iobes", "labels": ["O", "B-LOC", "E-LOC", "S-PER"]}),
        ([{"text": "a b", "tags": "O B-X"}], {}, {"words": "text", "split": "space", "labels": ["O", "B-X"]}),
        ([{"tokens": ["a", "b"], "tags": [0, 1]}], {"tag_names": "O B-X"}, {"labels": ["O", "B-X"], "scheme": "iob2"}),
        # A data set that has both is read by its tags.
        ([{**CITIES[0], "spans": ["PER: Ada"], "text": "Ada lives"}], {}, {"targets": "tags", "words": "tokens"}),
        ([{"text": "Berliner", "spans": [{"start": 0, "end": 6, "label": "X"}]}, SPANS[0]], {}, {"loose": 1}),
    ],
)
def test_facts_say_what_the_tags_are(task, rows, options, expected):
    facts = task.facts(rows, {"scheme": "auto", **options})
    assert {name: facts[name] for name in expected} == expected
    assert json.loads(json.dumps(facts)) == facts
    assert sum(facts["counts"].values()) > 0


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        ([{"tokens": ["a"]}], {}, "found tokens. Say which column is which"),
        ([{"tokens": ["a"], "spans": []}], {}, "found spans and tokens"),
        ([tagged("a b", "O O")], {}, "all 1 training rows have the tag 'O' for every word"),
        ([{"tokens": [], "tags": []}], {}, "all 1 training rows have no words"),
        (
            [{"tokens": [str(i) for i in range(1001)], "tags": [f"t{i}" for i in range(1001)]}],
            {},
            "1001 different tags",
        ),
        (SPEECH, {"scheme": "iob2"}, "the tag 'DET' has no prefix as in 'B-DET'"),
        (CITIES, {"scheme": "bilou"}, None),
        ([tagged("a b", "S-X O")], {"scheme": "iob2"}, "some begin with S"),
        ([tagged("a b c", "I-X E-X O")], {}, "rewrite IOE tags as IOB"),
        (SPANS, {"scheme": "plain"}, "task_options.scheme is plain, but the data has spans"),
    ],
)
def test_rows_that_cannot_be_learned_are_told(task, rows, options, expected):
    if expected is None:
        assert task.facts(rows, options)["scheme"] == options["scheme"]
        return
    with pytest.raises(DataError, match=expected):
        task.facts(rows, {"scheme": "auto", **options})


def test_the_first_sub_word_carries_the_tag(task, make_context):
    context = make_context(CITIES)
    feature, *_ = task.encode(CITIES, context)
    pieces = context.processor.convert_ids_to_tokens(feature["input_ids"])
    carried = [
        (piece, context.labels[label]) for piece, label in zip(pieces, feature["labels"], strict=True) if label >= 0
    ]
    assert carried == [("A", "B-PER"), ("l", "O"), ("i", "O"), ("N", "B-LOC"), ("Y", "I-LOC"), (".", "O")]
    assert feature["windows"] == [len(feature["input_ids"])]
    assert "labels" not in task.encode(inputs(CITIES), context)[0]
    unseen = task.encode([tagged("Ada", "B-ORG")], context)[0]
    assert set(unseen["labels"]) == {-100}


def test_a_long_row_is_trained_and_judged_in_windows_without_loss(task, source, make_context):
    row = long_row()
    context = make_context([row], max_length=20)
    (feature,) = task.encode([row], context)
    assert len(feature["windows"]) > 5
    assert max(feature["windows"]) <= 20
    numbers = [context.labels[label] for label in feature["labels"] if label >= 0]
    assert sorted(numbers) == sorted(row["tags"]), "each word once"
    batch = task.collate([feature, task.encode([tagged("w1", "O")], context)[0]], context)
    assert batch["input_ids"].shape == batch["labels"].shape == (len(feature["windows"]) + 1, 20)
    model = task.load_model(source, context).eval()
    (found,) = task.predict(model, inputs([row]), context)
    assert len(found["tags"]) == 60
    # The words in the middle of the first window are judged as if the sentence ended with that window.
    window = feature["input_ids"][: feature["windows"][0]]
    logits = model(input_ids=torch.tensor([window]), attention_mask=torch.ones(1, len(window))).logits[0]
    expected = [context.labels[i] for i in logits.argmax(-1).tolist()]
    assert found["tags"][:4] == [expected[1 + 2 * i] for i in range(4)]


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_each_family_learn_and_predict(task, make_context, checkpoints, family):
    source = ModelSource(name=family, path=str(checkpoints[family]))
    context = make_context(CITIES, source=source)
    torch.manual_seed(0)
    model = task.load_model(source, context)
    assert type(model).__name__.endswith("ForTokenClassification")
    assert model.config.id2label == dict(enumerate(context.labels))
    batch = task.collate(task.encode(CITIES, context), context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = task.loss(model, batch, context)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    found = task.predict(model, inputs(CITIES), context, batch_size=2)
    right = [
        a == b
        for answer, row in zip(found, CITIES, strict=True)
        for a, b in zip(answer["tags"], row["tags"], strict=True)
    ]
    assert sum(right) >= len(right) - 2
    for row, together in zip(inputs(CITIES), found, strict=True):
        (alone,) = task.predict(model, [row], context)
        assert alone["tags"] == together["tags"]
        assert alone["scores"] == pytest.approx(together["scores"], abs=1e-4)
    assert task.predict(model, [], context) == []


def test_padding_on_the_left_changes_nothing(task, make_context, checkpoints):
    # DeBERTa of this kind knows only how far words are apart, so that padding before them can not move them.
    source = ModelSource(name="deberta", path=str(checkpoints["deberta-v2"]))
    context = make_context(CITIES, source=source)
    model = task.load_model(source, context).eval()
    found = []
    for side in ("right", "left"):
        context.processor.padding_side = side
        loss = task.loss(model, task.collate(task.encode(CITIES, context), context), context)
        found.append((loss.item(), task.predict(model, inputs(CITIES), context)))
    (right_loss, right), (left_loss, left) = found
    assert left_loss == pytest.approx(right_loss, rel=1e-5)
    for one, other in zip(right, left, strict=True):
        assert one["tags"] == other["tags"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


def test_a_plain_text_is_split_and_its_entities_are_placed_in_it(task, source, make_context):
    context = make_context(CITIES)
    model = task.load_model(source, context).eval()
    text = "Ada lives in Oslo."
    (found,) = task.predict(model, [{"text": text}], context)
    assert found["tokens"] == ["Ada", "lives", "in", "Oslo", "."]
    assert found["offsets"] == "characters"
    for entity in found["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
        assert 0 < entity["score"] <= 1
    (same,) = task.predict(model, [{"tokens": found["tokens"]}], context)
    assert (same["tags"], same["offsets"]) == (found["tags"], "words")
    assert [entity["label"] for entity in same["entities"]] == [entity["label"] for entity in found["entities"]]


def test_signs_that_a_tokenizer_drops_have_a_tag_too(task, source, make_context):
    context = make_context(CITIES)
    model = task.load_model(source, context).eval()
    odd = [{"tokens": ["Ada", "", "\u200d", "[SEP]"]}, {"tokens": []}, {"text": " "}]
    assert [len(answer["tags"]) for answer in task.predict(model, odd, context)] == [4, 0, 0]


def test_viterbi_gives_legal_tags_of_the_greatest_probability(task, source, make_context):
    greedy, legal = make_context(CITIES), make_context(CITIES, decoding="viterbi")
    torch.manual_seed(3)
    model = task.load_model(source, greedy).eval()
    transitions = Transitions.of(greedy.labels, "iob2")
    place = {name: i for i, name in enumerate(greedy.labels)}

    def broken(answers):
        paths = [[place[tag] for tag in answer["tags"]] for answer in answers]
        return sum(
            transitions.start[path[0]] + sum(transitions.step[a, b] for a, b in pairwise(path)) < 0 for path in paths
        )

    rng = random.Random(0)
    rows = [{"tokens": ["".join(rng.choices("abcXYZ", k=4)) for _ in range(6)]} for _ in range(40)]
    free, kept = task.predict(model, rows, greedy), task.predict(model, rows, legal)
    assert broken(free) > 0
    assert broken(kept) == 0
    for one, other in zip(free, kept, strict=True):
        assert np.prod(one["scores"]) >= np.prod(other["scores"]) - 1e-6


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_the_loss_is_cross_entropy_over_words(task, source, make_context, weights):
    context = make_context(CITIES, {"train.class_weights": weights, "train.label_smoothing": 0.2})
    model = task.load_model(source, context).eval()
    batch = task.collate(task.encode(CITIES, context), context)
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    judged = batch["labels"] >= 0
    logs, labels = torch.log_softmax(logits[judged], -1), batch["labels"][judged]
    tags = [tag for row in CITIES for tag in row["tags"]]
    names = np.array(context.labels)
    each = compute_class_weight("balanced", classes=names, y=tags) if weights == "balanced" else np.ones(len(names))
    share = torch.tensor(each, dtype=torch.float32)
    # Label smoothing as Szegedy et al. 2016: a tenth goes to each of the tags, weighted like them.
    hit = -(share[labels] * logs[range(len(labels)), labels])
    smooth = -(share * logs).sum(-1) / len(names)
    expected = (0.8 * hit + 0.2 * smooth).sum() / share[labels].sum()
    assert task.loss(model, batch, context).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_without_words_costs_nothing(task, source, make_context):
    context = make_context(CITIES)
    model = task.load_model(source, context)
    batch = task.collate(task.encode([{"tokens": [], "tags": []}], context), context)
    loss = task.loss(model, batch, context)
    loss.backward()
    assert loss.item() == 0.0


def test_many_windows_are_trained_in_parts_with_the_same_gradients(task, source, make_context, monkeypatch):
    row = long_row()
    context = make_context([row], {"train.dropout": 0.0}, max_length=20)
    batch = task.collate(task.encode([row], context), context)
    found = []
    for at_once in (2**15, 50):
        monkeypatch.setattr(module, "TOKENS_AT_ONCE", at_once)
        torch.manual_seed(0)
        model = task.load_model(source, context).train()
        loss = task.loss(model, batch, context)
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


def test_references_hold_what_has_to_be_found(task, make_context):
    assert task.reference(CITIES[0], make_context(CITIES))["entities"] == [
        {"label": "PER", "start": 0, "end": 1},
        {"label": "LOC", "start": 3, "end": 5},
    ]
    assert task.reference(SPANS[0], make_context(SPANS))["entities"] == [
        {"label": "PER", "start": 0, "end": 3},
        {"label": "LOC", "start": 13, "end": 21},
    ]
    assert task.reference(SPEECH[0], make_context(SPEECH)) == {"tags": ["DET", "NOUN", "VERB"]}
    broken = tagged("a b c", "O I-PER O")
    assert len(task.reference(broken, make_context([*CITIES, broken]))["entities"]) == 1
    assert task.reference(broken, make_context([*CITIES, broken], strict=True))["entities"] == []


def test_rows_are_stratified_by_whether_they_have_entities(task):
    assert [task.stratum(row) for row in CITIES] == ["some", "some", "none", "some"]
    assert [task.stratum(row) for row in SPANS] == ["some", "none"]
    assert task.stratum({"tokens": "a b", "tags": "O O"}) == "none"
    assert task.stratum({"tokens": "a b", "tags": '["O", "O"]'}) == "none"
    assert task.stratum({"text": "a b", "spans": "[]"}) == "none"
    assert task.stratum({"text": "a b", "spans": json.dumps(SPANS[0]["spans"])}) == "some"


def test_a_tokenizer_that_does_not_say_which_word_a_piece_is_of_is_told(task, make_context, tmp_path):
    from transformers import CanineTokenizer

    CanineTokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="CanineTokenizer does not say which word"):
        make_context(CITIES, source=ModelSource(name="canine", path=str(tmp_path)))


def test_export_traces_the_inputs_that_prediction_gives(task, make_context):
    context = make_context(CITIES)
    spec = task.export_inputs(context)
    given = task.collate(task.encode(inputs(CITIES), context), context)
    assert set(spec.inputs) == set(given) == set(spec.dynamic)
    assert all(min(value.shape) >= 2 for value in spec.inputs.values())


def test_baselines_know_what_the_training_rows_show(task, make_context):
    context = make_context(CITIES)
    majority, lexicon, linear = task.baselines(CITIES, context)
    assert [baseline.trivial for baseline in (majority, lexicon, linear)] == [True, False, False]
    assert [answer["tags"] for answer in majority.predict([{"tokens": ["Ada", "x"]}, {"tokens": []}])] == [
        ["O", "O"],
        [],
    ]
    (found,) = lexicon.predict([{"text": "Ada went from oslo to New Zealand"}])
    assert found["tags"] == ["B-PER", "O", "O", "B-LOC", "O", "B-LOC", "O"]
    assert found["entities"][0] == {"label": "PER", "start": 0, "end": 3, "text": "Ada", "score": 1.0}
    learned = linear.predict(inputs(CITIES))
    assert [answer["tags"] for answer in learned] == [row["tags"] for row in CITIES]
    assert linear.predict([{"tokens": []}])[0]["tags"] == []


def test_the_linear_model_of_many_rows_learns_from_rows_of_every_part(task, make_context, monkeypatch):
    # Sorted rows: all places come last.
    rows = [tagged("we saw it", "O O O")] * 30 + [tagged("we saw Oslo", "O O B-LOC")] * 30
    monkeypatch.setattr(baselines, "MOST_DECISIONS", 100)
    _, _, linear = task.baselines(rows, make_context(rows))
    assert linear.predict(inputs(rows[-1:]))[0]["tags"] == ["O", "O", "B-LOC"]


def test_two_tags_are_enough_for_every_baseline(task, make_context):
    rows = [{"tokens": ["a", "b", "a"], "tags": ["DET", "NOUN", "DET"]}]
    for baseline in task.baselines(rows, make_context(rows)):
        (found,) = baseline.predict(inputs(rows))
        assert found["tags"] == (["DET"] * 3 if baseline.trivial else rows[0]["tags"])


def test_the_report_shows_types_errors_and_sentences(task, make_context):
    context = make_context(CITIES)
    said = [
        ["B-LOC", "O", "O", "B-LOC", "I-LOC", "B-PER"],  # Ada is a place, the dot a person
        ["O", "O", "O"],  # Oslo is missed
        ["O", "O"],
        ["B-PER", "O", "O", "B-PER"],  # Ada Byron is cut short
    ]
    predictions = [
        {**task.reference({**row, "tags": tags}, context), "scores": [0.9] * len(tags)}
        for row, tags in zip(CITIES, said, strict=True)
    ]
    for prediction in predictions:
        prediction["entities"] = [{**entity, "score": 0.9} for entity in prediction["entities"]]
    figures, errors, marked = task.details(CITIES, predictions, context)
    assert isinstance(figures, Table)
    by_type = {row[0]: row[1:] for row in figures.rows}
    assert by_type["LOC"] == pytest.approx((1 / 2, 1 / 2, 1 / 2, 2, 2))
    assert by_type["PER"] == pytest.approx((1 / 3, 1 / 3, 1 / 3, 3, 3))
    assert isinstance(errors, Table)
    assert errors.rows == (
        ("LOC", 1, 0, 0, 0, 1, 0),
        ("PER", 1, 1, 1, 0, 0, 1),
        ("all types", 2, 1, 1, 0, 1, 1),
    )
    assert isinstance(marked, MarkedText)
    headings = [heading for heading, _, _ in marked.rows]
    assert sorted(headings) == ["1 missed", "1 right, 1 wrong, 1 missed", "1 right, 2 wrong, 1 missed"]
    for _, text, marks in marked.rows:
        for mark in marks:
            assert text[mark.start : mark.end] in {"Ada", "New York", ".", "Oslo", "Ada Byron", "Bo"}


def test_types_that_are_rare_or_unknown_share_a_row_of_the_report(task, make_context):
    many = [tagged("a b", f"B-T{i:02} O") for i in range(32)]
    # T00 and T01 are the rarest of the rows that are shown.
    shown = [tagged("x y z", "B-NEW O B-NEWER"), tagged("x y", "B-T00 O"), *many[2:] * 3]
    context = make_context(many)
    predictions = []
    for row in shown:
        said = task.reference({**row, "tags": [tag if "NEW" not in tag else "B-T00" for tag in row["tags"]]}, context)
        entities = [{**entity, "score": 0.9} for entity in said["entities"]]
        predictions.append({"tags": said["tags"], "scores": [0.9] * len(row["tags"]), "entities": entities})
    figures, errors, _ = task.details(shown, predictions, context)
    assert len(figures.rows) == 30 + 2
    # Precision, recall, F1, true, predicted.
    assert figures.rows[-2] == ("2 rarer ones", pytest.approx(1 / 3), 1.0, pytest.approx(0.5), 1, 3)
    assert figures.rows[-1] == ("2 that no training row has", 0.0, 0.0, 0.0, 2, 0)
    assert errors.rows[-2:] == (("2 that no training row has", 0, 0, 2, 0, 0, 0), ("all types", 91, 0, 2, 0, 0, 0))


def test_the_report_of_plain_tags_shows_what_is_taken_for_what(task, make_context):
    context = make_context(SPEECH)
    predictions = [
        {"tags": ["DET", "VERB", "VERB"], "scores": [0.9, 0.8, 0.7]},
        {"tags": ["DET", "NOUN"], "scores": [0.9, 0.8]},
    ]
    figures, matrix, marked = task.details(SPEECH, predictions, context)
    assert {row[0]: row[3] for row in figures.rows} == pytest.approx({"DET": 1.0, "NOUN": 2 / 3, "VERB": 2 / 3})
    assert isinstance(matrix, Matrix)
    assert matrix.values == ((2.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.0, 0.0, 1.0))
    ((heading, text, marks),) = marked.rows
    assert (heading, text) == ("1 wrong, 1 missed", "the cat sat")
    assert {(mark.start, mark.end, mark.label, mark.verdict) for mark in marks} == {
        (4, 7, "VERB", "wrong"),
        (4, 7, "NOUN", "missed"),
    }


def test_of_a_long_text_the_part_around_the_first_error_is_shown(task, make_context):
    text = "word " * 200 + "Oslo " + "word " * 200
    rows = [{"text": text, "spans": [{"start": 1000, "end": 1004, "label": "LOC"}]}]
    context = make_context(rows)
    prediction = {"tags": ["O"] * 401, "scores": [0.5] * 401, "entities": []}
    *_, marked = task.details(rows, [prediction], context)
    ((_, shown, (mark,)),) = marked.rows
    assert len(shown) <= 400
    assert shown[mark.start : mark.end] == "Oslo"


places = st.builds(
    lambda label, start, length: Entity(label, start, start + length),
    st.sampled_from("XY"),
    st.integers(0, 12),
    st.integers(1, 4),
)


@settings(max_examples=200, deadline=None)
@given(said=st.sets(places, max_size=6), true=st.sets(places, max_size=6))
def test_each_entity_is_counted_as_one_kind_of_error(said, true):
    kinds = error_kinds(said, true)
    counts = {kind: [entity for name, entity in kinds if name == kind] for kind in {name for name, _ in kinds}}
    assert set(counts.get("right", [])) == said & true
    assert sorted(entity for kind, entity in kinds if kind != "spurious") == sorted(true)
    paired = sum(len(found) for kind, found in counts.items() if kind in {"wrong type", "wrong boundary", "both wrong"})
    assert len(said - true) == paired + len(counts.get("spurious", []))
    assert set(counts.get("spurious", [])) <= said - true


def test_a_search_leaves_a_model_that_tags_and_a_report_that_shows_it(tmp_path, checkpoints):
    from autoft.api import search

    rng = random.Random(0)
    people, towns = ["Ada", "Bo", "Cy", "Dee"], ["Oslo", "Rome", "York", "Bonn"]
    rows = []
    for number in range(240):
        person, town = rng.choice(people), rng.choice(towns)
        words = [person, "in", town, f"n{number}"]
        rows.append({"words": words, "ner": ["B-PER", "O", "B-LOC", "O"]})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "task": "token-classification",
        "model": str(checkpoints["bert"]),
        "data": {"train": str(data), "validation_size": 40, "test_size": 40},
        "effort": "quick",
        "budget": {"time": "5m", "trials": 1},
        "compress": ["none"],
        "space": {"full.learning_rate": 5e-3, "train.epochs": 3, "train.batch_size": 16},
        "search": {"finalist_seeds": 0},
    }
    run = search(recipe, run=tmp_path / "run")
    best = run.best
    (found,) = best.predict("Bo in Rome n7")
    assert [(entity["label"], entity["text"]) for entity in found["entities"]] == [("PER", "Bo"), ("LOC", "Rome")]
    page = run.report.read_text()
    for expected in ("Figures for each type", "What became of entities", "most frequent tag of each word"):
        assert expected in page


def test_models_together_may_choose_a_tag_that_none_chose_alone(task, source, make_context):
    context = make_context(SPEECH)
    assert list(context.labels) == ["DET", "NOUN", "VERB"]
    sentence = module.read_sentence({"tokens": ["can"]}, context.facts, 0)
    chances = ([0.51, 0.0, 0.49], [0.0, 0.51, 0.49])
    with np.errstate(divide="ignore"):
        said = [[{"sentence": sentence, "scores": np.log([row])}] for row in chances]
    assert [task.combine([one], context)[0]["tags"] for one in said] == [["DET"], ["NOUN"]]
    (answer,) = task.combine(said, context)
    assert answer["tags"] == ["VERB"]
    assert answer["scores"] == pytest.approx([0.49], abs=1e-6)
