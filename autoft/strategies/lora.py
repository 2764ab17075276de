"""LoRA, its starts, LoRA+ and DoRA: small trained matrices beside frozen weights, through PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Refusal, Row, Target
from autoft.errors import ModelError
from autoft.space import Categorical, Float, Int, SearchSpace
from autoft.strategies.compatibility import has_conv1d
from autoft.strategies.lora_starts import start_from_inputs, start_from_residuals, training_batches
from autoft.strategies.peft_adapter import ADAPTER, PeftAdapter, is_quantized

if TYPE_CHECKING:
    import torch

__all__ = ["Dora", "Lora"]

# With 16 iterations the randomised decomposition comes close to the exact one in seconds (PiSSA, section 4).
_STARTS: Mapping[str, Any] = {"default": True, "pissa": "pissa_niter_16", "eva": True, "loftq": True}
_FOUR_BITS = frozenset({"nf4", "fp4"})
_CHANGE_THE_BASE = frozenset({"pissa", "olora"})


class Lora(PeftAdapter):
    """Train low-rank updates ``(alpha / rank) B A`` of frozen linear layers, and the task's head in full.

    Method: Hu et al. 2021 (arXiv:2106.09685). Published settings that the space and the first trials rest on:

    - RoBERTa on GLUE: rank 8, alpha 8, learning rate 4e-4 to 5e-4, attention's query and value (Hu et al., table 9);
      here ``targets=attention`` takes all linear layers of the attention blocks.
    - QLoRA: rank 64, alpha 16, dropout 0.1, learning rate 2e-4, all linear layers of the blocks, which it found
      necessary to match full fine-tuning (Dettmers et al. 2023, arXiv:2305.14314, section 4 and appendix B).
    - alpha = 2 rank and all linear layers (Biderman et al. 2024, arXiv:2405.09673).
    - ``rslora`` scales by ``alpha / sqrt(rank)``, which keeps larger ranks from learning more slowly
      (Kalajdzievski 2023, arXiv:2312.03732).
    - ``start`` is what ``A`` and ``B`` begin with. ``default``: Kaiming-uniform ``A`` and ``B = 0``; ``gaussian``:
      normal ``A`` (Hu et al.); ``orthogonal``: both from one random orthogonal matrix, in spaces that do not meet, so
      that ``B A = 0``. ``pissa``: the principal components of the weight, the frozen rest being what remains (Meng et
      al. 2024, arXiv:2404.02948); ``olora``: the first columns of its QR decomposition (Büyükakyüz 2024,
      arXiv:2406.01775). These two take away from the base weights what they put into the matrices, so a quantized
      base is refused, and merging gives it back. ``eva``: the directions in which the layer's inputs vary most over
      training rows (Paischer et al. 2024, arXiv:2410.07170). ``loftq``: what 4-bit quantization took from the weights
      (Li et al. 2023, arXiv:2310.08659), over ``nf4`` and ``fp4``.
    - ``plus`` multiplies the learning rate of ``B``: LoRA+ (Hayou et al. 2024, arXiv:2402.12354), whose advice is 16;
      1 is plain LoRA.

    The best learning rate lies about ten times above that of full fine-tuning.
    """

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "train low-rank matrices beside frozen linear layers, and the head"
    divisible: ClassVar[bool] = True
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(5e-5, 5e-3, default=5e-4, log=True),
        "rank": Int(4, 64, default=16, log=True),
        "alpha": Int(8, 128, default=32, log=True),
        "dropout": Float(0.0, 0.2, default=0.05),
        "targets": Categorical(("all-linear", "attention")),
        "rslora": Categorical((False, True)),
        "start": Categorical(("default", "gaussian", "orthogonal", "pissa", "olora", "eva", "loftq")),
        "plus": Float(1.0, 32.0, default=1.0, log=True),
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = tuple(
        {**setting, "rslora": False, "start": start, "plus": plus}
        for start, plus, setting in (
            (
                "default",
                1.0,
                {"learning_rate": 5e-4, "rank": 16, "alpha": 32, "dropout": 0.05, "targets": "all-linear"},
            ),
            ("default", 1.0, {"learning_rate": 5e-4, "rank": 8, "alpha": 8, "dropout": 0.0, "targets": "attention"}),
            ("default", 1.0, {"learning_rate": 2e-4, "rank": 64, "alpha": 16, "dropout": 0.1, "targets": "all-linear"}),
            ("default", 16.0, {"learning_rate": 2e-4, "rank": 8, "alpha": 16, "dropout": 0.0, "targets": "all-linear"}),
            ("pissa", 1.0, {"learning_rate": 5e-4, "rank": 16, "alpha": 16, "dropout": 0.0, "targets": "all-linear"}),
        )
    )
    tuner: ClassVar[str] = "LoraConfig"
    fields: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "alpha": "lora_alpha",
        "dropout": "lora_dropout",
        "rslora": "use_rslora",
    }

    def check(self, target: Target) -> Refusal | None:
        """Refuse what every adapter by PEFT does, and starts that this base or these layers cannot have."""
        start = target.context.params.get("lora.start")
        if target.quantizer and start in _CHANGE_THE_BASE:
            return Refusal(
                f"lora: start={start} changes the base's weights, which {target.quantizer} quantizes; take default, "
                "gaussian or orthogonal over a quantized base"
            )
        if start == "loftq" and target.quantizer not in _FOUR_BITS:
            return Refusal(
                f"lora: start=loftq gives back what 4-bit quantization took away; take it over nf4 or fp4, and another "
                f"start over {target.quantizer or 'a dense base'}"
            )
        if start == "olora" and has_conv1d(target.config):
            return Refusal("lora: PEFT's start=olora takes no Conv1D layers, as GPT-2's; take pissa or default")
        return super().check(target)

    def learn_from(self, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return batches of training rows for ``eva``; other starts need none."""
        return training_batches(target, rows) if params.get("start") == "eva" else None

    def attach(self, model: torch.nn.Module, target: Target, params: Mapping[str, Any]) -> torch.nn.Module:
        """Return a ``PeftModel`` over the model, as every adapter by PEFT, its matrices at their start."""
        start = params.get("start", "default")
        if start == "eva" and not is_quantized(model):
            model = model.to(target.context.device)
        adapted: Any = super().attach(model, target, params)
        if start == "eva":
            start_from_inputs(adapted, target, target.learned, ADAPTER)
        elif start == "loftq":
            dense = target.task.load_model(target.source, target.context)
            start_from_residuals(adapted, dense, ADAPTER, self.name)
        attached: torch.nn.Module = adapted
        return attached

    def options(self, layers: Mapping[str, Any], target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return rank, scale, dropout and start.

        Raises:
            ModelError: the start would change quantized weights.
        """
        start = params.get("start", "default")
        if start in _CHANGE_THE_BASE and any(is_quantized(layer) for layer in layers.values()):
            raise ModelError(
                f"lora: start={start} changes the weights of {target.source.name}, which are quantized; take default, "
                "gaussian or orthogonal over a quantized base"
            )
        return {**super().options(layers, target, params), "init_lora_weights": _STARTS.get(start, start)}

    def parameter_groups(
        self, model: torch.nn.Module, learning_rate: float, params: Mapping[str, Any]
    ) -> list[dict[str, Any]] | None:
        """Return the matrices ``B`` with ``plus`` times the learning rate; None where that is 1."""
        plus = params.get("plus", 1.0)
        if plus == 1.0:
            return None
        found = [weight for name, weight in model.named_parameters() if ".lora_B." in name and weight.requires_grad]
        return [{"params": found, "lr": plus * learning_rate}]


class Dora(PeftAdapter):
    """Train the length of each row of a weight, and its direction by LoRA: ``m (W + s B A) / |W + s B A|``.

    Method: Liu et al. 2024 (arXiv:2402.09353), table 8: for Llama-7B rank 16, alpha 32 and a learning rate of 2e-4, or
    rank 32, alpha 64 and 1e-4, dropout 0.05, on attention's query, key and value and the feed-forward layers; here on all
    linear layers. PEFT takes the norm as a constant in the backward pass, as section 4.3 of the paper proposes. A step
    takes longer than one of LoRA.
    """

    name: ClassVar[str] = "dora"
    summary: ClassVar[str] = "as lora, with the length of each row of a weight trained apart"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(5e-5, 5e-3, default=5e-4, log=True),
        "rank": Int(4, 64, default=16, log=True),
        "alpha": Int(8, 128, default=32, log=True),
        "dropout": Float(0.0, 0.2, default=0.05),
        "targets": Categorical(("all-linear", "attention")),
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"learning_rate": 5e-4, "rank": 16, "alpha": 32, "dropout": 0.05, "targets": "all-linear"},
        {"learning_rate": 2e-4, "rank": 16, "alpha": 32, "dropout": 0.05, "targets": "all-linear"},
        {"learning_rate": 1e-4, "rank": 32, "alpha": 64, "dropout": 0.05, "targets": "all-linear"},
    )
    tuner: ClassVar[str] = "LoraConfig"
    fields: ClassVar[Mapping[str, str]] = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}

    def options(self, layers: Mapping[str, Any], target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return LoRA's options with the lengths on."""
        return {**super().options(layers, target, params), "use_dora": True}
