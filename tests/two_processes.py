"""What ``test_ranks.py`` runs in two processes at once: trainings by both together, and the same ones by the first alone.

``python two_processes.py FOLDER``; the folder holds a tiny model of each kind, and gets a file of figures for each training.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch

from autoft.contracts import ModelSource, Target, TaskContext
from autoft.data.features import encoded
from autoft.data.rows import Split
from autoft.hardware import Hardware
from autoft.plans.efforts import TRAIN_SPACE
from autoft.plugins import load_plugins
from autoft.processes import silence_libraries
from autoft.ranks import ProcessGroup, Ranks
from autoft.training import train

CATALOG = load_plugins()
PARAMS = {"train.dropout": 0.0, "train.max_length": 32, "train.batch_size": 5, "train.epochs": 2}
ACCUMULATED = {"train.gradient_accumulation": 2, "train.gradient_checkpointing": True}


class Case:
    """A training of a tiny model; five rows a batch and one at the end are uneven for two processes."""

    def __init__(
        self, task="text-classification", model="encoder", adapter="full", rate=1e-3, params=None, settings=None
    ):
        self.task, self.adapter = CATALOG.task(task), CATALOG.adapters[adapter]
        self.model, self.rate, self.settings = model, rate, settings or (lambda rank: {})
        self.own = {name: domain.default for name, domain in self.adapter.space.items()}
        self.own.update({"dropout": 0.0} if adapter == "lora" else {})
        self.params = {**PARAMS, **(params or {})}

    def train(self, folder, ranks):
        task = self.task
        rows = [dict(row) for row in task.demo_rows() if not isinstance(row.get("summary"), list)]
        rows = (rows * 6)[:11]
        params = {name: domain.default for name, domain in {**TRAIN_SPACE, **task.space()}.items()} | self.params
        options = {option.name: option.default for option in task.card.options}
        # A model that has learned nothing seldom ends by itself, and each token more is the same work.
        options |= {"max_new_tokens": 16} if "max_new_tokens" in options else {}
        source = ModelSource("tiny", str(folder / self.model))
        context = TaskContext(task.facts(rows, options), options, params, 32, seed=0)
        context = TaskContext(**{**vars(context), "processor": task.load_processor(source, context)})
        target = Target(task, source, {}, context, Hardware.probe_cpu())
        torch.manual_seed(0)
        model = self.adapter.attach(task.load_model(source, context), target, self.own)
        ranks.shard(model)

        def validate(model):
            answers = task.predict(model, rows[:6], context, batch_size=4)
            model.eval()
            with torch.inference_mode():
                batch = task.collate(task.encode(rows[:6], context), context)
                return {"loss": float(task.loss(model, batch, context)), "answers": float(len(answers))}

        outcome = train(
            model,
            context=context,
            features=encoded(Split.from_rows(rows), task, context, folder / f"rows-{ranks.rank}", "tiny"),
            rows=rows,
            augmentation=None,
            learning_rate=self.rate,
            objective="loss",
            higher_is_better=False,
            validate=validate,
            on_progress=lambda progress: None,
            groups=self.adapter.parameter_groups(model, self.rate, self.own),
            ranks=ranks,
            **{"task": task, "precision": "fp32", "on_validation": lambda point: False, **self.settings(ranks.rank)},
        )
        model = ranks.gathered(model)
        if not ranks.leads:
            return {}
        curve = [[point.samples, point.train_loss, point.validation["loss"]] for point in outcome.curve]
        logits = validate(model)["loss"]
        weights = {f"weights.{name}": weight.detach().numpy() for name, weight in model.named_parameters()}
        best = [outcome.best.samples, outcome.parts, outcome.stopped, outcome.out_of_time]
        return {"curve": np.array(curve), "ends": np.array(best), "logits": np.array(logits), **weights}


class Hungry(type(CATALOG.task("text-classification"))):
    """Finds no memory in one of the processes for more than one row."""

    def loss(self, model, batch, context):
        if self.hungry and len(batch["labels"]) > 1 and model.training:
            raise MemoryError("out of memory")
        return super().loss(model, batch, context)


def hungry(rank):
    task = Hungry()
    task.hungry = rank == 1
    return {"task": task}


def stopped(rank):
    return {"on_validation": lambda point: rank == 0 and point.epoch > 1.5}


CASES = {
    "full": Case(params=ACCUMULATED),
    "lora": Case(adapter="lora"),
    # What learns this fast is worse at the end than before it.
    "best": Case(rate=0.1, params={"train.schedule": "constant", "train.epochs": 4}),
    "writes": Case("summarization", "decoder", "lora"),
    "half": Case(settings=lambda rank: {"precision": "bf16"}),
    "stopped": Case(settings=stopped),
    "late": Case(settings=lambda rank: {"deadline": 0.0 if rank == 0 else None}),
}


def main(rank, folder):
    torch.set_num_threads(1)
    silence_libraries()
    for sharding in ("none", "fsdp"):
        group = ProcessGroup(folder / f"store-{sharding}", rank, 2, sharding, "cpu")
        for name, case in CASES.items():
            np.savez(folder / f"{sharding}-{name}-{rank}.npz", **case.train(folder, group))
        if sharding == "none":
            np.savez(folder / f"none-hungry-{rank}.npz", **Case(settings=hungry).train(folder, group))
        try:
            Case(rate=float("inf")).train(folder, group)
        except FloatingPointError as error:
            (folder / f"{sharding}-infinite-{rank}.txt").write_text(str(error))
        group.close()
    if rank == 0:
        for name, case in CASES.items():
            np.savez(folder / f"alone-{name}-0.npz", **case.train(folder, Ranks()))


if __name__ == "__main__":
    # One import of the libraries does for both; nothing has computed yet.
    child = os.fork()
    main(0 if child else 1, Path(sys.argv[1]))
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
