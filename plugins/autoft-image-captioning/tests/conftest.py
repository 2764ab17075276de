"""Tiny models with random weights of every kind that the task takes, and small pictures."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from autoft.contracts import ModelSource, TaskContext

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SIDE = 32
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220)}
PLACES = ("left", "right")


def draw(colour, place, seed):
    """A noisy picture with one square."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    pixels = rng.integers(200, 256, (SIDE, SIDE, 3))
    left = int(rng.integers(1, 5)) + (0 if place == "left" else SIDE // 2)
    top = int(rng.integers(2, SIDE - 14))
    pixels[top : top + 10, left : left + 10] = COLOURS[colour]
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """48 pictures as files; rows with their paths, two captions each."""
    folder = tmp_path_factory.mktemp("squares")
    rows = []
    for i in range(48):
        colour, place = list(COLOURS)[i % 3], PLACES[i // 3 % 2]
        path = folder / f"{i:02d}.png"
        draw(colour, place, i).save(path)
        rows.append({"image": str(path), "captions": [f"a {colour} square on the {place}", f"one {colour} square"]})
    return rows


def make_vit(folder, **changes):
    import torch
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    torch.manual_seed(0)
    settings = {
        "image_size": SIDE,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    config = ViTConfig(**{**settings, **changes})
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def bert_tokenizer(folder):
    """A tokenizer of words as BERT's, as BLIP and GIT have one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "a", "one", "square", "on", "the", *COLOURS, *PLACES]
    inner = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        additional_special_tokens=["[DEC]"],
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_blip(folder):
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil

    tokenizer = bert_tokenizer(folder)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "encoder_hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
        "bos_token_id": 4,
        "pad_token_id": 0,
        "sep_token_id": 3,
        "eos_token_id": 3,
    }
    vision = {
        "image_size": SIDE,
        "patch_size": 8,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def make_git(folder):
    import torch
    from transformers import CLIPImageProcessorPil, GitConfig, GitForCausalLM

    tokenizer = bert_tokenizer(folder)
    vision = {
        "image_size": SIDE,
        "patch_size": 8,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = GitConfig(
        vision_config=vision,
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    GitForCausalLM(config).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size=size, crop_size=size).save_pretrained(folder)
    return folder


def make_vit_bert(folder):
    """A ViT with a BERT decoder, whose tokens are named by the configuration alone, as in older checkpoints."""
    import torch
    from transformers import (
        BertConfig,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessorPil,
    )

    tokenizer = bert_tokenizer(folder)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    encoder = ViTConfig(image_size=SIDE, patch_size=8, **small)
    decoder = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=24, pad_token_id=0, **small)
    joint = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, decoder_start_token_id=2, eos_token_id=3, pad_token_id=0
    )
    torch.manual_seed(0)
    VisionEncoderDecoderModel(joint).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


MAKERS = {"vit": make_vit, "blip": make_blip, "git": make_git, "vit-bert": make_vit_bert}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folders of tiny models by kind, made when they are asked for."""
    made = {}

    def checkpoint(kind):
        if kind not in made:
            made[kind] = MAKERS[kind](tmp_path_factory.mktemp(kind))
        return made[kind]

    return checkpoint


@pytest.fixture
def task():
    """The task, as the catalog has it."""
    from autoft.plugins import load_plugins

    return load_plugins().task("image-captioning")


@pytest.fixture
def ready(task, checkpoints):
    """Return source and context of a tiny model after the task has seen rows."""

    def make(kind, rows, params=None, folder=None, **options):
        defaults = {option.name: option.default for option in task.card.options}
        chosen = {**defaults, "decoder_layers": 1, "decoder_width": 32, "vocabulary": 300, **options}
        source = ModelSource(name=kind, path=str(folder or checkpoints(kind)))
        context = TaskContext(facts=task.facts(rows, chosen), options=chosen, params=params or {}, max_length=20)
        return source, replace(context, processor=task.load_processor(source, context))

    return make
