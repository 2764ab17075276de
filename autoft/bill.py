"""What a model is made of, for programs: a bill of materials in CycloneDX's JSON, which its card says in words.

Method: https://cyclonedx.org/docs/1.6/json, written by hand: its library for Python is larger than what is written here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from autoft.card import library_licenses, license_of
from autoft.plans.plan import Plan
from autoft.rundir import write_json

__all__ = ["BILL", "write_bill"]

BILL = "sbom.json"


def write_bill(folder: Path, plan: Plan, model: str) -> None:
    """Write ``sbom.json`` into the folder of a model: weights before training, data, and the software of the run.

    It holds no time and no number of its own, so that the same run gives the same bytes.

    Args:
        folder: of the model.
        plan: of its run.
        model: that it was trained from, as the plan names it.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    parts = [
        _part("machine-learning-model", model, plan.revisions.get(model, ""), license_of(model, plan)),
        _part("data", plan.data.get("source") or "own files", plan.data["fingerprint"], plan.data.get("license")),
    ]
    for name, version, license in library_licenses(plan.environment):
        place = "generic" if name == "python" else "pypi"
        library = _part("platform" if name == "python" else "library", name, version, license)
        parts.append({**library, "purl": f"pkg:{place}/{quote(name.lower().replace('_', '-'))}@{quote(version)}"})
    whole = _part("machine-learning-model", plan.name, "", None)
    write_json(
        folder / BILL,
        {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"component": whole},
            "components": parts,
            "dependencies": [{"ref": whole["bom-ref"], "dependsOn": [part["bom-ref"] for part in parts]}],
        },
    )


def _part(kind: str, name: str, version: str, license: str | None) -> dict[str, Any]:
    part: dict[str, Any] = {"type": kind, "bom-ref": f"{kind}:{name}@{version}", "name": name}
    if version:
        part["version"] = version
    if license:
        part["licenses"] = [{"license": {"name": license}}]
    return part
