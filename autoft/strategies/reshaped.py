"""Files of transformers models whose layers have other shapes than their configuration can say.

A model is compared with the one that its configuration describes; what differs is written beside it, and done again to a
fresh model before transformers loads the weights into it. A model without a difference is one of transformers.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from autoft.contracts import Compressor, Target
from autoft.errors import ModelError
from autoft.pretrained import check_fit

if TYPE_CHECKING:
    import torch

__all__ = [
    "SHAPES",
    "ReshapedFiles",
    "Shapes",
    "check_class",
    "read_class",
    "read_reshaped",
    "reshape",
    "shapes_of",
    "write_shapes",
]

SHAPES = "shapes.json"


class Shapes(BaseModel):
    """What of a model is otherwise than its configuration says; all by the name of a module or a parameter."""

    model_config = ConfigDict(extra="forbid")

    factors: dict[str, tuple[int, int, int]] = {}
    """Layers that are two factors: what comes in, the width between them, what goes out."""
    numbers: dict[str, dict[str, int]] = {}
    """Attributes of modules: numbers of heads, widths."""
    sizes: dict[str, list[int]] = {}
    """Shapes of parameters."""


class ReshapedFiles(Compressor):
    """A compressor whose models need :class:`Shapes` to be loaded, whatever further steps of its chain did to them."""

    def save(self, model: Any, folder: Path) -> None:
        """Write the model's files as transformers does, and ``shapes.json``."""
        model.save_pretrained(folder)
        (folder / SHAPES).write_text(shapes_of(model).model_dump_json(), encoding="utf-8")

    def load(self, folder: Path, target: Target) -> Any:
        """Return the model, ready to predict.

        Raises:
            ModelError: the files are damaged, or of a class that this transformers does not have.
        """
        return read_reshaped(folder).to(target.context.device).eval()


def check_class(model: torch.nn.Module, who: str) -> None:
    """Make sure that files of a model can be loaded again.

    Raises:
        ModelError: its class is none of transformers.
    """
    import transformers

    kind = type(model)
    if getattr(transformers, kind.__name__, None) is not kind:
        raise ModelError(f"{who}: {kind.__name__} is no class of transformers, so its files could not be loaded again")


def shapes_of(model: torch.nn.Module, config: Any = None) -> Shapes:
    """Return how a transformers model differs from the one that a configuration describes, its own by default.

    Raises:
        ModelError: it has other modules, and not only other shapes.
    """
    from accelerate import init_empty_weights

    from autoft.strategies.factors import Factors

    given: Any = model
    with init_empty_weights(include_buffers=False):
        fresh = type(given)(copy.deepcopy(config or given.config))
    factors: dict[str, tuple[int, int, int]] = {}
    numbers: dict[str, dict[str, int]] = {}
    plain = dict(fresh.named_modules())
    for name, module in given.named_modules():
        if isinstance(module, Factors):
            factors[name] = module.widths
        elif name in plain and type(module) is type(plain[name]):
            other = _numbers(plain[name])
            changed = {key: value for key, value in _numbers(module).items() if other.get(key, value) != value}
            if changed:
                numbers[name] = changed
    inside = tuple(f"{name}." for name in factors)
    wanted = {name: list(value.shape) for name, value in fresh.named_parameters(remove_duplicate=False)}
    # Weights that are shared by their name each: without memory, they are shared no longer.
    found = {
        name: list(value.shape)
        for name, value in given.named_parameters(remove_duplicate=False)
        if not name.startswith(inside)
    }
    strange = {name for name in found.keys() ^ wanted.keys() if name.rpartition(".")[0] not in factors}
    if strange:
        raise ModelError(
            f"{type(model).__name__}: {sorted(strange)[0]} is not in both the model and what its configuration describes"
        )
    sizes = {name: size for name, size in found.items() if size != wanted[name]}
    return Shapes(factors=factors, numbers=numbers, sizes=sizes)


def write_shapes(model: torch.nn.Module, folder: Path) -> None:
    """Write how a model differs from what its configuration describes, if it does and could be loaded by that."""
    with suppress(ModelError):
        check_class(model, "")
        shapes = shapes_of(model)
        if shapes != Shapes():
            (folder / SHAPES).write_text(shapes.model_dump_json(), encoding="utf-8")


def reshape(model: torch.nn.Module, shapes: Shapes) -> None:
    """Give a fresh model other shapes, its weights being of no account.

    Raises:
        ModelError: it has no such modules or parameters.
    """
    import torch

    from autoft.strategies.factors import Factors

    try:
        for name, (inputs, rank, outputs) in shapes.factors.items():
            layer = model.get_submodule(name)
            if type(layer).__name__ not in {"Linear", "Conv1D"}:
                raise AttributeError(f"{name} is no linear layer")
            model.set_submodule(name, Factors(inputs, rank, outputs, bias=layer.bias is not None))
        for name, numbers in shapes.numbers.items():
            module = model.get_submodule(name)
            for key, value in numbers.items():
                if type(vars(module).get(key)) is not int:
                    raise AttributeError(f"{name} has no number {key}")
                setattr(module, key, value)
        for name, size in shapes.sizes.items():
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            old = module.get_parameter(leaf)
            setattr(module, leaf, torch.nn.Parameter(torch.empty(size, dtype=old.dtype, device=old.device)))
    except AttributeError as error:
        raise ModelError(f"{type(model).__name__}: {SHAPES} is of another model: {error}") from None


def read_class(folder: Path) -> tuple[Any, Any]:
    """Return the configuration in a folder, and the class of transformers that it names.

    Raises:
        ModelError: transformers has no such class.
    """
    import transformers

    # Where it is not said, transformers asks on the terminal whether code that came with the files shall run.
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    name = (config.architectures or [""])[0]
    kind = getattr(transformers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise ModelError(f"{folder}: config.json names {name!r}, which is no model class of transformers")
    return config, kind


def read_reshaped(folder: Path) -> Any:
    """Return the model that :meth:`ReshapedFiles.save` wrote, on the CPU.

    Raises:
        ModelError: the files are damaged, or of a class that this transformers does not have.
    """
    config, kind = read_class(folder)
    shapes = Shapes.model_validate_json((folder / SHAPES).read_text(encoding="utf-8"))

    def begin(self: Any, *given: Any, **settings: Any) -> None:
        kind.__init__(self, *given, **settings)
        reshape(self, shapes)

    # A class of its own for the time of loading, so that transformers finds the shapes of the files in the fresh model.
    passing: Any = type(kind.__name__, (kind,), {"__init__": begin, "__module__": kind.__module__})
    model, told = passing.from_pretrained(
        folder, config=config, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
    )
    check_fit(told, folder)
    model.__class__ = kind
    return model.eval()


def _numbers(module: torch.nn.Module) -> dict[str, int]:
    return {key: value for key, value in vars(module).items() if type(value) is int and not key.startswith("_")}
