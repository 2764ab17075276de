"""What a process that serves a model keeps in memory, from one request on fake tensors. Imports torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autoft.contracts import Row
from autoft.errors import AutoftError, kind_and_line
from autoft.estimates.setting import Setting, Work, longest_rows
from autoft.estimates.steps import CannotTrace
from autoft.estimates.storages import Event, KnownIntegers, StorageTracker, fake_model
from autoft.plugins import Catalog
from autoft.strategies.dynamic_int8 import int8_places

__all__ = ["Request", "request_rows", "trace_request"]


@dataclass(frozen=True)
class Request:
    """What serving keeps in memory beside the process itself.

    Attributes:
        weights_bytes: of the loaded model: weights, buffers, and copies that kernels make of them.
        tables_bytes: of embedding tables that nothing else reads: a page of them takes memory once a request asks for one
            of its rows.
        events: storages that a request makes and frees, in their order.
    """

    weights_bytes: int
    tables_bytes: int
    events: Sequence[Event]


def trace_request(setting: Setting, catalog: Catalog, variant: str, batch_size: int) -> Request:
    """Return what the tensors of a request take, from the task's own prediction on fake tensors.

    Args:
        setting: of :func:`autoft.estimates.verdicts.serving_setting`.
        catalog: what plugins offer.
        variant: one of :data:`autoft.estimates.verdicts.TRACED`.
        batch_size: rows of the request.

    Raises:
        CannotTrace: the task asks for more than the outputs of one forward pass, as generation does, or a library refuses
            fake tensors.
        ModelError: the model or its processor cannot be loaded.
    """
    work = Work.of(setting, catalog)
    rows = request_rows(work, batch_size, setting.rows)
    try:
        model = _OnFakeTensors(_served(work, variant))
        weights, loaded = model.tracker.timeline.left, len(model.tracker.timeline.events)
        tables = _tables_bytes(model.model)
        work.task.predict(model, rows, work.target.context, batch_size)
    except (AutoftError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CannotTrace(f"{variant}: {kind_and_line(error)}") from error
    return Request(weights, tables, model.tracker.timeline.events[loaded:])


def request_rows(work: Work, count: int, given: Sequence[Row] = ()) -> list[Row]:
    """Return rows without targets that are as long as the setting says."""
    targets = {column.role for column in work.task.card.targets}
    long, short = longest_rows(work.task, work.target.context, given)
    rows = [long] * (count - 1) + [short] if count > 1 else [long]
    return [{role: value for role, value in row.items() if role not in targets} for row in rows]


class _OnFakeTensors:
    """A model as tasks know exported ones: called with tensors by name; its answers are zeros of the right shapes."""

    def __init__(self, model: nn.Module) -> None:
        self.mode = FakeTensorMode()
        self.model = fake_model(model, self.mode).eval()
        self.known, self.tracker = KnownIntegers(self.mode), StorageTracker()
        with self.mode:
            self.tracker.add(*model.parameters(), *model.buffers())

    def __call__(self, **tensors: torch.Tensor) -> SimpleNamespace:
        with self.mode, self.known, self.tracker:
            given = {name: self.known.fake(tensor) for name, tensor in tensors.items()}
            self.tracker.add(*given.values())
            outputs = self.model(**given)
            shapes = {name: (value.shape, value.dtype) for name, value in outputs.items() if torch.is_tensor(value)}
            del given, outputs
        return SimpleNamespace(**{name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()})


def _served(work: Work, variant: str) -> nn.Module:
    """Return the model that a variant's files are loaded into, on the meta device."""
    source = replace(work.target.source, load_kwargs={"device_map": "meta"})
    model: Any = work.task.load_model(source, work.target.context)
    if variant == "dynamic-int8":
        for path, module in int8_places(model):
            model.set_submodule(path, _int8_layer(module))
    served: nn.Module = model.to(torch.bfloat16 if variant == "bf16-weights" else torch.float32)
    return served


def _tables_bytes(model: nn.Module) -> int:
    users = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding | _Int8Table)]
    return sum(weight.untyped_storage().nbytes() for weight in tables if users[id(weight)] < 2)


def _int8_layer(module: Any) -> nn.Module:
    rows, columns = module.weight.shape
    if isinstance(module, nn.Embedding):
        return _Int8Table(rows, columns)
    if not isinstance(module, nn.Linear):
        # Conv1D of GPT-2.
        rows, columns = columns, rows
    return _Int8Linear(rows, columns, module.bias is not None)


class _Int8Table(nn.Module):
    """The memory of :class:`autoft.strategies.int8_layers.Int8Embedding`."""

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(rows, width, dtype=torch.int8, device="meta"))
        self.register_buffer("scale", torch.empty(rows, device="meta"))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[ids].float() * self.scale[ids].unsqueeze(-1)


class _Int8Linear(nn.Module):
    """The memory of :class:`autoft.strategies.int8_layers.Int8Linear`: what the file holds, and a copy that is packed."""

    def __init__(self, rows: int, columns: int, bias: bool) -> None:
        super().__init__()
        self.rows = rows
        for name in ("weight", "packed"):
            self.register_buffer(name, torch.empty(rows, columns, dtype=torch.int8, device="meta"))
        self.register_buffer("scale", torch.empty(rows, device="meta"))
        if bias:
            self.register_buffer("bias", torch.empty(rows, device="meta"))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rounded = torch.empty(inputs.shape, dtype=torch.uint8)
        result = torch.empty((*inputs.shape[:-1], self.rows))
        del rounded
        return result
