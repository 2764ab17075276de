"""Head-only training, and what a model's head is: other strategies ask here which modules belong to the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Adapter, Reach, Refusal, Target
from autoft.errors import ModelError
from autoft.pretrained import embeddings_of_inputs
from autoft.space import Float, SearchSpace

if TYPE_CHECKING:
    import torch

__all__ = ["CONVOLUTIONAL", "Head", "HeadOnly", "find_bodies", "find_head", "gets_a_decoder", "is_pretrained"]

CONVOLUTIONAL = frozenset(
    {
        "bit",
        "efficientnet",
        "hgnet_v2",
        "mobilenet_v1",
        "mobilenet_v2",
        "mobilevitv2",
        "poolformer",
        "pp_lcnet",
        "pp_lcnet_v3",
        "regnet",
        "resnet",
        "rt_detr_resnet",
        "squeezebert",
        "textnet",
        "uvdoc_backbone",
    }
)
"""Model types (of transformers 5.23) whose body computes with convolutions only: no linear layer to adapt or quantize."""

_PRETRAINED_HEADS = frozenset({"causal-lm", "masked-lm", "seq2seq", "seq2seq-lm"})
_MADE_WRITERS = frozenset({"conditional-generation", "image-text-to-text"})
"""Architectures whose tasks put a new decoder to an encoder, and take models that write already as they are."""


class HeadOnly(Adapter):
    """Train the task's head over a frozen body: a linear probe, the cheapest training that there is.

    The head is every weight outside the pretrained body (``model.base_model_prefix``), as DistilBERT's
    ``pre_classifier`` and ``classifier``. A pooler inside the body, as BERT's, stays frozen where the checkpoint has
    it, and is trained where it had to be made newly. The embeddings that generate words (``lm_head``) are pretrained
    and are no head.

    A new head over frozen features takes learning rates far above those of full fine-tuning. 1e-3 is Adam's own
    default (Kingma and Ba 2015, arXiv:1412.6980, section 2); the range reaches about a factor of ten around 3e-3.
    """

    name: ClassVar[str] = "head-only"
    summary: ClassVar[str] = "train the task's head, keep the rest frozen"
    reach: ClassVar[Reach] = "head"
    divisible: ClassVar[bool] = True
    space: ClassVar[SearchSpace] = {"learning_rate": Float(3e-4, 3e-2, default=3e-3, log=True)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"learning_rate": 1e-3},)

    def check(self, target: Target) -> Refusal | None:
        """Refuse tasks whose models have no head of their own."""
        architecture = target.task.card.architecture
        made = architecture in _MADE_WRITERS and not gets_a_decoder(architecture, target.config)
        if architecture in _PRETRAINED_HEADS or made:
            return Refusal(
                f"head-only: a {architecture} model has no new head; its output layer is pretrained; use full or lora"
            )
        return None

    def attach(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> torch.nn.Module:
        """Return the model with only the head trainable.

        Raises:
            ModelError: no head is found.
        """
        head = find_head(model)
        if not head.parameters:
            raise ModelError(
                f"head-only: {type(model).__name__} of {target.source.name} has no weights outside its pretrained "
                "body, so there is nothing to train; use full or lora"
            )
        trained = set(head.parameters)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        return model

    def merge(
        self, model: torch.nn.Module, base: Callable[[], torch.nn.Module] | None, target: Target
    ) -> torch.nn.Module:
        """Return the model as it is: what was learned is in its own head."""
        return model


def gets_a_decoder(architecture: str, config: Mapping[str, Any]) -> bool:
    """Say whether tasks of an architecture put a new decoder to a base model, which writes no text by itself.

    Args:
        architecture: of the task's card.
        config: the model's ``config.json``.
    """
    endings = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
    writes = bool(config.get("is_encoder_decoder")) or any(
        str(name).endswith(endings) for name in config.get("architectures") or ()
    )
    return architecture in _MADE_WRITERS and not writes


@dataclass(frozen=True)
class Head:
    """What of a model belongs to the task and not to the pretrained body.

    Attributes:
        parameters: names of the parameters, in the model's order.
        modules: names of the largest modules that hold nothing but these parameters.
        bare: those of the parameters that lie in none of ``modules``.
    """

    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    bare: tuple[str, ...]


def find_bodies(model: torch.nn.Module) -> tuple[str, ...]:
    """Return the names of the pretrained parts of a model.

    One name for most models (``bert``), several where a model is made of pretrained parts (``encoder``, ``decoder``),
    and the empty name where the model is a body itself, without a head.
    """
    from torch import nn
    from transformers import PreTrainedModel

    prefix = getattr(model, "base_model_prefix", "")
    if prefix and isinstance(getattr(model, prefix, None), nn.Module):
        return (prefix,)
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{body}.") for body in found)
        if name and not inside and isinstance(module, PreTrainedModel):
            found.append(name)
    if found:
        return tuple(found)
    return ("",) if isinstance(model, PreTrainedModel) else ()


def find_head(model: torch.nn.Module) -> Head:
    """Return the task's part of a model: weights outside the pretrained bodies, and weights made newly inside.

    Input embeddings and the output embeddings of a language model never count: they come with the checkpoint.
    """
    bodies = find_bodies(model)
    pretrained = {id(parameter) for parameter in _embeddings(model)}
    new = _newly_made(model)
    names = [
        name
        for name, parameter in model.named_parameters()
        if name in new or (not any(_lies_in(name, body) for body in bodies) and id(parameter) not in pretrained)
    ]
    if not bodies and len(names) == len(list(model.parameters())):
        # A module that is no transformers model and holds none: nothing tells a head from a body.
        names = []
    modules = _covering_modules(model, frozenset(names))
    bare = tuple(name for name in names if not any(_lies_in(name, module) for module in modules))
    return Head(tuple(names), modules, bare)


def _lies_in(name: str, module: str) -> bool:
    return not module or name.startswith(f"{module}.")


def _embeddings(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return []
    parts = [embeddings_of_inputs(model), model.get_output_embeddings()]
    return [weight for part in parts if part is not None for weight in part.parameters()]


def _newly_made(model: torch.nn.Module) -> frozenset[str]:
    """Return the parameters that the checkpoint did not have.

    A model without any mark was built in another way, and nothing can be said.
    """
    marked = {name: is_pretrained(parameter) for name, parameter in model.named_parameters()}
    return frozenset(name for name, mark in marked.items() if not mark) if any(marked.values()) else frozenset()


def is_pretrained(parameter: torch.nn.Parameter) -> bool:
    """Say whether ``from_pretrained`` read a parameter from the checkpoint: it marks those that it did."""
    return hasattr(parameter, "_is_hf_initialized")


def _covering_modules(model: torch.nn.Module, names: frozenset[str]) -> tuple[str, ...]:
    from torch import nn

    # PEFT cannot wrap containers, as they have no forward.
    containers = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
    found: list[str] = []
    for name, module in model.named_modules():
        if not name or isinstance(module, containers) or any(_lies_in(name, outer) for outer in found):
            continue
        inner = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
        if inner and all(parameter in names for parameter in inner):
            found.append(name)
    return tuple(found)
