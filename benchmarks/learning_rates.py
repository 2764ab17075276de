# python benchmarks/learning_rates.py --only banking77 --data banking77=path/to/banking77 --models package://cognition/model
"""Which learning rate a model takes: trainings at several rates, all else at its default, for each data set and model.

Shown is the best validation accuracy of each training, as a search would see it. Data sets are given as for `first_trial.py`;
what was trained in `--runs` already is read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from first_trial import MODELS, classification_sets

from autoft.api import search
from autoft.evaluation import start_measuring
from autoft.hardware import Hardware
from autoft.plans.plan import plan_of
from autoft.processes import silence_libraries
from autoft.rundir import read_run

RATES = [5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=FOLDER", help="data sets beside movie reviews")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these sets; default: all")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--pipeline", default="full", help="as full, top-layers or lora")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--epochs", nargs="+", type=int, default=[3, 5])
    parser.add_argument("--rows", type=int, default=1000, help="training rows at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/learning-rates"), help="where run folders go")
    given = parser.parse_args()
    silence_libraries()
    start_measuring()
    print(
        f"{given.pipeline}, at most {given.rows} training rows, seed {given.seed}, {given.threads} threads, {Hardware.probe().cpu}\n"
    )
    print(f"| model | data | epochs | {' | '.join(f'{rate:g}' for rate in given.rates)} |")
    print("| --- " * (3 + len(given.rates)) + "|")
    for model in given.models:
        for name, data in classification_sets(given).items():
            recipe = {
                "task": "text-classification",
                "model": model,
                "data": data,
                "budget": {"time": "240h"},
                "pipelines": [given.pipeline],
                "compress": ["none"],
                "augment": ["none"],
                "search": {
                    "sampler": "grid",
                    "early_stopping": "none",
                    "finalist_seeds": 0,
                    "portfolio": False,
                    "seed": given.seed,
                },
                "space": {
                    "train.epochs": given.epochs,
                    f"{given.pipeline}.learning_rate": given.rates,
                    "train.max_length": 128,
                    "train.batch_size": 16,
                    "train.schedule": "linear",
                    "train.warmup": 0.06,
                    "train.weight_decay": 0.01,
                    "train.label_smoothing": 0.0,
                    "train.dropout": 0.1,
                },
                "executor": {"threads": given.threads},
            }
            folder = given.runs / f"{name}-{Path(model).parent.name}-{given.pipeline}-{given.seed}"
            record = read_run(search(recipe, run=folder).path)
            objective, best = plan_of(record).objective, dict[tuple[int, float], float]()
            for trial in record.trials:
                params = trial.config.params
                place = int(params["train.epochs"]), float(params[f"{given.pipeline}.learning_rate"])
                best[place] = max(point.validation[objective] for point in trial.curve)
            for epochs in given.epochs:
                shown = " | ".join(f"{best[epochs, rate]:.4f}" for rate in given.rates)
                print(f"| {model} | {name} | {epochs} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
