"""Training steps on fake tensors: the memory of a configuration's tensors, without weights, data or waiting.

Imports torch: to be imported only where something is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autoft.attention_dropout import attention_in_blocks
from autoft.contracts import Row
from autoft.errors import AutoftError, kind_and_line
from autoft.estimates.quantized import quantized_skeleton, trace_quantized
from autoft.estimates.setting import Setting, Work, longest_features, own_params
from autoft.estimates.storages import KnownIntegers, StorageTracker, Timeline, empty_model, fake_model
from autoft.plugins import Catalog
from autoft.training import Regularization, checkpoint_gradients, optimizer_of, snapshot
from autoft.used_rows import leave_rows

__all__ = ["CannotTrace", "Trace", "run_steps", "skeleton", "trace_training"]


KNOWN_SHAPES = 5000
"""Entries of torch's cache of what an operation makes of shapes, beyond which it is emptied: it has no bound of its own.

A trace of two layers adds two hundred where only the batch differs, and makes use of as many.
"""


class CannotTrace(AutoftError):
    """A configuration cannot be traced without its weights; the message says why."""


@dataclass(frozen=True)
class Trace:
    """What a training keeps in memory.

    Attributes:
        timeline: from the loaded model to the second validation.
        parameters: of the model, the adapter's counted; of quantized weights as many as they stand for.
        trainable_parameters: those that are trained.
        weights_bytes: of all parameters and buffers.
        longest: elements of the batch's largest input, as ``(rows, tokens)``.
    """

    timeline: Timeline
    parameters: int
    trainable_parameters: int
    weights_bytes: int
    longest: tuple[int, ...]


def trace_training(setting: Setting, catalog: Catalog) -> Trace:
    """Return what the tensors of a training take, from two steps on fake tensors.

    The model is built by the task from its configuration, without reading weights; the adapter is attached by its own
    code, and the steps are those of :func:`autoft.training.train`: the optimiser that it makes, clipping, accumulation,
    bf16, checkpointing, and the copies of the best weights that it keeps. The task's own demo rows are repeated until
    they are as long as the setting says. Validation is no part of it.

    Raises:
        CannotTrace: a value is needed that only real weights have, or a library refuses fake tensors.
        ModelError: the model or its processor cannot be loaded.
    """
    work = Work.of(setting, catalog)
    batch = task_batch(work, setting.batch_size, setting.rows)
    try:
        return _traced(work, setting, batch)
    except (AutoftError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CannotTrace(f"{setting.adapter}: {kind_and_line(error)}") from error


def task_batch(work: Work, count: int, rows: Sequence[Row] = ()) -> dict[str, torch.Tensor]:
    """Return a training batch of the longest rows, made of those given or of the task's demo rows."""
    context = work.target.context
    return dict(work.task.collate(longest_features(work.task, context, count, rows), context))


def skeleton(work: Work, setting: Setting) -> torch.nn.Module:
    """Return the model of a setting with its adapter; the weights of its base are memory that nobody has written to."""
    target = work.target
    # The door of a quantizer is that of a device too: transformers then reads no weights.
    source = replace(target.source, load_kwargs={"device_map": "meta"})
    model = work.task.load_model(source, target.context)
    if work.quantizer is not None:
        model = quantized_skeleton(model, work.quantizer, target, own_params(setting.params, setting.quantizer))
    empty_model(model)
    return work.adapter.attach(model, target, own_params(setting.params, setting.adapter))


def _traced(work: Work, setting: Setting, batch: dict[str, torch.Tensor]) -> Trace:
    if len(FakeTensorMode.cache) > KNOWN_SHAPES:
        FakeTensorMode.cache_clear()
    model = skeleton(work, setting)
    parameters = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trace_quantized(model)
    # Some adapters keep tensors that are no weights, as the places that they train.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake_model(model, mode)
    known = KnownIntegers(mode)
    tracker = StorageTracker()
    with mode, known, tracker:
        tracker.add(*model.parameters(), *model.buffers())
        weights = tracker.timeline.left
        given = {name: known.fake(tensor) for name, tensor in batch.items()}
        tracker.add(*given.values())
        run_steps(model, work, setting, given, tracker.timeline)
    shape = max((tuple(tensor.shape) for tensor in batch.values()), key=len)
    return Trace(
        tracker.timeline,
        parameters=sum(count for count, _ in parameters),
        trainable_parameters=sum(count for count, trained in parameters if trained),
        weights_bytes=weights,
        longest=shape,
    )


def run_steps(
    model: torch.nn.Module, work: Work, setting: Setting, batch: dict[str, torch.Tensor], timeline: Timeline
) -> None:
    """Take a step as :func:`autoft.training.train` does, of which one has been taken before.

    What the first step leaves, the state of the optimiser and the copy of the best weights, is made without it: gradients
    are all that it needs. The copy of the second validation is made while the first is there.

    Args:
        model: as the adapter returned it.
        work: the setting with its names resolved.
        setting: what is trained.
        batch: of each micro-batch; copied, as a training makes a new one.
        timeline: gets a mark where the step begins, and where it ends.
    """
    params, task, context = setting.params, work.task, work.target.context
    learning_rate = float(params.get(f"{setting.adapter}.learning_rate") or 1e-4)
    model.train()
    if setting.tokens is not None:
        leave_rows(model, setting.tokens)
    # On a GPU it is another kernel, which the trace has no picture of.
    attention = attention_in_blocks() if setting.device == "cpu" else nullcontext()
    with attention, Regularization(work.regularizers, model, work.target) as regularization:
        optimizer = optimizer_of(
            [model],
            learning_rate,
            float(params.get("train.weight_decay") or 0.0),
            str(params.get("train.optimizer") or "adamw"),
            regularization.learning_rates(),
            work.adapter.parameter_groups(model, learning_rate, own_params(params, setting.adapter)) or (),
        )
        if params.get("train.gradient_checkpointing"):
            checkpoint_gradients(model)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        best = snapshot(model)
        timeline.mark("step")
        # From the second micro-batch on, gradients are there before the forward pass; more are alike.
        micro_batches = min(2, setting.accumulation)
        for _ in range(micro_batches):
            here = {name: tensor.clone() for name, tensor in batch.items()}
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting.precision == "bf16"):
                loss = regularization.loss(lambda given: task.loss(model, given, context), here)
            (loss / micro_batches if micro_batches > 1 else loss).backward()  # type: ignore[no-untyped-call]  # untyped
        torch.nn.utils.clip_grad_norm_(trained, float(params.get("train.max_grad_norm") or 1.0))
        optimizer.step()
        work.adapter.after_step(model, 1, 2)
        optimizer.zero_grad(set_to_none=True)
        regularization.after_step(1.0)
        timeline.mark("validation")
        best = snapshot(model)  # noqa: F841 - the one before has to live until this one is made
