"""Models that teach in place of the trained one: those of other trials, and such that a recipe names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from autoft.artifact import save_artifact
from autoft.distillation import ROW, _Asked, _Lesson, _watched, alike, distillation_loss, named_teacher
from autoft.errors import ModelError
from autoft.pretrained import dense_folder, trained_model
from autoft.rundir import RunDir, TrialResult, read_run
from autoft.strategies.distillation import Distillation
from autoft.testing import tiny_model as write_tiny_model
from autoft.testing.workbench import Workbench
from autoft.trial import Callbacks, Trial, Workplace, _Recovery, compress_further


@pytest.fixture(scope="module")
def other_words(small_model, tmp_path_factory) -> Path:
    """The smaller encoder with another number for each word."""
    folder = tmp_path_factory.mktemp("models") / "other-words"
    shutil.copytree(small_model, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    plain = [word for word in vocabulary if not word.startswith("[")]
    numbers = sorted((vocabulary[word] for word in plain), reverse=True)
    vocabulary.update(zip(plain, numbers, strict=True))
    path.write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, other_words, reviews) -> Path:
    """Two trials, of models with different tokenizers, and a student that learns from both."""
    folder = tmp_path_factory.mktemp("taught")
    recipe = {
        "task": "text-classification",
        "model": [str(tiny_model), str(other_words)],
        "data": {"train": str(reviews), "validation_size": 80, "test_size": 80},
        "budget": {"time": "10m", "trials": 2},
        "effort": "quick",
        "compress": ["dynamic-int8", "distillation"],
        "space": {
            "full.learning_rate": 4e-3,
            "train.epochs": 4,
            "train.batch_size": 8,
            "distillation": {"student": str(other_words), "teachers": 2, "epochs": 6, "learning_rate": 4e-3},
        },
        "search": {"finalist_seeds": 0, "early_stopping": "none", "quantization_aware": "never"},
    }
    (folder / "taught.yaml").write_text(yaml.safe_dump(recipe))
    words = [sys.executable, "-m", "autoft", "search", "taught.yaml"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs/taught"


def test_a_student_learns_from_the_best_trials_together(run):
    trials = read_run(run).trials
    (further,) = [trial for trial in trials if trial.config.kind == "compress"]
    assert sorted(further.config.members) == [0, 1]
    (variant,) = further.variants
    assert variant.state == "complete", variant.reason
    assert variant.validation["accuracy"] > 0.8
    assert all(any(v.name == "none" and v.folder for v in trial.variants) for trial in trials[:2])


def test_what_is_taught_is_the_mean_of_what_each_says_of_its_own_tokens(run):
    place = Workplace.open(RunDir(run))
    (further,) = [trial for trial in read_run(run).trials if trial.config.kind == "compress"]
    config = further.config.model_copy(update={"number": 93})
    first, second = config.members
    results = {result.number: result for result in place.run.results()}
    target = place.target(config.model, config.params, config.seed)
    dense = place.trained(results[first], target.context)
    trial = Trial(place, config, Callbacks(), None, TrialResult(number=93, state="failed", config=config))
    recover = _Recovery(trial, dense, target, "distillation")
    student = place.task.load_model(target.source, target.context)
    teachers = recover.best(8)
    assert [teacher.name for teacher in teachers] == ["", f"trial {second}"]
    recover(student, target, epochs=1, learning_rate=1e-3, teaching=0.9, teachers=teachers)
    taught = trial.remembered["", f"trial {second}"]
    rows = place.data.train
    assert set(taught) == set(range(len(rows)))
    said = []
    for number in (first, second):
        own = place.target(results[number].config.model, results[number].config.params, 0)
        model = place.trained(results[number], own.context)
        batch = place.task.collate(
            place.task.encode([{"text": row["text"]} for row in rows[:]], own.context), own.context
        )
        with torch.no_grad():
            said.append(model(**batch).logits.numpy())
    assert not np.allclose(said[0], said[1], atol=0.1)
    found = np.stack([taught[row].numpy() for row in range(len(rows))])
    # bf16, where the trials are trained in it, has eight bits.
    assert np.abs(found - np.mean(said, axis=0)).max() < 0.03 * np.abs(said).max()
    # The trained model alone is another teacher, whose words are kept apart.
    recover(student, target, epochs=1, learning_rate=1e-3, teaching=0.9)
    assert (
        np.abs(np.stack([trial.remembered[()][row].numpy() for row in range(8)]) - said[0][:8]).max()
        < 0.03 * np.abs(said).max()
    )


@pytest.mark.slow
def test_a_model_that_a_recipe_names_teaches_in_place_of_the_trained_one(run, tmp_path):
    place = Workplace.open(RunDir(run))
    (further,) = [trial for trial in read_run(run).trials if trial.config.kind == "compress"]
    shipped = place.run.path / "trials/0000/variants/none"
    (variant,) = [one for one in place.plan.variants if one.trains]
    step = variant.chain[0]

    def made(teacher: str):
        params = {**step.params, "teachers": 1, "teacher": teacher, "epochs": 6, "teaching": 1.0}
        changed = variant.model_copy(update={"chain": [step.model_copy(update={"params": params})]})
        place.plan.variants = [changed]
        result = compress_further(place, further.config.model_copy(update={"number": 94}), Callbacks())
        return result.variants[0]

    learned = made(str(shipped))
    assert learned.state == "complete", learned.reason
    assert learned.validation["accuracy"] > 0.8
    # At teaching 1 nothing else is learned from: of one that says the opposite nothing right, and the best validation is the
    # least wrong one.
    wrong = tmp_path / "wrong"
    shutil.copytree(shipped, wrong)
    from safetensors.torch import load_file, save_file

    weights = load_file(wrong / "model.safetensors")
    weights["classifier.weight"], weights["classifier.bias"] = (
        -weights["classifier.weight"],
        -weights["classifier.bias"],
    )
    save_file(weights, wrong / "model.safetensors", metadata={"format": "pt"})
    assert made(str(wrong)).validation["accuracy"] < 0.6


@pytest.fixture(scope="module")
def bench(catalog):
    return Workbench(catalog.task("text-classification"), catalog, kind="encoder")


def fine_tuned(bench, folder: Path, **config: object) -> Path:
    bench.trained.model.save_pretrained(folder)
    bench.context.processor.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def test_a_fine_tuned_model_of_transformers_is_read_as_it_is(bench, tmp_path):
    teacher = named_teacher(str(fine_tuned(bench, tmp_path / "model")), bench.target)
    batch = bench.task.collate(bench.task.encode(bench.rows, teacher.context), teacher.context)
    batch.pop("labels")
    with torch.no_grad():
        found, wanted = teacher.model(**batch).logits, bench.trained.model.eval()(**batch).logits
    assert torch.equal(found, wanted)


def test_a_teacher_whose_tokenizer_was_changed_is_known_as_another(bench, tmp_path):
    folder = fine_tuned(bench, tmp_path / "model")
    before = [named_teacher(str(folder), bench.target).name for _ in range(2)]
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": {"type": "Lowercase"}}))
    # Encoded rows, and what was said of them, are kept by this name.
    assert before[0] == before[1] != named_teacher(str(folder), bench.target).name


def test_what_does_not_fit_the_task_is_refused_with_the_reason(bench, tmp_path):
    known = list(bench.context.facts["labels"])
    turned = fine_tuned(bench, tmp_path / "turned", id2label={str(i): name for i, name in enumerate(reversed(known))})
    with pytest.raises(ModelError, match=r"knows the labels .* and the data have .* in the same order"):
        named_teacher(str(turned), bench.target)
    plain = write_tiny_model("encoder", tmp_path / "plain", ["words"])
    path = plain / "config.json"
    labels = {str(i): name for i, name in enumerate(known)}
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": labels}))
    with pytest.raises(ModelError, match=r"is not fine-tuned: its files hold no classifier\."):
        named_teacher(str(plain), bench.target)
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        named_teacher(str(tmp_path / "nowhere"), bench.target)
    elsewhere = tmp_path / "elsewhere"
    save_artifact(elsewhere, bench.trained.model, bench.target, writer=None, variant="none", objective="accuracy")
    assert named_teacher(str(elsewhere), bench.target).context.facts == bench.context.facts
    manifest = json.loads((elsewhere / "autoft.json").read_text())
    (elsewhere / "autoft.json").write_text(json.dumps({**manifest, "task": "token-classification"}))
    with pytest.raises(ModelError, match="was trained for token-classification; name one for text-classification"):
        named_teacher(str(elsewhere), bench.target)


def test_the_plan_refuses_what_it_can_see_before_anything_is_trained(bench, tmp_path):
    student = write_tiny_model("encoder", tmp_path / "student", ["words"])

    def refusal(**params: object) -> str:
        given = {f"distillation.{name}": value for name, value in {"student": str(student), **params}.items()}
        found = Distillation().check(replace(bench.planning, context=replace(bench.planning.context, params=given)))
        return found.reason if found else ""

    assert "holds no config.json" in refusal(teacher=str(tmp_path / "nowhere"))
    there = tmp_path / "there"
    save_artifact(there, bench.trained.model, bench.target, writer=None, variant="none", objective="accuracy")
    assert refusal(teacher=str(there)) == ""
    assert "give one of both" in refusal(teacher=str(there), teachers=2)
    manifest = json.loads((there / "autoft.json").read_text())
    (there / "autoft.json").write_text(json.dumps({**manifest, "task": "translation"}))
    assert f"the teacher {there} was trained for translation" in refusal(teacher=str(there))
    (there / "autoft.json").write_text(json.dumps({**manifest, "format": "onnx"}))
    assert "is a compressed model" in refusal(teacher=str(there))


@pytest.mark.slow
def test_of_a_run_that_shipped_a_compressed_model_the_uncompressed_one_teaches(run, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)
    best = json.loads((copied / "best" / "autoft.json").read_text())
    (copied / "best" / "autoft.json").write_text(json.dumps({**best, "format": "dynamic-int8"}))
    # The chosen one is made of trial 1, whose model began as it was trained.
    (copied / "selection.json").write_text(
        json.dumps({"trial": 7, "variant": "bf16-weights", "objective": "accuracy", "reason": ""})
    )
    (copied / "trials/0007").mkdir()
    config = {
        "number": 7,
        "kind": "compress",
        "model": "m",
        "pipeline": "full",
        "params": {},
        "seed": 0,
        "members": [1, 0],
    }
    (copied / "trials/0007/config.json").write_text(json.dumps(config))
    expected = copied / "trials/0001/variants/none"
    assert dense_folder(copied) == expected
    for name in (str(copied), str(copied / "best")):
        assert trained_model(name).path == str(expected)
    for trial in ("0000", "0001"):
        shutil.rmtree(copied / "trials" / trial / "variants")
    with pytest.raises(ModelError, match="kept no uncompressed model"):
        trained_model(str(copied))


class Encoded(list):
    """Features with their lengths, as the run's cache gives them."""

    @property
    def lengths(self):
        return [len(feature["input_ids"]) for feature in self]


def test_models_read_alike_where_all_but_the_labels_is_the_same():
    def features(ids, **more):
        return Encoded([{"input_ids": row, "labels": 0, **more} for row in ids])

    one = features([[1, 2], [3]], pixel_values=np.ones(3))
    assert alike(one, features([[1, 2], [3]], pixel_values=np.ones(3), labels=1))
    assert not alike(one, features([[1, 2], [4]], pixel_values=np.ones(3)))
    assert not alike(one, features([[1, 2], [3]], pixel_values=np.zeros(3)))
    assert not alike(one, features([[1, 2], [3]]))
    # Beyond the rows that are looked at, lengths still tell.
    many = [[1]] * 100
    assert not alike(features(many), features([*many[:99], [1, 2]]))


def test_a_decoder_is_taught_where_it_writes_though_it_writes_as_much_as_is_read(catalog):
    bench = Workbench(catalog.task("translation"), catalog)
    student, teacher = bench.load_model().eval(), bench.load_model().eval()
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    features = bench.task.encode(bench.rows, bench.context)
    batch = bench.task.collate(features, bench.context)
    length = max(batch[name].shape[1] for name in ("attention_mask", "labels"))
    for name, filler in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
        batch[name] = torch.nn.functional.pad(batch[name], (0, length - batch[name].shape[1]), value=filler)
    batch["labels"][0, 3:] = -100
    lesson = _Lesson(bench.task, 1.0, {}, True)
    with _watched(student, []) as lesson.said, _watched(teacher, []) as taught, torch.no_grad():
        lesson.teachers.append(_Asked(teacher, taught, None))
        found = lesson.loss(student, {**batch, ROW: torch.arange(len(features))}, bench.context)
        said = lesson.said.logits["logits"], taught.logits["logits"]
    assert float(found) == pytest.approx(float(distillation_loss(*said, batch["labels"] != -100)))


def test_a_model_that_goes_on_from_prompts_is_not_taught_what_stands_behind_the_shorter_texts(catalog):
    bench = Workbench(catalog.task("generation"), catalog)
    student, teacher = bench.load_model().eval(), bench.load_model().eval()
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    rows = [
        {"prompt": "A dog says", "completion": " woof."},
        {"prompt": "A dog says", "completion": " woof. A cat says meow."},
    ]
    batch = bench.task.collate(bench.task.encode(rows, bench.context), bench.context)
    lesson = _Lesson(bench.task, 1.0, {}, True)
    with _watched(student, []) as lesson.said, _watched(teacher, []) as taught, torch.no_grad():
        lesson.teachers.append(_Asked(teacher, taught, None))
        found = lesson.loss(student, {**batch, ROW: torch.arange(2)}, bench.context)
        said = lesson.said.logits["logits"], taught.logits["logits"]
    mask = batch["attention_mask"][:, -said[0].shape[1] :]
    assert said[0].shape[1] < batch["input_ids"].shape[1]
    assert not mask.all()
    assert float(found) == pytest.approx(float(distillation_loss(*said, mask)))


def test_words_of_tokens_that_the_student_does_not_read_are_no_lesson(catalog):
    """Without a teacher that has to be there, the task's own loss is what is left."""
    bench = Workbench(catalog.task("token-classification"), catalog, kind="encoder")
    student, teacher = bench.load_model(), bench.trained.model.eval()
    features = bench.task.encode(bench.rows, bench.context)
    batch = {**bench.task.collate(features, bench.context), ROW: torch.arange(len(features))}
    plain = bench.loss(student.eval())

    def loss(required, other):
        lesson = _Lesson(bench.task, 1.0, {}, required)
        with _watched(student, []) as lesson.said, _watched(teacher, []) as taught:
            lesson.teachers.append(_Asked(teacher, taught, other))
            return float(lesson.loss(student, batch, bench.context).detach())

    assert loss(False, (Encoded(features), bench.context)) == pytest.approx(plain)
    with pytest.raises(ModelError, match="reads other tokens than the student"):
        loss(True, (Encoded(features), bench.context))
    assert loss(True, None) != pytest.approx(plain)
