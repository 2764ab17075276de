"""What LoRA's matrices start from where that is computed: of the inputs of layers, or of what quantization took away."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoft.contracts import Row, Target
from autoft.errors import ModelError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

__all__ = ["input_components", "start_from_inputs", "start_from_residuals", "training_batches"]

ROWS = 1024
"""Training rows whose layer inputs are looked at."""
MEMORY = 2**30
"""Bytes of inner products that are held at a time; where a model needs more, its rows are read again."""


def training_batches(target: Target, rows: Sequence[Row], batch_size: int = 16) -> list[dict[str, torch.Tensor]]:
    """Return batches of the first rows, as the task makes them for training."""
    features = target.task.encode(rows[:ROWS], target.context)
    return [
        dict(target.task.collate(features[start : start + batch_size], target.context))
        for start in range(0, len(features), batch_size)
    ]


def start_from_inputs(
    adapted: PeftModel, target: Target, batches: Sequence[Mapping[str, torch.Tensor]], adapter: str
) -> None:
    """Set each ``A`` to the directions in which the layer's inputs vary most: EVA.

    Paischer et al. 2024 (arXiv:2410.07170), section 3: the right singular vectors of a layer's inputs over training rows,
    ``B = 0``. All layers keep their rank, the paper's ``rho = 1``. PEFT's own function is not used: it reads rows until
    the vectors stay as they are, which never is where a layer has fewer different inputs than the rank, and subtracts
    the mean, which the paper does not.
    """
    import torch

    layers = {name: module for name, module in adapted.named_modules() if adapter in getattr(module, "lora_A", {})}
    found = input_components(adapted, {name: layer.r[adapter] for name, layer in layers.items()}, target, batches)
    with torch.no_grad():
        for name, components in found.items():
            # Of inputs with fewer dimensions than the rank, the other rows stay as they were drawn.
            layers[name].lora_A[adapter].weight[: len(components)].copy_(components)


def input_components(
    model: torch.nn.Module,
    ranks: Mapping[str, int],
    target: Target,
    batches: Sequence[Mapping[str, torch.Tensor]],
    memory: int = MEMORY,
) -> dict[str, torch.Tensor]:
    """Return the first right singular vectors of what goes into modules, by name.

    Computed exactly, from the sum of the inputs' outer products. Padding, where the mask of a batch tells of it, is left
    out.

    Args:
        model: computes the task's loss; left in the mode that it was in.
        ranks: by name of a module, how many vectors.
        target: what the model is of.
        batches: of training rows.
        memory: bytes that sums may take at a time.

    Returns:
        by name, ``(rank, inputs)``, or fewer rows where the inputs have fewer dimensions; the largest first.
    """
    import torch

    sums: dict[str, torch.Tensor] = {}
    mask: torch.Tensor | None = None

    def hook(name: str) -> Any:
        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            given = inputs[0].detach()
            if mask is not None and given.shape[:2] == mask.shape:
                given = given[mask.bool()]
            given = given.reshape(-1, given.shape[-1]).float()
            sums[name] = sums[name] + given.T @ given if name in sums else given.T @ given

        return add

    found: dict[str, torch.Tensor] = {}
    training, device = model.training, next(model.parameters()).device
    model.eval()
    waiting = list(ranks)
    try:
        while waiting:
            group = _fitting(model, waiting, memory)
            handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in group]
            try:
                with torch.no_grad():
                    for batch in batches:
                        mask = batch.get("attention_mask")
                        mask = mask.to(device) if mask is not None and mask.dim() == 2 else None
                        here = {key: value.to(device) for key, value in batch.items()}
                        target.task.loss(model, here, target.context)
            finally:
                for handle in handles:
                    handle.remove()
            for name in group:
                if name in sums:
                    values, vectors = torch.linalg.eigh(sums.pop(name).double())
                    # Below that they are what rounding left of zero, as numpy's matrix_rank has it.
                    least = values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float32).eps
                    real = int((values > least).sum())
                    kept = vectors.flip(1)[:, : min(ranks[name], real)]
                    found[name] = kept.T.float().contiguous()
            waiting = waiting[len(group) :]
    finally:
        model.train(training)
    return found


def _fitting(model: torch.nn.Module, names: Sequence[str], memory: int) -> list[str]:
    """Return the first names whose sums fit into the memory, one at least."""
    sizes = (4 * int(getattr(model.get_submodule(name), "in_features", 0)) ** 2 for name in names)
    fits = [name for name, taken in zip(names, itertools.accumulate(sizes), strict=True) if taken <= memory]
    return fits or list(names[:1])


def start_from_residuals(adapted: PeftModel, dense: torch.nn.Module, adapter: str, who: str) -> None:
    """Set ``A`` and ``B`` such that they give back most of what 4-bit quantization took from the weights: LoftQ.

    Li et al. 2023 (arXiv:2310.08659), algorithm 1 with one step: the best approximation of rank ``r`` of the difference
    between a weight and its quantized form, half of it in each matrix. PEFT's own function computes on GPUs only, and
    leaves LoRA's scale out.

    Args:
        adapted: over a base that bitsandbytes quantized to 4 bits.
        dense: the base in full precision.
        adapter: name of the adapter.
        who: for messages.

    Raises:
        ModelError: a quantized layer has no counterpart in the dense base.
    """
    import bitsandbytes
    import torch
    from bitsandbytes.nn import Linear4bit
    from transformers.pytorch_utils import Conv1D

    prefix = "base_model.model."
    with torch.no_grad():
        for name, module in adapted.named_modules():
            if adapter not in getattr(module, "lora_A", {}) or not isinstance(module.base_layer, Linear4bit):
                continue
            base = module.base_layer
            if base.weight.is_floating_point():
                continue
            try:
                other = dense.get_submodule(name.removeprefix(prefix))
            except AttributeError as error:
                raise ModelError(
                    f"{who}: the dense base has no {name.removeprefix(prefix)}; take start=default"
                ) from error
            whole: Any = other.weight
            whole = (whole.T if isinstance(other, Conv1D) else whole).float().to(base.weight.device)
            rounded = bitsandbytes.functional.dequantize_4bit(base.weight.data, base.weight.quant_state).float()
            left, values, right = torch.linalg.svd(whole - rounded, full_matrices=False)
            rank = module.r[adapter]
            root = (values[:rank] / module.scaling[adapter]).sqrt()
            a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
            a[: len(root)].copy_(root[:, None] * right[:rank])
            b[:, : len(root)].copy_(left[:, :rank] * root)
