"""Tiny models of each kind with random weights, over a vocabulary of bytes, and the task's context over them."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from autoft.contracts import ModelSource, TaskContext

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]


def save_tokenizer(folder, form, chat):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("<s>", 1), ("</s>", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        additional_special_tokens=SPECIAL[3:],
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = CHAT_TEMPLATE if chat else None
    fast.save_pretrained(folder)
    return len(fast)


def save_model(folder, name):
    import torch
    import transformers as t

    form = {"bert": "<s> $A </s>", "gpt2": "$A", "llama-chat": "$A"}.get(name, "$A </s>")
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    size = {"vocab_size": save_tokenizer(folder, form, chat=name == "llama-chat"), **ids}
    bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    bart = {
        f"{side}_{part}": value
        for side in ("encoder", "decoder")
        for part, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 64))
    }
    torch.manual_seed(0)
    if name == "t5":
        config = t.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0, **size)
        model = t.T5ForConditionalGeneration(config)
    elif name == "bart":
        config = t.BartConfig(d_model=32, max_position_embeddings=256, decoder_start_token_id=2, **bart, **size)
        model = t.BartForConditionalGeneration(config)
    elif name == "bert":
        model = t.BertModel(t.BertConfig(max_position_embeddings=256, **bert, **size))
    elif name == "gpt2":
        model = t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, **size))
    else:
        config = t.LlamaConfig(
            max_position_embeddings=256, num_key_value_heads=1, tie_word_embeddings=True, **bert, **size
        )
        model = t.LlamaForCausalLM(config)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Return the folder of a tiny model, made when it is first asked for."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            save_model(made[name], name)
        return made[name]

    return folder


@pytest.fixture
def task():
    """The task, as the catalog has it."""
    from autoft.plugins import load_plugins

    return load_plugins().task("summarization")


@pytest.fixture
def make_context(task, checkpoints):
    """Return source and context of the task over a tiny model, after it has seen rows."""

    def make(name, rows=None, max_length=200, **options):
        source = ModelSource(name=name, path=str(checkpoints(name)))
        given = {option.name: option.default for option in task.card.options} | {"max_new_tokens": 24} | options
        facts = task.facts(rows or task.demo_rows(), given)
        context = TaskContext(facts=facts, options=given, params={}, max_length=max_length)
        return source, replace(context, processor=task.load_processor(source, context))

    return make
