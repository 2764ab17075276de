"""Attention modules of transformers, whatever their layers are called: which of their weights belong to which head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoft.strategies.linear_layers import keep_inputs, keep_outputs, widths

if TYPE_CHECKING:
    import torch

__all__ = ["Attention", "find_attention"]

PROJECTIONS = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("c_attn",),
    ("Wqkv",),
)
"""How attention modules name the layers into their heads; a single one holds queries, then keys, then values."""

OUTPUTS = ("o_proj", "out_proj", "out_lin", "c_proj", "Wo", "dense")
"""How they name the layer out of their heads. BERT's relatives have it beside the module, as ``output.dense``."""

SIZES = ("attention_head_size", "head_dim", "head_size")
"""How they name the width of a head."""

QUERY_HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
ALL_WIDTHS = ("all_head_size", "inner_dim", "split_size")
"""How they name the width of all heads together, where that is not the width of the model."""


@dataclass(frozen=True)
class Attention:
    """A module of attention, and the linear layers into its heads and out of them.

    Attributes:
        module: knows how many heads it has.
        into: of queries, keys and values; or one of all three, one after the other.
        out: takes what the heads gave, side by side.
        size: width of a head.
        heads: of queries.
        groups: heads of keys and values; each serves as many heads of queries.
    """

    module: Any
    into: tuple[Any, ...]
    out: Any
    size: int
    heads: int
    groups: int

    def columns(self, importance: torch.Tensor, keep: float) -> torch.Tensor:
        """Return which inputs of the layer out of the heads stay, in order.

        Args:
            importance: of each head of queries, ``(heads,)``.
            keep: share of the groups that stay.
        """
        import torch

        count = max(1, round(keep * self.groups))
        groups = importance.expand(self.heads).reshape(self.groups, -1).sum(1).topk(count).indices.sort().values
        return torch.arange(self.heads * self.size).reshape(self.groups, -1)[groups].flatten()

    def keep(self, columns: torch.Tensor) -> None:
        """Leave the layers, and what the module knows of itself, these inputs of the layer out of the heads."""
        import torch

        width = self.heads // self.groups * self.size
        groups = torch.unique(columns // width)
        keys = (groups[:, None] * self.size + torch.arange(self.size)).flatten()
        if len(self.into) == 1:
            whole = self.heads * self.size
            keep_outputs(self.into[0], torch.cat([columns + part * whole for part in range(3)]))
        else:
            for layer, kept in zip(self.into, (columns, keys, keys), strict=True):
                keep_outputs(layer, kept)
        keep_inputs(self.out, columns)
        changes = [
            (QUERY_HEADS, self.heads, len(columns) // self.size),
            (KEY_HEADS, self.groups, len(groups)),
            (ALL_WIDTHS, self.heads * self.size, len(columns)),
        ]
        for names, before, now in changes:
            for name in names:
                if vars(self.module).get(name) == before:
                    setattr(self.module, name, now)


def find_attention(model: torch.nn.Module) -> list[Attention]:
    """Return the attention modules of a transformers model whose heads can be told apart."""
    modules: dict[str, Any] = dict(model.named_modules())

    def linear(name: str) -> Any:
        layer = modules.get(name)
        return layer if type(layer).__name__ in {"Linear", "Conv1D"} else None

    found = []
    for name, module in modules.items():
        size = next((vars(module)[key] for key in SIZES if type(vars(module).get(key)) is int), None)
        layers = next(
            (parts for names in PROJECTIONS if all(parts := [linear(f"{name}.{part}") for part in names])), None
        )
        beside = f"{name.rpartition('.')[0]}.output.dense"
        out = next((layer for part in OUTPUTS if (layer := linear(f"{name}.{part}"))), None) or linear(beside)
        if size is None or layers is None or out is None:
            continue
        width = widths(out)[0]
        outputs = [widths(layer)[1] for layer in layers]
        heads, groups = width // size, outputs[-1] // size if len(layers) > 1 else width // size
        expected = [width, groups * size, groups * size] if len(layers) > 1 else [3 * width]
        if outputs == expected and width == heads * size and heads % groups == 0:
            found.append(Attention(module, tuple(layers), out, size, heads, groups))
    return found
