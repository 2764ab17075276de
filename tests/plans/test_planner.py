from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.additions import added_configuration
from autoft.api import _with_known_pace
from autoft.errors import ModelError, PluginError, RecipeError
from autoft.hardware import Hardware
from autoft.plans.efforts import EFFORTS, TRAIN_SPACE, WIDE
from autoft.plans.models import base_model
from autoft.plans.plan import Plan
from autoft.plans.planner import make_plan
from autoft.recipe import recipe_from_mapping
from autoft.rundir import RunDir, TrialResult, VariantResult, write_json
from autoft.space import Categorical

CPU = Hardware("cpu", 2, 8 * 2**30, (), "test", False, "Linux x86_64")


def planned(catalog, tiny_model, **changes) -> Plan:
    recipe = {"task": "text-classification", "model": str(tiny_model), "data": "train.csv", **changes}
    return make_plan(recipe_from_mapping(recipe), catalog, CPU)


def faults(catalog, tiny_model, **changes) -> str:
    with pytest.raises(RecipeError) as caught:
        planned(catalog, tiny_model, **changes)
    return str(caught.value)


@pytest.mark.parametrize("effort", list(EFFORTS))
def test_every_effort_gives_a_plan_whose_default_configuration_lies_in_its_space(catalog, tiny_model, effort):
    plan = planned(catalog, tiny_model, effort=effort)
    config = plan.default_config()
    assert config.pipeline == "full"
    assert set(TRAIN_SPACE) <= set(config.params)
    for name, value in config.params.items():
        assert plan.domain(name).contains(value), name
    assert Plan.model_validate(json.loads(plan.model_dump_json())) == plan


def test_the_plan_names_the_version_of_its_tasks_plugin(catalog, tiny_model):
    found = planned(catalog, tiny_model).environment
    assert found["autoft-text-classification"] == importlib.metadata.version("autoft-text-classification")
    assert "autoft-translation" not in found


def test_efforts_widen(catalog, tiny_model):
    searched = {
        effort: sum(
            not isinstance(domain := planned(catalog, tiny_model, effort=effort).domain(name), Categorical)
            or len(domain.choices) > 1
            for name in TRAIN_SPACE
        )
        for effort in EFFORTS
    }
    assert searched["quick"] < searched["balanced"] < searched["best"]
    best = planned(catalog, tiny_model, effort="best")
    assert {"full", "head-only", "lora", "top-layers"} <= {pipeline.name for pipeline in best.pipelines} <= set(WIDE)


def test_a_chain_that_does_not_work_is_refused_with_the_reason(catalog, tiny_model):
    plan = planned(catalog, tiny_model, pipelines=["lora", "nf4+loha", "nf4+ia3", "int8+hra"])
    assert {pipeline.name for pipeline in plan.pipelines} == {"lora", "nf4+ia3"}
    refused = {note.what: note.reason for note in plan.refusals}
    assert refused["nf4+loha"].startswith("loha: does not work in nf4 on models like BERT (")
    assert refused["int8+hra"] == "hra cannot train over a quantized base"
    assert any("nf4+loha is left out" in warning for warning in plan.warnings)
    assert {"ia3.learning_rate", "nf4.double_quantization"} <= set(plan.space)


def test_what_nobody_asked_for_is_refused_in_silence(catalog, tiny_model):
    plan = planned(catalog, tiny_model, pipelines=["lora"])
    assert not [note for note in plan.refusals if "loha" in note.what]


def test_wide_pipelines_are_known(catalog):
    for name in WIDE:
        quantizer, _, adapter = name.rpartition("+")
        assert adapter in catalog.adapters
        assert not quantizer or quantizer in catalog.quantizers


def test_a_scalar_pins_a_list_is_a_choice_and_a_range_narrows(catalog, tiny_model):
    space = {
        "train.epochs": 4,
        "train.batch_size": [8, 64],
        "full.learning_rate": {"low": 1e-5, "high": 2e-5},
    }
    plan = planned(catalog, tiny_model, space=space)
    assert plan.domain("train.epochs") == Categorical((4,))
    assert plan.domain("train.batch_size") == Categorical((8, 64))
    rate = plan.domain("full.learning_rate")
    assert (rate.low, rate.high, rate.log) == (1e-5, 2e-5, True)
    assert {plan.origins[name] for name in space} == {"recipe"}


def test_a_trial_needs_room_on_the_disk_for_its_encoded_rows_too(catalog, tiny_model):
    made = planned(catalog, tiny_model)
    few, many = (made.model_copy(update={"encoded_bytes": size}).trial_bytes for size in (10**6, 10**9))
    assert (few, many - few) == (made.trial_bytes, 10**9 - 50_000_000)


def test_names_that_do_not_resolve_are_told_all_at_once_with_the_closest(catalog, tiny_model):
    text = faults(
        catalog,
        tiny_model,
        pipelines=["loar"],
        compress=["onxx"],
        augment=["random-delete"],
        space={"train.epocs": 3, "lora.rank": "many"},
        task_options={"treshold": 0.4},
        search={"objectives": ["acuracy"]},
        budget={"latencies": "3ms"},
    )
    for expected in [
        "Did you mean 'lora'",
        "Did you mean 'onnx'",
        "Did you mean 'random-deletion'",
        "Did you mean 'train.epochs'",
        "Did you mean 'threshold'",
        "Did you mean 'accuracy'",
        "Did you mean 'latency'",
    ]:
        assert expected in text, text
    assert text.startswith("recipe: 8 faults\n")


def test_an_unknown_task_is_a_plugin_error(catalog, tiny_model):
    with pytest.raises(PluginError, match="Did you mean 'text-classification'"):
        planned(catalog, tiny_model, task="text-classificaton")


@pytest.mark.parametrize(
    ("task", "search", "rows"),
    [
        ("text-classification", {}, 2000),
        ("text-classification", {"validation_rows": "all"}, None),
        ("text-classification", {"validation_rows": 50}, 50),
        ("generation", {"objectives": "rouge_l"}, 200),
        # Perplexity needs no text to be written.
        ("generation", {}, 2000),
    ],
)
def test_fewer_rows_are_judged_at_a_checkpoint_where_texts_are_written(catalog, tiny_model, task, search, rows):
    plan = planned(catalog, tiny_model, task=task, search=search)
    assert plan.validation_rows == rows
    assert plan.rows_of_validation(100) == min(100, rows or 100)


def test_models_with_other_tokenizers_are_not_compared_by_figures_per_token(catalog, tiny_model, tmp_path):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 1}))
    models = [str(tiny_model), str(other)]
    plan = planned(catalog, tiny_model, task="generation", model=models)
    assert plan.objective == "bits_per_byte"
    assert any("perplexity counts the tokens" in warning for warning in plan.warnings)
    plan = planned(catalog, tiny_model, task="generation", model=models, search={"objectives": "perplexity"})
    assert plan.objective == "perplexity"
    assert any("perplexity counts the tokens" in warning for warning in plan.warnings)
    plan = planned(catalog, tiny_model, task="generation")
    assert plan.objective == "perplexity"
    # Those of two runs are compared by their plans.
    assert plan.metrics["perplexity"] == {"higher_is_better": False, "per_token": True, "of_targets": True}
    assert plan.metrics["chrf"] == {"higher_is_better": True}


def test_lengths_are_not_searched_by_how_likely_answers_are_that_are_cut_there(catalog, tiny_model):
    def lengths(given, **search):
        changes = {"task": "generation", "space": {"train.max_length": given}, "search": search}
        return planned(catalog, tiny_model, **changes).domain("train.max_length")

    for several in ([64, 128], {"low": 32, "high": 64}):
        with pytest.raises(
            RecipeError, match=r"perplexity is of answers that are cut at this length.*objectives: chrf"
        ):
            lengths(several)
    assert lengths([64, 128], objectives="chrf").choices == (64, 128)
    assert lengths(64).choices == (64,)
    plan = planned(catalog, tiny_model, task="generation", space={"train.max_length": 64})
    with pytest.raises(RecipeError, match="it has to be 64, as in the run"):
        added_configuration(plan, catalog, [], {"train.max_length": 32})


def test_models_that_cut_answers_at_their_own_positions_are_not_compared_by_them_in_silence(
    catalog, tiny_model, tmp_path
):
    short = shutil.copytree(tiny_model, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    changes = {"task": "generation", "model": [str(tiny_model), str(short)]}

    def told(**more):
        return [
            warning for warning in planned(catalog, tiny_model, **changes, **more).warnings if "takes 40" in warning
        ]

    assert len(told(space={"train.max_length": 64})) == 1
    assert told(space={"train.max_length": 40}) == told(search={"objectives": "chrf"}) == []


def test_several_objectives_refuse_early_stopping_and_say_what_to_do(catalog, tiny_model):
    text = faults(
        catalog,
        tiny_model,
        search={"objectives": ["accuracy", "latency_p50_ms"], "early_stopping": "halving"},
    )
    assert "use none, or one objective" in text
    plan = planned(catalog, tiny_model, search={"objectives": ["accuracy", "latency_p50_ms"]})
    assert plan.early_stopping == "none"


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "config.json").write_text("{}"), "names no model_type"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"holds no \*.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "can carry code and is not read",
        ),
        (
            lambda folder: (folder / "config.json").write_text("[" * 100_000),
            "config.json is damaged: maximum recursion",
        ),
        (lambda folder: (folder / "config.json").write_text('{"model_type": ["bert"]}'), "names no model_type"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "bert", "architectures": 7}'),
            "architectures has to be a list",
        ),
        (lambda folder: os.mkfifo(folder / "vocab.txt"), "is no file, but a pipe"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "put onto them unseen"),
        (
            lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": "../../b.safetensors"}}'),
            "names '../../b.safetensors'; weights have to be",
        ),
        (lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": "b.bin"}}'), "names 'b.bin'"),
        (lambda folder: (folder / INDEX).write_text('{"weight_map": []}'), "is damaged"),
    ],
)
def test_a_model_folder_that_cannot_be_used_says_why(catalog, tiny_model, tmp_path, damage, expected):
    import re

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    damage(folder)
    assert re.search(expected, faults(catalog, folder))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("{", "its config.json is damaged"),
        ('{"peft_type": "LORA"}', "its config.json names no model_type; it is not the configuration"),
        (
            '{"model_type": "t5", "num_decoder_layers": 1000000000}',
            "its config.json is damaged: num_decoder_layers is 1000000000; a",
        ),
        (
            '{"model_type": "qwen", "text": {"n_layer": 20000}}',
            "its config.json is damaged: n_layer is 20000; a model has 10,000",
        ),
    ],
)
def test_a_model_of_the_hub_that_cannot_be_used_says_why(catalog, monkeypatch, tmp_path, config, expected):
    """In a cache of the hub's own form, so that nothing is fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--somebody--something"
    for name, text in (("refs/main", "c0ffee"), ("snapshots/c0ffee/config.json", config)):
        (cached / name).parent.mkdir(parents=True)
        (cached / name).write_text(text)
    assert f"model: somebody/something: {expected}" in faults(catalog, "somebody/something")


def test_a_model_of_the_hub_stays_the_one_that_the_run_began_with(catalog, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--somebody--something"
    now, before = "c" * 40, "b" * 40
    for name, text in (
        ("refs/main", now),
        (f"snapshots/{now}/config.json", '{"model_type": "bert"}'),
        (f"snapshots/{now}/model.safetensors", ""),
        (f"snapshots/{before}/config.json", '{"model_type": "bert", "old": true}'),
    ):
        (cached / name).parent.mkdir(parents=True, exist_ok=True)
        (cached / name).write_text(text)
    assert base_model("somebody/something", tmp_path).revision == now
    assert base_model("somebody/something@main", tmp_path).revision == now
    earlier = base_model("somebody/something", tmp_path, before)
    assert earlier.revision == before
    assert earlier.config["old"]


@pytest.mark.parametrize("weights", ["model.safetensors", "model.safetensors.index.json", None])
def test_a_model_of_the_hub_is_of_the_commit_that_was_found(monkeypatch, tmp_path, weights):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "c0ffee" + 34 * "0"
    snapshot = cached_model(tmp_path, commit)
    if weights is not None:
        (snapshot / weights).write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    # Of the weights of the last nothing is known without the hub.
    assert base_model("somebody/something", tmp_path).revision == commit


@pytest.mark.parametrize("name", ["somebody/something", "somebody/something@main"])
def test_a_model_of_the_hub_without_safetensors_is_refused(monkeypatch, tmp_path, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (cached_model(tmp_path, "c0ffee") / "pytorch_model.bin").touch()
    with pytest.raises(
        ModelError, match=r"holds no safetensors weights at commit c0ffee; .* name as somebody/something@commit"
    ):
        base_model(name, tmp_path)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("adapter_config.json", "an adapter that would be put onto them unseen"),
        ("model.safetensors.index.json", "weights have to be *.safetensors files beside it"),
    ],
)
def test_what_would_be_read_with_the_weights_of_a_hub_model_is_looked_at(monkeypatch, tmp_path, file, expected):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (cached_model(tmp_path, 40 * "c") / file).write_text('{"weight_map": {"a": "pytorch_model.bin"}}')
    with pytest.raises(ModelError, match=re.escape(expected)):
        base_model("somebody/something", tmp_path)


def cached_model(cache: Path, commit: str) -> Path:
    """Make a model in a cache of the hub's own form, and return the folder of its commit."""
    place = cache / "models--somebody--something"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots" / commit).mkdir(parents=True)
    (place / "snapshots" / commit / "config.json").write_text('{"model_type": "bert"}')
    return place / "snapshots" / commit


def test_a_run_goes_on_with_the_workers_that_it_was_found_to_pay(catalog, tiny_model, tmp_path):
    plan, run = planned(catalog, tiny_model), RunDir(tmp_path)
    assert plan.by_pace
    assert _with_known_pace(plan, run) == plan
    write_json(run.plan, plan.model_copy(update={"workers": 2, "train_threads": 1}).model_dump(mode="json"))
    again = _with_known_pace(plan, run)
    assert (again.workers, again.train_threads) == (2, 1)
    # On another machine it is found out anew, and so it is where the file is damaged.
    other = plan.model_copy(update={"hardware": {**plan.hardware, "cores": 8}})
    assert _with_known_pace(other, run) == other
    run.plan.write_text(run.plan.read_text()[:500])
    assert _with_known_pace(plan, run) == plan


def test_a_missing_model_folder_names_the_closest(catalog, tiny_model):
    text = faults(catalog, tiny_model, model=[str(tiny_model.parent / "tiny-bart")])
    assert "did you mean 'tiny-bert'" in text


def test_a_missing_package_says_what_to_install(catalog, tiny_model):
    assert "no_such_package_here" in faults(catalog, tiny_model, model="package://no_such_package_here/model")


def test_a_chain_that_cannot_follow_is_refused_with_its_reason(catalog, tiny_model):
    plan = planned(catalog, tiny_model, compress=["none", "onnx+magnitude-pruning"])
    (note,) = [note for note in plan.refusals if note.what == "onnx+magnitude-pruning"]
    assert "magnitude-pruning cannot follow" in note.reason
    assert any("onnx+magnitude-pruning" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("chain", "told"),
    [
        ("low-rank", None),
        ("low-rank+onnx-int8", None),
        ("low-rank+dynamic-int8", None),
        ("low-rank+layer-pruning+vocabulary-pruning+onnx-mixed", None),
        ("layer-pruning+ffn-pruning+low-rank", None),
        ("low-rank+low-rank", "low-rank cannot follow: it takes dense or reshaped, not factorized"),
        ("low-rank+ffn-pruning", "ffn-pruning cannot follow: it takes dense or reshaped, not factorized"),
        ("low-rank+layer-pruning+ffn-pruning", "it takes dense or reshaped, not factorized"),
        ("low-rank+vocabulary-pruning+magnitude-pruning", "it takes dense, not factorized"),
        ("low-rank+dynamic-int8+onnx", "not quantized"),
        ("onnx+low-rank", "it takes dense or reshaped, not exported"),
        ("head-pruning+ffn-pruning+vocabulary-pruning+low-rank+onnx-int8", None),
        ("layer-pruning+head-pruning+dynamic-int8", None),
        ("head-pruning+ffn-pruning+head-pruning", "head-pruning cannot follow: it takes dense, not reshaped"),
        ("low-rank+head-pruning", "it takes dense, not factorized"),
        ("head-pruning+magnitude-pruning", "it takes dense, not reshaped"),
    ],
)
def test_layers_of_other_shapes_stay_so_until_they_are_exported(catalog, tiny_model, chain, told):
    plan = planned(catalog, tiny_model, compress=["none", chain])
    assert [variant.name for variant in plan.variants] == ["none", *([] if told else [chain])]
    assert any(note.what == chain and str(told) in note.reason for note in plan.refusals) == bool(told)


def test_chains_begin_alike_only_where_the_same_format_follows(catalog, tiny_model):
    chains = [f"layer-pruning+quantization-aware+{last}" for last in ("onnx-int8", "onnx-int4")]
    plan = planned(
        catalog, tiny_model, compress=[*chains, "layer-pruning+quantization-aware+vocabulary-pruning+onnx-int8"]
    )
    eight, four, again = (variant.beginnings for variant in plan.variants)
    assert eight[0] == four[0] == again[0]
    assert eight[1] == again[1] != four[1]


def test_training_for_a_format_needs_a_step_that_has_one(catalog, tiny_model):
    chains = ["quantization-aware+onnx-int8", "layer-pruning+quantization-aware+vocabulary-pruning+onnx-int4"]
    refused = ["quantization-aware", "quantization-aware+onnx", "onnx-int8+quantization-aware"]
    plan = planned(catalog, tiny_model, compress=["none", *chains, *refused])
    assert [variant.name for variant in plan.variants] == ["none", *chains]
    assert [variant.trains for variant in plan.variants] == [False, True, True]
    reasons = {note.what: note.reason for note in plan.refusals}
    for name in refused[:2]:
        assert reasons[name].startswith("quantization-aware: no step behind it says how it quantizes")
    assert reasons[refused[2]] == "quantization-aware cannot follow: it takes dense, not exported"


def test_what_quantizes_without_training_for_it_can_be_rescued(catalog, tiny_model):
    compress = [
        "none",
        "onnx",
        "onnx-int8",
        "dynamic-int8",
        "onnx-mixed",
        "vocabulary-pruning+onnx-int4",
        "magnitude-pruning+onnx-int8",
        "layer-pruning+onnx-int8",
        "quantization-aware+dynamic-int8",
    ]
    plan = planned(catalog, tiny_model, compress=compress)
    # None for what quantizes nothing, in a way that follows from the weights, zeros, or weights that are trained anyway.
    assert {variant.name: variant.rescues for variant in plan.rescues} == {
        "quantization-aware+onnx-int8": "onnx-int8",
        "vocabulary-pruning+quantization-aware+onnx-int4": "vocabulary-pruning+onnx-int4",
    }
    assert all(variant.trains for variant in plan.rescues)
    assert plan.rescues[0].chain[0].params == {"epochs": 3, "learning_rate": 2e-5, "teaching": 0.9, "teachers": 1}
    assert planned(catalog, tiny_model, compress=compress, search={"quantization_aware": "never"}).rescues == []
    folds = planned(catalog, tiny_model, compress=compress, search={"folds": 5})
    assert folds.rescues == []
    (warning,) = [one for one in folds.warnings if "trains the best model again" in one]
    assert warning.startswith("layer-pruning+onnx-int8, quantization-aware+dynamic-int8: ")
    pinned = {"quantization-aware": {"epochs": 1, "teaching": [0.0, 0.5]}}
    plan = planned(catalog, tiny_model, compress=["onnx-int8"], space=pinned)
    assert [variant.name for variant in plan.rescues] == [
        f"quantization-aware(epochs=1, teaching={share})+onnx-int8" for share in (0.0, 0.5)
    ]
    assert planned(catalog, tiny_model, compress=["onnx-int8"], space={"quantization-aware.epochs": 0}).rescues == []


@settings(max_examples=100, deadline=None)
@given(
    whole=st.floats(0.0, 3.0),
    others=st.dictionaries(st.sampled_from(["onnx-int8", "onnx", "onnx-int4"]), st.floats(0.0, 3.0)),
    tolerance=st.sampled_from([0.0, 0.01, 0.2]),
    higher=st.booleans(),
)
def test_a_variant_is_rescued_that_is_worse_than_the_uncompressed_one_by_more_than_the_tolerance(
    catalog, tiny_model, whole, others, tolerance, higher
):
    plan = planned(catalog, tiny_model, compress=["onnx-int8", "onnx", "onnx-int4"])
    plan = plan.model_copy(update={"tolerance": tolerance, "metrics": {plan.objective: {"higher_is_better": higher}}})
    variants = [
        VariantResult(name=name, state="complete", validation={plan.objective: value}) for name, value in others.items()
    ]
    result = TrialResult(number=0, state="complete", config=plan.default_config(), variants=variants)
    result.validation = {plan.objective: whole}
    worse = {name: whole - value if higher else value - whole for name, value in others.items() if name != "onnx"}
    expected = {name: by for name, by in worse.items() if by > tolerance * max(1, whole) + 1e-9}
    assert plan.lost(result) == pytest.approx(expected)
    assert [variant.rescues for variant in plan.trained_again(result)] == [
        v.name for v in plan.variants if v.name in expected
    ]
    # Its own files say more than the training does; a model over the budget is no loss.
    result.variants.insert(0, VariantResult(name="none", state="complete", validation={plan.objective: 1.0}))
    for variant in result.variants[1:]:
        variant.state = "infeasible"
    assert plan.lost(result) == {}
    for variant in result.variants[1:]:
        variant.state, variant.validation = "complete", {plan.objective: 0.0 if higher else 2.0}
    assert set(plan.lost(result)) == set(others) - {"onnx"}


def test_values_of_a_compressor_make_a_variant_each(catalog, tiny_model):
    plan = planned(
        catalog,
        tiny_model,
        compress=["magnitude-pruning"],
        space={"magnitude-pruning.sparsity": [0.2, 0.5]},
    )
    assert [variant.name for variant in plan.variants] == [
        "magnitude-pruning(sparsity=0.2)",
        "magnitude-pruning(sparsity=0.5)",
    ]


def test_budgets_become_limits_on_columns(catalog, tiny_model):
    plan = planned(
        catalog,
        tiny_model,
        budget={"model_size": "20MB", "latency": {"p50": "3ms", "p95": "5ms", "length": 32}, "train_memory": "2GiB"},
    )
    limits = {limit.key: (limit.column, limit.limit) for limit in plan.budget}
    assert limits == {
        "model_size": ("model_size_bytes", 20e6),
        "latency.p50": ("latency_p50_ms", pytest.approx(3.0)),
        "latency.p95": ("latency_p95_ms", pytest.approx(5.0)),
        "train_memory": ("train_memory_bytes", 2 * 2**30),
    }
    assert plan.request == {"batch_size": 1, "length": 32}


def test_explaining_needs_no_heavy_library(tiny_model, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"task: text-classification\nmodel: {tiny_model}\ndata: t.csv\n")
    code = (
        "import sys; sys.argv = ['autoft', 'explain', sys.argv[1]]\n"
        "from autoft.cli import app\n"
        "app(standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'peft', 'optuna', 'datasets', 'onnxruntime', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, str(recipe)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "full.learning_rate" in done.stdout


# -------------------------------------------------------------------------------------- regularizers and optimisers


def test_chains_of_regularizers_are_searched_and_their_parameters_come_with_them(catalog, tiny_model):
    plan = planned(catalog, tiny_model, regularize=["none", "r-drop", "ema+layer-decay"], space={"r-drop.weight": 0.5})
    assert plan.domain("regularize") == Categorical(("none", "r-drop", "ema+layer-decay"), "none")
    assert plan.default_config().params["regularize"] == "none"
    assert plan.origins["regularize"] == "recipe"
    assert plan.domain("r-drop.weight") == Categorical((0.5,))

    def own(chain):
        names = plan.parameters("full", "none", chain)
        return {name for name in names if name.split(".")[0] in {"r-drop", "ema", "layer-decay"}}

    assert own("none") == own(None) == set()
    assert own("r-drop") == {"r-drop.weight"}
    assert own("ema+layer-decay") == {"ema.decay", "layer-decay.rate"}
    assert {"ema.decay", "layer-decay.rate"}.isdisjoint(plan.default_config().params)


@pytest.mark.parametrize("effort", list(EFFORTS))
def test_no_effort_regularizes_the_default(catalog, tiny_model, effort):
    plan = planned(catalog, tiny_model, effort=effort)
    assert plan.default_config().params["regularize"] == "none"
    assert (plan.domain("regularize").choices == ("none",)) == (effort != "best")
    assert plan.domain("train.optimizer") == Categorical(("adamw",))
    assert plan.domain("train.loss") == Categorical(("cross-entropy",))


def test_a_regularizer_is_not_tried_with_a_pipeline_that_trains_too_little(catalog, tiny_model):
    plan = planned(
        catalog, tiny_model, pipelines=["full", "lora", "head-only"], regularize=["none", "layer-decay", "ema+mixout"]
    )
    assert plan.unsuited == [
        ("lora", "ema+mixout", "mixout needs all weights to be trained, as full does"),
        ("head-only", "layer-decay", "layer-decay needs something of the model's layers to be trained, as full does"),
        ("head-only", "ema+mixout", "mixout needs all weights to be trained, as full does"),
    ]
    model = str(tiny_model)
    assert plan.unfit(model, "lora", "ema+mixout") == "mixout needs all weights to be trained, as full does"
    assert plan.unfit(model, "lora", "layer-decay") is None
    assert plan.unfit(model, "full", "ema+mixout") is None
    alone = planned(catalog, tiny_model, pipelines=["head-only"], regularize=["none", "reinit-top"])
    assert any("reinit-top suits none of the pipelines" in warning for warning in alone.warnings)


def test_faults_of_regularize_are_told(catalog, tiny_model):
    assert "Did you mean 'r-drop'" in faults(catalog, tiny_model, regularize=["rdrop"])
    assert "names a regularizer twice" in faults(catalog, tiny_model, regularize=["ema+ema"])
    assert "is set by the key 'regularize'" in faults(catalog, tiny_model, space={"regularize": "ema"})


def test_a_chain_that_the_task_refuses_is_left_out_with_the_reason(catalog, tiny_model):
    plan = planned(catalog, tiny_model, task="question-answering", regularize=["none", "r-drop", "mixup+ema", "fgm"])
    assert plan.domain("regularize").choices == ("none", "fgm")
    left_out = [note.what for note in plan.refusals if note.what in {"r-drop", "mixup+ema"}]
    assert left_out == ["r-drop", "mixup+ema"]
    assert sum("is left out: " in warning for warning in plan.warnings) == 2


def test_optimisers_that_do_not_pay_here_are_taken_out_of_the_domain_with_the_reason(catalog, tiny_model):
    space = {"train.optimizer": ["adamw", "lion", "adamw-8bit"]}
    plan = planned(catalog, tiny_model, space=space)
    assert plan.domain("train.optimizer") == Categorical(("adamw", "lion"))
    (note,) = [note for note in plan.refusals if note.what == "train.optimizer=adamw-8bit"]
    assert "CUDA" in note.reason
    assert "nothing is left" in faults(catalog, tiny_model, space={"train.optimizer": "paged-adamw-8bit"})
    assert not [note for note in planned(catalog, tiny_model).refusals if "optimizer" in note.what]


@pytest.mark.parametrize("effort", list(EFFORTS))
def test_what_was_pretrained_without_dropout_is_trained_without_unless_the_recipe_says_otherwise(
    catalog, tiny_model, tmp_path, effort
):
    def dropout(task="generation", given=None, **config):
        folder = tmp_path / "llama"
        folder.mkdir(exist_ok=True)
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_dropout": 0.0, **config}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(b"")
        space = {} if given is None else {"train.dropout": given}
        return planned(catalog, folder, task=task, effort=effort, space=space).domain("train.dropout")

    assert dropout() == Categorical((0.0,))
    assert dropout(task="translation") == Categorical((0.0,))
    assert dropout(given=0.1) == Categorical((0.1,))
    assert dropout(attention_dropout=0.1).default == 0.1
    assert planned(catalog, tiny_model, task="translation", effort=effort).domain("train.dropout").default == 0.1


def test_a_loss_that_the_task_ignores_is_not_searched(catalog, tiny_model):
    plan = planned(catalog, tiny_model, task="question-answering", space={"train.loss": ["cross-entropy", "focal"]})
    assert "train.loss" not in plan.space
    assert "space.train.loss has no effect: question-answering makes no use of it" in plan.warnings


def compressions(plan: Plan) -> list[str]:
    return ["+".join(step.strategy for step in variant.chain) or "none" for variant in plan.variants]


def test_stronger_compressions_wait_for_a_model_that_fits_by_none_of_the_efforts(catalog, tiny_model):
    limited = {"time": "10m", "model_size": "20MB"}
    found = planned(catalog, tiny_model, effort="quick", budget=limited).fallbacks
    tokens, layers, columns = "vocabulary-pruning", "layer-pruning", "ffn-pruning"
    # Each way to choose tokens makes a variant.
    assert ["+".join(step.strategy for step in variant.chain) for variant in found] == [
        f"{chain}+onnx-int8"
        for chain in (
            *2 * [tokens],
            layers,
            *2 * [f"{layers}+{tokens}"],
            f"{layers}+{columns}",
            *2 * [f"{layers}+{columns}+{tokens}"],
        )
    ]
    unseen = [step.params["unseen"] for variant in found for step in variant.chain if step.strategy == tokens]
    assert unseen == [0.005, 1.0] * 3
    assert [variant.trains for variant in found] == [False, False, *6 * [True]]


def test_models_that_write_have_no_graph_and_keep_their_vocabulary(catalog, tiny_model):
    limited = {"time": "10m", "model_size": "20MB"}
    found = planned(catalog, tiny_model, task="translation", effort="quick", budget=limited).fallbacks
    assert ["+".join(step.strategy for step in variant.chain) for variant in found] == [
        "layer-pruning+dynamic-int8",
        "layer-pruning+ffn-pruning+dynamic-int8",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"budget": {"time": "10m", "train_memory": "4GB"}},
        {"budget": {"time": "10m", "model_size": "20MB"}, "compress": ["onnx-int8"]},
        {"budget": {"time": "10m", "model_size": "20MB"}, "effort": "best"},
    ],
    ids=["nothing is limited", "training alone is limited", "the recipe chose", "the effort makes them"],
)
def test_nothing_is_fallen_back_upon_where(catalog, tiny_model, changes):
    assert planned(catalog, tiny_model, **changes).fallbacks == []


def test_of_compressions_with_a_stroke_the_first_legal_one_is_taken(catalog, tiny_model):
    """Classifiers can be traced to a graph, models that write cannot; and this machine has no bf16."""
    graphs = compressions(planned(catalog, tiny_model, effort="best"))
    assert {"onnx", "onnx-int8"} <= set(graphs)
    assert {"bf16-weights", "dynamic-int8"}.isdisjoint(graphs)
    quick = {
        task: planned(catalog, tiny_model, effort="quick", task=task) for task in ("text-classification", "translation")
    }
    assert {task: compressions(plan) for task, plan in quick.items()} == {
        "text-classification": ["none", "onnx-int8"],
        "translation": ["none", "dynamic-int8"],
    }
    plan = planned(catalog, tiny_model, effort="best", task="summarization")
    assert compressions(plan)[:2] == ["none", "dynamic-int8"]
    assert {"onnx", "onnx-int8", "bf16-weights"} <= {note.what for note in plan.refusals}
    assert "unknown compressor" in faults(catalog, tiny_model, compress=["onnx|bf16-weights"])


def test_an_effort_may_widen_what_a_compression_is_given(catalog, tiny_model):
    plan = planned(catalog, tiny_model, effort="best")
    shared = {variant.name: variant.chain[0].params for variant in plan.variants if len(variant.chain) == 2}
    assert shared["vocabulary-pruning(unseen=0.005)+onnx-int8"]["unseen"] == 0.005
    assert shared["vocabulary-pruning(unseen=1.0)+onnx-int8"]["unseen"] == 1.0
    pinned = planned(catalog, tiny_model, effort="best", space={"vocabulary-pruning.unseen": 0.1})
    assert {step.params["unseen"] for one in pinned.variants for step in one.chain if "unseen" in step.params} == {0.1}


def test_bases_that_save_memory_alone_are_searched_on_a_cpu_where_memory_is_asked_for(catalog, tiny_model):
    def names(**changes):
        return {pipeline.name for pipeline in planned(catalog, tiny_model, effort="best", **changes).pipelines}

    assert "nf4+lora" not in names()
    assert "nf4+lora" in names(budget={"train_memory": "2GB"}) & names(pipelines=["full", "nf4+lora"])
    notes = planned(catalog, tiny_model, effort="best").refusals
    assert [note.what for note in notes if "saves memory alone" in note.reason] == ["nf4+lora"]


def test_changes_of_the_defaults_bring_the_parameters_of_what_they_name(catalog, tiny_model):
    plan = planned(catalog, tiny_model, regularize=["none", "r-drop", "ema"], augment=["none", "random-swap"])
    params = plan.default_params("full", regularize="r-drop", augment="random-swap", **{"random-swap.rate": 0.2})
    assert (params["regularize"], params["augment"], params["random-swap.rate"]) == ("r-drop", "random-swap", 0.2)
    assert "r-drop.weight" in params
    assert "ema.decay" not in params
    assert plan.default_params("full", regularize="unheard-of") == plan.default_params("full")


def test_narrow_models_get_higher_learning_rates(catalog, tiny_model, tmp_path):
    """With Adam the best rate falls as one over the width (Yang et al. 2022, arXiv:2203.03466, table 3)."""
    names = {}
    for width in (768, 384, 256, 128, 32):
        names[width] = str(shutil.copytree(tiny_model, tmp_path / str(width)))
        config = {**json.loads((tiny_model / "config.json").read_text()), "hidden_size": width}
        (tmp_path / str(width) / "config.json").write_text(json.dumps(config))

    def rates(*widths, **changes):
        given = {"model": [names[width] for width in widths], "pipelines": ["full", "lora", "top-layers"], **changes}
        plan = planned(catalog, tiny_model, **given)
        domain = plan.domain("full.learning_rate")
        defaults = [plan.default_params("full", names[width])["full.learning_rate"] for width in widths]
        assert plan.domain("lora.learning_rate") == catalog.adapters["lora"].space["learning_rate"]
        assert plan.default_config().params["full.learning_rate"] == defaults[0]
        assert all(domain.contains(rate) for rate in defaults)
        return (domain.low, domain.high), defaults

    assert rates(768) == rates(384) == ((5e-6, 2e-4), [5e-5])
    assert rates(128) == rates(32) == ((3e-5, 1.2e-3), [3e-4])
    assert rates(256) == ((1.5e-5, 6e-4), [1.5e-4])
    narrow = planned(catalog, tiny_model, model=names[128], pipelines=["top-layers"])
    assert narrow.default_config().params["top-layers.learning_rate"] == 6e-4
    # Of several, each has its own.
    assert rates(768, 256, 128) == ((5e-6, 1.2e-3), [5e-5, 1.5e-4, 3e-4])
    assert rates(128, 768) == ((5e-6, 1.2e-3), [3e-4, 5e-5])
    # The recipe's own stay as they are.
    given = {"space": {"full.learning_rate": {"low": 1e-5, "high": 1e-4, "log": True}}}
    assert rates(128, 768, **given) == ((1e-5, 1e-4), [5e-5, 5e-5])
