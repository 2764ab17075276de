from __future__ import annotations

import json

import pytest
from rouge_score.rouge_scorer import RougeScorer

import autoft
from autoft.api import search
from autoft.contracts import Examples, Table
from autoft.errors import DataError

LONG = " ".join(f"Sentence {number} of a long document." for number in range(1, 80))
TURNS = [{"speaker": "Ann", "text": "Are you coming?"}, {"speaker": "Ben", "text": "I have a cold."}]


def inputs(rows):
    return [{"document": row["document"]} for row in rows]


def test_facts_say_what_is_counted_and_how_long_a_summary_is(task):
    rows = [{"document": "x", "summary": text} for text in ("one two three", "a b c d", ["a b c d e f", "one"])]
    facts = task.facts(rows, {})
    assert (facts["rouge_tokenizer"], facts["summary_words"]) == ("ascii", 4)
    rows = [{"document": "狗在家里。", "summary": "狗在家"}]
    facts = task.facts(rows, {})
    assert (facts["rouge_tokenizer"], facts["summary_words"]) == ("unicode", 3)
    assert task.facts(rows, {"rouge_tokenizer": "ascii"})["rouge_tokenizer"] == "ascii"
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"document": None, "summary": "a"}, "row 2: 'document' has to be a text, or a list of turns"),
        ({"document": 3, "summary": "a"}, "row 2: 'document' .* given int 3"),
        ({"document": [{"speaker": "Ann"}], "summary": "a"}, "row 2: 'document': a turn needs its text under"),
        ({"document": "a", "summary": None}, "row 2: 'summary' has to be a text"),
        ({"document": "a", "summary": []}, "row 2: 'summary' has to be a text"),
        ({"document": "a", "summary": 3}, "row 2: 'summary' has to be a text, given 3"),
    ],
)
def test_rows_that_cannot_be_learned_from_are_told(row, expected, task, make_context):
    rows = [{"document": "a", "summary": "a"}, row]
    with pytest.raises(DataError, match=expected):
        task.facts(rows, {})
    _, context = make_context("t5")
    if row["summary"] == "a":
        with pytest.raises(DataError, match=expected):
            task.encode(rows, context)
        with pytest.raises(DataError, match=expected):
            task.predict(None, inputs(rows), context)


def test_the_first_reference_is_learned_and_all_count(task, make_context):
    _, context = make_context("t5")
    row = {"document": "a b", "summary": ["first", None, "second"]}
    assert task.reference(row, context) == ["first", "second"]
    assert context.processor.source.decode(task.encode([row], context)[0]["labels"]) == "first</s>"


def test_t5_reads_its_prefix_and_bart_the_document_alone(task, make_context):
    for name, expected in (("t5", "summarize: a b</s>"), ("bart", "a b</s>")):
        _, context = make_context(name)
        (feature,) = task.encode([{"document": "a b"}], context)
        assert context.processor.source.decode(feature["input_ids"]) == expected


def test_a_dialogue_of_turns_is_read_as_its_text(task, make_context):
    _, context = make_context("bart")
    turns, text = task.encode([{"document": TURNS}, {"document": "Ann: Are you coming?\nBen: I have a cold."}], context)
    assert turns == text


def test_a_chat_model_is_asked_and_any_other_continues(task, make_context):
    rows = [{"document": "The dog barks.", "summary": "A dog."}]
    _, context = make_context("llama-chat", rows)
    (feature,) = task.encode(rows, context)
    asked = "<|user|>Summarize the following text in about 2 words.\n\nThe dog barks.<|end|><|assistant|>"
    assert context.processor.source.decode(feature["input_ids"]) == asked + "A dog.<|end|>"
    learned = [label for label in feature["labels"] if label != -100]
    assert context.processor.source.decode(learned) == "A dog.<|end|>"
    _, context = make_context("llama-chat", rows, instruction="In short:")
    assert task.prompt(rows[0], context) == [{"role": "user", "content": "In short:\n\nThe dog barks."}]
    for name, options in (("llama-chat", {"instruction": ""}), ("gpt2", {})):
        _, context = make_context(name, rows, **options)
        assert task.prompt(rows[0], context) == "The dog barks.\n\nTL;DR:\n"


@pytest.mark.parametrize("name", ["llama-chat", "gpt2"])
def test_a_long_document_loses_its_end_and_leaves_room_for_the_summary(name, task, make_context):
    _, context = make_context(name)
    row = {"document": LONG, "summary": "It has sentences."}
    decode = context.processor.source.decode
    (asked,) = task.encode([{"document": LONG}], context)
    (learned,) = task.encode([row], context)
    # Bytes are tokens here. Some are kept back, for tokens of words join differently in different places.
    assert 200 - 24 - 4 <= len(asked["input_ids"]) <= 200 - 24
    assert len(learned["input_ids"]) <= 200
    text = decode(asked["input_ids"])
    assert decode(learned["input_ids"]).startswith(text)
    assert "Sentence 1 of a long document. Sentence 2" in text
    assert text.endswith({"gpt2": "\n\nTL;DR:\n", "llama-chat": "<|end|><|assistant|>"}[name])


@pytest.mark.parametrize("name", ["t5", "bart", "bert", "llama-chat"])
def test_predictions_come_in_the_order_of_the_rows_whatever_the_batch(name, task, make_context):
    source, context = make_context(name, max_new_tokens=6)
    model = task.load_model(source, context).eval()
    rows = [*inputs(task.demo_rows()), {"document": TURNS}]
    together = task.predict(model, rows, context, batch_size=2)
    assert together == [task.predict(model, [row], context)[0] for row in rows]
    assert all(set(found) == {"text"} for found in together)
    assert task.predict(model, [], context) == []


def test_no_run_of_tokens_comes_twice_where_that_is_asked(task, make_context):
    source, context = make_context("bart", max_new_tokens=8)
    model = task.load_model(source, context).eval()
    model.final_logits_bias[0, context.processor.source.convert_tokens_to_ids("b")] = 100.0
    row = {"document": "a"}
    # BART always ends with its end token: it is the eighth.
    assert task.predict(model, [row], context) == [{"text": "b" * 7}]
    _, context = make_context("bart", max_new_tokens=8, no_repeat_ngram_size=2)
    # "bb" comes once, after any other token again.
    assert "bbb" not in task.predict(model, [row], context)[0]["text"]


def test_outputs_are_as_long_as_asked(task, make_context):
    source, context = make_context("bart", max_new_tokens=10)
    model = task.load_model(source, context).eval()
    row = {"document": "a"}
    # The end comes at once.
    model.final_logits_bias[0, 2] = 100.0
    assert task.predict(model, [row], context) == [{"text": ""}]
    _, least = make_context("bart", max_new_tokens=10, min_new_tokens=4)
    assert len(task.predict(model, [row], least)[0]["text"]) > 0
    # Each byte is a token, and what is no whole character stands as one sign.
    model.final_logits_bias[0, 2] = -100.0
    assert 0 < len(task.predict(model, [row], context)[0]["text"]) <= 10


def test_the_files_of_a_model_say_what_the_options_ask_of_a_summary(task, make_context, tmp_path):
    from transformers import GenerationConfig

    asked = {"min_new_tokens": 4, "no_repeat_ngram_size": 2, "length_penalty": 2.0}
    for beams, kept in ((4, asked), (1, {**asked, "length_penalty": 1.0})):
        source, context = make_context("bart", max_new_tokens=12, num_beams=beams, **asked)
        task.load_model(source, context).generation_config.save_pretrained(tmp_path)
        found = GenerationConfig.from_pretrained(tmp_path).to_dict()
        assert {name: found[name] for name in kept} == kept, beams


def test_the_length_penalty_decides_between_beams(task, make_context):
    source, context = make_context("bart", max_new_tokens=12, num_beams=4)
    model = task.load_model(source, context).eval()
    features = task.encode([{"document": "a b c"}], context)
    lengths = []
    for penalty in (-9.0, 9.0):
        _, context = make_context("bart", max_new_tokens=12, num_beams=4, length_penalty=penalty)
        lengths.append(len(task.generate(model, features, context)[0]))
    assert lengths[0] < lengths[1]


def test_baselines_are_sentences_of_the_document(task, make_context):
    _, context = make_context("t5")
    lead, central = task.baselines(task.demo_rows(), context)
    assert (lead.trivial, central.trivial) == (True, False)
    rows = inputs(task.demo_rows())
    assert lead.predict(rows)[0]["text"] == "The bridge over the river Aller was closed on Tuesday."
    assert lead.predict(rows)[1]["text"].startswith("Ann: Are you coming to the rehearsal tonight?\nBen:")
    for row, found in zip(rows, central.predict(rows), strict=True):
        assert all(line in row["document"] for line in found["text"].split("\n"))


def test_baselines_of_a_script_without_spaces(task, make_context):
    rows = [{"document": "狗在家里。猫在外面。狗和猫在家里。", "summary": "猫在外面。"}] * 2
    _, context = make_context("t5", rows)
    lead, central = task.baselines(rows, context)
    assert lead.predict(inputs(rows))[0] == {"text": "狗在家里。"}
    assert central.predict(inputs(rows))[0]["text"] in {"狗在家里。", "狗和猫在家里。"}


def test_the_report_shows_lengths_manner_and_examples(task, make_context):
    rows = [
        {"document": "a b c d", "summary": ["a b", "d c"]},
        {"document": "a b c d e f " + LONG, "summary": "a b c"},
        {"document": "a b", "summary": "a"},
        {"document": "a b c", "summary": "b c"},
    ]
    said = [{"text": text} for text in ("d c", "x b", "a", "q r")]
    _, context = make_context("t5", rows)
    table, written, examples = task.details(rows, said, context)
    assert isinstance(table, Table)
    assert [row[:3] for row in table.rows] == [
        ("2 to 2", 1, 1.0),
        ("3 to 3", 1, 1.0),
        ("4 to 4", 1, 1.0),
        ("480 to 480", 1, 0.0),
    ]
    scorer = RougeScorer(["rougeL", "rouge1", "rouge2", "rougeLsum"])
    expected = scorer.score("a b c", "x b")
    assert table.rows[3][3:] == pytest.approx([expected[name].fmeasure for name in scorer.rouge_types])
    assert isinstance(written, Table)
    (_, *model), (_, *references) = written.rows
    assert model == pytest.approx([7 / 4, 1.0, (7 / 4) / (10 / 5), 3 / 7, 3 / 3])
    assert references == pytest.approx([2.0, 1.0, 1.0, 0.0, 1 / 5])
    assert isinstance(examples, Examples)
    figures = [row[3] for row in examples.rows]
    assert figures == sorted(figures)
    assert examples.rows[0][:3] == ("a b c", "b c", "q r")
    assert ("a b c d", "a b | d c", "d c", 1.0) in examples.rows
    assert len(examples.rows[1][0]) < len(LONG)


@pytest.mark.slow
def test_a_search_leaves_a_model_that_summarizes(task, checkpoints, tmp_path):
    things = ("bridge", "library", "road", "school", "market", "harbour")
    rows = [
        {
            "article": [f"The {thing} is closed.", f"Number {number} on the list is the {thing}."],
            "highlights": [f"The {thing} is closed.", f"No {thing}."],
        }
        for number in range(10)
        for thing in things
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "task": "summarization",
        "model": str(checkpoints("t5")),
        "data": {"train": str(data), "validation_size": 6, "test_size": 8},
        "effort": "quick",
        "compress": ["none"],
        "space": {"train.epochs": 1, "train.max_length": 64},
        "task_options": {"max_new_tokens": 8},
        "budget": {"trials": 1},
        "search": {"finalist_seeds": 0},
        "executor": {"device": "cpu"},
    }
    run = search(recipe, run=tmp_path / "run")
    (answer,) = autoft.load(run.path / "best").predict([{"document": rows[0]["article"]}])
    assert isinstance(answer["text"], str)
    report = run.report.read_text(encoding="utf-8")
    for shown in (
        "By words of the document",
        "How summaries are written",
        "Summaries from the worst",
        "TextRank",
        "lead",
    ):
        assert shown in report
    figures = run.summary
    assert {"rougeL", "rouge1", "rouge2", "rougeLsum"} <= set(json.dumps(figures).replace('"', " ").split())
