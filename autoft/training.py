"""The one training loop, on Accelerate: optimisers, schedules, clipping, accumulation, bf16, length-grouped batches.

Regularizers act in its steps through :class:`Regularization`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from autoft.checkpoints import Checkpoints, chance, optimizer_state, put_chance, put_optimizer_state
from autoft.contracts import Row, Task, TaskCard, TaskContext
from autoft.contracts.strategy import Augmenter, Regularizer, Target
from autoft.data.batches import grouped_batches
from autoft.data.features import Features
from autoft.errors import ModelError, out_of_memory
from autoft.hardware import peak_resident_bytes, reset_peak_resident
from autoft.optimizers import Group, make_optimizer
from autoft.processes import trim_heap
from autoft.ranks import Ranks, local
from autoft.rundir import CurvePoint
from autoft.strategies.head_only import find_head
from autoft.strategies.pictures import shown_picture

if TYPE_CHECKING:
    import torch

__all__ = [
    "Augmentation",
    "Auxiliary",
    "Progress",
    "Regularization",
    "TrainOutcome",
    "checkpoint_gradients",
    "learning_rate_factor",
    "optimizer_of",
    "share_body",
    "snapshot",
    "train",
]


@dataclass(frozen=True)
class Augmentation:
    """How training rows are changed: each row by chance, anew in every epoch; ``then`` changes it further."""

    augmenter: Augmenter
    params: Mapping[str, Any]
    learned: Any
    probability: float = 0.5
    then: Augmentation | None = None

    def change(self, row: Row, card: TaskCard, rng: random.Random) -> Row:
        """Return the row changed."""
        changed = self.augmenter.augment(row, card, rng, self.params, self.learned)
        return self.then.change(changed, card, rng) if self.then else changed

    def rows(self, rows: Sequence[Row], card: TaskCard, rng: random.Random) -> list[Row]:
        """Return the rows, some of them changed."""
        return [self.change(row, card, rng) if rng.random() < self.probability else row for row in rows]

    def samples(self, rows: Sequence[Row], card: TaskCard, count: int = 10) -> list[dict[str, str]]:
        """Return ``{"role", "before", "after"}`` of the first rows that a change alters, for people to look at.

        Args:
            rows: training rows; the first 200 are tried.
            card: says which columns they have.
            count: how many to return at most.
        """
        found: list[dict[str, str]] = []
        for number, row in enumerate(rows[:200]):
            changed = self.change(row, card, random.Random(number))
            for column in card.inputs:
                before, after = row.get(column.role), changed.get(column.role)
                if before != after:
                    shown = shown_picture if column.kind == "image" else _shown_text
                    found.append({"role": column.role, "before": shown(before), "after": shown(after)})
                    break
            if len(found) == count:
                break
        return found


@dataclass(frozen=True)
class Auxiliary:
    """A further task that is trained along, with a model that shares its body with the trained one.

    Attributes:
        task: gives batches and the loss.
        context: its facts and options, with the trial's parameters.
        model: on the device; what it does not share is trained with it.
        features: its encoded training rows.
        steps: of this task for each step of the task itself.
        weight: of its loss.
    """

    task: Task
    context: TaskContext
    model: torch.nn.Module
    features: Features
    steps: float
    weight: float

    def batches(self, batch_size: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        """Yield batches without end, each row once before any comes again."""
        while True:
            for indices in grouped_batches(self.features.lengths, batch_size, rng):
                yield self.task.collate([self.features[int(i)] for i in indices], self.context)


class Regularization:
    """A chain of regularizers at work on a model; a context, at whose end the model's modules are what they were.

    Args:
        chain: each with its parameters; the first is the innermost.
        model: as the adapter returned it.
        target: what is trained.
    """

    def __init__(
        self, chain: Sequence[tuple[Regularizer, Mapping[str, Any]]], model: torch.nn.Module, target: Target
    ) -> None:
        self.chain, self.model, self.target = chain, model, target
        self.states: list[Any] = []

    def __enter__(self) -> Regularization:
        try:
            for one, params in self.chain:
                self.states.append(one.prepare(self.model, self.target, params))
        except BaseException:
            # Whatever it is, an interruption too: it goes on its way once the modules are what they were.
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for (one, _), state in reversed(list(zip(self.chain, self.states, strict=False))):
            one.finish(self.model, state)

    def learning_rates(self) -> dict[str, float]:
        """Return what the learning rate is multiplied with, by parameter name; 1 for those left out."""
        factors: dict[str, float] = {}
        for one, params in self.chain:
            for name, factor in one.learning_rates(self.model, self.target, params).items():
                factors[name] = factors.get(name, 1.0) * factor
        return factors

    def loss(
        self, compute: Callable[[Mapping[str, torch.Tensor]], torch.Tensor], batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return the loss of a batch, ``compute`` being the task's own."""
        for (one, params), state in zip(self.chain, self.states, strict=True):
            compute = self._over(compute, one, params, state)
        return compute(batch)

    def _over(
        self,
        compute: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
        one: Regularizer,
        params: Mapping[str, Any],
        state: Any,
    ) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
        return lambda batch: one.loss(compute, self.model, batch, self.target, params, state)

    def after_step(self, done: float) -> None:
        """Tell each that a step was taken; ``done`` is the share of all steps."""
        for (one, params), state in zip(self.chain, self.states, strict=True):
            one.after_step(self.model, params, state, done)

    def averaged(self) -> dict[str, torch.Tensor]:
        """Return the weights to validate and ship in place of the trained ones; of several averages the last."""
        weights: dict[str, torch.Tensor] = {}
        for (one, params), state in zip(self.chain, self.states, strict=True):
            weights.update(one.averaged(self.model, params, state))
        return weights

    def put_states(self, states: Sequence[Any]) -> None:
        """Have each go on from a state that was written down; what it made of the model is there already.

        Args:
            states: as :attr:`states` were, of mappings, numbers and tensors; these go to where the model is.
        """
        device = next(self.model.parameters()).device
        for place, state in enumerate(states):
            if isinstance(state, Mapping):
                # In place: what was put into the model may hold it.
                self.states[place].clear()
                self.states[place].update(_copied(state, device))
            else:
                self.states[place] = _copied(state, device)


@dataclass(frozen=True)
class Progress:
    """Where a training is, for the display: samples seen of how many, and samples a second."""

    samples: int
    total: int
    rate: float


@dataclass
class TrainOutcome:
    """What a training left; the model holds the weights of the best checkpoint."""

    curve: list[CurvePoint] = field(default_factory=list)
    best: CurvePoint | None = None
    stopped: bool = False
    """The callback asked to stop."""
    out_of_time: bool = False
    seconds: float = 0.0
    validate_seconds: float = 0.0
    memory_bytes: int = 0
    """The peak of the training process, of several the largest."""
    parts: int = 1
    """Into how many each batch was cut, its gradients added up, because memory ran out."""
    earlier: float = 0.0
    """Of its seconds, those in a process that was ended; the training went on from a checkpoint."""
    gone_on_after: float | None = None
    """The epochs that were done there."""


@dataclass
class _Place:
    """Where a training is, between two batches."""

    epoch: int = 0
    batches: int = 0
    """Of the epoch that are done."""
    order: dict[str, Any] = field(default_factory=dict)
    """Of the stream that rows are ordered by, as it was before the epoch."""
    seen: int = 0
    steps: int = 0


def learning_rate_factor(schedule: str, step: int, total: int, warmup: int) -> float:
    """Return what the peak learning rate is multiplied with at a step.

    Args:
        schedule: ``constant``, ``linear``, ``cosine`` (half a period, Loshchilov & Hutter 2017), ``inverse-sqrt``
            (Vaswani et al. 2017) or ``plateau`` (constant here; halved when validation stalls).
        step: optimiser steps done.
        total: optimiser steps of the whole training.
        warmup: optimiser steps in which the rate rises linearly from 0 to its peak.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule in {"constant", "plateau"}:
        return 1.0
    if schedule == "inverse-sqrt":
        start = max(warmup, 1)
        return math.sqrt(start / max(step, start))
    share = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "linear":
        return 1.0 - share
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * share))
    raise ValueError(f"unknown schedule {schedule!r}")


def train(
    model: torch.nn.Module,
    *,
    task: Task,
    context: TaskContext,
    features: Features | None,
    rows: Sequence[Row],
    augmentation: Augmentation | None,
    learning_rate: float,
    precision: str,
    objective: str,
    higher_is_better: bool,
    validate: Callable[[torch.nn.Module], dict[str, float]],
    on_validation: Callable[[CurvePoint], bool],
    on_progress: Callable[[Progress], None],
    deadline: float | None = None,
    auxiliary: Sequence[Auxiliary] = (),
    regularization: Regularization | None = None,
    groups: Sequence[Mapping[str, Any]] | None = None,
    after_step: Callable[[torch.nn.Module, int, int], None] | None = None,
    parts: int = 1,
    trim: bool = False,
    backward: Callable[[torch.Tensor], None] | None = None,
    ranks: Ranks | None = None,
    checkpoints: Checkpoints | None = None,
) -> TrainOutcome:
    """Train a model and leave it with the weights of its best validation.

    Args:
        model: its trainable parameters require gradients.
        task: gives batches and the loss.
        context: with the trial's parameters (``train.*``), seed, device and processor.
        features: encoded training rows; None where augmentation encodes them anew each epoch.
        rows: training rows, needed with augmentation.
        augmentation: how rows are changed, or None.
        learning_rate: at its peak.
        precision: ``bf16`` or ``fp32``.
        objective: the validation metric that picks the best checkpoint.
        higher_is_better: its direction.
        validate: returns the validation metrics of the model as it is.
        on_validation: told every validation; True stops the training.
        on_progress: told about once a second.
        deadline: of :func:`time.monotonic`; the training ends with what it has when it is reached.
        auxiliary: further tasks, each with optimiser steps of its own between those of the task.
        regularization: entered, of this model; it acts on the task's own loss, and not on the auxiliary tasks'.
        groups: parameters with a learning rate of their own, as :meth:`Adapter.parameter_groups` returns them.
        after_step: told the model, the step and how many there are, as :meth:`Adapter.after_step` is.
        parts: cut each batch into so many, one forward pass each, and add up their gradients; twice as many are taken
            whenever memory runs out. The batch of a step of the optimiser stays what it is.
        trim: give freed memory back to the system in each step; tensors of batches of other lengths would stay in the heap.
        backward: adds up the gradients of a loss, as :meth:`autoft.shared_base.Seat.sharing` gives it; None for the loss's
            own backward pass.
        ranks: the processes that train the model together, each of which calls this with the same arguments; it was given to
            their :meth:`Ranks.shard`. They divide the rows of each batch, all validate, and what rank 0 is told decides.
        checkpoints: where the training is written down now and then, and from where it goes on if one is there: the model is then
            given as it was when that training began, and validations so far are told again. Not with auxiliary tasks or several
            processes, and only where the regularization's states are of mappings, numbers and tensors.

    Raises:
        FloatingPointError: the loss is not a finite number.
        MemoryError: memory ran out in another process, for a single row.
        ModelError: ``train.gradient_checkpointing`` is asked of a model that does not offer it.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    from autoft.attention_dropout import attention_in_blocks

    params, ranks = context.params, ranks or Ranks()
    AcceleratorState._reset_state()
    GradientState._reset_state()
    accumulation = int(params["train.gradient_accumulation"])
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        gradient_accumulation_steps=accumulation,
        cpu=context.device == "cpu",
    )
    outcome = TrainOutcome()
    reset_peak_resident()
    if context.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    batch_size, epochs = int(params["train.batch_size"]), int(params["train.epochs"])
    count = len(rows)
    batches_per_epoch = math.ceil(count / batch_size)
    steps_per_epoch = math.ceil(batches_per_epoch / accumulation)
    total_steps = steps_per_epoch * epochs
    optimizer = optimizer_of(
        [model, *(one.model for one in auxiliary)],
        learning_rate,
        float(params["train.weight_decay"]),
        str(params.get("train.optimizer") or "adamw"),
        regularization.learning_rates() if regularization else {},
        groups or (),
    )
    schedule = str(params["train.schedule"])
    warmup = round(float(params["train.warmup"]) * total_steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(schedule, step, total_steps, warmup)
    )
    plateau = _Plateau(optimizer, scheduler, higher_is_better) if schedule == "plateau" else None
    original = model
    checkpointed = bool(params.get("train.gradient_checkpointing"))
    if checkpointed:
        checkpoint_gradients(original)
    # Placement and autocast only: the optimiser stays plain so that its fused step is not wrapped.
    model = accelerator.prepare_model(model, device_placement=not getattr(model, "is_quantized", False))
    trainable = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    rng = np.random.default_rng(context.seed)
    if not ranks.leads:
        # Dropout of its own; rank 0's is that of a training by one process.
        torch.manual_seed(context.seed + ranks.rank)
    # A stream of chance for each, so that the task's own batches are those of a training without them.
    further = [one.batches(batch_size, np.random.default_rng([context.seed, i])) for i, one in enumerate(auxiliary)]
    due = [0.0] * len(auxiliary)
    marks = _validation_marks(batches_per_epoch)
    best_weights: dict[str, torch.Tensor] = {}
    trained_weights: dict[str, torch.Tensor] = {}

    def compute(given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return task.loss(model, given, context)

    def loss_of(part: Sequence[Any]) -> torch.Tensor:
        with accelerator.autocast():
            here = {k: v.to(accelerator.device) for k, v in task.collate(part, context).items()}
            return regularization.loss(compute, here) if regularization else compute(here)

    def add_up(loss: torch.Tensor) -> None:
        if backward is None:
            accelerator.backward(loss)
        else:
            backward(loss / accumulation)

    gradients = _Gradients(loss_of, add_up, trainable, parts, ranks)
    at, losses, shown = _Place(), list[torch.Tensor](), 0.0
    begin = time.monotonic()
    end = False
    state = checkpoints.read() if checkpoints is not None else None
    if state is not None:
        at, losses = _Place(**state["at"]), _copied(state["losses"], accelerator.device)
        best_weights = _copied(state["best_weights"])
        _put(original, state["weights"])
        _go_on(state, outcome, optimizer, scheduler, plateau, regularization)
        rng.bit_generator.state = at.order
        gradients.parts = max(parts, state["parts"])
        outcome.gone_on_after = at.seen / count
        begin -= outcome.earlier
        end = outcome.stopped = any(on_validation(point) for point in outcome.curve)
    for epoch in range(at.epoch, epochs):
        if end:
            break
        model.train()
        start = at.batches if epoch == at.epoch else 0
        at.epoch, at.order = epoch, dict(rng.bit_generator.state)
        batches = _epoch_batches(task, context, features, rows, augmentation, batch_size, rng, epoch, start)
        if state is not None:
            put_chance(state["chance"])
            state = None
        for index, batch in enumerate(batches, start):
            last = index + 1 == batches_per_epoch
            group = min(accumulation, batches_per_epoch - index // accumulation * accumulation)
            with attention_in_blocks():
                losses.append(gradients.add(batch, accumulation / group))
            stepped = (index + 1) % accumulation == 0 or last
            if stepped:
                if trim:
                    trim_heap()
                ranks.add_gradients(trainable)
                torch.nn.utils.clip_grad_norm_(trainable, float(params["train.max_grad_norm"]))
                optimizer.step()
                if after_step is not None:
                    after_step(original, epoch * steps_per_epoch + index // accumulation, total_steps)
                optimizer.zero_grad(set_to_none=True)
                gradients.begin()
                for i, one in enumerate(auxiliary):
                    due[i] += one.steps
                    while due[i] >= 1:
                        due[i] -= 1
                        one.model.train()
                        with attention_in_blocks():
                            with accelerator.autocast():
                                given = {k: v.to(accelerator.device) for k, v in next(further[i]).items()}
                                other = one.task.loss(one.model, given, one.context)
                            # It divides by the batches of a step, of which this is the only one.
                            accelerator.backward(accumulation * one.weight * other)
                        torch.nn.utils.clip_grad_norm_(trainable, float(params["train.max_grad_norm"]))
                        optimizer.step()
                        optimizer.zero_grad(set_to_none=True)
                scheduler.step()
                at.steps += 1
                if regularization:
                    regularization.after_step(at.steps / total_steps)
            at.batches = index + 1
            at.seen += len(batch)
            now = time.monotonic()
            if now - shown >= 1.0:
                shown = now
                on_progress(Progress(at.seen, count * epochs, at.seen / max(now - begin, 1e-6)))
            out_of_time = ranks.any(deadline is not None and now > deadline)
            if index + 1 in marks or out_of_time:
                mean_loss = ranks.total(torch.stack(losses).mean())
                losses.clear()
                if not math.isfinite(mean_loss):
                    raise FloatingPointError(
                        f"the loss became {mean_loss} after {at.seen} samples; lower the learning rate ({learning_rate:g})"
                    )
                started = time.monotonic()
                trained_weights = _put(original, regularization.averaged() if regularization else {})
                figures = ranks.agreed(validate(original))
                if trim:
                    trim_heap()
                took = time.monotonic() - started
                outcome.validate_seconds += took
                model.train()
                point = CurvePoint(
                    samples=at.seen,
                    epoch=at.seen / count,
                    seconds=time.monotonic() - begin,
                    train_loss=mean_loss,
                    learning_rate=float(max(scheduler.get_last_lr())),
                    validation=figures,
                    validate_seconds=took,
                )
                outcome.curve.append(point)
                if _better(point, outcome.best, objective, higher_is_better):
                    outcome.best = point
                    best_weights = snapshot(original)
                _put(original, trained_weights)
                if plateau is not None:
                    plateau.step(figures[objective])
                outcome.stopped = ranks.agreed(on_validation(point))
                outcome.out_of_time = out_of_time
                end = outcome.stopped or out_of_time
            if end:
                break
            if checkpoints is not None and stepped and checkpoints.due:
                outcome.seconds = time.monotonic() - begin
                checkpoints.write(
                    {
                        "at": vars(at),
                        "losses": losses,
                        "weights": _changing(original),
                        "best_weights": best_weights,
                        "parts": gradients.parts,
                        "chance": chance(context.device),
                        **_so_far(outcome, optimizer, scheduler, plateau, regularization),
                    },
                    at.seen / (count * epochs),
                )
    outcome.seconds, outcome.parts = time.monotonic() - begin, gradients.parts
    peak = torch.cuda.max_memory_allocated() if context.device == "cuda" else peak_resident_bytes()
    outcome.memory_bytes = max(outcome.memory_bytes, ranks.largest(peak))
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if outcome.best is not outcome.curve[-1] or trained_weights or outcome.gone_on_after is not None:
        _put(original, best_weights)
    if checkpointed:
        original.gradient_checkpointing_disable()  # type: ignore[operator]
    original.zero_grad(set_to_none=True)
    original.eval()
    return outcome


def share_body(model: torch.nn.Module, other: torch.nn.Module) -> list[str]:
    """Put the modules of a model in the place of those that another one has alike, heads left out.

    Done before an adapter is attached: what it puts into a shared module is then shared too.

    Returns:
        the names of the modules that are shared, the largest of each.

    Raises:
        ModelError: they have nothing in common.
    """
    heads = set(find_head(model).parameters) | set(find_head(other).parameters)
    mine = dict(model.named_modules())
    shared: list[str] = []

    def alike(name: str, module: torch.nn.Module) -> bool:
        twin = mine.get(name)
        if type(twin) is not type(module) or twin is None:
            return False
        shapes = {part: parameter.shape for part, parameter in module.named_parameters()}
        same = shapes == {part: parameter.shape for part, parameter in twin.named_parameters()}
        return bool(shapes) and same and not any(f"{name}.{part}" in heads for part in shapes)

    for name, module in list(other.named_modules()):
        if not name or any(name.startswith(f"{done}.") for done in shared):
            continue
        if alike(name, module):
            other.set_submodule(name, mine[name])
            shared.append(name)
    if not shared:
        raise ModelError(
            f"{type(other).__name__} and {type(model).__name__} have no modules in common, so that the tasks cannot be "
            "trained together; take auxiliary tasks for the same kind of model"
        )
    return shared


def _shown_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _epoch_batches(
    task: Task,
    context: TaskContext,
    features: Features | None,
    rows: Sequence[Row],
    augmentation: Augmentation | None,
    batch_size: int,
    rng: np.random.Generator,
    epoch: int,
    start: int,
) -> Iterator[list[Any]]:
    """Return the batches of an epoch, from one on."""
    if augmentation is not None:
        chance = random.Random(f"{context.seed}-{epoch}")
        encoded: Any = task.encode(augmentation.rows(rows, task.card, chance), context)
        lengths = np.asarray([task.length(feature) for feature in encoded])
    else:
        assert features is not None
        encoded, lengths = features, features.lengths
    order = grouped_batches(lengths, batch_size, rng)
    return ([encoded[int(i)] for i in indices] for indices in order[start:])


class _Gradients:
    """Adds up the gradients of the batches of one step; where memory runs out, each batch is computed in more parts.

    Args:
        loss_of: returns the mean loss of some rows' features.
        backward: adds the gradients of a loss.
        trained: the parameters.
        parts: into how many a batch is cut at first.
        ranks: the processes that divide its rows.
    """

    def __init__(
        self,
        loss_of: Callable[[Sequence[Any]], torch.Tensor],
        backward: Callable[[torch.Tensor], None],
        trained: Sequence[torch.nn.Parameter],
        parts: int,
        ranks: Ranks,
    ) -> None:
        self.loss_of, self.backward, self.trained, self.parts, self.ranks = loss_of, backward, trained, parts, ranks
        self.batches: list[tuple[Sequence[Any], float]] = []
        """Of this step so far: all are computed anew when one does not fit, for their gradients are already mixed."""
        self.error: Exception | None = None

    def begin(self) -> None:
        """Begin a new step; its gradients are zero."""
        self.batches.clear()

    def add(self, batch: Sequence[Any], weight: float) -> torch.Tensor:
        """Add the gradients of a batch's mean loss times the weight, and return this process's part of the mean loss.

        A loss that is a mean over tokens is weighed by rows where a batch is cut, as it is where batches are accumulated.

        Raises:
            RuntimeError: memory ran out for a single row.
            MemoryError: likewise, in another process.
        """
        self.batches.append((batch, weight))
        losses = self._computed(self.batches[-1:])
        while losses is None:
            if self.parts >= max(len(rows) for rows, _ in self.batches):
                raise self.error or MemoryError("out of memory in another process of this trial")
            self.parts *= 2
            for parameter in self.trained:
                parameter.grad = None
            _free_memory()
            losses = self._computed(self.batches)
        return losses[-1]

    def _computed(self, batches: Sequence[tuple[Sequence[Any], float]]) -> list[torch.Tensor] | None:
        """Return the losses of batches, gradients added; None where memory ran out."""
        losses: list[torch.Tensor] | None = None
        try:
            losses = [self._one(batch, weight) for batch, weight in batches]
        except (RuntimeError, MemoryError) as error:
            if not (out_of_memory(error) and self.ranks.retries):
                raise
            # Its frames hold what takes the memory.
            self.error = error.with_traceback(None)
        return None if self.ranks.any(losses is None) else losses

    def _one(self, batch: Sequence[Any], weight: float) -> torch.Tensor:
        rows = batch[self.ranks.rank :: self.ranks.size]
        # As many passes in each process, whatever rows it has: FSDP gathers weights in each.
        most = math.ceil(len(batch) / self.ranks.size)
        size = math.ceil(most / self.parts)
        losses = []
        for start in range(0, most, size):
            part = rows[start : start + size]
            loss = self.loss_of(part or batch[:1])
            share = weight * len(part) / len(batch) * self.ranks.gradient_scale
            self.backward(loss if share == 1 else loss * share)
            losses.append(loss.detach() * (len(part) / len(batch)))
        return losses[0] if len(losses) == 1 else sum(losses[1:], losses[0])


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _validation_marks(batches: int) -> set[int]:
    """Return after which batches of an epoch to validate: at its end, and in the middle of long epochs."""
    return {batches, batches // 2} if batches >= 60 else {batches}


def optimizer_of(
    models: Sequence[torch.nn.Module],
    learning_rate: float,
    weight_decay: float,
    name: str = "adamw",
    factors: Mapping[str, float] | None = None,
    own_rates: Sequence[Mapping[str, Any]] = (),
) -> torch.optim.Optimizer:
    """Return the optimiser over all that is trained.

    ``factors`` of the rate are by name in the first model, ``own_rates`` as :meth:`Adapter.parameter_groups` has them.
    """
    # What models share is there once.
    trained = dict.fromkeys(p for model in models for p in model.parameters() if p.requires_grad)
    factor = {p: (factors or {}).get(full, 1.0) for full, p in models[0].named_parameters()}
    for group in own_rates:
        factor.update({p: factor.get(p, 1.0) * float(group["lr"]) / learning_rate for p in group["params"]})
    hidden = {p for model in models for p in _hidden_matrices(model)} if name == "muon" else set()
    groups: dict[tuple[bool, float, bool], list[torch.nn.Parameter]] = {}
    for p in trained:
        groups.setdefault((p.ndim < 2, factor.get(p, 1.0), p in hidden), []).append(p)
    return make_optimizer(
        name,
        [
            Group(groups[key], 0.0 if key[0] else weight_decay, factor=key[1], matrices=key[2])
            for key in sorted(groups, key=lambda key: key[0])
        ],
        learning_rate,
    )


def _hidden_matrices(model: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """Yield the weights with two dimensions inside of the model's numbered layers, embeddings left out."""
    from torch import nn

    for name, module in model.named_modules():
        if any(part.isdigit() for part in name.split(".")) and not isinstance(module, nn.Embedding):
            yield from (p for p in module.parameters(recurse=False) if p.ndim == 2)


def checkpoint_gradients(model: Any) -> None:
    """Have the model compute its layers' activations again in the backward pass, in place of keeping them."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ModelError(
            f"{type(model).__name__} does not offer gradient checkpointing; pin train.gradient_checkpointing to false"
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


class _Plateau:
    """Halves the learning rate when a validation brings no improvement."""

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Any, higher_is_better: bool) -> None:
        self.optimizer, self.scheduler, self.higher_is_better = optimizer, scheduler, higher_is_better
        self.best: float | None = None

    def step(self, value: float) -> None:
        best = self.best
        # A metric that was not defined is improved upon by any figure.
        if best is None or math.isnan(best) or (value > best if self.higher_is_better else value < best):
            self.best = value
        else:
            # LambdaLR multiplies its base rates, so these are what has to fall.
            self.scheduler.base_lrs = [rate / 2 for rate in self.scheduler.base_lrs]


def _better(point: CurvePoint, best: CurvePoint | None, objective: str, higher_is_better: bool) -> bool:
    value = point.validation[objective]
    if best is None:
        return True
    if math.isnan(value):
        return False
    other = best.validation[objective]
    return math.isnan(other) or (value > other if higher_is_better else value < other)


def _so_far(
    outcome: TrainOutcome,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
    plateau: _Plateau | None,
    regularization: Regularization | None,
) -> dict[str, Any]:
    """Return what :func:`_go_on` puts back, beside the weights and the place."""
    schedule = {name: value for name, value in scheduler.state_dict().items() if name != "lr_lambdas"}
    return {
        "seconds": outcome.seconds,
        "validate_seconds": outcome.validate_seconds,
        "memory_bytes": max(outcome.memory_bytes, peak_resident_bytes()),
        "curve": [point.model_dump() for point in outcome.curve],
        "best": outcome.curve.index(outcome.best) if outcome.best is not None else None,
        "optimizer": optimizer_state(optimizer),
        "rates": [group["lr"] for group in optimizer.param_groups],
        "schedule": schedule,
        "plateau": plateau.best if plateau is not None else None,
        "regularization": regularization.states if regularization is not None else [],
    }


def _go_on(
    state: Mapping[str, Any],
    outcome: TrainOutcome,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
    plateau: _Plateau | None,
    regularization: Regularization | None,
) -> None:
    """Put back what :func:`_so_far` returned."""
    outcome.earlier, outcome.validate_seconds = state["seconds"], state["validate_seconds"]
    outcome.memory_bytes = state["memory_bytes"]
    outcome.curve = [CurvePoint.model_validate(point) for point in state["curve"]]
    outcome.best = outcome.curve[state["best"]] if state["best"] is not None else None
    put_optimizer_state(optimizer, state["optimizer"])
    for group, rate in zip(optimizer.param_groups, state["rates"], strict=True):
        group["lr"] = rate
    scheduler.load_state_dict({**scheduler.state_dict(), **state["schedule"]})
    if plateau is not None:
        plateau.best = state["plateau"]
    if regularization is not None:
        regularization.put_states(state["regularization"])


def _changing(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return what training changes: trainable parameters and buffers (batch norm statistics)."""
    return {**{name: p for name, p in model.named_parameters() if p.requires_grad}, **dict(model.named_buffers())}


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy what training changes, of sharded parameters this process's part."""
    return {name: local(tensor.detach()).to("cpu", copy=True) for name, tensor in _changing(model).items()}


def _copied(value: Any, device: torch.device | None = None) -> Any:
    """Return mappings and lists with tensors of their own, on a device; None for where they are."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(value.device if device is None else device, copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(one, device) for key, one in value.items()}
    return [_copied(one, device) for one in value] if isinstance(value, list) else value


def _put(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put weights into a model, by name, and return copies of those that were there."""
    import torch

    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: local(tensors[name].detach()).clone() for name in weights}
    with torch.no_grad():
        for name, value in weights.items():
            local(tensors[name].detach()).copy_(value)
    return before
