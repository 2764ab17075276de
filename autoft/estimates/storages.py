"""The memory of tensors over time: which storages a computation makes and frees, in which order.

Works on real tensors and on fake ones, which have shapes and types but no values and no memory. Imports torch: to be
imported only where something is traced.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["Event", "KnownIntegers", "StorageTracker", "Timeline", "empty_model", "fake_model"]

Event = tuple[int, int]
"""A storage's number, and its bytes where it is made or minus its bytes where it is freed."""

aten = torch.ops.aten

DEVICE = torch.ops.prim.device.default
"""The question on which device a fake tensor is: two of three calls that a mode sees, which need none of its work."""


@dataclass
class Timeline:
    """What storages were there, from the first to the last event.

    Attributes:
        events: in their order.
        marks: names of moments, each with the number of events before it.
    """

    events: list[Event] = field(default_factory=list)
    marks: list[tuple[str, int]] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """The most bytes that were there at once."""
        return max(itertools.accumulate((size for _, size in self.events), initial=0))

    @property
    def left(self) -> int:
        """The bytes that are there at the end."""
        return sum(size for _, size in self.events)

    def mark(self, name: str) -> None:
        """Name this moment."""
        self.marks.append((name, len(self.events)))


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """A context that notes each storage which torch makes in it, and when it is freed.

    What one operator needs inside of itself is not seen, only what it returns. Storages are counted once, however many
    tensors look at them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.timeline = Timeline()
        self._live: dict[int, tuple[int, int]] = {}
        self._numbers = itertools.count()

    def add(self, *tensors: torch.Tensor) -> None:
        """Count tensors that were there before; one whose storage is known already changes nothing."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            # An id is free for others as soon as its storage is gone, and the finalizer has then run.
            if key in self._live or not size:
                continue
            number = next(self._numbers)
            self._live[key] = number, size
            self.timeline.events.append((number, size))
            weakref.finalize(storage, self._freed, key).atexit = False

    def _freed(self, key: int) -> None:
        number, size = self._live.pop(key)
        self.timeline.events.append((number, -size))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run the operator and note what it returns."""
        if func is DEVICE and isinstance(args[0], FakeTensor):
            return args[0].device
        result = func(*args, **(kwargs or {}))
        self.add(*(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)))
        return result


class KnownIntegers(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """A context in which fake integers and truth values keep their values, as long as they follow from known ones.

    A loss may ask where the first answer of a batch begins, and cut tensors there: without values such a step cannot be
    traced. Activations and weights stay without values.

    Args:
        mode: of the fake tensors, entered before this one.
    """

    MOST = 2**24
    """Elements of the largest tensor whose values are kept."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.mode = mode

    def fake(self, value: torch.Tensor) -> torch.Tensor:
        """Return a fake tensor; its values are known where they are no floating point numbers."""
        with _disable_current_modes():
            # A view of a larger tensor would keep that one's whole storage.
            value = value.detach().clone()
        made = self.mode.from_tensor(value)
        if _is_known_kind(value):
            made.known = value  # type: ignore[attr-defined]  # a mark of our own
        return made

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run the operator, on the values too where all that it takes is known."""
        if func is DEVICE and isinstance(args[0], FakeTensor):
            return args[0].device
        kwargs = kwargs or {}
        taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        known = all(hasattr(tensor, "known") for tensor in taken)
        if known and func is aten._local_scalar_dense.default:
            with _disable_current_modes():
                return args[0].known.item()
        if known and func is aten.nonzero.default:
            with _disable_current_modes():
                places = args[0].known.nonzero()
            return self.fake(places)
        if func is aten.index.Tensor:
            args = (args[0], self._places(args[1]))
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and _is_known_kind(leaf)]
        if made and known and sum(leaf.numel() for leaf in made) <= self.MOST:
            given, named = tree_map_only(torch.Tensor, lambda tensor: tensor.known, (args, kwargs))
            with _disable_current_modes():
                values = [leaf for leaf in tree_leaves(func(*given, **named)) if isinstance(leaf, torch.Tensor)]
            for leaf, value in zip(made, values, strict=True):
                leaf.known = value  # type: ignore[attr-defined]  # a mark of our own
        else:
            for leaf in made:
                # Changed in its place by something unknown.
                leaf.__dict__.pop("known", None)
        return result

    def _places(self, indices: Iterable[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Return indices with each mask replaced by the places where it is true, as the operator does itself."""
        found: list[torch.Tensor | None] = []
        for index in indices:
            if index is None or index.dtype != torch.bool or not hasattr(index, "known"):
                found.append(index)
                continue
            with _disable_current_modes():
                places = index.known.nonzero(as_tuple=True)
            found.extend(self.fake(one) for one in places)
        return found


def _is_known_kind(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()


def empty_model(model: torch.nn.Module) -> torch.nn.Module:
    """Give the weights and buffers of a model on the meta device memory, in place, which nobody has written to.

    The system backs memory when it is touched, so this takes next to none; what an adapter adds is real. Integers are
    zeros: an adapter that tries the model while it is attached looks rows up by them.
    """

    def made(tensor: torch.Tensor) -> torch.Tensor:
        return (torch.zeros if _is_known_kind(tensor) else torch.empty)(tensor.shape, dtype=tensor.dtype)

    return _replaced(model, made)


def fake_model(model: torch.nn.Module, mode: FakeTensorMode) -> torch.nn.Module:
    """Replace all weights and buffers of a model, in place, by fake ones on the CPU; shared ones stay shared.

    Args:
        model: on any device, the meta device among them.
        mode: of the fake tensors; need not be entered.
    """

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype)

    return _replaced(model, fake)


def _replaced(model: torch.nn.Module, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Module:
    made: dict[int, Any] = {}
    kept = []
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    new = make(tensor)
                    if isinstance(tensor, torch.nn.Parameter):
                        new = torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
                        # Classes of their own, and the marks that transformers leaves, are what strategies look at.
                        new.__dict__.update(tensor.__dict__)
                    made[id(tensor)] = new
                    # An id is given again once its tensor is gone.
                    kept.append(tensor)
                tensors[name] = made[id(tensor)]
    return model
