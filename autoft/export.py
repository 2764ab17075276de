"""A variant of a trial becomes a folder of its own: its very files, measured and scored again in a fresh process."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoft.artifact import ENSEMBLE, MANIFEST, file_digests, read_manifest
from autoft.card import front_matter, templates, usage, write_settings
from autoft.contracts import Task
from autoft.errors import ExportMismatch, RunFolderError
from autoft.evaluation import serving_environment
from autoft.plans.plan import Plan
from autoft.processes import thread_environment
from autoft.quantities import format_bytes
from autoft.rundir import (
    Final,
    Interval,
    RunDir,
    Selection,
    SliceFigure,
    TrialResult,
    VariantResult,
    replacing_folder,
    write_json,
)

__all__ = ["RESCORE_TOLERANCE", "export", "measure_final", "measure_pick", "rescored", "write_card"]

RESCORE_TOLERANCE = 0.001
"""Largest difference between a trial's figure and that of its exported files: 0.1 point, for figures above 1 a share.

It is not 0, for sums in another order move a logit by a rounding error.
"""


def export(
    run: RunDir, plan: Plan, selection: Selection, results: Sequence[TrialResult], folder: Path | None = None
) -> Path:
    """Copy the chosen variant's files into a folder and return it; an old one stays until the new one is whole.

    Args:
        run: the run folder.
        plan: of the run.
        selection: the variant.
        results: of all trials.
        folder: default: ``best/`` of the run.

    Raises:
        RunFolderError: the files are not there, or the disk is full.
    """
    variant = _variant(results, selection.trial, selection.variant)
    source = run.inside(variant.folder) if variant.folder else None
    if source is None or not source.is_dir():
        raise RunFolderError(
            f"{run.path}: the files of trial {selection.trial}, {selection.variant}, are gone; the run cannot be exported"
        )
    folder = folder or run.best
    with replacing_folder(folder) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
    return folder


def measure_final(run: RunDir, plan: Plan, selection: Selection, results: Sequence[TrialResult]) -> Final:
    """Score the exported files again, and the test split once: the model, the default, and the baselines.

    Each model is measured in a fresh process from its files.

    Raises:
        ExportMismatch: the exported files do not score what the trial scored.
    """
    final, again = _measured_again(
        run, plan, selection, results, run.best, {"test": True, "details": True, "objective": plan.objective}
    )
    chosen = _variant(results, selection.trial, selection.variant)
    final.test["best"], final.details = _intervals(again["test"]), again["details"]
    final.slices = [SliceFigure.model_validate(part) for part in again["slices"]]
    final.example = again["example"]
    common = _common(run, plan)
    default = next((result for result in results if result.number == 0), None)
    yardstick = next((v for v in default.variants if v.name == "none" and v.folder), None) if default else None
    if yardstick is not None and yardstick.folder:
        final.validation["default"] = yardstick.validation
        if yardstick is chosen and not final.operating_point:
            # The very files that were just measured; writing texts for the test rows again may take minutes.
            final.test["default"], final.costs["default"] = final.test["best"], final.costs["best"]
        else:
            folder = str(run.inside(yardstick.folder))
            figures = _fresh(
                run, plan, "default", {**common, "kind": "model", "folder": folder, "validation": False, "test": True}
            )
            final.test["default"], final.costs["default"] = _intervals(figures["test"]), figures["costs"]
            _keep_train_memory(final.costs["default"], yardstick)
        graph = next((v for v in default.variants if v.name == "onnx"), None) if default else None
        if graph is not None and graph.costs:
            final.costs["default-onnx"] = graph.costs
            final.validation["default-onnx"] = graph.validation
    baselines = _fresh(run, plan, "baselines", {"kind": "baselines", "run": str(run.path), "seed": plan.seed})
    write_json(run.path / "baselines.json", baselines)
    for name, figures in baselines.items():
        final.test[name] = _intervals(figures["test"])
        final.validation[name] = figures["validation"]
    return final


def measure_pick(run: RunDir, plan: Plan, selection: Selection, results: Sequence[TrialResult], folder: Path) -> Final:
    """Measure an exported point of the front in a fresh process and score it on the validation split.

    The test split is not read: it has been, for the model that the run chose, and choosing by it again would wear it out.

    Raises:
        ExportMismatch: the exported files do not score what the trial scored.
    """
    return _measured_again(run, plan, selection, results, folder, {"decide": True})[0]


def rescored(run: RunDir, plan: Plan) -> dict[str, Any]:
    """Score the exported files on both splits once more, in a fresh process, and measure what they cost.

    Returns:
        ``{"validation": {metric: value}, "test": {metric: {"value": ...}}, "costs": {...}}``

    Raises:
        ExportMismatch: they cannot be loaded.
    """
    request = {**_common(run, plan), "kind": "model", "folder": str(run.best), "validation": True, "test": True}
    return _fresh(run, plan, "verify", request)


def _common(run: RunDir, plan: Plan) -> dict[str, Any]:
    return {
        "data": str(run.data),
        "batch_size": plan.request["batch_size"],
        "length": plan.request["length"],
        "device": plan.device,
        "threads": plan.threads,
        "scales": plan.target.scales if plan.target else None,
        "seed": plan.seed,
    }


def _measured_again(
    run: RunDir,
    plan: Plan,
    selection: Selection,
    results: Sequence[TrialResult],
    folder: Path,
    wanted: Mapping[str, bool | str],
) -> tuple[Final, dict[str, Any]]:
    request = {**_common(run, plan), "kind": "model", "folder": str(folder), "validation": True, **wanted}
    again = _fresh(run, plan, folder.name, request)
    chosen = _variant(results, selection.trial, selection.variant)
    claimed, found = chosen.validation[plan.objective], again["validation"][plan.objective]
    if not math.isclose(claimed, found, rel_tol=RESCORE_TOLERANCE, abs_tol=RESCORE_TOLERANCE):
        raise ExportMismatch(
            f"{folder}: the exported files score {found:.4f} validation {plan.objective}, but trial {selection.trial}, "
            f"{selection.variant}, scored {claimed:.4f}; they are not what was measured. Please report this with "
            f"{run.path / 'logs'}"
        )
    final = Final()
    final.validation["best"], final.costs["best"] = again["validation"], again["costs"]
    final.operating_point = again.get("operating_point", {})
    final.costs["best"]["request_length"] = float(again["length"])
    _keep_train_memory(final.costs["best"], chosen)
    return final, again


def write_card(
    folder: Path,
    plan: Plan,
    task: Task,
    selection: Selection,
    results: Sequence[TrialResult],
    final: Final,
) -> None:
    """Write the model card of an exported folder, its labels and preprocessing, and the figures into its manifest."""
    result = next(r for r in results if r.number == selection.trial)
    manifest = read_manifest(folder)
    if final.operating_point:
        manifest.facts["operating_point"] = final.operating_point
    manifest.columns = plan.data.get("columns", {})
    manifest.measured = {
        "test": {name: interval.model_dump() for name, interval in final.test.get("best", {}).items()},
        "validation": final.validation["best"],
        "costs": final.costs["best"],
    }
    shown: dict[str, Any] = {"runtime": "", "name": folder.name}
    if manifest.format != ENSEMBLE:
        write_settings(task, manifest, folder)
        shown |= usage(task, manifest, folder, folder.name) or {}
    manifest.files = file_digests(folder)
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    library = {"transformers": "transformers", "onnx": "onnx"}.get(shown["runtime"], "autoft")
    text = (
        templates()
        .get_template("model_card.md.j2")
        .render(
            front=front_matter(task.card, manifest, plan, library=library, name=plan.name),
            plan=plan,
            selection=selection,
            result=result,
            final=final,
            members=_variant(results, selection.trial, selection.variant).members,
            notice=task.card.notice,
            operating_point=final.operating_point,
            bytes=format_bytes,
            **shown,
        )
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _intervals(figures: Mapping[str, Any]) -> dict[str, Interval]:
    return {metric: Interval(**interval) for metric, interval in figures.items()}


def _keep_train_memory(costs: dict[str, float], variant: VariantResult) -> None:
    if "train_memory_bytes" in variant.costs:
        costs["train_memory_bytes"] = variant.costs["train_memory_bytes"]


def _variant(results: Sequence[TrialResult], trial: int, name: str) -> VariantResult:
    result = next(result for result in results if result.number == trial)
    return next(variant for variant in result.variants if variant.name == name)


def _fresh(run: RunDir, plan: Plan, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
    log = run.logs / f"final-{name}.log"
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.run(
            [sys.executable, "-m", "autoft.evaluation"],
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env=serving_environment(thread_environment(plan.threads)),
            check=False,
        )
    if process.returncode != 0 or not process.stdout:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"it ended with {process.returncode}"
        raise ExportMismatch(f"{name}: the exported files cannot be loaded and scored: {last} (see {log})")
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer
