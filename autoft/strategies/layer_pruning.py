"""Structured pruning: whole layers, or part of what is inside of each, so that the model is really smaller and faster.

What is left is trained again to say what the model before it said.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Compressor, Refusal, Row, State, Target
from autoft.errors import ModelError
from autoft.space import Categorical, Float, SearchSpace
from autoft.strategies.attention import find_attention
from autoft.strategies.linear_layers import keep_inputs, keep_outputs, widths
from autoft.strategies.recovery import RECOVERY, recover

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "FfnPruning",
    "LayerPruning",
    "Recovered",
    "feed_forward_layers",
    "find_layers",
    "layer_pairs",
    "taylor_terms",
]

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""How configurations of transformers name the number of layers."""

WIDTHS = ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim", "d_ff")
"""How they name the width inside of a feed-forward block."""


ATTENTION: SearchSpace = {"attention": Categorical((False, True))}
"""Whether what is left learns from the trained model's attention maps too."""


class Recovered(Compressor):
    """What structured pruning shares: it takes parts away, and what is left learns from the whole."""

    yields: ClassVar[State] = "dense"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense", "reshaped", "factorized"})

    def trains(self, params: Mapping[str, Any]) -> bool:
        """Say whether there are epochs to recover in."""
        return int(params["epochs"]) > 0

    def check(self, target: Target) -> Refusal | None:
        """Refuse models with several stacks of layers, as sequence-to-sequence ones, and those without any."""
        config = target.config
        if config.get("is_encoder_decoder") or not any(isinstance(config.get(name), int) for name in LAYER_COUNTS):
            return Refusal(
                f"{self.name}: {config.get('model_type')} is not one stack of layers; it is for encoders (BERT, RoBERTa, "
                "DistilBERT, ViT ...) and decoders (GPT-2, Llama ...)"
            )
        return None

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return a smaller copy of the model, trained on what the given one says where the target can train.

        Raises:
            ModelError: the model has no parts that can be taken away.
        """
        smaller, matching = self.prune(copy.deepcopy(model), target, rows, params)
        attending = attention_pairs(smaller, target, matching) if params.get("attention") else []
        recover(smaller, target, params, matching, attending=attending)
        return smaller.eval()

    @abstractmethod
    def prune(
        self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]
    ) -> tuple[Any, Sequence[tuple[str, str]]]:
        """Return the model with parts taken away, and which of its modules are to answer as which of the teacher's."""


class LayerPruning(Recovered):
    """Drops whole layers, evenly over the depth, and trains what is left on logits and hidden states of the whole.

    Which layers stay is as in DistilBERT (Sanh et al. 2019, arXiv:1910.01108); each is taught by the layer of the whole
    at the same share of the depth (Jiao et al. 2020, arXiv:1909.10351). That no criterion of importance beats an even
    choice by much is in Sajjad et al. 2020 (arXiv:2004.03844).
    """

    name: ClassVar[str] = "layer-pruning"
    summary: ClassVar[str] = "drops whole layers, and trains what is left to answer as the whole did"
    space: ClassVar[SearchSpace] = {"keep": Float(0.05, 1.0, default=0.5), **RECOVERY, **ATTENTION}

    def prune(
        self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]
    ) -> tuple[Any, Sequence[tuple[str, str]]]:
        """Return the model with the share ``keep`` of its layers, at least one."""
        name, layers = find_layers(model)
        count = max(1, round(float(params["keep"]) * len(layers)))
        whole, every = find_layers(target.recover.teacher) if target.recover else (name, layers)
        teachers = [round((i + 1) * len(every) / count) - 1 for i in range(count)]
        kept = _kept(len(layers), count)
        model.set_submodule(name, type(layers)([layers[i] for i in kept]))
        _set_layers(model, kept, len(layers))
        return model, [(f"{name}.{i}", f"{whole}.{teacher}") for i, teacher in enumerate(teachers)]


class FfnPruning(Recovered):
    """Drops columns inside the feed-forward blocks, as many in each layer, those that move the answer least.

    How much one counts is estimated by the first-order Taylor term, the mean of ``|activation x gradient|`` over
    calibration rows (Molchanov et al. 2019, arXiv:1906.10771).
    """

    name: ClassVar[str] = "ffn-pruning"
    summary: ClassVar[str] = "drops columns of the feed-forward blocks, and trains what is left"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense", "reshaped"})
    space: ClassVar[SearchSpace] = {"keep": Float(0.05, 1.0, default=0.5), **RECOVERY, **ATTENTION}

    def prune(
        self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]
    ) -> tuple[Any, Sequence[tuple[str, str]]]:
        """Return the model with the share ``keep`` of the columns of each feed-forward block.

        Raises:
            ModelError: its layers have no feed-forward block of two or three linear layers.
        """
        _, layers = find_layers(model)
        blocks = [_feed_forward(layer) for layer in layers]
        if any(block is None for block in blocks):
            raise ModelError(
                f"{self.name}: {type(model).__name__} of {target.source.name} has no feed-forward blocks of linear layers"
            )
        found = [block for block in blocks if block is not None]
        width = widths(found[0].down)[0]
        # Multiples of 8 are what matrix kernels are made for.
        count = max(8, round(float(params["keep"]) * width / 8) * 8)
        terms = taylor_terms(
            model, [block.down for block in found], target, rows, lambda term: term.abs().flatten(0, -2).sum(0)
        )
        for block, importance in zip(found, terms, strict=True):
            kept = importance.expand(width).topk(min(count, width)).indices.sort().values
            for layer in block.ups:
                keep_outputs(layer, kept)
            keep_inputs(block.down, kept)
        for key in WIDTHS:
            if hasattr(model.config, key):
                setattr(model.config, key, min(count, width))
        return model, layer_pairs(model, target)


def find_layers(model: torch.nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the stack of layers of a transformers model, and its name.

    Raises:
        ModelError: there is none, or several.
    """
    from torch import nn

    config: Any = getattr(model, "config", None)
    counts = {getattr(config, name) for name in LAYER_COUNTS if isinstance(getattr(config, name, None), int)}
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) in counts and len({type(part) for part in module}) == 1
    ]
    found = [(name, module) for name, module in found if not any(name.startswith(f"{other}.") for other, _ in found)]
    if len(found) != 1:
        raise ModelError(f"{type(model).__name__}: has {len(found) or 'no'} stacks of layers, where one is needed")
    return found[0]


def layer_pairs(model: torch.nn.Module, target: Target) -> list[tuple[str, str]]:
    """Return each layer of a model with the teacher's at the same share of the depth, by their names.

    None of models that are not one stack of layers, or where there is no teacher.
    """
    if target.recover is None:
        return []
    try:
        (name, layers), (whole, every) = find_layers(model), find_layers(target.recover.teacher)
    except ModelError:
        return []
    teachers = [round((i + 1) * len(every) / len(layers)) - 1 for i in range(len(layers))]
    return [(f"{name}.{i}", f"{whole}.{teacher}") for i, teacher in enumerate(teachers)]


def attention_pairs(model: torch.nn.Module, target: Target, layers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the attention modules of matched layers, those of as many heads, by their names.

    Args:
        model: the student.
        target: with the teacher, if there is one.
        layers: of the student and of the teacher, by their names.
    """
    if target.recover is None:
        return []
    teacher = target.recover.teacher
    names = [{id(module): name for name, module in one.named_modules()} for one in (model, teacher)]
    return [
        (names[0][id(one.module)], names[1][id(other.module)])
        for mine, theirs in layers
        for one, other in zip(
            find_attention(model.get_submodule(mine)), find_attention(teacher.get_submodule(theirs)), strict=True
        )
        if one.heads == other.heads
    ]


def _kept(layers: int, count: int) -> list[int]:
    """Return which layers stay: the first of each of as many parts of equal depth."""
    return [i * layers // count for i in range(count)]


def _set_layers(model: Any, kept: Sequence[int], layers: int) -> None:
    config = model.config
    for name in LAYER_COUNTS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, len(kept))
    for name, value in config.to_dict().items():
        # As Qwen's and Gemma's layer_types.
        if isinstance(value, list) and len(value) == layers and name.startswith("layer"):
            setattr(config, name, [value[i] for i in kept])
    for place, layer in enumerate(find_layers(model)[1]):
        modules: list[Any] = list(layer.modules())
        for module in modules:
            # Decoders know by it which part of the cache is theirs.
            if hasattr(module, "layer_idx"):
                module.layer_idx = place


@dataclass(frozen=True)
class _FeedForward:
    """The linear layers of a block: those into its inside (two where one is a gate), and the one out of it."""

    ups: tuple[Any, ...]
    down: Any


def feed_forward_layers(model: torch.nn.Module) -> list[Any]:
    """Return the linear layers of a model's feed-forward blocks; none where there is no one stack of such."""
    try:
        blocks = [_feed_forward(layer) for layer in find_layers(model)[1]]
    except ModelError:
        return []
    return [layer for block in blocks if block is not None for layer in (*block.ups, block.down)]


def _feed_forward(layer: torch.nn.Module) -> _FeedForward | None:
    # Where heads were taken out, the layers into them and out of them look like such a block.
    heads = {id(part) for one in find_attention(layer) for part in (*one.into, one.out)}
    linear = [
        module
        for module in layer.modules()
        if type(module).__name__ in {"Linear", "Conv1D"} and id(module) not in heads
    ]
    downs = [module for module in linear if widths(module)[0] > widths(module)[1]]
    if len(downs) != 1:
        return None
    width, hidden = widths(downs[0])
    ups = tuple(module for module in linear if widths(module) == (hidden, width))
    return _FeedForward(ups, downs[0]) if ups else None


def taylor_terms(
    model: Any,
    layers: Sequence[Any],
    target: Target,
    rows: Sequence[Row],
    reduce: Callable[[torch.Tensor], torch.Tensor],
) -> list[torch.Tensor]:
    """Return the first-order Taylor terms of what comes into layers, summed over rows, on the CPU.

    Args:
        model: all of its weights require gradients afterwards.
        layers: of the model; one that is used more than once in a pass counts each time.
        target: gives batches and the loss.
        rows: to estimate with.
        reduce: from ``activation x gradient`` of a batch, ``(rows, ..., width)``, to one number for each part.
    """
    import torch

    seen: list[tuple[int, torch.Tensor]] = []
    totals = [torch.zeros(()) for _ in layers]

    def keep(place: int) -> Any:
        def hook(module: Any, given: Any) -> None:
            seen.append((place, given[0]))
            given[0].retain_grad()

        return hook

    handles = [layer.register_forward_pre_hook(keep(place)) for place, layer in enumerate(layers)]
    task, context = target.task, target.context
    device = next(model.parameters()).device
    model.eval()
    for parameter in model.parameters():
        # So that the gradients reach every block, whatever was frozen in training.
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        features = task.encode(rows, context) if rows else []
        for start in range(0, len(features), BATCH):
            seen.clear()
            batch = task.collate(features[start : start + BATCH], context)
            loss = task.loss(model, {name: value.to(device) for name, value in batch.items()}, context)
            torch.autograd.backward(loss)
            for place, inside in seen:
                assert inside.grad is not None
                totals[place] = totals[place] + reduce((inside * inside.grad).detach()).cpu()
            model.zero_grad(set_to_none=True)
    finally:
        for handle in handles:
            handle.remove()
    return totals


BATCH = 16
"""Rows a pass, where importance is estimated."""
