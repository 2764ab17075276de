"""PEFT's models with virtual tokens, made such that tasks need not know of them; imports torch and PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import (
    PeftModel,
    PeftModelForCausalLM,
    PeftModelForQuestionAnswering,
    PeftModelForTokenClassification,
)

__all__ = ["hide_virtual_tokens"]

IGNORED = -100
"""Label of positions that have no loss, as in torch."""


def hide_virtual_tokens(model: PeftModel) -> PeftModel:
    """Return the model, whose outputs are of the given tokens only from now on, and which writes a row as it would alone.

    What PEFT computes stays as it is, so that its own classes answer the same but for the positions in front.
    """
    kind = _KINDS.get(type(model))
    if kind is not None:
        model.__class__ = kind
    return model


class _OfTokens:
    """A model that answers for each token: answers for virtual ones are left out, labels are put in front or moved."""

    outputs: tuple[str, ...] = ("logits",)

    def forward(self, input_ids: torch.Tensor | None = None, **inputs: Any) -> Any:
        """Return what PEFT's model does, of the given tokens only."""
        mine: Any = self
        answer = super().forward(input_ids=input_ids, **mine.moved(inputs))  # type: ignore[misc]  # PEFT has no types
        given = inputs.get("inputs_embeds") if input_ids is None else input_ids
        if given is not None:
            for name in self.outputs:
                if answer[name].shape[1] > given.shape[1]:
                    answer[name] = answer[name][:, -given.shape[1] :]
        return answer

    def moved(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs with labels as they are for the longer row; PEFT does it itself for causal models."""
        return dict(inputs)

    def in_front(self) -> int:
        """Return how many virtual tokens are put in front of the given ones: none where they lie in each layer."""
        mine: Any = self
        config = mine.active_peft_config
        return 0 if str(config.peft_type.value) == "PREFIX_TUNING" else int(config.num_virtual_tokens)


class _PromptedTokenClassification(_OfTokens, PeftModelForTokenClassification):  # type: ignore[misc]  # PEFT has no types
    def moved(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        labels = inputs.get("labels")
        if labels is None:
            return dict(inputs)
        front = labels.new_full((len(labels), self.in_front()), IGNORED)
        return {**inputs, "labels": torch.cat((front, labels), dim=1)}


class _PromptedQuestionAnswering(_OfTokens, PeftModelForQuestionAnswering):  # type: ignore[misc]  # PEFT has no types
    outputs = ("start_logits", "end_logits")

    def moved(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        places = {name: inputs[name] for name in ("start_positions", "end_positions") if inputs.get(name) is not None}
        return {**inputs, **{name: value + self.in_front() for name, value in places.items()}}


class _PromptedCausalLM(_OfTokens, PeftModelForCausalLM):  # type: ignore[misc]  # PEFT has no types
    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **settings: Any) -> Any:
        """Return the given tokens and what the model writes behind them, ``(batch, seq)``.

        Rows of a batch are padded on the left, behind the virtual tokens, which moves these away from the text. So rows
        of one length are written together, and none is padded.
        """
        if attention_mask is None or bool(attention_mask.all()):
            return super().generate(input_ids=input_ids, attention_mask=attention_mask, **settings)
        lengths, width = attention_mask.sum(1).tolist(), input_ids.shape[1]
        several = int(getattr(settings.get("generation_config"), "num_return_sequences", None) or 1)
        written: dict[int, torch.Tensor] = {}
        for length in sorted(set(lengths)):
            chosen = [row for row, own in enumerate(lengths) if own == length]
            rows = input_ids[chosen][attention_mask[chosen].bool()].view(len(chosen), length)
            found = super().generate(input_ids=rows, attention_mask=torch.ones_like(rows), **settings)
            for number, row in enumerate(found[:, length:]):
                written[chosen[number // several] * several + number % several] = row
        config = settings.get("generation_config") or self.generation_config
        filler = config.pad_token_id if config.pad_token_id is not None else 0
        longest = max(len(row) for row in written.values())
        answer = input_ids.new_full((len(input_ids) * several, width + longest), int(filler))
        answer[:, :width] = input_ids.repeat_interleave(several, dim=0)
        for number, row in written.items():
            answer[number, width : width + len(row)] = row
        return answer


_KINDS: Mapping[type, type] = {
    PeftModelForTokenClassification: _PromptedTokenClassification,
    PeftModelForQuestionAnswering: _PromptedQuestionAnswering,
    PeftModelForCausalLM: _PromptedCausalLM,
}
