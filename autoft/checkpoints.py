"""Checkpoints of a training: what is on disk of one that is under way, so that a killed process loses minutes of it, not hours.

A checkpoint holds all that the next step depends on: weights, the state of the optimiser, where the schedule and the rows are,
the streams of chance, the validations so far and the best weights. On the CPU a training that goes on from it takes the
steps, to the bit, that it would have taken without a break. Nothing is pickled: tensors are safetensors, all else is JSON.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from autoft.artifact import file_digests
from autoft.errors import RunFolderError
from autoft.quantities import format_bytes
from autoft.ranks import local
from autoft.rundir import read_json, replacing_folder, write_json

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoints", "chance", "optimizer_state", "plain", "put_chance", "put_optimizer_state", "share_done"]

EVERY = 60.0
"""Seconds of a training between two checkpoints."""

SHARE = 0.02
"""Of a training's time that writing them takes."""

FILE_BYTES = 64_000_000
"""Of tensors in a file: it is held in memory while it is written."""

STATE = "state.json"


class Checkpoints:
    """The checkpoints of one trial, of which the newest stays.

    Args:
        folder: theirs alone; there if a checkpoint is.
        of: what a training has in common with the one that wrote it, as JSON: configuration, data, versions.
        note: told in a sentence why there is none that can be read, or written.
        room: says how many bytes may be written; one that takes more is not.
        every: seconds of a training between two, at least.
        share: of a training's time that writing them takes, at most.
    """

    def __init__(
        self,
        folder: Path,
        of: Mapping[str, Any],
        note: Callable[[str], None] = lambda text: None,
        room: Callable[[], float] = lambda: math.inf,
        *,
        every: float = EVERY,
        share: float = SHARE,
    ) -> None:
        self.folder, self.of, self.note, self.room, self.every, self.share = folder, dict(of), note, room, every, share
        self.written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self.written >= self.every

    def write(self, state: Mapping[str, Any], share: float) -> None:
        """Write one in the place of the one before. Where there is no room for it, it is the last that is tried.

        Args:
            state: of mappings, lists, texts, numbers and tensors.
            share: of the training that is done, up to 1.
        """
        begin = time.monotonic()
        tensors: list[torch.Tensor] = []
        described = _described(state, tensors)
        try:
            needed = sum(local(tensor).nbytes for tensor in tensors)
            if needed > self.room():
                raise RunFolderError(
                    f"{self.folder}: would take {format_bytes(needed)}, which the trial may need itself"
                )
            with replacing_folder(self.folder) as folder:
                _save(tensors, folder)
                found = {"of": self.of, "share": share, "digests": file_digests(folder), "state": described}
                write_json(folder / STATE, found)
        except RunFolderError as error:
            self.note(f"A training goes on without checkpoints: {error}")
            self.every = float("inf")
        self.written = time.monotonic()
        self.every = max(self.every, (self.written - begin) / self.share)

    def read(self) -> dict[str, Any] | None:
        """Return the state that was written, with tensors on the CPU; None where there is none, or none of this training."""
        if not self.folder.is_dir():
            return None
        try:
            found = read_json(self.folder / STATE)
            if found["of"] != self.of:
                return None
            digests = file_digests(self.folder)
            del digests[STATE]
            if digests != found["digests"]:
                raise RunFolderError(f"{self.folder}: is damaged (its tensors are not as they were written)")
            state: dict[str, Any] = _built(found["state"], _load(self.folder))
        except (RunFolderError, SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            self.note(f"A training begins anew, as its checkpoint cannot be read: {error}")
            return None
        return state


def share_done(folder: Path) -> float:
    """Return how much of a training is done that a checkpoint is of, up to 1.

    Raises:
        RunFolderError: there is no such folder, or it is damaged.
    """
    try:
        return float(read_json(folder / STATE)["share"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{folder / STATE}: is damaged ({error!r})") from error


def plain(value: Any) -> bool:
    """Say whether a value can be a part of a state: it is made of mappings, lists, texts, numbers and tensors alone."""
    import torch

    if isinstance(value, Mapping):
        return all(isinstance(key, str | int) and plain(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return all(map(plain, value))
    return value is None or isinstance(value, bool | int | float | str | torch.Tensor)


def _described(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Return a value as JSON, its tensors added to a list and told by their places there."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, Mapping):
        return {"mapping": [[_described(key, tensors), _described(one, tensors)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        return [_described(one, tensors) for one in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        # The state of NumPy's generators; longer numbers are none of a run folder's files.
        return {"whole": str(value)}
    return value


def _built(described: Any, tensors: Mapping[int, torch.Tensor]) -> Any:
    if isinstance(described, list):
        return [_built(one, tensors) for one in described]
    if not isinstance(described, dict):
        return described
    if "tensor" in described:
        return tensors[described["tensor"]]
    if "whole" in described:
        return int(described["whole"])
    return {_built(key, tensors): _built(one, tensors) for key, one in described["mapping"]}


def _save(tensors: Sequence[torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    for number, places in enumerate(_in_files(tensors)):
        # Copies, for safetensors refuses tensors that share memory.
        part = {str(place): local(tensors[place].detach()).to("cpu", copy=True).contiguous() for place in places}
        save_file(part, folder / f"{number}.safetensors")


def _in_files(tensors: Sequence[torch.Tensor]) -> Iterator[list[int]]:
    """Yield the places of tensors that go into one file."""
    places: list[int] = []
    size = 0
    for place, tensor in enumerate(tensors):
        if places and size + tensor.nbytes > FILE_BYTES:
            yield places
            places, size = [], 0
        places.append(place)
        size += tensor.nbytes
    if places:
        yield places


def _load(folder: Path) -> dict[int, torch.Tensor]:
    from safetensors.torch import load_file

    return {int(place): tensor for path in folder.glob("*.safetensors") for place, tensor in load_file(path).items()}


def chance(device: str) -> dict[str, Any]:
    """Return the state of this process's streams of chance: of torch on the CPU and the device, of Python and of NumPy."""
    import torch

    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if device == "cuda" else None,
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
    }


def put_chance(state: Mapping[str, Any]) -> None:
    """Have the streams of chance go on from a state that :func:`chance` returned."""
    import torch

    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))


def optimizer_state(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return what an optimiser knows of each of its parameters, in their order; what it is told at its making is left out."""
    return [dict(part.state.get(weight, {})) for part, weight in _weights(optimizer)]


def put_optimizer_state(optimizer: torch.optim.Optimizer, state: Sequence[Mapping[str, Any]]) -> None:
    """Give an optimiser what :func:`optimizer_state` returned, of one over the same parameters.

    Not by its ``load_state_dict``, which would have tensors in the parameters' precision.
    """
    import torch

    for (part, weight), known in zip(_weights(optimizer), state, strict=True):
        if known:
            part.state[weight] = {
                # A number of steps stays on the CPU, unless the step is fused on a GPU.
                name: value.to(
                    "cpu" if value.ndim == 0 and not part.defaults.get("fused") else weight.device, copy=True
                )
                if isinstance(value, torch.Tensor)
                else value
                for name, value in known.items()
            }


def _weights(optimizer: torch.optim.Optimizer) -> Iterator[tuple[torch.optim.Optimizer, torch.Tensor]]:
    """Yield the parameters of an optimiser, each with the one that holds its state where several are one."""
    for part in getattr(optimizer, "parts", [optimizer]):
        for group in part.param_groups:
            for weight in group["params"]:
                yield part, weight
