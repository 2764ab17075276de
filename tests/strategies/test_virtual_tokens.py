"""Prompt tuning, P-tuning and prefix tuning: what they compute, what is kept beside the base, and where they fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from autoft.artifact import load as load_artifact
from autoft.artifact import save_artifact
from autoft.contracts import Adapter
from autoft.data.prepared import PreparedData
from autoft.data.rows import Split
from autoft.errors import ModelError
from autoft.hardware import Hardware
from autoft.plans.plan import Plan
from autoft.plans.planner import make_plan
from autoft.plans.targets import plan_target
from autoft.plugins import load_plugins
from autoft.recipe import Recipe
from autoft.rundir import RunDir, TrialConfig, TrialResult, VariantResult
from autoft.strategies.virtual_tokens import FOLDER, PrefixTuning, PromptTuning, PTuning
from autoft.testing.probe import Praise
from autoft.testing.strategies import Pipeline, defaults, merges_and_loads
from autoft.testing.workbench import Workbench
from autoft.trial import Workplace

KINDS = [PromptTuning, PTuning, PrefixTuning]
IN_FRONT = [PromptTuning, PTuning]


def params(kind, **changes):
    return {**defaults(kind.space), "tokens": 5, **changes}


def attached(kind, target, load, **changes):
    torch.manual_seed(0)
    return kind().attach(load(target), target, params(kind, **changes))


def batch_of(target):
    task, context = target.task, target.context
    batch = task.collate(task.encode(task.demo_rows(), context), context)
    labels = batch.pop("labels")
    return batch, labels


# ---------------------------------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("kind", IN_FRONT)
def test_logits_are_those_of_the_base_fed_with_prompt_and_text(kind, model_type, make_checkpoint, make_target, load):
    target = make_target(make_checkpoint(model_type))
    model = attached(kind, target, load).eval()
    batch, _ = batch_of(target)
    base = load(target).eval()
    prompt = model.get_prompt_embedding_to_save("default")
    with torch.no_grad():
        words = base.get_input_embeddings()(batch["input_ids"])
        fed = torch.cat([prompt.expand(len(words), -1, -1), words], dim=1)
        mask = torch.cat([torch.ones(len(words), 5, dtype=torch.long), batch["attention_mask"]], dim=1)
        expected = base(inputs_embeds=fed, attention_mask=mask).logits
        torch.testing.assert_close(model(**batch).logits, expected, rtol=1e-4, atol=1e-5)
        assert (expected - base(**batch).logits).abs().max() > 1e-3


def test_a_prefix_is_keys_and_values_that_every_layer_attends_to(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    model = attached(PrefixTuning, target, load).eval()
    base = model.get_base_model()
    attention = base.bert.encoder.layer[0].attention.self
    batch, _ = batch_of(target)
    seen = {}
    handle = attention.register_forward_hook(
        lambda module, args, kwargs, output: seen.update(given=args[0], said=output[0]), with_kwargs=True
    )
    with torch.no_grad():
        model(**batch)
    handle.remove()
    heads, size = base.config.num_attention_heads, attention.attention_head_size
    # tokens, (key and value of layer 0, of layer 1 ...), heads, width
    stored = model.prompt_encoder["default"].embedding.weight.detach().view(5, -1, heads, size)
    with torch.no_grad():
        for row, (given, mask) in enumerate(zip(seen["given"], batch["attention_mask"].bool(), strict=True)):
            q, k, v = (
                layer(given).view(-1, heads, size) for layer in (attention.query, attention.key, attention.value)
            )
            k, v = torch.cat([stored[:, 0], k[mask]]), torch.cat([stored[:, 1], v[mask]])
            weights = torch.einsum("qhd,khd->hqk", q, k).div(size**0.5).softmax(-1)
            expected = torch.einsum("hqk,khd->qhd", weights, v).reshape(len(given), -1)
            torch.testing.assert_close(seen["said"][row][mask], expected[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_trains_the_virtual_tokens_and_the_head_only(kind, make_checkpoint, make_target, load, train):
    target = make_target(make_checkpoint("roberta"))
    model = attached(kind, target, load)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    losses = train(model, target, steps=25, lr=1e-2)
    assert losses[-1] < losses[0]
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert any("prompt_encoder" in name for name in changed)
    assert all("prompt_encoder" in name or "classifier.modules_to_save" in name for name in changed)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_takes_no_more_than_the_rate_of_a_new_head(kind, make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    model = attached(kind, target, load)
    (group,) = kind().parameter_groups(model, 3e-2, params(kind))
    assert group["lr"] == 3e-3
    expected = {id(value) for name, value in model.named_parameters() if ".classifier.modules_to_save." in name}
    assert {id(value) for value in group["params"]} == expected
    assert kind().parameter_groups(model, 1e-3, params(kind))[0]["lr"] == 1e-3


def test_a_network_before_the_prefix_has_a_tenth_of_the_rate(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    model = attached(PrefixTuning, target, load, projection=True)
    _, group = PrefixTuning().parameter_groups(model, 1e-2, params(PrefixTuning, projection=True))
    assert group["lr"] == pytest.approx(1e-3)
    assert {id(p) for p in group["params"]} == {id(p) for n, p in model.named_parameters() if "prompt_encoder" in n}


def test_prompts_start_as_words_of_the_vocabulary(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    words = load(target).get_input_embeddings().weight
    prompt = attached(PromptTuning, target, load).get_prompt_embedding_to_save("default")
    assert all((words == row).all(-1).any() for row in prompt)
    other = attached(PromptTuning, target, load, start="random").get_prompt_embedding_to_save("default")
    assert not any((words == row).all(-1).any() for row in other)


# ------------------------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("onto_base", [False, True])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [*((kind, {}) for kind in KINDS), (PTuning, {"encoder": "lstm"}), (PrefixTuning, {"projection": True})],
)
def test_what_is_kept_says_what_was_trained(
    kind, changes, onto_base, make_checkpoint, make_target, load, train, logits, tmp_path
):
    target = make_target(make_checkpoint("roberta"))
    model = attached(kind, target, load, **changes)
    train(model, target, steps=3)
    expected = logits(model, target)
    kept = kind().merge(model, (lambda: load(target, seed=99)) if onto_base else None, target)
    torch.testing.assert_close(logits(kept, target), expected, rtol=1e-4, atol=1e-5)
    # Nothing of the network that made the virtual tokens is left.
    assert [name for name, _ in kept.named_parameters() if "prompt_encoder" in name] == [
        "prompt_encoder.default.embedding.weight"
    ]
    kind().save(kept, tmp_path)
    loaded = kind().load(tmp_path, target)
    torch.testing.assert_close(logits(loaded, target), expected, rtol=1e-4, atol=1e-5)
    # And saving changes nothing.
    torch.testing.assert_close(logits(kept, target), expected, rtol=1e-4, atol=1e-5)
    written = tmp_path / FOLDER / "adapter_config.json"
    told = json.loads(written.read_text())
    written.write_text(json.dumps({**told, "peft_type": "XLORA", "adapters": {"a": "somebody/adapter"}}))
    with pytest.raises(ModelError, match=f"is no adapter of {kind.name} in adapter_model.safetensors"):
        kind().load(tmp_path, target)
    written.write_text(json.dumps(told))
    (tmp_path / FOLDER / "adapter_model.safetensors").rename(tmp_path / FOLDER / "adapter_model.bin")
    with pytest.raises(ModelError, match=f"is no adapter of {kind.name} in adapter_model.safetensors"):
        kind().load(tmp_path, target)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_and_peft_alone_load_the_files(kind, make_checkpoint, make_target, load, train, logits, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    target = make_target(make_checkpoint("bert"))
    model = attached(kind, target, load)
    train(model, target, steps=3)
    kept = kind().merge(model, None, target)
    kind().save(kept, tmp_path)
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} <= {".json", ".safetensors", ".md"}
    assert str(make_checkpoint("bert")) not in (tmp_path / FOLDER / "adapter_config.json").read_text()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(plain, tmp_path / FOLDER)
    torch.testing.assert_close(logits(plain, target), logits(kept, target), rtol=1e-4, atol=1e-5)


def test_the_artifact_says_who_wrote_it_and_how_many_positions_are_taken():
    bench = Workbench(Praise(), load_plugins(), kind="encoder")
    target = replace(bench.target, context=replace(bench.context, reserved=5))
    torch.manual_seed(0)
    model = PromptTuning().merge(PromptTuning().attach(bench.load_model(), target, params(PromptTuning)), None, target)
    folder = bench.new_folder()
    save_artifact(folder, model, target, writer=PromptTuning(), variant="none", objective="praise_hits")
    loaded = load_artifact(folder, catalog=bench.catalog, device="cpu")
    assert (loaded.manifest.format, loaded.context.reserved) == ("prompt-tuning", 5)
    said, expected = loaded.predict(bench.inputs), bench.judge(model)
    assert [one["label"] for one in said] == [one["label"] for one in expected]
    assert [one["score"] for one in said] == pytest.approx([one["score"] for one in expected])
    # As the teacher that a run takes from there.
    plan = Plan.model_construct(trust_remote_code=False)
    place = Workplace(
        RunDir(folder.parent), plan, bench.catalog, bench.task, PreparedData(*[Split.from_rows([])] * 3, "", {}, {})
    )
    config = TrialConfig(number=0, kind="search", model="tiny", pipeline="prompt-tuning", params={}, seed=0)
    variant = VariantResult(name="none", state="complete", folder=folder.name)
    trial = TrialResult(number=0, state="complete", config=config, variants=[variant])
    said = bench.judge(place.trained(trial, bench.context))
    assert [one["score"] for one in said] == pytest.approx([one["score"] for one in expected])


def test_a_quantized_base_is_not_kept(make_checkpoint, make_target, load):
    from autoft.strategies.bitsandbytes import Nf4Base

    pytest.importorskip("bitsandbytes")
    target = make_target(make_checkpoint("bert"))
    base = Nf4Base().prepare(load(target, **Nf4Base().load_kwargs(target, {})), target)
    model = PromptTuning().attach(base, target, params(PromptTuning))
    with pytest.raises(ModelError, match="kept over a dense base"):
        PromptTuning().merge(model, None, target)


# ------------------------------------------------------------------------------------------------- other tasks


@pytest.mark.parametrize(
    ("task", "body"),
    [
        ("text-classification", "encoder"),
        ("token-classification", "encoder"),
        ("token-classification", "decoder"),
        ("question-answering", "encoder"),
        ("summarization", "seq2seq"),
        ("generation", "decoder-conv1d"),
    ],
)
@pytest.mark.parametrize("kind", [PromptTuning, PrefixTuning])
def test_a_row_says_alone_what_it_says_among_others(kind, task, body):
    catalog = load_plugins()
    if task not in catalog.tasks:
        pytest.skip(f"needs the plugin of {task}")
    merges_and_loads(Workbench(catalog.tasks[task], catalog, kind=body), Pipeline(kind()))


def test_labels_of_tokens_go_with_the_text(make_checkpoint, make_target, tmp_path):
    from transformers import AutoModelForTokenClassification

    target = make_target(make_checkpoint("bert"), architecture="token-classification")
    torch.manual_seed(0)
    base = AutoModelForTokenClassification.from_pretrained(target.source.path, num_labels=3)
    model = PromptTuning().attach(base, target, params(PromptTuning)).eval()
    batch, _ = batch_of(target)
    labels = torch.randint(0, 3, batch["input_ids"].shape)
    labels[batch["attention_mask"] == 0] = -100
    said = model(**batch, labels=labels)
    assert said.logits.shape == (*labels.shape, 3)
    expected = torch.nn.functional.cross_entropy(said.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(said.loss, expected)


def test_what_a_decoder_writes_is_the_likeliest_token_after_the_other():
    catalog = load_plugins()
    if "generation" not in catalog.tasks:
        pytest.skip("needs the plugin of generation")
    bench = Workbench(catalog.tasks["generation"], catalog, kind="decoder-conv1d")
    for kind in KINDS:
        torch.manual_seed(0)
        model = kind().attach(bench.load_model(), bench.target, params(kind)).eval()
        rows = [[7, 8, 9], [5, 6, 7, 8, 9, 10]]
        batch = {
            "input_ids": torch.tensor([[0, 0, 0, *rows[0]], rows[1]]),
            "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6]),
        }
        with torch.no_grad():
            written = model.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
            for row, found in zip(rows, written, strict=True):
                for _ in range(4):
                    ids = torch.tensor([row])
                    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
                    assert logits.shape[1] == len(row)
                    row = [*row, int(logits[0, -1].argmax())]
                assert found[6:].tolist() == row[-4:]
        assert written[:, :6].equal(batch["input_ids"])


# ---------------------------------------------------------------------------------------------------- exports


@pytest.fixture(scope="module", params=["prompt-tuning", "prefix-tuning"])
def exported(request):
    """A bench, the adapter, its model trained by heart, and the graph of that, which was compared at other shapes."""
    pytest.importorskip("onnxscript")
    bench = Workbench(Praise(), load_plugins(), kind="encoder")
    adapter = bench.catalog.adapters[request.param]
    torch.manual_seed(0)
    model = adapter.attach(bench.load_model(), bench.target, params(adapter))
    bench.train(model, 100, 1e-2)
    return bench, adapter.merge(model, None, bench.target)


@pytest.mark.parametrize("name", ["onnx", "onnx-int8", "onnx-static-int8", "onnx-int4", "onnx-mixed"])
def test_an_encoder_with_its_virtual_tokens_is_one_graph(name, exported):
    bench, model = exported
    compressor = bench.catalog.compressors[name]
    assert "adapted" in compressor.accepts
    graph = compressor.apply(model, bench.target, bench.rows, defaults(compressor.space))
    loaded = bench.write_and_read(graph, compressor, name)
    assert loaded.manifest.format == name
    said, expected = loaded.predict(bench.inputs), bench.judge(model)
    same = sum(one["label"] == other["label"] for one, other in zip(said, expected, strict=True))
    if name in {"onnx-int4", "onnx-mixed"}:
        # 4 bits are coarse in so narrow a body.
        assert same >= 6
        return
    assert same == 8
    slack = 1e-3 if name == "onnx" else 0.2
    assert [one["score"] for one in said] == pytest.approx([one["score"] for one in expected], abs=slack)


# ------------------------------------------------------------------------------------------------ what is refused


def test_refusals_say_what_would_change_them(make_checkpoint, make_target):
    gpt2 = make_target(make_checkpoint("gpt2"))
    gpt2 = replace(gpt2, config={**gpt2.config, "architectures": ["GPT2LMHeadModel"]})
    for kind in IN_FRONT:
        assert "does not find behind virtual tokens; use prefix-tuning or lora" in kind().check(gpt2).reason
    assert PrefixTuning().check(gpt2) is None
    bert = make_target(make_checkpoint("bert"))
    assert all(kind().check(bert) is None for kind in KINDS)
    asked = replace(bert, context=replace(bert.context, params={"train.gradient_checkpointing": True}))
    assert "pin train.gradient_checkpointing to false" in PrefixTuning().check(asked).reason
    assert PromptTuning().check(asked) is None
    asked = replace(bert, context=replace(bert.context, max_length=3))
    assert "lower p-tuning.tokens" in PTuning().check(asked).reason
    pictures = make_target(make_checkpoint("bert"), architecture="image-classification")
    assert "no virtual tokens in front of a image-classification model" in PromptTuning().check(pictures).reason
    writing = make_target(make_checkpoint("bert"), architecture="conditional-generation")
    assert "an encoder that gets a new decoder" in PromptTuning().check(writing).reason


@pytest.mark.parametrize("kind", IN_FRONT)
def test_a_decoder_that_takes_padding_for_text_is_found_out(kind, make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("llama"))
    with pytest.raises(ModelError, match="takes padding behind virtual tokens for text"):
        kind().attach(load(target), target, params(kind))


def test_a_model_that_cannot_read_a_prefix_is_found_out(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("distilbert"))
    with pytest.raises(ModelError, match=r"prefix-tuning: .*; use lora"):
        PrefixTuning().attach(load(target), target, params(PrefixTuning))


# -------------------------------------------------------------------------------------------------- the plan


def plan_for(tiny_model, **changes):
    recipe = Recipe.model_validate(
        {
            "task": "text-classification",
            "model": str(tiny_model),
            "data": {"train": "train.csv"},
            "budget": {"time": "10m"},
            **changes,
        }
    )
    return make_plan(recipe, load_plugins(), Hardware.probe_cpu())


def test_only_compressions_that_take_it_follow(tiny_model):
    plan = plan_for(tiny_model, pipelines=["full", "prompt-tuning"], compress=["none", "dynamic-int8"])
    full = plan.default_config()
    assert [variant.name for variant in plan.variants_of(full)] == ["none", "dynamic-int8"]
    virtual = full.model_copy(update={"pipeline": "prompt-tuning"})
    assert [variant.name for variant in plan.variants_of(virtual)] == ["none"]
    assert [note.reason for note in plan.refusals if note.what == "prompt-tuning"] == [
        "prompt-tuning keeps what it learned beside the base, and such a model is not taken by dynamic-int8"
    ]


def test_without_any_compression_that_takes_it_it_is_refused(tiny_model):
    from autoft.errors import RecipeError

    plan = plan_for(tiny_model, pipelines=["full", "prompt-tuning"], compress=["dynamic-int8"])
    assert [pipeline.name for pipeline in plan.pipelines] == ["full"]
    (warning,) = [text for text in plan.warnings if "prompt-tuning" in text]
    assert warning.endswith("add none to compress")
    with pytest.raises(RecipeError, match="none is left: prompt-tuning keeps what it learned beside the base"):
        plan_for(tiny_model, pipelines=["prompt-tuning"], compress=["dynamic-int8"])


def test_inputs_leave_the_positions_of_virtual_tokens_free(tiny_model):
    plan = plan_for(tiny_model)
    (model,) = plan.models
    task = load_plugins().tasks["text-classification"]
    given = plan_target(plan, task, model, params={"train.max_length": 512}, reserved=20)
    assert given.context.max_length == model.config["max_position_embeddings"] - 20
    assert given.context.reserved == 20
    assert PromptTuning().positions({"tokens": 20}) == 20
    assert Adapter.positions(PromptTuning(), {}) == 0


# ------------------------------------------------------------------------------------------------ a whole search


@pytest.mark.slow
def test_a_search_of_nothing_else_ends_with_a_model_that_predicts(tiny_model, reviews, tmp_path):
    import json
    import subprocess
    import sys

    import yaml

    recipe = {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": {"train": str(reviews), "validation_size": 80, "test_size": 80},
        "budget": {"time": "10m", "trials": 1},
        "effort": "quick",
        "pipelines": ["prompt-tuning"],
        "compress": ["none", "dynamic-int8"],
        "space": {"prompt-tuning.tokens": 4, "train.epochs": 1, "train.batch_size": 8},
        "search": {"finalist_seeds": 0},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))

    def autoft(*words):
        return subprocess.run(
            [sys.executable, "-m", "autoft", *map(str, words)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )

    done = autoft("search", "tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs/tiny"
    manifest = json.loads((run / "best/autoft.json").read_text())
    assert (manifest["format"], manifest["reserved"], manifest["variant"]) == ("prompt-tuning", 4, "none")
    assert (run / "best" / FOLDER / "adapter_model.safetensors").is_file()
    report = json.loads((run / "report.json").read_text())
    assert (report["best"]["pipeline"], report["best"]["test"]["accuracy"]["n"]) == ("prompt-tuning", 80)
    asked = autoft("predict", "runs/tiny", "good", "bad")
    assert asked.returncode == 0, asked.stdout + asked.stderr
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    assert len(answers) == 2
    expected = load_artifact(run).predict(["good", "bad"])
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
    assert [answer["score"] for answer in answers] == pytest.approx([answer["score"] for answer in expected])


def test_tasks_that_write_leave_them_free_too():
    catalog = load_plugins()
    if "generation" not in catalog.tasks:
        pytest.skip("needs the plugin of generation")
    bench = Workbench(catalog.tasks["generation"], catalog, kind="decoder-conv1d")
    positions = bench.config["n_positions"]
    context = replace(bench.context, max_length=positions, reserved=5)
    context = replace(context, processor=bench.task.load_processor(bench.source, context))
    row = {**bench.rows[0], **{role: "word " * 500 for role in bench.rows[0] if isinstance(bench.rows[0][role], str)}}
    (feature,) = bench.task.encode([row], context)
    assert len(feature["input_ids"]) <= positions - 5
    torch.manual_seed(0)
    model = PromptTuning().attach(bench.load_model(), replace(bench.target, context=context), params(PromptTuning))
    with torch.no_grad():
        loss = bench.task.loss(model.eval(), bench.task.collate([feature], context), context)
    assert torch.isfinite(loss)
    assert bench.task.predict(model, [row], context)
