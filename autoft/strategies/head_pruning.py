"""Pruning of attention heads: as many in each layer, so that the model is really smaller and faster."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Refusal, Row, State, Target
from autoft.errors import ModelError, first_line
from autoft.space import Float, SearchSpace
from autoft.strategies.attention import Attention, find_attention
from autoft.strategies.layer_pruning import Recovered, layer_pairs, taylor_terms
from autoft.strategies.recovery import RECOVERY
from autoft.strategies.reshaped import ReshapedFiles, Shapes, check_class, shapes_of

if TYPE_CHECKING:
    import torch

__all__ = ["HeadPruning"]

OTHER_FORMS = frozenset({"bloom", "deberta", "falcon", "gpt_neox", "mpnet", "olmo2", "phi3"})
"""Model types whose layers hold heads in another order, or have weights beside that belong to heads, as tiny ones show."""

TOLERANCE = 1e-3
"""Largest difference between the pruned model and the whole one with the same heads masked, relative to the largest."""


class HeadPruning(ReshapedFiles, Recovered):
    """Drops attention heads, as many in each layer, those that move the answer least, and trains what is left.

    How much a head counts is the mean of ``|d loss / d mask|`` over calibration rows, its mask being a factor of 1 on
    what it gives (Michel et al. 2019, arXiv:1905.10650, equation 2). Where several heads share their keys and values,
    they stay or go together.

    Configurations of Llama's relatives and of ViT can say how many heads there are and how wide each is, and then the
    files are those of transformers. Those of BERT's relatives and of GPT-2 cannot: there the width of a head is the width
    of the model through the number of heads. The published share is what the paper's BERT kept its accuracy with, without
    any training.
    """

    name: ClassVar[str] = "head-pruning"
    summary: ClassVar[str] = "drops attention heads, and trains what is left"
    space: ClassVar[SearchSpace] = {"keep": Float(0.05, 1.0, default=0.5), **RECOVERY}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"keep": 0.6, "epochs": 0},)
    accepts: ClassVar[frozenset[State]] = frozenset({"dense"})
    yields: ClassVar[State] = "reshaped"

    def check(self, target: Target) -> Refusal | None:
        """Refuse what all pruning of layers does, and models whose attention is of another form."""
        model_type = target.config.get("model_type")
        if model_type in OTHER_FORMS:
            return Refusal(
                f"{self.name}: heads of {model_type} cannot be taken out one by one; use ffn-pruning, or a model like "
                "BERT, DistilBERT, ViT, GPT-2 or Llama"
            )
        return super().check(target)

    def prune(
        self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]
    ) -> tuple[Any, Sequence[tuple[str, str]]]:
        """Return the model with the share ``keep`` of the heads of each layer, at least one.

        Raises:
            ModelError: its attention is of no form that is known here, or the model is of a class that transformers does
                not have.
        """
        check_class(model, self.name)
        found = find_attention(model)
        if not found:
            raise ModelError(
                f"{self.name}: {type(model).__name__} of {target.source.name} has no attention of a form that is known "
                "here; use ffn-pruning"
            )
        kept = [
            one.columns(importance, float(params["keep"]))
            for one, importance in zip(found, _importance(model, found, target, rows), strict=True)
        ]
        batch = _batch(model, target, rows[:FEW])
        wanted = _inside(model, found, target, batch, kept)
        for one, columns in zip(found, kept, strict=True):
            one.keep(columns)
        try:
            away = _difference(_inside(model, found, target, batch), wanted)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ModelError(self._wrong(model, first_line(error))) from error
        if not away <= TOLERANCE:
            raise ModelError(self._wrong(model, f"its heads differ by {away:.2g} from what they were in the whole"))
        _say(model)
        return model, layer_pairs(model, target)

    def _wrong(self, model: Any, why: str) -> str:
        return f"{self.name}: {type(model).__name__} does not work with fewer heads than its configuration says: {why}"


def _importance(model: Any, found: Sequence[Attention], target: Target, rows: Sequence[Row]) -> list[torch.Tensor]:
    """Return how much each head moves the loss, ``(heads,)``, summed over rows."""
    sizes = {one.size for one in found}
    if len(sizes) > 1:
        raise ModelError(f"head-pruning: {type(model).__name__} has heads of several widths, which are not pruned")
    (size,) = sizes

    def of_heads(term: torch.Tensor) -> torch.Tensor:
        # The loss of a batch is the mean of its rows', and each row is asked by itself.
        rowwise = term.reshape(len(term), -1, term.shape[-1] // size, size).sum((1, 3))
        return rowwise.abs().sum(0) * len(term)

    return taylor_terms(model, [one.out for one in found], target, rows, of_heads)


def _batch(model: Any, target: Target, rows: Sequence[Row]) -> Mapping[str, Any]:
    """Return rows as one batch on the model's device; an empty one where there are none."""
    task, context = target.task, target.context
    batch = task.collate(task.encode(rows, context), context) if rows else {}
    return {name: value.to(next(model.parameters()).device) for name, value in batch.items()}


def _inside(
    model: Any,
    found: Sequence[Attention],
    target: Target,
    batch: Mapping[str, Any],
    kept: Sequence[torch.Tensor] = (),
) -> list[torch.Tensor]:
    """Return what comes out of the heads of each module, those of ``kept`` alone while all others give nothing."""
    import torch

    seen: list[torch.Tensor] = []

    def watch(columns: torch.Tensor | None) -> Any:
        def hook(module: Any, given: Any) -> Any:
            if columns is None:
                seen.append(given[0])
                return None
            mask = torch.zeros(given[0].shape[-1], device=given[0].device)
            mask[columns] = 1
            seen.append(given[0][..., columns])
            return (given[0] * mask,)

        return hook

    masks: Sequence[torch.Tensor | None] = kept or [None] * len(found)
    handles = [one.out.register_forward_pre_hook(watch(columns)) for one, columns in zip(found, masks, strict=True)]
    try:
        # Whatever a loss draws, it draws the same of both models.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if batch:
                target.task.loss(model, batch, target.context)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _difference(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Return the largest difference, relative to the largest number of each; NaN where there is any."""
    import torch

    pairs = zip(found, wanted, strict=True)
    away = [(one - other).abs().max() / other.abs().max().clamp(min=1e-6) for one, other in pairs]
    # Unlike Python's, torch's largest of numbers and NaN is NaN.
    return float(torch.stack(away).max()) if away else 0.0


def _say(model: Any) -> None:
    """Have the configuration say how many heads there are, if it can say just what the model is."""
    from huggingface_hub.errors import StrictDataclassError

    again = {(one.heads, one.groups, one.size) for one in find_attention(model)}
    if len(again) > 1:
        return
    ((queries, keys, size),) = again
    changed = copy.deepcopy(model.config)
    names = {"num_attention_heads": queries, "num_key_value_heads": keys, "head_dim": size}
    names = {name: value for name, value in names.items() if name != "num_key_value_heads" or hasattr(changed, name)}
    try:
        for name, value in names.items():
            setattr(changed, name, value)
        read = type(changed).from_dict(changed.to_dict())
        if shapes_of(model, read) != Shapes():
            return
    except (ValueError, RuntimeError, ModelError, StrictDataclassError):
        return
    for name, value in names.items():
        setattr(model.config, name, value)


FEW = 4
"""Rows that a pruned model is compared on with the whole one."""
