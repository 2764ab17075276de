"""Tiny models are real ones: they load by the Auto classes, write what they read, and stay small."""

from __future__ import annotations

import json

import pytest

from autoft.errors import ModelError
from autoft.testing import kind_of, tiny_model
from autoft.testing.models import PLANNED, texts_of

TEXTS = ["Der Hund läuft über die Straße.", "The dog runs — fast! 狗跑了 🐕", "a 'b'  c\nd"]
KINDS = list(PLANNED)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: tiny_model(kind, tmp_path_factory.mktemp(kind), TEXTS) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_is_small_and_what_the_plan_expects(kind, folders):
    config = json.loads((folders[kind] / "config.json").read_text())
    assert {name: config[name] for name in PLANNED[kind]} == PLANNED[kind]
    assert sum(path.stat().st_size for path in folders[kind].iterdir()) < 500_000


@pytest.mark.parametrize("kind", ["decoder", "seq2seq", "vision-to-text"])
@pytest.mark.parametrize("text", [*TEXTS, "Ω unseen wörds, \t tabs and ½"])
def test_what_generates_text_can_write_every_text(kind, text, folders):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_encoder_knows_the_texts_and_all_of_ascii(folders):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders["encoder"])
    known = tokenizer([*TEXTS, "zyx(9)_unseen@~"])["input_ids"]
    assert not any(tokenizer.unk_token_id in ids for ids in known)
    pair = tokenizer("one", "two three")
    assert pair["token_type_ids"] == sorted(pair["token_type_ids"])
    assert pair["input_ids"].count(tokenizer.sep_token_id) == 2
    mapped = tokenizer("The dog", return_offsets_mapping=True)["offset_mapping"]
    assert mapped[1][0] == 0
    assert mapped[-2][1] == len("The dog")


@pytest.mark.parametrize(
    ("kind", "loader"),
    [
        ("encoder", "AutoModelForSequenceClassification"),
        ("encoder", "AutoModelForQuestionAnswering"),
        ("decoder", "AutoModelForCausalLM"),
        ("decoder", "AutoModelForSequenceClassification"),
        ("seq2seq", "AutoModelForSeq2SeqLM"),
        ("vision", "AutoModelForImageClassification"),
        ("vision-to-text", "VisionEncoderDecoderModel"),
    ],
)
def test_the_auto_classes_load_it(kind, loader, folders):
    import transformers

    model = getattr(transformers, loader).from_pretrained(folders[kind])
    assert sum(parameter.numel() for parameter in model.parameters()) < 150_000


@pytest.mark.parametrize("kind", ["decoder", "seq2seq", "vision-to-text"])
def test_it_generates(kind, folders):
    import transformers
    from PIL import Image

    folder = folders[kind]
    if kind == "vision-to-text":
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        given = processor(Image.new("RGB", (50, 40), "red"), return_tensors="pt")
        model = transformers.VisionEncoderDecoderModel.from_pretrained(folder)
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        given = tokenizer("The dog", return_tensors="pt")
        kinds = {"decoder": transformers.AutoModelForCausalLM, "seq2seq": transformers.AutoModelForSeq2SeqLM}
        model = kinds[kind].from_pretrained(folder)
    written = model.generate(**given, max_new_tokens=5, do_sample=False)
    assert 1 < written.shape[1] <= given["input_ids"].shape[1] + 5 if kind == "decoder" else written.shape[1] <= 6


def test_the_same_seed_gives_the_same_weights(tmp_path):
    from safetensors.torch import load_file

    weights = [
        load_file(tiny_model("encoder", tmp_path / str(i), TEXTS, seed=seed) / "model.safetensors")
        for i, seed in enumerate((0, 0, 1))
    ]
    name = "embeddings.word_embeddings.weight"
    assert weights[0][name].equal(weights[1][name])
    assert not weights[0][name].equal(weights[2][name])


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("sequence-classification", "encoder"),
        ("token-classification", "encoder"),
        ("causal-lm", "decoder"),
        ("seq2seq-lm", "seq2seq"),
        ("conditional-generation", "seq2seq"),
        ("vision-to-text", "vision-to-text"),
        ("vision-encoder-decoder", "vision-to-text"),
        ("image-text-to-text", "vision-to-text"),
        ("image-classification", "vision"),
        ("my-own", "encoder"),
    ],
)
def test_the_kind_follows_from_the_architecture(architecture, kind):
    assert kind_of(architecture) == kind


def test_an_unknown_kind_is_told(tmp_path):
    with pytest.raises(ModelError, match="Did you mean 'encoder'"):
        tiny_model("encoders", tmp_path)


def test_texts_are_found_inside_of_lists_and_mappings():
    rows = [{"a": "one", "b": ["two", {"c": "three"}], "d": 4, "e": None}]
    assert texts_of(rows) == ["one", "two", "three"]
