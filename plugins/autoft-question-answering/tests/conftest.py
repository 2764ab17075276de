"""Tiny encoders with random weights and real tokenizers, trained on a few sentences."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from autoft.contracts import ModelSource, TaskContext

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TEXTS = [
    "Who wrote the letter? Anna wrote the letter in 1903, in a small town called Brig.",
    "Where was the letter written? It was found by Carl Meier under a floor in 1998.",
    "谁写了这封信？安娜在一九零三年写了这封信。",
    "How many rooms has the house? The house has seven rooms, two of them without windows.",
]
SPECIAL = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
}


def word_pieces():
    """The tokenizer of BERT, as WordPiece learns it from the texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL["bert"]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


def bytes_pairs():
    """The tokenizer of RoBERTa and Longformer: pairs of bytes, a space is a part of the word after it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=SPECIAL["roberta"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **names
    )


def sentence_pieces():
    """The tokenizer of DeBERTa v3: pieces of sentences, whose offsets count the space before a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL["bert"], unk_token="[UNK]")
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}


def family(name):
    """Return the tokenizer and the encoder of a family of models."""
    import transformers as t

    if name == "bert":
        return word_pieces(), t.BertModel(t.BertConfig(vocab_size=160, max_position_embeddings=64, **SIZES))
    if name == "distilbert":
        tokenizer = word_pieces()
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        config = t.DistilBertConfig(
            vocab_size=160, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64
        )
        return tokenizer, t.DistilBertModel(config)
    if name == "deberta-v2":
        config = t.DebertaV2Config(
            vocab_size=220,
            max_position_embeddings=64,
            relative_attention=True,
            position_buckets=16,
            pos_att_type=["p2c", "c2p"],
            type_vocab_size=0,
            **SIZES,
        )
        return sentence_pieces(), t.DebertaV2Model(config)
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "sep_token_id": 2}
    if name == "roberta":
        config = t.RobertaConfig(vocab_size=320, max_position_embeddings=66, type_vocab_size=1, **ids, **SIZES)
        return bytes_pairs(), t.RobertaModel(config)
    config = t.LongformerConfig(
        vocab_size=320, max_position_embeddings=66, type_vocab_size=1, attention_window=16, **ids, **SIZES
    )
    return bytes_pairs(), t.LongformerModel(config)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Return the folder of a tiny model of a family, made once."""
    import torch

    folders = {}

    def make(name):
        if name not in folders:
            torch.manual_seed(0)
            folders[name] = tmp_path_factory.mktemp(name)
            tokenizer, model = family(name)
            tokenizer.save_pretrained(folders[name])
            model.save_pretrained(folders[name])
        return folders[name]

    return make


@pytest.fixture(scope="session")
def task():
    """The task, as the catalog has it."""
    from autoft.plugins import load_plugins

    return load_plugins().task("question-answering")


@pytest.fixture
def source(folder_of):
    """The tiny BERT."""
    return ModelSource(name="tiny", path=str(folder_of("bert")))


@pytest.fixture
def make_context(task, source):
    """Return the context that the task gets after it has seen rows."""

    def make(rows, params=None, *, model=source, max_length=48, **changes):
        options = {option.name: option.default for option in task.card.options} | changes
        context = TaskContext(
            facts=task.facts(rows, options), options=options, params=params or {}, max_length=max_length
        )
        return replace(context, processor=task.load_processor(model, context))

    return make
