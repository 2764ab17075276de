"""Regularizers of the weights: penalties, closeness to the pretrained weights, and how much of them is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Reach, Refusal, Regularizer, State, Target
from autoft.errors import ModelError
from autoft.space import Float, Int, SearchSpace
from autoft.strategies.head_only import CONVOLUTIONAL, find_head
from autoft.strategies.passes import WRITING

if TYPE_CHECKING:
    import torch

    Compute = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]

__all__ = ["L1", "L2Sp", "LayerDecay", "Mixout", "ReinitTop", "layer_of"]


class L1(Regularizer):
    """Lasso: ``weight`` times the sum of the absolute values of what is trained (Tibshirani 1996).

    Vectors (biases, norms) are left out, as of weight decay. There is no published weight for fine-tuning.
    """

    name: ClassVar[str] = "l1"
    summary: ClassVar[str] = "penalty on the absolute values of the trained weights"
    space: ClassVar[SearchSpace] = {"weight": Float(1e-8, 1e-4, default=1e-7, log=True)}

    def loss(
        self,
        compute: Compute,
        model: torch.nn.Module,
        batch: Mapping[str, torch.Tensor],
        target: Target,
        params: Mapping[str, Any],
        state: Any,
    ) -> torch.Tensor:
        """Return the loss and the penalty."""
        loss = compute(batch)
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim >= 2:
                loss = loss + float(params["weight"]) * parameter.abs().sum()
        return loss


class L2Sp(Regularizer):
    """L2-SP: weights stay near where they started (Li et al. 2018, arXiv:1802.01483, equation 3).

    Adds ``alpha / 2`` times the squared distance of the body from its pretrained weights, and ``beta / 2`` times the
    squared length of the new head. The paper sets ``beta`` to 0.01 and searches ``alpha``.
    """

    name: ClassVar[str] = "l2-sp"
    summary: ClassVar[str] = "penalty on the distance from the pretrained weights"
    needs: ClassVar[Reach] = "all"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense"})
    space: ClassVar[SearchSpace] = {
        "alpha": Float(1e-4, 1.0, default=0.01, log=True),
        "beta": Float(1e-4, 1.0, default=0.01, log=True),
    }

    def prepare(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> Any:
        """Remember the pretrained weights."""
        head = set(find_head(model).parameters)
        return {
            name: None if name in head else parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def loss(
        self,
        compute: Compute,
        model: torch.nn.Module,
        batch: Mapping[str, torch.Tensor],
        target: Target,
        params: Mapping[str, Any],
        state: Any,
    ) -> torch.Tensor:
        """Return the loss and the penalty."""
        loss, now = compute(batch), dict(model.named_parameters())
        for name, start in state.items():
            if start is None:
                loss = loss + float(params["beta"]) / 2 * now[name].square().sum()
            else:
                loss = loss + float(params["alpha"]) / 2 * (now[name] - start).square().sum()
        return loss


class Mixout(Regularizer):
    """Mixout: in each pass a share of the weights is the pretrained one (Lee et al. 2020, arXiv:1909.11299, section 3).

    Of each linear layer of the body, weights ``w`` become ``(m * w0 + (1 - m) * w - p * w0) / (1 - p)``, where ``m`` is 1
    with probability ``p`` for each weight: dropout that goes back to ``w0`` and not to zero. It takes the place of the
    body's dropout, as in the authors' ``module.py`` (github.com/bloodwass/mixout), so that one is off meanwhile. The
    paper takes 0.7, 0.8 and 0.9 for large models; on a small one 0.3, which is the default, was better
    (docs/training.md). It acts in training passes only, and leaves the head alone.
    """

    name: ClassVar[str] = "mixout"
    summary: ClassVar[str] = "in each pass a share of the weights is the pretrained one"
    needs: ClassVar[Reach] = "all"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense"})
    space: ClassVar[SearchSpace] = {"p": Float(0.1, 0.95, default=0.3)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"p": 0.7}, {"p": 0.9})

    def check(self, target: Target) -> Refusal | None:
        """Refuse models without linear layers in the body."""
        return _convolutional(self.name, target)

    def prepare(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> Any:
        """Have each linear layer of the body compute with mixed weights, and without dropout around it.

        Raises:
            ModelError: there is none.
        """
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        head = find_head(model).modules
        layers = [
            module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
            and module.weight.requires_grad
            and not any(name == part or name.startswith(f"{part}.") for part in head)
        ]
        if not layers:
            raise ModelError(f"{self.name}: {type(model).__name__} has no linear layers to mix; use l2-sp")
        for layer in layers:
            layer.forward = _mixed(layer, float(params["p"]))  # type: ignore[method-assign]
        body = getattr(model, str(getattr(model, "base_model_prefix", "")), model)
        dropped = [(module, module.p) for module in body.modules() if isinstance(module, nn.Dropout)]
        for module, _ in dropped:
            module.p = 0.0
        return layers, dropped

    def finish(self, model: torch.nn.Module, state: Any) -> None:
        """Give the layers their own forward pass back, and the body its dropout."""
        layers, dropped = state
        for layer in layers:
            del layer.forward
        for module, p in dropped:
            module.p = p


def _mixed(layer: Any, p: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the forward pass of a layer with mixed weights; as it was where the layer is not training."""
    from torch import nn
    from torch.nn import functional

    start, plain = layer.weight.detach().clone(), layer.forward

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        if not layer.training:
            answer: torch.Tensor = plain(inputs)
            return answer
        # Dropout scales what it keeps by 1 / (1 - p), which is the formula around w0.
        weight = start + functional.dropout(layer.weight - start, p)
        if isinstance(layer, nn.Linear):
            return functional.linear(inputs, weight, layer.bias)
        # GPT-2's layout, transposed.
        return functional.linear(inputs, weight.T, layer.bias)

    return forward


class LayerDecay(Regularizer):
    """Lower layers learn more slowly: each layer at ``rate`` of the one above (Howard and Ruder 2018, arXiv:1801.06146).

    The head and the uppermost layer have the whole learning rate, the layer ``k`` below it ``rate ** k``, and the
    embeddings ``rate`` of the lowest. Sun et al. 2019 (arXiv:1905.05583, section 5.3.3) find 0.95 best for BERT.
    """

    name: ClassVar[str] = "layer-decay"
    summary: ClassVar[str] = "each layer learns more slowly than the one above"
    needs: ClassVar[Reach] = "layers"
    space: ClassVar[SearchSpace] = {"rate": Float(0.5, 1.0, default=0.95)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"rate": 0.95},)

    def learning_rates(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> Mapping[str, float]:
        """Return the factor of each parameter of the body.

        Raises:
            ModelError: the model has no numbered layers.
        """
        found = layer_of(model)
        if not found:
            raise ModelError(f"{self.name}: {type(model).__name__} has no numbered layers; use another regularizer")
        return {name: float(params["rate"]) ** below for name, below in found.items()}


def layer_of(model: torch.nn.Module) -> dict[str, int]:
    """Return by parameter name how far below the uppermost layer it lies: 0 for that one, most for embeddings.

    Layers are the items of the longest ``ModuleList`` in each pretrained part (encoder and decoder are two); parameters
    that come before the first of them are embeddings, and those behind the last (pooler, head) are left out. Empty
    where there are no such lists.
    """
    from torch import nn

    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(list(one.parameters()) for one in module)
    ]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    names = [name for name, _ in model.named_parameters()]
    most = max((len(model.get_submodule(name)) for name in outer), default=0)  # type: ignore[arg-type]
    outer = [name for name in outer if 2 * len(model.get_submodule(name)) >= most]  # type: ignore[arg-type]
    depths: dict[str, int] = {}
    for one in outer:
        count = len(model.get_submodule(one))  # type: ignore[arg-type]
        for name in names:
            if name.startswith(f"{one}."):
                depths[name] = count - 1 - int(name.removeprefix(f"{one}.").split(".", 1)[0])
    if depths:
        head = set(find_head(model).parameters)
        for name in names[: min(names.index(name) for name in depths)]:
            if name not in head:
                depths[name] = most
    return depths


class ReinitTop(Regularizer):
    """The uppermost layers start from random weights (Zhang et al. 2021, arXiv:2006.05987, section 4).

    They and the pooler hold what the pretraining task needed, and may be a worse start than none. The paper
    re-initializes 1 to 6 of BERT-Large's layers; 1 is what this takes by default. Weights are drawn as the model's own
    code draws them.
    """

    name: ClassVar[str] = "reinit-top"
    summary: ClassVar[str] = "the uppermost layers and the pooler start from random weights"
    needs: ClassVar[Reach] = "all"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense"})
    space: ClassVar[SearchSpace] = {"layers": Int(1, 6, default=1)}

    def check(self, target: Target) -> Refusal | None:
        """Refuse models with convolutions, and those that write as they were pretrained to."""
        architecture = target.task.card.architecture
        if architecture in WRITING:
            return Refusal(
                f"{self.name}: a {architecture} model writes with its upper layers, which have to stay; use layer-decay"
            )
        return _convolutional(self.name, target)

    def prepare(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> Any:
        """Draw the weights anew.

        Raises:
            ModelError: the model has no numbered layers, or no more than would be drawn anew.
        """
        depths, count = layer_of(model), int(params["layers"])
        if not depths or count > max(depths.values()) - 1:
            raise ModelError(
                f"{self.name}: {type(model).__name__} has {max(depths.values(), default=0)} layers, and {count} of them "
                "cannot start anew; lower reinit-top.layers"
            )
        chosen = {name.rpartition(".")[0] for name, depth in depths.items() if depth < count}
        draw: Any = model._init_weights
        for name, module in model.named_modules():
            if name in chosen or name.endswith("pooler.dense"):
                for parameter in module.parameters(recurse=False):
                    # transformers leaves alone what it has read from a file, and marks it so.
                    parameter._is_hf_initialized = False
                draw(module)


def _convolutional(name: str, target: Target) -> Refusal | None:
    model_type = target.config.get("model_type")
    if model_type in CONVOLUTIONAL:
        return Refusal(f"{name}: {model_type} is made of convolutions; use another regularizer, or a transformer")
    return None
