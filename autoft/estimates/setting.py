"""What a training is, as plain JSON: enough to trace it, or to run two steps of it in another process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from autoft.contracts import Adapter, ModelSource, Quantizer, Regularizer, Row, Target, Task, TaskCard, TaskContext
from autoft.hardware import Hardware
from autoft.plugins import Catalog
from autoft.pretrained import usable_positions

__all__ = ["Setting", "Work", "longest_features", "longest_rows"]


@dataclass(frozen=True)
class Setting:
    """One configuration of a training whose memory is asked for.

    Attributes:
        task: name of the task.
        model: ``{"name", "path", "revision", "config", "trust_remote_code"}`` of the base model.
        facts: what the task learned of the training rows.
        options: of the task.
        params: of the trial, by full name.
        adapter: its name.
        quantizer: its name; empty for a dense base.
        regularize: chain of regularizers, or ``none``.
        precision: ``fp32`` or ``bf16``.
        length: tokens of the longest row, as :meth:`Task.length` counts; at most what the model takes.
        device: ``cpu`` or ``cuda``.
        threads: of torch.
        mapped: tensors are mapped one by one (:data:`autoft.hardware.MAPPED`), so that the process has what its
            tensors need and no more.
        tokens: rows of the table of tokens that the data asks for, where a training has these alone
            (:mod:`autoft.used_rows`); None for the whole table.
        rows: some of the data that the facts are of; without, the facts are those of the task's demo rows.
        revisions: as of a :class:`Target`.
    """

    task: str
    model: Mapping[str, Any]
    facts: Mapping[str, Any]
    options: Mapping[str, Any]
    params: Mapping[str, Any]
    adapter: str
    quantizer: str = ""
    regularize: str = "none"
    precision: str = "fp32"
    length: int = 512
    device: str = "cpu"
    threads: int = 1
    mapped: bool = True
    tokens: int | None = None
    rows: Sequence[Row] = field(default_factory=list)
    revisions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Setting:
        """Rebuild it from :meth:`to_json`."""
        return cls(**value)

    def with_batch(self, batch_size: int, accumulation: int = 1) -> Setting:
        """Return it with another size of the micro-batches and of their number a step."""
        changed = {"train.batch_size": batch_size, "train.gradient_accumulation": accumulation}
        return replace(self, params={**self.params, **changed})

    @property
    def batch_size(self) -> int:
        """Rows of a micro-batch."""
        return int(self.params["train.batch_size"])

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return int(self.params.get("train.gradient_accumulation") or 1)


@dataclass(frozen=True)
class Work:
    """A setting with its names resolved.

    Attributes:
        task: it.
        target: what strategies work upon, the processor loaded.
        adapter: it.
        quantizer: it, or None.
        regularizers: the chain, each with its parameters.
    """

    task: Task
    target: Target
    adapter: Adapter
    quantizer: Quantizer | None
    regularizers: Sequence[tuple[Regularizer, Mapping[str, Any]]]

    @classmethod
    def of(cls, setting: Setting, catalog: Catalog) -> Work:
        """Resolve the names of a setting and load its processor.

        Raises:
            ModelError: the processor cannot be loaded.
        """
        task = catalog.task(setting.task)
        model = setting.model
        source = ModelSource(
            name=model["name"],
            path=model["path"],
            revision=model.get("revision"),
            trust_remote_code=bool(model.get("trust_remote_code")),
        )
        config = model["config"]
        longest = setting.length
        if (most := usable_positions(config)) is not None:
            longest = min(longest, most)
        context = TaskContext(setting.facts, setting.options, setting.params, longest, device=setting.device)
        context = replace(context, processor=task.load_processor(source, context))
        hardware = replace(Hardware.probe_cpu(), device=setting.device)
        target = Target(
            task, source, config, context, hardware, quantizer=setting.quantizer, revisions=setting.revisions
        )
        chain = [] if setting.regularize == "none" else setting.regularize.split("+")
        return cls(
            task,
            target,
            catalog.adapters[setting.adapter],
            catalog.quantizers[setting.quantizer] if setting.quantizer else None,
            [(catalog.regularizers[name], own_params(setting.params, name)) for name in chain],
        )


def own_params(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a strategy's parameters without its name in front."""
    return {key.removeprefix(f"{name}."): value for key, value in params.items() if key.startswith(f"{name}.")}


def longest_rows(task: Task, context: TaskContext, given: Sequence[Row] = ()) -> tuple[Row, Row]:
    """Return a row whose text is repeated until ``context.max_length`` tokens are reached, and the shortest row.

    Args:
        task: encodes them.
        context: with the processor.
        given: rows to take; default: the task's demo rows.
    """
    given = given or list(task.demo_rows())
    best, short = given[0], None
    length, times = -1, 1
    while True:
        rows = [_repeated(row, task.card, times) for row in given]
        lengths = [task.length(feature) for feature in task.encode(rows, context)]
        place = max(range(len(rows)), key=lengths.__getitem__)
        short = short or rows[min(range(len(rows)), key=lengths.__getitem__)]
        if lengths[place] <= length:
            break
        best, length = rows[place], lengths[place]
        if length >= context.max_length:
            break
        times *= 2
    return best, short


def longest_features(task: Task, context: TaskContext, count: int, given: Sequence[Row] = ()) -> list[dict[str, Any]]:
    """Return encoded rows of ``context.max_length`` tokens: their texts are repeated until they are cut.

    Of several rows the last is as short as the shortest of those given, so that there is something to pad: models take a
    mask then.

    Args:
        task: encodes them.
        context: with the processor.
        count: how many.
        given: rows to begin with; default: the task's demo rows.
    """
    long, short = task.encode(longest_rows(task, context, given), context)
    return [long] * (count - 1) + [short] if count > 1 else [long]


def _repeated(row: Row, card: TaskCard, times: int) -> Row:
    """Return a row with its texts and its lists of words so many times as long."""

    def longer(value: Any, kind: str) -> Any:
        if kind == "text" and isinstance(value, str):
            return " ".join([value] * times)
        if kind in {"tokens", "tags"} and isinstance(value, list | tuple):
            return list(value) * times
        return value

    kinds = {column.role: column.kind for column in card.columns}
    return {role: longer(value, kinds.get(role, "")) for role, value in row.items()}
