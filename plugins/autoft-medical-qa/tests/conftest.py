"""A tiny BERT with random weights, and the context of a task over it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from autoft.contracts import ModelSource, TaskContext

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

WORDS = [
    "a",
    "the",
    "of",
    "is",
    "was",
    "in",
    "which",
    "what",
    "when",
    "does",
    "do",
    "yes",
    "no",
    "maybe",
    "bone",
    "organ",
    "heart",
    "liver",
    "lung",
    "skin",
    "right",
    "wrong",
    "good",
    "bad",
    "cell",
    "blood",
    "fever",
    "cold",
    "vitamin",
    "c",
    "pressure",
    "walking",
    "lowers",
    "raises",
    "study",
    "showed",
    "nothing",
    "clear",
    "reported",
    "1921",
    "1922",
    "insulin",
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a BERT encoder, 2 layers, 32 wide."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        # Answers of an untrained model that differ clearly from row to row.
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def source(checkpoint):
    return ModelSource(name="tiny", path=str(checkpoint))


@pytest.fixture
def make_context(source):
    """Return the context of a task over training rows, with options, parameters and further facts."""

    def make(task, rows, params=None, facts=None, **options):
        known = {option.name: option.default for option in task.card.options} | options
        found = {**task.facts(rows, known), **(facts or {})}
        context = TaskContext(facts=found, options=known, params=params or {}, max_length=64)
        return replace(context, processor=task.load_processor(source, context))

    return make


@pytest.fixture(scope="session")
def catalog():
    from autoft.plugins import load_plugins

    return load_plugins()
