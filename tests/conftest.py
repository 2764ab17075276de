"""Fixtures that need no network and no downloaded weights: a tiny BERT and sentences with a learnable label."""

from __future__ import annotations

import csv
import gc
import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How fast inputs are made says nothing of the code on a machine that does other work, too.
settings.register_profile("autoft", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("autoft")

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Of what is imported and made in tests next to nothing is garbage: at Python's 700, looking for it takes a tenth of the time.
gc.set_threshold(50_000, 10, 10)

WHOLE_SEARCHES = ("test_run.py", "test_teachers.py", "test_ensembles.py", "test_recovery.py", "test_rescue.py")
"""Modules whose tests take minutes: what is left at the end should be short, for then it can be shared."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests."""
    items.sort(key=lambda item: item.path.name not in WHOLE_SEARCHES)


def pytest_collection_finish() -> None:
    """What was imported stays: collections of garbage need not look through it again and again."""
    gc.freeze()


GOOD = ["good", "great", "lovely", "superb", "fine", "warm"]
BAD = ["bad", "dull", "awful", "weak", "cold", "poor"]
PLAIN = ["the", "film", "plot", "actor", "scene", "music", "a", "is", "was", "very", "and", "story"]


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return sentences and labels; the label follows from the one telling word."""
    rng = random.Random(seed)
    rows = []
    while len(rows) < count:
        label = rng.choice(["positive", "negative"])
        words = rng.choices(PLAIN, k=rng.randint(3, 12))
        words.insert(rng.randrange(len(words)), rng.choice(GOOD if label == "positive" else BAD))
        rows.append((" ".join(words), label))
    return rows


@pytest.fixture(scope="session")
def places_told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[tuple[str, str]]]:
    """A function that returns which files of a folder name a place of this machine, and which place: nobody else's business."""
    places = [tempfile.gettempdir(), tmp_path_factory.getbasetemp(), Path.home(), sys.prefix, Path(__file__).parents[1]]

    def found(folder: Path) -> list[tuple[str, str]]:
        files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert files
        return [
            (name, f"{place}/")
            for name, content in files.items()
            for place in places
            if f"{place}/".encode() in content
        ]

    return found


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT encoder with random weights: 2 layers, 32 wide, some 60 words."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-bert", width=32)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second encoder, half as wide."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "small-bert", width=16)


@pytest.fixture(scope="session")
def wordy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder most of whose weights are embeddings of words that no text has."""
    further = [f"word{number}" for number in range(6000)]
    return make_tiny_model(tmp_path_factory.mktemp("models") / "wordy-bert", width=32, further=further)


def make_tiny_model(folder: Path, width: int, further: Sequence[str] = ()) -> Path:
    """Write a BERT encoder with random weights and a word tokenizer, which knows ``further`` words too."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN, *further]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
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
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A csv of 400 sentences with the columns text and label."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(sentences(400))
    return path


@pytest.fixture(scope="session")
def catalog():
    from autoft.plugins import load_plugins

    return load_plugins()
