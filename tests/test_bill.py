"""What a model is made of, for programs."""

from __future__ import annotations

import json
from types import SimpleNamespace

from autoft.bill import models_behind, write_bill
from autoft.rundir import TrialConfig, TrialResult, VariantResult


def test_the_bill_names_weights_data_and_software_with_version_and_licence(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Encoder\n")
    plan = SimpleNamespace(
        name="reviews",
        models=[
            SimpleNamespace(name="me/encoder", path="me/encoder"),
            SimpleNamespace(name="package://mine/encoder", path=str(tmp_path)),
        ],
        revisions={"me/encoder": "c0ffee", "a/student": "c0de"},
        data={"source": None, "fingerprint": "f00d", "license": None},
        environment={"python": "3.11.4", "no_such": "2.13.0+cpu"},
    )
    write_bill(tmp_path, plan, ["package://mine/encoder"])
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    model, data, python, library = bill["components"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "package://mine/encoder")
    assert model["licenses"] == [{"license": {"name": "apache-2.0"}}]
    assert (data["type"], data["name"], data["version"]) == ("data", "own files", "f00d")
    assert "licenses" not in data
    assert python["purl"] == "pkg:generic/python@3.11.4"
    assert library["purl"] == "pkg:pypi/no-such@2.13.0%2Bcpu"
    (made,) = bill["dependencies"]
    assert made == {
        "ref": bill["metadata"]["component"]["bom-ref"],
        "dependsOn": [one["bom-ref"] for one in bill["components"]],
    }
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text("{}")
    (teacher / "README.md").write_text("---\nlicense: mit\n---\n# Teacher\n")
    write_bill(tmp_path, plan, ["a/student", "me/encoder", "a/student", str(teacher), "./gone"])
    student, base, taught, gone, data, *_ = json.loads((tmp_path / "sbom.json").read_text())["components"]
    assert (student["name"], student["version"]) == ("a/student", "c0de")
    assert (base["name"], base["version"], data["type"]) == ("me/encoder", "c0ffee", "data")
    assert (taught["name"], taught["licenses"]) == ("teacher", [{"license": {"name": "mit"}}])
    assert (gone["name"], gone.get("licenses")) == ("gone", None)
    assert str(tmp_path) not in (tmp_path / "sbom.json").read_text()


def test_the_models_behind_a_variant_are_those_of_its_trials_and_those_that_strategies_name(catalog):
    def trial(number: int, model: str, kind="search", members=(), **params) -> TrialResult:
        config = TrialConfig(
            number=number, kind=kind, model=model, pipeline="full", params=params, seed=0, members=list(members)
        )
        chosen = VariantResult(name="distilled", state="complete", members=[2] if kind == "ensemble" else [])
        return TrialResult(number=number, state="complete", config=config, variants=[chosen])

    there = {"back-translation.forward": "me/there", "back-translation.backward": None, "train.loss": "focal"}
    results = [
        trial(0, "base"),
        trial(2, "other", **there),
        trial(5, "base", "compress", [0, 2]),
        trial(6, "base", "ensemble", [0, 2]),
    ]
    taught = SimpleNamespace(strategy="distillation", params={"student": "a/student", "teacher": "runs/x", "epochs": 2})
    plan = SimpleNamespace(every_variant=[SimpleNamespace(name="distilled", chain=[taught])])

    def found(number: int, variant: str) -> list[str]:
        return models_behind(plan, catalog.strategies, results, number, variant)

    assert found(0, "none") == ["base"]
    assert found(2, "none") == ["other", "me/there"]
    assert found(5, "distilled") == ["base", "other", "a/student", "runs/x", "me/there"]
    assert found(6, "none") == ["base", "other", "me/there"]
    assert found(6, "distilled") == ["base", "other", "a/student", "runs/x", "me/there"]
