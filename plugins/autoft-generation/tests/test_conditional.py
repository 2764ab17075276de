"""What all kinds of models share: they learn, say what they learned, and say the same after they were saved."""

from __future__ import annotations

import json
import math
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from autoft_generation.conditional import Tokenizers, conditional_options, train_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.contracts import ModelSource, Target
from autoft.errors import DataError, ModelError
from autoft.hardware import Hardware
from autoft.strategies.dynamic_int8 import DynamicInt8
from autoft.strategies.lora import Lora

OWN_VOCABULARY = {"target_vocabulary": 320, "decoder_layers": 1}
NAMES = ("marian", "t5", "bart", "bert", "distilbert", "gpt2", "llama")
VARIANTS = [(name, {}) for name in NAMES] + [("bert", OWN_VOCABULARY), ("distilbert", OWN_VOCABULARY)]
IDS = [name + ("-own-vocabulary" if options else "") for name, options in VARIANTS]
LORA = {"rank": 8, "alpha": 32, "dropout": 0.0, "targets": "all-linear", "rslora": False}


def questions(rows):
    return [{"text": row["text"]} for row in rows]


def texts(predictions):
    return [entry["text"] for entry in predictions]


def fit(task, model, context, steps, learning_rate=1e-2):
    """Train on the demo rows; return the losses."""
    batch = task.collate(task.encode(task.demo_rows(), context), context)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    # Down to 0: how the last steps round, which hangs on the processor, then decides nothing.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    losses = []
    for _ in range(steps):
        loss = task.loss(model, batch, context)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def target_of(task, source, context):
    config = json.loads((Path(source.path) / "config.json").read_text())
    return Target(task, source, config, context, Hardware.probe())


@pytest.fixture(scope="module")
def trained(task, checkpoints):
    """Return a task, its context, a model that was trained on the demo rows, and the losses."""
    made = {}

    def get(name, **options):
        key = (name, *options.items())
        if key not in made:
            source = ModelSource(name=name, path=str(checkpoints(name)))
            given_options = {option.name: option.default for option in task.card.options} | options
            context = _context(task, source, given_options)
            torch.manual_seed(0)
            model = task.load_model(source, context)
            losses = fit(task, model, context, 260 if name in {"marian", "t5"} else 100)
            made[key] = (task, source, context, model, losses)
        return made[key]

    return get


def _context(task, source, options):
    from autoft.contracts import TaskContext

    facts = task.facts(task.demo_rows(), options)
    context = TaskContext(facts=facts, options=options, params={"train.dropout": 0.0}, max_length=64)
    return replace(context, processor=task.load_processor(source, context))


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_a_model_learns_its_rows_and_writes_them(name, options, trained):
    task, _, context, model, losses = trained(name, **options)
    rows = task.demo_rows()
    assert losses[0] > 4
    assert losses[-1] < 0.1
    assert texts(task.predict(model, questions(rows), context)) == [row["answer"] for row in rows]
    for figures in task.score_targets(model, rows, context):
        assert math.exp(figures["log_likelihood"] / figures["target_tokens"]) > 0.9


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_a_saved_model_says_the_same(name, options, trained, tmp_path):
    task, source, context, model, _ = trained(name, **options)
    model.save_pretrained(tmp_path)
    context.processor.save_pretrained(tmp_path)
    saved = replace(source, path=str(tmp_path))
    # Facts and options come back from the manifest, the rest from the files.
    loaded = replace(context, processor=None)
    loaded = replace(loaded, processor=task.load_processor(saved, loaded))
    again = task.load_model(saved, loaded).eval()
    rows = task.demo_rows()
    assert texts(task.predict(again, questions(rows), loaded)) == [row["answer"] for row in rows]
    found, expected = task.score_targets(again, rows, loaded), task.score_targets(model, rows, context)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    if options:
        assert (tmp_path / "target" / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["t5", "bert", "gpt2", "llama"])
def test_predictions_depend_neither_on_the_batch_nor_on_other_rows(name, trained):
    task, _, context, model, _ = trained(name)
    rows = [{"text": text} for text in ("green", "one two three four five", "b", "old new old")]
    together = task.predict(model, rows, context, batch_size=4)
    assert together == task.predict(model, rows, context, batch_size=1)
    assert together[::-1] == task.predict(model, rows[::-1], context, batch_size=3)
    assert task.predict(model, [], context) == []


@pytest.mark.parametrize("name", ["bart", "distilbert", "gpt2"])
def test_greedy_outputs_are_the_likeliest_token_each_time(name, trained):
    task, _, context, model, _ = trained(name)
    row = {"text": "green two"}
    (feature,) = task.encode([row], context)
    ids = torch.tensor([feature["input_ids"]])
    end = {"bart": 2, "distilbert": 2, "gpt2": 2}[name]
    if context.processor.kind == "causal":
        written = ids[0].tolist()
        while len(written) - ids.shape[1] < 24 and (len(written) == ids.shape[1] or written[-1] != end):
            written.append(int(model(input_ids=torch.tensor([written])).logits[0, -1].argmax()))
        written = written[ids.shape[1] :]
    else:
        written = [model.config.decoder_start_token_id]
        while len(written) < 25 and (len(written) == 1 or written[-1] != end):
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([written])).logits
            written.append(int(logits[0, -1].argmax()))
    expected = context.processor.target.decode(written, skip_special_tokens=True).strip()
    assert texts(task.predict(model, [row], context)) == [expected]


def test_what_a_checkpoint_says_of_its_style_is_left_out(trained):
    task, _, context, model, _ = trained("bart")
    rows = questions(task.demo_rows())
    expected = task.predict(model, rows, context)
    kept = model.generation_config
    style = {"do_sample": True, "temperature": 5.0, "min_length": 20, "num_beams": 3, "repetition_penalty": 9.0}
    try:
        model.generation_config = type(kept)(**{**kept.to_dict(), **style})
        assert task.predict(model, rows, context) == expected
    finally:
        model.generation_config = kept


@pytest.mark.parametrize("name", ["bart", "llama"])
def test_the_files_of_a_model_write_what_was_measured_and_not_in_the_style_of_the_checkpoint(
    name, task, make_context, checkpoints, tmp_path
):
    import shutil

    import transformers

    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoints(name), folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    # As those of Qwen2.5 and BART for summaries, and as the first of Llama 2, which transformers itself would not write again.
    style = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 2, "min_length": 60, "temperature": 0.6}
    (folder / "generation_config.json").write_text(json.dumps({**settings, **style}))
    source, context = make_context(task, name)
    model = task.load_model(replace(source, path=str(folder)), context)
    (expected,) = texts(task.predict(model, [{"text": "one two"}], context))
    model.save_pretrained(tmp_path / "saved")
    kind = transformers.AutoModelForCausalLM if name == "llama" else transformers.AutoModelForSeq2SeqLM
    (feature,) = task.encode([{"text": "one two"}], context)
    given = torch.tensor([feature["input_ids"]])
    (ids,) = kind.from_pretrained(tmp_path / "saved").generate(input_ids=given, attention_mask=torch.ones_like(given))
    written = ids[given.shape[1] if name == "llama" else 0 :]
    assert context.processor.target.decode(written, skip_special_tokens=True).strip() == expected


@pytest.mark.parametrize("name", ["bart", "gpt2"])
def test_generation_is_silent_whatever_length_a_checkpoint_has(name, task, make_context, checkpoints, tmp_path, caplog):
    import shutil

    import transformers

    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoints(name), folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "max_length": 7}))
    source, context = make_context(task, name)
    model = task.load_model(replace(source, path=str(folder)), context)
    transformers.logging.enable_propagation()
    try:
        task.predict(model, [{"text": "one"}], replace(context, options={"max_new_tokens": 9}))
    finally:
        transformers.logging.disable_propagation()
    assert caplog.text == ""
    assert model.generation_config.max_new_tokens == 24


def test_outputs_end_after_max_new_tokens(trained):
    task, _, context, model, _ = trained("llama")
    short = replace(context, options={**context.options, "max_new_tokens": 3})
    # Tokens are bytes here.
    assert texts(task.predict(model, [{"text": "one two"}], short)) == ["two"]


def test_beams_find_what_transformers_finds(trained):
    task, _, context, model, _ = trained("t5")
    several = replace(context, options={**context.options, "num_beams": 3})
    for text in ("green two", "c d a b", "new"):
        (feature,) = task.encode([{"text": text}], context)
        ids = torch.tensor([feature["input_ids"]])
        (found,) = model.generate(input_ids=ids, num_beams=3, max_new_tokens=24, do_sample=False)
        expected = context.processor.target.decode(found, skip_special_tokens=True).strip()
        assert texts(task.predict(model, [{"text": text}], several)) == [expected]


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_log_likelihoods_are_those_of_the_chain_rule(name, options, trained):
    task, _, context, model, _ = trained(name, **options)
    rows = [{"text": "a b", "answer": "ä b"}, {"text": "north south", "answer": "south"}]
    scored = task.score_targets(model, rows, context, batch_size=2)
    for row, figures in zip(rows, scored, strict=True):
        (feature,) = task.encode([row], context)
        (asked,) = task.encode([{"text": row["text"]}], context)
        given_ids = asked["input_ids"]
        total = 0.0
        if context.processor.kind == "causal":
            written = [token for token in feature["labels"] if token != -100]
            for at, token in enumerate(written):
                logits = model(input_ids=torch.tensor([given_ids + written[:at]])).logits
                total += float(torch.log_softmax(logits[0, -1].double(), -1)[token].detach())
        else:
            written = feature["labels"]
            start = model.config.decoder_start_token_id
            for at, token in enumerate(written):
                logits = model(
                    input_ids=torch.tensor([given_ids]), decoder_input_ids=torch.tensor([[start, *written[:at]]])
                ).logits
                total += float(torch.log_softmax(logits[0, -1].double(), -1)[token].detach())
        assert figures["log_likelihood"] == pytest.approx(total, rel=1e-4)
        assert figures["target_tokens"] == len(written)
        assert figures["target_bytes"] == len(row["answer"].encode())


@pytest.mark.parametrize("name", ["marian", "t5", "bart", "gpt2", "llama"])
def test_the_loss_is_that_of_transformers(name, task, make_context):
    source, context = make_context(task, name, params={"train.dropout": 0.0})
    model = task.load_model(source, context)
    batch = task.collate(task.encode(task.demo_rows(), context), context)
    assert task.loss(model, batch, context).item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["t5", "bert", "llama"])
def test_label_smoothing_mixes_with_the_uniform_distribution(name, task, make_context):
    params = {"train.dropout": 0.0, "train.label_smoothing": 0.2}
    source, context = make_context(task, name, params=params)
    torch.manual_seed(0)
    model = task.load_model(source, context).eval()
    (row, *_) = task.demo_rows()
    batch = task.collate(task.encode([row], context), context)
    (figures,) = task.score_targets(model, [row], context)
    if context.processor.kind == "causal":
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
        logs = torch.log_softmax(logits, -1)[batch["labels"][:, 1:] != -100]
    else:
        start = torch.full_like(batch["labels"][:, :1], model.config.decoder_start_token_id)
        shifted = torch.cat([start, batch["labels"][:, :-1]], dim=1)
        logs = torch.log_softmax(model(input_ids=batch["input_ids"], decoder_input_ids=shifted).logits, -1)[0]
    hard = figures["log_likelihood"] / figures["target_tokens"]
    expected = -(0.8 * hard + 0.2 * logs.mean().item())
    assert task.loss(model, batch, context).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "inputs", "labels"),
    [
        ("t5", "red</s>", "der</s>"),
        ("bert", "<s>red</s>", "der</s>"),
        ("gpt2", "red\nder</s>", "der</s>"),
        ("llama", "<s>red\nder</s>", "der</s>"),
    ],
)
def test_features_hold_the_input_and_the_answer_with_its_end(name, inputs, labels, task, make_context):
    _, context = make_context(task, name)
    (feature,) = task.encode([{"text": "red", "answer": "der"}], context)
    decode = context.processor.source.decode
    kept = [token for token in feature["labels"] if token != -100]
    assert (decode(feature["input_ids"]), decode(kept)) == (inputs, labels)
    assert feature["attention_mask"] == [1] * len(feature["input_ids"])
    both = len(feature["input_ids"]) + (0 if context.processor.kind == "causal" else len(kept))
    assert task.length(feature) == both
    (asked,) = task.encode([{"text": "red"}], context)
    assert "labels" not in asked
    assert task.length(asked) == len(asked["input_ids"])
    batch = task.collate([feature, *task.encode([{"text": "greener", "answer": "g"}], context)], context)
    assert (batch["labels"] == -100).any()
    assert (batch["attention_mask"].sum(1) < batch["input_ids"].shape[1]).any()


def test_a_prefix_stands_before_the_inputs_of_other_models_than_causal_ones(task, make_context):
    class Prefixed(type(task)):
        def prefix(self, context):
            return "reverse: "

    for name, expected in (("t5", "reverse: red</s>"), ("gpt2", "red\n")):
        _, context = make_context(Prefixed(), name)
        (feature,) = Prefixed().encode([{"text": "red"}], context)
        assert context.processor.source.decode(feature["input_ids"]) == expected


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        (4, 4, ("pppp\naaaa</s>", "aaaa</s>")),
        # The prompt loses its beginning first.
        (30, 4, ("ppppppppppppppp"[:10] + "\naaaa</s>", "aaaa</s>")),
        # Where that takes half of the room, the answer loses its end.
        (30, 30, ("ppppppp\naaaaaaaa", "aaaaaaaa")),
        (3, 30, ("ppp\n" + "a" * 12, "a" * 12)),
    ],
)
def test_what_is_too_long_is_cut(prompt, answer, expected, task, make_context):
    _, context = make_context(task, "gpt2", max_length=16)
    row = {"text": "p" * prompt, "answer": "a" * answer}
    (feature,) = task.encode([row], context)
    decode = context.processor.source.decode
    kept = [token for token in feature["labels"] if token != -100]
    assert (decode(feature["input_ids"]), decode(kept)) == expected
    (asked,) = task.encode([{"text": row["text"]}], context)
    assert len(asked["input_ids"]) == min(prompt + 1, 16)


def test_a_prompt_that_is_cut_keeps_the_token_that_begins_every_text(task, make_context):
    _, context = make_context(task, "llama", max_length=16)
    decode = context.processor.source.decode
    asked, learned = task.encode([{"text": "p" * 30}, {"text": "p" * 30, "answer": "aaaa"}], context)
    assert decode(asked["input_ids"]) == "<s>" + "p" * 14 + "\n"
    assert decode(learned["input_ids"]) == "<s>" + "p" * 9 + "\naaaa</s>"
    assert learned["labels"][:11] == [-100] * 11


def test_bytes_of_a_cut_answer_are_those_that_were_scored(task, make_context):
    for name in ("t5", "gpt2"):
        source, context = make_context(task, name, max_length=16)
        model = task.load_model(source, context)
        (figures,) = task.score_targets(model, [{"text": "x", "answer": "ä" * 40}], context)
        # An ä is two bytes, and bytes are tokens; x and the line's end take two of the causal model's.
        assert figures["target_tokens"] == (16 if name == "t5" else 14)
        assert figures["target_bytes"] == (16 if name == "t5" else 14)


@pytest.mark.parametrize("legacy", [True, False])
def test_pieces_of_a_text_have_the_tokens_that_they_have_in_it(legacy):
    """Tokenizers as Llama 2's put a space before what they are given: two pieces would have one more than the whole."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "▁", "\n", *"abcdefgnow.", "▁a"])}
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "a")]))
    if legacy:
        built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    fast = PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="</s>")
    pieces = ["<s>a dog", " woof.</s>", "\na", "b</s>"]
    processor = Tokenizers("causal", "llama", fast, fast)
    ids, alone = processor.ids([pieces, pieces[:1]])
    (whole,) = fast(["".join(pieces)], add_special_tokens=False).input_ids
    assert [token for row in ids for token in row] == whole
    assert fast.convert_ids_to_tokens(ids[1]) == ["▁", "w", "o", "o", "f", ".", "</s>"]
    assert fast.convert_ids_to_tokens(fast("\na", add_special_tokens=False).input_ids)[0] == "▁", "by itself"
    assert alone == ids[:1]
    assert processor.ids([]) == []


def test_an_output_does_not_leave_the_places_of_the_model(task, make_context):
    source, context = make_context(task, "gpt2", max_length=500, max_new_tokens=500)
    model = task.load_model(source, context)
    model.generation_config.eos_token_id = None
    (feature,) = task.encode([{"text": "p" * 300}], context)
    lengths = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(int(kwargs["position_ids"].max())), with_kwargs=True
    )
    task.predict(model, [{"text": "p" * 300}], context)
    assert len(feature["input_ids"]) == 64
    assert max(lengths) < 128


def test_a_prompt_leaves_room_to_answer(task, make_context):
    source, context = make_context(task, "gpt2", max_length=500, max_new_tokens=100)
    model = task.load_model(source, context)
    (feature,) = task.encode([{"text": "p" * 300}], context)
    assert len(feature["input_ids"]) == 64, "half of the model's 128 positions"
    (found,) = task.predict(
        model, [{"text": "p" * 300}], replace(context, options={**context.options, "max_new_tokens": 8})
    )
    assert isinstance(found["text"], str)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=IDS)
def test_lora_attaches_trains_and_merges(name, options, trained):
    task, source, context, base, _ = trained(name, **options)
    target = target_of(task, source, context)
    torch.manual_seed(1)
    model = Lora().attach(task.load_model(source, context), target, LORA)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert 0 < sum(p.numel() for p in trainable) < sum(p.numel() for p in model.parameters())
    losses = fit(task, model, context, 25, learning_rate=2e-2)
    # The words of a random base, which stay frozen, let the loss fall little.
    assert losses[-1] < losses[0] - 0.1
    rows = task.demo_rows()
    adapted = task.score_targets(model, rows, context)
    merged = Lora().merge(model, None, target)
    assert type(merged) is type(base)
    for one, other in zip(task.score_targets(merged, rows, context), adapted, strict=True):
        assert one["log_likelihood"] == pytest.approx(other["log_likelihood"], rel=1e-3)
    assert task.predict(merged, questions(rows), context) == task.predict(model, questions(rows), context)


INT8 = [(name, options) for name, options in VARIANTS if name not in {"marian", "bart", "t5"}]


@pytest.mark.parametrize(("name", "options"), INT8, ids=[IDS[VARIANTS.index(entry)] for entry in INT8])
def test_int8_weights_answer_alike_and_load_again(name, options, trained, tmp_path):
    task, source, context, model, _ = trained(name, **options)
    target = target_of(task, source, context)
    rows = task.demo_rows()
    quantized = DynamicInt8().apply(model, target, rows, {})
    assert texts(task.predict(quantized, questions(rows), context)) == [row["answer"] for row in rows]
    scored = task.score_targets(quantized, rows, context)
    DynamicInt8().save(quantized, tmp_path)
    context.processor.save_pretrained(tmp_path)
    saved = replace(source, path=str(tmp_path))
    loaded = replace(context, processor=task.load_processor(saved, context))
    again = DynamicInt8().load(tmp_path, replace(target, source=saved, context=loaded))
    assert texts(task.predict(again, questions(rows), loaded)) == [row["answer"] for row in rows]
    assert task.score_targets(again, rows, loaded) == scored


def test_an_encoder_gets_a_decoder_that_starts_from_its_weights(task, make_context, checkpoints):
    from transformers import AutoModel

    base = AutoModel.from_pretrained(checkpoints("bert"))
    source, context = make_context(task, "bert")
    joined = task.load_model(source, context)
    assert joined.config.decoder.num_hidden_layers == base.config.num_hidden_layers
    for at in range(2):
        own, given_layer = joined.decoder.bert.encoder.layer[at], base.encoder.layer[at]
        assert torch.equal(own.attention.self.query.weight, given_layer.attention.self.query.weight)
        assert not torch.equal(own.crossattention.self.query.weight, given_layer.attention.self.query.weight)
    words = joined.decoder.get_input_embeddings().weight
    assert torch.equal(words, base.get_input_embeddings().weight)
    assert words is joined.decoder.get_output_embeddings().weight
    source, context = make_context(task, "bert", decoder_layers=1)
    assert task.load_model(source, context).config.decoder.num_hidden_layers == 1


def test_an_encoder_that_is_no_decoder_lends_its_embeddings(task, make_context):
    source, context = make_context(task, "distilbert")
    joined = task.load_model(source, context)
    assert joined.config.decoder.model_type == "bert"
    assert torch.equal(joined.decoder.get_input_embeddings().weight, joined.encoder.get_input_embeddings().weight)


def test_dropout_is_that_of_the_trial_on_both_sides(task, make_context):
    for name in ("bert", "t5", "bart", "gpt2"):
        source, context = make_context(task, name, params={"train.dropout": 0.25})
        model = task.load_model(source, context)
        # Layers of BART and the attention of BERT keep the number and call torch's function.
        places = [getattr(module, "p", getattr(module, "dropout", None)) for module in model.modules()]
        assert {place for place in places if isinstance(place, float)} == {0.25}, name


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=30))
def test_a_tokenizer_of_the_targets_writes_every_text(text):
    from autoft_generation.conditional import _built_tokenizer

    tokenizer = _built_tokenizer(train_tokenizer(["der Hund läuft", "die Katze läuft"], 300))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if not any(token in text for token in ("<pad>", "<s>", "</s>")):
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_a_tokenizer_of_the_targets_finds_their_pieces(task):
    rows = [{"text": "dog", "answer": "der große Hund"}, {"text": "cat", "answer": "die große Katze"}]
    options = {"target_vocabulary": 400}
    facts = task.facts(rows, options)
    assert facts == task.facts(rows, options), "the same rows give the same vocabulary"
    assert json.loads(json.dumps(facts)) == facts
    vocabulary = json.loads(facts["target_tokenizer"])["model"]["vocab"]
    assert len(vocabulary) <= 400
    assert "ĠgroÃŁe" in vocabulary
    assert task.facts(rows, {"target_vocabulary": 0}) == {}


def test_a_vocabulary_without_room_for_all_bytes_is_refused(task):
    with pytest.raises(DataError, match="target_vocabulary: 100 leaves no room"):
        task.facts(task.demo_rows(), {"target_vocabulary": 100})


def test_several_answers_are_all_references_and_the_first_is_learned(task, make_context):
    row = {"text": "red", "answer": ["der", "red?"]}
    _, context = make_context(task, "t5", rows=[row])
    assert task.reference(row, context) == ["der", "red?"]
    (feature,) = task.encode([row], context)
    assert context.processor.target.decode(feature["labels"]) == "der</s>"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": None, "answer": "a"}, "row 2: 'text' has to be a text, given nothing"),
        ({"answer": "a"}, "row 2: 'text' has to be a text, given nothing"),
        ({"text": 3, "answer": "a"}, "row 2: 'text' has to be a text, given int 3"),
        ({"text": "a", "answer": ["b", 3]}, r"row 2: 'answer' has to be a text, given \['b', 3\]"),
        ({"text": "a", "answer": " "}, "row 2: 'answer' has to be a text, given ' '"),
        ({"text": "a", "answer": []}, r"row 2: 'answer' has to be a text, given \[\]"),
    ],
)
@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_a_row_that_cannot_be_read_is_told_with_its_number(name, row, expected, task, make_context):
    class Unsure(type(task)):
        def prompt(self, row, context):
            return self.source_text(row, context)

    _, context = make_context(Unsure(), name)
    with pytest.raises(DataError, match=expected):
        Unsure().encode([task.demo_rows()[0], row], context)


def test_a_model_that_writes_no_text_is_told(task, make_context, tmp_path, checkpoints):
    from transformers import AutoTokenizer, ViTConfig

    ViTConfig().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(checkpoints("bert")).save_pretrained(tmp_path)
    _, context = make_context(task, "bert")
    with pytest.raises(ModelError, match="a model of type 'vit' writes no text") as caught:
        task.load_processor(ModelSource("vit", str(tmp_path)), context)
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "content"),
    [("model.safetensors", b"\x10\x00"), ("config.json", b"{"), ("config.json", b'{"model_type": "x"}')],
)
def test_a_damaged_model_is_told_with_its_place(file, content, task, make_context, checkpoints, tmp_path):
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(checkpoints("t5"), folder)
    (folder / file).write_bytes(content)
    _, context = make_context(task, "t5")
    with pytest.raises(ModelError, match=r"damaged|cannot be loaded") as caught:
        task.load_model(ModelSource("t5", str(folder)), context)
    assert str(caught.value).startswith(str(folder))


def test_a_task_without_such_metrics_scores_no_targets(task, make_context):
    class Plain(type(task)):
        card = replace(task.card, metrics=("chrf",))

    source, context = make_context(Plain(), "t5")
    assert Plain().score_targets(task.load_model(source, context), task.demo_rows(), context) is None


def test_options_for_the_card_can_be_chosen():
    names = [option.name for option in conditional_options(languages=True)]
    assert names == [
        "max_new_tokens",
        "num_beams",
        "decoder_layers",
        "target_vocabulary",
        "source_language",
        "target_language",
    ]
    assert [option.default for option in conditional_options(40, 4, encoders=False)] == [40, 4]
