"""``autoft export``: every format of a real run loads where autoft is not, and answers as the model does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import autoft
from autoft.cli import app
from autoft.data.prepared import open_data
from autoft.errors import ExportMismatch, ModelError, RunFolderError
from autoft.formats import FORMATS
from autoft.formats.weights import Safetensors
from autoft.rundir import RunDir

# Minutes of whole searches and exports; the gate has others of both.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, reviews) -> Path:
    """A run of two trials: all weights trained, which learns; and LoRA over random weights, which learns next to nothing."""
    folder = tmp_path_factory.mktemp("run")
    recipe = {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": {"train": str(reviews), "validation_size": 60, "test_size": 40},
        "budget": {"time": "60m", "trials": 2},
        "effort": "quick",
        "pipelines": ["full", "lora"],
        "compress": ["none", "dynamic-int8"],
        "space": {"full.learning_rate": 4e-3, "train.epochs": 8, "train.batch_size": 8},
        "search": {"finalist_seeds": 0, "portfolio": False, "early_stopping": "none"},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    run = autoft.search(path, run=folder / "tiny")
    by_adapter = {trial.config.pipeline: trial for trial in run.record.trials}
    assert {name: trial.number for name, trial in by_adapter.items()} == {"full": 0, "lora": 1}
    assert run.path.joinpath("trials/0001/adapter/adapter_model.safetensors").is_file() == any(
        variant.folder for variant in by_adapter["lora"].variants
    )
    return run.path


@pytest.fixture(scope="module")
def exported(run):
    """A function that exports the run once in each format."""
    made = {}

    def make(format: str) -> autoft.Exported:
        if format not in made:
            if format == "openvino":
                pytest.importorskip("openvino")
            made[format] = autoft.export(run, format, trial=0)
        return made[format]

    return make


@pytest.fixture(scope="module")
def texts(run) -> list[str]:
    return [row["text"] for row in open_data(run / "data").test[:30]]


@pytest.fixture(scope="module")
def own(run, texts) -> list[str]:
    found = [answer["label"] for answer in autoft.load(run / "trials/0000/variants/none").predict(texts)]
    assert set(found) == {"negative", "positive"}
    return found


@pytest.mark.parametrize("format", ["safetensors", "onnx", "onnx-fp16", "onnx-int8", "openvino"])
def test_the_code_of_the_card_answers_as_the_model_does_where_autoft_is_not(format, exported, texts, own, without):
    done = exported(format)
    said = without.answers(done.path, texts)
    same = sum(one == other for one, other in zip(said, own, strict=True))
    # Weights in 8 bits may turn an answer that hangs in the balance; the others may not.
    assert same >= 27 if format == "onnx-int8" else said == own
    assert done.agreement.rows == 60
    assert done.agreement.agreement >= 0.9
    assert done.size_bytes == sum(path.stat().st_size for path in done.path.rglob("*") if path.is_file())
    assert {"README.md", "preprocessing.json", "labels.json", "checked.json"} <= set(done.files)
    assert json.loads((done.path / "labels.json").read_text())["labels"] == ["negative", "positive"]
    settings = json.loads((done.path / "preprocessing.json").read_text())
    assert settings["max_length"] == 64
    assert settings["lowercase"] is False
    assert not [path for path in done.path.parent.iterdir() if path.name.startswith(".")], "something was left behind"


@pytest.fixture(scope="module")
def with_adapter(run, tmp_path_factory) -> Path:
    """The run as it is where the trial with the adapter is on the front, whether this one's is or not."""
    from autoft.trial import Callbacks, Workplace, run_trial

    copy = Path(shutil.copytree(run, tmp_path_factory.mktemp("adapter") / "tiny"))
    place = Workplace.open(RunDir(copy))
    config = place.run.read_result(1).config
    result = run_trial(place, config, Callbacks())
    assert result.state == "complete", result.reason
    place.run.write_result(result)
    return copy


def test_an_adapter_is_put_onto_its_base_where_autoft_is_not(with_adapter, texts, without, tiny_model, places_told):
    done = autoft.export(with_adapter, "adapter", trial=1)
    merged = autoft.export(with_adapter, "safetensors", trial=1)
    assert done.agreement.agreement == 1.0
    assert done.agreement.difference < 1e-4
    own = [answer["label"] for answer in autoft.load(merged.path).predict(texts)]
    assert without.answers(done.path, texts, tiny_model) == own
    assert done.files["adapter_model.safetensors"] < merged.files["model.safetensors"]
    config = json.loads((done.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny_model.name
    assert places_told(done.path) == []


@pytest.mark.parametrize("format", ["safetensors", "onnx", "onnx-fp16", "onnx-int8", "openvino"])
def test_no_export_says_where_anything_is_on_this_machine(format, exported, places_told):
    assert places_told(exported(format).path) == []


def test_exact_formats_differ_by_rounding_alone(exported):
    for format in ("safetensors", "onnx", "openvino"):
        assert exported(format).agreement.agreement == 1.0
        assert exported(format).agreement.difference < 1e-4


def test_half_and_integer_weights_are_smaller(exported):
    graphs = {name: exported(name).files["model.onnx"] for name in ("onnx", "onnx-fp16", "onnx-int8")}
    assert graphs["onnx-fp16"] < graphs["onnx"]
    assert graphs["onnx-int8"] < graphs["onnx"]


@pytest.mark.parametrize("format", ["safetensors", "onnx", "onnx-int8"])
def test_what_autoft_can_load_it_loads_and_exports_again(format, exported, texts, tmp_path):
    folder = exported(format).path
    assert len(autoft.load(folder).predict(texts)) == len(texts)
    again = autoft.export(folder, format, output=tmp_path / "again")
    assert again.agreement.source == "the first 60 validation rows"
    assert again.agreement.agreement == 1.0


def test_the_card_of_the_chosen_model_says_how_to_load_it(run, texts, without):
    """``best/`` is whatever was chosen: the trained weights, here or in a pick."""
    picked = autoft.pick(run, {}, quality=0.0, output=run / "picked")
    card = (picked.path / "README.md").read_text()
    if "Use without autoft" not in card:
        # dynamic-int8 has a format of its own.
        picked = autoft.export(run, "safetensors", trial=0, output=run / "other")
    told = autoft.load(picked.path).predict(texts)
    assert without.answers(picked.path, texts) == [answer["label"] for answer in told]


def test_files_that_answer_otherwise_are_refused_and_nothing_is_left(run, monkeypatch, tmp_path):
    write = Safetensors.write

    def damaged(self, origin, folder):
        from safetensors.torch import load_file, save_file

        write(self, origin, folder)
        weights = load_file(folder / "model.safetensors")
        weights["classifier.weight"] = -weights["classifier.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(Safetensors, "write", damaged)
    with pytest.raises(ExportMismatch, match="the same answer to"):
        autoft.export(run, "safetensors", trial=0, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_scores_that_are_off_are_refused_too(run, monkeypatch, tmp_path):
    write = Safetensors.write

    def damaged(self, origin, folder):
        from safetensors.torch import load_file, save_file

        write(self, origin, folder)
        weights = load_file(folder / "model.safetensors")
        weights["classifier.weight"] = weights["classifier.weight"] * 1.1
        weights["classifier.bias"] = weights["classifier.bias"] * 1.1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(Safetensors, "write", damaged)
    with pytest.raises(ExportMismatch, match="scores differ by up to"):
        autoft.export(run, "safetensors", trial=0, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_kept_is_said_with_what_there_is(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    result = json.loads((copy / "trials/0000/result.json").read_text())
    for variant in result["variants"]:
        if variant["name"] == "none":
            variant["folder"] = None
    (copy / "trials/0000/result.json").write_text(json.dumps(result))
    with pytest.raises(RunFolderError, match="those of trial 0 are not kept; kept of it are dynamic-int8"):
        autoft.export(copy, "safetensors", trial=0)
    with pytest.raises(RunFolderError, match="has no trial 7; it has 0, 1"):
        autoft.export(copy, "safetensors", trial=7)
    with pytest.raises(RunFolderError, match="trial 0, onnx, are not kept; kept are dynamic-int8"):
        autoft.export(copy, "onnx", trial=0, variant="onnx")


def test_an_adapter_that_is_not_there_is_said(run, tmp_path):
    with pytest.raises(RunFolderError, match=r"trial 0 \(full\) left no adapter"):
        autoft.export(run, "adapter", trial=0)
    model = Path(shutil.copytree(run / "trials/0000/variants/none", tmp_path / "model"))
    with pytest.raises(RunFolderError, match="is a merged model, and holds no adapter"):
        autoft.export(model, "adapter")


@pytest.mark.parametrize("inside", ["", "out"])
def test_an_export_does_not_take_the_place_of_its_model(inside, exported, tmp_path):
    model = Path(shutil.copytree(exported("safetensors").path, tmp_path / "model"))
    before = sorted(model.rglob("*"))
    with pytest.raises(RunFolderError, match="is the model's own folder or lies in it"):
        autoft.export(model, "safetensors", output=model / inside)
    assert sorted(model.rglob("*")) == before


def test_a_folder_of_something_else_is_not_overwritten(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="is there already, and holds no exported model"):
        autoft.export(run, "safetensors", trial=0, output=tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_nothing_is_exported_through_a_link_out_of_the_run(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("exports"))
    (tmp_path / "elsewhere").mkdir()
    (copy / "exports").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError, match="outside the run folder: 'exports'"):
        autoft.export(copy, "safetensors", trial=0)
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_the_command_tells_files_agreement_and_place(run, exported, tmp_path):
    words = ["export", str(run), "--format", "safetensors", "--trial", "0", "--output", str(tmp_path / "out")]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert "model.safetensors" in told.output
    assert "The same answer to 100.0% of 60 rows" in told.output
    told = CliRunner().invoke(app, [*words, "--json"])
    found = json.loads(told.output)
    assert found["agreement"]["agreement"] == 1.0
    assert found["format"] == "safetensors"
    told = CliRunner().invoke(app, ["export", str(run), "--format", "gguf"])
    assert told.exit_code == 2
    assert "unknown format 'gguf'" in told.output


def test_each_format_says_in_one_line_what_it_is():
    with pytest.raises(ModelError, match="Did you mean 'safetensors'"):
        autoft.export("nowhere", "safetensor")
    assert all(one.summary and "\n" not in one.summary for one in FORMATS.values())
