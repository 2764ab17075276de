"""Two real steps of a configuration in a process of their own, which is stopped before it takes more than it may.

``python -m autoft.estimates.probe`` reads a setting as JSON from standard input, and prints what was measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from autoft.data.features import Features
from autoft.errors import ModelError, out_of_memory
from autoft.estimates.setting import Setting, Work, longest_features, own_params
from autoft.hardware import MAPPED, current_resident_bytes
from autoft.processes import training_environment

if TYPE_CHECKING:
    import torch

__all__ = ["Probed", "loaded_model", "main", "probe"]

EPOCHS = 2
"""Of so many micro-batches as a step takes: the second step has what the first one left, and a copy of the weights."""
INTERVAL = 0.005
"""Seconds between two looks at how much memory the process has."""
OVER = 87
"""Exit code of a process that took more than it may."""


@dataclass(frozen=True)
class Probed:
    """What two steps took.

    Attributes:
        fits: they stayed within the limit.
        memory_bytes: at the peak, of the whole process (of the device where that is a GPU); where they did not fit, what
            there was when they were stopped.
        idle_bytes: of the process before the model was loaded.
        seconds: of all steps.
    """

    fits: bool
    memory_bytes: int
    idle_bytes: int = 0
    seconds: float = 0.0


def probe(setting: Setting, limit: int | None = None, *, timeout: float = 600.0) -> Probed:
    """Take two steps of a configuration, on its longest batch, in a fresh process.

    A process on the CPU watches its own resident memory and ends itself when that passes the limit, so that the machine
    never swaps. ``RLIMIT_AS`` counts addresses that nobody touches, of which torch reserves gigabytes, and
    ``RLIMIT_DATA`` leaves out the weights, which are mapped from their file. On a GPU torch itself refuses more
    (``set_per_process_memory_fraction``).

    Args:
        setting: what is trained.
        limit: bytes of training memory; None for no limit.
        timeout: seconds after which the process is stopped.

    Raises:
        ModelError: the steps failed for another reason than memory.
    """
    request = json.dumps({"setting": setting.to_json(), "limit": limit})
    environment = {**training_environment(setting.threads), **(MAPPED if setting.mapped else {})}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "autoft.estimates.probe"],
            input=request,
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{setting.adapter}: two steps took more than {timeout:.0f} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return Probed(**json.loads(lines[-1]))
    if done.returncode in {OVER, -9} and limit is not None:
        return Probed(fits=False, memory_bytes=int(lines[-1]) if lines and lines[-1].isdigit() else limit)
    reason = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
    raise ModelError(f"{setting.adapter}: two steps failed: {reason[0]}")


class _Alike(Features):
    """Features that are there once and read many times."""

    def __init__(self, features: Sequence[dict[str, Any]], length: int) -> None:
        self.features, self.lengths = features, np.full(len(features), length, dtype=np.int64)

    def __getitem__(self, index: Any) -> Any:
        return self.features[index]


def main() -> int:
    """Read a setting, take its steps, and print a :class:`Probed` as JSON."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.read())
    setting, limit = Setting.from_json(request["setting"]), request["limit"]
    if limit is not None and setting.device == "cpu":
        threading.Thread(target=_watch, args=(limit, out), daemon=True).start()
    figures = _measured(setting, limit)
    out.write(json.dumps(figures) + "\n")
    out.flush()
    return 0


def _watch(limit: int, out: Any) -> None:
    import psutil

    process = psutil.Process()
    while True:
        taken = process.memory_info().rss
        if taken > limit:
            out.write(f"{taken}\n")
            out.flush()
            os._exit(OVER)
        time.sleep(INTERVAL)


def _measured(setting: Setting, limit: int | None) -> dict[str, Any]:
    import torch

    # What a worker has loaded by the time it trains: its libraries take memory of the process too.
    from autoft.evaluation import import_for_models_in_torch, judged, references, score
    from autoft.plugins import load_plugins
    from autoft.processes import silence_libraries
    from autoft.training import Regularization, train

    silence_libraries()
    import_for_models_in_torch()
    torch.set_num_threads(setting.threads)
    catalog = load_plugins()
    work = Work.of(setting, catalog)
    task, target, params = work.task, work.target, {**setting.params, "train.epochs": EPOCHS}
    context = target.context
    metrics = catalog.metrics_of(task)
    rows = list(setting.rows or task.demo_rows())
    refs = references(task, rows, context)
    features = longest_features(task, context, setting.batch_size * setting.accumulation, rows)
    idle = current_resident_bytes()
    if limit is not None and setting.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / torch.cuda.mem_get_info()[1]))
    model = loaded_model(work, setting)
    validations = 0

    def validate(trained: Any) -> dict[str, float]:
        nonlocal validations
        validations += 1
        score(metrics, judged(task, trained, rows, context), refs, context)
        # Each better than the one before, so that each leaves a copy of the weights.
        return {"figure": float(validations)}

    rate = float(params.get(f"{setting.adapter}.learning_rate") or 1e-4)
    own = own_params(params, setting.adapter)
    try:
        with Regularization(work.regularizers, model, target) as regularization:
            outcome = train(
                model,
                task=task,
                context=replace(context, params=params),
                features=_Alike(features, context.max_length),
                rows=[{}] * len(features),
                augmentation=None,
                learning_rate=rate,
                precision=setting.precision,
                objective="figure",
                higher_is_better=True,
                validate=validate,
                on_validation=lambda point: False,
                on_progress=lambda progress: None,
                regularization=regularization,
                groups=work.adapter.parameter_groups(model, rate, own),
                after_step=work.adapter.after_step,
                trim=setting.mapped,
            )
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return {"fits": False, "memory_bytes": limit or 0, "idle_bytes": idle, "seconds": 0.0}
    fits = limit is None or outcome.memory_bytes <= limit
    return {"fits": fits, "memory_bytes": outcome.memory_bytes, "idle_bytes": idle, "seconds": outcome.seconds}


def loaded_model(work: Work, setting: Setting) -> torch.nn.Module:
    """Return the model of a setting, as a trial makes it."""
    target, source = work.target, work.target.source
    if work.quantizer is not None:
        kwargs = work.quantizer.load_kwargs(target, own_params(setting.params, setting.quantizer))
        source = replace(source, load_kwargs=kwargs)
    model = work.task.load_model(source, target.context)
    if work.quantizer is not None:
        model = work.quantizer.prepare(model, target)
    attached: torch.nn.Module = work.adapter.attach(model, target, own_params(setting.params, setting.adapter))
    _read_tables(attached)
    return attached if work.quantizer is not None else attached.to(setting.device)


def _read_tables(model: torch.nn.Module) -> None:
    """Read frozen embedding tables, which are mapped from their file, as a training on many words does and two steps do not.

    A page takes memory from when it is first read, and Linux maps up to 2 MiB around it.
    """
    from torch.nn import Embedding

    for module in model.modules():
        if isinstance(module, Embedding) and not module.weight.requires_grad:
            module.weight.sum()


if __name__ == "__main__":
    sys.exit(main())
