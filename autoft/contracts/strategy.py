"""The contracts of strategies, one a stage: data, load, adapt, compress.

``accepts`` and ``yields`` over a small set of model states decide which chains are legal, before anything is sampled.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from autoft.contracts.task import ModelSource, Row, Task, TaskCard, TaskContext
from autoft.hardware import Hardware
from autoft.space import SearchSpace

if TYPE_CHECKING:
    import torch

__all__ = [
    "Adapter",
    "Augmenter",
    "Compressor",
    "Exporter",
    "PostTrainingQuantizer",
    "Quantizer",
    "Refusal",
    "State",
    "Strategy",
    "Target",
    "WeightPruner",
]

State = Literal["dense", "quantized", "adapted", "sparse", "exported"]
"""What a model is at a point of a chain: plain weights, quantized weights, weights with an adapter on top, pruned
weights, or a graph of another runtime."""

Stage = Literal["data", "load", "adapt", "compress"]


@dataclass(frozen=True)
class Refusal:
    """Why a strategy cannot be used here, as one sentence that says what would change it."""

    reason: str


@dataclass(frozen=True)
class Target:
    """What a strategy works upon.

    Attributes:
        task: the task.
        source: the base model.
        config: the base model's ``config.json``, as ``{"model_type": "bert", ...}``.
        context: the task's context; its ``processor`` is None while the plan is made.
        hardware: the machine.
        cache: a folder of the run for what can be used again (exported graphs); None while the plan is made.
        quantizer: name of the strategy that quantizes the base; empty over a dense base. Adapters are told it.
    """

    task: Task
    source: ModelSource
    config: Mapping[str, Any]
    context: TaskContext
    hardware: Hardware
    cache: Path | None = None
    quantizer: str = ""


class Strategy(ABC):
    """Base of all strategies.

    Attributes:
        name: unique; parameters of the strategy are named ``<name>.<parameter>``.
        summary: one line.
        space: its parameters, without the name in front; an adapter's hold ``learning_rate``, which training reads.
        published: settings worth trying first, from the literature: ``{parameter: value}`` each.
        accepts: states that it can start from.
        yields: state that it leaves.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    stage: ClassVar[Stage]
    space: ClassVar[SearchSpace] = {}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    accepts: ClassVar[frozenset[State]] = frozenset({"dense"})
    yields: ClassVar[State] = "dense"

    def check(self, target: Target) -> Refusal | None:
        """Return why this cannot be used on the target, or None. Runs while planning: no torch import here.

        An adapter is asked again for each configuration, whose values are then in ``target.context.params``.
        """
        return None


class Augmenter(Strategy):
    """Makes new training rows out of given ones.

    Attributes:
        rewrites: kinds of columns that it changes.
        invalidates: kinds of columns that a change would make wrong (a word swap breaks tags and spans); a task with
            such a column refuses the augmenter.
    """

    stage: ClassVar[Stage] = "data"
    rewrites: ClassVar[frozenset[str]] = frozenset({"text"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"tokens", "tags", "span"})

    def check(self, target: Target) -> Refusal | None:
        """Refuse tasks with a column of a kind that a change would make wrong."""
        for column in target.task.card.columns:
            if column.kind in self.invalidates:
                return Refusal(
                    f"{self.name}: would make the column {column.role!r} of {target.task.card.name} wrong, "
                    f"as its kind {column.kind!r} refers to words or places of the text"
                )
        return None

    def learn(self, rows: Sequence[Row], card: TaskCard) -> Any:
        """Return what is needed of the training rows (a vocabulary ...), found once a trial; None where nothing is."""
        return None

    @abstractmethod
    def augment(
        self, row: Row, card: TaskCard, rng: random.Random, params: Mapping[str, Any], learned: Any = None
    ) -> Row:
        """Return a changed copy of the row; all its randomness comes from ``rng``, ``learned`` from :meth:`learn`."""


class Quantizer(Strategy):
    """Loads the base model with quantized weights, to train an adapter over."""

    stage: ClassVar[Stage] = "load"
    yields: ClassVar[State] = "quantized"

    @abstractmethod
    def load_kwargs(self, target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments for ``from_pretrained``, as ``quantization_config``."""

    def prepare(self, model: torch.nn.Module, target: Target) -> torch.nn.Module:
        """Return the loaded model made ready for training."""
        return model

    @abstractmethod
    def dequantize(self, model: torch.nn.Module, target: Target) -> torch.nn.Module:
        """Return the dense model whose weights are what the quantized ones stand for."""


class Adapter(Strategy):
    """Decides what is trained: all weights, the head, or small matrices beside frozen weights."""

    stage: ClassVar[Stage] = "adapt"
    yields: ClassVar[State] = "adapted"

    @abstractmethod
    def attach(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> torch.nn.Module:
        """Return the model with the right parameters trainable; the task's head always is."""

    @abstractmethod
    def merge(
        self, model: torch.nn.Module, base: Callable[[], torch.nn.Module] | None, target: Target
    ) -> torch.nn.Module:
        """Return a plain dense model with what was learned.

        Args:
            model: the trained model, as :meth:`attach` returned it.
            base: builds a dense base to merge into (16 bits or more); None where the model's own base is dense.
            target: as for :meth:`attach`.
        """

    def parameter_groups(
        self, model: torch.nn.Module, learning_rate: float, params: Mapping[str, Any]
    ) -> list[dict[str, Any]] | None:
        """Return parameters with a peak learning rate of their own, as ``{"params": [...], "lr": 1e-3}``, or None.

        Args:
            model: as :meth:`attach` returned it.
            learning_rate: what all other parameters take.
            params: of this strategy, without its name in front.
        """
        return None

    def after_step(self, model: torch.nn.Module, step: int, total: int) -> None:
        """Called after each step of the optimiser, gradients still there; does nothing unless it is overridden.

        Args:
            model: as :meth:`attach` returned it.
            step: how many steps there were before this one.
            total: how many there are in the whole training.
        """
        return


class Compressor(Strategy):
    """Makes a trained model smaller or faster. Its files are what is measured and shipped."""

    stage: ClassVar[Stage] = "compress"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense", "sparse"})

    @abstractmethod
    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return the compressed model; leaves the given one as it is.

        Args:
            model: the trained model in one of the states that it accepts.
            target: what it works upon; ``context.processor`` is set.
            rows: training rows to calibrate with.
            params: of this strategy, without its name in front.
        """

    @property
    def writes_itself(self) -> bool:
        """Whether :meth:`save` or :meth:`load` is its own: of a chain, such a compressor writes the files."""
        kind = type(self)
        return kind.save is not Compressor.save or kind.load is not Compressor.load

    def save(self, model: Any, folder: Path) -> None:
        """Write the model's files (not the processor's) into the folder."""
        model.save_pretrained(folder)

    def load(self, folder: Path, target: Target) -> Any:
        """Return the model that :meth:`save` wrote, on the context's device, callable with tensors by name."""
        source = ModelSource(
            name=target.source.name, path=str(folder), trust_remote_code=target.source.trust_remote_code
        )
        return target.task.load_model(source, target.context).to(target.context.device).eval()


class WeightPruner(Compressor):
    """Sets weights to zero or removes them."""

    yields: ClassVar[State] = "sparse"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense"})


class PostTrainingQuantizer(Compressor):
    """Stores weights in fewer bits after training."""

    yields: ClassVar[State] = "quantized"


class Exporter(Compressor):
    """Writes the model as a graph of another runtime."""

    yields: ClassVar[State] = "exported"
    runtime: ClassVar[str] = ""
