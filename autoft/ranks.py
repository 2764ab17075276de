"""Processes that train one trial together: each takes its rows of a batch, and all take the same steps.

The weights are sharded by FSDP2 (``torch.distributed.fsdp.fully_shard``; Zhao et al. 2023, arXiv:2304.11277), or each process
has them all. It is called without Accelerate, which offers FSDP on accelerators alone: so it is the same on CPUs, by gloo, and
on GPUs, by NCCL.

Rank 0 decides whatever may differ between processes, and the others hear of it: none may be alone in a collective call.
"""

from __future__ import annotations

import copy
import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = ["ProcessGroup", "Ranks", "local"]

T = TypeVar("T")

PATIENCE = datetime.timedelta(days=30)
"""Until a collective call fails by itself: between trainings the others wait for rank 0, and who hangs is ended by the search."""


class Ranks:
    """The processes that train a trial, as one of them sees them; there is but this one.

    Attributes:
        rank: number of this process, from 0 on.
        size: how many there are.
    """

    rank = 0
    size = 1
    gradient_scale = 1.0
    """What the loss is multiplied with so that gradients add up over the processes."""
    retries = True
    """Memory that runs out in one process leaves none waiting in a collective call."""

    @property
    def leads(self) -> bool:
        """Whether this process decides, and tells what happens."""
        return self.rank == 0

    def begin(self, parts: int | None) -> int | None:
        """Begin a training, with the parts that rank 0 has each batch cut into; None where rank 0 does not begin it."""
        return parts

    def agreed(self, value: T) -> T:
        """Return the value that rank 0 has."""
        return value

    def any(self, value: bool) -> bool:
        """Say whether it is true in one of the processes."""
        return value

    def total(self, value: torch.Tensor) -> float:
        """Return the sum of a number over the processes."""
        return float(value)

    def largest(self, value: int) -> int:
        """Return the largest of a number over the processes."""
        return value

    def shard(self, model: torch.nn.Module) -> None:
        """Leave to each process its part of the weights, in place; the optimiser is made afterwards."""

    def gathered(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model that :meth:`shard` took with all of its weights, as they are now; only rank 0 has any use for it."""
        return model

    def add_gradients(self, trained: Sequence[torch.nn.Parameter]) -> None:
        """Add up over the processes what a step's backward passes left."""


class ProcessGroup(Ranks):
    """One of several processes; made in each of them, it returns when all are there.

    Args:
        store: a file by which they find each other; not there yet, or made by one of them.
        rank: as of :class:`Ranks`.
        size: likewise.
        sharding: ``fsdp``, or ``none``: each process keeps all weights.
        device: ``cpu`` or ``cuda``; there each takes the current device.

    Attributes:
        state: ``waiting`` until :meth:`begin`, ``training`` until :meth:`gathered`, then ``done``.
    """

    def __init__(self, store: Path, rank: int, size: int, sharding: str, device: str) -> None:
        import torch.distributed as dist

        self.rank, self.size, self.sharding, self.device = rank, size, sharding, device
        # FSDP takes the mean over the processes.
        self.gradient_scale = float(size) if sharding == "fsdp" else 1.0
        self.retries = sharding != "fsdp"
        self.blank: torch.nn.Module | None = None
        self.state: Literal["waiting", "training", "done"] = "waiting"
        # They are all on this machine.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        # What is agreed on are Python's own values, which travel through the CPU.
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
        found: Any = dist.FileStore(str(store), size)  # type: ignore[attr-defined]  # torch exports it without saying so
        dist.init_process_group(backend, store=found, rank=rank, world_size=size, timeout=PATIENCE)

    def close(self) -> None:
        """Leave the group."""
        import torch.distributed as dist

        dist.destroy_process_group()

    def ask(self, request: T) -> T:
        """Return what rank 0 asks of all, as the next thing."""
        self.state = "waiting"
        return self.agreed(request)

    def begin(self, parts: int | None) -> int | None:
        """Begin a training, with the parts that rank 0 has each batch cut into; None where rank 0 does not begin it."""
        parts = self.agreed(parts)
        self.state = "done" if parts is None else "training"
        return parts

    def agreed(self, value: T) -> T:
        """Return the value that rank 0 has; any that can be pickled."""
        import torch
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def any(self, value: bool) -> bool:
        """Say whether it is true in one of the processes."""
        return bool(self.largest(int(value)))

    def total(self, value: torch.Tensor) -> float:
        """Return the sum of a number over the processes."""
        import torch
        import torch.distributed as dist

        number = torch.tensor(float(value), dtype=torch.float64)
        dist.all_reduce(number)
        return float(number)

    def largest(self, value: int) -> int:
        """Return the largest of a number over the processes."""
        import torch
        import torch.distributed as dist

        number = torch.tensor(value)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def shard(self, model: torch.nn.Module) -> None:
        """Leave to each process its part of the weights; of unsharded ones give all those of rank 0."""
        import torch.distributed as dist

        if self.sharding == "none":
            for tensor in (*model.parameters(), *model.buffers()):
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, src=0)
                tensor.detach().copy_(whole)
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        if self.leads:
            # The same modules without weights: those of the trained model stay FSDP's for good.
            self.blank = copy.deepcopy(model, {id(weight): _without_values(weight) for weight in model.parameters()})
        mesh = init_device_mesh(self.device, (self.size,))
        for module in (*_layers(model), model):
            # Between two passes a process has nothing but its part, the outermost module's own weights included.
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        if hasattr(model, "generate"):
            register_fsdp_forward_method(model, "generate")

    def gathered(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model with all of its weights, a copy of its own where they were sharded; every process has to call it."""
        import torch

        if self.sharding == "none":
            self.state = "done"
            return model
        whole, self.blank = self.blank, None
        blanks = dict(whole.named_parameters()) if whole is not None else {}
        for name, weight in model.named_parameters():
            full = weight.full_tensor().detach()  # type: ignore[attr-defined]  # a DTensor, which has it
            if name in blanks:
                known = dict(vars(blanks[name]))
                # In place: what two modules share, they share still.
                real = torch.nn.Parameter(full.to("cpu"), requires_grad=weight.requires_grad)
                torch.utils.swap_tensors(blanks[name], real)  # type: ignore[no-untyped-call]  # torch has no types here
                vars(blanks[name]).update(known)
        self.state = "done"
        if whole is None:
            return model
        buffers = dict(whole.named_buffers())
        for name, buffer in model.named_buffers():
            buffers[name].copy_(buffer)
        return whole.to(self.device)

    def add_gradients(self, trained: Sequence[torch.nn.Parameter]) -> None:
        """Add up gradients over the processes; those of sharded weights already are."""
        import torch
        import torch.distributed as dist

        if self.sharding != "none":
            return
        # Weights that no process made use of stay without a gradient, as in one process.
        there = torch.tensor([weight.grad is not None for weight in trained], dtype=torch.uint8)
        dist.all_reduce(there, dist.ReduceOp.MAX)
        waiting = []
        for weight, used in zip(trained, there.tolist(), strict=True):
            if used:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                waiting.append(dist.all_reduce(weight.grad, async_op=True))
        for work in waiting:
            work.wait()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process has of a tensor: its part of a sharded one, else the tensor itself."""
    part: Any = getattr(tensor, "to_local", None)
    return part() if part is not None else tensor


def _without_values(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    """Return a weight of the same shape that takes no memory, with the marks that libraries put on it."""
    import torch

    blank = torch.nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
    vars(blank).update(vars(weight))
    return blank


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the outermost numbered modules that have weights: each is gathered for its own pass."""
    from torch import nn

    lists: list[str] = []
    found: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in lists):
            lists.append(name)
            found += [layer for layer in module if next(layer.parameters(), None) is not None]
    return list(dict.fromkeys(found))
