"""The contracts of strategies, one a stage: data, load, adapt, train, compress.

``accepts`` and ``yields`` over a small set of model states decide which chains are legal, before anything is sampled.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from autoft.contracts.task import Column, ModelSource, Row, Task, TaskCard, TaskContext
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
    "Reach",
    "Recovery",
    "Refusal",
    "Regularizer",
    "Rounding",
    "State",
    "Strategy",
    "Target",
    "Teacher",
    "WeightFormat",
    "WeightPruner",
]

State = Literal["dense", "quantized", "adapted", "sparse", "reshaped", "factorized", "exported"]
"""What a model is at a point of a chain: plain weights, quantized weights, weights with an adapter on top, weights with
zeros, layers narrower than the configuration can say, layers that are two factors, or a graph of another runtime. A
compressor that yields ``dense`` leaves a reshaped or factorized model so."""

Stage = Literal["data", "load", "adapt", "train", "compress"]

Reach = Literal["head", "layers", "all"]
"""How far training reaches into a model: the task's head alone, something in its layers too, or every weight."""


@dataclass(frozen=True)
class Refusal:
    """Why a strategy cannot be used here, as one sentence that says what would change it."""

    reason: str


@dataclass(frozen=True)
class Rounding:
    """How numbers become integers: ``round(number / scale) + zero``, cut off below ``low`` and above ``high``.

    The range that a scale covers is that of the numbers which share it, and reaches to zero at least. Where ``low`` is
    ``-high`` it is made as wide on both sides, and ``zero`` is 0 (Jacob et al. 2018, arXiv:1712.05877, section 2.1).

    Attributes:
        low: the smallest integer.
        high: the largest integer.
        group: which numbers share a scale: all of a ``tensor``, a ``row`` (all that one output is made of, or one row of a
            table), or so many neighbours in a row.
    """

    low: int
    high: int
    group: Literal["tensor", "row"] | int = "tensor"


@dataclass(frozen=True)
class WeightFormat:
    """What a compressor that quantizes makes of a model's numbers, so that a training before it can round alike.

    Attributes:
        matrices: weights of linear layers.
        embeddings: embedding tables; None where they are left as they are.
        activations: what linear layers are given; None where it is left as it is.
        fixed_ranges: the ranges of activations are found before serving, and not in each call.
        heads: whether layers outside of the pretrained body are quantized too.
        pooled: whether layers with a bias that are given one vector an example, as poolers and classifiers, are too.
        traced: whether it quantizes the graph that :func:`autoft.strategies.onnx.graph_of` traces, which computes no states of a
            last layer that nothing reads; they have no part in the ranges of activations then.
    """

    matrices: Rounding
    embeddings: Rounding | None = None
    activations: Rounding | None = None
    fixed_ranges: bool = False
    heads: bool = True
    pooled: bool = True
    traced: bool = False


@dataclass(frozen=True)
class Teacher:
    """A trained model to learn from.

    Attributes:
        name: what tells it from others.
        model: answers with logits of the task, by the names that the student's have.
        context: how it reads rows.
    """

    name: str
    model: torch.nn.Module
    context: TaskContext


class Recovery(Protocol):
    """Trains a model that a compressor has made smaller, until it says again what the trained model said.

    Attributes:
        teacher: the trained model, as it was before any compression.
    """

    teacher: torch.nn.Module

    def best(self, count: int) -> Sequence[Teacher]:
        """Return the models of the best trials as they were trained, this one first; fewer where there are no more."""
        ...

    def named(self, name: str) -> Teacher:
        """Return a model that a recipe names: of a run, of its ``best`` folder, or of transformers.

        Raises:
            ModelError: there is none, or it is of another task, of other labels, or not fine-tuned.
        """
        ...

    def __call__(
        self,
        student: torch.nn.Module,
        target: Target,
        *,
        epochs: int,
        learning_rate: float,
        teaching: float = 0.5,
        matching: Sequence[tuple[str, str]] = (),
        after_step: Callable[[float], None] | None = None,
        teachers: Sequence[Teacher] = (),
        attending: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Train the student in its place, and leave it with the weights of its best validation.

        The loss is ``1 - teaching`` times the task's own and ``teaching`` times the distance of the student's logits from
        the teacher's: their mean squared difference (Kim et al. 2021, arXiv:2105.08919), over a vocabulary the KL divergence
        (Hinton et al. 2015, arXiv:1503.02531). Modules that are matched add the squared difference of what they return
        (Jiao et al. 2020, arXiv:1909.10351, equation 7). Where the student reads other tokens than the teacher, only logits
        of whole rows can be compared; without any, the task's own loss is what is left.

        Args:
            student: what is trained, all of its weights.
            target: of the student; its processor encodes the training rows.
            epochs: over the training rows.
            learning_rate: at its peak.
            teaching: weight of the teacher's logits, from 0 to 1.
            matching: names of modules of the student and of the teacher whose outputs, of one shape, are to be alike.
            after_step: told, after each step of the optimiser, the share of all steps that is taken, up to 1.
            teachers: whose logits to learn from in place of ``teacher``'s: the mean of all (Hinton et al. 2015, section 5;
                You et al. 2017, doi:10.1145/3097983.3098135). Modules are matched with the first one's.
            attending: names of attention modules of the student and of the teacher, of as many heads each, whose maps are to
                be alike (Jiao et al. 2020, equation 8, here after the softmax). Fused kernels keep none, so attention is
                computed without them meanwhile.

        Raises:
            ModelError: none of ``teachers`` reads the tokens of the student, and logits are of tokens.
        """
        ...


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
        recover: trains a model that was made smaller; None where only its cost is asked for, or no rows are there.
        quantizer: name of the strategy that quantizes the base; empty over a dense base. Adapters are told it.
        weight_format: how a later compressor of the chain quantizes; None where none does. Compressors are told it.
        learned: what :meth:`Adapter.learn_from` found in the training rows; None for all but the adapter.
        revisions: by name, the commits of hub models that parameters name (:attr:`Strategy.models`); empty while planning.
    """

    task: Task
    source: ModelSource
    config: Mapping[str, Any]
    context: TaskContext
    hardware: Hardware
    cache: Path | None = None
    recover: Recovery | None = None
    quantizer: str = ""
    weight_format: WeightFormat | None = None
    learned: Any = None
    revisions: Mapping[str, str] = field(default_factory=dict)


class Strategy(ABC):
    """Base of all strategies.

    Attributes:
        name: unique; parameters of the strategy are named ``<name>.<parameter>``.
        summary: one line.
        space: its parameters, without the name in front; an adapter's hold ``learning_rate``, which training reads.
        models: those of them that name models. Where one is on the hub, the run keeps the commit of its start, and
            :func:`autoft.pretrained.named_model` gives that.
        published: settings worth trying first, from the literature: ``{parameter: value}`` each.
        accepts: states that it can start from.
        yields: state that it leaves.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    stage: ClassVar[Stage]
    space: ClassVar[SearchSpace] = {}
    models: ClassVar[frozenset[str]] = frozenset()
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    accepts: ClassVar[frozenset[State]] = frozenset({"dense"})
    yields: ClassVar[State] = "dense"

    def check(self, target: Target) -> Refusal | None:
        """Return why this cannot be used on the target, or None. Runs while planning: no torch import here.

        ``target.context.params`` holds what the recipe pins of an augmenter or a compressor, by full name. An adapter is
        asked again for each configuration, whose values are then there.
        """
        return None


class Augmenter(Strategy):
    """Makes new training rows out of given ones.

    Attributes:
        rewrites: kinds of columns that it changes.
        invalidates: kinds of columns that a change would make wrong (a word swap breaks tags and spans); a task with
            such a column refuses the augmenter.
        realigns: kinds of target columns that it rewrites together with what they refer to, so that they say the same
            of the changed text: places of a span are counted anew, a replaced mention brings its own tags.
    """

    stage: ClassVar[Stage] = "data"
    rewrites: ClassVar[frozenset[str]] = frozenset({"text"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"tokens", "tags", "span"})
    realigns: ClassVar[frozenset[str]] = frozenset()

    def check(self, target: Target) -> Refusal | None:
        """Refuse tasks with a column of a kind that a change would make wrong."""
        for column in target.task.card.columns:
            if self.breaks(column, target.task.card):
                return Refusal(
                    f"{self.name}: would make the column {column.role!r} of {target.task.card.name} wrong, "
                    f"as its kind {column.kind!r} refers to words or places of the text"
                )
        return None

    def breaks(self, column: Column, card: TaskCard) -> bool:
        """Say whether a change would make this column of the card wrong; by default its kind alone decides."""
        return column.kind in self.invalidates

    def learn(self, rows: Sequence[Row], card: TaskCard) -> Any:
        """Return what is needed of the training rows (a vocabulary ...), found once a trial; None where nothing is."""
        return None

    def learn_from(self, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return what :meth:`augment` needs to know; a trial calls this one, and :meth:`learn` by default.

        Override it where the base model's files, the parameters or the run's cache are needed.

        Args:
            target: what the trial works upon, with processor and cache.
            rows: all training rows.
            params: of this augmenter, without its name in front.
        """
        return self.learn(rows, target.task.card)

    @abstractmethod
    def augment(
        self, row: Row, card: TaskCard, rng: random.Random, params: Mapping[str, Any], learned: Any = None
    ) -> Row:
        """Return a changed copy of the row; all randomness comes from ``rng``, ``learned`` from :meth:`learn_from`."""


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
    """Decides what is trained: all weights, the head, or small matrices beside frozen weights.

    Attributes:
        reach: how far training reaches; a regularizer may need more than the head.
        merges: what it learned goes into plain weights. Where it does not, the model stays in the state ``adapted``:
            only compressors that accept that state can follow, and :meth:`save` and :meth:`load` are the adapter's own.
        divisible: several processes can train with it, each with a part of the weights (``launcher`` in a recipe): from
            :meth:`attach` on weights are read in the model's own passes alone, and :meth:`after_step` does nothing.
    """

    stage: ClassVar[Stage] = "adapt"
    yields: ClassVar[State] = "adapted"
    reach: ClassVar[Reach] = "layers"
    merges: ClassVar[bool] = True
    divisible: ClassVar[bool] = False

    @property
    def leaves(self) -> State:
        """The state of the trained model, once :meth:`merge` was called."""
        return "dense" if self.merges else self.yields

    def positions(self, params: Mapping[str, Any]) -> int:
        """Return how many of the model's positions it takes for itself, which inputs have to leave free.

        Args:
            params: of this strategy, without its name in front.
        """
        return 0

    def rate_scale(self, target: Target) -> float:
        """Return how many times as high as in :attr:`space` and :attr:`published` learning rates are to be for a model.

        1 by default. The plan multiplies both, where the recipe gives no rates of its own.

        Args:
            target: with the model's ``config``; nothing is loaded.
        """
        return 1.0

    def learn_from(self, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return what :meth:`attach` needs to know of the training rows, as ``target.learned``; None by default.

        Called once a trial, before :meth:`attach`.

        Args:
            target: what the trial works upon, with processor and cache.
            rows: all training rows.
            params: of this strategy, without its name in front.
        """
        return None

    @abstractmethod
    def attach(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> torch.nn.Module:
        """Return the model with the right parameters trainable; the task's head always is."""

    @abstractmethod
    def merge(
        self, model: torch.nn.Module, base: Callable[[], torch.nn.Module] | None, target: Target
    ) -> torch.nn.Module:
        """Return a plain dense model with what was learned, or where it :attr:`merges` not, both over a dense base.

        Args:
            model: the trained model, as :meth:`attach` returned it.
            base: builds a dense base to merge into (16 bits or more); None where the model's own base is dense.
            target: as for :meth:`attach`.
        """

    def save(self, model: Any, folder: Path) -> None:
        """Write the files of a model that :meth:`merge` returned (not the processor's); by ``save_pretrained``."""
        model.save_pretrained(folder)

    def load(self, folder: Path, target: Target) -> Any:
        """Return the model that :meth:`save` wrote, on the context's device, in evaluation mode."""
        return _from_files(folder, target)

    def save_learned(self, model: Any, folder: Path) -> bool:
        """Write what was learned, without the base, in PEFT's format, and say whether there is such a thing.

        Called with the trained model before :meth:`merge`; the files stay as long as any of the trial's do, for
        ``autoft export --format adapter``. Nothing is written by default.

        Args:
            model: as :meth:`attach` returned it, trained.
            folder: not there yet.
        """
        return False

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


class Regularizer(Strategy):
    """Acts in the training step: on the loss, on learning rates, or on the weights themselves.

    Every hook does nothing by default. The order of calls in a training: :meth:`prepare` and :meth:`learning_rates` once,
    :meth:`loss` for each batch, :meth:`after_step` after each step of the optimiser, :meth:`averaged` before each
    validation, :meth:`finish` once. In a chain the first strategy is the innermost: the ``compute`` of the second is the
    first one's loss.

    Attributes:
        needs: how far the training has to reach for it; adapters that reach less are not tried with it.
        accepts: states of the base model that it works over.
    """

    stage: ClassVar[Stage] = "train"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense", "quantized"})
    needs: ClassVar[Reach] = "head"

    def prepare(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> Any:
        """Make the model ready, before the optimiser is made; what is returned is the ``state`` of the other hooks.

        Args:
            model: as the adapter returned it, on its device; changed in place.
            target: what is trained; ``context`` holds the trial's parameters.
            params: of this strategy, without its name in front.

        Raises:
            ModelError: the model has not what it acts upon.
        """
        return None

    def learning_rates(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> Mapping[str, float]:
        """Return what the learning rate is multiplied with, by parameter name; 1 for those left out."""
        return {}

    def loss(
        self,
        compute: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
        model: torch.nn.Module,
        batch: Mapping[str, torch.Tensor],
        target: Target,
        params: Mapping[str, Any],
        state: Any,
    ) -> torch.Tensor:
        """Return the scalar loss of a batch.

        Args:
            compute: the loss of a batch without this strategy; each call is a forward pass with a dropout of its own.
            model: what ``compute`` calls, in training mode.
            batch: as :meth:`Task.collate` made it, on the device.
            target: as for :meth:`prepare`.
            params: of this strategy.
            state: what :meth:`prepare` returned.
        """
        return compute(batch)

    def after_step(self, model: torch.nn.Module, params: Mapping[str, Any], state: Any, done: float) -> None:
        """Act after a step of the optimiser; ``done`` is the share of the training's steps that are taken, up to 1."""

    def averaged(self, model: torch.nn.Module, params: Mapping[str, Any], state: Any) -> Mapping[str, torch.Tensor]:
        """Return weights to validate and to ship in place of the trained ones, by parameter name; none by default."""
        return {}

    def finish(self, model: torch.nn.Module, state: Any) -> None:
        """Undo what :meth:`prepare` did to the model's modules; runs after errors too."""


class Compressor(Strategy):
    """Makes a trained model smaller or faster. Its files are what is measured and shipped.

    Attributes:
        calibration_rows: how many training rows it is given; None for all.
        workload: which of the workloads of a device's profile its files are timed by: ``torch``, ``torch-int8``,
            ``onnxruntime`` or ``onnxruntime-int8``; empty for a runtime of its own, whose latency on another device
            cannot be told.
        reads_weight_format: what it does depends on ``target.weight_format``, so that it is done anew before each format.
    """

    stage: ClassVar[Stage] = "compress"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense", "sparse"})
    calibration_rows: ClassVar[int | None] = 256
    workload: ClassVar[str] = "torch"
    reads_weight_format: ClassVar[bool] = False

    def trains(self, params: Mapping[str, Any]) -> bool:
        """Say whether it calls ``target.recover`` with these parameters.

        That takes time: chains that train are made of the best trial alone, where one that does not can fit the budget.
        """
        return False

    def weight_format(self, params: Mapping[str, Any]) -> WeightFormat | None:
        """Return how it quantizes with these parameters, for steps before it to train for; None where it does not.

        One whose format follows from the trained weights returns None too: nothing can be trained for it.
        """
        return None

    @abstractmethod
    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return the compressed model; leaves the given one as it is.

        Args:
            model: the trained model in one of the states that it accepts.
            target: what it works upon; ``context.processor`` is set.
            rows: training rows to calibrate with.
            params: of this strategy, without its name in front.
        """

    def transform(
        self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]
    ) -> tuple[Any, Target]:
        """Return the compressed model, and what further steps and its files work upon.

        One that changes the processor too, as a smaller vocabulary does, overrides this; by default the target stays.
        """
        return self.apply(model, target, rows, params), target

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
        return _from_files(folder, target)


def _from_files(folder: Path, target: Target) -> torch.nn.Module:
    source = ModelSource(name=target.source.name, path=str(folder), trust_remote_code=target.source.trust_remote_code)
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
    workload: ClassVar[str] = ""
