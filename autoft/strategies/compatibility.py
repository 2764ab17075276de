"""Which adapter works over which base on which kind of model: what ``compatibility.json`` says, found by running all.

``AUTOFT_WRITE_DOCS=1 pytest -m slow tests/strategies/test_compatibility.py`` writes that file, and the table of
``docs/adapters.md``, anew.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoft.contracts import Target

__all__ = ["BODIES", "CONV1D", "FILE", "WORKS", "body_of", "has_conv1d", "incompatible", "table"]

FILE = Path(__file__).with_name("compatibility.json")
WORKS = "works"

BODIES: Mapping[str, str] = {
    "encoder": "BERT",
    "decoder": "Llama",
    "decoder-conv1d": "GPT-2",
    "seq2seq": "T5",
    "vision-to-text": "ViT with GPT-2",
}
"""Kinds of models that all was tried on, and the architecture that stands for each."""

CONV1D = frozenset({"gpt2", "imagegpt", "openai-gpt", "decision_transformer"})
"""Model types (of transformers 5.23) that keep weights as ``(in, out)``, in layers that PEFT calls ``Conv1D``."""


def body_of(config: Mapping[str, Any]) -> str:
    """Return the kind of body, of :data:`BODIES`, that a model's ``config.json`` describes.

    A joined encoder and decoder without ``Conv1D`` counts as ``seq2seq``, a vision model as an encoder.
    """
    joined = isinstance(config.get("decoder"), Mapping) or config.get("model_type") == "vision-encoder-decoder"
    if joined and has_conv1d(config):
        return "vision-to-text"
    if joined or config.get("is_encoder_decoder"):
        return "seq2seq"
    if has_conv1d(config):
        return "decoder-conv1d"
    decodes = any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in config.get("architectures") or ())
    return "decoder" if decodes else "encoder"


def has_conv1d(config: Mapping[str, Any]) -> bool:
    """Say whether a model, or a part of it, is of a type with ``Conv1D`` layers."""
    if config.get("model_type") == "vision-encoder-decoder" and "decoder" not in config:
        return True  # GPT-2 is what these have in most checkpoints
    parts = [config, *(part for part in config.values() if isinstance(part, Mapping))]
    return any(part.get("model_type") in CONV1D for part in parts)


@functools.cache
def table() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """Return ``works`` or the reason why not, by adapter, base (``fp32``, ``bf16``, quantizers) and body."""
    found: dict[str, dict[str, dict[str, str]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def incompatible(adapter: str, target: Target) -> str | None:
    """Return why an adapter cannot be used over a target's base, as far as it was tried, or None.

    What the table does not have, as another plugin's quantizer, is left to be tried.
    """
    body = body_of(target.config)
    known = table().get(adapter, {})
    bases = [target.quantizer] if target.quantizer else ["fp32", *(["bf16"] if target.hardware.bf16 else [])]
    for base in bases:
        for name in (base, f"{base} single"):
            said = known.get(name, {}).get(body, WORKS)
            if said != WORKS:
                return f"does not work in {base} on models like {BODIES[body]} ({said}); use lora"
    return None
