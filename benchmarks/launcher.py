"""Memory of each process of a training, by one process and by several that shard it; weights are random.

``python benchmarks/launcher.py --processes 1 2 --layers 12 --width 768``
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from autoft.contracts import ModelSource, Target, TaskContext
from autoft.data.features import encoded
from autoft.data.rows import Split
from autoft.hardware import MAPPED, Hardware, current_resident_bytes
from autoft.plans.efforts import TRAIN_SPACE
from autoft.plugins import load_plugins
from autoft.processes import release_memory, silence_libraries
from autoft.ranks import ProcessGroup, Ranks
from autoft.testing.models import texts_of, tiny_model
from autoft.training import train


def one(ranks: Ranks, folder: Path, given: argparse.Namespace) -> None:
    """Train in this process, and print what it took."""
    catalog = load_plugins()
    task, adapter = catalog.task("text-classification"), catalog.adapters[given.adapter]
    rows = ([dict(row) for row in task.demo_rows()] * given.rows)[: given.rows]
    params = {name: domain.default for name, domain in {**TRAIN_SPACE, **task.space()}.items()}
    params.update({"train.epochs": 1, "train.batch_size": 8})
    options = {option.name: option.default for option in task.card.options}
    source = ModelSource("random", str(folder / "model"))
    context = TaskContext(task.facts(rows, options), options, params, 32)
    context = TaskContext(**{**vars(context), "processor": task.load_processor(source, context)})
    features = encoded(Split.from_rows(rows), task, context, folder / f"rows-{ranks.rank}", "random")
    before = current_resident_bytes()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=given.width,
        num_hidden_layers=given.layers,
        num_attention_heads=given.width // 64,
        intermediate_size=4 * given.width,
        num_labels=2,
    )
    model = BertForSequenceClassification(config)
    own = {name: domain.default for name, domain in adapter.space.items()}
    target = Target(task, source, config.to_dict(), context, Hardware.probe_cpu())
    model = adapter.attach(model, target, own)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    ranks.shard(model)
    release_memory()
    began = time.monotonic()
    outcome = train(
        model,
        task=task,
        context=context,
        features=features,
        rows=rows,
        augmentation=None,
        learning_rate=1e-5,
        precision="fp32",
        objective="x",
        higher_is_better=True,
        validate=lambda model: {"x": 0.0},
        on_validation=lambda point: False,
        on_progress=lambda progress: None,
        ranks=ranks,
    )
    if ranks.leads:
        print(
            f"{given.adapter}, {weights / 1e9:.2f} GB of weights, {ranks.size} processes: at most "
            f"{(outcome.memory_bytes - before) / 1e9:.2f} GB a process above the libraries' {before / 1e9:.2f} GB, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )


def main() -> None:
    """Start the processes, one size after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sharding", default="fsdp", choices=["fsdp", "none"])
    parser.add_argument("--adapter", default="full", choices=["full", "lora"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rows", type=int, default=32)
    given = parser.parse_args()
    # As for a search with budget.train_memory: a process has what its tensors need, and no more.
    assert MAPPED.items() <= os.environ.items(), "run it with " + " ".join(f"{k}={v}" for k, v in MAPPED.items())
    silence_libraries()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_model("encoder", folder / "model", texts_of(load_plugins().task("text-classification").demo_rows()))
        for size in given.processes:
            # Nothing has computed in this process yet, so that the others can begin as copies of it.
            children = []
            for rank in range(size):
                child = os.fork()
                if not child:
                    group = (
                        ProcessGroup(folder / f"store-{size}", rank, size, given.sharding, "cpu") if size > 1 else None
                    )
                    one(group or Ranks(), folder, given)
                    os._exit(0)
                children.append(child)
            for child in children:
                os.waitpid(child, 0)


if __name__ == "__main__":
    main()
