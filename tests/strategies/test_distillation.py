from __future__ import annotations

import json
from dataclasses import replace

import pytest

from autoft.errors import ModelError
from autoft.pretrained import named_model
from autoft.strategies.distillation import Distillation
from autoft.testing import tiny_model
from autoft.testing.workbench import Workbench

PARAMS = {"epochs": 2, "learning_rate": 1e-3, "teaching": 0.7}


@pytest.fixture(scope="module")
def bench(catalog):
    return Workbench(catalog.task("text-classification"), catalog, kind="encoder")


def test_a_student_comes_with_its_own_tokenizer_and_learns_from_the_teacher(bench, tmp_path):
    folder = tiny_model("encoder", tmp_path / "student", ["quite another vocabulary"], seed=5)
    asked = []

    class Recorded:
        teacher = bench.trained.model

        def __call__(self, student, target, **settings):
            asked.append((student, target, settings))

    target = replace(bench.target, recover=Recorded())
    student, own = Distillation().transform(bench.trained.model, target, [], {**PARAMS, "student": str(folder)})
    ((trained, told, settings),) = asked
    assert trained is student
    assert told is own
    assert settings == {
        "epochs": 2,
        "learning_rate": 1e-3,
        "teaching": 0.7,
        "matching": (),
        "after_step": None,
        "teachers": [],
        "attending": (),
    }
    assert own.context.processor.get_vocab() != bench.context.processor.get_vocab()
    assert own.config["vocab_size"] == student.config.vocab_size == len(own.context.processor)
    assert own.source.path == str(folder)
    assert student.config.num_labels == bench.trained.model.config.num_labels
    found = bench.task.predict(student, bench.inputs, own.context)
    assert len(found) == len(bench.rows)


def test_a_student_reads_no_more_tokens_than_it_has_places_for(bench, tmp_path):
    from transformers import AutoConfig, BertModel

    folder = tiny_model("encoder", tmp_path / "student", ["a text of a few words"])
    config = AutoConfig.from_pretrained(folder, max_position_embeddings=12)
    BertModel(config).save_pretrained(folder)
    student, own = Distillation().transform(
        bench.trained.model, bench.target, [], {**PARAMS, "epochs": 0, "student": str(folder)}
    )
    assert bench.context.max_length > own.context.max_length == 12
    (answer,) = bench.task.predict(student, [{"text": "a text of a few words " * 9}], own.context)
    assert answer["label"] in bench.context.labels


def test_without_a_student_it_is_refused_with_the_way_to_name_one(bench, tmp_path):
    assert "name a smaller model in the recipe" in Distillation().check(bench.target).reason
    named = replace(bench.target, context=replace(bench.context, params={"distillation.student": str(tmp_path / "no")}))
    assert "holds no config.json" in Distillation().check(named).reason
    there = tiny_model("encoder", tmp_path / "student", ["words"])
    named = replace(bench.target, context=replace(bench.context, params={"distillation.student": str(there)}))
    assert Distillation().check(named) is None


@pytest.mark.parametrize(
    "name", ["package://no_such_package/model", "package://json/model", "./nowhere", "/nowhere/at/all"]
)
def test_a_name_that_leads_nowhere_is_told(name):
    with pytest.raises(ModelError, match=r"config\.json|not installed|no such path"):
        named_model(name)


def test_a_hub_id_is_left_to_the_hub_and_a_folder_is_found(tmp_path):
    assert named_model("owner/name").path == "owner/name"
    folder = tiny_model("encoder", tmp_path / "bert", ["words"])
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    assert named_model(str(folder)).path == str(folder)
