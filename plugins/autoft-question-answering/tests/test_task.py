"""Windows, the loss, the search for spans, predictions and the report, against brute force."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from autoft import api
from autoft.artifact import save_artifact
from autoft.cli import app
from autoft.contracts import MarkedText, Matrix, ModelSource, Table, Target
from autoft.errors import ModelError
from autoft.evaluation import measure_folder
from autoft.hardware import Hardware

FAMILIES = ["bert", "distilbert", "roberta", "deberta-v2", "longformer"]
LETTER = "Anna wrote the letter in 1903, in a small town called Brig. It was found by Carl Meier under a floor in 1998."
LONG = " ".join(f"The house number {i} has {i + 2} rooms, and was built by Carl." for i in range(8))
CHINESE = "安娜在一九零三年写了这封信。卡尔在地板下面找到了它。"


def row(question, context, answer):
    given = [] if answer is None else {"text": [answer], "answer_start": [context.index(answer)]}
    return {"question": question, "context": context, "answers": given}


ROWS = [
    row("Who wrote the letter?", LETTER, "Anna"),
    row("Where was the letter written?", LETTER, "Brig"),
    row("Who found it?", LETTER, "Carl Meier"),
    row("Which house has eight rooms?", LONG, "house number 6"),
    row("谁写了这封信？", CHINESE, "安娜"),
]
UNANSWERABLE = [*ROWS, row("Who read the letter first?", LETTER, None), row("Which house is blue?", LONG, None)]


def inputs(rows):
    return [{name: value for name, value in row.items() if name != "answers"} for row in rows]


def cut(feature):
    """Return the windows of a feature as lists."""
    ends = list(itertools.accumulate(feature["windows"]))
    return [slice(end - length, end) for end, length in zip(ends, feature["windows"], strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_stand_for_the_characters_of_the_answer(name, task, make_context, folder_of):
    source = ModelSource(name=name, path=str(folder_of(name)))
    context = make_context(UNANSWERABLE, model=source, train_windows=100)
    for row, feature in zip(UNANSWERABLE, task.encode(UNANSWERABLE, context), strict=True):
        found = 0
        assert task.length(feature) == sum(feature["windows"])
        for number, window in enumerate(cut(feature)):
            ids, starts, ends = (feature[key][window] for key in ("input_ids", "starts", "ends"))
            assert len(ids) <= context.max_length
            first, last = feature["labels"][2 * number : 2 * number + 2]
            if not row["answers"]:
                assert first == last == feature["null"]
                assert starts[first] == -1
            elif first >= 0:
                found += 1
                assert row["context"][starts[first] : ends[last]] == row["answers"]["text"][0]
        assert found or not row["answers"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_and_answers_with_stretches_of_the_context(name, task, make_context, folder_of):
    source = ModelSource(name=name, path=str(folder_of(name)))
    context = make_context(UNANSWERABLE, {"train.dropout": 0.0}, model=source)
    model = task.load_model(source, context)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    batch = task.collate(task.encode(UNANSWERABLE, context), context)
    loss = task.loss(model, batch, context)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert math.isfinite(loss.item())
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0
    for row, found in zip(UNANSWERABLE, task.predict(model, inputs(UNANSWERABLE), context), strict=True):
        assert json.loads(json.dumps(found)) == found
        assert 0 <= found["no_answer"] <= 1
        for span in found["candidates"]:
            assert row["context"][span["start"] : span["end"]] == span["answer"] != ""
            assert span["answer"] == span["answer"].strip()
        best = found["candidates"][0]
        refused = {"answer": "", "start": -1, "end": -1, "score": found["no_answer"]}
        expected = refused if found["no_answer"] > 0.5 else best
        assert {key: found[key] for key in expected} == expected


def test_the_question_of_a_longformer_is_seen_by_all_tokens(task, make_context, folder_of):
    source = ModelSource(name="longformer", path=str(folder_of("longformer")))
    context = make_context(ROWS, model=source)
    model = task.load_model(source, context).eval()
    batch = task.collate(task.encode(ROWS[:1], context), context)
    mask = batch["global_attention_mask"]
    question = len(context.processor(ROWS[0]["question"])["input_ids"]) - 1
    assert mask.sum(1).tolist() == [question] * len(mask)
    assert (mask[:, :question] == 1).all()
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    # Without a mask the model makes it, of what stands before the first separator.
    expected = model(**given).start_logits
    assert torch.allclose(model(**given, global_attention_mask=mask).start_logits, expected, atol=1e-5)
    assert not torch.allclose(model(**given, global_attention_mask=0 * mask).start_logits, expected, atol=1e-5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(0, 300),
    room=st.integers(1, 80),
    stride=st.integers(0, 100),
)
def test_windows_reach_every_token_and_share_what_was_asked(tokens, room, stride, task, make_context):
    context = replace(make_context(ROWS), options={"stride": stride})
    starts = task.window_starts(tokens, room, context)
    assert sorted(set(starts)) == starts
    covered = {place for at in starts for place in range(at, min(at + room, tokens))}
    assert covered == set(range(tokens))
    if len(starts) > 1:
        shared = [one + room - other for one, other in itertools.pairwise(starts)]
        assert all(count >= min(stride, room // 2) for count in shared)
        assert starts[-1] + room == tokens


def test_a_long_question_is_cut_and_leaves_room_for_the_context(task, make_context):
    context = make_context(ROWS, max_length=24, max_question_tokens=64)
    long = row("who wrote the letter " * 20, LETTER, "Anna")
    (feature,) = task.encode([long], context)
    assert max(feature["windows"]) <= 24
    assert sum(start >= 0 for start in feature["starts"][: feature["windows"][0]]) >= 10
    (short,) = task.encode([long], replace(context, options={**context.options, "max_question_tokens": 5}))
    assert len(short["windows"]) < len(feature["windows"])


@pytest.mark.parametrize("most", [1, 2, 3, 50])
def test_training_reads_the_windows_with_the_answer_first(most, task, make_context):
    context = make_context(ROWS, max_length=32, stride=8, train_windows=most)
    (feature,) = task.encode([ROWS[3]], context)
    (everything,) = task.encode(inputs([ROWS[3]]), context)
    assert len(everything["windows"]) > 4, "predictions read all"
    assert len(feature["windows"]) == min(most, len(everything["windows"]))
    firsts = feature["labels"][::2]
    assert any(first >= 0 for first in firsts)
    assert most < 3 or any(first < 0 for first in firsts)


def test_an_answer_longer_than_every_window_is_learned_from_its_start(task, make_context):
    answer = LONG[: LONG.index("house number 5")].strip()
    context = make_context([row("What?", LONG, answer)], max_length=24, stride=4)
    (feature,) = task.encode([row("What?", LONG, answer)], context)
    window = cut(feature)[0]
    first, last = feature["labels"][:2]
    assert feature["starts"][window][first] == 0
    assert last == len(feature["input_ids"][window]) - 2, "up to the token before the separator"


@pytest.mark.parametrize("rows", [ROWS[:3], UNANSWERABLE])
def test_the_loss_is_the_likelihood_over_all_windows_of_a_row(rows, task, source, make_context):
    context = make_context(UNANSWERABLE, {"train.dropout": 0.0}, max_length=32, stride=8)
    model = task.load_model(source, context).eval()
    features = task.encode(rows, context)
    found = task.loss(model, task.collate(features, context), context)
    losses = []
    for feature in features:
        every, right = ([], []), 0.0
        # One window at a time, so that nothing is padded.
        for number, window in enumerate(cut(feature)):
            given = {key: torch.tensor([feature[key][window]]) for key in ("input_ids", "token_type_ids")}
            output, gold = model(**given), 1.0
            starts = feature["starts"][window]
            for side, name in enumerate(("start_logits", "end_logits")):
                logits = getattr(output, name)[0].tolist()
                every[side].extend(
                    v for place, v in enumerate(logits) if starts[place] >= 0 or place == feature["null"]
                )
                label = feature["labels"][2 * number + side]
                gold *= math.exp(logits[label]) if label >= 0 else 0.0
            right += gold
        spread = sum(math.log(sum(map(math.exp, side))) for side in every)
        losses.append((spread - math.log(right)) / 2)
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), seq=st.integers(1, 12), longest=st.integers(1, 14), count=st.integers(1, 6))
def test_the_best_spans_are_those_of_a_loop_over_all_pairs(data, seq, longest, count, task, make_context):
    logits = st.lists(st.floats(-5, 5, width=32), min_size=seq, max_size=seq)
    starts, ends = data.draw(logits), data.draw(logits)
    legal = data.draw(st.lists(st.booleans(), min_size=seq, max_size=seq))
    context = replace(make_context(ROWS), options={"max_answer_tokens": longest, "candidates": count})
    (found,) = task.best_spans(
        torch.tensor([starts]), torch.tensor([ends]), torch.tensor([legal]), torch.tensor([0]), context
    )
    spans = {
        (i, j): starts[i] + ends[j]
        for i in range(seq)
        for j in range(i, min(seq, i + longest))
        if legal[i] and legal[j]
    }
    expected = sorted(spans.values(), reverse=True)[:count]
    assert found.scores == pytest.approx(expected, abs=1e-5)
    for score, span in zip(found.scores, zip(found.starts, found.ends, strict=True), strict=True):
        assert spans[span] == pytest.approx(score, abs=1e-5)
    assert found.null == pytest.approx((starts[0], ends[0]))
    if spans:
        assert found.total == pytest.approx(math.log(sum(map(math.exp, spans.values()))), abs=1e-4)


def test_predictions_do_not_depend_on_batches_or_other_rows(task, source, make_context):
    context = make_context(UNANSWERABLE, max_length=32, stride=8)
    model = task.load_model(source, context).eval()
    together = task.predict(model, inputs(UNANSWERABLE), context, batch_size=3)
    for asked, found in zip(inputs(UNANSWERABLE), together, strict=True):
        (alone,) = task.predict(model, [asked], context)
        assert (found["answer"], found["start"], found["end"]) == (alone["answer"], alone["start"], alone["end"])
        assert found["score"] == pytest.approx(alone["score"], abs=1e-5)
        assert found["no_answer"] == pytest.approx(alone["no_answer"], abs=1e-5)
    assert task.predict(model, [], context) == []


def test_scores_are_shares_of_all_spans_and_no_answer(task, source, make_context):
    context = make_context(UNANSWERABLE, max_length=48, candidates=10**4, max_answer_tokens=48)
    model = task.load_model(source, context).eval()
    (found,) = task.predict(model, inputs(UNANSWERABLE[:1]), context)
    (feature,) = task.encode(inputs(UNANSWERABLE[:1]), context)
    batch = task.collate([feature], context)
    output = model(**{key: batch[key] for key in ("input_ids", "token_type_ids", "attention_mask")})
    null = (output.start_logits[0, 0] + output.end_logits[0, 0]).item()
    best = math.log(found["candidates"][0]["score"])
    spans = sum(span["score"] for span in found["candidates"])
    # What the spans leave of the whole is the share of no answer.
    assert found["no_answer"] == pytest.approx((1 - spans) / (1 - spans + math.exp(best)), rel=1e-3)
    total = null - math.log(1 - spans)
    assert found["candidates"][0]["score"] == pytest.approx(math.exp(best), rel=1e-6)
    assert math.isfinite(total)


def test_a_context_without_a_word_is_left_unanswered(task, source, make_context):
    context = make_context(ROWS)
    model = task.load_model(source, context).eval()
    for text in ("", " \n"):
        (found,) = task.predict(model, [{"question": "Who?", "context": text}], context)
        assert found == {
            "answer": "",
            "start": -1,
            "end": -1,
            "score": 1.0,
            "no_answer": 1.0,
            "candidates": [],
        }


def test_questions_are_always_answered_where_training_had_none_without_an_answer(task, source, make_context):
    context = make_context(ROWS)
    model = task.load_model(source, context).eval()
    assert all(found["answer"] for found in task.predict(model, inputs(UNANSWERABLE), context))


def test_the_operating_point_decides_what_is_left_unanswered(task, source, make_context):
    context = make_context(UNANSWERABLE)
    model = task.load_model(source, context).eval()
    predictions = task.predict(model, inputs(UNANSWERABLE), context)
    point = task.operating_point(UNANSWERABLE, predictions, context)
    for threshold in (point["no_answer_threshold"], -1.0, 1.0):
        decided = replace(context, facts={**context.facts, "operating_point": {"no_answer_threshold": threshold}})
        for found in task.predict(model, inputs(UNANSWERABLE), decided):
            assert (found["answer"] == "") == (found["no_answer"] > threshold)
    fixed = replace(context, options={**context.options, "no_answer_threshold": 0.0})
    assert task.operating_point(UNANSWERABLE, predictions, fixed) == {}
    assert all(found["answer"] == "" for found in task.predict(model, inputs(UNANSWERABLE), fixed))
    assert task.operating_point(ROWS, predictions[: len(ROWS)], make_context(ROWS)) == {}


def test_a_few_rows_are_learned_by_heart(task, source, make_context):
    rows = UNANSWERABLE
    # All windows are learned: what a model says of one that it never saw is chance.
    context = make_context(rows, {"train.dropout": 0.0}, stride=8, train_windows=99)
    torch.manual_seed(0)
    model = task.load_model(source, context)
    batch = task.collate(task.encode(rows, context), context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        task.loss(model, batch, context).backward()
        optimizer.step()
        optimizer.zero_grad()
    said = [found["answer"] for found in task.predict(model, inputs(rows), context)]
    assert said == [(task.reference(row, context) or [""])[0] for row in rows]


def test_a_tokenizer_without_places_is_refused(task, source, make_context, monkeypatch):
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda self: False))
    with pytest.raises(ModelError, match="does not say which characters its tokens stand for"):
        task.load_processor(source, make_context)


def test_a_damaged_model_is_told_with_its_place(task, source, make_context, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bertt"}')
    with pytest.raises(ModelError, match="the model cannot be loaded") as caught:
        task.load_model(replace(source, path=str(tmp_path)), make_context(ROWS))
    assert str(caught.value).startswith(str(tmp_path))


def test_a_base_with_a_head_for_other_classes_gets_one_for_spans(task, source, make_context, tmp_path):
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(source.path, num_labels=5).save_pretrained(tmp_path)
    model = task.load_model(replace(source, path=str(tmp_path)), make_context(ROWS, {"train.dropout": 0.25}))
    assert model.qa_outputs.out_features == 2
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


def test_the_trivial_baseline_is_what_suits_the_training_rows(task, make_context):
    sentence, _ = task.baselines(ROWS, make_context(ROWS))
    assert (sentence.name, sentence.trivial) == ("first sentence", True)
    (found,) = sentence.predict(inputs(ROWS[:1]))
    assert found["answer"] == "Anna wrote the letter in 1903, in a small town called Brig."
    empty = [ROWS[0], *(row(f"Which house is {colour}?", LONG, None) for colour in ("blue", "red", "grey"))]
    nothing, _ = task.baselines(empty, make_context(empty))
    assert nothing.name == "no answer"
    assert nothing.predict(inputs(ROWS[:1]))[0]["answer"] == ""


def test_the_overlap_baseline_takes_the_name_or_number_beside_the_words_of_the_question(task, make_context):
    text = (
        "The bridge at Corry was opened by Lady Mabel Finch. It has 12 arches. A toll of 3 pence was asked until 1902."
    )
    rows = [
        row("How many arches has the bridge?", text, "12"),
        row("How many pence was the toll?", text, "3"),
        row("Who opened the bridge?", text, "Lady Mabel Finch"),
    ]
    _, nearest = task.baselines(rows, make_context(rows))
    for own, found in zip(rows, nearest.predict(inputs(rows)), strict=True):
        assert found["answer"] in {own["answers"]["text"][0], "Corry"}
        assert text[found["start"] : found["end"]] == found["answer"]
    assert nearest.predict([{"question": "How many arches are there?", "context": text}])[0]["answer"] == "12"
    assert (
        nearest.predict([{"question": "谁写了这封信？", "context": CHINESE}])[0]["answer"]
        == "安娜在一九零三年写了这封信。"
    )
    assert nearest.predict([{"question": "Who?", "context": ""}])[0]["answer"] == ""


def test_the_overlap_baseline_refuses_what_shares_too_little(task, make_context):
    rows = [*UNANSWERABLE, row("Why is a zebra striped?", LETTER, None), row("Which planet is nearest?", LETTER, None)]
    _, nearest = task.baselines(rows, make_context(rows))
    (zebra,) = nearest.predict(inputs([rows[-2]]))
    assert zebra["answer"] == ""
    assert zebra["candidates"]


def said(answer, text, score, no_answer=0.1):
    start = text.index(answer) if answer else -1
    return {
        "answer": answer,
        "start": start,
        "end": start + len(answer) if answer else -1,
        "score": score,
        "no_answer": no_answer,
        "candidates": [],
    }


def test_the_report_shows_figures_by_kind_and_length_and_marks_answers(task, make_context):
    rows = [ROWS[0], ROWS[1], ROWS[2], UNANSWERABLE[5]]
    predictions = [
        said("Anna", LETTER, 0.9),
        said("a small town called Brig", LETTER, 0.6),
        said("", LETTER, 0.8, 0.8),
        said("Carl Meier", LETTER, 0.7),
    ]
    words, lengths, refused, marked = task.details(rows, predictions, make_context(UNANSWERABLE))
    assert isinstance(words, Table)
    # Of "small town called brig" one of four words is right: precision 1/4, recall 1.
    assert words.rows == (("who", pytest.approx(1 / 3), pytest.approx(1 / 3), 3), ("where", 0.0, pytest.approx(0.4), 1))
    assert isinstance(lengths, Table)
    assert [(line[0], line[3]) for line in lengths.rows] == [("no answer", 1), ("1", 2), ("2", 1)]
    assert isinstance(refused, Matrix)
    assert refused.values == ((2.0, 1.0), (1.0, 0.0))
    assert isinstance(marked, MarkedText)
    verdicts = [[(text[mark.start : mark.end], mark.verdict) for mark in marks] for _, text, marks in marked.rows]
    assert verdicts == [
        [("Carl Meier", "missed")],
        [("Carl Meier", "wrong")],
        [("a small town called Brig", "wrong"), ("Brig", "missed")],
        [("Anna", "right")],
    ]
    assert marked.rows[0][0] == "Who found it? (score 0.80, left unanswered)"


def test_marks_far_apart_are_shown_in_stretches_of_their_own(task, make_context):
    text = "Anna came. " + "Nothing happened here. " * 60 + "Carl left."
    rows = [row("Who left?", text, "Carl")]
    *_, marked = task.details(rows, [said("Anna", text, 0.5)], make_context(rows))
    ((_, shown, marks),) = marked.rows
    assert len(shown) < 300
    assert [(shown[mark.start : mark.end], mark.verdict) for mark in marks] == [("Anna", "wrong"), ("Carl", "missed")]
    assert " … " in shown


def test_a_trials_model_tells_from_python_too_that_nothing_was_decided_of_it(task, source, make_context, tmp_path):
    context = make_context(UNANSWERABLE)
    model, hardware = task.load_model(source, context), Hardware.probe()
    target = Target(task, source, model.config.to_dict(), context, hardware)
    trial, best = tmp_path / "run/trials/0000/variants/none", tmp_path / "run/best"
    for folder in (trial, best):
        save_artifact(folder, model, target, writer=None, variant="none", objective="qa_f1")
    with pytest.warns(UserWarning, match="question-answering decides on validation"):
        api.load(trial)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        api.load(best)


def test_a_search_ends_with_models_that_answer_and_a_report_that_shows_it(folder_of, tmp_path):
    def line(person, place, year, number):
        text = f"{person} wrote the letter in {year}, in a small town called {place}."
        choice = [
            ("Who wrote the letter?", person),
            ("Where was the letter written?", place),
            ("How many rooms has it?", None),
        ]
        return row(*[choice[number % 3][0], text, choice[number % 3][1]])

    people, places = ["Anna", "Carl", "Meier", "the house"], ["Brig", "Floor", "Town"]
    lines = [
        line(person, place, 1900 + i, i) for i, (person, place) in enumerate(itertools.product(people * 3, places))
    ]
    (tmp_path / "letters.jsonl").write_text(
        "\n".join(
            json.dumps({**entry, "answers": entry["answers"] or {"text": [], "answer_start": []}}) for entry in lines
        )
    )
    run = api.search(
        {
            "task": "question-answering",
            "model": str(folder_of("bert")),
            "data": {"train": str(tmp_path / "letters.jsonl"), "validation_size": 6, "test_size": 9},
            "budget": {"trials": 1, "time": "5m"},
            "effort": "quick",
            "compress": ["none"],
            "search": {"finalist_seeds": 0},
            "space": {"train.epochs": 1},
        },
        run=tmp_path / "run",
    )
    threshold = run.best.context.facts["operating_point"]["no_answer_threshold"]
    (found,) = run.best.predict([{"question": "Who wrote the letter?", "context": lines[0]["context"]}])
    assert (found["answer"] == "") == (found["no_answer"] > threshold)
    # Exports are made from the trial's files, which are from before the threshold was decided.
    variant = run.path / "trials/0000/variants/none"
    asked = json.dumps({"question": "Who wrote the letter?", "context": lines[0]["context"]})
    for model, told in ((run.path, False), (variant, True)):
        done = CliRunner().invoke(app, ["predict", str(model)], input=asked)
        assert ("decides on validation" in done.stderr) == told
    for model in (run.path, variant):
        exported = api.export(model, "safetensors", output=tmp_path / "exported").path
        assert json.loads((exported / "preprocessing.json").read_text())["no_answer_threshold"] == threshold
        assert api.load(exported).context.facts["operating_point"]["no_answer_threshold"] == threshold
    final = run.record.final
    # The chosen one is the default itself, and so decided too.
    assert (final.test["default"], final.costs["default"]) == (final.test["best"], final.costs["best"])
    again = measure_folder(
        *(run.path / "best", run.path / "data"),
        validation=True,
        test=True,
        costs=False,
        batch_size=1,
        length=None,
        device="cpu",
        threads=1,
    )
    assert again["validation"] == pytest.approx(final.validation["best"])
    assert {name: one["value"] for name, one in again["test"].items()} == pytest.approx(
        {name: one.value for name, one in final.test["best"].items()}
    )
    page = run.report.read_text(encoding="utf-8")
    for shown in ("Figures by question word", "Figures by length", "Answers in their contexts", "span nearest"):
        assert shown in page


def test_models_together_answer_with_the_span_that_has_most_of_their_probability(task, make_context):
    rows = [
        {"question": "who", "context": "Ada and Bo", "answers": "Ada"},
        {"question": "x", "context": "y", "answers": []},
    ]
    context = make_context(rows)

    def said(no_answer, **scores):
        places = {"Ada": (0, 3), "Bo": (8, 10), "and": (4, 7)}
        spans = [
            {"answer": a, "start": places[a][0], "end": places[a][1], "score": score} for a, score in scores.items()
        ]
        return [{**spans[0], "no_answer": no_answer, "candidates": spans}]

    first, second = said(0.2, Ada=0.5, Bo=0.4), said(0.5, Bo=0.3)
    (answer,) = task.combine([first, second], context)
    assert [span["answer"] for span in answer["candidates"]] == ["Bo", "Ada"]
    assert [span["score"] for span in answer["candidates"]] == pytest.approx([(0.4 + 0.3) / 2, 0.5 / 2])
    assert (answer["answer"], answer["start"], answer["end"]) == ("Bo", 8, 10)
    assert answer["no_answer"] == pytest.approx(0.35)
    (left,) = task.combine([first, said(0.9, Bo=0.3)], context)
    assert (left["answer"], left["start"], left["score"]) == ("", -1, pytest.approx(0.55))
