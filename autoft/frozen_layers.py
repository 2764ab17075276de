"""What frozen layers make of a text, computed once: later epochs and trials begin where the training begins.

Where only the upper layers of a body or its head are trained, the layers below say the same of a text each time. Their
output is kept in a file and put in their place, as PETALS and AutoFreeze (Liu et al. 2021, arXiv:2102.01386) do. They
have no dropout then, whether a text is computed or recalled, so that what a training learns does not depend on what the
file holds.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.head_start import weights_fingerprint
from autoft.strategies.first_token import ASKED, put_forward
from autoft.strategies.partial import body_and_layers

if TYPE_CHECKING:
    import torch

__all__ = ["ActivationStore", "recalled"]

LARGEST = 4 * 1024**3
"""Bytes of activations that a worker keeps at most, and at most a quarter of the free disk."""

READS = frozenset({"attention_mask", "input_ids", "token_type_ids"})
"""Arguments of a body that say what a text is. Where it is given other tensors, as of pictures, nothing is kept."""

TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
"""How much a loss may differ, relative to it or to 1, between what is computed and what is recalled."""


class ActivationStore:
    """Hidden states by what they were made of, in a file without a name, which ends with the process.

    Args:
        folder: where the file lies.
        limit: bytes that it may grow to; what comes beyond is not kept.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.limit = min(LARGEST, shutil.disk_usage(folder).free // 4) if limit is None else limit
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it is open as long as the store is there
        self.places: dict[bytes, tuple[int, torch.Size, torch.dtype]] = {}
        self.size = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self.places

    def put(self, key: bytes, states: torch.Tensor) -> None:
        """Keep the states of a text, ``(tokens, width)``, unless the file is full."""
        import torch

        content = states.detach().to("cpu").contiguous().view(torch.uint8).numpy().tobytes()
        if key in self.places or self.size + len(content) > self.limit:
            return
        try:
            written = os.pwrite(self.file.fileno(), content, self.size)
        except OSError:
            # A full disk ends the keeping and not the training.
            self.limit = self.size
            return
        if written == len(content):
            self.places[key] = self.size, states.shape, states.dtype
            self.size += written

    def get(self, key: bytes) -> torch.Tensor:
        """Return the states of a text, ``(tokens, width)``."""
        import torch

        place, shape, dtype = self.places[key]
        content = bytearray(os.pread(self.file.fileno(), shape.numel() * dtype.itemsize, place))
        return torch.frombuffer(content, dtype=dtype).view(shape)


@contextmanager
def recalled(
    model: torch.nn.Module,
    store: ActivationStore,
    loss_of: Callable[[Sequence[Any]], torch.Tensor],
    texts: Sequence[Any],
    precision: str = "fp32",
) -> Iterator[int]:
    """Have a model recall what its frozen layers say while the context lasts; give the number of these layers.

    Nothing changes (0 layers) where something is trained below the first trained layer, where layers hand on more than
    hidden states, or where a loss with recalled states is not the one that is computed.

    Args:
        model: its parameters that are trained require gradients.
        store: for the activations, of other models and layers too.
        loss_of: the training's own loss of some encoded rows, which is compared.
        texts: encoded rows, the shortest first; the others are as long as they may be.
        precision: ``fp32`` or ``bf16``, in which the losses are computed.
    """
    import torch

    frozen = _Frozen.below_training(model, store, precision)
    if frozen is None:
        yield 0
        return
    training = model.training
    # Dropout would make every loss another one.
    model.eval()
    with torch.no_grad(), frozen:
        known = frozen.agrees(loss_of, texts, TOLERANCE[precision])
    model.train(training)
    if not known:
        yield 0
        return
    with frozen:
        yield len(frozen.layers)


class _Frozen:
    """The frozen layers of a model while they are listened to, and passed over where all texts of a batch are known."""

    def __init__(
        self,
        model: torch.nn.Module,
        body: torch.nn.Module,
        layers: Sequence[torch.nn.Module],
        store: ActivationStore,
        known_as: str,
    ) -> None:
        self.model, self.body, self.layers, self.store, self.known_as = model, body, layers, store, known_as
        self.signature = inspect.signature(body.forward)
        self.before: list[torch.nn.Module] = []
        """What runs until the last frozen layer is done."""
        self.recalls = True
        self.odd = False
        """The last layer returned something else than hidden states."""
        self.form: Callable[[torch.Tensor], Any] = lambda states: states
        """Makes of hidden states what a layer returns."""
        self.keys: list[bytes] = []
        """Of the texts of the forward pass that is under way; none where nothing is kept of it."""
        self.lengths: list[int] = []
        self.states: torch.Tensor | None = None
        """What the last layer is to return, where all texts are known."""
        self.undo: list[Callable[[], None]] = []

    @classmethod
    def below_training(cls, model: torch.nn.Module, store: ActivationStore, precision: str) -> _Frozen | None:
        """Return the layers of a body below the first that is trained, or None where there are none."""
        found = body_and_layers(model)
        if found is None:
            return None
        body, stack = found
        trained = [any(parameter.requires_grad for parameter in layer.parameters()) for layer in stack]
        count = trained.index(True) if any(trained) else len(trained)
        if not count:
            return None
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        known_as = weights_fingerprint(model, without=trainable)
        return cls(model, body, stack[:count], store, f"{known_as}, {count} layers, {precision}")

    def __enter__(self) -> _Frozen:
        self.undo.append(self.body.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
        for layer in self.layers:
            self._listen(layer, last=layer is self.layers[-1])
        return self

    def __exit__(self, *exception: object) -> None:
        while self.undo:
            self.undo.pop()()
        self.keys, self.states = [], None

    def _listen(self, layer: Any, *, last: bool) -> None:
        own = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.states is not None:
                return self.form(self.states if last else args[0])
            found = own(*args, **kwargs)
            if last and self.keys:
                self._keep(found)
            return found

        self.undo.append(put_forward(layer, forward))

    def _keep(self, found: Any) -> None:
        """Store what the last frozen layer returned, row by row, without padding."""
        import torch

        states, rest = (found[0], found[1:]) if isinstance(found, tuple) and found else (found, ())
        hidden = isinstance(states, torch.Tensor) and states.ndim == 3 and len(states) == len(self.keys)
        if not hidden or any(one is not None for one in rest):
            self.odd = True
            return
        self.form = (lambda states: (states, *rest)) if isinstance(found, tuple) else (lambda states: states)
        for key, length, row in zip(self.keys, self.lengths, states, strict=True):
            self.store.put(key, row[:length])

    def _begin(self, body: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        for module in self.before:
            module.training = False
        self.keys, self.states = [], None
        given = self.signature.bind(*args, **kwargs).arguments
        self._name({**given, **given.pop("kwargs", {})})
        if self.recalls and self.keys and all(key in self.store for key in self.keys):
            self.states = self._assembled()

    def _name(self, given: Mapping[str, Any]) -> None:
        """Give each text of a batch its key, unless something else is read beside or asked for."""
        import torch

        ids, mask, kinds = (given.get(name) for name in ("input_ids", "attention_mask", "token_type_ids"))
        others = {name: value for name, value in given.items() if name not in READS}
        read = any(isinstance(value, torch.Tensor) for value in others.values())
        if read or ids is None or ids.ndim != 2 or any(others.get(name) for name in ASKED):
            return
        if mask is None:
            mask = torch.ones_like(ids)
        lengths = mask.sum(dim=1)
        filled = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        if mask.shape != ids.shape or not torch.equal(mask.bool(), filled) or not bool(lengths.all()):
            return
        self.width, self.device, self.lengths = ids.shape[1], ids.device, lengths.tolist()
        read_as = [one.cpu().numpy() for one in (ids, kinds) if one is not None]
        for row, length in enumerate(self.lengths):
            digest = hashlib.blake2b(f"{self.known_as}, {len(read_as)}".encode(), digest_size=16)
            for one in read_as:
                digest.update(one[row, :length].tobytes())
            self.keys.append(digest.digest())

    def _assembled(self) -> torch.Tensor:
        """Return the states of the batch, ``(batch, seq, width)``, padded with zeros."""
        import torch

        rows = [self.store.get(key) for key in self.keys]
        states = torch.zeros(len(rows), self.width, rows[0].shape[1], dtype=rows[0].dtype)
        for i, row in enumerate(rows):
            states[i, : len(row)] = row
        return states.to(self.device)

    def agrees(self, loss_of: Callable[[Sequence[Any]], torch.Tensor], texts: Sequence[Any], tolerance: float) -> bool:
        """Say whether the loss of a recalled text is the computed one, and whether all that is trained comes later.

        All texts are kept as they are padded together, and the first is then recalled without padding.
        """
        self.recalls = False
        with self._watched() as later:
            loss_of(texts)
        trained = {id(parameter) for parameter in self.model.parameters() if parameter.requires_grad}
        if self.odd or not self.keys or not trained <= later:
            return False
        computed = float(loss_of(texts[:1]))
        self.recalls = True
        found = float(loss_of(texts[:1]))
        return self.states is not None and abs(found - computed) <= tolerance * max(1.0, abs(computed))

    @contextmanager
    def _watched(self) -> Iterator[set[int]]:
        """Note what runs until the last frozen layer is done; give the parameters of what begins after that, by identity."""
        begun: set[torch.nn.Module] = set()
        later: set[int] = set()
        ended = False

        def begin(module: torch.nn.Module, args: Any) -> None:
            if not ended:
                begun.add(module)
            elif module not in begun:
                later.update(id(parameter) for parameter in module.parameters(recurse=False))

        def end(module: torch.nn.Module, args: Any, found: Any) -> None:
            nonlocal ended
            if not ended:
                self.before.append(module)
                ended = module is self.layers[-1]

        hooks = [module.register_forward_pre_hook(begin) for module in self.model.modules()]
        hooks += [module.register_forward_hook(end) for module in self.model.modules()]
        try:
            yield later
        finally:
            for hook in hooks:
                hook.remove()
