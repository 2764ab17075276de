"""The optimisers of the training loop, and what each makes of a learning rate that is meant for AdamW.

Read while planning too: torch is loaded when an optimiser is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoft.hardware import Hardware

if TYPE_CHECKING:
    import torch

__all__ = ["OPTIMIZERS", "Group", "Scale", "make_optimizer", "refused_optimizers"]


@dataclass(frozen=True)
class Scale:
    """What AdamW's learning rate and weight decay are multiplied with for another optimiser.

    ``matrices`` is one more factor of the rate for what is Muon's; their decay is as much less.
    """

    learning_rate: float = 1.0
    weight_decay: float = 1.0
    matrices: float = 1.0


OPTIMIZERS: dict[str, Scale] = {
    "adamw": Scale(),
    "adafactor": Scale(),
    "lion": Scale(1 / 3, 3.0),
    "sgd": Scale(100.0, 0.001),
    "muon": Scale(matrices=5.0),
    "adamw-8bit": Scale(),
    "paged-adamw-8bit": Scale(),
}
"""The values of ``train.optimizer``, so that ``<adapter>.learning_rate`` and ``train.weight_decay`` stay AdamW's.

- ``adamw``: Loshchilov and Hutter 2019, arXiv:1711.05101; fused where the device allows.
- ``adafactor``: Shazeer and Stern 2018, arXiv:1804.04235, with a given rate and without momentum. Its updates are
  clipped to a root mean square of 1, the size of Adam's, so the rate is Adam's.
- ``lion``: Chen et al. 2023, arXiv:2302.06675; section 5 asks for a rate 3 to 10 times smaller than AdamW's and a
  decay as many times larger: 3 here, which was better than 5 (docs/training.md).
- ``sgd``: with momentum 0.9. A step follows the gradient's size, which is clipped to ``train.max_grad_norm``, and not
  Adam's 1 for each weight; the factor 100 is measured, see docs/training.md. Momentum makes the sum of a gradient's
  steps 10 times its first, so a thousandth of AdamW's decay is the same pull.
- ``muon``: Jordan et al. 2024, torch's own for weights with two dimensions inside of the model's layers, AdamW for the
  rest. Steps are scaled as by Liu et al. 2025 (arXiv:2502.16982, section 2.2) to a root mean square of 0.2, which is
  AdamW's in a long pretraining; the factor 5 makes it 1, that of AdamW's first steps, and is measured for a short
  fine-tuning (docs/training.md). AdamW's part keeps its rate.
- ``adamw-8bit``, ``paged-adamw-8bit``: AdamW with its state in 8 bits (Dettmers et al. 2022, arXiv:2110.02861), in
  memory that pages to the CPU (Dettmers et al. 2023, arXiv:2305.14314, section 3). For GPUs.
"""


def refused_optimizers(hardware: Hardware) -> dict[str, str]:
    """Return the optimisers that do not pay on a machine, each with the reason as a sentence."""
    from importlib.util import find_spec

    eight_bit = ("adamw-8bit", "paged-adamw-8bit")
    if hardware.device != "cuda":
        why = "is made for CUDA GPUs, and a step takes about 25 times fused AdamW's on a CPU; use adamw"
        return {name: f"{name}: {why}" for name in eight_bit}
    if find_spec("bitsandbytes") is None:
        return {name: f"{name}: needs bitsandbytes, which is not installed" for name in eight_bit}
    return {}


@dataclass(frozen=True)
class Group:
    """Parameters that are treated alike.

    Attributes:
        parameters: tensors that require gradients.
        weight_decay: decoupled.
        factor: of the learning rate.
        matrices: they are weights of hidden layers, with two dimensions, which Muon is for.
    """

    parameters: Sequence[torch.nn.Parameter]
    weight_decay: float
    factor: float = 1.0
    matrices: bool = False


def make_optimizer(name: str, groups: Iterable[Group], learning_rate: float) -> torch.optim.Optimizer:
    """Return an optimiser over groups of parameters.

    Args:
        name: of :data:`OPTIMIZERS`.
        groups: those without parameters are left out.
        learning_rate: AdamW's, multiplied as :data:`OPTIMIZERS` says.

    Raises:
        ValueError: there is no such optimiser.
    """
    import torch

    if name not in OPTIMIZERS:
        raise ValueError(f"train.optimizer has to be one of {', '.join(OPTIMIZERS)}, given {name!r}")
    scale, groups = OPTIMIZERS[name], [group for group in groups if group.parameters]
    rate = learning_rate * scale.learning_rate

    def settings(chosen: Iterable[Group], times: float = 1.0) -> list[dict[str, Any]]:
        return [
            {
                "params": list(group.parameters),
                "weight_decay": group.weight_decay * scale.weight_decay / times,
                **({} if group.factor * times == 1.0 else {"lr": rate * group.factor * times}),
            }
            for group in chosen
        ]

    def adamw(chosen: Sequence[Group]) -> torch.optim.Optimizer:
        every = [p for group in chosen for p in group.parameters]
        fused = all(p.device.type in {"cpu", "cuda", "mps"} and p.is_floating_point() for p in every)
        return torch.optim.AdamW(settings(chosen), lr=rate, fused=fused)

    match name:
        case "adamw":
            return adamw(groups)
        case "adafactor":
            from transformers.optimization import Adafactor

            made: torch.optim.Optimizer = Adafactor(
                settings(groups), lr=rate, relative_step=False, scale_parameter=False, warmup_init=False
            )
            return made
        case "lion":
            return _lion()(settings(groups), rate)
        case "sgd":
            return torch.optim.SGD(settings(groups), lr=rate, momentum=0.9)
        case "muon":
            hidden = [group for group in groups if group.matrices]
            rest = [group for group in groups if not group.matrices]
            parts: list[torch.optim.Optimizer] = [adamw(rest)] if rest else []
            if hidden:
                own = settings(hidden, scale.matrices)
                parts.append(torch.optim.Muon(own, lr=rate * scale.matrices, adjust_lr_fn="match_rms_adamw"))
            return _together()(parts)
        case _:
            import bitsandbytes

            kind = bitsandbytes.optim.PagedAdamW8bit if name.startswith("paged") else bitsandbytes.optim.AdamW8bit
            eight_bit: torch.optim.Optimizer = kind(settings(groups), lr=rate)
            return eight_bit


def _lion() -> Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]:
    import torch

    class Lion(torch.optim.Optimizer):
        """Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675, algorithm 2)."""

        def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
            super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]  # the loop passes no closure
            """Take one step."""
            for group in self.param_groups:
                rate, (first, second) = group["lr"], group["betas"]
                for parameter in group["params"]:
                    if parameter.grad is None:
                        continue
                    state = self.state[parameter]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                    momentum = state["momentum"]
                    update = momentum.lerp(parameter.grad, 1 - first).sign_()
                    parameter.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-rate)
                    momentum.lerp_(parameter.grad, 1 - second)

    return Lion


def _together() -> Callable[[Sequence[torch.optim.Optimizer]], torch.optim.Optimizer]:
    import torch

    class Together(torch.optim.Optimizer):
        """Several optimisers as one; its groups are theirs, so that a schedule reaches each."""

        def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
            super().__init__([group for part in parts for group in part.param_groups], {})
            self.parts = parts

        def step(self, closure: Any = None) -> None:  # type: ignore[override]  # the loop passes no closure
            """Take one step of each."""
            for part in self.parts:
                part.step()

    return Together
