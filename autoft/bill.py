"""What a model is made of, for programs: a bill of materials in CycloneDX's JSON, which its card says in words.

Method: https://cyclonedx.org/docs/1.6/json, written by hand: its library for Python is larger than what is written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from autoft.card import library_licenses, license_of, public_model, stated_license
from autoft.contracts import Strategy
from autoft.errors import AutoftError
from autoft.plans.plan import Plan
from autoft.pretrained import named_models, trained_model
from autoft.rundir import TrialResult, write_json

__all__ = ["BILL", "models_behind", "write_bill"]

BILL = "sbom.json"


def models_behind(
    plan: Plan, strategies: Mapping[str, Strategy], results: Sequence[TrialResult], trial: int, variant: str
) -> list[str]:
    """Return the models that a variant of a trial was made with: bases, students, teachers, translators, as the recipe names them.

    Those of the trials that it averages, was compressed from or learned from are among them.

    Args:
        plan: of the run.
        strategies: by name; they say which of their parameters name models.
        results: of all trials.
        trial: its number.
        variant: its name.
    """
    known = {result.number: result for result in results}
    averaged = next((one.members for one in known[trial].variants if one.name == variant), [])
    chain = next((one.chain for one in plan.every_variant if one.name == variant), [])
    params = [(f"{step.strategy}.{name}", value) for step in chain for name, value in step.params.items()]
    bases, waiting = list[str](), [trial]
    # What was made of trials has a higher number than they.
    for number in waiting:
        if number in known:
            config = known[number].config
            waiting += [one for one in averaged or config.members if one < number]
            averaged = []
            bases.append(config.model)
            params += config.params.items()
    return list(dict.fromkeys([*bases, *named_models(strategies, params)]))


def write_bill(folder: Path, plan: Plan, models: Sequence[str]) -> None:
    """Write ``sbom.json`` into the folder of a model: weights before training, data, and the software of the run.

    It holds no time and no number of its own, so that the same run gives the same bytes.

    Args:
        folder: of the model.
        plan: of its run.
        models: that it was made with, as the recipe names them; the first is the one that was trained, and may have the name of
            its manifest. Folders of this machine are told by the last part of their name.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    named: dict[str, list[str]] = {}
    for name in models:
        named.setdefault(public_model(name, plan), []).append(name)
    parts = [
        *(
            _part(
                "machine-learning-model",
                shown,
                next((plan.revisions[name] for name in names if name in plan.revisions), ""),
                next((stated for name in names if (stated := _license(name, plan))), None),
            )
            for shown, names in named.items()
        ),
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


def _license(model: str, plan: Plan) -> str | None:
    """Return the licence that the card beside the weights of a model states, whether the plan or a strategy names it."""
    if any(one.name == model for one in plan.models):
        return license_of(model, plan)
    try:
        card = Path(trained_model(model).path) / "README.md"
    except AutoftError:
        # It is not here any more.
        return None
    return stated_license(card) if card.is_file() else None


def _part(kind: str, name: str, version: str, license: str | None) -> dict[str, Any]:
    part: dict[str, Any] = {"type": kind, "bom-ref": f"{kind}:{name}@{version}", "name": name}
    if version:
        part["version"] = version
    if license:
        part["licenses"] = [{"license": {"name": license}}]
    return part
