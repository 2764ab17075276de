"""A tiny BERT with random weights, and the task's context over it."""

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
    "film",
    "plot",
    "was",
    "is",
    "good",
    "great",
    "bad",
    "dull",
    "and",
    "but",
    "not",
    "one",
    "two",
    "three",
    "four",
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a BERT encoder, 2 layers, 32 wide."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
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
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def task():
    """The task, as the catalog has it."""
    from autoft.plugins import load_plugins

    return load_plugins().task("text-classification")


@pytest.fixture
def source(checkpoint):
    """The tiny model."""
    return ModelSource(name="tiny", path=str(checkpoint))


@pytest.fixture
def make_context(task, source):
    """Return the context that the task gets after it has seen rows."""

    def make(rows, params=None, **options):
        facts = task.facts(rows, {"problem": "auto", "threshold": 0.5, **options})
        context = TaskContext(
            facts=facts, options={"problem": "auto", "threshold": 0.5, **options}, params=params or {}, max_length=32
        )
        return replace(context, processor=task.load_processor(source, context))

    return make
