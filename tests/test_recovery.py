"""Variants that are trained again: which trial they are made of, what they learn from, and what becomes of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import autoft
from autoft.artifact import load
from autoft.contracts import PostTrainingQuantizer
from autoft.data.prepared import PreparedData
from autoft.data.rows import Split
from autoft.plans.plan import ModelPlan, Plan, StepPlan, VariantPlan
from autoft.rundir import RunDir, read_run
from autoft.testing.workbench import Workbench
from autoft.trial import Callbacks, Workplace, compress_further, write_variant

CHAIN = "layer-pruning+vocabulary-pruning"


def search(folder: Path, model: Path, reviews: Path, **changes: object) -> tuple[Path, str]:
    recipe = {
        "task": "text-classification",
        "model": str(model),
        "data": {"train": str(reviews), "validation_size": 80, "test_size": 80},
        "budget": {"time": "10m", "trials": 2},
        "effort": "quick",
        "compress": ["none", "dynamic-int8", CHAIN],
        "space": {
            "full.learning_rate": {"low": 2e-3, "high": 6e-3},
            "train.epochs": 5,
            "train.batch_size": 8,
            "layer-pruning.epochs": 4,
            "layer-pruning.learning_rate": 2e-3,
            "vocabulary-pruning.min_count": 20,
            "vocabulary-pruning.unseen": 1.0,
        },
        "search": {"finalist_seeds": 0, "early_stopping": "none"},
        **changes,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    words = [sys.executable, "-m", "autoft", "search", "tiny.yaml"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs/tiny", done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, reviews):
    folder, said = search(tmp_path_factory.mktemp("recovered"), tiny_model, reviews)
    (folder.parent / "said.txt").write_text(said)
    return folder


class Looks(PostTrainingQuantizer):
    name = "looks"
    summary = "keeps what it is calibrated with"

    def apply(self, model, target, rows, params):
        self.rows = list(rows)
        return model


def test_compressions_of_a_further_fold_are_calibrated_with_its_training_rows(catalog, tmp_path):
    looks = Looks()
    bench = Workbench(catalog.task("text-classification"), catalog, strategies=[looks])
    rows = bench.rows
    first, second = (
        PreparedData(Split.from_rows(train), Split.from_rows(held), Split.from_rows([]), "", {}, {})
        for train, held in ((rows[2:], rows[:2]), (rows[:2], rows[2:]))
    )
    plan = Plan.model_construct(objective="accuracy", workers=1)
    place = Workplace(RunDir(tmp_path), plan, bench.catalog, bench.task, first, folds={1: second})
    variant = VariantPlan(name="looks", chain=[StepPlan(strategy="looks")])
    write_variant(place, bench.load_model(), bench.target, variant, tmp_path / "model", fold=1)
    assert looks.rows == rows[:2]


def test_rows_are_encoded_anew_where_the_tokenizer_of_a_folder_was_changed(catalog, tiny_model, tmp_path):
    bench = Workbench(catalog.task("text-classification"), catalog)
    data = PreparedData(Split.from_rows(bench.rows), Split.from_rows([]), Split.from_rows([]), "", {}, {})
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    plan = Plan.model_construct(models=[ModelPlan(name="tiny", path=str(model), config={}, size_bytes=0)])

    def encoded():
        place = Workplace(RunDir(tmp_path / "run"), plan, bench.catalog, bench.task, data)
        assert len(place.features("tiny", bench.context)) == len(bench.rows)
        return len([*place.run.data.glob("encoded/*.arrow")])

    assert encoded() == 1
    (model / "model.safetensors").touch()
    assert encoded() == 1
    (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text() + " ")
    assert encoded() == 2


def further(run: Path):
    (found,) = [trial for trial in read_run(run).trials if trial.config.kind == "compress"]
    return found


def test_the_best_trial_alone_is_made_smaller_and_trained_again(run):
    record = read_run(run)
    trials = [trial for trial in record.trials if not trial.config.derived]
    assert len(trials) == 2
    names = {trial.number: {variant.name for variant in trial.variants} for trial in trials}
    assert all(found == {"none", "dynamic-int8"} for found in names.values())

    def reached(trial):
        return max(v.validation["accuracy"] for v in trial.variants if v.validation)

    best = max(trials, key=lambda trial: (reached(trial), -trial.number))
    assert further(run).config.members == [best.number]
    assert [variant.name.split("(")[0] for variant in further(run).variants] == ["layer-pruning"]
    said = (run.parent / "said.txt").read_text()
    assert f"trial {best.number} made smaller and trained again" in said
    assert "2 trials (2 complete), 1 recovery, " in (run / "report.md").read_text()


def test_its_files_are_a_smaller_model_with_its_own_tokenizer(run, tmp_path):
    place = Workplace.open(RunDir(run))
    again = compress_further(place, further(run).config.model_copy(update={"number": 90}), Callbacks())
    (variant,) = again.variants
    assert variant.state == "complete", again.reason
    loaded = load(run / variant.folder)
    whole = place.trained(place.run.results()[again.config.members[0]], loaded.context)
    assert loaded.model.config.num_hidden_layers * 2 == whole.config.num_hidden_layers
    assert len(loaded.context.processor) == loaded.model.config.vocab_size < whole.config.vocab_size
    rows = place.data.validation[:]
    hits = [said["label"] == row["label"] for said, row in zip(loaded.predict(rows), rows, strict=True)]
    assert sum(hits) / len(hits) == pytest.approx(variant.validation["accuracy"])
    assert again.seconds["recover"] > 0
    assert autoft.load(run / variant.folder).predict("a great film")[0]["label"] in {"positive", "negative"}


def test_what_is_left_learns_what_the_whole_says(run):
    """With nothing but the teacher's word, the half comes nearer to the whole than it was without training."""
    place = Workplace.open(RunDir(run))
    config = further(run).config.model_copy(update={"number": 91})
    (variant,) = [one for one in place.plan.variants if one.trains]

    def distance(**params: object) -> float:
        step = variant.chain[0]
        changed = step.model_copy(update={"params": {**step.params, "teaching": 1.0, **params}})
        place.plan.variants = [variant.model_copy(update={"chain": [changed]})]
        result = compress_further(place, config, Callbacks())
        loaded = load(run / result.variants[0].folder)
        whole = place.trained(place.run.results()[config.members[0]], loaded.context)
        rows = [{"text": row["text"]} for row in place.data.train[:64]]
        batch = place.task.collate(place.task.encode(rows, loaded.context), loaded.context)
        with torch.no_grad():
            return float((loaded.model(**batch).logits - whole(**batch).logits).square().mean())

    assert distance(epochs=6) < 0.5 * distance(epochs=0)


def test_what_chains_begin_alike_is_trained_and_measured_once(run):
    place = Workplace.open(RunDir(run))
    (whole,) = [one for one in place.plan.variants if one.trains]
    half = whole.model_copy(update={"name": "half", "chain": whole.chain[:1]})
    place.plan.variants = [half, whole]
    config = further(run).config.model_copy(update={"number": 93, "variants": ["half", whole.name]})
    begun = []

    def note(progress):
        # The first word of a training comes after its first batch of 8.
        begun.extend([progress] if progress.samples == 8 else [])

    result = compress_further(place, config, Callbacks(progress=note))
    assert [variant.state for variant in result.variants] == ["complete", "complete"], result.reason
    assert len(begun) == 1
    first, second = (load(run / variant.folder).model.state_dict() for variant in result.variants)
    alike = [name for name in first if first[name].shape == second[name].shape]
    assert len(alike) > 10
    assert all(torch.equal(first[name], second[name]) for name in alike)
    (step,) = result.variants[1].steps
    assert step.validation == result.variants[0].validation


def test_of_variants_that_train_only_those_are_made_that_are_asked_for(run):
    place = Workplace.open(RunDir(run))
    (whole,) = [one for one in place.plan.variants if one.trains]
    other = whole.model_copy(update={"name": "half", "chain": whole.chain[:1]})
    place.plan.variants = [whole, other]
    config = further(run).config.model_copy(update={"number": 94, "variants": ["half"]})
    assert [variant.name for variant in compress_further(place, config, Callbacks()).variants] == ["half"]


def test_attention_maps_are_learned_too_where_the_recipe_asks_for_it(run):
    place = Workplace.open(RunDir(run))
    (whole,) = [one for one in place.plan.variants if one.trains]
    first = whole.chain[0]
    variants = [
        whole.model_copy(
            update={"name": f"{attention}", "chain": [first.model_copy(update={"params": {**first.params, **extra}})]}
        )
        for attention in (False, True)
        for extra in [{"attention": attention, "teaching": 0.0, "keep": 1.0, "learning_rate": 1e-2}]
    ]
    place.plan.variants = variants
    config = further(run).config.model_copy(update={"number": 95, "variants": []})
    made = compress_further(place, config, Callbacks()).variants
    assert [one.state for one in made] == ["complete", "complete"], [one.reason for one in made]
    member = next(one for one in place.run.results() if one.number == config.members[0])
    teacher = next(run / one.folder for one in member.variants if one.name == "none")

    def maps(folder):
        loaded = load(folder)
        loaded.model.set_attn_implementation("eager")
        processor = loaded.context.processor
        batch = processor(["the film was great", "a dull plot"], return_tensors="pt", padding=True)
        with torch.no_grad():
            found = loaded.model.eval()(**batch, output_attentions=True).attentions
        return torch.stack(found)

    wanted = maps(teacher)
    without, learned = ((maps(run / one.folder) - wanted).square().mean() for one in made)
    assert learned < 0.75 * without


def test_a_time_that_is_up_ends_the_training_and_loses_nothing(run):
    place = Workplace.open(RunDir(run))
    config = further(run).config.model_copy(update={"number": 92})
    result = compress_further(place, config, Callbacks(), deadline=time.monotonic() - 1)
    assert [variant.state for variant in result.variants] == ["complete"]
    assert result.seconds["recover"] < 30


@pytest.mark.slow
def test_variants_that_train_are_made_of_every_trial_where_there_are_no_others(tmp_path, tiny_model, reviews):
    run, _ = search(tmp_path, tiny_model, reviews, compress=[CHAIN], budget={"time": "10m", "trials": 1})
    (trial,) = read_run(run).trials
    # The default's own model stays beside them as the yardstick.
    assert [variant.name.split("(")[0] for variant in trial.variants] == ["none", "layer-pruning"]
    assert json.loads((run / "selection.json").read_text())["variant"].startswith("layer-pruning")


@pytest.mark.slow
def test_a_smaller_model_learns_from_the_best_trial(tmp_path, tiny_model, small_model, reviews):
    space = {
        "full.learning_rate": 4e-3,
        "train.epochs": 6,
        "train.batch_size": 8,
        "distillation.student": str(small_model),
        "distillation.epochs": 6,
        "distillation.learning_rate": 4e-3,
    }
    budget = {"time": "10m", "trials": 1}
    run, _ = search(tmp_path, tiny_model, reviews, compress=["none", "distillation"], space=space, budget=budget)
    (variant,) = further(run).variants
    assert variant.state == "complete", variant.reason
    assert variant.validation["accuracy"] > 0.8
    loaded = load(run / variant.folder)
    assert loaded.model.config.hidden_size == 16


@pytest.mark.slow
def test_layers_of_other_shapes_are_written_measured_and_loaded_along_a_chain(tmp_path, tiny_model, reviews):
    chains = ["low-rank+onnx-int8", "head-pruning+ffn-pruning", "movement-pruning"]
    names = ("low-rank", "head-pruning", "ffn-pruning", "movement-pruning")
    space = {
        "full.learning_rate": 4e-3,
        "train.epochs": 5,
        "train.batch_size": 8,
        **{f"{name}.epochs": 3 for name in names},
        **{f"{name}.learning_rate": 2e-3 for name in names},
    }
    budget = {"time": "10m", "trials": 1}
    run, _ = search(tmp_path, tiny_model, reviews, compress=["none", *chains], space=space, budget=budget)
    variants = {"+".join(re.findall(r"[\w-]+(?=\()|onnx-int8", one.name)): one for one in further(run).variants}
    assert list(variants) == chains
    for chain, variant in variants.items():
        assert variant.state == "complete", variant.reason
        assert variant.validation["accuracy"] > 0.8, chain
        # Of each step but the last, its files were loaded and scored too.
        assert [step.name.split("(")[0] for step in variant.steps] == chain.split("+")[:-1]
        assert all(step.validation["accuracy"] > 0.7 for step in variant.steps), chain
    # Again, for what is not chosen is not kept.
    place = Workplace.open(RunDir(run))
    place.plan.variants = [one for one in place.plan.variants if one.trains and "low-rank" not in one.name]
    again = compress_further(place, further(run).config.model_copy(update={"number": 90}), Callbacks())
    narrow, sparse = (load(run / variant.folder) for variant in again.variants)
    assert narrow.manifest.format == "head-pruning"
    layer = narrow.model.bert.encoder.layer[0]
    whole = sparse.model.bert.encoder.layer[0]
    assert layer.attention.self.query.out_features * 2 == whole.attention.self.query.out_features
    assert layer.intermediate.dense.out_features * 2 == whole.intermediate.dense.out_features
    assert sparse.manifest.format == "transformers"
    weight = whole.intermediate.dense.weight
    assert int((weight == 0).sum()) == weight.numel() // 2
