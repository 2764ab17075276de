"""Does a configuration fit: its predicted peak of training memory against a limit, before anything is trained."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from autoft.contracts import Row
from autoft.errors import AutoftError
from autoft.estimates.probe import probe
from autoft.estimates.setting import Setting
from autoft.hardware import MAPPED, Hardware
from autoft.paths import cache_folder
from autoft.plans.plan import ModelPlan, PipelinePlan, Plan
from autoft.plugins import Catalog
from autoft.rundir import read_json, write_json

__all__ = [
    "TRACED",
    "Constants",
    "Prediction",
    "Verdict",
    "calibrate",
    "constants_of",
    "judge",
    "largest_batch",
    "margin_of",
    "parts_that_fit",
    "predict",
    "predict_serving",
    "serving_constants",
    "serving_setting",
    "setting_of",
]

Verdict = Literal["fits", "does not fit", "probe"]

MARGIN = 0.08
"""Share of a prediction that has to be free below a limit, and above it for certainty that it does not fit.

Predictions for single batches were up to 7 % too low over dense bases, those for whole trainings up to 6 % (docs/budget.md).
"""

WIDE_MARGIN = 0.2
"""The same over bases that bitsandbytes quantizes, whose layers are imitated: there they were up to 13 % too low."""

SERVING_MARGIN = 0.15
"""The same for the memory of serving, where predictions were up to 12 % too low (docs/budget.md)."""

CALIBRATED = (1, 16)
"""Rows and tokens of the steps that constants come from: the less their tensors take, the less they hide."""

TRACED = ("none", "magnitude-pruning", "bf16-weights", "dynamic-int8")
"""Compressions that leave a torch model whose shapes and types are known before it is trained."""

SERVED = (1, 128)
"""Rows and tokens of the requests that serving's constants come from."""

IRRELEVANT = frozenset(
    {
        "train.class_weights",
        "train.epochs",
        "train.max_grad_norm",
        "train.schedule",
        "train.warmup",
        "train.weight_decay",
    }
)
"""Parameters that change nothing about memory; learning rates do not either, by whatever name."""

SWITCHES = frozenset({"train.dropout", "train.label_smoothing"})
"""Those of which it matters only whether they are above 0."""

FORMAT = 3
"""Raised whenever traces or what is measured change: figures that were kept before are not read again."""

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "autoft")


@dataclass(frozen=True)
class Constants:
    """What a process needs beside its tensors: interpreter, libraries, their buffers; nothing on a GPU but workspaces.

    Attributes:
        process_bytes: of a process that trains.
    """

    process_bytes: int


@dataclass(frozen=True)
class Prediction:
    """What a training will need.

    Attributes:
        peak_bytes: as ``train_memory_bytes`` of a trial will say; None where it cannot be known without trying.
        reason: why it cannot.
        parameters: of the model, the adapter's counted.
        trainable_parameters: those that are trained.
        exact: the process keeps what its tensors need and no more (:data:`autoft.hardware.MAPPED`); otherwise the figure is
            the least that it needs.
        margin: share by which the figure may be wrong.
        least_bytes: what is needed whatever the data are; None where that is the peak.
    """

    peak_bytes: int | None
    reason: str = ""
    parameters: int = 0
    trainable_parameters: int = 0
    exact: bool = True
    margin: float = MARGIN
    least_bytes: int | None = None


def predict(setting: Setting, catalog: Catalog, constants: Constants, cache: Path | None = None) -> Prediction:
    """Return what a training will need, from a trace of its step on fake tensors.

    Args:
        setting: what is trained.
        catalog: what plugins offer.
        constants: of :func:`constants_of`.
        cache: a folder in which traces are kept; None keeps none.
    """
    from autoft.estimates.steps import CannotTrace, trace_training

    path = cache / f"trace-{_digest(_of_memory(setting).to_json())}.json" if cache else None
    known = read_json(path, missing={}) if path else {}
    if not known:
        try:
            trace = trace_training(setting, catalog)
            known = {
                "peak": trace.timeline.peak,
                "parameters": trace.parameters,
                "trainable": trace.trainable_parameters,
            }
        except (CannotTrace, AutoftError) as error:
            return Prediction(None, reason=str(error))
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
    return Prediction(
        known["peak"] + constants.process_bytes,
        parameters=known["parameters"],
        trainable_parameters=known["trainable"],
        exact=setting.mapped or setting.device != "cpu",
        margin=margin_of(setting),
    )


def margin_of(setting: Setting) -> float:
    """Return the share by which predictions of such a training may be wrong."""
    return WIDE_MARGIN if setting.quantizer else MARGIN


def _of_memory(setting: Setting) -> Setting:
    """Return the setting without parameters that change nothing about memory: what differs in them needs as much."""
    params = {
        name: 0.1 * bool(value) if name in SWITCHES else value
        for name, value in setting.params.items()
        if name not in IRRELEVANT and not name.endswith(".learning_rate")
    }
    return replace(setting, params=params)


def judge(prediction: Prediction, limit: float) -> Verdict:
    """Return whether something fits a limit; ``probe`` where the prediction is too near to it, or is none.

    Args:
        prediction: of :func:`predict` or :func:`predict_serving`.
        limit: bytes of memory.
    """
    if prediction.peak_bytes is None:
        return "probe"
    margin = prediction.margin
    least = prediction.peak_bytes if prediction.least_bytes is None else prediction.least_bytes
    if least * (1 - margin) > limit:
        return "does not fit"
    return "fits" if prediction.exact and prediction.peak_bytes * (1 + margin) <= limit else "probe"


def largest_batch(
    setting: Setting,
    catalog: Catalog,
    constants: Constants,
    limit: float,
    cache: Path | None = None,
) -> tuple[int, int] | None:
    """Return the largest micro-batch that fits, and how many of them make the setting's rows a step; None: not even one row.

    Peaks rise with the rows by as much for each: two traces give the line, and a third is the check of the answer. The
    micro-batch divides the rows of a step, so that the effective batch stays what it is.

    Args:
        setting: whose rows a step are ``train.batch_size`` times ``train.gradient_accumulation``.
        catalog: what plugins offer.
        constants: of :func:`constants_of`.
        limit: bytes of training memory.
        cache: as for :func:`predict`.
    """
    rows = setting.batch_size * setting.accumulation
    divisors = [size for size in range(rows, 0, -1) if rows % size == 0]

    def peak(size: int) -> float:
        found = predict(setting.with_batch(size, rows // size), catalog, constants, cache)
        return float("inf") if found.peak_bytes is None else found.peak_bytes * (1 + found.margin)

    # Accumulated, both of them: gradients are there before the second micro-batch.
    low, high = min(2, rows), max(1, rows // 2)
    slope = (peak(high) - peak(low)) / (high - low) if high > low else 0.0
    first = peak(low)
    for size in divisors:
        near = first + slope * (size - low)
        # One that is whole needs less than the line says: nothing is accumulated.
        if (size == rows or near <= 1.02 * limit) and peak(size) <= limit:
            return size, rows // size
    return None


def parts_that_fit(
    setting: Setting,
    catalog: Catalog,
    constants: Constants,
    limit: float,
    most: int,
    cache: Path | None = None,
) -> tuple[int, Prediction]:
    """Return into how many parts a batch has to be cut so that its training may fit, and what it then needs.

    Parts are those of :func:`autoft.training.train`: each takes a forward pass of its own, and gradients are added up. The
    fewest that are not predicted to need too much, else as many as are possible.

    Args:
        setting: with the batch as the configuration has it.
        catalog: what plugins offer.
        constants: of :func:`constants_of`.
        limit: bytes of training memory.
        most: parts, at most; never more than the batch has rows.
        cache: as for :func:`predict`.
    """
    parts, prediction = 1, predict(setting, catalog, constants, cache)
    while judge(prediction, limit) == "does not fit" and 2 * parts <= min(most, setting.batch_size):
        parts *= 2
        cut = setting.with_batch(math.ceil(setting.batch_size / parts), setting.accumulation * parts)
        prediction = predict(cut, catalog, constants, cache)
    return parts, prediction


# -------------------------------------------------------------------------------------------------------- serving


def predict_serving(
    setting: Setting,
    catalog: Catalog,
    variant: str,
    batch_size: int,
    constants: Constants,
    *,
    chosen: bool,
    cache: Path | None = None,
) -> Prediction:
    """Return what a process that serves a model will need, as ``inference_memory_bytes`` of a variant will say.

    Args:
        setting: of :func:`serving_setting`.
        catalog: what plugins offer.
        variant: of :data:`TRACED`.
        batch_size: rows a request.
        constants: of :func:`serving_constants`.
        chosen: requests have rows of about this length; otherwise it is the longest that may come, and the least that is
            needed is that without any.
        cache: a folder in which traces are kept; None keeps none.
    """
    from autoft.estimates.heap import heap_bytes
    from autoft.estimates.serving import trace_request
    from autoft.estimates.steps import CannotTrace

    path = cache / f"request-{_digest([setting.to_json(), variant, batch_size])}.json" if cache else None
    known = read_json(path, missing={}) if path else {}
    if not known:
        try:
            request = trace_request(setting, catalog, variant, batch_size)
            known = {
                "weights": request.weights_bytes,
                "tables": request.tables_bytes,
                "heap": heap_bytes(request.events),
            }
        except (CannotTrace, AutoftError) as error:
            return Prediction(None, reason=str(error))
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
    peak = constants.process_bytes + known["weights"] + known["heap"]
    least = peak - known["tables"] - (0 if chosen else known["heap"])
    return Prediction(peak, margin=SERVING_MARGIN, least_bytes=least)


def serving_constants(
    setting: Setting, catalog: Catalog, variant: str, *, chosen: bool, cache: Path | None = None
) -> Constants:
    """Return what a serving process needs beside weights and requests; measured once for a kind, and kept.

    Args:
        setting: of :func:`serving_setting`, of a small model: where nothing is known yet, its weights are read, and it is
            written, loaded and served.
        catalog: what plugins offer.
        variant: of :data:`TRACED`.
        chosen: as for :func:`predict_serving`.
        cache: folder of the file; default: :func:`cache_folder`.

    Raises:
        ModelError: the model could not be made or served.
        CannotTrace: a request cannot be traced.
    """
    from autoft.estimates.served import served_bytes

    rows, length = SERVED
    small = replace(setting, length=min(length, setting.length))
    process = ("serving", setting.task, variant, setting.threads, chosen)
    key = _digest([*process, Hardware.probe_cpu().cpu])
    path = _constants_file(cache)
    known = read_json(path, missing={}).get(key)
    if known:
        return Constants(**known)
    # First what may be refused.
    needed = predict_serving(small, catalog, variant, rows, Constants(0), chosen=True)
    if needed.least_bytes is None:
        from autoft.estimates.steps import CannotTrace

        raise CannotTrace(needed.reason)
    # One row again and again reads next to nothing of the tables.
    constants = Constants(served_bytes(small, variant, rows, chosen=chosen) - needed.least_bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**read_json(path, missing={}), key: asdict(constants)})
    return constants


def serving_setting(setting: Setting, length: int | None) -> Setting:
    """Return a training's setting as its model is served: an adapter that merges leaves nothing behind.

    Args:
        setting: of :func:`setting_of`; its adapter merges.
        length: tokens of a request's rows; None: as long as a training's.
    """
    params = {name: value for name, value in setting.params.items() if name.startswith(("task.", "train.max_length"))}
    length = min(length or setting.length, setting.length)
    return replace(
        setting, adapter="full", quantizer="", regularize="none", precision="fp32", params=params, length=length
    )


# ------------------------------------------------------------------------------------------------------ constants


def constants_of(setting: Setting, catalog: Catalog, cache: Path | None = None) -> Constants | None:
    """Return the constants of processes like the setting's on this machine, if they were ever calibrated."""
    known = read_json(_constants_file(cache), missing={}).get(_likeness(setting, catalog))
    return Constants(**known) if known else None


def calibrate(setting: Setting, catalog: Catalog, cache: Path | None = None) -> Constants:
    """Find the constants of processes like the setting's, and keep them.

    Two real steps on one short row are measured in a process of their own, and what their tensors take by the trace is
    taken away. The constants depend on the task (its metrics' libraries), on what the pipeline and the optimiser load
    (PEFT, bitsandbytes), on precision, threads, device and the packages' versions, and hardly on the model.

    Args:
        setting: of a small model: its weights are read.
        catalog: what plugins offer.
        cache: folder of the file; default: :func:`cache_folder`.

    Raises:
        ModelError: the steps failed.
        CannotTrace: the setting cannot be traced.
    """
    from autoft.estimates.steps import trace_training

    rows, length = CALIBRATED
    small = replace(setting.with_batch(rows), length=length)
    measured = probe(small).memory_bytes
    constants = Constants(process_bytes=measured - trace_training(small, catalog).timeline.peak)
    path = _constants_file(cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**read_json(path, missing={}), _likeness(setting, catalog): asdict(constants)})
    return constants


def _constants_file(cache: Path | None) -> Path:
    return (cache or cache_folder()) / "constants.json"


def _likeness(setting: Setting, catalog: Catalog) -> str:
    adapter = catalog.adapters[setting.adapter]
    libraries = "bitsandbytes" if setting.quantizer else "peft" if hasattr(adapter, "tuner") else "plain"
    # An optimiser has libraries of its own: Adafactor comes from transformers, 8 bits from bitsandbytes.
    libraries += f", {setting.params.get('train.optimizer') or 'adamw'}"
    process = (setting.task, libraries, setting.precision, setting.threads, setting.device, setting.mapped, MAPPED)
    return _digest([*process, Hardware.probe_cpu().cpu, *_versions()])


def _versions() -> Iterable[str]:
    for name in PACKAGES:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue


def _digest(value: Any) -> str:
    text = json.dumps([value, FORMAT, *_versions()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


# ---------------------------------------------------------------------------------------------------------- plans


def setting_of(
    plan: Plan, catalog: Catalog, model: ModelPlan, pipeline: PipelinePlan, rows: Sequence[Row] = (), **changes: Any
) -> Setting:
    """Return the default configuration of a pipeline over a model, on rows as long as the plan allows.

    Args:
        plan: what facts it lacks are those of the task's demo rows.
        catalog: what plugins offer.
        model: of the plan.
        pipeline: of the plan.
        rows: some of the training rows, where the plan has the facts of its data.
        changes: parameters by full name.
    """
    task = catalog.task(plan.task)
    params = {**plan.default_params(pipeline.name), **changes}
    return Setting(
        task=plan.task,
        model={
            "name": model.name,
            "path": model.path,
            "revision": model.revision,
            "config": model.config,
            "trust_remote_code": plan.trust_remote_code,
        },
        facts=plan.facts or task.facts(task.demo_rows(), plan.options),
        options=plan.options,
        params=params,
        adapter=pipeline.adapter,
        quantizer=pipeline.quantizer or "",
        regularize=str(params.get("regularize") or "none"),
        length=int(params.get("train.max_length") or 512),
        device=plan.device,
        threads=plan.threads,
        mapped=plan.train_memory is not None,
        rows=rows,
        revisions=plan.revisions,
    )
