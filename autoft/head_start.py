"""A new head begins at its optimum over the untrained body, and not at random.

A pretrained body says much of a task already. From a random head a training first spends its steps on finding that, and
its large gradients pull at the body meanwhile; with many classes and few rows it may end before it is through. Linear
probing, then fine-tuning, as Kumar et al. 2022 (arXiv:2202.10054) have it, costs one forward pass over some rows. Of the
head it is the last linear layer that is fitted, all rows at once, by L-BFGS; how strongly its weights are held small is
decided on a fifth of the rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from autoft.contracts import Task, TaskContext
from autoft.data.features import Features
from autoft.strategies.head_only import find_bodies, find_head, is_pretrained

if TYPE_CHECKING:
    import torch

__all__ = ["HeadWeights", "fit_head", "weights_fingerprint"]

ROWS = 5000
"""Training rows that are looked at, at most."""

LARGEST = 32 * 1024**2
"""Bytes of what the fitted layer is given, of all rows together; beyond it, fewer rows are looked at."""

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""What the squared weights are multiplied with beside the mean loss, the strongest first; for inputs of size 1."""

DROPPED = 0.1
"""Share of the inputs that are left out of the held-out rows when the strength is chosen.

A training changes what the layer is given: by dropout, and in each step by what the body learns. Large weights on inputs that
hardly vary serve rows as they are, and fail at the first change."""

HELD_OUT = 5
"""One row of so many decides on the strength."""

TOKENS = 8192
"""Of a forward pass at least, padding included, where the rows of eight training batches have as many."""

ITERATIONS = 30
"""Of L-BFGS for each strength."""

TOLERANCE = 1e-3
"""How much the loss of a batch may differ, relative to it or to 1, with the body's answer left out and the layer's kept."""


@dataclass(frozen=True)
class HeadWeights:
    """A fitted linear layer.

    Attributes:
        layer: its name in the model.
        weight: ``(outputs, width)`` in 32 bits.
        bias: ``(outputs,)``, or None where the layer has none.
        loss: of the rows that it was fitted on.
        before: the same with the weights that the layer had.
    """

    layer: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    loss: float
    before: float

    def put(self, model: torch.nn.Module) -> None:
        """Write them into the layer of a model."""
        import torch

        layer: Any = model.get_submodule(self.layer)
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            if self.bias is not None:
                layer.bias.copy_(self.bias)


@dataclass(frozen=True)
class _Batch:
    """Some rows: as the task collated them, what the layer is given of them, and the shape of what the body says."""

    batch: Mapping[str, torch.Tensor]
    given: torch.Tensor
    said: Any
    rows: int


def fit_head(
    model: torch.nn.Module,
    *,
    task: Task,
    context: TaskContext,
    features: Features,
    batch_size: int = 32,
    precision: str = "fp32",
    known: dict[str, HeadWeights | None] | None = None,
) -> HeadWeights | None:
    """Fit the last linear layer of a new head over the body as it is, put the weights in, and return them.

    The loss is the task's own, cross-entropy without smoothing or weights of classes, so that what is fitted does not
    depend on the trial. Nothing is done to models whose head came with the checkpoint, with more than one body, or whose
    loss is not computed from what the layer returns.

    Args:
        model: as the task loaded it, on its device, before an adapter is attached.
        task: gives batches and the loss.
        context: its facts, options and parameters, with the processor.
        features: encoded training rows.
        batch_size: of the training; a forward pass without gradients takes more rows where they are short.
        precision: ``fp32`` or ``bf16``, in which the body computes.
        known: what was fitted before, by what it depends on, None where nothing could be; it is added to.

    Raises:
        RuntimeError: memory ran out.
    """
    bodies, heads = find_bodies(model), find_head(model).modules
    if len(bodies) != 1 or not bodies[0] or not heads or not len(features):
        return None
    plain = {"train.loss": "cross-entropy", "train.class_weights": "none", "train.label_smoothing": 0.0}
    settings = {name: value for name, value in context.params.items() if name.startswith("task.")}
    settings["train.max_length"] = context.max_length
    fitted_in = f"{sorted(settings.items())}, {precision}, {context.reserved}, {len(features)}"
    context = _with_params(context, plain)
    rng = np.random.default_rng(0)
    rows = sorted(rng.permutation(len(features))[:ROWS].tolist())
    training = model.training
    model.eval()
    try:
        layer = _last_linear(model, heads, lambda: _loss(model, task, context, features, rows[:1], precision)[0])
        if layer is None or is_pretrained(model.get_parameter(f"{layer}.weight")):
            return None
        key = f"{layer}, {fitted_in}, {weights_fingerprint(model, without=(f'{layer}.weight', f'{layer}.bias'))}"
        known = {} if known is None else known
        if key not in known:
            fitted = None
            with _Probe(model, bodies[0], layer, task, context) as probe:
                held_out = set(rng.permutation(rows)[: math.ceil(len(rows) / HELD_OUT)].tolist())
                parts = [
                    probe.gather(features, some, batch_size, precision, LARGEST * len(some) / len(rows))
                    for some in ([row for row in rows if row not in held_out], [row for row in rows if row in held_out])
                ]
                if probe.agrees(precision) and all(parts):
                    fitted = probe.fit(*parts)
            # Not before: where memory ran out, the next trial tries again. A loss that is no number is no better either.
            known[key] = fitted if fitted is not None and fitted.loss < fitted.before else None
        found = known[key]
        if found is not None:
            found.put(model)
        return found
    finally:
        model.train(training)


def weights_fingerprint(model: torch.nn.Module, without: Iterable[str] = ()) -> str:
    """Return what tells the weights and buffers of a model from others: names, shapes, sums and norms of all but some."""
    import torch

    digest, without = hashlib.blake2b(digest_size=16), set(without)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if name not in without:
            total = value.detach().sum(dtype=torch.float64).item()
            spread = value.detach().float().norm().item()
            digest.update(f"{name} {tuple(value.shape)} {value.dtype} {total} {spread}".encode())
    return digest.hexdigest()


def _with_params(context: TaskContext, params: Mapping[str, Any]) -> TaskContext:
    return replace(context, params={**context.params, **params})


def _loss(
    model: torch.nn.Module, task: Task, context: TaskContext, features: Features, rows: Sequence[int], precision: str
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of some rows, and their batch."""
    import torch

    batch = task.collate([features[int(row)] for row in rows], context)
    batch = {name: value.to(context.device) for name, value in batch.items()}
    with torch.no_grad(), torch.autocast(context.device, torch.bfloat16, enabled=precision == "bf16"):
        return task.loss(model, batch, context), batch


def _last_linear(model: torch.nn.Module, heads: Sequence[str], run: Callable[[], Any]) -> str | None:
    """Return the linear layer of the heads that is called last, and once, in a forward pass, by name."""
    from torch import nn

    called: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda module, args: called.append(name)

    linear = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and any(name == head or name.startswith(f"{head}.") for head in heads)
    ]
    hooks = [module.register_forward_pre_hook(note(name)) for name, module in linear]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return called[-1] if called and called.count(called[-1]) == 1 else None


class _Probe:
    """A model whose body and last layer are listened to, and then stood in for.

    While ``current`` is set, the body returns zeros that take no memory, and the layer what it says of ``current.given``
    whatever it is handed: all between them, and the loss behind, are the model's and the task's own.
    """

    def __init__(self, model: torch.nn.Module, body: str, layer: str, task: Task, context: TaskContext) -> None:
        self.model, self.name, self.task, self.context = model, layer, task, context
        self.body: Any = model.get_submodule(body)
        linear: Any = model.get_submodule(layer)
        self.layer = linear
        self.weight: torch.Tensor = linear.weight.detach().float().clone()
        self.bias: torch.Tensor | None = None if linear.bias is None else linear.bias.detach().float().clone()
        self.current: _Batch | None = None
        self.first: tuple[_Batch, float] | None = None
        """A batch and its loss as the whole model computes it."""
        self.said: Any = None
        self.given: Any = None
        self.undo: list[Callable[[], None]] = []

    def __enter__(self) -> _Probe:
        from torch.nn import functional

        own_body, own_layer = self.body.forward, self.layer.forward

        def body(*args: Any, **kwargs: Any) -> Any:
            if self.current is not None:
                return self.current.said
            found = own_body(*args, **kwargs)
            self.said = _hollow(found)
            return found

        def layer(given: torch.Tensor) -> Any:
            if self.current is not None:
                return functional.linear(self.current.given, self.weight, self.bias)
            self.given = given.detach().float()
            return own_layer(given)

        for module, forward in ((self.body, body), (self.layer, layer)):
            self.undo.append(partial(_restore, module, vars(module).get("forward")))
            module.forward = forward
        return self

    def __exit__(self, *exception: object) -> None:
        while self.undo:
            self.undo.pop()()

    def gather(
        self, features: Features, rows: Sequence[int], batch_size: int, precision: str, limit: float
    ) -> list[_Batch]:
        """Run the model over rows, and keep what the layer is given until ``limit`` bytes are reached."""
        found: list[_Batch] = []
        for chosen in _batches(features, rows, batch_size):
            loss, batch = _loss(self.model, self.task, self.context, features, chosen, precision)
            one = _Batch(batch, self.given, self.said, len(chosen))
            found.append(one)
            self.first = self.first or (one, float(loss))
            limit -= one.given.nbytes
            if limit <= 0:
                break
        return found

    def agrees(self, precision: str) -> bool:
        """Say whether the loss of what was kept is the one that the whole model has."""
        import torch

        if self.first is None:
            return False
        one, loss = self.first
        with torch.no_grad():
            found = float(self.mean_loss([one]))
        tolerance = 30 * TOLERANCE if precision == "bf16" else TOLERANCE
        return abs(found - loss) <= tolerance * max(1.0, abs(loss))

    def mean_loss(self, batches: Sequence[_Batch]) -> torch.Tensor:
        """Return the mean loss over rows, from what was kept of them."""
        total: Any = 0.0
        for one in batches:
            with self._standing_in(one):
                total = total + self.task.loss(self.model, one.batch, self.context).float() * one.rows
        mean: torch.Tensor = total / sum(one.rows for one in batches)
        return mean

    @contextmanager
    def _standing_in(self, one: _Batch) -> Iterator[None]:
        self.current = one
        try:
            yield
        finally:
            self.current = None

    def fit(self, most: Sequence[_Batch], held_out: Sequence[_Batch]) -> HeadWeights:
        """Return the weights of the strength that serves the held-out rows best, fitted on all rows."""
        import torch

        with torch.no_grad():
            before = float(self.mean_loss([*most, *held_out]))
        size = self._size([*most, *held_out])
        most, held_out = ([replace(one, given=one.given / size) for one in part] for part in (most, held_out))
        changed = [replace(one, given=_dropped(one.given, number)) for number, one in enumerate(held_out)]
        self.weight = torch.zeros_like(self.weight)
        self.bias = None if self.bias is None else torch.zeros_like(self.bias)
        best, chosen = math.inf, STRENGTHS[0]
        for strength in STRENGTHS:
            self._minimise(most, strength)
            with torch.no_grad():
                loss = float(self.mean_loss(changed))
            # A loss that is no number ends it too.
            if not loss < best:
                break
            best, chosen = loss, strength
        loss = self._minimise([*most, *held_out], chosen)
        return HeadWeights(self.name, self.weight / size, self.bias, loss, before)

    def _size(self, batches: Sequence[_Batch]) -> float:
        """Return the root mean square of what the layer is given."""
        count = sum(one.given.numel() for one in batches)
        return max(math.sqrt(sum(float(one.given.square().sum()) for one in batches) / count), 1e-12)

    def _minimise(self, batches: Sequence[_Batch], strength: float) -> float:
        """Go on from the weights that are there, and return the mean loss without what holds them small."""
        import torch

        trained = [one.requires_grad_() for one in (self.weight, self.bias) if one is not None]
        optimizer = torch.optim.LBFGS(trained, max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = self.mean_loss(batches) + strength * self.weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch has no types here
        self.weight = self.weight.detach()
        self.bias = None if self.bias is None else self.bias.detach()
        with torch.no_grad():
            return float(self.mean_loss(batches))


def _batches(features: Features, rows: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the rows by length, as many at once as a step of the training computes gradients for; in a random order."""
    most = max(TOKENS, batch_size * int(features.lengths.max()))
    found: list[list[int]] = [[]]
    for row in sorted(rows, key=lambda row: int(features.lengths[row])):
        full = (len(found[-1]) + 1) * int(features.lengths[row]) > most or len(found[-1]) == 8 * batch_size
        if full and found[-1]:
            found.append([])
        found[-1].append(row)
    np.random.default_rng(0).shuffle(found)
    yield from (some for some in found if some)


def _dropped(given: torch.Tensor, seed: int) -> torch.Tensor:
    """Return inputs as dropout leaves them; by a stream of chance of its own."""
    import torch

    kept = torch.rand(given.shape, generator=torch.Generator().manual_seed(seed)) >= DROPPED
    return given * kept.to(given.device) / (1 - DROPPED)


def _restore(module: Any, replaced: Any) -> None:
    if replaced is None:
        del module.forward
    else:
        module.forward = replaced


def _hollow(said: Any) -> Any:
    """Return the same structure with tensors of the same shape that are all zeros and share one number's memory."""
    import torch

    if isinstance(said, torch.Tensor):
        return said.new_zeros(()).expand(said.shape)
    if isinstance(said, Mapping):
        return type(said)(**{name: _hollow(value) for name, value in said.items()})
    if isinstance(said, tuple):
        return tuple(_hollow(value) for value in said)
    return said
