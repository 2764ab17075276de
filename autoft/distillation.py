"""Training a model on what another one says: knowledge distillation, over the one training loop.

A compressor that takes parts of a model away asks for it through ``target.recover``; what it was is the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from autoft.artifact import Manifest
from autoft.contracts import ModelSource, Target, Task, TaskContext, Teacher
from autoft.data.features import Features
from autoft.data.rows import Split
from autoft.errors import ModelError
from autoft.paths import plain_files_digest
from autoft.pretrained import loading, trained_by, trained_model, usable_positions
from autoft.strategies.first_token import first_token_alone, shortest_and_longest
from autoft.strategies.head_only import find_head
from autoft.strategies.passes import encodes_and_decodes
from autoft.training import Progress, TrainOutcome, train
from autoft.used_rows import asked_for, used_rows_alone

if TYPE_CHECKING:
    import torch

__all__ = ["alike", "attention_loss", "distill", "distillation_loss", "matching_loss", "named_teacher"]

VOCABULARY = 1000
"""From so many classes on logits are those of words: most are of no account, and a squared difference counts them all."""

ROW = "autoft.row"
"""Key of a feature and of a batch: which training rows they are of."""

COMPARED = 32
"""Rows that are looked at, about so many, to find out whether two models read the same tokens."""

IGNORED = -100
"""Label of positions that have no loss, as in torch."""


def distill(
    student: torch.nn.Module,
    teachers: Sequence[tuple[torch.nn.Module, tuple[Features, TaskContext] | None]],
    target: Target,
    *,
    features: Features,
    rows: Split,
    required: bool,
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
    attending: Sequence[tuple[str, str]] = (),
) -> TrainOutcome:
    """Train a student towards its teachers, in its place; see :class:`autoft.contracts.Recovery` for the loss.

    Args:
        student: left with the weights of its best validation.
        teachers: left as they are; each with what it reads of the rows and its context, or None where it reads what the
            student reads. The mean of their logits is taught.
        target: its task, and its context with the settings of the trial's training.
        features: encoded training rows.
        rows: the training rows.
        required: whether it is an error that no teacher's logits can be compared with the student's.
        remembered: what the teachers said of rows before, by their number; added to.
        epochs: over the rows.
        learning_rate: at its peak; linear, with the warm-up of the trial.
        teaching: weight of the teachers.
        matching: modules of the student and of the first teacher whose outputs are to be alike.
        precision: ``bf16`` or ``fp32``.
        objective: the validation metric that picks the best checkpoint.
        higher_is_better: its direction.
        validate: returns the validation metrics of the student as it is.
        on_progress: told about once a second.
        deadline: of :func:`time.monotonic`; the training ends with what it has when it is reached.
        after_step: told the share of all steps that is taken.
        attending: attention modules of both whose maps are to be alike.

    Raises:
        ModelError: ``required``, and every teacher reads other tokens than the student, whose logits are of tokens.
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
    lesson = _Lesson(target.task, teaching, remembered, required)
    with ExitStack() as stack:
        for model in (student, teachers[0][0]) if attending else ():
            stack.enter_context(_without_fused_attention(model))
        mine, theirs = ([pair[side] for pair in matching] for side in (0, 1))
        seen, shown = ([pair[side] for pair in attending] for side in (0, 1))
        lesson.said = stack.enter_context(_watched(student, mine, seen))
        for place, (model, other) in enumerate(teachers):
            taught = stack.enter_context(_watched(model.eval(), *(((), ()) if place else (theirs, shown))))
            lesson.teachers.append(_Asked(model, taught, other))
        numbered = cast(Features, _Numbered(features))

        def loss_of(some: Sequence[Any]) -> torch.Tensor:
            batch = {name: value.to(context.device) for name, value in lesson.collate(some, context).items()}
            return lesson.loss(student, batch, context)

        ends = shortest_and_longest(numbered, features.lengths)
        # Who looks at the weights between two steps, as a pruner does, finds those that are there.
        if after_step is None:
            tokens = asked_for(features, student, context.processor)
            stack.enter_context(used_rows_alone(student, tokens, lambda: loss_of(ends)))
        stack.enter_context(first_token_alone(student, lambda: loss_of(ends)))
        return train(
            student,
            task=cast(Task, lesson),
            context=context,
            features=numbered,
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


def attention_loss(said: torch.Tensor, taught: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the squared difference of two models' attention maps, summed over what is attended to.

    Args:
        said: of the student, ``(batch, heads, seq, seq)``, each row of which sums to 1.
        taught: of the teacher, of the same shape.
        mask: positions that count as attending, ``(batch, seq)``; None for all.
    """
    away = (said.float() - taught.float()).square().sum(-1).mean(1)
    if mask is None:
        return away.mean()
    weight = mask.to(away.dtype)
    return (away * weight).sum() / weight.sum().clamp(min=1)


@contextmanager
def _without_fused_attention(model: Any) -> Iterator[None]:
    """Have a model of transformers compute attention so that its maps are there, until the block ends."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@dataclass
class _Said:
    """What a model returned last: its logits by name, and the outputs of the modules that are watched."""

    names: Sequence[str] = ()
    attending: Sequence[str] = ()
    logits: dict[str, torch.Tensor] = field(default_factory=dict)
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    maps: dict[str, torch.Tensor] = field(default_factory=dict)


@contextmanager
def _watched(model: torch.nn.Module, names: Sequence[str], attending: Sequence[str] = ()) -> Iterator[_Said]:
    """Keep what a model and some of its modules return, until the block ends."""
    said = _Said(names, attending)

    def keep_logits(module: Any, given: Any, output: Any) -> None:
        found = output.items() if isinstance(output, Mapping) else [("logits", output)]
        said.logits = {name: value for name, value in found if name.endswith("logits")}

    def keep(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, given: Any, output: Any) -> None:
            said.parts[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def keep_map(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, given: Any, output: Any) -> None:
            if not isinstance(output, tuple) or len(output) < 2 or output[1] is None:
                raise ModelError(f"{type(module).__name__} shows no attention map; set attention: false")
            said.maps[name] = output[1]

        return hook

    handles = [model.register_forward_hook(keep_logits)]
    handles += [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    handles += [model.get_submodule(name).register_forward_hook(keep_map(name)) for name in attending]
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


@dataclass(frozen=True)
class _Asked:
    """A teacher, what it said last, and what it reads of the rows where that is not what the student reads."""

    model: torch.nn.Module
    said: _Said
    other: tuple[Features, TaskContext] | None

    def ask(self, task: Task, batch: Mapping[str, torch.Tensor], rows: Sequence[int], context: TaskContext) -> None:
        if self.other is not None:
            features, context = self.other
            collated = task.collate([features[row] for row in rows], context)
            batch = {name: value.to(context.device) for name, value in collated.items()}
        task.loss(self.model, batch, context)


class _Lesson:
    """The task, with a loss that has the teachers' share in it."""

    def __init__(self, task: Task, teaching: float, remembered: dict[int, torch.Tensor], required: bool) -> None:
        self.task, self.teaching, self.required = task, teaching, required
        self.remembered = remembered
        """Mean logits of the teachers by row, where there is one vector of a row."""
        self.said = _Said()
        self.teachers: list[_Asked] = []

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
        # What a decoder writes may be as long as what the encoder reads; only its labels tell where it is padded.
        written = {"labels": given["labels"]} if encodes_and_decodes(model) and "labels" in given else given
        for name, logits in self.said.logits.items():
            loss = loss + self.teaching * distillation_loss(logits, taught[name], _mask(name, logits, written))
        mask = given.get("attention_mask")
        first = self.teachers[0].said
        for mine, theirs in zip(self.said.names, first.names, strict=True):
            hidden = self.said.parts[mine]
            fits = mask is not None and mask.shape == hidden.shape[:2]
            loss = loss + matching_loss(hidden, first.parts[theirs], mask if fits else None)
        for mine, theirs in zip(self.said.attending, first.attending, strict=True):
            shown = self.said.maps[mine]
            fits = mask is not None and mask.shape == (len(shown), shown.shape[-2])
            loss = loss + attention_loss(shown, first.maps[theirs], mask if fits else None)
        return loss

    def _taught(
        self, batch: Mapping[str, torch.Tensor], rows: Sequence[int], context: TaskContext
    ) -> dict[str, torch.Tensor]:
        """Return the mean of the teachers' logits, of those that speak of the student's tokens; none without any."""
        import torch

        said = self.said.logits
        vectors = set(said) == {"logits"} and said["logits"].dim() == 2 and len(said["logits"]) == len(rows)
        able = [one for one in self.teachers if vectors or one.other is None]
        if not able and self.required:
            raise ModelError("the teacher reads other tokens than the student, and what it says is of tokens")
        known = vectors and all(row in self.remembered for row in rows)
        with torch.no_grad():
            for one in able:
                # Modules that are matched are needed in any case.
                if not known or (one is self.teachers[0] and (self.said.names or self.said.attending)):
                    one.ask(self.task, batch, rows, context)
        if known:
            return {"logits": torch.stack([self.remembered[row] for row in rows]).to(said["logits"].device)}
        if not able:
            return {}
        first, *others = [one.said.logits for one in able]
        found = {name: value.detach() for name, value in first.items()}
        if others:
            found = {
                name: torch.stack([value.float(), *(one[name].detach().float() for one in others)]).mean(0)
                for name, value in found.items()
            }
        if vectors:
            self.remembered.update(zip(rows, found["logits"].float().cpu(), strict=True))
        return found


def alike(one: Features, other: Features) -> bool:
    """Say whether two models read the same tokens of the same rows, labels left out."""
    if list(one.lengths) != list(other.lengths):
        return False

    def same(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
        names = (set(mine) | set(theirs)) - {"labels"}
        if not names <= set(mine) & set(theirs):
            return False
        # Arrays have no single truth of their own.
        return all(
            np.array_equal(mine[name], theirs[name])
            if isinstance(mine[name], np.ndarray)
            else mine[name] == theirs[name]
            for name in names
        )

    return all(same(one[row], other[row]) for row in range(0, len(one), max(1, len(one) // COMPARED)))


def named_teacher(name: str, target: Target) -> Teacher:
    """Return a fine-tuned model to learn from.

    Args:
        name: of a run's folder, of its ``best``, or of a model of transformers, as ``package://module/path``.
        target: whose task, labels and device it has to fit.

    Raises:
        ModelError: there is none, it is damaged, of another task or of other labels, or it has no head for the task.
    """
    from transformers import AutoConfig

    task, context = target.task, target.context
    source = trained_model(name, target)
    known_as = trained_by(source)
    if known_as not in {None, task.card.name}:
        raise ModelError(f"the teacher {name} was trained for {known_as}; name one for {task.card.name}")
    with loading(source, "the configuration"):
        config = AutoConfig.from_pretrained(source.path, **source.from_pretrained_kwargs())
    if known_as is None:
        labels = [config.id2label[place] for place in sorted(config.id2label or {})]
        most = usable_positions(config.to_dict()) or context.max_length
        own = replace(context, max_length=min(context.max_length, most))
    else:
        manifest = Manifest.model_validate_json((Path(source.path) / "autoft.json").read_text(encoding="utf-8"))
        labels = list(manifest.facts.get("labels") or [])
        own = replace(
            context,
            facts=manifest.facts,
            options=manifest.options,
            params=manifest.params,
            max_length=manifest.max_length,
        )
    wanted = list(context.facts.get("labels") or [])
    if wanted and labels != wanted:
        raise ModelError(
            f"the teacher {name} knows the labels {_listed(labels)}, and the data have {_listed(wanted)}; name one that "
            "was trained on the same labels in the same order"
        )
    own = replace(own, processor=task.load_processor(source, own))
    model = task.load_model(source, own).to(context.device).eval()
    missing = sorted(set(find_head(model).parameters) - _stored(source)) if Path(source.path).is_dir() else []
    if missing:
        raise ModelError(f"the teacher {name} is not fine-tuned: its files hold no {missing[0]}; name one that is")
    # Files of a folder that were changed are another teacher, which reads otherwise.
    return Teacher(f"{name}, {source.revision or plain_files_digest(Path(source.path))}", model, own)


def _stored(source: ModelSource) -> set[str]:
    """Return the names of the weights in a model's files."""
    from safetensors import safe_open

    names: set[str] = set()
    with loading(source):
        for path in Path(source.path).glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                names.update(file.keys())
    return names


def _listed(labels: Sequence[object]) -> str:
    shown = ", ".join(map(str, labels[:4])) + (" ..." if len(labels) > 4 else "")
    return shown or "of nothing"


def _mask(name: str, logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Return which positions of logits are of real tokens; None where logits are of whole rows."""
    for key in ("attention_mask", "labels"):
        mask = batch.get(key)
        if mask is None or mask.dim() != 2:
            continue
        if key == "attention_mask" and logits.dim() == 3:
            # Of a prompt that is not learned a causal model says nothing: its logits are those of the last tokens.
            mask = mask[:, -logits.shape[1] :]
        if logits.dim() == 3 and mask.shape == logits.shape[:2]:
            return mask.bool() if key == "attention_mask" else mask != IGNORED
        if key == "attention_mask" and logits.dim() == 2 and name != "logits" and mask.shape == logits.shape:
            return mask.bool()
    return None
