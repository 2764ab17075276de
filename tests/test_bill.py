"""What a model is made of, for programs."""

from __future__ import annotations

import json
from types import SimpleNamespace

from autoft.bill import write_bill


def test_the_bill_names_weights_data_and_software_with_version_and_licence(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Encoder\n")
    plan = SimpleNamespace(
        name="reviews",
        models=[SimpleNamespace(name="me/encoder", path=str(tmp_path))],
        revisions={"me/encoder": "c0ffee", "a/student": "c0de"},
        data={"source": None, "fingerprint": "f00d", "license": None},
        environment={"python": "3.11.4", "no_such": "2.13.0+cpu"},
    )
    write_bill(tmp_path, plan, "me/encoder")
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    model, data, python, library = bill["components"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "me/encoder", "c0ffee")
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
    write_bill(tmp_path, plan, "a/student")
    student = json.loads((tmp_path / "sbom.json").read_text())["components"][0]
    assert (student["name"], student["version"]) == ("a/student", "c0de")
