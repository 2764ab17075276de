"""Training a model on what another one says: knowledge distillation, over the one training loop.

A compressor that takes parts of a model away asks for it through ``target.recover``; what it was is the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from autoft.contracts import Target, Task, TaskContext
from autoft.data import Features, Split
from autoft.training import Progress, TrainOutcome, train

if TYPE_CHECKING:
    import torch

__all__ = ["distill", "distillation_loss", "matching_loss"]

VOCABULARY = 1000
"""From so many classes on logits are those of words: most are of no account, and a squared difference counts them all."""

ROW = "autoft.row"
"""Key of a feature and of a batch: which training rows they are of."""

IGNORED = -100
"""Label of positions that have no loss, as in torch."""


def distill(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    target: Target,
    *,
    features: Features,
    rows: Split,
    other: tuple[Features, TaskContext] | None,
    remembered: dict[int, torch.Tensor],
    epochs: int,
    learning_rate: float,
    teaching: float,
    matching: Sequence[tuple[str, str]],
    precision: str,
    objective: str,
    higher_is_better: bool,
    validate: Callable[[Any], dict[str, float]],
    on_progress: Callable[[Progress], None],
    deadline: float | None,
    after_step: Callable[[float], None] | None = None,
) -> TrainOutcome:
    """Train a student towards a teacher, in its place; see :class:`autoft.contracts.Recovery` for the loss.

    Args:
        student: left with the weights of its best validation.
        teacher: left as it is.
        target: its task, and its context with the settings of the trial's training.
        features: encoded training rows.
        rows: the training rows.
        other: what the teacher reads of the rows, and its context, where that is not what the student reads.
        remembered: what the teacher said of rows before, by their number; added to.
        epochs: over the rows.
        learning_rate: at its peak; linear, with the warm-up of the trial.
        teaching: weight of the teacher.
        matching: modules of both whose outputs are to be alike.
        precision: ``bf16`` or ``fp32``.
        objective: the validation metric that picks the best checkpoint.
        higher_is_better: its direction.
        validate: returns the validation metrics of the student as it is.
        on_progress: told about once a second.
        deadline: of :func:`time.monotonic`; the training ends with what it has when it is reached.
        after_step: told the share of all steps that is taken.
    """
    changes = {
        "train.epochs": epochs,
        "train.schedule": "linear",
        "train.gradient_accumulation": 1,
        "train.optimizer": "adamw",
    }
    context = replace(target.context, params={**target.context.params, **changes})
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    teacher.eval()
    lesson = _Lesson(target.task, teacher, teaching, other, None if matching else remembered)
    with (
        _watched(student, [mine for mine, _ in matching]) as lesson.said,
        _watched(teacher, [theirs for _, theirs in matching]) as lesson.taught,
    ):
        return train(
            student,
            task=cast(Task, lesson),
            context=context,
            features=cast(Features, _Numbered(features)),
            rows=rows,
            augmentation=None,
            learning_rate=learning_rate,
            precision=precision,
            objective=objective,
            higher_is_better=higher_is_better,
            validate=validate,
            on_validation=lambda point: False,
            on_progress=on_progress,
            deadline=deadline,
            after_step=(lambda model, step, total: after_step((step + 1) / total)) if after_step else None,
        )


def distillation_loss(said: torch.Tensor, taught: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return how far logits are from those of the teacher, as one number.

    Args:
        said: of the student, ``(..., classes)``.
        taught: of the teacher, of the same shape.
        mask: positions that count, of the shape of the logits or without their last dimension; None for all.
    """
    said, taught = said.float(), taught.float()
    if said.shape[-1] >= VOCABULARY:
        away = (taught.softmax(-1) * (taught.log_softmax(-1) - said.log_softmax(-1))).sum(-1)
    else:
        away = (said - taught).square()
    if mask is None:
        return away.mean()
    weight = mask.to(away.dtype)
    while weight.dim() < away.dim():
        weight = weight.unsqueeze(-1)
    weight = weight.expand_as(away)
    return (away * weight).sum() / weight.sum().clamp(min=1)


def matching_loss(said: torch.Tensor, taught: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the squared difference of two hidden states ``(batch, seq, width)``, as a share of the teacher's square.

    Hidden states of one model are larger than those of another by far; as shares one weight fits all.

    Args:
        said: of the student.
        taught: of the teacher.
        mask: positions that count, ``(batch, seq)``; None for all.
    """
    away, size = (said.float() - taught.float()).square(), taught.float().square()
    if mask is not None:
        weight = mask[:, :, None].to(away.dtype)
        away, size = away * weight, size * weight
    return away.sum() / size.sum().clamp(min=1e-6)


@dataclass
class _Said:
    """What a model returned last: its logits by name, and the outputs of the modules that are watched."""

    names: Sequence[str] = ()
    logits: dict[str, torch.Tensor] = field(default_factory=dict)
    parts: dict[str, torch.Tensor] = field(default_factory=dict)


@contextmanager
def _watched(model: torch.nn.Module, names: Sequence[str]) -> Iterator[_Said]:
    """Keep what a model and some of its modules return, until the block ends."""
    said = _Said(names)

    def keep_logits(module: Any, given: Any, output: Any) -> None:
        found = output.items() if isinstance(output, Mapping) else [("logits", output)]
        said.logits = {name: value for name, value in found if name.endswith("logits")}

    def keep(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, given: Any, output: Any) -> None:
            said.parts[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [model.register_forward_hook(keep_logits)]
    handles += [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield said
    finally:
        for handle in handles:
            handle.remove()


class _Numbered(Sequence[dict[str, Any]]):
    """Features that say which row they are of."""

    def __init__(self, features: Features) -> None:
        self.features, self.lengths = features, features.lengths

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Any) -> Any:
        return {**self.features[index], ROW: int(index)}


class _Lesson:
    """The task, with a loss that has the teacher's share in it."""

    def __init__(
        self,
        task: Task,
        teacher: torch.nn.Module,
        teaching: float,
        other: tuple[Features, TaskContext] | None,
        remembered: dict[int, torch.Tensor] | None,
    ) -> None:
        self.task, self.teacher, self.teaching, self.other = task, teacher, teaching, other
        self.remembered = remembered
        """Logits of the teacher by row, where there is one vector of a row and nothing else is asked of it."""
        self.said, self.taught = _Said(), _Said()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def collate(self, features: Sequence[Mapping[str, Any]], context: TaskContext) -> dict[str, torch.Tensor]:
        import torch

        plain = [{name: value for name, value in feature.items() if name != ROW} for feature in features]
        return {**self.task.collate(plain, context), ROW: torch.tensor([feature[ROW] for feature in features])}

    def loss(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], context: TaskContext) -> torch.Tensor:
        given = {name: value for name, value in batch.items() if name != ROW}
        own = self.task.loss(model, given, context)
        taught = self._taught(given, batch[ROW].tolist(), context)
        if not taught:
            return own
        loss = (1 - self.teaching) * own
        for name, logits in self.said.logits.items():
            loss = loss + self.teaching * distillation_loss(logits, taught[name], _mask(name, logits, given))
        mask = given.get("attention_mask")
        for mine, theirs in zip(self.said.names, self.taught.names, strict=True):
            hidden = self.said.parts[mine]
            fits = mask is not None and mask.shape == hidden.shape[:2]
            loss = loss + matching_loss(hidden, self.taught.parts[theirs], mask if fits else None)
        return loss

    def _taught(
        self, batch: Mapping[str, torch.Tensor], rows: Sequence[int], context: TaskContext
    ) -> dict[str, torch.Tensor]:
        """Return the teacher's logits; none where they are of other tokens than the student's."""
        import torch

        said = self.said.logits
        vectors = set(said) == {"logits"} and said["logits"].dim() == 2 and len(said["logits"]) == len(rows)
        if self.other is not None and not vectors:
            return {}
        if vectors and self.remembered is not None and all(row in self.remembered for row in rows):
            return {"logits": torch.stack([self.remembered[row] for row in rows]).to(said["logits"].device)}
        with torch.no_grad():
            if self.other is None:
                self.task.loss(self.teacher, batch, context)
            else:
                features, context = self.other
                given = self.task.collate([features[row] for row in rows], context)
                self.task.loss(self.teacher, {name: value.to(context.device) for name, value in given.items()}, context)
        found = {name: value.detach() for name, value in self.taught.logits.items()}
        if vectors and self.remembered is not None:
            self.remembered.update(zip(rows, found["logits"].float().cpu(), strict=True))
        return found


def _mask(name: str, logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Return which positions of logits are of real tokens; None where logits are of whole rows."""
    for key in ("attention_mask", "labels"):
        mask = batch.get(key)
        if mask is None or mask.dim() != 2:
            continue
        if logits.dim() == 3 and mask.shape == logits.shape[:2]:
            return mask.bool() if key == "attention_mask" else mask != IGNORED
        if key == "attention_mask" and logits.dim() == 2 and name != "logits" and mask.shape == logits.shape:
            return mask.bool()
    return None
