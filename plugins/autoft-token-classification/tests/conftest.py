"""Tiny models with random weights, of the families that taggers are made from, and the task's context over them."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from autoft.contracts import ModelSource, TaskContext

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

FAMILIES = ("bert", "distilbert", "roberta", "gpt2", "deberta-v2")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,-北京市"
OPTIONS = {"scheme": "auto", "decoding": "argmax", "strict": False, "tag_names": ""}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def make_letters():
    """A tokenizer of letters: ``Oslo`` is ``O ##s ##l ##o``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_byte_level(folder, family):
    """Write a byte-level BPE in which words with a space before them have pieces of their own, as GPT-2's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if family == "roberta" else ("<|endoftext|>",)

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["and the other one lives in Oslo and the other in Bergen"] * 8, trainer)
    tokenizer.model.save(str(folder))


@pytest.fixture(scope="session")
def letters():
    """A tokenizer of letters."""
    return make_letters()


@pytest.fixture(scope="session")
def byte_level():
    """Return the function that writes a byte-level vocabulary."""
    return save_byte_level


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A folder with an encoder of each family."""
    import torch
    import transformers
    from transformers import GPT2Tokenizer, RobertaTokenizer

    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        if family in {"roberta", "gpt2"}:
            save_byte_level(folder, family)
            kind = RobertaTokenizer if family == "roberta" else GPT2Tokenizer
            tokenizer = kind.from_pretrained(folder)
        else:
            tokenizer = make_letters()
            if family == "distilbert":
                tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.save_pretrained(folder)
        size = len(tokenizer)
        if family == "bert":
            config = transformers.BertConfig(
                vocab_size=size, max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, **SIZES
            )
        elif family == "roberta":
            config = transformers.RobertaConfig(vocab_size=size, max_position_embeddings=66, **SIZES)
        elif family == "deberta-v2":
            config = transformers.DebertaV2Config(
                vocab_size=size,
                max_position_embeddings=64,
                relative_attention=True,
                pos_att_type=["p2c", "c2p"],
                position_biased_input=False,
                **SIZES,
            )
        elif family == "distilbert":
            config = transformers.DistilBertConfig(
                vocab_size=size, max_position_embeddings=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32
            )
        else:
            config = transformers.GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=2, n_head=2)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        made[family] = folder
    return made


@pytest.fixture
def task():
    """The task, as the catalog has it."""
    from autoft.plugins import load_plugins

    return load_plugins().task("token-classification")


@pytest.fixture
def source(checkpoints):
    """The tiny BERT."""
    return ModelSource(name="tiny", path=str(checkpoints["bert"]))


@pytest.fixture
def make_context(task, source):
    """Return the context that the task gets after it has seen rows."""

    def make(rows, params=None, max_length=32, source=source, **options):
        given = {**OPTIONS, **options}
        facts = task.facts(rows, given)
        context = TaskContext(facts=facts, options=given, params=params or {}, max_length=max_length)
        return replace(context, processor=task.load_processor(source, context))

    return make
