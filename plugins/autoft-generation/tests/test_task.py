"""The task: which of the three forms rows are in, what is learned of each, what is predicted, and one search."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from autoft_generation import autoft_metrics
from autoft_generation.chat import PLAIN_TEMPLATE
from hypothesis import given, settings
from hypothesis import strategies as st

import autoft
from autoft.contracts import ModelSource, TaskContext
from autoft.errors import DataError, ModelError


def message(role, content):
    return {"role": role, "content": content}


TALKS = [
    {
        "messages": [
            message("user", f"say {word}"),
            message("assistant", word),
            message("user", "again"),
            message("assistant", f"{word} {word}"),
        ]
    }
    for word in ("yes", "no", "one")
]
METRICS = {metric.name: metric for metric in autoft_metrics()}
TEXTS = [{"text": "one two three four five"}, {"text": "the cat sat on the mat"}]


@pytest.fixture(scope="module")
def generation():
    """The task, as the catalog has it."""
    from autoft.plugins import load_plugins

    return load_plugins().task("generation")


def learned(task, row, context):
    """Return the text of a training row, and of what of it is learned."""
    (feature,) = task.encode([row], context)
    decode = context.processor.source.decode
    return decode(feature["input_ids"]), decode([label for label in feature["labels"] if label != -100])


def test_completions_are_learned_after_their_prompts(generation, make_context):
    row = {"prompt": "A dog says", "completion": " woof."}
    _, context = make_context(generation, "llama", rows=[row])
    assert context.facts == {"form": "completion", "rouge_tokenizer": "ascii"}
    assert learned(generation, row, context) == ("<s>A dog says woof.</s>", " woof.</s>")
    alone = {"completion": "woof"}
    assert learned(generation, alone, context) == ("<s>woof</s>", "woof</s>")
    # A tokenizer that adds no start token lends its end token to an empty prompt, and adds nothing else.
    _, context = make_context(generation, "gpt2", rows=[row])
    assert learned(generation, row, context) == ("A dog says woof.</s>", " woof.</s>")
    assert learned(generation, alone, context) == ("</s>woof</s>", "woof</s>")


def test_a_model_is_asked_to_think_where_the_answers_that_it_learned_do(generation, make_context):
    for answer, thinks in (("<think>two and two</think>4", True), ("4", False)):
        row = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": answer}]}
        _, context = make_context(generation, "llama", rows=[row], chat=True)
        assert context.processor.thinks is thinks


def test_whole_texts_are_learned_whole(generation, make_context):
    for name, start in (("llama", "<s>"), ("gpt2", "</s>")):
        _, context = make_context(generation, name, rows=TEXTS)
        assert context.facts == {"form": "text", "rouge_tokenizer": "ascii"}
        text = TEXTS[0]["text"]
        assert learned(generation, TEXTS[0], context) == (f"{start}{text}</s>", f"{text}</s>")


@pytest.mark.parametrize(("learn", "expected"), [("all", "yes<|end|>yes yes<|end|>"), ("last", "yes yes<|end|>")])
def test_answers_of_a_conversation_are_learned(learn, expected, generation, make_context):
    _, context = make_context(generation, "llama", rows=TALKS, chat=True, max_length=128, learn=learn)
    assert context.facts == {"form": "messages", "rouge_tokenizer": "ascii"}
    whole, answers = learned(generation, TALKS[0], context)
    assert answers == expected
    template = context.processor.source.apply_chat_template(TALKS[0]["messages"], tokenize=False)
    assert whole == template.rstrip("\n")


def test_prompts_become_conversations_where_asked(generation, make_context):
    row = {"prompt": "hi", "completion": "hello"}
    _, context = make_context(generation, "llama", rows=[row], chat=True)
    assert learned(generation, row, context)[0] == "<s>hihello</s>", "as they are"
    given_options = {option.name: option.default for option in generation.card.options} | {"chat": True}
    chatting = replace(context, options=given_options)
    assert learned(generation, row, chatting) == ("<|user|>hi<|end|>\n<|assistant|>hello<|end|>", "hello<|end|>")


def test_a_model_without_a_template_is_saved_with_a_plain_one(generation, make_context, tmp_path):
    _, context = make_context(generation, "llama", rows=TALKS)
    assert context.processor.source.chat_template == PLAIN_TEMPLATE
    context.processor.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == PLAIN_TEMPLATE
    _, context = make_context(generation, "llama", rows=TEXTS)
    assert context.processor.source.chat_template is None


def test_a_prediction_does_not_see_the_answer(generation, make_context):
    talk, text = TALKS[0], TEXTS[0]
    changed = {"messages": [*talk["messages"][:-1], message("assistant", "quite another answer")]}
    open_talk = {"messages": talk["messages"][:-1]}
    source, context = make_context(generation, "llama", rows=TALKS, chat=True, max_length=128)
    model = generation.load_model(source, context)
    found = generation.predict(model, [talk, changed, open_talk], context)
    assert found[0] == found[1] == found[2]
    # A prompt to a model for conversations is one of one message.
    asked = {"messages": [message("user", "say yes")]}
    assert generation.predict(model, [{"prompt": "say yes"}], context) == generation.predict(model, [asked], context)
    source, context = make_context(generation, "llama", rows=TEXTS)
    model = generation.load_model(source, context)
    whole, half, other = generation.predict(
        model, [text, {"prompt": "one two"}, {"text": "one two drei vier fünf"}], context
    )
    assert whole == half == other


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40).filter(str.strip))
def test_halves_make_the_text_again(text):
    from autoft_generation.task import _halves

    first, second = _halves(text)
    assert first + second == text
    assert second.strip()
    words = text.split()
    if len(words) > 1:
        assert len(first.split()) == len(words) // 2


def test_references_are_what_the_model_has_to_write(generation, make_context):
    _, context = make_context(generation, "llama", rows=TALKS)
    assert generation.reference(TALKS[0], context) == ["yes yes"]
    assert generation.reference(TEXTS[0], context) == [" three four five"]
    assert generation.reference({"prompt": "a", "completion": " b"}, context) == [" b"]


def test_a_row_that_cannot_be_predicted_is_told_with_its_number(generation, make_context):
    source, context = make_context(generation, "llama", rows=TALKS)
    model = generation.load_model(source, context)
    good = {"prompt": "a"}
    for row, expected in (
        ({"prompt": 3}, "row 2: 'prompt' has to be a text, given int 3"),
        ({"text": ["a"]}, r"row 2: 'text' has to be a text, given list \['a'\]"),
        ({"messages": "hello"}, "row 2: 'messages' has to be a list of {role, content}, given str 'hello'"),
        ({"messages": [{"role": "me"}]}, "row 2: message 1 has the role 'me'"),
    ):
        for use in (
            lambda rows: generation.encode(rows, context),
            lambda rows: generation.predict(model, rows, context),
        ):
            with pytest.raises(DataError, match=expected):
                use([good, row])


def test_the_perplexity_of_a_text_is_that_of_its_tokens_one_by_one(generation, make_context):
    source, context = make_context(generation, "gpt2", rows=TEXTS)
    model = generation.load_model(source, context).eval()
    metric = METRICS["perplexity"]
    chances = []
    for row in TEXTS:
        ids = context.processor.source(f"</s>{row['text']}</s>", add_special_tokens=False).input_ids
        for place in range(1, len(ids)):
            logits = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
            chances.append(float((logits - logits.logsumexp(0)).exp()[ids[place]].detach()))
    expected = math.prod(chance ** (-1 / len(chances)) for chance in chances)
    scored = generation.score_targets(model, TEXTS, context, batch_size=2)
    assert metric.score(scored, TEXTS, context) == pytest.approx(expected, rel=1e-5)


def test_a_whole_text_begins_alike_in_training_and_when_it_is_continued(generation, make_context):
    for name, start in (("llama", "<s>"), ("gpt2", "</s>")):
        _, context = make_context(generation, name, rows=TEXTS)
        (asked,) = generation.encode([{"prompt": "one two"}], context)
        assert context.processor.source.decode(asked["input_ids"]) == f"{start}one two"


@pytest.mark.parametrize(("learn", "expected"), [("all", 4), ("last", 1)])
def test_a_long_conversation_loses_its_old_turns(learn, expected, generation, make_context):
    talk = {"messages": [part for number in range(9) for part in TALKS[number % 3]["messages"]]}
    _, context = make_context(generation, "llama", rows=TALKS, chat=True, max_length=72, learn=learn, max_new_tokens=4)
    decode = context.processor.source.decode
    whole, answer = learned(generation, talk, context)
    assert answer.endswith("one one<|end|>")
    assert answer.count("<|end|>") == expected
    assert whole.startswith("<|user|>")
    assert whole.endswith("<|user|>again<|end|>\n<|assistant|>one one<|end|>")
    (asked,) = generation.encode([{"messages": talk["messages"][:-1]}], context)
    assert decode(asked["input_ids"]) + "one one<|end|>" == whole


def test_samples_are_seeded_by_their_prompt(generation, make_context):
    rows = [{"prompt": "A dog says"}, {"prompt": "A cat says"}]
    source, context = make_context(generation, "llama", samples=3, temperature=1.5, max_new_tokens=6)
    model = generation.load_model(source, context)
    state = torch.get_rng_state()
    found = generation.predict(model, rows, context)
    assert torch.equal(state, torch.get_rng_state()), "sampling leaves the training's random numbers alone"
    assert found == generation.predict(model, rows, context)
    assert found[1:] == generation.predict(model, rows[1:], context)
    plain = replace(context, options={**context.options, "samples": 0})
    for entry, only in zip(found, generation.predict(model, rows, plain), strict=True):
        assert only == {"text": entry["text"]}
        assert len(entry["samples"]) == 3
        assert len(set(entry["samples"])) > 1


def test_sampling_follows_the_probabilities(generation, make_context):
    source, context = make_context(generation, "gpt2", samples=400, temperature=2.0, top_p=1.0, max_new_tokens=1)
    model = generation.load_model(source, context)
    torch.manual_seed(0)
    # The random weights make all tokens alike; a larger output layer makes some likely.
    model.lm_head.weight.data.mul_(40.0)
    (feature,) = generation.encode([{"prompt": "A dog says"}], context)
    logits = model(input_ids=torch.tensor([feature["input_ids"]])).logits[0, -1]
    chances = torch.softmax(logits / 2.0, -1)
    decode = context.processor.source.decode
    expected = {}
    for token, chance in enumerate(chances.tolist()):
        text = decode([token], skip_special_tokens=True).strip()
        expected[text] = expected.get(text, 0.0) + chance
    (found,) = generation.predict(model, [{"prompt": "A dog says"}], context)
    likely = [text for text, chance in expected.items() if chance > 0.05]
    assert likely
    for text in likely:
        share = found["samples"].count(text) / 400
        # Four standard errors.
        assert share == pytest.approx(expected[text], abs=4 * math.sqrt(expected[text] / 400))


def test_baselines_say_the_most_frequent_answer_and_the_prompt(generation, make_context):
    rows = [{"prompt": f"{i}", "completion": word} for i, word in enumerate([" b", " a", " b", " c", " a"])]
    context = TaskContext(facts={"form": "completion"}, options={}, params={}, max_length=8)
    frequent, repeat = generation.baselines(rows, context)
    assert frequent.trivial
    assert not repeat.trivial
    assert frequent.predict([{"prompt": "x"}, {}]) == [{"text": "a"}] * 2, "of two as frequent the first by name"
    assert repeat.predict([{"prompt": "x y "}]) == [{"text": "x y"}]
    context = replace(context, facts={"form": "messages"})
    frequent, repeat = generation.baselines([*TALKS, TALKS[1]], context)
    assert frequent.predict(TALKS[:1]) == [{"text": "no no"}]
    assert repeat.predict(TALKS[:1]) == [{"text": "again"}]
    (repeat,) = generation.baselines(TEXTS, replace(context, facts={"form": "text"}))
    assert repeat.predict(TEXTS[:1]) == [{"text": "one two"}]


def test_the_report_shows_outputs_and_what_was_least_expected(generation):
    rows = [{"prompt": f"p{i}", "completion": f" c{i}"} for i in range(30)]
    predictions = [
        {"text": f"o{i}", "samples": ["s", "t"], "log_likelihood": -float(i), "target_tokens": 2, "target_bytes": 3}
        for i in range(30)
    ]
    context = TaskContext(facts={"form": "completion"}, options={}, params={}, max_length=8)
    shown, surprising = generation.details(rows, predictions, context)
    assert shown.columns == ("prompt", "reference", "output", "sample 1", "sample 2")
    assert len(shown.rows) == 20
    assert shown.rows[3] == ("p3", " c3", "o3", "s", "t")
    assert surprising.rows[0] == ("p29", " c29", 14.5)
    assert [row[2] for row in surprising.rows] == sorted((i / 2 for i in range(20, 30)), reverse=True)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"prompt": "a"}], "no row has something to learn from: map a column to 'completion'"),
        (
            [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": None}],
            "1 of 2 rows cannot be learned from; row 2: 'completion' has to be a text, given None (its prompt: 'c')",
        ),
        ([{"text": "a"}, {"text": " "}], "row 2: 'text' has to be a text, given ' '"),
        ([{"messages": [message("user", "a")]}], "the last message has the role 'user', and has to be the assistant's"),
        ([{"messages": [message("assistant", "a")]}], "nothing stands before the assistant's answer"),
        ([{"messages": [message("me", "a")]}], "message 1 has the role 'me'"),
        ([{"messages": "hello"}], "given str 'hello'"),
        ([{"prompt": 7, "completion": "b"}], "row 1: 'prompt' has to be a text, given int 7"),
        (
            [{"text": "What is a dog?", "completion": "An animal."}],
            "row 1: 'text' stands beside 'completion', and is for whole texts; if it is what the completion answers, map",
        ),
    ],
)
def test_rows_that_cannot_be_learned_are_told(rows, expected, generation):
    with pytest.raises(DataError) as caught:
        generation.facts(rows, {})
    assert expected in str(caught.value)


def test_a_model_that_is_not_causal_is_refused(generation, checkpoints):
    context = TaskContext(facts={"form": "text"}, options={}, params={}, max_length=8)
    with pytest.raises(ModelError, match="a model of type 't5' is no causal language model"):
        generation.load_processor(ModelSource("t5", str(checkpoints("t5"))), context)


def test_a_training_row_is_never_without_a_label(generation, make_context):
    _, context = make_context(generation, "llama", rows=TALKS, chat=True, max_length=16)
    for row in TALKS:
        (feature,) = generation.encode([row], replace(context, options={**context.options, "learn": "last"}))
        assert len(feature["input_ids"]) <= 16
        assert any(label != -100 for label in feature["labels"])


@pytest.fixture(scope="module")
def run(checkpoints, tmp_path_factory):
    """A search over a tiny Llama: conversations in which the assistant says everything twice."""
    folder = tmp_path_factory.mktemp("search")
    words = [a + b + c for a in "abcdefgh" for b in "stuvwxyz" for c in "ijkl"]
    rows = [{"dialog": [message("user", word), message("assistant", f"{word}{word}")]} for word in words]
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return autoft.search(
        {
            "task": "generation",
            "model": str(checkpoints("llama", True)),
            "data": {"train": str(folder / "talks.jsonl"), "validation_size": 8, "test_size": 8},
            "budget": {"time": "5m", "trials": 1},
            "effort": "quick",
            "compress": ["none"],
            "task_options": {"max_new_tokens": 6, "samples": 1},
            "space": {"train.epochs": 4, "train.batch_size": 16, "full.learning_rate": 1e-2, "train.max_length": 32},
            "search": {"finalist_seeds": 0},
        },
        run=folder / "run",
    )


def test_a_search_learns_more_than_the_untouched_model_knows(run):
    untouched = run.summary["baselines"]["untouched model"]["test"]
    best = run.summary["best"]["test"]
    assert best["perplexity"]["value"] < untouched["perplexity"]["value"] / 4
    assert best["perplexity"]["n"] == 8


def test_texts_are_written_for_the_test_alone_where_perplexity_is_what_counts(run):
    trial = json.loads((run.path / "trials" / "0000" / "result.json").read_text())
    counted = {"perplexity", "bits_per_byte"}
    assert {name for variant in trial["variants"] for name in variant["validation"]} == counted
    assert set(run.summary["best"]["validation"]) == counted
    assert set(run.summary["baselines"]["untouched model"]["validation"]) == counted
    assert counted < set(run.summary["best"]["test"])
    assert {figure.metric for figure in autoft.verify(run.path) if figure.split == "validation"} == counted


def test_the_best_model_answers_as_it_was_measured(run):
    from autoft.data.prepared import open_data
    from autoft.evaluation import judged

    loaded = run.best
    rows = open_data(run.path / "data").test[:]
    scored = judged(loaded.task, loaded.model, rows, loaded.context)
    nats = -sum(entry["log_likelihood"] for entry in scored) / sum(entry["target_tokens"] for entry in scored)
    assert math.exp(nats) == pytest.approx(run.summary["best"]["test"]["perplexity"]["value"], rel=1e-3)
    assert loaded.predict("asi")[0]["text"] == loaded.predict([{"messages": [message("user", "asi")]}])[0]["text"]


def test_the_report_shows_prompts_references_outputs_and_samples(run):
    page = run.report.read_text()
    for text in ("Prompts and outputs", "sample 1", "References that the model expects least", "most frequent answer"):
        assert text in page


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_packed_rows_have_the_loss_and_the_gradients_of_padded_ones(name, mode, generation, make_context):
    rows = [{"prompt": "say yes", "completion": " yes"}, {"prompt": "count", "completion": " one two three four"}]
    rows.append({"completion": "alone"})
    found = {}
    for packing in (False, True):
        source, context = make_context(generation, name, rows=rows, packing=packing, params={"train.dropout": 0.0})
        model = getattr(generation.load_model(source, context), mode)()
        batch = generation.collate(generation.encode(rows, context), context)
        assert batch["input_ids"].shape[0] == (1 if packing else 3)
        loss = generation.loss(model, batch, context)
        torch.autograd.backward(loss)
        found[packing] = (loss, model.get_input_embeddings().weight.grad)
        plain = replace(context, options={**context.options, "packing": False})
        assert generation.score_targets(model, rows, context) == generation.score_targets(model, rows, plain)
    torch.testing.assert_close(found[True], found[False])


def test_a_model_that_would_read_packed_rows_as_one_is_refused(generation, make_context, tmp_path):
    import transformers

    source, context = make_context(generation, "llama", rows=TEXTS, packing=True)
    context.processor.source.save_pretrained(tmp_path)
    config = transformers.MambaConfig(
        vocab_size=len(context.processor.source), hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0
    )
    torch.manual_seed(0)
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"task_options\.packing: a model of type 'mamba' does not keep packed rows apart"
    ):
        generation.load_model(replace(source, path=str(tmp_path)), context)
