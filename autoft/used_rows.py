"""Tables of token embeddings for the tokens of a training's texts alone, while it lasts.

Most of a small encoder is its table of tokens, and a data set has a fraction of them: 12 of MiniLM-L6's 23 million weights, and 192 of
XLM-R's 278 million. What no text has gets no gradient. Yet the gradient, its norm, the optimiser's states and step and each copy of
the best weights are made for the whole table. Here the rows that texts ask for are a small table of their own, and the weights that a
training ends with are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from autoft.pretrained import embeddings_of_inputs
from autoft.strategies.first_token import put_forward

if TYPE_CHECKING:
    import torch

    from autoft.data.features import Features
    from autoft.data.rows import Ints

__all__ = ["BY_WEIGHT", "asked_for", "leave_rows", "tokens_trained", "used_rows_alone"]

BY_WEIGHT = frozenset({"adamw", "lion", "muon", "sgd"})
"""Optimisers whose step of a weight hangs on its own gradients; Adafactor's hangs on all of a matrix, in 8 bits on a block of it."""

PLACES = "places_of_tokens"
"""Buffer of a table: the rows of the small one by token, -1 for tokens that have none, ``(vocabulary,)``."""

WORTH = 0.9
"""Of the table's rows: where more are asked for, nothing is gained."""


def asked_for(features: Features, model: torch.nn.Module, processor: Any) -> Ints:
    """Return the numbers of all tokens that batches of some rows may have, in rising order.

    Args:
        features: the rows; whole numbers of any field may be tokens.
        model: its configuration names tokens that are put beside a row's own, as for padding.
        processor: likewise.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    named = [*(getattr(tokenizer, "all_special_ids", None) or ())]
    config = getattr(model, "config", None)
    for name, value in config.to_dict().items() if config is not None else ():
        if name.endswith("token_id"):
            named += value if isinstance(value, list) else [value]
    special = np.asarray([one for one in named if isinstance(one, int)], dtype=np.int64)
    return np.union1d(features.whole_numbers(), special)


@contextmanager
def used_rows_alone(
    model: torch.nn.Module, tokens: Ints, compute: Callable[[], torch.Tensor], *, grows: bool = False
) -> Iterator[tuple[int, int]]:
    """Have a model's table of tokens be one of these tokens' rows while the context lasts; give its rows, and those of the whole.

    Tokens that are met beside them (by a validation) have the rows that they had at the beginning, which no gradient changes. When
    it ends the table is whole again: with the rows that were trained, and the others as the optimiser's weight decay leaves
    them, of which one is in the small table.

    Nothing changes (both numbers are the same) where the table is frozen, is the output layer's too, is computed with otherwise,
    or where a batch has tokens that are not among these.

    Args:
        model: its parameters that are trained require gradients. The optimiser is made within the context.
        tokens: of all batches, in rising order.
        compute: calls the model once with some batch and returns one number that hangs on what it says.
        grows: a training may bring further tokens, as augmentation does: there are as many rows again for these. Were there more
            tokens, the last to come would keep what they were pretrained to.
    """
    import torch

    table = _table(model)
    if table is None:
        yield 0, 0
        return
    rows = len(table.weight)
    tokens = tokens[(tokens >= 0) & (tokens < rows)]
    spare = len(tokens) if grows else 0
    if len(tokens) + spare > WORTH * rows:
        yield rows, rows
        return
    training = model.training
    # Dropout would make every answer another one.
    model.eval()
    small = _SmallTable(table, torch.from_numpy(tokens), spare)
    with torch.no_grad():
        expected = compute()
        try:
            with small:
                same = torch.allclose(compute(), expected, rtol=1e-4, atol=1e-5) and not small.met_others
        except (IndexError, RuntimeError):
            # Whoever reads the table's weights by themselves finds another number of them.
            same = False
    model.train(training)
    if not same:
        yield rows, rows
        return
    with small:
        yield len(tokens), rows


def tokens_trained(params: Mapping[str, Any], features: Features) -> int | None:
    """Return about how many rows of its table of tokens a trial trains; None for all that there are.

    Args:
        params: of the trial, by full name.
        features: its training rows.
    """
    changed, regularized = (str(params.get(name) or "none") != "none" for name in ("augment", "regularize"))
    if regularized or params.get("train.optimizer") not in BY_WEIGHT:
        return None
    return len(features.whole_numbers()) * (2 if changed else 1)


def leave_rows(model: torch.nn.Module, count: int) -> None:
    """Have a model's table be one of so many rows' where :func:`used_rows_alone` would; the whole one stays beside it.

    For a trace, which does not know which rows they are.
    """
    import torch

    table = _table(model)
    if table is None or count > WORTH * len(table.weight):
        return
    # Kept where it is no parameter, for it takes memory.
    table.__dict__["whole"] = table.weight
    table.weight = torch.nn.Parameter(table.weight.detach()[: count + 1].clone())


def _table(model: Any) -> torch.nn.Embedding | None:
    """Return the table of tokens, if it is trained and nothing else is known to compute with it."""
    import torch
    from torch.nn.utils import parametrize

    table = embeddings_of_inputs(model)
    if not isinstance(table, torch.nn.Embedding) or "forward" in vars(table) or parametrize.is_parametrized(table):
        return None
    if not table.weight.requires_grad or table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
        return None
    places = [name for name, weight in model.named_parameters(remove_duplicate=False) if weight is table.weight]
    return table if len(places) == 1 else None


class _SmallTable:
    """Some rows of an embedding table in its place, as a context."""

    def __init__(self, table: torch.nn.Embedding, tokens: torch.Tensor, spare: int) -> None:
        import torch

        self.table, self.whole, self.padding, self.spare = table, table.weight, table.padding_idx, spare
        count = len(self.whole)
        unused = np.setdiff1d(np.arange(count), tokens.numpy())
        # One that is zero tells nothing of the decay.
        told = next((row for row in unused[:1000] if self.whole[row].any()), unused[0])
        self.rows = torch.cat([tokens, torch.tensor([told])]).to(self.whole.device)
        """Of the whole table, in the order of the small one; the last is one that no text has. Spare ones follow."""
        self.places = torch.full((count,), -1).scatter_(0, tokens, torch.arange(len(tokens))).to(self.whole.device)
        self.met_others: bool | None = False
        """None while nobody asks, since the answer of a GPU has to be waited for."""

    def __enter__(self) -> _SmallTable:
        import torch

        small = self.whole.detach()[self.rows]
        self.beginning = small[-1].clone()
        self.table.weight = torch.nn.Parameter(torch.cat([small, small.new_zeros(self.spare, small.shape[1])]))
        # A buffer: a copy of the weights at some time has with it what their rows were of.
        self.table.register_buffer(PLACES, self.places.clone(), persistent=False)
        if self.padding is not None:
            place = int(self.places[self.padding])
            self.table.padding_idx = place if place >= 0 else None
        self.put_back = put_forward(self.table, self._looked_up(self.table.forward))
        return self

    def __exit__(self, *exception: object) -> None:
        import torch

        small, places = self.table.weight.detach(), self.table.get_buffer(PLACES)
        rows = (places >= 0).nonzero().flatten()
        with torch.no_grad():
            decay = self._decay(small)
            if decay != 1:
                self.whole.mul_(decay)
            self.whole[rows] = small[places[rows]]
        self.put_back()
        delattr(self.table, PLACES)
        self.table.weight, self.table.padding_idx = self.whole, self.padding
        self.met_others = None

    def _decay(self, small: torch.Tensor) -> float:
        """Return what a row without gradients was multiplied with so far, which is all that an optimiser makes of it."""
        before, after = self.beginning.float().norm(), small[len(self.rows) - 1].float().norm()
        return float(after / before) if before > 0 else 1.0

    def _give_rows(self, tokens: torch.Tensor) -> None:
        """Give tokens that come for the first time spare rows, as long as there are some: until now they had no gradient."""
        import torch

        small, places = self.table.weight.detach(), self.table.get_buffer(PLACES)
        begin = max(len(self.rows), int(places.max()) + 1)
        tokens = torch.unique(tokens)[: len(small) - begin]
        rows = places.new_tensor(range(begin, begin + len(tokens)))
        small[rows] = self.whole.detach()[tokens] * self._decay(small)
        places[tokens] = rows

    def _looked_up(self, own: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        import torch

        def forward(input: torch.Tensor) -> torch.Tensor:
            places = self.table.get_buffer(PLACES)
            others = places[input] < 0
            if self.met_others is not None:
                self.met_others = self.met_others or bool(others.any())
            elif self.spare and self.table.training and others.any():
                self._give_rows(input[others])
                others = places[input] < 0
            if not others.is_cuda and not others.any():
                return own(places[input])
            found = own(places[input].clamp(min=0))
            small, self.table.weight = self.table.weight, self.whole
            padding, self.table.padding_idx = self.table.padding_idx, self.padding
            with torch.no_grad():
                beside = own(input)
            self.table.weight, self.table.padding_idx = small, padding
            return torch.where(others[..., None], beside, found)

        return forward
