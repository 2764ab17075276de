"""A variant of a trial becomes a folder of its own: its very files, measured and scored again in a fresh process."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoft.artifact import ENSEMBLE, MANIFEST, file_digests, read_manifest
from autoft.bill import models_behind, write_bill
from autoft.card import front_matter, library_licenses, license_of, public_model, templates, usage, write_settings
from autoft.errors import ExportMismatch, RunFolderError, SearchFailed
from autoft.evaluation import ForkServers, runs_in_torch, serving_environment
from autoft.evaluation import main as score_in_process
from autoft.fork_server import CAN_FORK
from autoft.hardware import OtherLoad
from autoft.pace import OTHER_PATIENCE, SLOW_ENCODING, SLOW_STAGE
from autoft.plans.plan import Plan
from autoft.plugins import Catalog
from autoft.pretrained import public_params
from autoft.processes import spoken_to, thread_environment
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
from autoft.watched import Asked, ProcessFailed, ProcessLost, ask

__all__ = ["RESCORE_TOLERANCE", "export", "measure_final", "measure_pick", "rescored", "write_card"]

Note = Callable[[str], None]
"""Told in a sentence what a user may want to know of a measurement."""

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
        RunFolderError: the files are not there, or one is a link that leads out of the run folder; or the disk is full.
    """
    variant = _variant(results, selection.trial, selection.variant)
    source = run.inside(variant.folder) if variant.folder else None
    if source is None or not source.is_dir():
        raise RunFolderError(
            f"{run.path}: the files of trial {selection.trial}, {selection.variant}, are gone; the run cannot be exported"
        )
    for path in source.rglob("*"):
        # The copy would hold, and a push would send, what is elsewhere on this machine.
        run.inside(f"{variant.folder}/{path.relative_to(source)}")
    folder = folder or run.best
    with replacing_folder(folder) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
    return folder


def _unheard(said: str) -> None:
    """Where nobody listens it stands in the log all the same."""


def measure_final(
    run: RunDir, plan: Plan, selection: Selection, results: Sequence[TrialResult], note: Note = _unheard
) -> tuple[Final, dict[str, Any]]:
    """Score the exported files again, and the test split once: the model, the default, and the baselines.

    Each model is measured in a fresh process from its files.

    Args:
        run: the run folder.
        plan: of the run.
        selection: what was exported.
        results: of all trials.
        note: told where a process was killed or stopped, and is started again.

    Returns:
        the figures, and what :func:`write_card` is given as ``known``.

    Raises:
        ExportMismatch: the exported files do not score what the trial scored.
        SearchFailed: such a process was killed or stopped, twice, or hung.
    """
    with _Scoring(run, plan, note) as scoring:
        wanted: dict[str, bool | str] = {"test": True, "details": True, "objective": plan.objective}
        final, again = _measured_again(run, plan, selection, results, run.best, wanted, scoring)
        chosen = _variant(results, selection.trial, selection.variant)
        final.test["best"], final.details = _intervals(again["test"]), again["details"]
        final.slices = [SliceFigure.model_validate(part) for part in again["slices"]]
        final.example = again["example"]
        common = _common(run, plan)
        default = next((result for result in results if result.number == 0), None)
        yardstick = next((v for v in default.variants if v.name == "none" and v.folder), None) if default else None
        if yardstick is not None and yardstick.folder:
            final.validation["default"] = yardstick.validation
            if yardstick is chosen:
                # The very files that were just measured; writing texts for the test rows again may take minutes.
                final.test["default"], final.costs["default"] = final.test["best"], final.costs["best"]
            else:
                folder = run.inside(yardstick.folder)
                # It decides as the chosen one did, as on a threshold: else that would be part of the difference.
                request = {
                    **common,
                    "kind": "model",
                    "folder": str(folder),
                    "validation": bool(final.operating_point),
                    "test": True,
                }
                figures = scoring.ask("default", request, in_torch=runs_in_torch(folder))
                final.test["default"], final.costs["default"] = _intervals(figures["test"]), figures["costs"]
                _keep_train_memory(final.costs["default"], yardstick)
            graph = next((v for v in default.variants if v.name == "onnx"), None) if default else None
            if graph is not None and graph.costs:
                final.costs["default-onnx"] = graph.costs
                final.validation["default-onnx"] = graph.validation
        # Among them may be a base model as it is.
        request = {"kind": "baselines", "run": str(run.path), "seed": plan.seed}
        baselines = scoring.ask("baselines", request, in_torch=True)
    write_json(run.path / "baselines.json", baselines)
    for name, figures in baselines.items():
        final.test[name] = _intervals(figures["test"])
        final.validation[name] = figures["validation"]
    return final, again["card"]


def measure_pick(
    run: RunDir, plan: Plan, selection: Selection, results: Sequence[TrialResult], folder: Path
) -> tuple[Final, dict[str, Any]]:
    """Measure an exported point of the front in a fresh process and score it on the validation split.

    The test split is not read: it has been, for the model that the run chose, and choosing by it again would wear it out.

    Returns:
        the figures, and what :func:`write_card` is given as ``known``.

    Raises:
        ExportMismatch: the exported files do not score what the trial scored.
        SearchFailed: the process was killed or stopped, twice, or hung.
    """
    with _Scoring(run, plan) as scoring:
        final, again = _measured_again(run, plan, selection, results, folder, {"decide": True}, scoring)
    return final, again["card"]


def rescored(run: RunDir, plan: Plan, told: Collection[str]) -> dict[str, Any]:
    """Score the exported files on both splits once more, in a fresh process, and measure what they cost.

    Args:
        run: the run folder.
        plan: of the run.
        told: the metrics of which there are figures of the validation split.

    Returns:
        ``{"validation": {metric: value}, "test": {metric: {"value": ...}}, "costs": {...}}``

    Raises:
        ExportMismatch: they cannot be loaded.
        SearchFailed: the process was killed or stopped, twice, or hung.
    """
    request = {
        **_common(run, plan),
        "kind": "model",
        "folder": str(run.best),
        "validation": True,
        "test": True,
        "asked": list(told),
    }
    with _Scoring(run, plan) as scoring:
        return scoring.ask("verify", request, in_torch=runs_in_torch(run.best))


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
    scoring: _Scoring,
) -> tuple[Final, dict[str, Any]]:
    request = {
        **_common(run, plan),
        "kind": "model",
        "folder": str(folder),
        "validation": True,
        "asked": plan.objectives,
        "card": True,
        **wanted,
    }
    way_out = (
        f"Where files of {run.trial(selection.trial)} were damaged, delete its result.json to have it trained again"
    )
    try:
        again = scoring.ask(folder.name, request, in_torch=runs_in_torch(folder))
    except ExportMismatch as error:
        raise ExportMismatch(f"{error}. {way_out}") from error
    chosen = _variant(results, selection.trial, selection.variant)
    claimed, found = chosen.validation[plan.objective], again["validation"][plan.objective]
    if not math.isclose(claimed, found, rel_tol=RESCORE_TOLERANCE, abs_tol=RESCORE_TOLERANCE):
        raise ExportMismatch(
            f"{folder}: the exported files score {found:.4f} validation {plan.objective}, but trial {selection.trial}, "
            f"{selection.variant}, scored {claimed:.4f}; they are not what was measured. {way_out}; else please "
            f"report this with {run.path / 'logs'}"
        )
    final = Final()
    final.validation["best"], final.costs["best"] = again["validation"], again["costs"]
    final.operating_point = again.get("operating_point", {})
    if again["other_load"] >= OtherLoad.BUSY:
        final.notes.append(
            f"Other processes took {again['other_load']:.0%} of the processors while the chosen model was measured: its latency is higher "
            "than on a quiet machine."
        )
    final.costs["best"]["request_length"] = float(again["length"])
    _keep_train_memory(final.costs["best"], chosen)
    return final, again


def write_card(
    folder: Path,
    plan: Plan,
    catalog: Catalog,
    selection: Selection,
    results: Sequence[TrialResult],
    final: Final,
    known: Mapping[str, Any],
) -> None:
    """Write the model card of an exported folder, its labels, preprocessing and bill of materials, and the figures into its manifest.

    Args:
        folder: with the model.
        plan: of the run.
        catalog: with its task.
        selection: what was exported.
        results: of all trials.
        final: what was measured.
        known: what :func:`autoft.artifact.processing` said where that was measured: to load a processor here takes seconds.
    """
    task, result = catalog.task(plan.task), next(r for r in results if r.number == selection.trial)
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
        write_settings(task, manifest, folder, known)
        shown |= usage(task, manifest, folder, folder.name, known=known) or {}
    others = models_behind(plan, catalog.strategies, results, selection.trial, selection.variant)
    write_bill(folder, plan, [manifest.model, *others])
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
            trained_from=public_model(result.config.model, plan),
            params=public_params(catalog.strategies, result.config.params),
            base_license=license_of(result.config.model, plan),
            libraries=library_licenses(plan.environment),
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


class _Scoring:
    """Processes of their own, which are watched, and which measure and score models of a run from their files.

    They are forked, where the system can, so that libraries are imported once for all.

    Args:
        run: the run folder.
        plan: of the run.
        note: told where a process was killed or stopped, and is started again.
    """

    def __init__(self, run: RunDir, plan: Plan, note: Note = _unheard) -> None:
        self._run, self._plan, self._note = run, plan, note
        self._environment = serving_environment(thread_environment(plan.threads))
        self._servers = ForkServers(lambda: self._environment, run.logs / "final.log")

    def __enter__(self) -> _Scoring:
        return self

    def __exit__(self, *_: object) -> None:
        self._servers.close()

    def ask(self, name: str, request: Mapping[str, Any], *, in_torch: bool) -> dict[str, Any]:
        """Return what a new process answers.

        Args:
            name: of its log.
            request: to :func:`autoft.evaluation.main`.
            in_torch: it needs models of transformers.

        Raises:
            ExportMismatch: it cannot.
            SearchFailed: the process was killed or stopped, twice, or hung.
        """
        run, log = self._run, self._run.logs / f"final-{name}.log"

        def start(log: Path) -> Asked:
            if CAN_FORK:
                return self._servers.fork(lambda server: server.spoken_to(score_in_process, log), in_torch=in_torch)
            return spoken_to([sys.executable, "-m", "autoft.evaluation"], log, self._environment)

        try:
            answer: dict[str, Any] = ask(
                start,
                request,
                log=log,
                patience=_patience(self._plan, run.results()),
                note=lambda said: self._note(f"The process that scores {name} {said}."),
            )
        except ProcessFailed as error:
            raise ExportMismatch(
                f"{name}: the exported files cannot be loaded and scored: {error} (see {log})"
            ) from error
        except ProcessLost as error:
            raise SearchFailed(
                f"the process that scores {name} {error} (see {log})\nEvery trial is kept, and the same command goes on from there; "
                "where it only needs longer, with more executor.patience"
            ) from error
        return answer


def _patience(plan: Plan, results: Sequence[TrialResult]) -> float:
    """Return for how many seconds models may be scored and nothing be heard of it, by what trials took beside their training."""
    took = [result.seconds.get("total", 0.0) - result.seconds.get("train", 0.0) for result in results]
    sizes = plan.data["sizes"]
    rows = sum(int(count) for count in sizes.values())
    longest = SLOW_STAGE * max(took, default=0.0) * rows / max(1, int(sizes["validation"])) + SLOW_ENCODING * rows
    return max(OTHER_PATIENCE * plan.patience, longest)
