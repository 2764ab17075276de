"""Parameters of a training, and what the words of ``effort`` search."""

from __future__ import annotations

from typing import Any

from autoft.losses import LOSSES
from autoft.optimizers import OPTIMIZERS
from autoft.space import Categorical, Domain, Float, Int

__all__ = ["AUXILIARY_SPACE", "EFFORTS", "FALLBACKS", "INT8", "TRAIN_SPACE", "WIDE"]

TRAIN_SPACE: dict[str, Domain] = {
    "train.epochs": Int(1, 100, 3),
    "train.batch_size": Int(1, 4096, 16),
    "train.gradient_accumulation": Int(1, 256, 1),
    "train.schedule": Categorical(("linear", "cosine", "constant", "inverse-sqrt", "plateau")),
    "train.warmup": Float(0.0, 0.5, 0.06),
    "train.weight_decay": Float(0.0, 0.5, 0.01),
    "train.label_smoothing": Float(0.0, 0.5, 0.0),
    "train.dropout": Float(0.0, 0.6, 0.1),
    "train.class_weights": Categorical(("none", "balanced")),
    "train.loss": Categorical(LOSSES),
    "train.optimizer": Categorical(tuple(OPTIMIZERS)),
    "train.gradient_checkpointing": Categorical((False, True)),
    "train.head": Categorical(("fitted", "random")),
    "train.max_grad_norm": Float(0.05, 100.0, 1.0),
    "train.max_length": Int(8, 131072, 512),
}
"""Every training parameter and the widest domain that a recipe may ask for. ``train.warmup`` is a share of all steps."""
AUXILIARY_SPACE: dict[str, Domain] = {
    "auxiliary.weight": Float(0.0, 100.0, 0.0),
    "auxiliary.temperature": Float(1.0, 1000.0, 2.0),
}
"""Parameters of training with auxiliary tasks, there where the recipe has some."""
# Not all that are legal: some eighty chains would leave each a trial or none. These differ in what they cost and in how
# much they can learn; the others are there for recipes that name them, and docs/adapters.md says what each is for.
WIDE = ("full", "lora", "top-layers", "head-only", "nf4+lora")
"""Pipelines that are searched where neither recipe nor effort nor task names any."""
EFFORTS: dict[str, dict[str, Any]] = {
    "quick": {
        "ensemble": 0,
        "pipelines": ["full"],
        "compress": ["none", "onnx-int8|dynamic-int8"],
        "augment": ["none"],
        "regularize": ["none"],
        "space": {
            "train.epochs": Int(1, 3, 2),
            "train.batch_size": Categorical((16, 32)),
            "train.max_length": Categorical((256,)),
        },
    },
    "balanced": {
        "ensemble": 0,
        "pipelines": ["full", "lora"],
        "compress": ["none", "dynamic-int8", "onnx", "onnx-int8"],
        "augment": ["none", "random-deletion", "random-swap", "mention-replacement"],
        "regularize": ["none"],
        "space": {
            "train.epochs": Int(2, 5, 3),
            "train.batch_size": Categorical((16, 32)),
            "train.schedule": Categorical(("linear", "cosine")),
            "train.warmup": Float(0.0, 0.15, 0.06),
            "train.weight_decay": Float(0.0, 0.1, 0.01),
            "train.label_smoothing": Float(0.0, 0.15, 0.0),
            "train.dropout": Float(0.0, 0.25, 0.1),
            "lora.start": Categorical(("default",)),
            "lora.plus": Categorical((1.0,)),
        },
    },
    "best": {
        "ensemble": 3,
        "pipelines": None,
        # Those that lie on the front of quality, size and latency: graphs in int8 are as small as torch's, and faster, and
        # zeroed weights alone make a model neither smaller nor faster. Chains that train come with the strongest first,
        # which a short search has time for; those that begin like it cost hardly more.
        "compress": [
            "none",
            "onnx|bf16-weights",
            "onnx-int8|dynamic-int8",
            "vocabulary-pruning+onnx-int8",
            "layer-pruning+ffn-pruning+vocabulary-pruning+onnx-int8",
            "layer-pruning+ffn-pruning+onnx-int8",
            "layer-pruning+vocabulary-pruning+onnx-int8",
            "layer-pruning+onnx-int8",
            "ffn-pruning+vocabulary-pruning+onnx-int8",
            "ffn-pruning+onnx-int8",
        ],
        # One or two of each idea (words away, about, in the place of others; letters; tags; pictures): with all twenty,
        # most trials would go into telling near relatives apart, which docs/augmentation.md found hard to do.
        "augment": [
            "none",
            "synonyms",
            "random-swap",
            "random-deletion",
            "random-replacement",
            "character-noise",
            "masked-replacement",
            "mention-replacement",
            "label-wise-replacement",
            "horizontal-flip",
            "random-resized-crop",
        ],
        "regularize": ["none", "r-drop", "fgm", "ema"],
        "space": {
            "train.epochs": Int(2, 8, 3),
            "train.batch_size": Categorical((8, 16, 32, 64), 16),
            "train.schedule": TRAIN_SPACE["train.schedule"],
            "train.warmup": Float(0.0, 0.2, 0.06),
            "train.weight_decay": Float(0.0, 0.2, 0.01),
            "train.label_smoothing": Float(0.0, 0.2, 0.0),
            "train.dropout": Float(0.0, 0.3, 0.1),
            "train.class_weights": TRAIN_SPACE["train.class_weights"],
            "lora.start": Categorical(("default", "pissa")),
            "lora.plus": Categorical((1.0, 4.0, 16.0)),
            "vocabulary-pruning.unseen": Categorical((0.005, 1.0)),
        },
    },
}
"""What the words of ``effort`` stand for: None means what the task names or all that are legal, of pipelines those of
:data:`WIDE`; parameters not named keep their default. Of compressions with ``|`` the first legal one is taken. In lists of
augmenters and regularizers the best founded come first: a long search tries these before the sampler chooses."""
FALLBACKS: tuple[tuple[str, ...], ...] = (
    (),
    ("vocabulary-pruning",),
    ("layer-pruning",),
    ("layer-pruning", "vocabulary-pruning"),
    ("layer-pruning", "ffn-pruning"),
    ("layer-pruning", "ffn-pruning", "vocabulary-pruning"),
)
"""What is taken from a model that fits the budget by none of the effort's compressions, least first, before it is quantized."""
INT8 = ("onnx-int8", "dynamic-int8", "torchao-int8", "bnb-int8")
"""What it is quantized by then: the first that is legal."""
