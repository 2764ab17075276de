"""Tiny models of every kind with random weights, over one vocabulary of bytes, and a task that reverses words."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from autoft.contracts import Column, ModelSource, TaskCard, TaskContext

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def save_tokenizer(folder, style, chat=False):
    """Write a tokenizer of bytes, with the special tokens that models of a style have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pairs = [("<s>", 1), ("</s>", 2)]
    forms = {"encoder": "<s> $A </s>", "seq2seq": "$A </s>", "bos": "<s> $A", "plain": "$A"}
    tokenizer.post_processor = processors.TemplateProcessing(single=forms[style], special_tokens=pairs)
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    if style == "encoder":
        names = {"cls_token": "<s>", "sep_token": "</s>"}
    if style == "plain":
        names = {"bos_token": "</s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **names,
        # As GPT-2 and Llama, causal models have no token to pad with.
        **({} if style in {"bos", "plain"} else {"pad_token": "<pad>"}),
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
        model_input_names=["input_ids", "attention_mask"],
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return len(fast)


def save_model(folder, name, chat=False):
    """Write a tiny model with random weights."""
    import torch
    import transformers as t

    styles = {"bert": "encoder", "distilbert": "encoder", "gpt2": "plain", "llama": "bos"}
    size = save_tokenizer(folder, styles.get(name, "seq2seq"), chat=chat)
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    both = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 128,
    }
    if name == "marian":
        model = t.MarianMTModel(t.MarianConfig(vocab_size=size, decoder_start_token_id=0, **both, **ids))
    elif name == "bart":
        model = t.BartForConditionalGeneration(
            t.BartConfig(vocab_size=size, decoder_start_token_id=2, forced_eos_token_id=2, **both, **ids)
        )
    elif name == "t5":
        model = t.T5ForConditionalGeneration(
            t.T5Config(
                vocab_size=size,
                d_model=32,
                d_kv=16,
                d_ff=64,
                num_layers=2,
                num_heads=2,
                decoder_start_token_id=0,
                **ids,
            )
        )
    elif name == "bert":
        model = t.BertModel(t.BertConfig(vocab_size=size, max_position_embeddings=128, pad_token_id=0, **SIZES))
    elif name == "distilbert":
        model = t.DistilBertModel(
            t.DistilBertConfig(
                vocab_size=size,
                max_position_embeddings=128,
                dim=32,
                n_layers=2,
                n_heads=2,
                hidden_dim=64,
                pad_token_id=0,
            )
        )
    elif name == "gpt2":
        model = t.GPT2LMHeadModel(
            t.GPT2Config(
                vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=2, eos_token_id=2
            )
        )
    else:
        model = t.LlamaForCausalLM(
            t.LlamaConfig(
                vocab_size=size,
                max_position_embeddings=128,
                num_key_value_heads=1,
                tie_word_embeddings=True,
                bos_token_id=1,
                eos_token_id=2,
                **SIZES,
            )
        )
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Return the folder of a tiny model, made when it is first asked for."""
    made = {}

    def folder(name, chat=False):
        if (name, chat) not in made:
            made[name, chat] = tmp_path_factory.mktemp(name)
            save_model(made[name, chat], name, chat)
        return made[name, chat]

    return folder


def reversal():
    """A task that answers with the words in reverse."""
    from autoft_generation.conditional import ConditionalGeneration, conditional_options

    class Reversal(ConditionalGeneration):
        card = TaskCard(
            name="reversal",
            summary="the words in reverse",
            columns=(Column("text", "text", "words"), Column("answer", "text", "in reverse", target=True)),
            metrics=("chrf", "perplexity", "bits_per_byte"),
            architecture="conditional-generation",
            options=conditional_options(max_new_tokens=24),
        )

        def demo_rows(self):
            texts = ("one two", "red green blue", "north", "a b c d", "old new old", "ä ö ü")
            return [{"text": text, "answer": " ".join(reversed(text.split()))} for text in texts]

    return Reversal()


@pytest.fixture(scope="session")
def task():
    """The task that reverses words."""
    return reversal()


@pytest.fixture
def make_context(checkpoints):
    """Return a task's source and context over a tiny model, after it has seen rows."""

    def make(task, name, rows=None, params=None, chat=False, max_length=64, **options):
        source = ModelSource(name=name, path=str(checkpoints(name, chat)))
        given = {option.name: option.default for option in task.card.options} | options
        facts = task.facts(rows or task.demo_rows(), given)
        context = TaskContext(facts=facts, options=given, params=params or {}, max_length=max_length)
        return source, replace(context, processor=task.load_processor(source, context))

    return make
