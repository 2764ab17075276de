"""What of a LoRA model is frozen, and what is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autoft.pretrained import DROPOUTS
from autoft.strategies.head_only import find_bodies
from autoft.strategies.peft_adapter import ADAPTER

__all__ = [
    "Unfit",
    "body_of",
    "forget_forward",
    "is_quantized",
    "owned_weights",
    "put_in_place",
    "settings_of",
    "trained_in",
    "unwrapped",
]


class Unfit(Exception):
    """A model or a call that cannot be joined with the others; it runs by itself."""


def body_of(model: Any) -> tuple[str, Any]:
    """Return the name and the module of the one body of a LoRA model.

    Raises:
        Unfit: it is another adapter's, or has several bodies.
    """
    from peft import PeftModel

    config = getattr(model, "peft_config", {}).get(ADAPTER) if isinstance(model, PeftModel) else None
    if config is None or type(config).__name__ != "LoraConfig" or getattr(config, "is_prompt_learning", False):
        raise Unfit("its adapter is not LoRA")
    base = model.get_base_model()
    bodies = find_bodies(base)
    if len(bodies) != 1 or not bodies[0]:
        raise Unfit("its model has not one body beside a head")
    body = base.get_submodule(bodies[0])
    if getattr(body, "gradient_checkpointing", False):
        raise Unfit("it computes activations again in the backward pass")
    return bodies[0], body


def trained_in(body: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the LoRA layers of a body, and its other trained modules, by name.

    Raises:
        Unfit: something else is trained.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    adapted: dict[str, Any] = {}
    saved: dict[str, Any] = {}
    trained: set[int] = set()
    for name, module in body.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            saved[name] = module
            trained |= {id(weight) for weight in module.parameters()}
        elif isinstance(module, LoraLayer):
            linear = ADAPTER in module.lora_A and ADAPTER not in module.lora_embedding_A
            plain = linear and not module.lora_variant and not module.lora_bias.get(ADAPTER)
            if not plain or hasattr(module, "kernel_size") or module.lora_A[ADAPTER].weight.ndim != 2:
                raise Unfit(f"its {name} is adapted in another way than by two matrices")
            adapted[name] = module
            trained |= {id(weight) for weight in (module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight)}
    for name, weight in body.named_parameters():
        if weight.requires_grad and id(weight) not in trained:
            raise Unfit(f"its {name} is trained in its place")
    if not adapted:
        raise Unfit("nothing of its body is adapted")
    return adapted, saved


def owned_weights(model: Any) -> Iterator[tuple[str, Any, str, Any]]:
    """Yield each weight's name as without an adapter, the module that owns it, as what, and the weight.

    What an adapter adds or keeps twice is left out.
    """
    from peft.utils import ModulesToSaveWrapper

    within: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in within):
            continue
        if isinstance(module, ModulesToSaveWrapper):
            within.append(name)
            continue
        path = [part for part in name.split(".") if part != "base_layer"]
        if any(part.startswith("lora_") for part in path):
            continue
        for attribute, weight in module._parameters.items():
            if weight is not None:
                yield ".".join([*path, attribute]), module, attribute, weight


def settings_of(body: Any) -> dict[str, Any]:
    """Return a body's configuration without its dropout."""
    config: Any = getattr(body, "config", None)
    settings: dict[str, Any] = config.to_dict() if hasattr(config, "to_dict") else {}
    return {name: value for name, value in settings.items() if name not in DROPOUTS}


def is_quantized(module: Any) -> bool:
    """Say whether a module's own weights are no plain floating point numbers."""
    return any(w is not None and not w.is_floating_point() for w in module._parameters.values())


def put_in_place(model: Any, own: Any, shared: Any) -> None:
    """Put a shared module in the place of a model's own, wherever that is."""
    for name, module in list(model.named_modules()):
        if module is own:
            model.set_submodule(name, shared)


@contextmanager
def unwrapped(body: Any) -> Iterator[None]:
    """Take a forward method of the instance's own away, which would be copied along."""
    own = vars(body).pop("forward", None)
    try:
        yield
    finally:
        if own is not None:
            body.forward = own


def forget_forward(module: Any, own: Any) -> None:
    """Give a module its class's forward method again, or its own earlier one."""
    vars(module).pop("forward", None)
    if module.forward != own:
        module.forward = own
