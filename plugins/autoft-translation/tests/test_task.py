from __future__ import annotations

import gzip
import json
import random

import pytest
import sacrebleu
from autoft_translation.languages import has_mecab

from autoft.contracts import Examples, Table, TaskContext
from autoft.errors import DataError, ModelError

ROWS = [
    {"source": "the train is late", "target": ["der Zug ist spät", "der Zug kommt spät"]},
    {"source": "where is the station", "target": "wo ist der Bahnhof"},
    {"source": "she reads a book", "target": "sie liest ein Buch"},
]
SOURCES = [{"source": row["source"]} for row in ROWS]
BOTH = {"source_language": "en", "target_language": "de"}


def plain(task, rows=ROWS, **options):
    given = {option.name: option.default for option in task.card.options} | options
    return TaskContext(facts=task.facts(rows, given), options=given, params={}, max_length=64)


@pytest.mark.parametrize("name", ["bert", "t5", "madlad", "gpt2", "chat", "nllb", "mbart", "marian", "several"])
def test_every_kind_of_model_learns_and_translates(name, task, make_context):
    source, context = make_context(name, ROWS, **BOTH)
    model = task.load_model(source, context)
    batch = task.collate(task.encode(ROWS, context), context)
    loss = task.loss(model, batch, context)
    loss.backward()
    assert loss.isfinite()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    found = task.predict(model, SOURCES, context, batch_size=2)
    assert [set(answer) for answer in found] == [{"text"}] * 3
    alone = [task.predict(model, [row], context)[0] for row in SOURCES]
    assert found == alone


def test_head_only_trains_the_new_decoder_of_an_encoder_and_nothing_of_a_translator(task, make_context, checkpoint):
    from autoft.contracts import Target
    from autoft.hardware import Hardware
    from autoft.plugins import load_plugins

    adapter = load_plugins().adapters["head-only"]

    def target(name):
        source, context = make_context(name, ROWS, **BOTH)
        config = json.loads((checkpoint(name) / "config.json").read_text(encoding="utf-8"))
        return Target(task=task, source=source, config=config, context=context, hardware=Hardware.probe_cpu())

    for name in ("t5", "nllb", "mbart", "marian", "gpt2"):
        assert "head-only" in adapter.check(target(name)).reason, name
    bert = target("bert")
    assert adapter.check(bert) is None
    model = adapter.attach(task.load_model(bert.source, bert.context), bert, {"learning_rate": 1e-3})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert not any(name.startswith("encoder.") for name in trained)
    task.loss(model, task.collate(task.encode(ROWS, bert.context), bert.context), bert.context).backward()
    assert all((parameter.grad is not None) == (name in trained) for name, parameter in model.named_parameters())


def test_a_model_of_several_languages_reads_one_and_writes_the_other(task, make_context, checkpoint):
    from transformers import AutoModelForSeq2SeqLM, NllbTokenizer

    source, context = make_context("nllb", ROWS, **BOTH)
    feature = task.encode(ROWS, context)[0]
    tokenizer = NllbTokenizer.from_pretrained(checkpoint("nllb"), src_lang="eng_Latn", tgt_lang="deu_Latn")
    assert feature["input_ids"] == tokenizer("the train is late").input_ids
    assert feature["labels"] == tokenizer(text_target="der Zug ist spät").input_ids
    assert tokenizer.convert_ids_to_tokens(feature["labels"])[0] == "deu_Latn"
    # What transformers itself writes, in German and in Chinese: with random weights they differ.
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint("nllb")).eval()
    for language, code in (("de", "deu_Latn"), ("zh-TW", "zho_Hant")):
        _, context = make_context("nllb", ROWS, source_language="en-US", target_language=language)
        found = task.predict(task.load_model(source, context), SOURCES, context)
        for row, answer in zip(SOURCES, found, strict=True):
            ids = model.generate(
                **tokenizer(row["source"], return_tensors="pt"),
                forced_bos_token_id=tokenizer.convert_tokens_to_ids(code),
                max_new_tokens=12,
                do_sample=False,
                num_beams=1,
            )
            assert answer["text"] == tokenizer.decode(ids[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    ("name", "setting", "code"),
    [("nllb", "forced_bos_token_id", "deu_Latn"), ("mbart", "decoder_start_token_id", "de_DE")],
)
def test_whoever_uses_the_files_is_told_the_language_by_its_token(name, setting, code, task, make_context):
    source, context = make_context(name, ROWS, **BOTH)
    token = context.processor.source.convert_tokens_to_ids(code)
    assert task.export_settings(context)["generation"][setting] == token
    assert getattr(task.load_model(source, context).generation_config, setting) == token


def test_mbart_begins_with_the_language_that_it_writes(task, make_context, checkpoint):
    source, context = make_context("mbart", ROWS, **BOTH)
    tokenizer = context.processor.source
    feature = task.encode(ROWS, context)[0]
    assert tokenizer.convert_ids_to_tokens(feature["input_ids"])[-2:] == ["</s>", "en_XX"]
    assert tokenizer.convert_ids_to_tokens(feature["labels"])[-2:] == ["</s>", "de_DE"]
    model = task.load_model(source, context).eval()
    ids = model.generate(
        **tokenizer("the train is late", return_tensors="pt"),
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("de_DE"),
        max_new_tokens=12,
        do_sample=False,
    )
    (found,) = task.predict(model, SOURCES[:1], context)
    assert found["text"] == tokenizer.decode(ids[0], skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", ["nllb", "mbart", "several", "madlad"])
def test_a_model_of_several_languages_has_to_be_told_which(name, task, make_context):
    with pytest.raises(ModelError, match=r"set task_options\.(source|target)_language, as de"):
        make_context(name)
    with pytest.raises(ModelError, match=r"task_options\.target_language: the model knows .*; given 'ace'"):
        make_context(name, source_language="en", target_language="ace")


def test_marian_is_told_the_language_where_it_writes_several(task, make_context):
    _, context = make_context("several", ROWS, source_language="en", target_language="zh")
    ids = task.encode(SOURCES, context)[0]["input_ids"]
    assert context.processor.source.convert_ids_to_tokens(ids)[0] == ">>cmn_Hans<<"
    _, context = make_context("marian", ROWS)
    assert task.prefix(context) == ""


def test_t5_reads_the_prefix_that_it_was_trained_with(task, make_context):
    _, context = make_context("t5", ROWS, **BOTH)
    ids = task.encode(SOURCES, context)[0]["input_ids"]
    text = context.processor.source.decode(ids, skip_special_tokens=True)
    assert text == "translate English to German: the train is late"
    _, context = make_context("t5", ROWS)
    assert task.prefix(context) == ""


@pytest.mark.parametrize(
    ("language", "code"), [("de", "de"), ("deu_Latn", "de"), ("zh-CN", "zh"), ("zh_Latn", "zh_Latn")]
)
def test_madlad_reads_the_token_of_the_language_that_it_is_to_write(language, code, task, make_context):
    _, context = make_context("madlad", ROWS, target_language=language)
    ids = task.encode(SOURCES, context)[0]["input_ids"]
    assert ids[0] == context.processor.source.convert_tokens_to_ids(f"<2{code}>")
    assert context.processor.source.decode(ids[1:], skip_special_tokens=True) == " the train is late"


def test_causal_models_are_asked_in_words_or_in_a_chat(task, make_context):
    _, context = make_context("gpt2", ROWS, **BOTH)
    assert task.prompt(ROWS[0], context) == (
        "Translate this from English to German:\nEnglish: the train is late\nGerman:\n"
    )
    _, context = make_context("chat", ROWS, **BOTH)
    assert task.prompt(ROWS[0], context) == [
        {"role": "user", "content": "Translate this from English to German:\nthe train is late"}
    ]
    _, context = make_context("gpt2", ROWS)
    assert "None" not in task.prompt(ROWS[0], context)


@pytest.mark.parametrize("name", ["gpt2", "chat"])
def test_a_text_that_is_too_long_loses_its_end_and_never_the_instruction(name, task, make_context):
    _, context = make_context(name, ROWS, **BOTH)
    row = {"source": "the train is late " * 60}
    for given in (row, {**row, "target": ["der Zug ist spät"]}):
        (feature,) = task.encode([given], context)
        read = context.processor.source.decode(feature["input_ids"])
        assert "Translate this from English to German:" in read
        assert "the train is late the train is late" in read
        assert len(feature["input_ids"]) <= 128


def test_the_first_of_several_references_is_learned_and_all_count(task, make_context):
    _, context = make_context("t5", ROWS)
    assert task.reference(ROWS[0], context) == ["der Zug ist spät", "der Zug kommt spät"]
    assert task.reference(ROWS[1], context) == ["wo ist der Bahnhof"]
    labels = task.encode(ROWS, context)[0]["labels"]
    assert context.processor.target.decode(labels, skip_special_tokens=True) == "der Zug ist spät"
    assert task.target_texts({"target": ["", "ein Zug", " "]}, context) == ["ein Zug"]


@pytest.mark.parametrize(
    ("targets", "options", "expected"),
    [
        (["der Zug"], {}, ("13a", False)),
        (["火车晚点了。"], {}, ("zh", True)),
        (["火车"], {"target_language": "de"}, ("13a", False)),
        (["der Zug"], {"target_language": "zho_Hant"}, ("zh", True)),
        (["รถไฟมาสาย"], {}, ("char", True)),
        (["火车"], {"bleu_tokenizer": "char"}, ("char", True)),
    ],
)
def test_the_target_language_decides_how_it_is_cut(targets, options, expected, task):
    facts = plain(task, [{"source": "the train", "target": target} for target in targets], **options).facts
    assert (facts["bleu_tokenizer"], facts["unspaced"]) == expected


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        ({"source": "a", "target": 3}, {}, "target"),
        ({"source": "a", "target": []}, {}, "target"),
        ({"source": "a", "target": " "}, {}, "target"),
        ({"source": "a", "target": "b"}, {"target_language": "German"}, r"task_options\.target_language: allowed are"),
        ({"source": "a", "target": "b"}, {"source_language": 7}, r"task_options\.source_language: allowed are"),
    ],
)
def test_what_cannot_be_used_is_told(row, options, expected, task):
    with pytest.raises(DataError, match=expected):
        plain(task, [row], **options)


@pytest.mark.parametrize("language", ["ja", "ko"])
def test_a_tokenizer_that_is_not_installed_is_told_before_training(language, task):
    rows, wanted = [{"source": "a", "target": "b"}], f"{language}-mecab"
    if has_mecab(language):
        assert plain(task, rows, bleu_tokenizer=wanted).facts["bleu_tokenizer"] == wanted
    else:
        with pytest.raises(DataError, match=rf"bleu_tokenizer: {wanted} needs MeCab.*sacrebleu\[{language}\]"):
            plain(task, rows, bleu_tokenizer=wanted)


def test_baselines_copy_remember_and_translate_words(task):
    context = plain(task)
    copy, memory, by_word = task.baselines(ROWS, context)
    assert [baseline.trivial for baseline in (copy, memory, by_word)] == [True, False, False]
    assert copy.predict([{"source": "a train"}]) == [{"text": "a train"}]
    assert memory.predict([{"source": "the trains are late"}]) == [{"text": "der Zug ist spät"}]
    assert all(
        answer["text"] for baseline in (memory, by_word) for answer in baseline.predict([{"source": "is she late"}])
    )


def test_the_report_shows_translations_lengths_and_signatures(task):
    rows = [
        {"source": " ".join(["word"] * n), "target": [" ".join(["Wort"] * n)], "n": n}
        for n in range(1, 31)
        for _ in "ab"
    ]
    context = plain(task, rows)
    said = [{"text": row["target"][0] if row["n"] > 10 else "falsch"} for row in rows]
    table, best, worst, drawn, signatures = task.details(rows, said, context)
    assert isinstance(table, Table)
    assert sum(line[1] for line in table.rows) == len(rows)
    assert table.rows[0][0].startswith("1 to ")
    low, high = map(int, table.rows[2][0].split(" to "))
    inside = [i for i, row in enumerate(rows) if low <= row["n"] <= high]
    outputs, references = [said[i]["text"] for i in inside], [[rows[i]["target"][0] for i in inside]]
    assert table.rows[2][1] == len(inside)
    assert table.rows[2][2] == pytest.approx(sacrebleu.corpus_chrf(outputs, references).score)
    assert table.rows[2][3] == pytest.approx(sacrebleu.corpus_bleu(outputs, references).score)
    assert all(isinstance(shown, Examples) for shown in (best, worst, drawn))
    assert best.rows[0][0] == " ".join(["word"] * 30)
    assert best.rows[0][3] == 100
    assert worst.rows[0][2] == "falsch"
    # A model that repeats itself to its limit does not fill the page.
    _, _, repeated, _, _ = task.details(rows, [{"text": 500 * "x "}, *said[1:]], context)
    assert 200 < max(len(line[2]) for line in repeated.rows) < 500
    assert {line[0] for line in signatures.rows} == set(task.card.metrics)
    assert len(task.details(rows[:1], said[:1], context)) == 5


def test_a_search_finds_a_translator_that_the_report_describes(tmp_path):
    from autoft import api
    from autoft.testing import tiny_model

    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    german = ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht"]
    pairs = [(f"{numbers[i]} {numbers[j]}", f"{german[i]} {german[j]}") for i in range(8) for j in range(8)]
    random.Random(0).shuffle(pairs)
    for name, part in (("train", pairs[16:]), ("validation", pairs[8:16]), ("test", pairs[:8])):
        lines = [json.dumps({"src": left, "translation": [right]}, ensure_ascii=False) for left, right in part]
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    run = api.search(
        {
            "task": "translation",
            "model": str(tiny_model("seq2seq", tmp_path / "model", [text for pair in pairs for text in pair])),
            "data": {name: str(tmp_path / f"{name}.jsonl.gz") for name in ("train", "validation", "test")},
            "task_options": {"max_new_tokens": 12},
            "budget": {"time": "5m", "trials": 1},
            "effort": "quick",
            "compress": "none",
            "space": {"full.learning_rate": 1e-2, "train.epochs": 40, "train.batch_size": 8},
            "search": {"finalist_seeds": 0},
        },
        run=tmp_path / "run",
    )
    said = [answer["text"] for answer in run.best.predict([{"source": left} for left, _ in pairs[:8]])]
    references = [[right for _, right in pairs[:8]]]
    best = {name: figure["value"] for name, figure in run.summary["best"]["test"].items()}
    assert best == pytest.approx(
        {
            "chrf": sacrebleu.corpus_chrf(said, references).score,
            "bleu": sacrebleu.corpus_bleu(said, references, force=True).score,
            "chrfpp": sacrebleu.corpus_chrf(said, references, word_order=2).score,
            "ter": sacrebleu.corpus_ter(said, references).score,
        }
    )
    assert best["chrf"] > run.summary["baselines"]["trivial"]["test"]["chrf"]["value"] + 50
    page = run.report.read_text(encoding="utf-8")
    for words in ("Translations drawn at random", "By length of the source", "tok:13a", "translation memory"):
        assert words in page
