"""Regularizers that ask for the same answer to what is nearly the same: R-Drop and token cutoff."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Refusal, Regularizer, Target
from autoft.space import Float, SearchSpace
from autoft.strategies.passes import classes_only, judged_logits, logits_seen, reads_labels

if TYPE_CHECKING:
    import torch

    Compute = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]

__all__ = ["RDrop", "TokenCutoff", "divergence"]


def divergence(one: torch.Tensor, other: torch.Tensor, binary: bool = False) -> torch.Tensor:
    """Return ``KL(p || q)``, the mean over places, from logits ``(places, classes)`` of each.

    Args:
        one: logits of p.
        other: logits of q.
        binary: each class is a question of its own with yes and no; their divergences are added up.
    """
    from torch.nn import functional

    if not len(one):
        return (one.sum() + other.sum()) * 0.0
    if binary:
        yes, no = functional.logsigmoid(one), functional.logsigmoid(-one)
        ratio = yes.exp() * (yes - functional.logsigmoid(other)) + no.exp() * (no - functional.logsigmoid(-other))
        return ratio.sum(-1).mean()
    p, q = functional.log_softmax(one, -1), functional.log_softmax(other, -1)
    return (p.exp() * (p - q)).sum(-1).mean()


class RDrop(Regularizer):
    """R-Drop: two passes with different dropout have to agree (Liang et al. 2021, arXiv:2106.14448, equations 2 to 4).

    The loss is the mean of the two passes' own and ``weight`` times their symmetric divergence
    ``(KL(p1 || p2) + KL(p2 || p1)) / 2``, the mean over places that have a label. The paper uses weights of 0.1, 0.5 and
    1 for GLUE, and 5 for translation. Without dropout the passes are alike, and it does nothing but cost time.
    """

    name: ClassVar[str] = "r-drop"
    summary: ClassVar[str] = "two passes with different dropout have to agree"
    space: ClassVar[SearchSpace] = {"weight": Float(0.1, 5.0, default=1.0, log=True)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"weight": 1.0}, {"weight": 5.0})

    def check(self, target: Target) -> Refusal | None:
        """Refuse tasks whose labels are not the classes of the model's logits."""
        if reads_labels(target):
            return None
        return Refusal(
            f"{self.name}: needs a task whose labels are classes of the model's logits; those of "
            f"{target.task.card.name} are not"
        )

    def loss(
        self,
        compute: Compute,
        model: torch.nn.Module,
        batch: Mapping[str, torch.Tensor],
        target: Target,
        params: Mapping[str, Any],
        state: Any,
    ) -> torch.Tensor:
        """Return the mean of two losses and the weighted divergence.

        Raises:
            ModelError: the model gives no logits that go with the labels.
        """
        losses, logits, binary = [], [], False
        for _ in range(2):
            with logits_seen(model) as seen:
                losses.append(compute(batch))
            found, binary = judged_logits(seen, model, batch, target)
            logits.append(found)
        apart = (divergence(logits[0], logits[1], binary) + divergence(logits[1], logits[0], binary)) / 2
        return (losses[0] + losses[1]) / 2 + float(params["weight"]) * apart


class TokenCutoff(Regularizer):
    """Token cutoff: rows with tokens left out have to be answered alike (Shen et al. 2020, arXiv:2009.13818).

    Of each row ``ratio`` of the tokens are hidden by the attention mask, the first and the last never. The loss is that
    of the whole rows, that of the cut ones, and ``consistency`` times the Jensen-Shannon divergence of the answers. The
    weights of 1 are the paper's.
    """

    name: ClassVar[str] = "token-cutoff"
    summary: ClassVar[str] = "rows with tokens left out have to be answered alike"
    space: ClassVar[SearchSpace] = {
        "ratio": Float(0.05, 0.3, default=0.1),
        "consistency": Float(0.1, 5.0, default=1.0, log=True),
    }

    def check(self, target: Target) -> Refusal | None:
        """Refuse all but classification of texts."""
        return classes_only(self.name, target)

    def loss(
        self,
        compute: Compute,
        model: torch.nn.Module,
        batch: Mapping[str, torch.Tensor],
        target: Target,
        params: Mapping[str, Any],
        state: Any,
    ) -> torch.Tensor:
        """Return the loss of whole rows, of cut rows, and the weighted divergence.

        Raises:
            ModelError: the batch has no ``attention_mask``, or the model no logits that go with the labels.
        """
        import torch
        from torch.nn import functional

        from autoft.errors import ModelError

        if "attention_mask" not in batch:
            raise ModelError(
                f"{self.name}: batches of {target.task.card.name} have no attention_mask to hide tokens with"
            )
        mask = batch["attention_mask"]
        cut = {**batch, "attention_mask": _hide(mask, float(params["ratio"]))}
        total, logits, binary = torch.zeros((), device=mask.device), [], False
        for given in (batch, cut):
            with logits_seen(model) as seen:
                total = total + compute(given)
            found, binary = judged_logits(seen, model, batch, target)
            logits.append(found)
        if binary:
            middle = torch.logit((logits[0].sigmoid() + logits[1].sigmoid()) / 2, eps=1e-6)
        else:
            middle = (
                ((functional.softmax(logits[0], -1) + functional.softmax(logits[1], -1)) / 2).clamp_min(1e-12).log()
            )
        apart = (divergence(logits[0], middle, binary) + divergence(logits[1], middle, binary)) / 2
        return total + float(params["consistency"]) * apart


def _hide(mask: torch.Tensor, ratio: float) -> torch.Tensor:
    """Return an attention mask ``(rows, seq)`` without a share of its tokens, the first and last of each row kept."""
    import torch

    places = mask.bool()
    order = places.long().cumsum(1)
    inner = places & (order > 1) & (order < places.sum(1, keepdim=True))
    # The tokens with the smallest numbers go, so that each row loses its share and not a share by chance.
    numbers = torch.rand(mask.shape, device=mask.device).masked_fill(~inner, 2.0)
    rank = numbers.argsort(1).argsort(1)
    gone = inner & (rank < (ratio * places.sum(1, keepdim=True)).round())
    return mask.masked_fill(gone, 0)
