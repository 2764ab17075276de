"""Tiny translation models with random weights, one of each kind whose languages are told in another way."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from autoft.contracts import ModelSource, TaskContext

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SIZES = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 128,
    "init_std": 0.5,
}
LETTERS = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZäöüß.,?!:'")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
TEXTS = ["the train is late", "where is the station", "she reads a book", "der Zug ist spät", "sie liest ein Buch"]


def letters_tokenizer(form, **names):
    """A tokenizer of bytes that frames texts by special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", model_input_names=["input_ids", "attention_mask"], **names
    )


def make_bert(folder):
    from transformers import BertConfig, BertModel

    tokenizer = letters_tokenizer("<s> $A </s>", cls_token="<s>", sep_token="</s>")
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(folder)


def make_t5(folder, codes=()):
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = letters_tokenizer("$A </s>", eos_token="</s>")
    tokenizer.add_tokens([f"<2{code}>" for code in codes])
    tokenizer.save_pretrained(folder)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)


def make_madlad(folder):
    make_t5(folder, ["de", "zh", "zh_Latn", "translate"])


def make_gpt2(folder, chat_template=None):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = letters_tokenizer("$A", bos_token="</s>", eos_token="</s>")
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=256, bos_token_id=2, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(folder)


def make_chat(folder):
    make_gpt2(folder, CHAT_TEMPLATE)


def make_nllb(folder):
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS])}
    codes = ["eng_Latn", "deu_Latn", "zho_Hans", "zho_Hant"]
    tokenizer = NllbTokenizer(vocab=vocabulary, merges=[], extra_special_tokens=codes)
    tokenizer.save_pretrained(folder)
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    M2M100ForConditionalGeneration(M2M100Config(vocab_size=len(tokenizer), **SIZES, **ids)).save_pretrained(folder)


def make_mbart(folder):
    from transformers import MBartConfig, MBartForConditionalGeneration, MBartTokenizer
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

    words = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS, *FAIRSEQ_LANGUAGE_CODES, "<mask>"]
    tokenizer = MBartTokenizer(vocab=[(word, -float(i > 4)) for i, word in enumerate(words)])
    tokenizer.save_pretrained(folder)
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    MBartForConditionalGeneration(MBartConfig(vocab_size=len(tokenizer), **SIZES, **ids)).save_pretrained(folder)


def make_marian(folder, codes=()):
    import sentencepiece
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    (folder / "texts").write_text("\n".join(TEXTS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "texts"),
        model_prefix=str(folder / "source"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.model"))
    words = ["</s>", "<unk>", *codes, *(pieces.id_to_piece(i) for i in range(3, len(pieces))), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    tokenizer = MarianTokenizer(
        source_spm=str(folder / "source.model"),
        target_spm=str(folder / "source.model"),
        vocab=str(folder / "vocab.json"),
        source_lang="en",
        target_lang="de",
    )
    tokenizer.save_pretrained(folder)
    pad = len(words) - 1
    ids = {"pad_token_id": pad, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": pad}
    MarianMTModel(MarianConfig(vocab_size=len(words), **SIZES, **ids)).save_pretrained(folder)


def make_several(folder):
    make_marian(folder, [">>deu<<", ">>fra<<", ">>cmn_Hans<<"])


MAKERS = {
    "bert": make_bert,
    "t5": make_t5,
    "madlad": make_madlad,
    "gpt2": make_gpt2,
    "chat": make_chat,
    "nllb": make_nllb,
    "mbart": make_mbart,
    "marian": make_marian,
    "several": make_several,
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Return the folder of a tiny model, made when it is first asked for."""
    made = {}

    def folder(name):
        import torch

        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            MAKERS[name](made[name])
        return made[name]

    return folder


@pytest.fixture
def task():
    """The task, as the catalog has it."""
    from autoft.plugins import load_plugins

    return load_plugins().task("translation")


@pytest.fixture
def make_context(task, checkpoint):
    """Return a model's source and the context that the task gets over it after it has seen rows."""

    def make(name, rows=None, params=None, **options):
        source = ModelSource(name=name, path=str(checkpoint(name)))
        given = {option.name: option.default for option in task.card.options} | {"max_new_tokens": 12} | options
        facts = json.loads(json.dumps(task.facts(rows or task.demo_rows(), given)))
        context = TaskContext(facts=facts, options=given, params=params or {}, max_length=128)
        return source, replace(context, processor=task.load_processor(source, context))

    return make
