"""Supervised contrastive learning beside cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Refusal, Regularizer, Target
from autoft.errors import ModelError
from autoft.space import Float, SearchSpace
from autoft.strategies.passes import classes_only

if TYPE_CHECKING:
    import torch

    Compute = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]

__all__ = ["SupervisedContrastive", "contrast"]


def contrast(features: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the supervised contrastive loss, the mean over rows that share their label with another row.

    Args:
        features: ``(rows, width)``; their directions count.
        labels: ``(rows,)``.
        temperature: that similarities are divided by.

    Returns:
        for each row, the mean over the others with its label of ``-log(exp(s_ij / t) / sum_k exp(s_ik / t))``, where
        ``k`` goes over all other rows; 0 where no two rows share a label.
    """
    import torch
    from torch.nn import functional

    directions = functional.normalize(features.float(), dim=-1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    logs = functional.log_softmax((directions @ directions.T / temperature).masked_fill(itself, -torch.inf), dim=-1)
    alike = (labels[:, None] == labels) & ~itself
    count = alike.sum(1)
    if not bool(count.any()):
        return features.sum() * 0.0
    own = -logs.masked_fill(~alike, 0.0).sum(1)[count > 0] / count[count > 0]
    return own.mean()


class SupervisedContrastive(Regularizer):
    """Rows of one class are drawn together, and apart from the others (Gunel et al. 2021, arXiv:2011.01403, equation 1).

    The loss is ``(1 - weight)`` times the task's and ``weight`` times :func:`contrast` of what goes into the classifier's
    last layer. The paper finds a weight of 0.9 and a temperature of 0.3 best for few rows, and searches both. Batches
    need several rows of a class: 16 or more.
    """

    name: ClassVar[str] = "supervised-contrastive"
    summary: ClassVar[str] = "rows of one class are drawn together, apart from others"
    space: ClassVar[SearchSpace] = {
        "weight": Float(0.1, 0.9, default=0.1),
        "temperature": Float(0.05, 1.0, default=0.3, log=True),
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"weight": 0.9, "temperature": 0.3},)

    def check(self, target: Target) -> Refusal | None:
        """Refuse all but classification of texts."""
        return classes_only(self.name, target, ("label",))

    def prepare(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> Any:
        """Return the classifier's last layer.

        Raises:
            ModelError: rows have several labels, or no such layer is found.
        """
        from torch import nn

        if target.context.facts.get("problem") == "multi":
            raise ModelError(f"{self.name}: needs one label a row, and these rows have several; use r-drop")
        classes = getattr(getattr(model, "config", None), "num_labels", None)
        layers = [one for one in model.modules() if isinstance(one, nn.Linear) and one.out_features == classes]
        if not layers:
            raise ModelError(
                f"{self.name}: {type(model).__name__} has no linear layer with {classes} outputs; use r-drop"
            )
        # Where an adapter holds a trained copy of the head, the copy comes after the original.
        return layers[-1]

    def loss(
        self,
        compute: Compute,
        model: torch.nn.Module,
        batch: Mapping[str, torch.Tensor],
        target: Target,
        params: Mapping[str, Any],
        state: Any,
    ) -> torch.Tensor:
        """Return the two losses, weighted."""
        import torch

        with _inputs_of(state) as seen:
            loss = compute(batch)
        features = seen[-1]
        if features.ndim == 3:
            # A decoder judges each token, and reads the last one's answer.
            mask = batch["attention_mask"]
            last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
            features = features[torch.arange(len(mask), device=mask.device), last]
        weight = float(params["weight"])
        return (1 - weight) * loss + weight * contrast(features, batch["labels"], float(params["temperature"]))


@contextmanager
def _inputs_of(layer: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect what goes into a layer inside of the block."""
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()
