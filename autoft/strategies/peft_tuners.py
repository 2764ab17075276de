"""Further methods of PEFT, each by its class of configuration, its parameters and where their defaults come from.

The learning rates that papers give are for long trainings of large models; defaults here lie within the published
ranges where these learn in three epochs of a small data set, and say so where they do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import State, Target
from autoft.space import Categorical, Float, Int, SearchSpace
from autoft.strategies.peft_adapter import PeftAdapter, pattern_of, widths

if TYPE_CHECKING:
    import torch

__all__ = [
    "Adalora",
    "Boft",
    "Fourierft",
    "Hra",
    "Ia3",
    "Loha",
    "Lokr",
    "Miss",
    "Oft",
    "Randlora",
    "Shira",
    "VbLora",
    "Vera",
]

_TARGETS = Categorical(("all-linear", "attention"))


class Adalora(PeftAdapter):
    """LoRA in the form of singular values, whose rank moves between layers while training: ``W + P diag(e) Q``.

    Method: Zhang et al. 2023 (arXiv:2303.10512): training starts with 1.5 times the mean ``rank``; then, by a cubic
    schedule, the singular values that matter least for the loss are set to zero. Learning rates of 5e-4 to 2.2e-3 on
    GLUE, ``alpha`` of 16 and 32 with mean ranks of 1, and 0.1 to 0.3 as the weight that keeps ``P`` and ``Q`` near
    orthogonal are those of the authors' scripts (QingruZhang/AdaLoRA, ``NLU/scripts``); here it is 0.1, and the first
    tenth and the last half of the steps change no ranks. PEFT adds that penalty to the loss that a model returns, which would be
    in validation's too; here it is added to the gradients instead.
    """

    name: ClassVar[str] = "adalora"
    summary: ClassVar[str] = "as lora, with ranks that move to the layers that need them"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(3e-4, 1e-2, default=2e-3, log=True),
        "rank": Int(2, 32, default=8, log=True),
        "alpha": Int(8, 128, default=32, log=True),
        "dropout": Float(0.0, 0.2, default=0.05),
        "targets": _TARGETS,
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 2e-3, "rank": 8, "alpha": 32, "dropout": 0.05, "targets": "all-linear"},
        {"learning_rate": 1e-3, "rank": 2, "alpha": 32, "dropout": 0.0, "targets": "all-linear"},
    )
    tuner: ClassVar[str] = "AdaLoraConfig"
    fields: ClassVar[Mapping[str, str]] = {"rank": "target_r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
    orthogonality: ClassVar[float] = 0.1

    def options(self, layers: Mapping[str, Any], target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return ranks; how many steps there are is told by :meth:`after_step`."""
        return {
            **super().options(layers, target, params),
            "init_r": math.ceil(1.5 * params["rank"]),
            "orth_reg_weight": 0.0,
            "total_step": 2**62,
        }

    def attach(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> torch.nn.Module:
        """Return a ``PeftModel`` over the model, as every adapter by PEFT, with the penalty in its gradients."""
        attached = super().attach(model, target, params)
        factors = {
            name: factor
            for name, factor in attached.named_parameters()
            if factor.requires_grad and (".lora_A." in name or ".lora_B." in name)
        }
        for name, factor in factors.items():
            hooked: Any = factor  # torch leaves the method without types
            hooked.register_hook(_Penalty(factor, ".lora_A." in name, self.orthogonality / len(factors)))
        return attached

    def after_step(self, model: torch.nn.Module, step: int, total: int) -> None:
        """Move ranks between layers, by the gradients of the step that was done."""
        import torch

        tuner: Any = model.base_model
        config = tuner.peft_config[tuner.trainable_adapter_name]
        if step == 0:
            tuner.rankallocator.set_total_step(total)
            config.total_step, config.tinit, config.tfinal = total, total // 10, total // 2
        for name, weight in model.named_parameters():
            if "lora_" in name and weight.requires_grad and weight.grad is None:
                weight.grad = torch.zeros_like(weight)  # a layer that the model holds and does not use
        tuner.update_and_allocate(step)


class _Penalty:
    """Adds to a factor's gradient, once a step, that of ``weight |F F' - I|``, the Frobenius norm of what is not orthonormal."""

    def __init__(self, factor: torch.Tensor, rows: bool, weight: float) -> None:
        self.factor, self.rows, self.weight = factor, rows, weight

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        import torch

        if self.factor.grad is not None:
            # A further part of the step's batch, or a further batch of it.
            return gradient
        factor = (self.factor if self.rows else self.factor.T).detach().float()
        rest = factor @ factor.T - torch.eye(len(factor), device=factor.device)
        # Of the norm of F F' - I, whose gradient is 2 (F F' - I) F divided by that norm.
        own: torch.Tensor = 2 * rest @ factor / rest.norm().clamp(min=1e-12)
        return gradient + self.weight * (own if self.rows else own.T).to(gradient.dtype)


class Vera(PeftAdapter):
    """Train two vectors a layer, that scale a pair of random matrices which all layers share: ``b * B (d * A x)``.

    Method: Kopiczko et al. 2023 (arXiv:2310.11454), table 8: ``d`` starts at 0.1; rank 1024 and learning rates of 4e-3
    and 1e-2 for RoBERTa-base, rank 256, PEFT's too, and 1e-2 to 3e-2 for RoBERTa-large. The head's rates there are
    2e-4 to 1e-2, mostly the same or lower. The fewest trained numbers of all.
    """

    name: ClassVar[str] = "vera"
    summary: ClassVar[str] = "train two vectors a layer that scale shared random matrices"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(1e-3, 3e-2, default=1e-2, log=True),
        "rank": Int(64, 1024, default=256, log=True),
        "d_initial": Categorical((0.1, 1.0)),
        "dropout": Float(0.0, 0.2, default=0.0),
        "targets": _TARGETS,
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 1e-2, "rank": 256, "d_initial": 0.1, "dropout": 0.0, "targets": "all-linear"},
        {"learning_rate": 4e-3, "rank": 1024, "d_initial": 0.1, "dropout": 0.0, "targets": "attention"},
    )
    tuner: ClassVar[str] = "VeraConfig"
    fields: ClassVar[Mapping[str, str]] = {"rank": "r", "d_initial": "d_initial", "dropout": "vera_dropout"}


class Ia3(PeftAdapter):
    """Train a vector a layer that scales what goes into feed-forward layers and what comes out of attention's.

    Method: Liu et al. 2022 (arXiv:2205.05638), learning rate 3e-3 there. PEFT's defaults (1e-4 in its benchmark, few
    modules) learn far too little: its own benchmark has .311 with them and .455 with 5e-3 and all linear layers
    (``method_comparison/MetaMathQA`` of huggingface/peft), which is what the defaults here are.
    """

    name: ClassVar[str] = "ia3"
    summary: ClassVar[str] = "train a vector a layer that scales its inputs or outputs"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(1e-3, 3e-2, default=5e-3, log=True),
        "targets": _TARGETS,
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 5e-3, "targets": "all-linear"},
        {"learning_rate": 3e-3, "targets": "all-linear"},
    )
    tuner: ClassVar[str] = "IA3Config"

    def options(self, layers: Mapping[str, Any], target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return which layers are of the feed-forward kind: those outside of attention."""
        outside = [name for name in layers if not _in_attention(name)]
        return {"feedforward_modules": pattern_of(outside) if outside else []}


def _in_attention(name: str) -> bool:
    parts = name.lower().split(".")
    return any("attention" in part or "attn" in part for part in parts)


class Loha(PeftAdapter):
    """Train the element-wise product of two low-rank updates: ``(B1 A1) * (B2 A2)``, of up to the squared rank.

    Method: Hyeon-Woo et al. 2021 (FedPara, arXiv:2108.06098), for fine-tuning by LyCORIS (Yeh et al. 2023,
    arXiv:2309.14859). Rank and alpha of 8 are PEFT's defaults.
    """

    name: ClassVar[str] = "loha"
    summary: ClassVar[str] = "train element-wise products of two low-rank updates"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(3e-4, 1e-2, default=3e-3, log=True),
        "rank": Int(4, 32, default=8, log=True),
        "alpha": Int(4, 64, default=16, log=True),
        "targets": _TARGETS,
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 3e-3, "rank": 8, "alpha": 16, "targets": "all-linear"},
        {"learning_rate": 1e-3, "rank": 8, "alpha": 8, "targets": "all-linear"},
    )
    tuner: ClassVar[str] = "LoHaConfig"
    fields: ClassVar[Mapping[str, str]] = {"rank": "r", "alpha": "alpha"}


class Lokr(PeftAdapter):
    """Train the Kronecker product of a small matrix and a low-rank one.

    Method: Edalati et al. 2022 (KronA, arXiv:2212.10650), in the form of LyCORIS (Yeh et al. 2023, arXiv:2309.14859).
    Rank and alpha of 8, and the split of widths into nearly square factors, are PEFT's defaults; PEFT's benchmark takes
    a learning rate of 3e-3.
    """

    name: ClassVar[str] = "lokr"
    summary: ClassVar[str] = "train Kronecker products of small matrices"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(5e-4, 1e-2, default=3e-3, log=True),
        "rank": Int(4, 32, default=8, log=True),
        "alpha": Int(4, 64, default=8, log=True),
        "targets": _TARGETS,
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 3e-3, "rank": 8, "alpha": 8, "targets": "all-linear"},
    )
    tuner: ClassVar[str] = "LoKrConfig"
    fields: ClassVar[Mapping[str, str]] = {"rank": "r", "alpha": "alpha"}


class Oft(PeftAdapter):
    """Train rotations of each layer's inputs, in blocks: angles between neurons stay as they were.

    Method: Qiu et al. 2023 (arXiv:2306.07280), with the Cayley-Neumann form of OFTv2 (Qiu et al. 2025,
    arXiv:2506.19847). Blocks of 32 are PEFT's default; widths that 32 does not divide take the next size that does.
    """

    name: ClassVar[str] = "oft"
    summary: ClassVar[str] = "train rotations of each layer's inputs, in blocks"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(2e-4, 1e-2, default=2e-3, log=True),
        "block_size": Categorical((32, 16, 8, 64)),
        "targets": _TARGETS,
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 2e-3, "block_size": 32, "targets": "all-linear"},
    )
    tuner: ClassVar[str] = "OFTConfig"

    def options(self, layers: Mapping[str, Any], target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the block size, the largest up to the wanted one that divides all inputs."""
        return {"oft_block_size": _divisor(params["block_size"], [width for width, _ in widths(layers)])}


class Boft(PeftAdapter):
    """Train rotations as ``oft``, as products of sparse factors in the pattern of a butterfly.

    Method: Liu et al. 2023 (arXiv:2311.06243). Blocks of 4 are PEFT's default; the paper's best on GLUE are blocks of 8
    with two factors (table 1). Its learning rates there, 5e-5 to 9e-4 (table 7), are for longer trainings than three
    epochs, for which the default lies above them. The slowest of all on a CPU.
    """

    name: ClassVar[str] = "boft"
    summary: ClassVar[str] = "train rotations as products of sparse factors"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(2e-4, 1e-2, default=2e-3, log=True),
        "block_size": Categorical((4, 8)),
        "targets": _TARGETS,
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 2e-3, "block_size": 4, "targets": "all-linear"},
    )
    tuner: ClassVar[str] = "BOFTConfig"

    def options(self, layers: Mapping[str, Any], target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the block size, the largest up to the wanted one that divides all inputs."""
        return {"boft_block_size": _divisor(params["block_size"], [width for width, _ in widths(layers)])}


class Hra(PeftAdapter):
    """Train a chain of reflections of each layer's inputs: orthogonal and of low rank at once.

    Method: Yuan et al. 2024 (arXiv:2405.17484), rank 8 there and in PEFT. PEFT multiplies the stored numbers of a
    quantized weight and leaves their scales out, so it trains over dense weights only.
    """

    name: ClassVar[str] = "hra"
    summary: ClassVar[str] = "train a chain of reflections of each layer's inputs"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(2e-4, 5e-3, default=2e-3, log=True),
        "rank": Categorical((8, 4, 16)),
        "targets": _TARGETS,
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"learning_rate": 2e-3, "rank": 8, "targets": "all-linear"},)
    accepts: ClassVar[frozenset[State]] = frozenset({"dense"})
    tuner: ClassVar[str] = "HRAConfig"
    fields: ClassVar[Mapping[str, str]] = {"rank": "r"}


class Fourierft(PeftAdapter):
    """Train some coefficients of the two-dimensional Fourier transform of each update.

    Method: Gao et al. 2024 (arXiv:2405.03003): 1,000 coefficients a layer and a scaling of 150, PEFT's defaults too,
    which they found for layers 768 wide. The coefficients begin as random numbers, and what they do to a weight falls
    with its size: 150 buries the weights of BERT-tiny, 128 wide, in noise. So ``scaling`` is that of a layer of 768 by
    768, and is multiplied with the share that the smallest adapted layer has of it. As in the paper the coefficients
    have about ten times the learning rate of the head.
    """

    name: ClassVar[str] = "fourierft"
    summary: ClassVar[str] = "train some Fourier coefficients of each update"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(1e-3, 2e-2, default=5e-3, log=True),
        "frequencies": Int(200, 5000, default=1000, log=True),
        "scaling": Float(50.0, 300.0, default=150.0, log=True),
        "targets": _TARGETS,
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 5e-3, "frequencies": 1000, "scaling": 150.0, "targets": "all-linear"},
    )
    tuner: ClassVar[str] = "FourierFTConfig"

    def options(self, layers: Mapping[str, Any], target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return scaling, seed and frequencies, of which a small layer has no more than weights."""
        size = min(inputs * outputs for inputs, outputs in widths(layers))
        return {
            "n_frequency": min(params["frequencies"], size),
            "scaling": params["scaling"] * size / 768**2,
            "random_loc_seed": target.context.seed,
        }

    def parameter_groups(
        self, model: torch.nn.Module, learning_rate: float, params: Mapping[str, Any]
    ) -> list[dict[str, Any]] | None:
        """Return the coefficients, with ten times the learning rate."""
        return _faster(model, "fourierft_spectrum", 10 * learning_rate)


class Randlora(PeftAdapter):
    """Train scales of many random low-rank matrices, whose sum has full rank.

    Method: Albert et al. 2025 (arXiv:2502.00987). Rank 32 and alpha 640 (20 times the rank) are PEFT's defaults, after
    the paper; a smaller rank means more matrices and more trained numbers.
    """

    name: ClassVar[str] = "randlora"
    summary: ClassVar[str] = "train scales of random matrices whose sum has full rank"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(1e-4, 5e-3, default=1e-3, log=True),
        "rank": Categorical((32, 16, 64)),
        "alpha": Int(160, 1280, default=640, log=True),
        "targets": _TARGETS,
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 1e-3, "rank": 32, "alpha": 640, "targets": "all-linear"},
    )
    tuner: ClassVar[str] = "RandLoraConfig"
    fields: ClassVar[Mapping[str, str]] = {"rank": "r", "alpha": "randlora_alpha"}


class Miss(PeftAdapter):
    """Train one small matrix a layer, whose rows are shared by groups of inputs.

    Method: Kang and Yin 2024 (arXiv:2409.15371). Rank 64 is PEFT's default; here 16, as bodies are small.
    """

    name: ClassVar[str] = "miss"
    summary: ClassVar[str] = "train one small matrix a layer, shared by groups of inputs"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(1e-4, 5e-3, default=1e-3, log=True),
        "rank": Int(4, 64, default=16, log=True),
        "dropout": Float(0.0, 0.2, default=0.0),
        "targets": _TARGETS,
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 1e-3, "rank": 16, "dropout": 0.0, "targets": "all-linear"},
    )
    tuner: ClassVar[str] = "MissConfig"
    fields: ClassVar[Mapping[str, str]] = {"rank": "r", "dropout": "miss_dropout"}


class Shira(PeftAdapter):
    """Train a random few of each layer's own weights, as many as LoRA of that rank has.

    Method: Bhardwaj et al. 2024 (arXiv:2406.13175), with the random mask; rank 32 is PEFT's default.
    """

    name: ClassVar[str] = "shira"
    summary: ClassVar[str] = "train a random few of each layer's own weights"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(1e-4, 1e-2, default=1e-3, log=True),
        "rank": Int(4, 64, default=16, log=True),
        "targets": _TARGETS,
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"learning_rate": 1e-3, "rank": 16, "targets": "all-linear"},)
    tuner: ClassVar[str] = "ShiraConfig"

    def options(self, layers: Mapping[str, Any], target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the seed of the mask, and the rank, of which a small layer takes no more than it has weights for."""
        # Rank times inputs plus outputs must be less than inputs times outputs.
        most = min(inputs * outputs // (inputs + outputs) for inputs, outputs in widths(layers))
        return {"r": max(1, min(params["rank"], most)), "random_seed": target.context.seed}


class VbLora(PeftAdapter):
    """Train low-rank updates put together of vectors that all layers share, each a mix of the best ``topk``.

    Method: Li et al. 2024 (arXiv:2405.15179): vectors of 256, two of them mixed; the choice among them is learned ten
    times as fast as the vectors (1e-2 and 1e-3). Widths that 256 does not divide take the longest vectors that do.
    """

    name: ClassVar[str] = "vb-lora"
    summary: ClassVar[str] = "train low-rank updates put together of shared vectors"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(3e-4, 1e-2, default=2e-3, log=True),
        "rank": Int(2, 16, default=4, log=True),
        "vectors": Int(64, 2048, default=256, log=True),
        "topk": Categorical((2, 3, 4)),
        "dropout": Float(0.0, 0.2, default=0.0),
        "targets": _TARGETS,
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 2e-3, "rank": 4, "vectors": 256, "topk": 2, "dropout": 0.0, "targets": "all-linear"},
    )
    tuner: ClassVar[str] = "VBLoRAConfig"
    fields: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "vectors": "num_vectors",
        "topk": "topk",
        "dropout": "vblora_dropout",
    }

    def options(self, layers: Mapping[str, Any], target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return rank, number and length of the vectors; the length divides all widths."""
        length = _divisor(256, [width for pair in widths(layers) for width in pair])
        return {**super().options(layers, target, params), "vector_length": length}

    def parameter_groups(
        self, model: torch.nn.Module, learning_rate: float, params: Mapping[str, Any]
    ) -> list[dict[str, Any]] | None:
        """Return the logits that choose among the vectors, with ten times the learning rate."""
        return _faster(model, "vblora_logits", 10 * learning_rate)


def _faster(model: torch.nn.Module, part: str, learning_rate: float) -> list[dict[str, Any]]:
    """Return the trained parameters with this in their name, as a group with a rate of its own."""
    found = [weight for name, weight in model.named_parameters() if part in name and weight.requires_grad]
    return [{"params": found, "lr": learning_rate}]


def _divisor(wanted: int, numbers: list[int]) -> int:
    """Return the largest number up to ``wanted`` that divides all ``numbers``."""
    common = math.gcd(*numbers)
    return next(size for size in range(min(wanted, common), 0, -1) if common % size == 0)
