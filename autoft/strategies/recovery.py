"""Training what is left of a model after parts of it were taken away, as compressors share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoft.contracts import Target
from autoft.space import Float, Int, SearchSpace

if TYPE_CHECKING:
    import torch

__all__ = ["RECOVERY", "recover"]

RECOVERY: SearchSpace = {
    "epochs": Int(0, 100, default=5),
    "learning_rate": Float(1e-6, 1e-2, default=2e-4, log=True),
    "teaching": Float(0.0, 1.0, default=0.9),
    "teachers": Int(1, 8, default=1),
}
"""How what is left is trained: 0 epochs for not at all; ``teaching`` is the weight of what the trained model said, or with
more ``teachers`` what the models of so many of the best trials said together."""


def recover(
    model: torch.nn.Module,
    target: Target,
    params: Mapping[str, Any],
    matching: Sequence[tuple[str, str]] = (),
    after_step: Callable[[float], None] | None = None,
    teacher: str | None = None,
    attending: Sequence[tuple[str, str]] = (),
) -> None:
    """Train a model in its place, where there are epochs for it and rows to train on.

    Args:
        model: what is left.
        target: of the model.
        params: with those of :data:`RECOVERY`.
        matching: modules of it and of the trained model whose outputs are to be alike.
        after_step: told the share of the training that is done.
        teacher: name of the model to learn from in place of the trained one.
        attending: attention modules of it and of the trained model whose maps are to be alike.

    Raises:
        ModelError: the model that is named does not fit.
    """
    if target.recover is not None and int(params["epochs"]):
        count = int(params.get("teachers") or 1)
        teachers = [target.recover.named(teacher)] if teacher else target.recover.best(count) if count > 1 else []
        target.recover(
            model,
            target,
            epochs=int(params["epochs"]),
            learning_rate=float(params["learning_rate"]),
            teaching=float(params["teaching"]),
            matching=matching,
            after_step=after_step,
            teachers=teachers,
            attending=attending,
        )
