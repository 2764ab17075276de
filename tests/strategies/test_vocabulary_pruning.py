from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from autoft.errors import ModelError
from autoft.strategies.vocabulary_pruning import VocabularyPruning, common_tokens, kept_tokens, smaller_tokenizer
from autoft.testing.workbench import Workbench

CORPUS = [
    "the film was a great surprise, and so was its plot",
    "a dull and lifeless story about lifeless people; nothing surprising",
    "surprisingly, the films of her youth were films about storytelling",
    "фильм был очень хороший, сюжет тоже",
    "這部電影很好看",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
PARAMS = {"min_count": 1, "unseen": 1.0, "epochs": 0, "learning_rate": 1e-4, "teaching": 0.5}


def build(kind):
    """A tokenizer of one of the three families, and a transformers class around it."""
    from transformers import PreTrainedTokenizerFast

    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=220, special_tokens=SPECIAL)
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=420, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="[UNK]")
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    read = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=read, **names)


def pruned(tokenizer, texts):
    used = {token for ids in tokenizer(list(texts))["input_ids"] for token in ids}
    pieces = tokenizer.convert_ids_to_tokens(sorted(used))
    kept = kept_tokens(json.loads(tokenizer.backend_tokenizer.to_str()), used, pieces)
    return smaller_tokenizer(tokenizer, kept), kept


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_texts_that_chose_the_vocabulary_are_cut_as_before(kind):
    tokenizer = build(kind)
    texts = CORPUS[:3]
    smaller, kept = pruned(tokenizer, texts)
    assert len(smaller) == len(kept) < len(tokenizer)
    before, after = tokenizer(texts, texts[::-1]), smaller(texts, texts[::-1])
    assert [[kept[token] for token in ids] for ids in after["input_ids"]] == before["input_ids"]
    assert after["token_type_ids"] == before["token_type_ids"]
    for name in ("pad_token", "unk_token", "cls_token", "sep_token"):
        assert getattr(smaller, name) == getattr(tokenizer, name)
        assert kept[getattr(smaller, f"{name}_id")] == getattr(tokenizer, f"{name}_id")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_a_smaller_tokenizer_comes_back_from_its_files_as_it_was(kind, tmp_path):
    from transformers import AutoTokenizer

    smaller, _ = pruned(build(kind), CORPUS[:2])
    smaller.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(CORPUS)["input_ids"] == smaller(CORPUS)["input_ids"]
    assert again.model_input_names == smaller.model_input_names


@pytest.fixture(scope="module")
def families():
    return {kind: (build(kind), *pruned(build(kind), CORPUS[:2])) for kind in ("wordpiece", "bpe", "unigram")}


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="abcdefghijklmnopqrstuvwxyz ,.;", min_size=1, max_size=40))
@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_what_the_whole_can_read_the_smaller_one_can_read_in_pieces(kind, text, families):
    tokenizer, smaller, _ = families[kind]
    if tokenizer.unk_token_id not in tokenizer(text)["input_ids"]:
        assert smaller.unk_token_id not in smaller(text)["input_ids"]
        assert smaller.decode(smaller(text)["input_ids"], skip_special_tokens=True).replace(
            " ", ""
        ) == tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).replace(" ", "")


def test_characters_of_a_script_stay_where_the_data_are_written_in_it():
    tokenizer = build("wordpiece")
    latin, _ = pruned(tokenizer, CORPUS[:3])
    both, _ = pruned(tokenizer, [*CORPUS[:3], "хороший"])
    unseen = "сюжет"
    assert tokenizer.unk_token_id not in tokenizer(unseen)["input_ids"]
    assert latin.unk_token_id in latin(unseen)["input_ids"]
    assert both.unk_token_id not in both(unseen)["input_ids"]


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_a_pruned_model_says_of_its_rows_what_the_whole_said(model_type, make_checkpoint, make_target, load, logits):
    target = make_target(make_checkpoint(model_type))
    rows = target.task.demo_rows()[:5]
    model = load(target).eval()
    # "so", "a" and others are in no row.
    smaller, changed = VocabularyPruning().transform(model, target, rows, PARAMS)
    assert (
        smaller.get_input_embeddings().num_embeddings == len(changed.context.processor) < len(target.context.processor)
    )
    assert smaller.config.vocab_size == len(changed.context.processor)

    def said(model, context):
        batch = target.task.collate(target.task.encode(rows, context), context)
        with torch.no_grad():
            return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    torch.testing.assert_close(said(smaller, changed.context), said(model, target.context))
    assert model.config.vocab_size == len(target.context.processor), "the given one stays as it is"


def test_rare_tokens_go_where_that_is_asked(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    rows = target.task.demo_rows()
    _, changed = VocabularyPruning().transform(load(target), target, rows, {**PARAMS, "min_count": 4})
    known = changed.context.processor.get_vocab()
    # Each in four of the eight rows; "and" too.
    assert {"the", "film", "was", "plot", "is", "really"} <= set(known)
    assert not {"good", "great", "awful"} & set(known)


def test_tasks_whose_models_write_are_refused(make_checkpoint, make_target):
    target = make_target(make_checkpoint("gpt2"), architecture="causal-lm")
    refusal = VocabularyPruning().check(target)
    assert refusal is not None
    assert "may have to write any token" in refusal.reason


def test_a_model_that_counts_positions_from_its_padding_is_refused_where_that_would_move(
    make_checkpoint, make_target, load
):
    target = make_target(make_checkpoint("bert"))
    tokenizer = target.context.processor
    moved = replace(target, config={"model_type": "roberta"})
    VocabularyPruning().transform(load(target), moved, target.task.demo_rows(), PARAMS)
    tokenizer.pad_token = "and"
    try:
        with pytest.raises(ModelError, match="counted from the number of its padding token"):
            VocabularyPruning().transform(load(target), moved, target.task.demo_rows()[4:], PARAMS)
    finally:
        tokenizer.pad_token = "[PAD]"


def test_another_processor_is_told(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    odd = replace(target, context=replace(target.context, processor=object()))
    with pytest.raises(ModelError, match="is no tokenizer with a tokenizer"):
        VocabularyPruning().transform(load(target), odd, [], PARAMS)


def test_windows_that_a_training_leaves_out_are_read_as_before(catalog):
    bench = Workbench(catalog.task("question-answering"), catalog)
    options = {**bench.context.options, "train_windows": 1, "stride": 0}
    context = replace(bench.context, options=options, max_length=24)
    row = bench.rows[0]
    long = {**row, "context": f"{row['context']} " + " ".join(other["context"] for other in bench.rows)}
    asked = {name: long[name] for name in ("question", "context")}
    assert len(bench.task.encode([long], context)[0]["windows"]) < len(
        bench.task.encode([asked], context)[0]["windows"]
    )
    _, target = VocabularyPruning().transform(
        bench.load_model(), replace(bench.target, context=context), [long], PARAMS
    )
    smaller, text = target.context.processor, long["context"]
    assert smaller.convert_ids_to_tokens(smaller(text).input_ids) == context.processor.convert_ids_to_tokens(
        context.processor(text).input_ids
    )


def test_common_tokens_stay_beside_those_of_the_rows(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    rows = target.task.demo_rows()[-2:]
    numbers = target.context.processor.get_vocab()
    used = set(target.context.processor.tokenize(" ".join(row["text"] for row in rows)))
    kept = {}
    for unseen in (1.0, 0.0):
        _, changed = VocabularyPruning().transform(load(target), target, rows, {**PARAMS, "unseen": unseen})
        kept[unseen] = set(changed.context.processor.get_vocab())
        assert used <= kept[unseen]
    rare = max(numbers[token] for token in used)
    assert {token for token, number in numbers.items() if number <= rare} <= kept[0.0]
    assert len(kept[1.0]) < len(kept[0.0])


WORDS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=8), min_size=1, max_size=8)


@given(texts=WORDS, min_count=st.integers(1, 3), unseen=st.floats(0, 1))
def test_as_many_stay_as_texts_that_are_left_out_need(texts, min_count, unseen):
    """Against leaving each text out in turn, for every number of common tokens from none on."""
    rows = [Counter(text) for text in texts]

    def dropped(common: int) -> int:
        lost = 0
        for left_out in range(len(texts)):
            others = Counter(token for i, text in enumerate(texts) if i != left_out for token in text)
            lost += sum(token >= common and others[token] < min_count for token in texts[left_out])
        return lost

    allowed = unseen * sum(map(len, texts))
    assert common_tokens(rows, min_count, unseen) == next(n for n in range(14) if dropped(n) <= allowed)


def test_the_share_of_dropped_tokens_in_new_texts_is_what_was_allowed():
    """Texts of words by Zipf's law, as those of a language are: new ones of the same law have the share that was given."""
    generator = np.random.default_rng(0)
    words = np.arange(20_000)
    law = 1 / (words + 2.7)
    law /= law.sum()
    texts = [Counter(generator.choice(words, 25, p=law).tolist()) for _ in range(400)]
    new = generator.choice(words, 200_000, p=law)
    used = set().union(*texts)
    for unseen in (0.1, 0.03, 0.01):
        common = common_tokens(texts, 1, unseen)
        share = np.mean([word >= common and word not in used for word in new.tolist()])
        assert share == pytest.approx(unseen, rel=0.15)
