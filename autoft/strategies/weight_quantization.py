"""What compressors share whose files transformers loads by itself: ``config.json`` says how the weights are quantized."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import ModelSource, PostTrainingQuantizer, Refusal, Row, Target
from autoft.errors import ModelError
from autoft.pretrained import loading
from autoft.space import Categorical, SearchSpace
from autoft.strategies.compatibility import CONV1D
from autoft.strategies.head_only import CONVOLUTIONAL, find_bodies

if TYPE_CHECKING:
    import torch

__all__ = ["REST", "Layers", "TransformersQuantized", "block_layers", "patterns", "room"]

REST = Categorical(("fp32", "bf16"))
"""Precision of all that is not quantized. In bfloat16 everything between the layers is computed in it too."""


@dataclass(frozen=True)
class Layers:
    """Names of a model's layers with a weight matrix, by what becomes of them.

    Attributes:
        quantized: linear layers in the repeated blocks of the body.
        dense: all other linear layers: heads, poolers, output embeddings, and what the library cannot quantize.
        embeddings: tables that share their weight with no other layer.
    """

    quantized: tuple[str, ...]
    dense: tuple[str, ...]
    embeddings: tuple[str, ...]


class TransformersQuantized(PostTrainingQuantizer):
    """Quantizes the trained model by a library that transformers knows, and leaves the files to transformers.

    ``config.json`` with its ``quantization_config`` and ``model.safetensors`` are all that ``from_pretrained`` of
    transformers needs, without autoft. Only linear layers inside the repeated blocks of the body are quantized, and
    embeddings where the library can: heads and poolers are small, and what they say is what is judged.

    Attributes:
        library: that has to be installed; the extra of autoft has the same name.
        divisor: of the inputs of a layer that can be quantized; a parameter ``group_size`` stands in for it.
        transposed: whether the library quantizes GPT-2's ``Conv1D`` too.
        rest: precision of all else, where there is no parameter of this name.
    """

    library: ClassVar[str]
    divisor: ClassVar[int] = 1
    transposed: ClassVar[bool] = False
    rest: ClassVar[str] = "fp32"
    space: ClassVar[SearchSpace] = {"rest": REST}

    @abstractmethod
    def quantization_config(self, layers: Layers, target: Target, params: Mapping[str, Any]) -> Any:
        """Return what ``from_pretrained`` takes by this name.

        Args:
            layers: what is to be quantized, and what is not.
            target: what the compressor works upon.
            params: of this compressor, without its name in front.
        """

    def check(self, target: Target) -> Refusal | None:
        """Refuse where the library is missing or has no kernels, and models with nothing that it quantizes."""
        if missing := self.missing():
            return Refusal(missing)
        if "mps" in (target.hardware.device, target.context.device):
            return Refusal(f"{self.name}: {self.library} has no kernels for Apple's mps; use a CPU or an NVIDIA GPU")
        model_type = target.config.get("model_type")
        if model_type in CONVOLUTIONAL:
            return Refusal(f"{self.name}: {model_type} has no linear layers outside its head to quantize")
        if model_type in CONV1D and not self.transposed:
            return Refusal(
                f"{self.name}: {model_type} keeps its weights transposed, which {self.library} cannot quantize; use bnb-int8"
            )
        if target.config.get("quantization_config"):
            return Refusal(f"{self.name}: {target.source.name} is quantized already; use a checkpoint in 16 or 32 bits")
        rest = target.context.params.get(f"{self.name}.rest", self.rest)
        if rest == "bf16" and not target.hardware.bf16:
            return Refusal(
                f"{self.name}: this processor has no instructions for bfloat16; use a newer one, or rest: fp32"
            )
        return None

    def missing(self) -> str | None:
        """Return what has to be installed to quantize and to load, or None."""
        if importlib.util.find_spec(self.library) is None:
            return f"{self.name}: needs {self.library}, which is not installed; pip install autoft[{self.library}]"
        return None

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return a quantized copy of the model.

        Raises:
            ModelError: the model is none of transformers, or none of its layers can be quantized.
        """
        import torch
        import transformers

        if not isinstance(model, transformers.PreTrainedModel):
            raise ModelError(f"{self.name}: {type(model).__name__} is no model of transformers")
        divisor = int(params.get("group_size") or self.divisor)
        layers = block_layers(model, divisor, self.transposed)
        if not layers.quantized:
            raise ModelError(
                f"{self.name}: no linear layer in the blocks of {type(model).__name__} has inputs that divide by {divisor}"
            )
        config = self.quantization_config(layers, target, params)
        dtype = torch.bfloat16 if params.get("rest", self.rest) == "bf16" else torch.float32
        with tempfile.TemporaryDirectory(dir=room(target)) as folder:
            model.save_pretrained(folder)
            with loading(ModelSource(target.source.name, folder), "the model to quantize"):
                quantized = type(model).from_pretrained(
                    folder,
                    quantization_config=config,
                    device_map={"": target.context.device},
                    dtype=dtype,
                    use_safetensors=True,
                )
        return quantized.eval()

    def load(self, folder: Path, target: Target) -> Any:
        """Return the model as it was stored, on the context's device.

        Raises:
            ModelError: the library is not installed, or the files are damaged.
        """
        if missing := self.missing():
            raise ModelError(f"{folder}: {missing}")
        source = ModelSource(
            name=target.source.name,
            path=str(folder),
            # A quantized model is loaded onto its device: it cannot be moved to another type of device afterwards.
            load_kwargs={"dtype": "auto", "device_map": {"": target.context.device}},
            trust_remote_code=target.source.trust_remote_code,
            finished=True,
        )
        return target.task.load_model(source, target.context).eval()


def block_layers(model: torch.nn.Module, divisor: int = 1, transposed: bool = False) -> Layers:
    """Sort the layers of a model by what can be quantized.

    Args:
        model: of transformers.
        divisor: of the number of inputs of a layer to quantize.
        transposed: quantize layers of GPT-2's kind ``Conv1D`` too.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.quantizers_utils import should_convert_module

    bodies = find_bodies(model)
    # What overflows in 16 bits, as T5's wo, transformers leaves alone whatever is asked for.
    kept = list(getattr(model, "_keep_in_fp32_modules", None) or ())
    blocks = [
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(not body or name.startswith(f"{body}.") for body in bodies)
    ]
    quantized: list[str] = []
    dense: list[str] = []
    tables: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            inputs = module.in_features if isinstance(module, nn.Linear) else module.nx
            plain = type(module) is nn.Linear or (transposed and isinstance(module, Conv1D))
            inside = any(name.startswith(block) for block in blocks) and should_convert_module(name, kept)
            (quantized if plain and inside and inputs % divisor == 0 else dense).append(name)
        if isinstance(module, nn.Linear | nn.Embedding):
            tables.setdefault(id(module.weight), []).append(name)
    modules = dict(model.named_modules())
    single = [names[0] for names in tables.values() if len(names) == 1]
    embeddings = [name for name in single if type(modules[name]) is nn.Embedding]
    return Layers(tuple(quantized), tuple(dense), tuple(embeddings))


def patterns(names: Iterable[str], others: Iterable[str]) -> list[str]:
    r"""Return regular expressions for names of layers that match none of the others.

    The layers of all blocks are one pattern, ``encoder\.layer\.\d+\.output\.dense``, so that what ``config.json``
    says stays short.

    Args:
        names: to match, each as a whole.
        others: not to match.
    """
    others = list(others)
    found: dict[str, None] = {}
    for name in names:
        exact = re.escape(name)
        wide = re.sub(r"(?<![^.])\d+(?![^\\])", r"\\d+", exact)
        found[exact if any(re.fullmatch(wide, other) for other in others) else wide] = None
    return list(found)


def room(target: Target) -> Path | None:
    """Return the folder to put a model into for a while: the run's, for the system's may be small or in memory."""
    if target.cache is None:
        return None
    target.cache.mkdir(parents=True, exist_ok=True)
    return target.cache
