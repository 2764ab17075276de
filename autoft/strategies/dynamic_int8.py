"""Int8 weights for torch on the CPU, activations quantized as they come."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import PostTrainingQuantizer, Refusal, Rounding, Row, State, Target, WeightFormat
from autoft.errors import ModelError
from autoft.hardware import has_int8_products
from autoft.strategies.head_only import find_bodies
from autoft.strategies.reshaped import SHAPES, Shapes, check_class, read_class, reshape, shapes_of

if TYPE_CHECKING:
    import torch

__all__ = ["DynamicInt8", "int8_places"]

WEIGHTS = "model.safetensors"
TIED = "tied"
"""Key of the file's metadata: layers without weights of their own, and the layer whose weights they use."""


class DynamicInt8(PostTrainingQuantizer):
    """Linear layers and embedding tables in int8, a scale for each row; the head of a classifier stays as it is.

    Products run in torch's own int8 kernels, with the range of the activations taken in each call, as in Jacob et al.
    2018 (arXiv 1712.05877) without calibration. Files hold int8, and loading never makes the 32-bit weights.
    """

    name = "dynamic-int8"
    summary = "int8 weights for torch on the CPU, activations quantized on the fly"
    workload = "torch-int8"
    accepts: ClassVar[frozenset[State]] = frozenset({"dense", "sparse", "reshaped", "factorized"})

    def check(self, target: Target) -> Refusal | None:
        """Refuse on a GPU: torch has these kernels for the CPU only."""
        if target.context.device != "cpu":
            return Refusal(f"{self.name}: runs on the CPU only, and this search is for {target.context.device}")
        return None

    def weight_format(self, params: Mapping[str, Any]) -> WeightFormat:
        """Return how weights are rounded, and activations on this CPU."""
        rows, most = Rounding(-127, 127, "row"), 255 if has_int8_products() else 127
        return WeightFormat(rows, embeddings=rows, activations=Rounding(0, most), heads=False)

    def apply(self, model: Any, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return a copy of the model with int8 layers in its body.

        Raises:
            ModelError: the model is of a class that transformers does not have, or this torch has no int8 kernels.
        """
        import torch

        from autoft.strategies.int8_layers import quantized_copy

        check_class(model, self.name)
        if not set(torch.backends.quantized.supported_engines) - {"none"}:
            raise ModelError(f"{self.name}: this build of torch has no int8 kernels")
        quantized = copy.deepcopy(model).cpu().eval()
        # Kept for the files: the layers say no longer what the configuration does not.
        quantized.shapes = shapes_of(quantized)
        known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for path, module in int8_places(quantized):
            quantized.set_submodule(path, quantized_copy(module, known))
        return quantized

    def save(self, model: Any, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, int8 weights under ``<layer>.weight_int8`` and ``.scale``."""
        from safetensors.torch import save_file

        from autoft.strategies.int8_layers import Int8Embedding, Int8Linear

        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        tensors: dict[str, torch.Tensor] = dict(model.state_dict())
        first: dict[int, str] = {}
        tied: dict[str, str] = {}
        for path, module in model.named_modules():
            if isinstance(module, Int8Embedding | Int8Linear):
                stored = module.stored()
                owner = first.setdefault(module.weight_int8.data_ptr(), path)
                if owner != path:
                    tied[path] = owner
                    stored = {name: value for name, value in stored.items() if name == "bias"}
                tensors.update({f"{path}.{name}": value for name, value in stored.items()})
        if model.shapes != Shapes():
            (folder / SHAPES).write_text(model.shapes.model_dump_json(), encoding="utf-8")
        # A file may not hold the same memory twice; tied weights of floating point are each written whole.
        tensors = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
        save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt", TIED: json.dumps(tied)})
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(folder)

    def load(self, folder: Path, target: Target) -> Any:
        """Return the model, ready to predict.

        Raises:
            ModelError: the files are damaged, or of a class that this transformers does not have.
        """
        import torch
        import transformers
        from accelerate import init_empty_weights
        from safetensors import safe_open
        from safetensors.torch import load_file

        from autoft.strategies.int8_layers import Int8Embedding, Int8Linear

        config, kind = read_class(folder)
        tensors = load_file(str(folder / WEIGHTS))
        with safe_open(str(folder / WEIGHTS), framework="pt") as file:
            tied: dict[str, str] = json.loads((file.metadata() or {}).get(TIED, "{}"))
        for path, owner in tied.items():
            for part in ("weight_int8", "scale"):
                tensors[f"{path}.{part}"] = tensors[f"{owner}.{part}"]
        # Parameters without memory; buffers are real, for those that no file holds are computed here.
        with init_empty_weights(include_buffers=False):
            model = kind(config)
            if (folder / SHAPES).is_file():
                reshape(model, Shapes.model_validate_json((folder / SHAPES).read_text(encoding="utf-8")))
        for path, module in list(model.named_modules()):
            if f"{path}.weight_int8" not in tensors:
                continue
            weight, scale = tensors.pop(f"{path}.weight_int8"), tensors.pop(f"{path}.scale")
            layer = (
                Int8Embedding(weight, scale)
                if isinstance(module, torch.nn.Embedding)
                else Int8Linear(weight, scale, tensors.pop(f"{path}.bias", None))
            )
            model.set_submodule(path, layer)
        missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
        if missing or unexpected:
            raise ModelError(f"{folder}: the weights do not fit the model: {', '.join([*missing, *unexpected][:3])}")
        if (folder / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
        return model.eval()


def int8_places(model: Any) -> list[tuple[str, Any]]:
    """Return the layers of a model that get int8 weights, by name: in its body, and the output layer over a vocabulary."""
    from autoft.strategies.int8_layers import is_quantizable

    bodies = find_bodies(model)
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        (path, module)
        for path, module in model.named_modules()
        if is_quantizable(module)
        and (any(not body or path.startswith(f"{body}.") for body in bodies) or module is output)
    ]
