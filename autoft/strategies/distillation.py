"""Knowledge distillation into another, smaller model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from autoft.contracts import Compressor, Refusal, Row, State, Target
from autoft.errors import ModelError
from autoft.pretrained import loading, named_model, trained_by, trained_model, usable_positions
from autoft.space import Categorical, SearchSpace
from autoft.strategies.recovery import RECOVERY, recover

__all__ = ["Distillation"]


class Distillation(Compressor):
    """Trains a smaller pretrained model, which the recipe names, on what the trained one says.

    The student reads the rows with its own tokenizer, and learns from the teacher's logits of whole rows and from the
    task's own loss (Hinton et al. 2015, arXiv:1503.02531; Turc et al. 2019, arXiv:1908.08962: a pretrained student).
    The teacher is the trained model, or another one that the recipe names.
    """

    name: ClassVar[str] = "distillation"
    summary: ClassVar[str] = "trains a smaller model, named in the recipe, on what the trained one says"
    space: ClassVar[SearchSpace] = {
        "student": Categorical((None,), open=True),
        "teacher": Categorical((None,), open=True),
        **RECOVERY,
    }
    models: ClassVar[frozenset[str]] = frozenset({"student", "teacher"})
    yields: ClassVar[State] = "dense"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense"})

    def check(self, target: Target) -> Refusal | None:
        """Refuse where the recipe names no student, or a student or teacher that is not there or of another task."""
        name = target.context.params.get(f"{self.name}.student")
        if not name:
            return Refusal(
                f"{self.name}: needs a student; name a smaller model in the recipe, as space: "
                f"{{{self.name}.student: google/bert_uncased_L-2_H-128_A-2}}"
            )
        teacher = target.context.params.get(f"{self.name}.teacher")
        if teacher and int(target.context.params.get(f"{self.name}.teachers") or 1) > 1:
            return Refusal(
                f"{self.name}: teacher names one model, and teachers asks for those of trials; give one of both"
            )
        try:
            named_model(str(name))
            task = trained_by(trained_model(str(teacher))) if teacher else None
        except ModelError as error:
            return Refusal(f"{self.name}: {error}")
        if task not in {None, target.task.card.name}:
            return Refusal(
                f"{self.name}: the teacher {teacher} was trained for {task}; name one for {target.task.card.name}"
            )
        return None

    def trains(self, params: Mapping[str, Any]) -> bool:
        """Say whether there are epochs to learn in."""
        return int(params["epochs"]) > 0

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return the student, without the processor that goes with it: see :meth:`transform`."""
        return self.transform(model, target, rows, params)[0]

    def transform(
        self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]
    ) -> tuple[Any, Target]:
        """Return the trained student, and the target with its processor and configuration.

        Raises:
            ModelError: the student or the teacher cannot be loaded, or the teacher does not fit the task.
        """
        from transformers import AutoConfig

        source = named_model(str(params["student"]), target)
        with loading(source, "the configuration"):
            config = AutoConfig.from_pretrained(source.path, **source.from_pretrained_kwargs()).to_dict()
        own = replace(target, source=source, config=config)
        longest = own.context.max_length
        context = replace(own.context, max_length=min(longest, usable_positions(config) or longest))
        context = replace(context, processor=own.task.load_processor(source, context))
        own = replace(own, context=context)
        student = own.task.load_model(source, context).to(context.device)
        teacher = params.get("teacher")
        recover(student, own, params, teacher=str(teacher) if teacher else None)
        return student.eval(), own
