"""Regularizers on the input embeddings: adversarial changes (FGM, PGD) and mixtures of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Refusal, Regularizer, Target
from autoft.space import Float, Int, SearchSpace
from autoft.strategies.passes import (
    classes_only,
    encodes_and_decodes,
    input_embeddings,
    with_embeddings,
    without_embeddings,
)

if TYPE_CHECKING:
    import torch

    Compute = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]

__all__ = ["Fgm", "Mixup", "Pgd"]


class _OnEmbeddings(Regularizer):
    """Changes the input embeddings of a forward pass."""

    def check(self, target: Target) -> Refusal | None:
        """Refuse models without input embeddings."""
        return without_embeddings(self.name, target)

    def prepare(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> Any:
        """Find the input embeddings, so that a model without is told before it is trained.

        Raises:
            ModelError: there are none.
        """
        input_embeddings(model)


class _Adversarial(_OnEmbeddings):
    """Trains on the rows, and on rows whose input embeddings are moved to where the loss is higher.

    The radius is in units of the mean length of a token's embedding in the batch: embeddings of pretrained models have
    lengths of their own, and a radius without unit would mean another thing for each. Weights never change, so that
    nothing has to be restored; accumulation and clipping see one loss. A batch whose forward pass embeds in parts, as
    windows of very long texts, is trained plainly.
    """

    def loss(
        self,
        compute: Compute,
        model: torch.nn.Module,
        batch: Mapping[str, torch.Tensor],
        target: Target,
        params: Mapping[str, Any],
        state: Any,
    ) -> torch.Tensor:
        """Return the loss of the rows plus that of the moved rows."""
        import torch

        with with_embeddings(model, _with_gradient) as seen:
            plain = compute(batch)
        if len(seen) > (2 if encodes_and_decodes(model) else 1):
            return plain
        start = seen[0]
        radius = float(params["epsilon"]) * start.detach().float().norm(dim=-1).mean()
        (gradient,) = torch.autograd.grad(plain, start, retain_graph=True)
        steps = int(params.get("steps", 1))
        size = radius if steps == 1 else radius * float(params["step"])
        change = size * _direction(gradient)
        for _ in range(steps - 1):
            moved = _Moved(change, needs_gradient=True)
            with with_embeddings(model, moved):
                (gradient,) = torch.autograd.grad(compute(batch), moved.change)
            change = _inside(change + size * _direction(gradient), radius)
        with with_embeddings(model, _Moved(change)):
            return plain + compute(batch)


class Fgm(_Adversarial):
    """One step along the gradient, by the length ``epsilon`` for each row (Miyato et al. 2017, arXiv:1605.07725).

    The paper moves embeddings that were normalized to unit variance by 5; of 256 dimensions these are 16 long, so that 5
    is about 0.3 of a token's length. On a thousand sentences that made a small encoder worse, and 0.1 did not, so that
    0.1 is the default (docs/training.md). Costs two forward passes and three backward ones.
    """

    name: ClassVar[str] = "fgm"
    summary: ClassVar[str] = "train on rows whose embeddings move one step towards a higher loss"
    space: ClassVar[SearchSpace] = {"epsilon": Float(0.01, 1.0, default=0.1, log=True)}


class Pgd(_Adversarial):
    """Several steps along the gradient, kept inside of a ball (Madry et al. 2018, arXiv:1706.06083, section 2.1).

    Steps are normalized in the Euclidean norm of each row, as is usual for embeddings (Zhu et al. 2020,
    arXiv:1909.11764, who take 3 steps); ``step`` is a share of ``epsilon``. Costs a forward and a backward pass for each
    step more than ``fgm``.
    """

    name: ClassVar[str] = "pgd"
    summary: ClassVar[str] = "train on rows whose embeddings move some steps towards a higher loss"
    space: ClassVar[SearchSpace] = {
        "epsilon": Float(0.01, 1.0, default=0.03, log=True),
        "step": Float(0.1, 1.0, default=0.5),
        "steps": Int(2, 5, default=3),
    }


class _Moved:
    """Adds a change to embeddings."""

    def __init__(self, change: torch.Tensor, needs_gradient: bool = False) -> None:
        self.change = change.detach().requires_grad_(needs_gradient)

    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        changed: torch.Tensor = embeddings + self.change.to(embeddings.dtype)
        return changed


def _with_gradient(embeddings: torch.Tensor) -> torch.Tensor:
    """Return the embeddings such that they have a gradient, over a frozen table too."""
    return embeddings if embeddings.requires_grad else embeddings.detach().requires_grad_()


def _direction(gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient of each row at length 1; zeros where it is zero."""
    from torch.nn import functional

    unit: torch.Tensor = functional.normalize(gradient.float().flatten(1), dim=1, eps=1e-30)
    return unit.view(gradient.shape)


def _inside(change: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Return the change of each row, no longer than the radius."""
    length = change.flatten(1).norm(dim=1).clamp_min(1e-30)
    factor = (radius / length).clamp_max(1.0)
    kept: torch.Tensor = change * factor.view(-1, *[1] * (change.ndim - 1))
    return kept


class Mixup(_OnEmbeddings):
    """Mixup of word embeddings: each row is mixed with another one, and so is the loss.

    This is ``wordMixup`` of Guo et al. 2019, arXiv:1905.08941. Embeddings become ``l * row + (1 - l) * other``, and the
    loss ``l`` times that of the row's label plus ``1 - l`` times that of the other's; ``l`` comes from a Beta
    distribution with both parameters ``alpha``, one for each batch. The paper takes 1. A mixed row is as long as the
    longer of the two. Costs two forward passes.
    """

    name: ClassVar[str] = "mixup"
    summary: ClassVar[str] = "train on mixtures of two rows' embeddings and labels"
    space: ClassVar[SearchSpace] = {"alpha": Float(0.1, 2.0, default=1.0, log=True)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"alpha": 1.0},)

    def check(self, target: Target) -> Refusal | None:
        """Refuse all but classification of texts, and models without input embeddings."""
        return classes_only(self.name, target) or super().check(target)

    def loss(
        self,
        compute: Compute,
        model: torch.nn.Module,
        batch: Mapping[str, torch.Tensor],
        target: Target,
        params: Mapping[str, Any],
        state: Any,
    ) -> torch.Tensor:
        """Return the mixed loss of mixed rows."""
        import torch

        labels, alpha = batch["labels"], float(params["alpha"])
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        other = torch.randperm(len(labels), device=labels.device)
        mixed = dict(batch)
        if "attention_mask" in batch:
            mixed["attention_mask"] = torch.maximum(batch["attention_mask"], batch["attention_mask"][other])

        def mix(embeddings: torch.Tensor) -> torch.Tensor:
            return share * embeddings + (1 - share) * embeddings[other]

        total = torch.zeros((), device=labels.device)
        for weight, answers in ((share, labels), (1 - share, labels[other])):
            with with_embeddings(model, mix):
                total = total + weight * compute({**mixed, "labels": answers})
        return total
