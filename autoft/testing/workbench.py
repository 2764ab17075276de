"""Where checks do their work: one task on one tiny model, prepared once and shared by all checks of it."""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, overload
from unittest import SkipTest

from autoft.artifact import LoadedModel, load, save_artifact
from autoft.contracts import (
    Adapter,
    Compressor,
    CostMetric,
    ModelSource,
    Prediction,
    QualityMetric,
    Row,
    Strategy,
    Target,
    Task,
    TaskContext,
    Teacher,
)
from autoft.errors import kind_and_line
from autoft.evaluation import judged, references
from autoft.hardware import Hardware
from autoft.plans.efforts import TRAIN_SPACE
from autoft.plugins import Catalog
from autoft.pretrained import usable_positions
from autoft.testing.models import PLANNED, Kind, kind_of, texts_of, tiny_model

if TYPE_CHECKING:
    import torch

__all__ = ["TOLERANCE", "Call", "CheckFailed", "Trained", "Workbench", "expect", "fail", "skip"]

TOLERANCE = 1e-3
"""How much figures of the same model may differ between batches and after it was written and read, relative to 1."""

STEPS = 400
"""Steps after which a model that has not learned its rows by heart will not."""
LEARNED = 0.005
"""Share of the first loss at which learning by heart ends."""
SETTLED = 3
"""Steps in a row that such a loss has to last."""
PATIENCE = 80
"""Steps without a loss that is lower by a twentieth, after which it ends too: some losses have a floor."""

Value = TypeVar("Value")


class CheckFailed(AssertionError):
    """Something does not do what the contract says; the message says what."""


def fail(message: str) -> NoReturn:
    """Fail the check."""
    raise CheckFailed(message)


def expect(condition: object, message: str) -> None:
    """Fail the check with this message unless the condition holds."""
    if not condition:
        raise CheckFailed(message)


def skip(reason: str) -> NoReturn:
    """End the check, for there is nothing to check; pytest and unittest know this exception."""
    raise SkipTest(reason)


class prepared(Generic[Value]):
    """A property that is computed once. Where that fails, the first check that asks fails, and the others are skipped."""

    def __init__(self, make: Callable[[Any], Value]) -> None:
        self.make = make
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, bench: None, owner: type) -> prepared[Value]: ...

    @overload
    def __get__(self, bench: Workbench, owner: type) -> Value: ...

    def __get__(self, bench: Workbench | None, owner: type) -> prepared[Value] | Value:
        if bench is None:
            return self
        if self.name in bench.failures:
            skip(bench.failures[self.name])
        if self.name not in bench.made:
            try:
                bench.made[self.name] = self.make(bench)
            except SkipTest as reason:
                bench.failures[self.name] = str(reason)
                raise
            except Exception as error:
                bench.failures[self.name] = f"needs {self.name}, which failed: {kind_and_line(error)}"
                raise
        value: Value = bench.made[self.name]
        return value


@dataclass(frozen=True)
class Call:
    """A check function and what it is called with; ``of`` stands in brackets behind its name."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]
    of: str = ""


@dataclass(frozen=True)
class Trained:
    """A model that has learned the demo rows by heart, in evaluation mode.

    Attributes:
        model: it.
        losses: before each step, and at the end.
    """

    model: torch.nn.Module
    losses: tuple[float, ...]


class BenchRecovery:
    """How a bench trains what a compressor left of a model: on the demo rows, without the teacher's help."""

    def __init__(self, bench: Workbench, teacher: torch.nn.Module) -> None:
        self.bench, self.teacher = bench, teacher

    def best(self, count: int) -> Sequence[Teacher]:
        """Return the teacher, the only trained model here."""
        return [Teacher("", self.teacher, self.bench.context)]

    def named(self, name: str) -> Teacher:
        """Return the teacher under the name."""
        return Teacher(name, self.teacher, self.bench.context)

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
        """Train the student in its place, and fail where modules that are to be alike are not there.

        Raises:
            AttributeError: a model has no module of this name.
        """
        for mine, theirs in matching:
            student.get_submodule(mine)
            self.teacher.get_submodule(theirs)
        told = (lambda model, step, total: after_step((step + 1) / total)) if after_step else None
        self.bench.train(student, STEPS, context=target.context, after_step=told)


class Workbench:
    """A task on a tiny model.

    Args:
        task: an instance, installed or not.
        catalog: what plugins offer.
        strategies: offered too, installed or not.
        kind: of the tiny model; by default what the card's architecture asks for.
        model: the folder of a model to use instead of a tiny one.

    Its properties are made when a check first asks for them, and are not to be changed: copy a model before.
    """

    def __init__(
        self,
        task: Task,
        catalog: Catalog,
        *,
        strategies: Sequence[Strategy] = (),
        kind: Kind | None = None,
        model: str | Path | None = None,
    ) -> None:
        self.task, self.own_model = task, model
        self.kind: Kind = kind or kind_of(task.card.architecture)
        self.catalog = replace(
            catalog,
            tasks=MappingProxyType({**catalog.tasks, task.card.name: task}),
            strategies=MappingProxyType({**catalog.strategies, **{strategy.name: strategy for strategy in strategies}}),
        )
        self.made: dict[str, Any] = {}
        self.failures: dict[str, str] = {}
        self.options = {option.name: option.default for option in task.card.options}
        self.params: dict[str, Any] = {
            **{name: domain.default for name, domain in TRAIN_SPACE.items()},
            **{name: domain.default for name, domain in task.space().items()},
            "train.dropout": 0.0,
        }

    # ------------------------------------------------------------------------------------------- before torch

    @property
    def rows(self) -> list[Row]:
        """The demo rows, a fresh copy at each call."""
        return copy.deepcopy(self.demo)

    @property
    def inputs(self) -> list[Row]:
        """The demo rows without targets."""
        roles = [column.role for column in self.task.card.inputs]
        return [{role: row[role] for role in roles if role in row} for row in self.rows]

    @prepared
    def demo(self) -> list[Row]:
        """The demo rows."""
        return [dict(row) for row in self.task.demo_rows()]

    @prepared
    def facts(self) -> dict[str, Any]:
        """What the task learns of the demo rows, as it is read back from JSON."""
        facts: dict[str, Any] = json.loads(json.dumps(self.task.facts(self.rows, self.options)))
        return facts

    @property
    def planning(self) -> Target:
        """The target as it is while a plan is made: no facts, no processor, nothing of torch."""
        config = PLANNED[self.kind]
        if self.own_model is not None:
            config = json.loads((Path(self.own_model) / "config.json").read_text(encoding="utf-8"))
        context = TaskContext({}, self.options, {}, POSITIONS_WHILE_PLANNING)
        return Target(self.task, ModelSource("tiny", "tiny"), config, context, Hardware.probe_cpu())

    @property
    def metrics(self) -> dict[str, QualityMetric]:
        """The task's metrics, the objective first."""
        return self.catalog.metrics_of(self.task)

    @property
    def objective(self) -> QualityMetric:
        """The metric that the card names first; the check fails where it is not installed."""
        name = self.task.card.metrics[0]
        if name not in self.catalog.quality_metrics:
            fail(f"the objective {name!r} is offered by no installed plugin")
        return self.catalog.quality_metrics[name]

    # ---------------------------------------------------------------------------------------------- the model

    @prepared
    def folder(self) -> Path:
        """A folder that goes when the bench does."""
        folder = Path(tempfile.mkdtemp(prefix="autoft-check-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def new_folder(self) -> Path:
        """Return an empty folder inside of :attr:`folder`."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    @prepared
    def source(self) -> ModelSource:
        """The tiny model, its tokenizer trained on the demo rows."""
        path = self.own_model
        if path is None:
            path = tiny_model(self.kind, self.folder / "model", texts_of(self.rows))
        return ModelSource("tiny", str(path))

    @prepared
    def config(self) -> Mapping[str, Any]:
        """The model's ``config.json``."""
        config: dict[str, Any] = json.loads((Path(self.source.path) / "config.json").read_text(encoding="utf-8"))
        return config

    @prepared
    def context(self) -> TaskContext:
        """With facts, default options and parameters, and the processor; dropout is off."""
        wanted = int(self.params["train.max_length"])
        most = min(wanted, usable_positions(self.config) or wanted)
        context = TaskContext(self.facts, self.options, self.params, most)
        return replace(context, processor=self.task.load_processor(self.source, context))

    @prepared
    def target(self) -> Target:
        """What strategies work upon; with a cache."""
        hardware = Hardware.probe_cpu()
        return Target(self.task, self.source, self.config, self.context, hardware, self.folder / "cache")

    def load_model(self, **load_kwargs: Any) -> Any:
        """Return a fresh model with the task's head, in evaluation mode; always with the same weights."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            source = replace(self.source, load_kwargs=load_kwargs)
            return self.task.load_model(source, self.context).eval()

    @prepared
    def untrained(self) -> Any:
        """The model with the task's head, as it is before training."""
        return self.load_model()

    @prepared
    def features(self) -> list[dict[str, Any]]:
        """The encoded demo rows."""
        return list(self.task.encode(self.rows, self.context))

    def collate(self, features: Sequence[Mapping[str, Any]], context: TaskContext | None = None) -> dict[str, Any]:
        """Return a training batch; what a task draws from torch's generator is drawn alike each time."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return dict(self.task.collate(copy.deepcopy(features), context or self.context))

    def batch(self) -> dict[str, Any]:
        """Return all demo rows as one training batch."""
        return self.collate(self.features)

    def loss(self, model: Any) -> float:
        """Return the loss of all demo rows, in evaluation mode, any sampling in it repeated."""
        import torch

        model.eval()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            return float(self.task.loss(model, self.batch(), self.context))

    @prepared
    def trained(self) -> Trained:
        """A model that has seen nothing but the demo rows, some hundred times."""
        model = copy.deepcopy(self.untrained)
        losses = self.train(model, STEPS)
        return Trained(model, (*losses, self.loss(model)))

    def train(
        self,
        model: Any,
        steps: int,
        learning_rate: float = 5e-3,
        *,
        groups: Sequence[Mapping[str, Any]] = (),
        after_step: Callable[[Any, int, int], None] | None = None,
        bf16: bool = False,
        context: TaskContext | None = None,
    ) -> list[float]:
        """Train on all demo rows at once, by AdamW, until they are known by heart.

        Args:
            model: its trainable parameters are changed; left in evaluation mode.
            steps: at most.
            learning_rate: after ten steps, rising evenly until then.
            groups: parameters with a learning rate of their own, as an adapter gives them.
            after_step: told the model, the step and how many there are, as an adapter is.
            bf16: compute in bfloat16, by autocast.
            context: where the model's processor is another than the bench's.

        Returns:
            the loss before each step.
        """
        import torch

        batch = self.collate(self.task.encode(self.rows, context), context) if context else self.batch()
        context = context or self.context
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        own = {id(one): float(group["lr"]) for group in groups for one in group["params"]}
        rates = dict.fromkeys([learning_rate, *own.values()])
        optimizer = torch.optim.AdamW(
            [
                {"params": [one for one in weights if own.get(id(one), learning_rate) == rate], "lr": rate}
                for rate in rates
            ],
            weight_decay=0.0,
        )
        peaks = [group["lr"] for group in optimizer.param_groups]
        losses: list[float] = []
        best, since = float("inf"), 0
        model.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for step in range(steps):
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * min(1.0, (step + 1) / 10)
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = self.task.loss(model, dict(batch), context)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                if after_step is not None:
                    after_step(model, step, steps)
                losses.append(float(loss.detach()))
                since = 0 if losses[-1] < 0.95 * best else since + 1
                best = min(best, losses[-1])
                # Not at the first loss that is low: one that swings may only be passing through.
                known = len(losses) >= SETTLED and all(
                    abs(loss) <= LEARNED * abs(losses[0]) for loss in losses[-SETTLED:]
                )
                if known or since >= PATIENCE:
                    break
        model.zero_grad(set_to_none=True)
        model.eval()
        return losses

    # --------------------------------------------------------------------------------------------- predictions

    @prepared
    def predictions(self) -> list[Prediction]:
        """What the trained model says of the demo rows, figures of the targets added."""
        return self.judge(self.trained.model)

    @prepared
    def first_predictions(self) -> list[Prediction]:
        """What the untrained model says of the demo rows."""
        return self.judge(self.untrained)

    @prepared
    def references(self) -> list[Any]:
        """What predictions for the demo rows are compared with."""
        return references(self.task, self.rows, self.context)

    def judge(self, model: Any, context: TaskContext | None = None) -> list[Prediction]:
        """Return predictions for the demo rows, figures of the targets added."""
        return judged(self.task, model, self.rows, context or self.context)

    def score(self, predictions: Sequence[Prediction]) -> float:
        """Return the objective of predictions for the demo rows."""
        return float(self.objective.score(predictions, self.references, self.context))

    @prepared
    def best_known(self) -> float | None:
        """The objective of perfect predictions, as far as they can be made; None where they cannot.

        The contract does not say what a metric's best value is, nor what a perfect prediction looks like. So references
        are put into predictions, under one name after the other, and the best of what can be scored so is taken.
        """
        forms: list[list[Any]] = [self.references]
        if all(isinstance(one, list) and one for one in self.references):
            forms.append([one[0] for one in self.references])
        figures = []
        for name in self.predictions[0]:
            for values in forms:
                perfect = [{**said, name: value} for said, value in zip(self.predictions, values, strict=True)]
                # Most of these are nonsense, which a metric may answer with any error.
                with suppress(Exception):
                    figures.append(self.score(perfect))
        figures = [figure for figure in figures if math.isfinite(figure)]
        if not figures:
            return None
        return max(figures) if self.objective.higher_is_better else min(figures)

    def gain(self, value: float) -> float:
        """Return how far an objective is on the way from the untrained model's (0) to the trained one's (1)."""
        first, last = self.score(self.first_predictions), self.score(self.predictions)
        return 1.0 if last == first else (value - first) / (last - first)

    # ------------------------------------------------------------------------------------------------- files

    def write_and_read(
        self, model: Any, writer: Compressor | Adapter | None, variant: str, target: Target | None = None
    ) -> LoadedModel:
        """Write a model as a trial does, and return it as it is loaded back.

        Args:
            model: of the task, perhaps compressed.
            writer: who writes it; None for transformers, and for pruners that leave it to transformers.
            variant: a name for what was done to it.
            target: where a compressor changed what the model reads.
        """
        folder, target = self.new_folder(), target or self.target
        save_artifact(folder, model, target, writer=writer, variant=variant, objective=self.task.card.metrics[0])
        return load(folder, catalog=self.catalog, device="cpu")


POSITIONS_WHILE_PLANNING = 512


def subject_name(subject: Task | Strategy | CostMetric) -> str:
    """Return the name of what is checked."""
    return subject.card.name if isinstance(subject, Task) else subject.name
