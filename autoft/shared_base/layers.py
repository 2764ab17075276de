"""What stands in the place of the layers of the shared body: each trial's updates, dropout and modules on its own rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from autoft.pretrained import DROPOUTS
from autoft.shared_base.models import Unfit
from autoft.strategies.peft_adapter import ADAPTER

if TYPE_CHECKING:
    import torch

    from autoft.shared_base.base import Base
    from autoft.shared_base.cohort import Seat

__all__ = [
    "ATTENTION",
    "JoinedDropout",
    "JoinedLayer",
    "Member",
    "Part",
    "SeparateModule",
    "attention_rates",
    "dropped",
    "noticed_attention",
    "offer_attention",
    "passing",
]

ATTENTION = "autoft_joined"
"""Name under which transformers knows attention whose dropout is each row's own."""

RATES = ("dropout", "attention_dropout", "attn_dropout", "dropout_prob", "dropout_p")
"""Attributes in which transformers' attention keeps the rate of its dropout."""


@dataclass
class Member:
    """A trial's model while it shares the base."""

    seat: Seat
    model: Any
    body: Any
    adapted: dict[str, Any]
    """LoRA layers of the body, by name."""
    saved: dict[str, Any]
    """Other trained modules of the body, by name."""
    undo: list[Callable[[], None]] = field(default_factory=list)
    rows: int = 0
    """Of its first batch."""

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(int(layer.lora_A[ADAPTER].weight.shape[0]) for layer in self.adapted.values())


@dataclass(frozen=True)
class Part:
    """A trial's rows in a joined pass."""

    member: Member
    begin: int
    end: int


passing: ContextVar[tuple[Part, ...]] = ContextVar("passing")
"""The parts of the joined pass that is under way."""


class JoinedLayer:
    """A linear layer of the shared body with the updates of those trials that adapt it."""

    def __init__(self, base: Base, name: str, module: Any) -> None:
        self.base, self.name, self.plain = base, name, module.forward
        self.a: Any = None
        """``(trials, rank, in)``, filled up with zeros to the largest rank."""
        self.b: Any = None
        """``(trials, rank, out)``: the transposed ``B``, so that each trial's part is dense in memory."""
        self.owners: list[tuple[Member, Any]] = []
        self.places: dict[int, int] = {}
        module.forward = self

    def stack(self, owners: Sequence[tuple[Member, Any]]) -> None:
        """Lay the matrices of LoRA layers behind each other; the layers' own weights become views of them."""
        import torch

        self.owners = list(owners)
        self.places = {id(member): place for place, (member, _) in enumerate(owners)}
        self.a = self.b = None
        if not owners:
            return
        pairs = [(layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight) for _, layer in owners]
        rank = max(a.shape[0] for a, _ in pairs)
        first = pairs[0][0]
        with torch.no_grad():
            self.a = torch.zeros(len(pairs), rank, first.shape[1], dtype=first.dtype, device=first.device)
            self.b = torch.zeros(len(pairs), rank, pairs[0][1].shape[0], dtype=first.dtype, device=first.device)
            for place, (a, b) in enumerate(pairs):
                mine_a, mine_b = self.a[place, : a.shape[0]], self.b[place, : a.shape[0]].t()
                mine_a.copy_(a)
                mine_b.copy_(b)
                a.data, b.data = mine_a, mine_b
        self.a.requires_grad_(True)
        self.b.requires_grad_(True)
        scales = [float(layer.scaling[ADAPTER]) for _, layer in owners]
        self.scales = torch.tensor(scales, dtype=first.dtype, device=first.device)[:, None, None]
        self.ranks = [a.shape[0] for a, _ in pairs]
        self.rates = [float(getattr(layer.lora_dropout[ADAPTER], "p", 0.0)) for _, layer in owners]

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the layer's outputs with each trial's update on its own rows."""
        import torch

        result: torch.Tensor = self.plain(x, *args, **kwargs)
        parts = passing.get()
        if x.shape[0] != parts[-1].end:
            raise Unfit(f"{self.name} is given something else than the rows of the batch")
        runs = self._runs(parts)
        stacks = self._stacks([places for _, _, places in runs if places])
        if len(runs) == 1:
            return self._updated(x, result, runs[0][2], *next(stacks)) if runs[0][2] else result
        sizes = [end - begin for begin, end, _ in runs]
        # Split, and not cut out one by one: each cut would have a gradient as large as the whole.
        pieces = [
            self._updated(mine, piece, places, *next(stacks)) if places else piece
            for (_, _, places), mine, piece in zip(runs, torch.split(x, sizes), torch.split(result, sizes), strict=True)
        ]
        return torch.cat(pieces)

    def _runs(self, parts: Sequence[Part]) -> list[tuple[int, int, list[int]]]:
        """Return rows whose updates are one product, with the places of their trials: none for those without an update.

        They are of neighbours with equally many rows. On a CPU their ranks are equal too: there zeros cost what other
        numbers do, and a further product costs little.
        """
        runs: list[tuple[int, int, list[int]]] = []
        last: tuple[int, int] | None = None
        for part in parts:
            place = self.places.get(id(part.member))
            like = None
            if place is not None:
                like = part.end - part.begin, self.ranks[place] if self.a.device.type == "cpu" else 0
            if runs and like == last:
                begin, _, places = runs[-1]
                runs[-1] = begin, part.end, places if place is None else [*places, place]
            else:
                runs.append((part.begin, part.end, [] if place is None else [place]))
            last = like
        return runs

    def _stacks(self, wanted: Sequence[Sequence[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield the matrices and scales of these places, each as one tensor that is no longer than its largest rank."""
        import torch

        every = (self.a, self.b, self.scales)
        if len(wanted) == 1 and len(wanted[0]) == len(self.a) and list(wanted[0]) == list(range(len(self.a))):
            yield every
            return
        if [place for places in wanted for place in places] == list(range(len(self.a))):
            # One backward pass for all pieces; each taken by itself would have a gradient as large as the whole.
            pieces = list(zip(*(torch.split(one, [len(places) for places in wanted]) for one in every), strict=True))
        else:
            pieces = [(self.a[list(places)], self.b[list(places)], self.scales[list(places)]) for places in wanted]
        for places, (a, b, scales) in zip(wanted, pieces, strict=True):
            rank = max(self.ranks[place] for place in places)
            yield a[:, :rank], b[:, :rank], scales

    def _updated(
        self,
        x: torch.Tensor,
        result: torch.Tensor,
        places: Sequence[int],
        a: torch.Tensor,
        b: torch.Tensor,
        scales: torch.Tensor,
    ) -> torch.Tensor:
        """Return the outputs of some rows with the updates of the trials at these places."""
        import torch

        given = x.to(a.dtype).reshape(len(places), -1, x.shape[-1])
        if self.base.body.training:
            given = dropped(given, [self.rates[place] for place in places], [1] * len(places))
        low = torch.bmm(given, a.transpose(1, 2)) * scales
        if result.dtype == b.dtype or torch.is_autocast_enabled(result.device.type):
            onto = result.reshape(len(places), -1, result.shape[-1])
            return torch.baddbmm(onto, low, b).reshape(result.shape)
        return (result + torch.bmm(low, b).reshape(result.shape)).to(result.dtype)

    def hand_out(self, seats: set[int]) -> None:
        """Give the trials of these seats, by identity, their parts of the gradients."""
        if self.a is None or self.a.grad is None:
            return
        for (member, layer), a, b in zip(self.owners, self.a.grad.unbind(0), self.b.grad.unbind(0), strict=True):
            if id(member.seat) not in seats or not member.seat.shares:
                continue
            weights = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            rank = weights[0].shape[0]
            for weight, gradient in zip(weights, (a[:rank], b[:rank].t()), strict=True):
                if weight.grad is None:
                    weight.grad = gradient
                else:
                    weight.grad.add_(gradient)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Begin anew; what was handed out stays with the trials."""
        if self.a is not None:
            self.a.grad = self.b.grad = None


class JoinedDropout:
    """A dropout of the shared body, whose rate is each trial's own."""

    def __init__(self, base: Base, name: str) -> None:
        self.base, self.name = base, name

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the values, some of them zero, in training."""
        if not self.base.body.training:
            return x
        parts = passing.get()
        rates = [float(part.member.body.get_submodule(self.name).p) for part in parts]
        if len(set(rates)) > 1 and x.shape[0] != parts[-1].end:
            raise Unfit(f"{self.name} is given something else than the rows of the batch")
        return dropped(x, rates, [part.end - part.begin for part in parts])


class SeparateModule:
    """A module of the body that each trial trains in full: it is computed by each on its own rows."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return what the trials' own modules make of their rows."""
        import torch

        parts = passing.get()
        if x.shape[0] != parts[-1].end or any(isinstance(one, torch.Tensor) for one in (*args, *kwargs.values())):
            raise Unfit(f"{self.name} is given something else than the rows of the batch")
        pieces = torch.split(x, [part.end - part.begin for part in parts])
        return torch.cat(
            [
                part.member.body.get_submodule(self.name)(piece, *args, **kwargs)
                for part, piece in zip(parts, pieces, strict=True)
            ]
        )


def dropped(x: torch.Tensor, rates: Sequence[float], rows: Sequence[int]) -> torch.Tensor:
    """Return values of which a share is zero: of so many rows each the share of their rate."""
    import torch
    from torch.nn import functional

    if len(set(rates)) == 1:
        return functional.dropout(x, rates[0]) if rates[0] else x
    rate = _rates_of_rows(tuple(rates), tuple(rows), str(x.device)).reshape(-1, *(1 for _ in x.shape[1:]))
    kept = torch.rand(x.shape, device=x.device) >= rate
    return x * (kept / (1 - rate).clamp(min=1e-6)).to(x.dtype)


@lru_cache(maxsize=256)
def _rates_of_rows(rates: tuple[float, ...], rows: tuple[int, ...], device: str) -> torch.Tensor:
    """Return the rate of each row. Kept, as a GPU is waited for each time that something is copied to it."""
    import torch

    return torch.tensor([rate for rate, count in zip(rates, rows, strict=True) for _ in range(count)], device=device)


noticed_attention: ContextVar[set[str] | None] = ContextVar("noticed", default=None)
"""Where modules are noted that :func:`_attend` was called for."""


def offer_attention() -> None:
    """Have transformers know attention whose dropout is each row's own."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if ATTENTION not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float = 0.0, **kwargs: Any
) -> tuple[Any, None]:
    """Return transformers' attention by torch, each trial's rows with its own dropout."""
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    parts = passing.get()
    base = parts[0].member.seat.cohort.base
    assert base is not None
    name = base.modules[id(module)]
    noticed = noticed_attention.get()
    if noticed is not None:
        noticed.add(name)
    if not module.training:
        found: tuple[Any, None] = attend(module, query, key, value, attention_mask, dropout=0.0, **kwargs)
        return found
    if _rate(module) != dropout or kwargs.get("position_bias") is not None or query.shape[0] != parts[-1].end:
        raise Unfit(f"the dropout of {name} is not found")
    sizes = [part.end - part.begin for part in parts]
    pieces = []
    for part, *mine in zip(parts, *(torch.split(one, sizes) for one in (query, key, value)), strict=True):
        mask = attention_mask
        if mask is not None and mask.shape[0] == query.shape[0]:
            mask = mask[part.begin : part.end]
        rate = _rate(part.member.body.get_submodule(name))
        pieces.append(attend(module, *mine, mask, dropout=rate, **kwargs)[0])
    return torch.cat(pieces), None


def _rate(module: Any) -> float | None:
    """Return the rate of an attention module's dropout, or None where it is not found."""
    for name in RATES:
        value = getattr(module, name, None)
        value = getattr(value, "p", value)
        if isinstance(value, float | int):
            return float(value)
    return None


def attention_rates(body: Any) -> tuple[Any, ...]:
    """Return what a body's configuration says of dropout."""
    config = getattr(body, "config", None)
    return tuple(getattr(config, name, None) for name in DROPOUTS)
