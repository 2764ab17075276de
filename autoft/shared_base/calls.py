"""Calls of the shared body: which are joined, and what of the answer is whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoft.shared_base.models import Unfit

if TYPE_CHECKING:
    import torch

    from autoft.shared_base.cohort import Seat

__all__ = ["ALONE", "FLOOR", "ROWS", "Call", "cheapest", "mask_of", "same", "shares_of"]

FLOOR: Mapping[str, int] = {"cpu": 64, "cuda": 4096}
"""By device, the tokens below which a pass is taken to last no less: calls whose padding costs more than that are not
joined. Both are guesses; ``benchmarks/shared_base.py --floor`` tries others."""

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
"""How far what a joined pass says of a trial's rows may be from what the trial's own body says, relative to the largest."""

ROWS = frozenset({"attention_mask", "input_ids", "inputs_embeds", "position_ids", "token_type_ids"})
"""Arguments of a body of shape ``(rows, tokens, ...)``."""

ALONE = object()
"""The answer to a call that the trial's own body has to compute."""


@dataclass(frozen=True)
class Call:
    """What a trial gives to its body, or to its frozen output layer."""

    site: str
    kind: tuple[Any, ...]
    """Calls of one kind are computed together."""
    given: Mapping[str, Any]
    rows: int
    length: int


def cheapest(calls: Sequence[tuple[int, int, Seat]], floor: int) -> list[list[Seat]]:
    """Return the division of calls, given by length and rows, that costs least: a pass takes its tokens or the floor.

    Calls that are computed together are neighbours in length; then each prefix of the sorted calls has a best division.
    """
    calls = sorted(calls, key=lambda call: (call[0], call[2].number))
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(calls) + 1):
        length = calls[end - 1][0]
        options = []
        for begin in range(end):
            rows = sum(call[1] for call in calls[begin:end])
            options.append((best[begin][0] + max(floor, rows * max(1, length)), begin))
        best.append(min(options))
    found, end = [], len(calls)
    while end:
        begin = best[end][1]
        found.append([call[2] for call in calls[begin:end]])
        end = begin
    return found[::-1]


def mask_of(calls: Sequence[Call], length: int) -> torch.Tensor:
    """Return which tokens are the calls' own, ``(rows, tokens)``, where they say nothing of it."""
    import torch

    some = next(value for name, value in calls[0].given.items() if name in ROWS)
    mask = torch.zeros(sum(call.rows for call in calls), length, dtype=torch.long, device=some.device)
    begin = 0
    for call in calls:
        mask[begin : begin + call.rows, : call.length] = 1
        begin += call.rows
    return mask


def shares_of(value: Any, calls: Sequence[Call], length: int) -> list[Any]:
    """Return each call's share of what a body returned: its rows, without the padding of others.

    Raises:
        Unfit: the body returned something else than rows.
    """
    import torch

    if value is None or isinstance(value, bool | int | float | str):
        return [value] * len(calls)
    if isinstance(value, torch.Tensor):
        sizes = [call.rows for call in calls]
        if value.ndim not in (2, 3) or value.shape[0] != sum(sizes):
            raise Unfit("its body returns something else than rows")
        padded = value.ndim == 3 and length and value.shape[1] == length
        return [
            mine[:, : call.length] if padded and call.length < length else mine
            for call, mine in zip(calls, torch.split(value, sizes), strict=True)
        ]
    if isinstance(value, tuple | list):
        shares = [shares_of(one, calls, length) for one in value]
        return [type(value)(own) for own in zip(*shares, strict=True)]
    if isinstance(value, dict):
        # transformers' outputs are dictionaries whose class takes their items.
        named = {name: shares_of(one, calls, length) for name, one in value.items()}
        return [type(value)(**{name: own[i] for name, own in named.items()}) for i in range(len(calls))]
    raise Unfit(f"its body returns a {type(value).__name__}")


def same(found: Any, own: Any, mask: Any) -> bool:
    """Say whether two outputs of a body are alike where there are tokens."""
    import torch

    if isinstance(own, torch.Tensor):
        if not isinstance(found, torch.Tensor) or found.shape != own.shape:
            return False
        difference = (found - own).abs().float()
        if mask is not None and own.ndim == 3 and own.shape[:2] == mask.shape:
            difference = difference * mask[:, :, None]
        largest = float(own.abs().max()) if own.numel() else 0.0
        limit = TOLERANCE.get(str(own.dtype).removeprefix("torch."), 1e-4) * max(1.0, largest)
        worst = float(difference.max()) if difference.numel() else 0.0
        # What is not finite is the trial's own matter.
        return worst <= limit or not bool(torch.isfinite(own).all())
    if isinstance(own, dict):
        keys = [key for key in own if key != "past_key_values" and own[key] is not None]
        return isinstance(found, dict) and all(same(found.get(key), own[key], mask) for key in keys)
    if isinstance(own, tuple | list):
        return len(found) == len(own) and all(same(a, b, mask) for a, b in zip(found, own, strict=True))
    return True
