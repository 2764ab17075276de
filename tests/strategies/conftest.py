"""A small text classification task over a toy tokenizer, tiny random checkpoints, and targets on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoft.contracts import Column, ModelSource, Prediction, Row, Target, Task, TaskCard, TaskContext
from autoft.hardware import Hardware

WORDS = [
    "the",
    "a",
    "film",
    "plot",
    "was",
    "is",
    "very",
    "really",
    "not",
    "good",
    "great",
    "fine",
    "nice",
    "bad",
    "poor",
    "dull",
    "awful",
    "and",
    "but",
    "so",
]


class ToyTask(Task):
    """Good or bad, from a few words."""

    card = TaskCard(
        name="toy-classification",
        summary="good or bad",
        columns=(Column("text", "text", "some words"), Column("label", "label", "the class", target=True)),
        metrics=("accuracy",),
        architecture="sequence-classification",
    )

    def demo_rows(self) -> Sequence[Row]:
        good = [f"the film was {word}" for word in ("good", "great", "fine", "nice")]
        bad = [f"the plot is really {word} and" for word in ("bad", "poor", "dull", "awful")]
        return [{"text": t, "label": "pos"} for t in good] + [{"text": t, "label": "neg"} for t in bad]

    def load_model(self, source: ModelSource, context: TaskContext) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification.from_pretrained(
            source.path, num_labels=len(context.labels), **source.from_pretrained_kwargs(), **source.load_kwargs
        )

    def encode(self, rows: Sequence[Row], context: TaskContext) -> list[dict[str, Any]]:
        encoded = context.processor([row["text"] for row in rows], truncation=True, max_length=context.max_length)
        labels = [{"labels": context.labels.index(row["label"])} if "label" in row else {} for row in rows]
        return [
            {"input_ids": ids, "attention_mask": mask, **label}
            for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels, strict=True)
        ]

    def predict(self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32) -> list[Prediction]:
        import torch

        found: list[Prediction] = []
        for start in range(0, len(rows), batch_size):
            texts = [row["text"] for row in rows[start : start + batch_size]]
            inputs = context.processor(texts, padding=True, return_tensors="pt")
            with torch.no_grad():
                found += [{"label": context.labels[i]} for i in model(**inputs).logits.argmax(-1).tolist()]
        return found

    def reference(self, row: Row, context: TaskContext) -> Any:
        return row["label"]


def tiny_config(model_type: str) -> Any:
    """Return the config of a two-layer model, 64 wide."""
    from transformers import AutoConfig

    sizes: dict[str, dict[str, Any]] = {
        "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "initializer_range": 0.2},
        "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2},
        "vit": {"image_size": 32, "patch_size": 8},
    }
    common = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
    }
    common["initializer_range"] = 0.2  # so large that quantization shows in the logits
    text = {} if model_type == "vit" else {"vocab_size": len(WORDS) + 2, "pad_token_id": 0}
    own = sizes.get(model_type, {})
    return AutoConfig.for_model(
        model_type, **(own if model_type in {"distilbert", "gpt2"} else {**common, **own}), **text
    )


@pytest.fixture
def toy_task() -> Task:
    return ToyTask()


@pytest.fixture(scope="session")
def toy_tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: Any) -> Callable[..., Path]:
    """Write a random checkpoint of a model type (or of a given model) and its tokenizer, and return its folder."""
    import torch
    from transformers import AutoModel

    def make(model_type: str, model: Any = None) -> Path:
        folder = tmp_path_factory.mktemp(model_type)
        torch.manual_seed(0)
        if model is None:
            model = AutoModel.from_config(tiny_config(model_type))
        model.save_pretrained(folder)
        toy_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def make_target(toy_task: Task, toy_tokenizer: Any, tmp_path: Path) -> Callable[..., Target]:
    """Return a target on a checkpoint folder; fields of its card and of the hardware can be given."""

    def make(
        path: Path | str, task: Task | None = None, device: str = "cpu", bf16: bool | None = None, **card: Any
    ) -> Target:
        import json

        chosen = task or toy_task
        if card:
            chosen = type("CardTask", (type(chosen),), {"card": replace(chosen.card, **card)})()
        probed = Hardware.probe()
        file = Path(path) / "config.json"
        return Target(
            task=chosen,
            source=ModelSource(name="toy", path=str(path)),
            config=json.loads(file.read_text()) if file.is_file() else {},
            context=TaskContext(
                facts={"labels": ["neg", "pos"]},
                options={},
                params={},
                max_length=32,
                device=device,
                processor=toy_tokenizer,
            ),
            hardware=replace(probed, device=device, bf16=probed.bf16 if bf16 is None else bf16),
            cache=tmp_path / "cache",
        )

    return make


@pytest.fixture
def load() -> Callable[..., Any]:
    """Load the target's model with its task; the head's random weights follow the seed."""
    import torch

    def load_model(target: Target, seed: int = 1, **load_kwargs: Any) -> Any:
        torch.manual_seed(seed)
        return target.task.load_model(replace(target.source, load_kwargs=load_kwargs), target.context)

    return load_model


@pytest.fixture
def train() -> Callable[..., list[float]]:
    """Train on the demo rows with AdamW, without dropout's noise in what is returned: the loss before each step."""
    import torch

    def run(model: Any, target: Target, steps: int = 12, lr: float = 5e-3) -> list[float]:
        task, context = target.task, target.context
        batch = task.collate(task.encode(task.demo_rows(), context), context)
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=lr)
        torch.manual_seed(0)
        losses = []
        model.train()
        for _ in range(steps):
            loss = task.loss(model, batch, context)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return run


@pytest.fixture
def logits() -> Callable[..., Any]:
    """Return a model's logits ``(rows, classes)`` for the demo rows, in evaluation mode."""
    import torch

    def forward(model: Any, target: Target) -> Any:
        task, context = target.task, target.context
        batch = task.collate(task.encode(task.demo_rows(), context), context)
        batch.pop("labels")
        model.eval()
        with torch.no_grad():
            return model(**batch).logits.float()

    return forward
