"""Adapters that train a part of the model's own weights: the upper layers, the biases, or the norms."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Adapter, Refusal, Target
from autoft.errors import ModelError
from autoft.space import Float, Int, SearchSpace
from autoft.strategies.full import narrow_rate
from autoft.strategies.head_only import find_bodies, find_head

if TYPE_CHECKING:
    import torch

__all__ = ["BitFit", "LayerNorm", "PartialAdapter", "TopLayers", "body_and_layers", "layer_stacks"]

_WITHOUT_BIASES = frozenset(
    {"gemma", "gemma2", "gemma3_text", "llama", "longt5", "mistral", "mixtral", "modernbert", "mt5", "t5", "umt5"}
)
"""Model types (of transformers 5.23) whose layers have no biases by default."""


class PartialAdapter(Adapter):
    """Trains some weights of the body, in their place, and the head."""

    divisible: ClassVar[bool] = True

    @abstractmethod
    def chosen(self, model: torch.nn.Module, params: Mapping[str, Any]) -> Iterable[str]:
        """Return the names of the parameters of the body to train."""

    def attach(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> torch.nn.Module:
        """Return the model with the chosen weights and the head trainable.

        Raises:
            ModelError: the model has none of the kind.
        """
        chosen = set(self.chosen(model, params))
        if not chosen:
            raise ModelError(
                f"{self.name}: {type(model).__name__} of {target.source.name} has nothing of this kind to train; use lora"
            )
        chosen |= set(find_head(model).parameters)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        return model

    def merge(
        self, model: torch.nn.Module, base: Callable[[], torch.nn.Module] | None, target: Target
    ) -> torch.nn.Module:
        """Return the model as it is: what was learned is in its own weights."""
        return model


class TopLayers(PartialAdapter):
    """Train the upper layers of the body and the head, and leave what is below as it was pretrained.

    Lee et al. 2019 (arXiv:1911.03090): training the upper quarter of BERT's and RoBERTa's layers reaches 90 % of the
    quality of training all. Learning rates are those of full fine-tuning, somewhat higher. Of an encoder and a decoder
    each has its upper layers trained. Layers are the repeated modules of the body; of a model in stages, the stages.
    """

    name: ClassVar[str] = "top-layers"
    summary: ClassVar[str] = "train the upper layers of the body, and the head"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(1e-5, 5e-4, default=1e-4, log=True),
        "layers": Int(1, 6, default=2),
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 1e-4, "layers": 2},
        {"learning_rate": 5e-5, "layers": 3},
    )

    def rate_scale(self, target: Target) -> float:
        """Return how many times as high the rates of a narrow model are, as in full fine-tuning."""
        return narrow_rate(target.config)

    def chosen(self, model: torch.nn.Module, params: Mapping[str, Any]) -> Iterable[str]:
        """Return the weights of the last layers of each stack."""
        for stack, modules in layer_stacks(model).items():
            for index in range(max(0, len(modules) - params["layers"]), len(modules)):
                for name, _ in modules[index].named_parameters():
                    yield f"{stack}.{index}.{name}"


class BitFit(PartialAdapter):
    """Train the biases of the body, and the head.

    Method: Ben Zaken et al. 2021 (arXiv:2106.10199), with learning rates of 1e-4 to 1e-3 for BERT on GLUE. Needs a body
    with biases, which Llama's and T5's have not.
    """

    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "train the biases of the body, and the head"
    space: ClassVar[SearchSpace] = {"learning_rate": Float(1e-4, 1e-2, default=1e-3, log=True)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"learning_rate": 1e-3}, {"learning_rate": 4e-4})

    def check(self, target: Target) -> Refusal | None:
        """Refuse models without biases."""
        model_type = target.config.get("model_type")
        if model_type in _WITHOUT_BIASES and not target.config.get("attention_bias"):
            return Refusal(f"bitfit: {model_type} has no biases to train; use layernorm or lora")
        return None

    def chosen(self, model: torch.nn.Module, params: Mapping[str, Any]) -> Iterable[str]:
        """Return all biases."""
        return (name for name, _ in model.named_parameters() if name.rpartition(".")[2].endswith("bias"))


class LayerNorm(PartialAdapter):
    """Train the weights and biases of the normalization layers, and the head.

    Method: Zhao et al. 2023 (arXiv:2312.11420). The rates are those of BitFit, as the trained numbers are of the same
    kind.
    """

    name: ClassVar[str] = "layernorm"
    summary: ClassVar[str] = "train the normalization layers of the body, and the head"
    space: ClassVar[SearchSpace] = {"learning_rate": Float(1e-4, 1e-2, default=1e-3, log=True)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"learning_rate": 1e-3},)

    def chosen(self, model: torch.nn.Module, params: Mapping[str, Any]) -> Iterable[str]:
        """Return the weights of all modules that are called a norm, as ``LayerNorm`` and ``LlamaRMSNorm``."""
        for path, module in model.named_modules():
            if "norm" in type(module).__name__.lower() and not list(module.children()):
                for name, _ in module.named_parameters():
                    yield f"{path}.{name}"


def layer_stacks(model: torch.nn.Module) -> dict[str, Any]:
    """Return the lists of like modules in the bodies that lie in no other such list, by name."""
    from torch import nn

    found: dict[str, Any] = {}
    bodies = find_bodies(model)
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len({type(one) for one in module}) != 1:
            continue
        inside = any(not body or name.startswith(f"{body}.") for body in bodies)
        if inside and not any(name.startswith(f"{stack}.") for stack in found):
            found[name] = module
    return found


def body_and_layers(model: Any) -> tuple[torch.nn.Module, Sequence[torch.nn.Module]] | None:
    """Return the body of a model, with an adapter of PEFT around it or without, and its layers, or None unless it has one stack."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    stacks, bodies = layer_stacks(inner), find_bodies(inner)
    if len(stacks) != 1 or len(bodies) != 1:
        return None
    (stack,) = stacks.values()
    return inner.get_submodule(bodies[0]), list(stack)
