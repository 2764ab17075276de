"""Which model to begin with, and how long a search with it should go: what is installed, else what the task's card names."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoft.contracts import TaskCard
from autoft.hardware import Hardware

__all__ = [
    "GET_A_DECODER",
    "Candidate",
    "affordable_rows",
    "installed_models",
    "proposed_models",
    "time_budget",
    "training_seconds",
]

KINDS = {
    "sequence-classification": ("encoder",),
    "token-classification": ("encoder",),
    "question-answering": ("encoder",),
    "causal-lm": ("decoder",),
    "conditional-generation": ("encoder-decoder", "decoder", "encoder"),
    "image-text-to-text": ("image-text", "image"),
}
"""Kinds of models that suit an architecture of a card, the best first; others take encoders of text."""

MULTILINGUAL = {
    "sequence-classification": "distilbert/distilbert-base-multilingual-cased",
    "token-classification": "distilbert/distilbert-base-multilingual-cased",
    "question-answering": "distilbert/distilbert-base-multilingual-cased",
}
"""What to begin with where the texts are in another script than Latin, by architecture."""

GET_A_DECODER = frozenset({("conditional-generation", "encoder"), ("image-text-to-text", "image")})
"""Architectures of cards and kinds of models that a new decoder is put to, which learns to write from the rows alone."""

IMAGE_TEXT = frozenset(
    {"git", "blip", "blip-2", "vision-encoder-decoder", "florence2", "idefics3", "smolvlm", "paligemma"}
)
IMAGE = frozenset({"vit", "dinov2", "deit", "swin", "mobilenet_v2", "convnext", "beit", "resnet"})

CPU_FLOPS = 5e10
"""Multiplications and additions a second that a core does in training, roughly: a MiniLM on an AMD EPYC without bf16."""
BF16_GAIN = 3.0
"""How much faster that is with bf16 in hardware (docs/log.md: 150 GFLOP/s a core)."""
GPU_FLOPS = 2e13
OVERHEAD = 5e-4
"""Seconds a row that no arithmetic explains."""
MEASURING = 25.0
"""Seconds of compressing and measuring after each training."""
TRIALS = 8
"""Trainings that a search should have time for."""
LONGEST_SEARCH = 4 * 3600
"""Seconds that a drafted search takes at most, where fewer rows make it shorter."""
FEWEST_ROWS = 400
LONGEST_HEADER = 100_000_000
"""Bytes that the header of a safetensors file may have, as its library has it."""
STEPS = (300, 600, 900, 1200, 1800, 2700, 3600, 7200, 10800, 14400, 21600, 28800, 43200, 86400)


@dataclass(frozen=True)
class Candidate:
    """A model that suits a task.

    Attributes:
        name: as a recipe names it.
        kind: ``encoder``, ``decoder``, ``encoder-decoder``, ``image`` or ``image-text``.
        parameters: as many, embeddings included; 0 where it is not known.
        body: those that every token is multiplied with.
        why: in a few words.
        here: it needs no download.
    """

    name: str
    kind: str
    parameters: int
    body: int
    why: str
    here: bool = True


def installed_models() -> list[Candidate]:
    """Return the models that lie in installed Python packages, the smallest first."""
    found: dict[str, Candidate] = {}
    for place in dict.fromkeys(sys.path):
        site = Path(place)
        if site.name not in {"site-packages", "dist-packages"} or not site.is_dir():
            continue
        for package in sorted(entry for entry in site.iterdir() if (entry / "__init__.py").is_file()):
            for path in [*package.glob("*.gguf"), *package.glob("config.json"), *package.glob("*/config.json")]:
                inside = path if path.suffix == ".gguf" else path.parent
                name = f"package://{inside.relative_to(site).as_posix()}"
                candidate = _gguf(name, path) if path.suffix == ".gguf" else describe(name, inside)
                if candidate is not None and inside != package:
                    found.setdefault(name, candidate)
    return sorted(found.values(), key=lambda one: one.parameters)


def describe(name: str, folder: Path) -> Candidate | None:
    """Return what a folder's configuration says of its model; None where it holds none that can be read."""
    weights = [*folder.glob("*.safetensors")]
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not weights or not isinstance(config, dict) or "model_type" not in config:
            return None
        parameters = sum(_parameters(path) for path in weights)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error):
        # Other packages have a config.json of their own, and files may be damaged.
        return None
    vocabulary = int(config.get("vocab_size") or 0) * int(config.get("hidden_size") or config.get("d_model") or 0)
    return Candidate(name, kind_of(config), parameters, max(parameters - vocabulary, 1), "is installed")


def kind_of(config: Mapping[str, Any]) -> str:
    """Return the kind of a model by its configuration."""
    model_type = str(config.get("model_type"))
    if model_type in IMAGE_TEXT:
        return "image-text"
    if model_type in IMAGE:
        return "image"
    if config.get("is_encoder_decoder"):
        return "encoder-decoder"
    architectures = [str(name) for name in config.get("architectures") or ()]
    decodes = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    return "decoder" if decodes else "encoder"


def _parameters(path: Path) -> int:
    """Return the number of values in a safetensors file, by its header alone."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(size, LONGEST_HEADER)))
    return sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")


def _gguf(name: str, path: Path) -> Candidate:
    # About four and a half bits a weight is what such files mostly have.
    parameters = int(path.stat().st_size * 8 / 4.5)
    return Candidate(name, "decoder", parameters, int(0.8 * parameters), "is installed")


def proposed_models(card: TaskCard, installed: list[Candidate], script: str | None) -> list[Candidate]:
    """Return the models to begin with, the first choice first: installed ones, then those that the card names.

    Args:
        card: of the task.
        installed: as :func:`installed_models` finds them.
        script: of the texts, as ``LATIN``.
    """
    kinds = KINDS.get(card.architecture, ("encoder",))
    foreign = script not in {None, "LATIN"}
    named = list(card.models)
    if foreign and card.architecture in MULTILINGUAL:
        named.insert(0, MULTILINGUAL[card.architecture])
    hub = [Candidate(name, kinds[0], 0, 0, "suits the task; is fetched from the hub", here=False) for name in named]
    here: list[Candidate] = []
    for kind in kinds:
        # Of what is installed the largest learns best; which of them is worth its time the search finds out.
        here += sorted((one for one in installed if one.kind == kind), key=lambda one: -one.parameters)
    return [*here, *hub]


def training_seconds(model: Candidate, hardware: Hardware, rows: int, tokens: float, epochs: int = 3) -> float:
    """Return roughly how long one default training takes: six operations a weight and token, forward and back.

    Args:
        model: whose body every token goes through; 66 million weights where it is not known.
        hardware: that it is trained on.
        rows: of the training split.
        tokens: of a row, on average.
        epochs: of the training.
    """
    body = model.body or 66_000_000
    if hardware.device == "cuda":
        speed = GPU_FLOPS * max(1, len(hardware.gpus))
    elif hardware.device == "mps":
        speed = GPU_FLOPS / 10
    else:
        speed = CPU_FLOPS * hardware.cores * (BF16_GAIN if hardware.bf16 else 1.0)
    return epochs * rows * (6.0 * body * tokens / speed + OVERHEAD)


def affordable_rows(rows: int, seconds: float) -> int | None:
    """Return how many training rows a draft should take where all of them take too long, None where they do not."""
    most = LONGEST_SEARCH / TRIALS - MEASURING
    if seconds <= most:
        return None
    fitting = int(rows * most / seconds)
    return max(FEWEST_ROWS, fitting // 100 * 100) if rows > FEWEST_ROWS else None


def time_budget(seconds: float) -> int:
    """Return a time for a search, in seconds: room for some trainings of this length, at least five minutes, at most a day."""
    wanted = TRIALS * (seconds + MEASURING)
    return next((step for step in STEPS if step >= wanted), STEPS[-1])
