"""Attention with dropout on a CPU, computed in blocks that stay in the processor's cache.

torch has a fused kernel for attention on a CPU, which knows no dropout: where a training asks for some, as most encoders do,
each step of it is taken on all scores at once, ``(batch, heads, queries, keys)`` numbers that are written to memory and read
again for the softmax, the mask, the dropout and their gradients. With 512 tokens that is half of a training step and most of its
memory. Here a few heads or rows are computed from their scores to their output before the next ones, and the backward pass
computes their scores once more, as FlashAttention does (Dao et al. 2022, https://arxiv.org/abs/2205.14135, section 3.1), with the
dropout of the forward pass drawn again from its seed (appendix B.4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["attention_in_blocks", "dropped_attention"]

BLOCK = 2**18
"""Scores that a thread computes at once: a megabyte of them in 32 bits, about what a core has of cache."""

FEW = 2**15
"""Scores of all rows and heads, up to which torch is faster: there calls take longer than what they compute."""

STEPS = 2**16
"""A share of dropout is a whole number of these: 16 random bits decide on each score."""


_asked: ContextVar[bool] = ContextVar("attention_in_blocks", default=False)
_torchs: Callable[..., tuple[torch.Tensor, None]] | None = None


@contextmanager
def attention_in_blocks() -> Iterator[None]:
    """Have models of transformers compute attention with dropout on the CPU in blocks, in this thread and while the context lasts.

    It is the implementation ``sdpa`` that does so, which models have unless they were told otherwise. What it computes is the
    same up to rounding, with dropout of the same share of scores, though not of the same ones. Attention without dropout, of few
    scores, on another device, or with heads that share keys is left to torch.
    """
    global _torchs
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # It stays there: threads that train at the same time could not take it away from each other. They may get here together, too:
    # what was there is read once, so that none of them takes another's for torch's.
    there = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if there is not _attend:
        _torchs, ALL_ATTENTION_FUNCTIONS["sdpa"] = there, _attend
    before = _asked.set(True)
    try:
        yield
    finally:
        _asked.reset(before)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' ``sdpa_attention_forward`` does."""
    # Nothing is asked of shapes where nothing is dropped: a graph that is traced would be for those alone.
    blocks = 0 < dropout < 1 and _asked.get() and query.device.type == "cpu" and others.get("cache") is None
    if not blocks or key.shape[:2] != query.shape[:2] or query.shape[:3].numel() * key.shape[2] <= FEW:
        assert _torchs is not None
        told = {"scaling": scaling, "is_causal": is_causal, "position_bias": position_bias, **others}
        return _torchs(module, query, key, value, attention_mask, dropout=dropout, **told)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    length = query.shape[2]
    if causal and attention_mask is None and length > 1:
        key, value = key[:, :, :length], value[:, :, :length]
        attention_mask = torch.ones(1, 1, length, key.shape[2], dtype=torch.bool, device=query.device).tril()
        if position_bias is not None:
            position_bias = position_bias[..., :length]
    if position_bias is not None:
        from transformers.integrations.sdpa_attention import create_position_bias_mask

        attention_mask = create_position_bias_mask(position_bias, attention_mask, False, query, key)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = dropped_attention(query, key, value, attention_mask, dropout, scale)
    return output.transpose(1, 2).contiguous(), None


def dropped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scale: float,
) -> torch.Tensor:
    """Return ``dropout(softmax(scale * query @ key.T + mask)) @ value``, computed in blocks.

    Which scores are dropped hangs on one number that is drawn from torch's generator. Gradients are those of first order.

    Args:
        query: ``(batch, heads, queries, width)``.
        key: ``(batch, heads, keys, width)``.
        value: ``(batch, heads, keys, its width)``.
        mask: numbers that are added, or booleans that are true where a key is seen; anything that broadcasts to
            ``(batch, heads, queries, keys)``.
        dropout: share of the scores that become zero, between 0 and 1; the others grow by as much as is lost in the mean.
        scale: of the products.

    Returns:
        ``(batch, heads, queries, its width)``; heads lie side by side in memory.
    """
    if mask is not None:
        if mask.dtype == torch.bool:
            unseen = torch.finfo(query.dtype).min
            mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill_(~mask, unseen)
        mask = mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
    answer: torch.Tensor = _DroppedAttention.apply(query, key, value, mask, dropout, scale)  # type: ignore[no-untyped-call]  # torch has no types here
    return answer


class _DroppedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        dropout: float,
        scale: float,
    ) -> torch.Tensor:
        # A number that is not there cannot be read; a trace asks for no certain one.
        ctx.seed = 0 if isinstance(query, FakeTensor) else int(torch.randint(2**62, ()))
        ctx.dropped, ctx.scale = min(round(dropout * STEPS), STEPS - 1), scale
        # The same blocks in the backward pass, which may be another thread's: what is dropped is drawn block by block.
        ctx.room = BLOCK * torch.get_num_threads()
        ctx.save_for_backward(query, key, value, mask)
        # Beside each other as the layer that follows takes them, so that nothing is copied.
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[3]).transpose(1, 2)
        draws = np.random.SFC64(ctx.seed)
        with torch.autocast("cpu", enabled=False):
            for block in _blocks(query, key, ctx.room):
                scores = _scores(query, key, mask, scale, block)
                scores.mul_(_kept(scores, draws, ctx.dropped))
                output[block] = torch.bmm(scores, _flat(value, block)).view(output[block].shape)
            return output.mul_(STEPS / (STEPS - ctx.dropped))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        of_query, of_key, of_value = (torch.empty_like(one) for one in (query, key, value))
        of_mask = torch.empty(mask.shape, dtype=mask.dtype) if mask is not None and ctx.needs_input_grad[3] else None
        draws = np.random.SFC64(ctx.seed)
        with torch.autocast("cpu", enabled=False):
            gradient = gradients[0] * (STEPS / (STEPS - ctx.dropped))
            for block in _blocks(query, key, ctx.room):
                scores = _scores(query, key, mask, ctx.scale, block)
                kept = _kept(scores, draws, ctx.dropped)
                given = _flat(gradient, block)
                of_scores = torch.bmm(given, _flat(value, block).transpose(1, 2)).mul_(kept)
                of_scores = torch._softmax_backward_data(of_scores, scores, -1, scores.dtype)
                scores.mul_(kept)
                of_value[block] = torch.bmm(scores.transpose(1, 2), given).view(of_value[block].shape)
                if of_mask is not None:
                    of_mask[block] = of_scores.view(of_mask[block].shape)
                of_query[block] = torch.bmm(of_scores, _flat(key, block)).mul_(ctx.scale).view(of_query[block].shape)
                of_key[block] = (
                    torch.bmm(of_scores.transpose(1, 2), _flat(query, block)).mul_(ctx.scale).view(of_key[block].shape)
                )
        return of_query, of_key, of_value, of_mask, None, None


def _blocks(query: torch.Tensor, key: torch.Tensor, scores: int) -> Iterator[tuple[slice, slice]]:
    """Yield which rows and heads are computed at once, of about so many scores: whole rows, or some heads of one.

    Of fake tensors only the first, which takes as much memory as any: a trace asks for no more.
    """
    batch, heads, length, _ = query.shape
    room = scores // max(1, length * key.shape[2])
    rows, each = (max(1, room // heads), heads) if room >= heads else (1, max(1, room))
    for row in range(0, batch, rows):
        for head in range(0, heads, each):
            yield slice(row, row + rows), slice(head, head + each)
            if isinstance(query, FakeTensor):
                return


def _flat(tensor: torch.Tensor, block: tuple[slice, slice]) -> torch.Tensor:
    """Return a block's matrices, ``(rows * heads, tokens, width)``."""
    return tensor[block].reshape(-1, *tensor.shape[2:])


def _scores(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float, block: tuple[slice, slice]
) -> torch.Tensor:
    """Return a block's attention before dropout, ``(rows * heads, queries, keys)``."""
    scores = torch.bmm(_flat(query, block) * scale, _flat(key, block).transpose(1, 2))
    if mask is not None:
        part = mask[block]
        scores.view(part.shape).add_(part)
    return torch.softmax(scores, -1)


def _kept(scores: torch.Tensor, draws: np.random.SFC64, dropped: int) -> torch.Tensor:
    """Return 1 for each score that is kept and 0 for each that is dropped, in the scores' type.

    Several times as fast as torch's own Bernoulli numbers, and as a mask of booleans.
    """
    words = draws.random_raw(-(-scores.numel() // 4))
    bits = torch.from_numpy(words.view(np.int16))[: scores.numel()].view(scores.shape)
    return torch.ge(bits, dropped - STEPS // 2, out=torch.empty_like(scores))
