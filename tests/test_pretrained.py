from __future__ import annotations

import json
import os
import shutil
import time

import pytest

from autoft.contracts import ModelSource, TaskContext
from autoft.errors import ModelError
from autoft.pretrained import DROPOUTS, load_network, load_tokenizer, loading, set_dropout, usable_positions
from autoft.testing import tiny_model as write_tiny_model


def test_every_kind_of_dropout_is_set_by_its_own_name():
    from transformers import AutoConfig

    expected = {
        "bert": {"hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"},
        "distilbert": {"dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"},
        "gpt2": {"resid_pdrop", "embd_pdrop", "attn_pdrop"},
        "t5": {"dropout_rate", "classifier_dropout"},
    }
    for model_type, names in expected.items():
        config = AutoConfig.for_model(model_type)
        set_dropout(config, 0.37)
        assert {name for name in DROPOUTS if getattr(config, name, None) == 0.37} == names


def test_no_value_leaves_the_checkpoints_own():
    from transformers import BertConfig

    config = BertConfig(hidden_dropout_prob=0.23)
    set_dropout(config, None)
    assert config.hidden_dropout_prob == 0.23


@pytest.mark.parametrize("damage", ["cut weights", "no weights", "no configuration"])
def test_files_that_cannot_be_read_are_told_with_their_place(damage, tiny_model, tmp_path):
    from transformers import AutoModel

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    match damage:
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:100])
        case "no weights":
            weights.unlink()
        case _:
            (folder / "config.json").write_text("{}")
    with (
        pytest.raises(ModelError, match=r"damaged|cannot be loaded") as caught,
        loading(ModelSource(name="m", path=str(folder))),
    ):
        AutoModel.from_pretrained(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 0),
        ("hidden_size", "wide"),
        ("pad_token_id", 99_999),
        ("id2label", [1]),
        ("quantization_config", 7),
    ],
)
def test_a_configuration_with_a_wrong_value_is_told(key, value, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ModelError, match="the model cannot be loaded: "):
        load_network("AutoModel", ModelSource("m", str(folder)), TaskContext({}, {}, {}, 64, "cpu"))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "num_hidden_layers",
            10**9,
            r"config\.json is damaged: num_hidden_layers is 1000000000; a model has 10,000 layers",
        ),
        ("num_labels", 10**9, r"config\.json is damaged: num_labels is 1000000000; a model has 1,000,000 labels"),
        (
            "attn_implementation",
            "kernels-community/mla",
            r"config\.json: attn_implementation names a kernel .* is not run",
        ),
    ],
)
def test_a_configuration_is_looked_at_before_anything_of_it_is_built_or_fetched(
    key, value, expected, tiny_model, tmp_path
):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ModelError, match=expected), loading(ModelSource("m", str(folder))):
        pytest.fail("it was loaded")


def test_transformers_is_silent_while_loading_and_speaks_again_afterwards(tiny_model):
    import transformers

    before = transformers.logging.get_verbosity()
    with loading(ModelSource(name="m", path=str(tiny_model))):
        assert transformers.logging.get_verbosity() == transformers.logging.ERROR
    assert transformers.logging.get_verbosity() == before


def test_errors_of_the_program_itself_pass_through(tiny_model):
    with pytest.raises(ZeroDivisionError), loading(ModelSource(name="m", path=str(tiny_model))):
        1 / 0  # noqa: B018


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path):
    folder = write_tiny_model("decoder", tmp_path / "llama", ["two words"])
    tokenizer = load_tokenizer(ModelSource(name="m", path=str(folder)))
    assert tokenizer.pad_token == tokenizer.eos_token
    batch = tokenizer(["two words", "two"], padding=True)
    assert len(batch["input_ids"][0]) == len(batch["input_ids"][1])


def test_a_network_gets_its_head_its_dropout_and_32_bits(tmp_path):
    import torch
    from transformers import AutoModel

    folder = write_tiny_model("decoder", tmp_path / "llama", ["two words"])
    AutoModel.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    source = ModelSource(name="m", path=str(folder))
    tokenizer = load_tokenizer(source)
    context = TaskContext(facts={}, options={}, params={"train.dropout": 0.25}, max_length=16, processor=tokenizer)
    model = load_network("AutoModelForSequenceClassification", source, context, num_labels=3)
    assert model.score.out_features == 3
    assert model.config.attention_dropout == 0.25
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    halved = ModelSource(name="m", path=str(folder), load_kwargs={"dtype": torch.bfloat16})
    assert load_network("AutoModelForSequenceClassification", halved, context, num_labels=3).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "positions"), [("bert", 20), ("roberta", 18), ("mpnet", 18), ("esm", 18), ("distilbert", 20), ("gpt2", 20)]
)
def test_a_model_takes_as_many_tokens_as_it_has_places_for_and_none_more(kind, positions):
    import torch
    from transformers import AutoConfig, AutoModel

    sizes = {"n_positions": 20, "n_embd": 8, "n_head": 2, "n_layer": 1} if kind == "gpt2" else {"hidden_size": 8}
    if kind == "distilbert":
        sizes = {"dim": 8, "n_heads": 2, "n_layers": 1, "hidden_dim": 8}
    elif kind != "gpt2":
        sizes |= {"num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    places = {} if kind == "gpt2" else {"max_position_embeddings": 20}
    known = {"pad_token_id": 1, "mask_token_id": 3, "position_embedding_type": "absolute"} if kind == "esm" else {}
    config = AutoConfig.for_model(kind, vocab_size=16, **sizes, **places, **known)
    most = usable_positions(config.to_dict())
    assert most == positions
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        model(input_ids=torch.full((1, positions), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, positions + 1), 5))


def test_a_model_without_a_table_of_positions_takes_any_number():
    assert usable_positions({"model_type": "t5", "n_positions": 512, "d_model": 8}) is None


def test_a_decoder_classifies_a_text_as_it_does_beside_a_longer_one(tmp_path):
    import torch

    folder = write_tiny_model("decoder", tmp_path / "llama", ["two words and more"])
    config = json.loads((folder / "config.json").read_text())
    # As of checkpoints that name a padding token which their tokenizer does not know.
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 0}))
    source = ModelSource(name="m", path=str(folder))
    tokenizer = load_tokenizer(source)
    assert tokenizer.pad_token_id != 0
    context = TaskContext(facts={}, options={}, params={}, max_length=16, processor=tokenizer)
    model = load_network("AutoModelForSequenceClassification", source, context, num_labels=3).eval()
    with torch.inference_mode():
        alone = model(**tokenizer(["two"], return_tensors="pt")).logits
        beside = model(**tokenizer(["two", "two words and more"], padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(beside[:1], alone)


def test_converted_models_that_nobody_asked_for_in_a_month_are_deleted(tmp_path):
    from autoft import gguf

    for name, days in (("old-0", 31), (".partial-1", 40), ("used-2", 29)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        os.utime(tmp_path / name, (0, time.time() - days * 24 * 3600))
    (tmp_path / "elsewhere").symlink_to(tmp_path / "used-2")
    gguf.drop_unused(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "used-2"]
