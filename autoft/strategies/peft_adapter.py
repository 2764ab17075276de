"""What all adapters by PEFT share: which layers they adapt, how the head is kept, and merging into plain weights."""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Adapter, Refusal, State, Target
from autoft.errors import ModelError, first_line
from autoft.strategies.compatibility import incompatible
from autoft.strategies.head_only import CONVOLUTIONAL, Head, find_head

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel

__all__ = [
    "ADAPTER",
    "PeftAdapter",
    "copy_learned",
    "find_targets",
    "is_quantized",
    "pattern_of",
    "savable",
    "take_out_saved",
    "verify_saved",
    "widths",
]

# Without "question-answering": PEFT's wrapper for it drops token_type_ids, so that the merged model answers otherwise.
_TASK_TYPES = {
    "causal-lm": "CAUSAL_LM",
    "feature-extraction": "FEATURE_EXTRACTION",
    "seq2seq": "SEQ_2_SEQ_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
}
ADAPTER = "default"
"""Name of the one adapter that a model has, PEFT's own default."""


class PeftAdapter(Adapter):
    """Train small tensors beside or inside of frozen linear layers, by PEFT, and the task's head in full.

    A method says which class of PEFT configures it, and which of its fields are parameters; the rest is the same for
    all. Legal are the pairs of base and kind of model that :mod:`autoft.strategies.compatibility` has as working.

    Attributes:
        tuner: name of the configuration's class in ``peft``.
        fields: fields of that configuration by the parameter that sets them.
    """

    tuner: ClassVar[str]
    fields: ClassVar[Mapping[str, str]] = {}
    accepts: ClassVar[frozenset[State]] = frozenset({"dense", "quantized"})

    def check(self, target: Target) -> Refusal | None:
        """Refuse models without linear layers in the body, and what was tried and does not work."""
        model_type = target.config.get("model_type")
        if model_type in CONVOLUTIONAL:
            return Refusal(
                f"{self.name}: {model_type} has no linear layers outside its head to adapt; use full or head-only"
            )
        reason = incompatible(self.name, target)
        return Refusal(f"{self.name}: {reason}") if reason else None

    def targets(self, model: torch.nn.Module, head: Head, target: Target, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of the layers to adapt, by default of the linear ones.

        Raises:
            ModelError: there are none.
        """
        kind = str(params.get("targets", "all-linear"))
        found = find_targets(model, kind, head)
        if not found:
            cure = f"pin {self.name}.targets to all-linear" if kind == "attention" else "use full or head-only"
            raise ModelError(
                f"{self.name}: {type(model).__name__} of {target.source.name} has no linear layers for "
                f"{self.name}.targets={kind}; {cure}"
            )
        return found

    def options(self, layers: Mapping[str, Any], target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of PEFT's configuration that are this method's own.

        Args:
            layers: the layers to adapt, by name.
            target: as for :meth:`attach`.
            params: as for :meth:`attach`.
        """
        return {field: params[name] for name, field in self.fields.items()}

    def attach(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> torch.nn.Module:
        """Return a ``PeftModel`` over the model: what PEFT adds and the head trainable, the rest frozen.

        Raises:
            ModelError: no layer of the chosen kind is found, PEFT cannot adapt these layers, or it would train other
                modules than the head.
        """
        import peft

        head = find_head(model)
        targets = self.targets(model, head, target, params)
        kind = getattr(peft, self.tuner)
        # Where a method has no place for the head, it is trained in its own.
        holds = "modules_to_save" in {field.name for field in dataclasses.fields(kind)}
        saved = savable(model, head) if holds else ()
        config = kind(
            **self.options({name: model.get_submodule(name) for name in targets}, target, params),
            task_type=_task_type(model, target),
            # A pattern over full names: PEFT compares the names of a list as suffixes, and would hit others too.
            target_modules=pattern_of(targets),
            **({"modules_to_save": list(saved) or None} if holds else {}),
        )
        adapted = _with_adapter(model, config, self.name)
        verify_saved(adapted, saved, target, self.name)
        for name, parameter in adapted.get_base_model().named_parameters():
            if name in head.parameters:
                parameter.requires_grad_(True)
        attached: torch.nn.Module = adapted
        return attached

    def merge(
        self, model: torch.nn.Module, base: Callable[[], torch.nn.Module] | None, target: Target
    ) -> torch.nn.Module:
        """Return the plain transformers model with the updates added to its weights, in evaluation mode.

        Never merges into quantized weights: on a CPU that gives unrelated predictions and no error. With ``base``
        the adapter, the head and all else that the dense base may lack are copied to it and merged there; without
        it the given model is taken apart and is used up.

        Raises:
            ModelError: the model's own base is quantized and ``base`` is None, or the base does not fit the adapter.
        """
        adapted: PeftModel = model
        if base is None:
            if is_quantized(model):
                raise ModelError(
                    f"{self.name}: the base of {target.source.name} is quantized; merging needs a dense base to merge "
                    "into"
                )
        else:
            adapted = self._onto(base(), model, target)
        take_out_saved(adapted)
        merged: torch.nn.Module = adapted.merge_and_unload(safe_merge=True)
        return merged.eval()

    def save_learned(self, model: Any, folder: Path) -> bool:
        """Write the adapter and the head as PEFT does."""
        # Tables of words that were not trained are the base's own; PEFT would ask the hub whether they have grown.
        model.save_pretrained(folder, save_embedding_layers=False)
        return True

    def _onto(self, base: torch.nn.Module, trained: PeftModel, target: Target) -> PeftModel:
        """Return the dense base with the trained adapter on top."""
        there = {name for name, _ in base.named_modules()}
        missing = [name for name in trained.base_model.targeted_module_names if name not in there]
        if missing:
            raise ModelError(
                f"{self.name}: the dense base of {target.source.name} has no place for what was trained: "
                f"no {', '.join(missing[:5])}"
            )
        config = copy.deepcopy(trained.peft_config[ADAPTER])
        if getattr(config, "rank_pattern", None):
            # AdaLoRA notes here which ranks it has masked; what is masked is zero in the weights too.
            config.rank_pattern = {}
        fresh = _with_adapter(base, config, self.name)
        copy_learned(trained, fresh, target, self.name)
        return fresh


def pattern_of(names: Sequence[str]) -> str:
    """Return a pattern that matches these module names as a whole."""
    return "|".join(re.escape(name) for name in names)


def is_quantized(model: torch.nn.Module) -> bool:
    """Say whether a model holds weights that are no floating point numbers."""
    return any(not parameter.is_floating_point() for parameter in model.parameters())


def widths(layers: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return inputs and outputs of each linear layer; GPT-2's ``Conv1D`` keeps its weight as ``(in, out)``."""
    return [
        (layer.in_features, layer.out_features) if hasattr(layer, "in_features") else (layer.nx, layer.nf)
        for layer in layers.values()
    ]


def find_targets(model: torch.nn.Module, kind: str, head: Head) -> tuple[str, ...]:
    """Return the names of the linear layers to adapt, found by looking at the modules.

    Args:
        model: a transformers model, dense or quantized by bitsandbytes.
        kind: ``all-linear`` for every linear layer of the body, ``attention`` for those inside attention blocks.
        head: the task's part, which is trained in full and never adapted.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = getattr(model, "get_output_embeddings", lambda: None)()
    found = []
    attention: set[str] = set()
    combined: set[str] = set()
    for name, module in model.named_modules():
        parent = name.rpartition(".")[0]
        if parent in attention or (name and _is_attention(name, module)):
            attention.add(name)
        if isinstance(module, nn.MultiheadAttention) or parent in combined:
            # torch's own attention reads the weights of its output layer and never calls it.
            combined.add(name)
        elif (
            isinstance(module, nn.Linear | Conv1D)
            and module is not output
            and not any(name == part or name.startswith(f"{part}.") for part in head.modules)
            and (kind == "all-linear" or name in attention)
        ):
            found.append(name)
    return tuple(found)


def _is_attention(name: str, module: torch.nn.Module) -> bool:
    words = (name.rpartition(".")[2].lower(), type(module).__name__.lower())
    return any("attention" in word or "attn" in word for word in words)


def _task_type(model: torch.nn.Module, target: Target) -> str | None:
    """Return PEFT's task type, or None where its wrapper would pass arguments that the model does not know."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel) or model.main_input_name != "input_ids":
        return None
    return _TASK_TYPES.get(target.task.card.architecture)


def _with_adapter(model: torch.nn.Module, config: PeftConfig, who: str) -> PeftModel:
    from peft import get_peft_model
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    pattern = re.compile(str(config.target_modules))
    layers = [module for name, module in model.named_modules() if pattern.fullmatch(name)]
    # bitsandbytes makes nn.Linear out of GPT-2's Conv1D, so the layout is a matter of the base at hand.
    if hasattr(config, "fan_in_fan_out"):
        config.fan_in_fan_out = any(isinstance(layer, Conv1D) for layer in layers)
    with warnings.catch_warnings():
        if any(isinstance(layer, nn.Linear) for layer in layers):
            # In a model with both kinds PEFT sets the layout layer by layer, and warns each time.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        try:
            return get_peft_model(model, config, adapter_name=ADAPTER)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            # PEFT tells of layers that it cannot adapt by any of these; its words, a want of memory too, are kept.
            kinds = sorted({type(layer).__name__ for layer in layers})
            raise ModelError(
                f"{who}: PEFT cannot adapt the {' and '.join(kinds)} layers of {type(model).__name__} "
                f"({first_line(error)}); use lora"
            ) from error


def savable(model: torch.nn.Module, head: Head) -> tuple[str, ...]:
    """Return the modules of the head that PEFT can hold in the adapter.

    PEFT compares these names with the ends of module names, so that a head called ``query`` would take the body's
    ``query`` layers along. Such a head is trained in its place instead.
    """
    others = [name for name, _ in model.named_modules() if name not in head.modules]
    return tuple(name for name in head.modules if not any(other.endswith(name) for other in others))


def take_out_saved(adapted: PeftModel) -> None:
    """Put the trained head in its place; most methods of PEFT only unload heads that are one layer."""
    from peft.utils import ModulesToSaveWrapper

    model = adapted.get_base_model()
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(name, module.modules_to_save[ADAPTER])


def verify_saved(adapted: PeftModel, saved: tuple[str, ...], target: Target, who: str) -> None:
    """Fail where PEFT trains other modules beside the adapter than the task's head.

    Raises:
        ModelError: it does.
    """
    from peft.utils import ModulesToSaveWrapper

    wrapped = {
        name for name, module in adapted.get_base_model().named_modules() if isinstance(module, ModulesToSaveWrapper)
    }
    if wrapped != set(saved):
        # PEFT adds names of its own for some task types.
        raise ModelError(
            f"{who}: PEFT trains {sorted(wrapped)} of {target.source.name} beside the adapter, "
            f"where the task's head is {sorted(saved)}; use full or head-only"
        )


def copy_learned(trained: PeftModel, fresh: PeftModel, target: Target, who: str) -> None:
    """Copy the adapter, the head and whatever else of the trained model is not the checkpoint's quantized weights.

    Frozen parts go along because some are made newly in each load (a pooler that the checkpoint lacks), and buffers
    because training moves some (running means). A frozen weight of lower precision than the base's is left: it is
    the checkpoint's own, rounded.
    """
    import torch

    source = {**dict(trained.named_parameters()), **dict(trained.named_buffers())}
    learned = {name for name, parameter in trained.named_parameters() if parameter.requires_grad}
    goal = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
    unfit = sorted(name for name in learned if name not in goal or goal[name].shape != source[name].shape)
    if unfit:
        raise ModelError(
            f"{who}: the dense base of {target.source.name} has no place for what was trained: "
            f"no {', '.join(unfit[:5])} of the same shape"
        )
    with torch.no_grad():
        for name, to in goal.items():
            value = source.get(name)
            if value is None or value.shape != to.shape or value.is_floating_point() != to.is_floating_point():
                continue
            if name in learned or value.element_size() >= to.element_size():
                to.copy_(value)
