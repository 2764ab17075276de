"""Trainable tokens: the rows of the input embeddings that the training rows use most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Refusal, Row, Target
from autoft.errors import ModelError
from autoft.pretrained import embeddings_of_inputs
from autoft.space import Float, Int, SearchSpace
from autoft.strategies.head_only import Head
from autoft.strategies.peft_adapter import PeftAdapter

if TYPE_CHECKING:
    import torch

__all__ = ["TrainableTokens"]

COUNTED_ROWS = 10_000
"""More rows than these change little of which tokens are frequent."""


class TrainableTokens(PeftAdapter):
    """Train the embeddings of the tokens that the training rows use most, and the head; all else stays frozen.

    Method: ``TrainableTokensConfig`` of PEFT, made for tokens that are new in a vocabulary. Here no token is new, so
    those are taken that the data has most of, of which there is most to learn. Where the output embeddings of a language
    model are tied to these, their rows move along. There is no published setting: with BERT-tiny on 1,000 movie reviews
    1e-3 and 3e-3 were alike and 1e-2 was worse, and 2,048 and 4,096 tokens were better than 512.
    """

    name: ClassVar[str] = "trainable-tokens"
    summary: ClassVar[str] = "train the embeddings of the most frequent tokens, and the head"
    space: ClassVar[SearchSpace] = {
        "learning_rate": Float(1e-4, 1e-2, default=1e-3, log=True),
        "count": Int(16, 8192, default=2048, log=True),
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"learning_rate": 1e-3, "count": 2048},)
    tuner: ClassVar[str] = "TrainableTokensConfig"

    def check(self, target: Target) -> Refusal | None:
        """Refuse tasks without text, and what was tried and does not work."""
        if not any(column.kind in {"text", "texts", "tokens", "messages"} for column in target.task.card.inputs):
            return Refusal(
                f"{self.name}: {target.task.card.name} reads no text, whose tokens could be trained; use lora"
            )
        return super().check(target)

    def save_learned(self, model: Any, folder: Path) -> bool:
        """Write nothing: tried with PEFT 0.21, its files give another model over the same base than merging does."""
        return False

    def learn_from(self, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> Any:
        """Return the ids of the most frequent tokens, in order.

        Raises:
            ModelError: the encoded rows have no token ids.
        """
        features = target.task.encode(rows[:COUNTED_ROWS], target.context)
        counts = Counter(token for feature in features for token in _flat(feature.get("input_ids", ())))
        if not counts:
            raise ModelError(f"{self.name}: the rows that the model is given have no token ids; use lora")
        # By id where they are as frequent, so that the order of rows decides nothing.
        order = sorted(counts, key=lambda token: (-counts[token], token))
        return sorted(order[: int(params["count"])])

    def targets(self, model: torch.nn.Module, head: Head, target: Target, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the name of the input embeddings.

        Raises:
            ModelError: the model has none for tokens.
        """
        from torch import nn

        embeddings = embeddings_of_inputs(model)
        names = tuple(name for name, module in model.named_modules() if module is embeddings)
        if not isinstance(embeddings, nn.Embedding) or not names:
            raise ModelError(f"{self.name}: {type(model).__name__} has no input embeddings of tokens; use lora")
        return names

    def options(self, layers: Mapping[str, Any], target: Target, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tokens."""
        return {"token_indices": list(target.learned)}


def _flat(values: Any) -> Iterator[int]:
    """Yield the numbers of a list, or of a list of lists, as features with several windows hold them."""
    for value in values:
        if hasattr(value, "__iter__"):
            yield from _flat(value)
        else:
            yield int(value)
