"""What a loop of Optuna around transformers' Trainer judges in the time of a search, on the rows of the same run.

The loop is the one that tutorials show: TPE over learning rate, epochs and batch size, padding to the longest row of a
batch, the best epoch kept. It begins with the same default configuration. Its rows are those of a finished search, and
so is its time.

    python benchmarks/plain_loop.py runs/reviews-10-minutes --seconds 600
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna

from autoft.data.prepared import open_data
from autoft.data.rows import Split
from autoft.plans.plan import Plan, plan_of
from autoft.processes import silence_libraries
from autoft.rundir import RunDir, read_run


@dataclass
class Looped:
    """What a loop did: seconds are from its begin on.

    Attributes:
        scores: seconds and validation accuracy after each epoch of each training.
        ends: seconds at the end of each configuration that was judged.
        value: best validation accuracy.
        test: of the configuration that has it.
        params: its parameters.
    """

    scores: list[tuple[float, float]] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    value: float = -math.inf
    test: float = math.nan
    params: dict[str, Any] = field(default_factory=dict)


class PlainTrainer:
    """Trainings of the first model of a finished search for text classification by transformers' Trainer, on its rows.

    Args:
        run: the search.
        plan: its plan.
        seconds: when a training is left as it is.
    """

    def __init__(self, run: RunDir, plan: Plan, seconds: float = math.inf) -> None:
        import torch
        from transformers import AutoTokenizer

        self.begin, self.seconds, self.plan = time.monotonic(), seconds, plan
        torch.set_num_threads(plan.threads)
        data = open_data(run.data)
        self.labels = list(plan.facts["labels"])
        self.path = plan.models[0].path
        self.tokenizer = AutoTokenizer.from_pretrained(self.path)
        length = plan.domain("train.max_length").default
        self.longest = min(int(length), self.tokenizer.model_max_length)
        self.train, self.validation, self.test = (
            self.encoded(split) for split in (data.train, data.validation, data.test)
        )
        self.scores: list[tuple[float, float]] = []
        """Seconds since the begin, and validation accuracy, after each epoch of each training."""

    def encoded(self, split: Split) -> list[dict[str, Any]]:
        """Return the features of a split."""
        rows = split[:]
        tokens = self.tokenizer([row["text"] for row in rows], truncation=True, max_length=self.longest)
        return [
            {**{name: values[i] for name, values in tokens.items()}, "labels": self.labels.index(str(row["label"]))}
            for i, row in enumerate(rows)
        ]

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() - self.begin > self.seconds

    def trained(self, **arguments: Any) -> Any:
        """Return the Trainer after a training, with its best epoch; ``arguments`` are TrainingArguments."""
        import numpy as np
        import torch
        from transformers import (
            AutoModelForSequenceClassification,
            DataCollatorWithPadding,
            PrinterCallback,
            Trainer,
            TrainerCallback,
            TrainingArguments,
        )

        def accuracy(prediction: Any) -> dict[str, float]:
            return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}

        outer = self

        class Watch(TrainerCallback):
            def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
                outer.scores.append((time.monotonic() - outer.begin, float(metrics["eval_accuracy"])))

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                control.should_training_stop |= outer.over

        torch.manual_seed(self.plan.seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=AutoModelForSequenceClassification.from_pretrained(self.path, num_labels=len(self.labels)),
                args=TrainingArguments(
                    output_dir=folder,
                    eval_strategy="epoch",
                    save_strategy="epoch",
                    load_best_model_at_end=True,
                    metric_for_best_model="accuracy",
                    save_total_limit=1,
                    report_to=[],
                    disable_tqdm=True,
                    seed=self.plan.seed,
                    use_cpu=self.plan.device == "cpu",
                    **arguments,
                ),
                train_dataset=self.train,
                eval_dataset=self.validation,
                data_collator=DataCollatorWithPadding(self.tokenizer),
                compute_metrics=accuracy,
                callbacks=[Watch()],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return trainer


def loop(run: RunDir, plan: Plan, seconds: float, *, whole: bool = True) -> Looped:
    """Search on a run's rows for text classification with its first model, and return what was found.

    Args:
        run: a finished search.
        plan: its plan.
        seconds: when to end.
        whole: let the training that is under way end; without, it is left as it is, and not judged.
    """
    found = Looped()
    plain = PlainTrainer(run, plan, math.inf if whole else seconds)
    found.scores = plain.scores

    def objective(trial: optuna.Trial) -> float:
        trainer = plain.trained(
            learning_rate=trial.suggest_float("learning_rate", 5e-6, 2e-4, log=True),
            num_train_epochs=trial.suggest_int("epochs", 2, 5),
            per_device_train_batch_size=trial.suggest_categorical("batch_size", [16, 32]),
            per_device_eval_batch_size=32,
            warmup_steps=0.06,
            weight_decay=0.01,
        )
        if plain.over:
            trial.study.stop()
            raise optuna.TrialPruned
        value = float(trainer.evaluate()["eval_accuracy"])
        if value > found.value:
            found.value, found.params = value, trial.params
            found.test = trainer.predict(plain.test).metrics["test_accuracy"]
        found.ends.append(time.monotonic() - plain.begin)
        print(f"trial {trial.number}: {value:.4f} after {found.ends[-1]:.0f} s, {trial.params}", flush=True)
        if found.ends[-1] > seconds:
            trial.study.stop()
        return value

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=plan.seed))
    study.enqueue_trial({"learning_rate": 5e-5, "epochs": 3, "batch_size": 16})
    study.optimize(objective)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished search for text classification")
    parser.add_argument("--seconds", type=float, default=600.0)
    arguments = parser.parse_args()
    silence_libraries()
    found = loop(RunDir(arguments.run), plan_of(read_run(arguments.run)), arguments.seconds)
    within = sum(end <= arguments.seconds for end in found.ends)
    print(
        f"{within} configurations judged within {arguments.seconds:.0f} s, {len(found.ends)} when the last one ended "
        f"after {found.ends[-1]:.0f} s; best validation {found.value:.4f}, test {found.test:.4f} {found.params}"
    )


if __name__ == "__main__":
    main()
